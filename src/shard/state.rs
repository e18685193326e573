//! What a shard's log carries, and what a replica knows besides its rows.

use serde::{Deserialize, Serialize};

use crate::changelog::record::Totals;
use crate::mvcc::Floor;
use crate::types::{Operation, RequestId, ShardDescriptor, Timestamp};

/// An operation with everything that apply needs to know: who asks, and at which timestamp.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Command {
    /// Recognises a retry (rule R8).
    pub id: RequestId,
    /// The commit timestamp, asked for after the command arrived at the leader.
    pub timestamp: Timestamp,
    /// What to do.
    pub operation: Operation,
}

/// The body of one Raft entry.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Entry {
    /// A sequencer's batch; timestamps rise strictly within it and above all that was applied before.
    Commands(Vec<Command>),
    /// Raises the timestamp ceiling (system shard only). Bears no timestamp and bypasses the sequencer.
    RaiseCeiling {
        /// The new ceiling; a lower one than the present is ignored.
        ceiling: Timestamp,
    },
}

/// How many rows there are of the kinds that commands and reads look for. Where there are none they cost
/// nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Counts {
    /// Locks of all kinds.
    pub locks: u64,
    /// Those of keys that were read.
    pub read_locks: u64,
    /// Those of ranges.
    pub range_locks: u64,
    /// COMMITTED records, each kept until it is forgotten (rule R7).
    pub committed: u64,
}

impl Counts {
    /// Locks of keys that are written: the only ones that matter to reads.
    pub fn write_locks(&self) -> u64 {
        self.locks.saturating_sub(self.read_locks + self.range_locks)
    }
}

/// A replica's state besides its rows. Written in the same batch as the rows of each entry.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct State {
    /// The shard's range, epoch and members: the authority, where the shard map is only a catalogue.
    pub descriptor: ShardDescriptor,
    /// The timestamp of the last command applied: everything that will ever be sequenced at or below it
    /// is here.
    pub closed: Timestamp,
    /// A chain over every write applied so far; equal on all replicas at the same log index.
    pub checksum: u64,
    /// The timestamp ceiling (system shard only; zero elsewhere). The oracle hands out nothing above it.
    pub ceiling: Timestamp,
    /// What was superseded or removed at or before it counts as gone, whether or not it still has rows:
    /// replicas drop them when they like. Reads below it are refused.
    pub safe_point: Timestamp,
    /// The changelog begins after it: rows at or before it count as gone. Not below the safe point, since rows point at
    /// versions.
    pub truncated: Timestamp,
    /// How many locks and records there are.
    pub counts: Counts,
    /// All that the changelog was ever given.
    pub changes: Totals,
}

impl State {
    /// Up to where its rows may be dropped, once that is durable.
    pub fn floor(&self) -> Floor {
        Floor { safe_point: self.safe_point, truncated: self.truncated }
    }

    /// The state of a shard that has applied nothing.
    pub fn new(descriptor: ShardDescriptor) -> Self {
        Self {
            descriptor,
            closed: Timestamp::ZERO,
            checksum: 0,
            ceiling: Timestamp::ZERO,
            safe_point: Timestamp::ZERO,
            truncated: Timestamp::ZERO,
            counts: Counts::default(),
            changes: Totals::default(),
        }
    }
}
