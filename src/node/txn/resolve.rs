//! What became of a transaction whose lock a reader has met (rules R3, R4 and R6). The reader writes nothing.

use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt};
use tokio::time::Instant;

use super::drive::carry_out;
use super::router::Router;
use crate::txn::{Event, Inquiry, Learnt};
use crate::types::{Error, Lock, Result, Timestamp};

/// The pause before a question that failed is asked again.
const RESEND_PAUSE: Duration = Duration::from_millis(20);

/// The fate of the lock's holder, for a read at `at`. The key is read again after this, in one view: behind a fresh read
/// index, where the answer says that it must be confirmed.
///
/// # Errors
///
/// `Unavailable` where the primary's shard could not be asked before the deadline.
pub async fn resolve(router: &Router, lock: &Lock, at: Timestamp, deadline: Instant) -> Result<Learnt> {
    let (mut inquiry, mut actions) = Inquiry::start(lock, at);
    let mut under_way: FuturesUnordered<BoxFuture<'static, Event>> = FuturesUnordered::new();
    let mut resend_at = None;
    loop {
        for action in std::mem::take(&mut actions) {
            under_way.extend(carry_out(router.clone(), lock.txn, action));
        }
        let event = tokio::select! {
            Some(event) = under_way.next() => event,
            () = tokio::time::sleep_until(resend_at.unwrap_or(deadline)), if resend_at.is_some() => Event::Resend,
            () = tokio::time::sleep_until(deadline) => return Err(Error::unavailable(format!(
                "the read met a lock of transaction {}, and what became of it could not be learnt before the deadline: \
                 retry",
                lock.txn
            ))),
        };
        match &event {
            Event::Failed { .. } => {
                resend_at.get_or_insert_with(|| Instant::now() + RESEND_PAUSE);
            }
            Event::Resend => resend_at = None,
            _ => {}
        }
        if let Some(learnt) = inquiry.on(event, &mut actions) {
            return Ok(learnt);
        }
    }
}
