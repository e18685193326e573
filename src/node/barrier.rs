//! Which batches of a shard are under way, so that reads wait for those they must see (rule R1).
//!
//! A batch is registered *before* its timestamps are asked for, since from that moment on another
//! reader may be given a later timestamp and see the batch. It stays until its fate is known.

use std::collections::HashSet;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::types::{Error, KeyRange, Operation, Result, Timestamp};

/// What became of a batch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fate {
    /// It was applied, or was certainly never proposed: either way a read now sees what it must.
    Settled,
    /// It may still be applied by another leader: who waits for it can't be answered here.
    Unknown,
}

/// What a batch touches: the keys that its operations name, and where a transaction's end may change others.
#[derive(Default)]
pub struct Touched {
    keys: HashSet<Bytes>,
    spans: Vec<KeyRange>,
}

impl Touched {
    /// Adds what an operation touches.
    pub fn add(&mut self, operation: &Operation) {
        self.keys.extend(operation.keys().into_iter().cloned());
        if let Operation::Txn(command) = operation {
            self.spans.extend_from_slice(command.spans());
        }
    }

    fn touches(&self, key: &[u8]) -> bool {
        self.keys.contains(key) || self.spans.iter().any(|span| span.contains(key))
    }
}

struct OpenBatch {
    id: u64,
    touched: Touched,
    /// The first timestamp, once the oracle has answered.
    first: Option<Timestamp>,
    gate: watch::Sender<Option<Fate>>,
}

#[derive(Default)]
struct Inner {
    next_id: u64,
    open: Vec<OpenBatch>,
}

/// The batches of one shard that are under way on this node. Few at a time: the sequencer limits them.
#[derive(Default)]
pub struct Barrier {
    inner: Arc<Mutex<Inner>>,
}

impl Barrier {
    /// Registers a batch that is about to ask for its timestamps.
    pub fn open(&self, touched: Touched) -> Ticket {
        let mut inner = self.inner.lock();
        let id = inner.next_id;
        inner.next_id += 1;
        inner.open.push(OpenBatch { id, touched, first: None, gate: watch::Sender::new(None) });
        Ticket { inner: self.inner.clone(), id, fate: Fate::Settled }
    }

    /// What a latest read of `keys`, or a question about a lock there, must wait for if it came now: every
    /// batch under way that touches one of them.
    pub fn before_latest(&self, keys: &[Bytes]) -> Wait {
        self.collect(|batch| keys.iter().any(|key| batch.touched.touches(key)))
    }

    /// What a read at `ts` that came now must wait for: every batch under way whose timestamps are not
    /// known to be above it.
    pub fn before_snapshot(&self, ts: Timestamp) -> Wait {
        self.collect(|batch| batch.first.is_none_or(|first| first <= ts))
    }

    fn collect(&self, mut wanted: impl FnMut(&OpenBatch) -> bool) -> Wait {
        let inner = self.inner.lock();
        Wait(inner.open.iter().filter(|batch| wanted(batch)).map(|batch| batch.gate.subscribe()).collect())
    }
}

/// A registered batch. Dropping it settles it, as never proposed unless [`Ticket::proposed`] was called.
pub struct Ticket {
    inner: Arc<Mutex<Inner>>,
    id: u64,
    fate: Fate,
}

impl Ticket {
    /// The oracle answered: the batch's first timestamp.
    pub fn stamped(&self, first: Timestamp) {
        let mut inner = self.inner.lock();
        if let Some(batch) = inner.open.iter_mut().find(|batch| batch.id == self.id) {
            batch.first = Some(first);
        }
    }

    /// The batch is handed to Raft: from here on its fate is unknown until it is settled.
    pub fn proposed(&mut self) {
        self.fate = Fate::Unknown;
    }

    /// The batch's fate is known.
    pub fn settle(mut self, fate: Fate) {
        self.fate = fate;
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut inner = self.inner.lock();
        if let Some(at) = inner.open.iter().position(|batch| batch.id == self.id) {
            let batch = inner.open.swap_remove(at);
            batch.gate.send_replace(Some(self.fate));
        }
    }
}

/// The batches that a read waits for, as they were when it came.
pub struct Wait(Vec<watch::Receiver<Option<Fate>>>);

impl Wait {
    /// Waits until the fate of each is known.
    ///
    /// # Errors
    ///
    /// `Unavailable` where one has an unknown fate, or the deadline passes first.
    pub async fn wait(self, deadline: Instant) -> Result<()> {
        for mut gate in self.0 {
            let fate = match tokio::time::timeout_at(deadline, gate.wait_for(Option::is_some)).await {
                Ok(Ok(fate)) => *fate,
                // A gate is always sent to before it is dropped.
                Ok(Err(_)) => Some(Fate::Unknown),
                Err(_) => {
                    return Err(Error::unavailable(
                        "the deadline passed while the read waited for a write to the same key: retry",
                    ));
                }
            };
            if fate != Some(Fate::Settled) {
                return Err(Error::unavailable(
                    "a write that the read must wait for has an unknown outcome, since the shard's leader \
                     changed: retry",
                ));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures::FutureExt;

    use super::*;
    use crate::types::{Decision, TxnCommand};

    fn keys(list: &[&'static str]) -> Touched {
        let keys = list.iter().map(|key| Bytes::from_static(key.as_bytes())).collect();
        Touched { keys, spans: Vec::new() }
    }

    #[test]
    fn the_end_of_a_transaction_touches_all_keys_of_its_span() {
        let mut touched = Touched::default();
        touched.add(&Operation::Txn(TxnCommand::Finish {
            span: KeyRange::new("b", Some("d".into())),
            decision: Decision::Aborted,
        }));
        assert!(touched.touches(b"b") && touched.touches(b"c"));
        assert!(!touched.touches(b"a") && !touched.touches(b"d"));
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    #[tokio::test]
    async fn a_latest_read_waits_only_for_batches_on_its_key() {
        let barrier = Barrier::default();
        let ticket = barrier.open(keys(&["a", "b"]));
        assert!(barrier.before_latest(&["c".into()]).wait(soon()).now_or_never().is_some());
        let mut waiting = Box::pin(barrier.before_latest(&["a".into()]).wait(soon()));
        assert!(waiting.as_mut().now_or_never().is_none());
        ticket.settle(Fate::Settled);
        waiting.await.expect("settled");
        assert!(barrier.before_latest(&["a".into()]).wait(soon()).now_or_never().is_some());
    }

    #[tokio::test]
    async fn a_snapshot_waits_for_a_batch_that_still_waits_for_the_oracle() {
        let barrier = Barrier::default();
        let ticket = barrier.open(keys(&["a"]));
        let at = Timestamp(10);
        assert!(barrier.before_snapshot(at).wait(soon()).now_or_never().is_none());
        ticket.stamped(Timestamp(11));
        assert!(barrier.before_snapshot(at).wait(soon()).now_or_never().is_some());
        assert!(barrier.before_snapshot(Timestamp(11)).wait(soon()).now_or_never().is_none());
    }

    #[tokio::test]
    async fn an_unknown_fate_fails_the_read_and_a_never_proposed_batch_does_not() {
        let barrier = Barrier::default();
        let mut ticket = barrier.open(keys(&["a"]));
        ticket.proposed();
        let waiting = barrier.before_latest(&["a".into()]);
        drop(ticket);
        assert!(waiting.wait(soon()).await.is_err());

        let ticket = barrier.open(keys(&["a"]));
        let waiting = barrier.before_latest(&["a".into()]);
        drop(ticket);
        waiting.wait(soon()).await.expect("never proposed");
    }
}
