//! Commits for clients, on the node that leads the primary key's shard.

use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::drive::{Patience, drive};
use super::router::Router;
use crate::rpc::convert;
use crate::txn::{Coordinator, TxnCommit, Verdict};
use crate::types::{Error, KeyRange, Outcome, Result, Timestamp, TxnOutcome, key_after, limits};

/// How long a coordinator goes on after its client has got its answer or has given up. What is left then is
/// found and ended by recovery.
const AFTERWARDS: Duration = Duration::from_secs(15);

/// How long before its client's deadline a commit that is not decided is undone, so that the client can still be told:
/// so long, but at most a quarter of the time there is.
const GIVE_UP_ROOM: Duration = Duration::from_secs(1);

/// Commits a transaction that was normalised. What is to be done after the acknowledgement goes on without the
/// caller, also where the caller has gone.
///
/// # Errors
///
/// `Conflict` where it was aborted; `Invalid` where the commit itself was wrong; `Undetermined` where it may have been
/// committed, `Unavailable` where nothing was begun.
pub async fn commit(router: &Router, commit: TxnCommit, deadline: Instant) -> Result<Timestamp> {
    let txn = commit.id;
    let held = router.room_for(commit.part.size_bytes())?;
    let shards = router.cut(&spans(&commit)).await?;
    let (mut coordinator, first) = Coordinator::start(commit, &shards);
    let (verdict, told) = oneshot::channel();
    let room = GIVE_UP_ROOM.min(deadline.saturating_duration_since(Instant::now()) / 4);
    let router = router.clone();
    tokio::spawn(async move {
        let _held = held;
        let patience = Patience { give_up: deadline - room, end: deadline + AFTERWARDS };
        let mut verdict = Some(verdict);
        let acknowledge = |end| {
            if let Some(verdict) = verdict.take() {
                // The client may have gone: it asks again by the same id.
                let _ = verdict.send(end);
            }
        };
        drive(&router, txn, &mut coordinator, first, &patience, acknowledge).await;
    });
    match tokio::time::timeout_at(deadline, told).await {
        Ok(Ok(verdict)) => verdict_to_result(verdict),
        // Its end was not learnt in time.
        Ok(Err(_)) | Err(_) => Err(Error::undetermined(
            "the deadline passed before the transaction's end was known: it may have been committed, or may yet be; send \
             the same commit again, or read before doing it again",
        )),
    }
}

fn spans(commit: &TxnCommit) -> Vec<KeyRange> {
    let points = commit.part.keys().into_iter().map(|key| {
        let end = Some(key_after(&key));
        KeyRange::new(key, end)
    });
    points.chain(commit.part.ranges.iter().cloned()).collect()
}

/// What a client is told of a verdict.
fn verdict_to_result(verdict: Verdict) -> Result<Timestamp> {
    let outcome = match verdict {
        Verdict::Committed { commit_ts } => return Ok(commit_ts),
        Verdict::Aborted { reason } => Outcome::Txn(TxnOutcome::Aborted { reason }),
        Verdict::Refused(refusal) => Outcome::Refused(refusal),
        Verdict::Undetermined => {
            return Err(Error::undetermined(format!(
                "the transaction began more than {} ms ago: whether an earlier attempt of its commit took effect can't \
                 be known any more; read before doing it again",
                limits::MAX_COMMAND_AGE_MS
            )));
        }
    };
    convert::commit_reply(outcome).map(|reply| Timestamp(reply.commit_ts))
}
