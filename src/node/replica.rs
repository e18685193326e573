//! One shard on this node: its commands go through the sequencer, its reads through the barrier (rule R1)
//! and the leader's lease.

use std::sync::Arc;

use bytes::Bytes;
use tokio::time::Instant;

use super::sequencer::{Admission, Sequencer};
use super::timestamps::Timestamps;
use crate::engine::View;
use crate::raft::{Group, Leadership};
use crate::shard::{self, Page, PageRequest};
use crate::types::{
    Error, ErrorKind, LeaderHint, Moved, NodeId, Operation, Outcome, Record, RequestId, Result, Timestamp,
    limits,
};

/// Finds a node's address.
pub type Resolve = Arc<dyn Fn(NodeId) -> Option<LeaderHint> + Send + Sync>;

/// A replica with its sequencer.
pub struct Replica {
    group: Arc<Group>,
    sequencer: Sequencer,
    timestamps: Timestamps,
    resolve: Resolve,
}

impl Replica {
    /// Starts the sequencer of a group.
    pub fn start(group: Arc<Group>, timestamps: Timestamps, admission: Admission, resolve: Resolve) -> Self {
        let hint = resolve.clone();
        let sequencer =
            Sequencer::start(group.clone(), timestamps.clone(), admission, move |node| hint(node));
        Self { group, sequencer, timestamps, resolve }
    }

    /// The Raft group.
    pub fn group(&self) -> &Arc<Group> {
        &self.group
    }

    /// Executes a command; see [`Sequencer::execute`].
    pub async fn execute(&self, id: RequestId, operation: Operation, deadline: Instant) -> Result<Outcome> {
        self.sequencer.execute(id, operation, deadline).await
    }

    /// The newest version of a key, linearizable: it sees every write acknowledged before it came, and what
    /// an earlier snapshot may have shown (rule R1).
    pub async fn get_latest(&self, key: &Bytes, deadline: Instant) -> Result<Option<Record>> {
        let wait = self.sequencer.barrier().before_latest(key);
        self.serve(wait, deadline).await?;
        self.check_holds(key)?;
        let replica = self.group.replica();
        shard::get_latest(&*replica.view()?, key)
    }

    /// Versions of keys as of `at`. The caller made sure that `at` is not in the future. Where all would be
    /// too large for one reply there are fewer than keys, at least one: the caller asks for the rest.
    pub async fn get_at(
        &self,
        keys: &[Bytes],
        at: Timestamp,
        deadline: Instant,
    ) -> Result<Vec<Option<Record>>> {
        let wait = self.sequencer.barrier().before_snapshot(at);
        self.serve(wait, deadline).await?;
        keys.iter().try_for_each(|key| self.check_holds(key))?;
        let replica = self.group.replica();
        if let [key] = keys {
            return Ok(vec![shard::get_at(&*replica.view()?, key, at)?]);
        }
        let keys = keys.to_vec();
        // Many keys may mean many reads from disk: not on a thread that serves others.
        tokio::task::spawn_blocking(move || get_all(&*replica.view()?, &keys, at))
            .await
            .map_err(broken_off)?
    }

    /// One page of rows as of `request.at`. The caller made sure that it is not in the future.
    pub async fn scan_page(&self, request: PageRequest, deadline: Instant) -> Result<Page> {
        let wait = self.sequencer.barrier().before_snapshot(request.at);
        self.serve(wait, deadline).await?;
        if !self.group.state().descriptor.range.covers(&request.range) {
            return Err(self.moved(None));
        }
        let replica = self.group.replica();
        // A page may read many rows from disk: not on a thread that serves others.
        tokio::task::spawn_blocking(move || shard::scan_page(&*replica.view()?, &request))
            .await
            .map_err(broken_off)?
    }

    /// A timestamp for a read that came just now (rule R2), or `at` after a check that it is no future one.
    pub async fn read_timestamp(&self, at: Timestamp) -> Result<Timestamp> {
        read_timestamp(&self.timestamps, at).await
    }

    /// Waits for the batches that a read must see, then makes sure that this replica still leads: no other
    /// leader can have acknowledged anything that this one has not applied.
    async fn serve(&self, wait: super::barrier::Wait, deadline: Instant) -> Result<()> {
        match self.group.leadership() {
            Leadership::Leading(_) => {}
            Leadership::Following { leader } => return Err(self.moved(leader)),
            Leadership::Stopped { fault } => {
                return Err(Error::unavailable(format!(
                    "this replica has stopped ({fault}): ask another node"
                )));
            }
        }
        wait.wait(deadline).await?;
        match tokio::time::timeout_at(deadline, self.group.ensure_leader()).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(self.with_hint(error)),
            Err(_) => Err(Error::unavailable(
                "the deadline passed before the shard's leader had heard from a majority: retry",
            )),
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
fn get_all(view: &dyn View, keys: &[Bytes], at: Timestamp) -> Result<Vec<Option<Record>>> {
    let mut size_bytes = 0;
    let mut records = Vec::with_capacity(keys.len());
    for key in keys {
        let record = shard::get_at(view, key, at)?;
        size_bytes += record.as_ref().map_or(0, |record| record.value.len());
        if size_bytes > limits::MAX_BATCH_BYTES && !records.is_empty() {
            break;
        }
        records.push(record);
    }
    Ok(records)
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
