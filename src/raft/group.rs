//! A group: this node's replica of one shard, and everything the node does with it.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;

use super::{GroupStatus, Leadership, Proposal, Token};
use crate::engine::SharedEngine;
use crate::shard::State;
use crate::types::{NodeId, Result, ShardId};

/// A moment in a group's log that a read may be answered from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ReadPoint {
    /// The leadership that vouches for it.
    pub token: Token,
    /// A replica that has applied this index has everything that was acknowledged before the question.
    pub index: u64,
}

/// This node's replica of one shard. It survives its Raft core: a core that stops is started again after
/// a pause, behind the same `Group`.
pub struct Group {
    shard: ShardId,
    node: NodeId,
    engine: SharedEngine,
}

impl Group {
    /// The shard.
    pub fn id(&self) -> ShardId {
        self.shard
    }

    /// The node this replica is on.
    pub fn node(&self) -> NodeId {
        self.node
    }

    /// The store that holds the replica's rows.
    pub fn engine(&self) -> &SharedEngine {
        &self.engine
    }

    /// The replica's state besides its rows, as of the last applied entry.
    pub fn state(&self) -> Arc<State> {
        unimplemented!("written next")
    }

    /// Who leads, as known here now.
    pub fn leadership(&self) -> Leadership {
        unimplemented!("written next")
    }

    /// Who leads, and every change of it. Ends when the group is shut down.
    pub fn watch_leadership(&self) -> watch::Receiver<Leadership> {
        unimplemented!("written next")
    }

    /// Hands an encoded `shard::Entry` to Raft under a leadership. Entries enter the log in the order in
    /// which the calls are made (await each before the next); when Raft has too much to do, the call
    /// waits. The returned [`Proposal`] resolves when the entry was applied here.
    ///
    /// An entry is proposed under `token`'s leadership or not at all.
    pub async fn submit(&self, _token: Token, _body: Bytes) -> Proposal {
        unimplemented!("written next")
    }

    /// Confirms by lease that this replica leads, and waits until it has applied everything that was
    /// acknowledged before the call. After it, a read of the replica's rows is linearizable.
    ///
    /// # Errors
    ///
    /// `Moved` where another node leads (with its id in the message; the caller adds the hint),
    /// `Unavailable` where the lease can't be confirmed in time.
    pub async fn ensure_leader(&self) -> Result<ReadPoint> {
        unimplemented!("written next")
    }

    /// Like [`ensure_leader`](Self::ensure_leader), without waiting for this replica to apply: what a
    /// leader answers to a follower that asks for a read index.
    ///
    /// # Errors
    ///
    /// As [`ensure_leader`](Self::ensure_leader).
    pub async fn read_point(&self) -> Result<ReadPoint> {
        unimplemented!("written next")
    }

    /// Waits until this replica has applied `index`.
    ///
    /// # Errors
    ///
    /// `Unavailable` after `timeout`, or where the replica stops.
    pub async fn wait_applied(&self, _index: u64, _timeout: Duration) -> Result<()> {
        unimplemented!("written next")
    }

    /// The last log index applied here.
    pub fn applied_index(&self) -> u64 {
        unimplemented!("written next")
    }

    /// The last log index applied here, and every change of it.
    pub fn watch_applied(&self) -> watch::Receiver<u64> {
        unimplemented!("written next")
    }

    /// The replica's place in its group.
    pub fn status(&self) -> GroupStatus {
        unimplemented!("written next")
    }

    /// Bytes of the kept log.
    pub fn log_bytes(&self) -> u64 {
        unimplemented!("written next")
    }

    /// Stands for election at once. For a group that was just created, and for taking over from a leader
    /// known to be gone; a leader that lives keeps its leadership.
    ///
    /// # Errors
    ///
    /// `Unavailable` where the replica does not run, or started so recently that it must not stand yet.
    pub async fn elect(&self) -> Result<()> {
        unimplemented!("written next")
    }

    /// Hands the leadership to another voter that lives and has caught up. Writes pause until it leads.
    ///
    /// # Errors
    ///
    /// `Moved` where this replica does not lead, `Invalid` where the target is no voter, `Unavailable`
    /// where it is not connected or lags: nothing was changed then.
    pub async fn transfer_leader(&self, _to: NodeId) -> Result<()> {
        unimplemented!("written next")
    }

    /// Cuts the log behind the applied entries down to the last `keep` of them.
    ///
    /// # Errors
    ///
    /// `Unavailable` where the replica does not run.
    pub async fn trim_log(&self, _keep: u64) -> Result<()> {
        unimplemented!("written next")
    }
}
