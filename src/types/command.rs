//! Operations that change a shard, and what comes of them.

use std::fmt;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{Lock, Record, Timestamp, TxnCommand, TxnOutcome};

/// Recognises a retry (rule R8): the same id takes effect once.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct RequestId {
    /// The newest oracle timestamp that the caller had seen, never its own clock. Every effect of the
    /// request has a commit timestamp above it, which bounds the search for an earlier attempt.
    pub seen: Timestamp,
    /// Random; unique among all requests with the same `seen`.
    pub unique: u128,
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{:032x}", self.seen, self.unique)
    }
}

impl fmt::Debug for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// What a key must hold for a condition to be met.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Expect {
    /// The key holds nothing.
    Absent,
    /// The key holds something.
    Present,
    /// The key holds its n-th version since it was created.
    Version(u64),
    /// The key's newest version was committed at this timestamp.
    CommitTs(Timestamp),
    /// The key holds exactly these bytes.
    Value(Bytes),
}

/// One condition of a batch.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Condition {
    /// The key, with its keyspace byte in front.
    pub key: Bytes,
    /// What it must hold.
    pub expect: Expect,
}

/// One step of a batch. Steps see what the steps before them wrote.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Step {
    /// Write a value.
    Put {
        /// The key.
        key: Bytes,
        /// The value.
        value: Bytes,
    },
    /// Remove a key.
    Delete {
        /// The key.
        key: Bytes,
    },
    /// Add to a counter.
    Add {
        /// The key.
        key: Bytes,
        /// What to add; may be negative.
        delta: i64,
    },
    /// Read a key.
    Get {
        /// The key.
        key: Bytes,
    },
}

impl Step {
    /// The key the step touches.
    pub fn key(&self) -> &Bytes {
        match self {
            Self::Put { key, .. } | Self::Delete { key } | Self::Add { key, .. } | Self::Get { key } => key,
        }
    }
}

/// A change of one shard. Keys carry their keyspace byte in front (`codec::keyspace`).
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Operation {
    /// Write a value.
    Put {
        /// The key.
        key: Bytes,
        /// The value.
        value: Bytes,
    },
    /// Remove a key. Removing an absent key is no error.
    Delete {
        /// The key.
        key: Bytes,
    },
    /// Write (or with `None` remove) where the key holds what is expected.
    CompareAndSwap {
        /// The key.
        key: Bytes,
        /// What it must hold.
        expect: Expect,
        /// What to write; `None` removes the key.
        value: Option<Bytes>,
    },
    /// Add to a counter: a decimal number from -2^63 to 2^63-1 as text. An absent key counts as 0.
    Add {
        /// The key.
        key: Bytes,
        /// What to add; may be negative.
        delta: i64,
    },
    /// All conditions met: take the steps of `then`, else those of `otherwise`. Keys of one shard only.
    Batch {
        /// The conditions; none counts as met.
        conditions: Vec<Condition>,
        /// Taken where all conditions are met.
        then: Vec<Step>,
        /// Taken where one is not.
        otherwise: Vec<Step>,
    },
    /// A command of a transaction's commit. Sent by nodes only, never by a client.
    Txn(TxnCommand),
    /// Raises the shard's safe point: versions superseded at or before it may be dropped. Sent by the
    /// shard's leader only. Ignored where it raises nothing.
    AdvanceSafePoint {
        /// The new safe point.
        safe_point: Timestamp,
        /// Up to where the changelog is cut; to the safe point at least.
        truncated: Timestamp,
    },
}

impl Operation {
    /// Every key the operation names, in the order in which they are written down. Of a range, where it begins.
    pub fn keys(&self) -> Vec<&Bytes> {
        match self {
            Self::Put { key, .. }
            | Self::Delete { key }
            | Self::CompareAndSwap { key, .. }
            | Self::Add { key, .. } => vec![key],
            Self::Batch { conditions, then, otherwise } => conditions
                .iter()
                .map(|condition| &condition.key)
                .chain(then.iter().chain(otherwise).map(Step::key))
                .collect(),
            Self::Txn(command) => command.keys(),
            Self::AdvanceSafePoint { .. } => Vec::new(),
        }
    }

    /// Whether it ends a transaction in its shard, so that what waits for that one's locks may go on.
    pub fn ends_txn(&self) -> bool {
        use TxnCommand::{Abort, Decide, Finish};
        matches!(self, Self::Txn(Decide { .. } | Abort { .. } | Finish { .. }))
    }

    /// Bytes of keys and values together, as limits count them.
    pub fn size_bytes(&self) -> usize {
        let expect_bytes = |expect: &Expect| match expect {
            Expect::Value(value) => value.len(),
            _ => 8,
        };
        let step_bytes = |step: &Step| match step {
            Step::Put { key, value } => key.len() + value.len(),
            Step::Delete { key } | Step::Get { key } => key.len(),
            Step::Add { key, .. } => key.len() + 8,
        };
        match self {
            Self::Put { key, value } => key.len() + value.len(),
            Self::Delete { key } => key.len(),
            Self::CompareAndSwap { key, expect, value } => {
                key.len() + expect_bytes(expect) + value.as_ref().map_or(0, Bytes::len)
            }
            Self::Add { key, .. } => key.len() + 8,
            Self::Batch { conditions, then, otherwise } => {
                let conditions: usize =
                    conditions.iter().map(|c| c.key.len() + expect_bytes(&c.expect)).sum();
                conditions + then.iter().chain(otherwise).map(step_bytes).sum::<usize>()
            }
            Self::Txn(command) => command.size_bytes(),
            Self::AdvanceSafePoint { .. } => 16,
        }
    }
}

/// What came of one step of a batch.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum BatchResult {
    /// Of a put: the new version's number.
    Put {
        /// The new version's number.
        version: u64,
        /// When the key was created.
        create_ts: Timestamp,
    },
    /// Of a delete: whether there was something.
    Deleted {
        /// Whether the key held something.
        existed: bool,
    },
    /// Of an add: the counter's new value.
    Added {
        /// The counter's new value.
        value: i64,
    },
    /// Of a get: what the key held.
    Got {
        /// What the key held.
        record: Option<Record>,
    },
}

/// What came of an operation. A retry gets the first attempt's outcome (rule R8).
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Outcome {
    /// A value was written, by a put or a met compare-and-swap.
    Put {
        /// When it was committed.
        commit_ts: Timestamp,
        /// The new version's number.
        version: u64,
        /// When the key was created.
        create_ts: Timestamp,
    },
    /// A key was removed, or was absent already.
    Deleted {
        /// When that was so.
        commit_ts: Timestamp,
        /// Whether the key held something before.
        existed: bool,
    },
    /// A compare-and-swap found something else. Nothing was written.
    NotMatched {
        /// When it looked.
        commit_ts: Timestamp,
        /// What it found.
        current: Option<Record>,
    },
    /// A counter was raised.
    Added {
        /// When it was committed.
        commit_ts: Timestamp,
        /// The counter's new value.
        value: i64,
    },
    /// A batch took its `then` or its `otherwise` branch.
    Batch {
        /// When it was committed.
        commit_ts: Timestamp,
        /// Whether all conditions were met.
        succeeded: bool,
        /// A result for each step of the branch taken.
        results: Vec<BatchResult>,
    },
    /// Of a command of a transaction's commit.
    Txn(TxnOutcome),
    /// The safe point stands.
    SafePoint {
        /// The shard's safe point now.
        safe_point: Timestamp,
    },
    /// Nothing was done, for a reason that every replica sees alike.
    Refused(Refusal),
}

/// Why a replica refused a command; the same on every replica.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Refusal {
    /// The shard does not hold one of the keys: the request went to the wrong place.
    OutOfRange,
    /// The value is not a counter.
    NotACounter {
        /// The key, with its keyspace byte in front.
        key: Bytes,
    },
    /// The sum does not fit in 64 bits.
    CounterOverflow {
        /// The key, with its keyspace byte in front.
        key: Bytes,
        /// The counter's value.
        value: i64,
        /// What was to be added.
        delta: i64,
    },
    /// The id is older than retries are recognised, so that whether an earlier attempt took effect can't
    /// be known (rule R7).
    TooOld {
        /// The age of the id, in milliseconds.
        age_ms: u64,
    },
    /// The id claims to have seen a timestamp that was not handed out before the command arrived: no
    /// client of ours makes such an id, and retries under it could not be recognised (rule R8).
    FutureId {
        /// What the id claims to have seen.
        seen: Timestamp,
    },
    /// What the gets of a batch read is more than `limits::MAX_BATCH_RESULT_BYTES`. Nothing was written.
    ResultTooLarge {
        /// The limit, in bytes of keys and values.
        limit_bytes: u64,
    },
    /// A transaction holds a lock that excludes the command (rule R9). Leaves no trace: the command comes again once
    /// the lock is gone.
    Locked(Lock),
    /// The entry's timestamp does not rise above what was applied before: the entry is void.
    StaleTimestamp {
        /// The highest timestamp applied before.
        closed: Timestamp,
    },
}
