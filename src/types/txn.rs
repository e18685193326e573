//! Transactions: what one does in a shard, the commands of its commit, and what comes of them.
//!
//! A transaction is named by the request id of its commit, whose `seen` is its start timestamp. So every
//! effect of it bears a later timestamp, its lifetime is the id's age, and a retry of the commit is the
//! same transaction (rules R7 and R8). All keys carry their keyspace byte in front.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{KeyRange, Refusal, RequestId, Timestamp, key_after};

/// Names a transaction; `seen` is its start timestamp.
pub type TxnId = RequestId;

/// One write of a transaction.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum TxnWrite {
    /// Write a value.
    Put {
        /// The key.
        key: Bytes,
        /// The value.
        value: Bytes,
    },
    /// Remove a key. A tombstone is written even where the key holds nothing, since the version a
    /// transaction wrote is what tells that it was committed (rule R8).
    Delete {
        /// The key.
        key: Bytes,
    },
    /// Add to a counter, without reading it: two transactions that only add do not conflict in order,
    /// though they exclude each other while one is prepared.
    Add {
        /// The key.
        key: Bytes,
        /// What to add; may be negative.
        delta: i64,
    },
}

impl TxnWrite {
    /// The key it writes.
    pub fn key(&self) -> &Bytes {
        match self {
            Self::Put { key, .. } | Self::Delete { key } | Self::Add { key, .. } => key,
        }
    }

    /// Bytes of key and value, as limits count them.
    pub fn size_bytes(&self) -> usize {
        match self {
            Self::Put { key, value } => key.len() + value.len(),
            Self::Delete { key } => key.len(),
            Self::Add { key, .. } => key.len() + 8,
        }
    }
}

/// What a transaction read and writes: all of it, or its part in one shard. Reads, writes and ranges are in
/// key order, no key stands twice in the same list, and ranges neither overlap nor touch.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct TxnPart {
    /// Keys that were read at the start timestamp.
    pub reads: Vec<Bytes>,
    /// Ranges that were read at the start timestamp.
    pub ranges: Vec<KeyRange>,
    /// What is written.
    pub writes: Vec<TxnWrite>,
}

impl TxnPart {
    /// Every key that was read or is written, in order, each once: what a STAGING record lists.
    pub fn keys(&self) -> Vec<Bytes> {
        let mut keys: Vec<Bytes> =
            self.reads.iter().chain(self.writes.iter().map(TxnWrite::key)).cloned().collect();
        keys.sort_unstable();
        keys.dedup();
        keys
    }

    fn named_keys(&self) -> impl Iterator<Item = &Bytes> {
        let ranges = self.ranges.iter().map(|range| &range.start);
        self.reads.iter().chain(self.writes.iter().map(TxnWrite::key)).chain(ranges)
    }

    /// Bytes of keys and values, as limits count them.
    pub fn size_bytes(&self) -> usize {
        let ranges =
            self.ranges.iter().map(|range| range.start.len() + range.end.as_ref().map_or(0, Bytes::len));
        self.reads.iter().map(Bytes::len).sum::<usize>()
            + ranges.sum::<usize>()
            + self.writes.iter().map(TxnWrite::size_bytes).sum::<usize>()
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.reads.is_empty() && self.ranges.is_empty() && self.writes.is_empty()
    }

    /// The part of it in `range`; ranges that were read are clipped (rule R10).
    pub fn within(&self, range: &KeyRange) -> Self {
        Self {
            reads: self.reads.iter().filter(|key| range.contains(key)).cloned().collect(),
            ranges: self.ranges.iter().filter_map(|read| read.intersect(range)).collect(),
            writes: self.writes.iter().filter(|write| range.contains(write.key())).cloned().collect(),
        }
    }

    /// The smallest range that holds every key and range of it; `None` where there is nothing.
    pub fn span(&self) -> Option<KeyRange> {
        let points = self.keys().into_iter().map(|key| {
            let end = Some(key_after(&key));
            KeyRange { start: key, end }
        });
        points.chain(self.ranges.iter().cloned()).reduce(|a, b| KeyRange {
            start: a.start.min(b.start),
            end: match (a.end, b.end) {
                (Some(a), Some(b)) => Some(a.max(b)),
                _ => None,
            },
        })
    }
}

/// How a transaction ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Decision {
    /// At this timestamp, on all shards.
    Committed {
        /// The commit timestamp.
        commit_ts: Timestamp,
    },
    /// Without any effect.
    Aborted,
}

/// A command of the commit protocol. Its command id is the transaction's.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum TxnCommand {
    /// All of a transaction that touches one shard: validate and write at the entry's timestamp. Where a foreign
    /// lock is in the way it is refused as `Locked` without a trace, and comes again after the release.
    Commit {
        /// The primary key: a written one.
        primary: Bytes,
        /// The whole transaction.
        part: TxnPart,
    },
    /// Validate a part, then lock what it touches. A foreign lock refuses it, and the refusal sticks.
    Prepare {
        /// The primary key, where the record is.
        primary: Bytes,
        /// The part in this shard.
        part: TxnPart,
        /// All keys of the transaction: only to the shard of the primary key and only where the commit is
        /// parallel; leaves the STAGING record.
        listed: Option<Vec<Bytes>>,
    },
    /// At the primary: COMMITTED, and this shard's own part is finished.
    Decide {
        /// The primary key.
        primary: Bytes,
        /// The largest prepare timestamp of a parallel commit. `None` in a classic one: the entry's own.
        commit_ts: Option<Timestamp>,
        /// Where all participants' locks lie: kept in the record so that anybody can send the finishes.
        spans: Vec<KeyRange>,
    },
    /// At the primary: ABORTED, and this shard's own part is released.
    Abort {
        /// The primary key.
        primary: Bytes,
        /// A participant has refused the prepare, or bears a rollback marker, so that the transaction can
        /// never be committed. Without that a STAGING record is not overruled (rule R5).
        certain: bool,
        /// Where this transaction may have locks in this shard.
        spans: Vec<KeyRange>,
    },
    /// At a listed key: a rollback marker, which refuses a later prepare of the key (rule R5).
    Mark {
        /// The listed key.
        key: Bytes,
    },
    /// Release the locks in a span, and write what they stage where it was committed.
    Finish {
        /// Where the locks are. The part of it in this shard is finished, and named in the outcome (rule R10).
        span: KeyRange,
        /// How the transaction ended.
        decision: Decision,
    },
    /// At the primary: the record is no longer needed, every participant has replicated its finish (rule R7).
    Forget {
        /// The primary key.
        primary: Bytes,
    },
}

impl TxnCommand {
    /// Every key the command names; of a range, where it begins. A shard that does not hold one refuses
    /// the command.
    pub fn keys(&self) -> Vec<&Bytes> {
        match self {
            Self::Commit { primary, part } => vec![primary].into_iter().chain(part.named_keys()).collect(),
            Self::Prepare { part, .. } => part.named_keys().collect(),
            Self::Decide { primary, .. } | Self::Abort { primary, .. } | Self::Forget { primary } => {
                vec![primary]
            }
            Self::Mark { key } => vec![key],
            Self::Finish { span, .. } => vec![&span.start],
        }
    }

    /// Where it may change keys that it does not name: what a decision, an abort or a finish releases.
    pub fn spans(&self) -> &[KeyRange] {
        match self {
            Self::Decide { spans, .. } | Self::Abort { spans, .. } => spans,
            Self::Finish { span, .. } => std::slice::from_ref(span),
            Self::Commit { .. } | Self::Prepare { .. } | Self::Mark { .. } | Self::Forget { .. } => &[],
        }
    }

    /// Bytes of keys and values together, as limits count them.
    pub fn size_bytes(&self) -> usize {
        let range = |range: &KeyRange| range.start.len() + range.end.as_ref().map_or(0, Bytes::len);
        match self {
            Self::Commit { primary, part } => primary.len() + part.size_bytes(),
            Self::Prepare { primary, part, listed } => {
                let listed = listed.iter().flatten().map(Bytes::len).sum::<usize>();
                primary.len() + part.size_bytes() + listed
            }
            Self::Decide { primary, spans, .. } | Self::Abort { primary, spans, .. } => {
                primary.len() + spans.iter().map(range).sum::<usize>()
            }
            Self::Mark { key } => key.len(),
            Self::Finish { span, .. } => range(span),
            Self::Forget { primary } => primary.len(),
        }
    }
}

/// Why a transaction was aborted.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum AbortReason {
    /// What it read was changed since.
    Changed {
        /// A key that was changed.
        key: Bytes,
        /// When.
        commit_ts: Timestamp,
    },
    /// What it touches is locked.
    Locked(Lock),
    /// It adds to what is no counter, or beyond 64 bits.
    Counter(Box<Refusal>),
    /// It took too long, and somebody who met its locks has rolled it back.
    RolledBack,
}

/// A lock as whoever meets it needs to know it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Lock {
    /// The locked key, or where the locked range begins.
    pub key: Bytes,
    /// Who holds it.
    pub txn: TxnId,
    /// Where the holder's record is.
    pub primary: Bytes,
    /// When it was locked. The holder's commit timestamp is not smaller.
    pub prepare_ts: Timestamp,
}

/// What came of a command of the commit protocol.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum TxnOutcome {
    /// The transaction is committed: by a commit or a decision, or because any other command found it so.
    Committed {
        /// The commit timestamp.
        commit_ts: Timestamp,
    },
    /// The transaction is aborted: by this command, or because it found it so.
    Aborted {
        /// Why.
        reason: AbortReason,
    },
    /// The abort took hold, but so late that an earlier commit can no longer be ruled out: what the
    /// client is told is "undetermined" (rule R7).
    AbortedLate,
    /// The part is locked.
    Prepared {
        /// When: of a repeated prepare, the first one's timestamp.
        prepare_ts: Timestamp,
    },
    /// An abort that is not certain found a STAGING record: ask the listed keys (rule R4).
    StillStaging {
        /// The keys to ask.
        listed: Vec<Bytes>,
    },
    /// A marker found the key locked by the transaction: it was prepared.
    StillLocked {
        /// When it was prepared.
        prepare_ts: Timestamp,
    },
    /// The rollback marker stands.
    Marked,
    /// A decision found neither the primary's lock nor any trace of the transaction: nothing was decided.
    NotPrepared,
    /// The locks in this part of the span are gone.
    Finished {
        /// The part of the span that this shard holds.
        covered: KeyRange,
    },
    /// The record is gone.
    Forgotten,
}

/// What the primary's record says of a transaction.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum TxnStatus {
    /// There is no record. This never means aborted (rule R6).
    Missing,
    /// Undecided, or committed already: the listed keys tell (rule R4).
    Staging {
        /// All keys of the transaction.
        listed: Vec<Bytes>,
    },
    /// It is committed.
    Committed {
        /// The commit timestamp.
        commit_ts: Timestamp,
        /// Where the participants' locks lie; empty where only a version tells that it was committed.
        spans: Vec<KeyRange>,
    },
    /// It is aborted.
    Aborted,
}
