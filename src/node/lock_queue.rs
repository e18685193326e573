//! Who waits on which transaction's locks in one shard, at the shard's leader (rule R9).
//!
//! A command that met a lock stays here until a command that ends the holder was applied in this shard. Those
//! who wait are woken in the order in which they came, so that they are sequenced in that order.

use std::collections::HashMap;

use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::types::TxnId;

/// The waiting commands of one shard.
#[derive(Default)]
pub struct LockQueue(Mutex<HashMap<TxnId, Vec<oneshot::Sender<()>>>>);

impl LockQueue {
    /// Waits for the end of `holder`. Whoever calls this looks once more whether the lock is still there: it may
    /// have gone before.
    pub fn join(&self, holder: TxnId) -> oneshot::Receiver<()> {
        let (wake, woken) = oneshot::channel();
        let mut queue = self.0.lock();
        let waiting = queue.entry(holder).or_default();
        // Those that have given up leave their places.
        waiting.retain(|waiting| !waiting.is_closed());
        waiting.push(wake);
        woken
    }

    /// Wakes those who wait for a transaction: a command that ends it was applied.
    pub fn released(&self, holder: TxnId) {
        let woken = self.0.lock().remove(&holder);
        for wake in woken.into_iter().flatten() {
            // Whoever waited may have gone at its deadline.
            let _ = wake.send(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{RequestId, Timestamp};

    fn txn(unique: u128) -> TxnId {
        RequestId { seen: Timestamp(1), unique }
    }

    #[tokio::test]
    async fn a_release_wakes_those_who_wait_for_that_transaction_only() {
        let queue = LockQueue::default();
        let first = queue.join(txn(1));
        let mut other = queue.join(txn(2));
        queue.released(txn(1));
        first.await.expect("woken");
        assert!(other.try_recv().is_err());
    }

    #[test]
    fn who_has_given_up_is_forgotten() {
        let queue = LockQueue::default();
        for _ in 0..10 {
            drop(queue.join(txn(1)));
        }
        assert_eq!(queue.0.lock()[&txn(1)].len(), 1);
    }
}
