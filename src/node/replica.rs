//! One shard on this node: its commands go through the sequencer, its reads through the barrier (rule R1)
//! and the leader's lease.

use std::sync::Arc;

use bytes::Bytes;
use tokio::time::Instant;

use super::lock_queue::LockQueue;
use super::sequencer::{Admission, Sequencer};
use super::timestamps::Timestamps;
use crate::bugs::{self, Bug};
use crate::mvcc::Floors;
use crate::raft::{self, Group, Leadership};
use crate::shard::{self, Fates, Look, Page, PageLook, PageRequest};
use crate::types::{
    Error, ErrorKind, LeaderHint, Lock, Moved, NodeId, Operation, Outcome, Record, Refusal, RequestId,
    Result, Timestamp, TxnCommand, TxnId, TxnStatus, limits,
};

/// The part of a commit's time that is left for the answer that a lock stands in its way.
const ANSWER_PART: u32 = 4;

/// Finds a node's address.
pub type Resolve = Arc<dyn Fn(NodeId) -> Option<LeaderHint> + Send + Sync>;

/// What a read of rows has come to.
pub enum Seen<T> {
    /// What was asked for.
    Read(T),
    /// Locks whose holders' fate the reader must know first.
    Locked(Vec<Lock>),
}

/// A replica with its sequencer.
pub struct Replica {
    group: Arc<Group>,
    sequencer: Sequencer,
    locks: Arc<LockQueue>,
    timestamps: Timestamps,
    floors: Arc<Floors>,
    resolve: Resolve,
}

impl Replica {
    /// Starts the sequencer of a group.
    pub fn start(
        group: Arc<Group>,
        timestamps: Timestamps,
        admission: Admission,
        floors: Arc<Floors>,
        resolve: Resolve,
    ) -> Self {
        let hint = resolve.clone();
        let locks = Arc::new(LockQueue::default());
        let sequencer =
            Sequencer::start(group.clone(), timestamps.clone(), admission, locks.clone(), move |node| {
                hint(node)
            });
        Self { group, sequencer, locks, timestamps, floors, resolve }
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
    fn wait_for_question(&self, key: &Bytes, at: Option<Timestamp>) -> super::barrier::Wait {
        match at {
            Some(at) => self.sequencer.barrier().before_snapshot(at),
            None => self.sequencer.barrier().before_latest(key),
        }
    }

    /// The newest version of a key, linearizable: it sees every write acknowledged before it came, and what
    /// an earlier snapshot may have shown (rule R1).
    pub async fn get_latest(&self, key: &Bytes, deadline: Instant) -> Result<Seen<Option<Record>>> {
        let wait = self.sequencer.barrier().before_latest(key);
        self.serve(wait, deadline).await?;
        self.check_holds(key)?;
        let replica = self.group.replica();
        // After the wait: it counts every lock that the read must mind.
        let counts = replica.state().counts;
        Ok(match shard::look(&*replica.view()?, counts, key, Timestamp::MAX, &Fates::new())? {
            Look::Value(record) => Seen::Read(record),
            Look::Locked(lock) => Seen::Locked(vec![lock]),
        })
    }

    /// Versions of keys as of `at`. The caller made sure that `at` is not in the future. Where all would be
    /// too large for one reply there are fewer than keys, at least one: the caller asks for the rest.
    pub async fn get_at(
        &self,
        keys: &[Bytes],
        at: Timestamp,
        fates: &Fates,
        deadline: Instant,
    ) -> Result<Seen<Vec<Option<Record>>>> {
        let wait = self.sequencer.barrier().before_snapshot(at);
        self.serve(wait, deadline).await?;
        keys.iter().try_for_each(|key| self.check_holds(key))?;
        let hold = self.floors.hold(self.group.id(), at)?;
        let replica = self.group.replica();
        if keys.len() == 1 {
            return get_all(&replica, keys, at, fates);
        }
        let (keys, fates) = (keys.to_vec(), fates.clone());
        // Many keys may mean many reads from disk: not on a thread that serves others.
        tokio::task::spawn_blocking(move || {
            let _hold = hold;
            get_all(&replica, &keys, at, &fates)
        })
        .await
        .map_err(broken_off)?
    }

    /// One page of rows as of `request.at`. The caller made sure that it is not in the future.
    pub async fn scan_page(
        &self,
        request: PageRequest,
        fates: &Fates,
        deadline: Instant,
    ) -> Result<Seen<Page>> {
        let wait = self.sequencer.barrier().before_snapshot(request.at);
        self.serve(wait, deadline).await?;
        if !self.group.state().descriptor.range.covers(&request.range) {
            return Err(self.moved(None));
        }
        let replica = self.group.replica();
        let fates = fates.clone();
        let hold = self.floors.hold(self.group.id(), request.at)?;
        // A page may read many rows from disk: not on a thread that serves others.
        tokio::task::spawn_blocking(move || {
            let _hold = hold;
            let state = replica.state();
            shard::check_readable(&state, request.at)?;
            Ok(match shard::scan_page(&*replica.view()?, state.counts, &request, &fates)? {
                PageLook::Page(page) => Seen::Read(page),
                PageLook::Locked(locks) => Seen::Locked(locks),
            })
        })
        .await
        .map_err(broken_off)?
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
    async fn serve(&self, wait: super::barrier::Wait, deadline: Instant) -> Result<()> {
        let leads = self.check_leads();
        if bugs::on(Bug::FollowerReadWithoutReadIndex) && leads.is_err() {
            return Ok(());
        }
        leads?;
        wait.wait(deadline).await?;
        match tokio::time::timeout_at(deadline, self.group.ensure_leader()).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(self.with_hint(error)),
            Err(_) => Err(Error::unavailable(
                "the deadline passed before the shard's leader had heard from a majority: retry",
            )),
        }
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

    fn check_holds(&self, key: &[u8]) -> Result<()> {
        if self.group.state().descriptor.range.contains(key) { Ok(()) } else { Err(self.moved(None)) }
    }

    /// Adds where to go to an error that says the leader is elsewhere.
    fn with_hint(&self, error: Error) -> Error {
        match error.kind {
            ErrorKind::Moved => self.moved(self.group.leadership().leader_elsewhere()),
            _ => error,
        }
    }

    fn moved(&self, leader: Option<NodeId>) -> Error {
        let shard = self.group.state().descriptor.clone();
        let message = match leader {
            Some(node) => format!("shard {} is led by node {node}: send the request there", shard.id),
            None => format!("this node does not serve the key; it has shard {}: refresh the map", shard.id),
        };
        let leader = leader.and_then(|node| (self.resolve)(node));
        Error::moved(message, Moved { shard: Some(shard), leader })
    }
}

fn broken_off(error: tokio::task::JoinError) -> Error {
    Error::unavailable(format!("the read was ended before it was done ({error}): retry"))
}

/// The versions of the keys from the front, at least one, as long as they fit into one reply: the caller
/// asks for the rest at the same timestamp.
fn get_all(
    replica: &raft::Replica,
    keys: &[Bytes],
    at: Timestamp,
    fates: &Fates,
) -> Result<Seen<Vec<Option<Record>>>> {
    // After the wait: it counts every lock that the read must mind.
    let state = replica.state();
    shard::check_readable(&state, at)?;
    let view = replica.view()?;
    let mut size_bytes = 0;
    let mut records = Vec::with_capacity(keys.len());
    let mut locks = Vec::new();
    for key in keys {
        let record = match shard::look(&*view, state.counts, key, at, fates)? {
            Look::Value(record) => record,
            Look::Locked(lock) => {
                locks.push(lock);
                continue;
            }
        };
        size_bytes += record.as_ref().map_or(0, |record| record.value.len());
        if size_bytes > limits::MAX_BATCH_BYTES && !records.is_empty() {
            break;
        }
        records.push(record);
    }
    Ok(if locks.is_empty() { Seen::Read(records) } else { Seen::Locked(locks) })
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
