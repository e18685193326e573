//! What travels between the parts of the world. Messages are lost, repeated, late, and out of order.

use bytes::Bytes;
use kvorum::shard::{Fates, Look, PageLook};
use kvorum::txn::Verdict;
use kvorum::types::{KeyRange, Operation, Outcome, RequestId, Timestamp, TxnId, TxnStatus};

/// Where an answer goes. A task ignores tokens that it no longer waits for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Address {
    pub task: usize,
    pub token: u32,
}

/// What a replica is asked.
#[derive(Clone, Debug)]
pub enum Question {
    /// What a key holds.
    Key(Bytes),
    /// What a range holds.
    Page(KeyRange),
    /// What the record of a transaction says.
    Status { primary: Bytes, txn: TxnId },
    /// Whether a transaction has locked a key.
    LockOf { key: Bytes, txn: TxnId },
}

impl Question {
    /// The key whose batches a latest read waits for.
    pub fn key(&self) -> &Bytes {
        match self {
            Self::Key(key) | Self::LockOf { key, .. } | Self::Status { primary: key, .. } => key,
            Self::Page(range) => &range.start,
        }
    }
}

/// A question to a shard.
#[derive(Clone, Debug)]
pub struct Query {
    pub from: Address,
    pub question: Question,
    /// [`Timestamp::MAX`] is the latest.
    pub at: Timestamp,
    pub fates: Fates,
    pub how: How,
}

/// Who answers a question.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum How {
    /// The leader, behind its barrier.
    Leader,
    /// The leader says up to which entry the follower must have applied.
    Index,
    /// The follower, once it has applied so many entries.
    Follower { entries: usize },
    /// The follower, once everything at or below the timestamp is there.
    Closed,
}

#[derive(Clone, Debug)]
pub enum Answer {
    Key(Look),
    Page(PageLook),
    Status(TxnStatus),
    LockOf(Option<Timestamp>),
    /// Of [`How::Index`]: ask the follower, which must have applied so many entries.
    Index {
        query: Query,
        entries: usize,
    },
    /// The versions may be gone.
    TooOld,
    /// The leader is no longer one.
    Failed,
}

#[derive(Clone, Debug)]
pub enum Message {
    Command {
        shard: usize,
        id: RequestId,
        operation: Operation,
        from: Address,
    },
    Outcome {
        to: Address,
        outcome: Outcome,
    },
    /// A command was surely not done.
    NotDone {
        to: Address,
    },
    AskTime {
        from: Address,
    },
    Time {
        to: Address,
        ts: Timestamp,
    },
    Query {
        shard: usize,
        query: Query,
    },
    Answer {
        to: Address,
        answer: Answer,
    },
    /// A coordinator tells its client.
    Verdict {
        to: Address,
        verdict: Verdict,
    },
    /// A leader publishes its closed timestamp.
    Closed {
        shard: usize,
        ts: Timestamp,
        entries: usize,
    },
}
