//! Who waits on which transaction's locks in one shard, at the shard's leader (rule R9).
//!
//! A command that met a lock stays here until a command that ends the holder was applied in this shard. Those
//! who wait are woken in the order in which they came, so that they are sequenced in that order.

use std::collections::HashMap;

use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::types::TxnId;

type Waiting = HashMap<TxnId, Vec<oneshot::Sender<()>>>;

/// The waiting commands of one shard.
#[derive(Default)]
pub struct LockQueue(Mutex<Waiting>);

/// A place in the queue; dropped, it is given up.
pub struct Place<'a> {
    queue: &'a LockQueue,
    holder: TxnId,
    woken: oneshot::Receiver<()>,
}

impl LockQueue {
    /// Waits for the end of `holder`. Whoever calls this looks once more whether the lock is still there: it may
    /// have gone before.
    pub fn join(&self, holder: TxnId) -> Place<'_> {
        let (wake, woken) = oneshot::channel();
        self.0.lock().entry(holder).or_default().push(wake);
        Place { queue: self, holder, woken }
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

impl Place<'_> {
    /// Returns once the holder has ended.
    pub async fn released(&mut self) {
        // The queue sends before it lets go of a place.
        let _ = (&mut self.woken).await;
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.woken.close();
        let mut queue = self.queue.0.lock();
        if let Some(waiting) = queue.get_mut(&self.holder) {
            waiting.retain(|waiting| !waiting.is_closed());
            if waiting.is_empty() {
                queue.remove(&self.holder);
            }
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
        let mut first = queue.join(txn(1));
        let mut other = queue.join(txn(2));
        queue.released(txn(1));
        first.released().await;
        assert!(other.woken.try_recv().is_err());
    }

    #[test]
    fn who_has_given_up_leaves_nothing_behind() {
        let queue = LockQueue::default();
        let kept = queue.join(txn(1));
        drop(queue.join(txn(1)));
        drop(queue.join(txn(2)));
        assert_eq!(queue.0.lock().len(), 1);
        drop(kept);
        assert!(queue.0.lock().is_empty());
    }
}
