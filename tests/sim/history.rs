//! What clients did and what they were told: the history that is checked.

use bytes::Bytes;
use kvorum::txn::Verdict;
use kvorum::types::{KeyRange, Operation, Outcome, Record, RequestId, Timestamp, TxnPart};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// A transaction that reads and writes.
    Transaction,
    /// A transaction that only reads, at one timestamp.
    Snapshot,
    /// A read of one key's newest value.
    Latest,
    /// A command of one key.
    Single,
}

impl Kind {
    pub const ALL: [Kind; 4] = [Self::Transaction, Self::Snapshot, Self::Latest, Self::Single];
}

/// What a read saw.
#[derive(Clone, Debug)]
pub enum Seen {
    Key { key: Bytes, record: Option<Record> },
    Range { range: KeyRange, rows: Vec<(Bytes, Record)> },
}

/// One operation of a client.
#[derive(Clone, Debug)]
pub struct Operated {
    pub kind: Kind,
    /// The step of the world at which it began.
    pub invoked: u64,
    /// The step at which its client had its answer.
    pub done: Option<u64>,
    /// The timestamp of its reads.
    pub at: Timestamp,
    pub seen: Vec<Seen>,
    /// The id of its writes.
    pub id: Option<RequestId>,
    /// What a transaction commits.
    pub part: TxnPart,
    /// What a command of one key does.
    pub operation: Option<Operation>,
    pub verdict: Option<Verdict>,
    pub outcome: Option<Outcome>,
}

impl Operated {
    pub fn new(kind: Kind, invoked: u64) -> Self {
        Self {
            kind,
            invoked,
            done: None,
            at: Timestamp::ZERO,
            seen: Vec::new(),
            id: None,
            part: TxnPart::default(),
            operation: None,
            verdict: None,
            outcome: None,
        }
    }
}
