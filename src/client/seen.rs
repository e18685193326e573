//! The newest timestamp that a client has seen: the first half of every request id (rule R8).

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::rpc::v1::saga_reply::What as Answer;
use crate::rpc::v1::session_reply::Reply;
use crate::types::{RequestId, Timestamp};

/// After so long without a fresh timestamp, one is asked for before the next write: the id's timestamp
/// bounds the server's search for an earlier attempt, which is a walk over all versions that the key got
/// since (rule R8), and an id that is too old is refused (rule R7).
const STALE_AFTER: Duration = Duration::from_secs(1);

/// The newest timestamp seen, and when it last was a fresh one.
pub(super) struct Seen {
    newest: AtomicU64,
    /// Milliseconds from `started` to the last fresh timestamp, plus one; 0 is never.
    fresh_ms: AtomicU64,
    started: Instant,
    /// Held by the one who asks for a fresh timestamp.
    pub(super) asking: Mutex<()>,
}

impl Default for Seen {
    fn default() -> Self {
        Self {
            newest: AtomicU64::new(0),
            fresh_ms: AtomicU64::new(0),
            started: Instant::now(),
            asking: Mutex::new(()),
        }
    }
}

impl Seen {
    /// A timestamp that may be an old one, like that of a record.
    pub(super) fn note(&self, ts: u64) {
        // One beyond every timestamp would make every id void: it is not believed.
        if ts <= Timestamp::MAX.0 {
            self.newest.fetch_max(ts, Ordering::Relaxed);
        }
    }

    /// A timestamp that the oracle handed out just now; 0 is none.
    pub(super) fn note_fresh(&self, ts: u64) {
        if ts == 0 {
            return;
        }
        self.note(ts);
        let now = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX - 1);
        self.fresh_ms.fetch_max(now + 1, Ordering::Relaxed);
    }

    /// Every timestamp of a reply. `fresh` is false where the request named the timestamp to read at.
    pub(super) fn note_reply(&self, reply: &Reply, fresh: bool) {
        let ts = match reply {
            Reply::Put(put) => put.commit_ts,
            Reply::Delete(delete) => delete.commit_ts,
            Reply::CompareAndSwap(swap) => swap.commit_ts,
            Reply::Add(add) => add.commit_ts,
            Reply::Batch(batch) => batch.commit_ts,
            Reply::Commit(commit) => commit.commit_ts,
            Reply::GetMany(many) => many.at_ts,
            Reply::ScanPage(page) => page.at_ts,
            Reply::Timestamp(timestamp) => timestamp.ts,
            Reply::Get(get) => return self.note(get.record.as_ref().map_or(0, |record| record.commit_ts)),
            // Only a page that was read says something that the store has seen; others repeat what was asked.
            Reply::ChangesPage(page) => {
                return self.note(page.served.as_ref().map_or(0, |_| page.through_ts));
            }
            Reply::Error(_)
            | Reply::Empty(_)
            | Reply::Consumer(_)
            | Reply::IndexCatalogue(_)
            | Reply::IndexVersion(_)
            | Reply::SagaCatalogue(_) => return,
            // The transaction of a step begins where the step was handed out, or later.
            Reply::Saga(reply) => {
                let newest = match &reply.what {
                    Some(Answer::Tasks(tasks)) => tasks.tasks.iter().map(|task| task.lease_ts).max(),
                    _ => None,
                };
                return self.note(newest.unwrap_or_default());
            }
        };
        if fresh { self.note_fresh(ts) } else { self.note(ts) }
    }

    /// Whether a fresh timestamp shall be asked for before the next write.
    pub(super) fn is_stale(&self) -> bool {
        let fresh_ms = self.fresh_ms.load(Ordering::Relaxed);
        fresh_ms == 0 || self.started.elapsed() > Duration::from_millis(fresh_ms) + STALE_AFTER
    }

    /// Makes [`is_stale`](Self::is_stale) true: the newest timestamp turned out to be too old.
    pub(super) fn distrust(&self) {
        self.fresh_ms.store(0, Ordering::Relaxed);
    }

    /// An id for a new write.
    pub(super) fn request_id(&self) -> RequestId {
        RequestId { seen: Timestamp(self.newest.load(Ordering::Relaxed)), unique: rand::random() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rpc::v1;

    #[test]
    fn ids_hold_the_newest_timestamp_and_never_repeat() {
        let seen = Seen::default();
        seen.note_fresh(0);
        assert!(seen.is_stale());
        seen.note_fresh(7);
        seen.note(5);
        seen.note(u64::MAX);
        let (one, two) = (seen.request_id(), seen.request_id());
        assert_eq!((one.seen, two.seen), (Timestamp(7), Timestamp(7)));
        assert_ne!(one.unique, two.unique);
        assert!(!seen.is_stale());
        seen.distrust();
        assert!(seen.is_stale());
    }

    #[test]
    fn an_old_record_is_no_fresh_timestamp() {
        let seen = Seen::default();
        let record = v1::Record { commit_ts: 9, ..Default::default() };
        seen.note_reply(&Reply::Get(v1::GetReply { record: Some(record), served: None }), true);
        assert!(seen.is_stale());
        assert_eq!(seen.request_id().seen, Timestamp(9));
        seen.note_reply(&Reply::Timestamp(v1::TimestampReply { ts: 12 }), true);
        assert!(!seen.is_stale());
    }
}
