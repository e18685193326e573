//! All of a node's needs for timestamps, coalesced: at most one request to the oracle is under way, and
//! it asks for as many as are waiting.
//!
//! Timestamps asked for after a request was sent are never served from its answer, so a timestamp is
//! always larger than every one handed out before it was asked for. An answer that comes after its
//! request was given up is dropped, and leftovers are never used later.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::types::{Error, Result, Timestamp};

/// How long one request to the oracle may take before it is given up.
const REQUEST_TIMEOUT: Duration = Duration::from_millis(1000);
/// The most timestamps that one request asks for; asks beyond go into the next one.
pub const MAX_COUNT: u64 = 65_536;
/// Asks that may wait at once; more wait for a place.
const QUEUE_LENGTH: usize = 16 * 1024;

/// Where timestamps come from: the leader of the system shard, here or elsewhere.
pub trait Source: Send + Sync + 'static {
    /// The first of `count` consecutive timestamps.
    fn cut(&self, count: u64) -> BoxFuture<'_, Result<Timestamp>>;
}

struct Ask {
    count: u64,
    answer: oneshot::Sender<Result<Timestamp>>,
}

/// The node's one mouth towards the oracle. Cheap to clone.
#[derive(Clone)]
pub struct Timestamps {
    asks: mpsc::Sender<Ask>,
    seen: Arc<Seen>,
}

/// The newest timestamp given to this node, and when that was.
struct Seen {
    newest: AtomicU64,
    at: Mutex<Option<Instant>>,
}

impl Timestamps {
    /// Starts the coalescing task; it ends when all clones are dropped.
    pub fn start(source: Arc<dyn Source>) -> Self {
        let (asks, queue) = mpsc::channel(QUEUE_LENGTH);
        let seen = Arc::new(Seen { newest: AtomicU64::new(0), at: Mutex::new(None) });
        tokio::spawn(coalesce(queue, source, seen.clone()));
        Self { asks, seen }
    }

    /// The first of `count` consecutive timestamps, all larger than any handed out before this call.
    ///
    /// # Errors
    ///
    /// `Unavailable` where the oracle could not be reached in time.
    pub async fn take(&self, count: u64) -> Result<Timestamp> {
        let (answer, answered) = oneshot::channel();
        let gone = |_| Error::unavailable("the node is stopping: ask another node");
        self.asks.send(Ask { count, answer }).await.map_err(|error| gone(error.to_string()))?;
        answered.await.map_err(|error| gone(error.to_string()))?
    }

    /// The newest timestamp this node has been given; zero before the first.
    pub fn newest_seen(&self) -> Timestamp {
        Timestamp(self.seen.newest.load(Ordering::Relaxed))
    }

    /// A timestamp for the id of a request that came without one (rule R8): the newest this node was given,
    /// or a new one where that was longer ago than `max_age`.
    ///
    /// # Errors
    ///
    /// `Unavailable` where the oracle was needed and could not be reached.
    pub async fn recent(&self, max_age: Duration) -> Result<Timestamp> {
        let fresh = self.seen.at.lock().is_some_and(|at| at.elapsed() <= max_age);
        if fresh { Ok(self.newest_seen()) } else { self.take(1).await }
    }
}

async fn coalesce(mut queue: mpsc::Receiver<Ask>, source: Arc<dyn Source>, seen: Arc<Seen>) {
    let mut waiting = VecDeque::new();
    loop {
        if waiting.is_empty() {
            let Some(ask) = queue.recv().await else { return };
            waiting.push_back(ask);
        }
        while let Ok(ask) = queue.try_recv() {
            waiting.push_back(ask);
        }
        let (mut asks, total) = one_request(&mut waiting);
        let answer = match tokio::time::timeout(REQUEST_TIMEOUT, source.cut(total)).await {
            Ok(answer) => answer,
            Err(_) => Err(Error::unavailable(format!(
                "no timestamp within {} ms: the system shard has no leader that this node can reach; retry",
                REQUEST_TIMEOUT.as_millis()
            ))),
        };
        match answer {
            Ok(mut next) => {
                seen.newest.fetch_max(next.plus(total).before().0, Ordering::Relaxed);
                *seen.at.lock() = Some(Instant::now());
                for ask in asks.drain(..) {
                    let first = next;
                    next = next.plus(ask.count);
                    // Whoever asked may have gone; its timestamps are lost, which harms nobody.
                    let _ = ask.answer.send(Ok(first));
                }
            }
            Err(error) => {
                for ask in asks.drain(..) {
                    let _ = ask.answer.send(Err(error.clone()));
                }
            }
        }
    }
}

/// The asks at the front that fit into one request, at least one, and how many timestamps they want.
fn one_request(waiting: &mut VecDeque<Ask>) -> (Vec<Ask>, u64) {
    let mut total = 0;
    let fitting = waiting.iter().take_while(|ask| {
        total += ask.count;
        total <= MAX_COUNT
    });
    let asks: Vec<Ask> = {
        let count = fitting.count().max(1);
        waiting.drain(..count).collect()
    };
    let total = asks.iter().map(|ask| ask.count).sum();
    (asks, total)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Hands out timestamps from 1, one request at a time through a gate, and notes each request's size.
    #[derive(Default)]
    struct Gated {
        next: AtomicU64,
        sizes: Mutex<Vec<u64>>,
        gate: tokio::sync::Mutex<()>,
    }

    impl Source for Gated {
        fn cut(&self, count: u64) -> BoxFuture<'_, Result<Timestamp>> {
            Box::pin(async move {
                self.sizes.lock().push(count);
                let _open = self.gate.lock().await;
                Ok(Timestamp(1 + self.next.fetch_add(count, Ordering::Relaxed)))
            })
        }
    }

    #[tokio::test]
    async fn waiting_asks_share_one_request_and_later_asks_wait_for_the_next() {
        let source = Arc::new(Gated::default());
        let timestamps = Timestamps::start(source.clone());
        let closed = source.gate.lock().await;
        let first = tokio::spawn({
            let timestamps = timestamps.clone();
            async move { timestamps.take(2).await }
        });
        while source.sizes.lock().is_empty() {
            tokio::task::yield_now().await;
        }
        // These come after the first request was sent: they must not be served from its answer.
        let later: Vec<_> = (0..5)
            .map(|_| {
                let timestamps = timestamps.clone();
                tokio::spawn(async move { timestamps.take(1).await })
            })
            .collect();
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        drop(closed);
        assert_eq!(first.await.expect("runs").expect("answered"), Timestamp(1));
        let mut given = Vec::new();
        for ask in later {
            given.push(ask.await.expect("runs").expect("answered").0);
        }
        given.sort_unstable();
        assert_eq!(given, [3, 4, 5, 6, 7]);
        assert_eq!(*source.sizes.lock(), [2, 5]);
        assert_eq!(timestamps.newest_seen(), Timestamp(7));
    }

    #[tokio::test]
    async fn more_than_one_request_can_ask_for_goes_into_the_next() {
        let source = Arc::new(Gated::default());
        let timestamps = Timestamps::start(source.clone());
        let takes = (0..3).map(|_| timestamps.take(MAX_COUNT / 2));
        let mut firsts: Vec<u64> = Vec::new();
        for first in futures::future::join_all(takes).await {
            firsts.push(first.expect("answered").0);
        }
        firsts.sort_unstable();
        assert_eq!(firsts, [1, 1 + MAX_COUNT / 2, 1 + MAX_COUNT]);
        assert!(source.sizes.lock().iter().all(|size| *size <= MAX_COUNT), "{:?}", source.sizes.lock());
    }
}
