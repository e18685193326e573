//! Reads: what one asks for, and what its answer says about itself.

use super::{NodeId, Timestamp};

/// What a read shall see.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum ReadAt {
    /// Every write that was acknowledged before the read came.
    #[default]
    Latest,
    /// The store as it was at this timestamp.
    Snapshot(Timestamp),
    /// The store as it was at some instant that is at most so old; a replica chooses it.
    Bounded {
        /// How old, in milliseconds; 1 to [`MAX_STALENESS_MS`](super::limits::MAX_STALENESS_MS).
        max_staleness_ms: u64,
    },
}

/// What an answer promises.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum ReadLevel {
    /// It saw every write that was acknowledged before the read came.
    Linearizable,
    /// It saw the store as of the timestamp that the read named.
    Snapshot,
    /// It saw the store as of a timestamp that is at most as old as the read allowed.
    Bounded,
}

impl ReadLevel {
    /// All levels.
    pub const ALL: [Self; 3] = [Self::Linearizable, Self::Snapshot, Self::Bounded];

    /// The level's name: `linearizable`, `snapshot`, `bounded`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Linearizable => "linearizable",
            Self::Snapshot => "snapshot",
            Self::Bounded => "bounded",
        }
    }
}

impl std::fmt::Display for ReadLevel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}

/// What the replica was that answered.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum ReplicaRole {
    /// The shard's leader.
    Leader,
    /// Another replica.
    Follower,
}

impl ReplicaRole {
    /// All roles.
    pub const ALL: [Self; 2] = [Self::Leader, Self::Follower];

    /// The role's name: `leader`, `follower`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Leader => "leader",
            Self::Follower => "follower",
        }
    }
}

impl std::fmt::Display for ReplicaRole {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}

/// Who answered a read, and how.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Served {
    /// The node.
    pub node: NodeId,
    /// What its replica was.
    pub role: ReplicaRole,
    /// What the answer promises.
    pub level: ReadLevel,
    /// The timestamp that was read at. Of a linearizable read of one key: one that the shard had certainly reached.
    pub at_ts: Timestamp,
    /// How old that was at most when it was chosen, in milliseconds; 0 but for bounded reads.
    pub staleness_ms: u64,
    /// Whether the shard's leader was asked how far the replica must be.
    pub asked_leader: bool,
    /// Reads under way on the node when it answered.
    pub load: u32,
}
