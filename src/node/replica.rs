//! One shard on this node: its commands go through the sequencer, and so do questions about its locks, through the
//! barrier (rule R1) and the leader's lease. What reads rows of it is in `reads`.

use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::barrier::{Barrier, Wait};
use super::lock_queue::LockQueue;
use super::reads::{ClosedWords, ReadIndexes, WordBook};
use super::sequencer::{Admission, Sequencer};
use super::timestamps::Timestamps;
use crate::mvcc::Floors;
use crate::raft::{Group, Leadership, ReadPoint, Token};
use crate::shard;
use crate::types::{
    Error, ErrorKind, LeaderHint, Lock, Moved, NodeId, Operation, Outcome, Refusal, RequestId, Result,
    Timestamp, TxnCommand, TxnId, TxnStatus,
};

/// The part of a commit's time that is left for the answer that a lock stands in its way.
const ANSWER_PART: u32 = 4;

/// Finds a node's address.
pub type Resolve = Arc<dyn Fn(NodeId) -> Option<LeaderHint> + Send + Sync>;

/// A replica with its sequencer.
pub struct Replica {
    pub(super) group: Arc<Group>,
    sequencer: Sequencer,
    locks: Arc<LockQueue>,
    pub(super) timestamps: Timestamps,
    pub(super) floors: Arc<Floors>,
    pub(super) read_indexes: Arc<ReadIndexes>,
    pub(super) words: Mutex<ClosedWords>,
    pub(super) book: Arc<WordBook>,
    resolve: Resolve,
}

/// What the replicas of a node share.
#[derive(Clone)]
pub struct Shared {
    /// The way to the oracle.
    pub timestamps: Timestamps,
    /// The bound on requests under way.
    pub admission: Admission,
    /// What reads hold back garbage collection by.
    pub floors: Arc<Floors>,
    /// The way to other leaders' read indexes.
    pub read_indexes: Arc<ReadIndexes>,
    /// What is known of closed timestamps.
    pub book: Arc<WordBook>,
    /// Finds a node's address.
    pub resolve: Resolve,
}

impl Replica {
    /// Starts the sequencer of a group.
    pub fn start(group: Arc<Group>, shared: Shared) -> Self {
        let Shared { timestamps, admission, floors, read_indexes, book, resolve } = shared;
        let hint = resolve.clone();
        let locks = Arc::new(LockQueue::default());
        let sequencer =
            Sequencer::start(group.clone(), timestamps.clone(), admission, locks.clone(), move |node| {
                hint(node)
            });
        let words = Mutex::default();
        Self { group, sequencer, locks, timestamps, floors, read_indexes, words, book, resolve }
    }

    /// The Raft group.
    pub fn group(&self) -> &Arc<Group> {
        &self.group
    }

    /// Executes a command; see [`Sequencer::execute`]. One that meets a lock waits for its release, and is
    /// sequenced again then (rule R9).
    ///
    /// # Errors
    ///
    /// Besides those of the sequencer: `Conflict` where the lock was not released before the deadline.
    pub async fn execute(&self, id: RequestId, operation: Operation, deadline: Instant) -> Result<Outcome> {
        loop {
            match self.sequencer.execute(id, operation.clone(), deadline).await? {
                Outcome::Refused(Refusal::Locked(lock)) => {
                    if !self.wait_for_release(&lock, deadline).await? {
                        return Err(Error::new(
                            ErrorKind::Conflict,
                            format!(
                                "transaction {} has held a lock since {} and did not release it before the deadline: \
                                 nothing was done; try again",
                                lock.txn, lock.prepare_ts
                            ),
                        ));
                    }
                }
                outcome => return Ok(outcome),
            }
        }
    }

    /// Executes a command of a transaction's commit. Where a lock stands in its way for most of the time until the
    /// deadline, that is its outcome: its coordinator can tell its client which.
    ///
    /// # Errors
    ///
    /// Those of the sequencer.
    pub async fn execute_txn(&self, txn: TxnId, command: TxnCommand, deadline: Instant) -> Result<Outcome> {
        let operation = Operation::Txn(command);
        let time_left = deadline.saturating_duration_since(Instant::now());
        let until = deadline - time_left / ANSWER_PART;
        loop {
            match self.sequencer.execute(txn, operation.clone(), deadline).await? {
                Outcome::Refused(Refusal::Locked(lock)) => {
                    if !self.wait_for_release(&lock, until).await? {
                        return Ok(Outcome::Refused(Refusal::Locked(lock)));
                    }
                }
                outcome => return Ok(outcome),
            }
        }
    }

    /// Whether the lock is worth another try before the deadline: it was released, or somebody else led meanwhile.
    async fn wait_for_release(&self, lock: &Lock, deadline: Instant) -> Result<bool> {
        let mut place = self.locks.join(lock.txn);
        // It may have gone between the command's apply and now.
        if shard::lock_of(&*self.group.replica().view()?, &lock.key, lock.txn)?.is_none() {
            return Ok(true);
        }
        let mut leadership = self.group.watch_leadership();
        let token = leadership.borrow().token();
        // Another leadership of this node counts too: what it was led by meanwhile may have released the lock.
        let deposed = leadership.wait_for(|now| now.token() != token);
        tokio::select! {
            () = place.released() => Ok(true),
            _ = deposed => Ok(true),
            () = tokio::time::sleep_until(deadline) => Ok(false),
        }
    }

    /// What the record of a transaction says, whose primary key is in this shard (rule R4).
    ///
    /// # Errors
    ///
    /// As for reads.
    pub async fn txn_status(
        &self,
        primary: &Bytes,
        txn: TxnId,
        at: Option<Timestamp>,
        deadline: Instant,
    ) -> Result<TxnStatus> {
        self.serve(self.wait_for_question(primary, at), deadline).await?;
        self.check_holds(primary)?;
        let replica = self.group.replica();
        let state = replica.state();
        shard::txn_status(&*replica.view()?, &state, primary, txn)
    }

    /// When the transaction locked what is stored at `key`; `None` where it holds no lock there.
    ///
    /// # Errors
    ///
    /// As for reads.
    pub async fn lock_of(
        &self,
        key: &Bytes,
        txn: TxnId,
        at: Option<Timestamp>,
        deadline: Instant,
    ) -> Result<Option<Timestamp>> {
        self.serve(self.wait_for_question(key, at), deadline).await?;
        self.check_holds(key)?;
        shard::lock_of(&*self.group.replica().view()?, key, txn)
    }

    /// What a question about a lock waits for: all batches that touch its key, or, asked at a timestamp, all
    /// batches that may still come in below it (rules R1 and R4).
    fn wait_for_question(&self, key: &Bytes, at: Option<Timestamp>) -> Wait {
        match at {
            Some(at) => self.barrier().before_snapshot(at),
            None => self.barrier().before_latest(std::slice::from_ref(key)),
        }
    }

    /// Which batches are under way.
    pub(super) fn barrier(&self) -> &Barrier {
        self.sequencer.barrier()
    }

    fn has_transactions(&self) -> bool {
        let counts = self.group.state().counts;
        counts.locks > 0 || counts.committed > 0
    }

    /// Whether this replica leads, and may hold locks or records of transactions.
    pub fn may_hold_locks(&self) -> bool {
        self.group.leadership().token().is_some() && self.has_transactions()
    }

    /// A timestamp for a read that came just now (rule R2), or `at` after a check that it is no future one.
    pub async fn read_timestamp(&self, at: Timestamp) -> Result<Timestamp> {
        read_timestamp(&self.timestamps, at).await
    }

    /// Waits for the batches that a read must see, then makes sure that this replica still leads: no other
    /// leader can have acknowledged anything that this one has not applied.
    pub(super) async fn serve(&self, wait: Wait, deadline: Instant) -> Result<()> {
        let token = self.leads_under()?;
        wait.wait(deadline).await?;
        match tokio::time::timeout_at(deadline, self.group.ensure_leader()).await {
            Ok(Ok(point)) => self.check_same(token, &point),
            Ok(Err(error)) => Err(self.with_hint(error)),
            Err(_) => Err(Error::unavailable(
                "the deadline passed before the shard's leader had heard from a majority: retry",
            )),
        }
    }

    /// The leadership that this replica believes to have.
    ///
    /// # Errors
    ///
    /// As [`check_leads`](Self::check_leads).
    pub(super) fn leads_under(&self) -> Result<Token> {
        self.check_leads()?;
        self.group.leadership().token().ok_or_else(|| self.moved(None))
    }

    /// That a moment in the log is of the same leadership as the wait before it: the batches of another one were not
    /// waited for.
    ///
    /// # Errors
    ///
    /// `Unavailable` where it is not.
    pub(super) fn check_same(&self, token: Token, point: &ReadPoint) -> Result<()> {
        if point.token == token {
            return Ok(());
        }
        Err(Error::unavailable(format!(
            "the leadership of shard {} has changed while the read waited: retry",
            self.group.id()
        )))
    }

    /// Whether this replica believes that it leads.
    ///
    /// # Errors
    ///
    /// `Moved` to whoever does, `Unavailable` where the replica has stopped.
    pub fn check_leads(&self) -> Result<()> {
        match self.group.leadership() {
            Leadership::Leading(_) => Ok(()),
            Leadership::Following { leader } => Err(self.moved(leader)),
            Leadership::Stopped { fault } => {
                Err(Error::unavailable(format!("this replica has stopped ({fault}): ask another node")))
            }
        }
    }

    pub(super) fn check_holds(&self, key: &[u8]) -> Result<()> {
        if self.group.state().descriptor.range.contains(key) { Ok(()) } else { Err(self.moved(None)) }
    }

    /// Adds where to go to an error that says the leader is elsewhere.
    pub(super) fn with_hint(&self, error: Error) -> Error {
        match error.kind {
            ErrorKind::Moved => self.moved(self.group.leadership().leader_elsewhere()),
            _ => error,
        }
    }

    pub(super) fn moved(&self, leader: Option<NodeId>) -> Error {
        let shard = self.group.state().descriptor.clone();
        let message = match leader {
            Some(node) => format!("shard {} is led by node {node}: send the request there", shard.id),
            None => format!("this node does not serve the key; it has shard {}: refresh the map", shard.id),
        };
        let leader = leader.and_then(|node| (self.resolve)(node));
        Error::moved(message, Moved { shard: Some(shard), leader })
    }
}

/// `at`, or for zero a timestamp taken now: a read of several keys takes one after it came (rule R2).
///
/// # Errors
///
/// `Invalid` for a timestamp that the oracle has not reached.
pub async fn read_timestamp(timestamps: &Timestamps, at: Timestamp) -> Result<Timestamp> {
    if at != Timestamp::ZERO && at <= timestamps.newest_seen() {
        return Ok(at);
    }
    let now = timestamps.take(1).await?;
    if at == Timestamp::ZERO {
        return Ok(now);
    }
    if at > now {
        return Err(Error::invalid(format!(
            "timestamp {at} is in the future: the newest is {now}; read at that or below, or at 0 for now"
        )));
    }
    Ok(at)
}
