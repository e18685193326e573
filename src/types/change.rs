//! What the changelog tells: committed transactions, and the keys that each of them changed.

use bytes::Bytes;

use super::Timestamp;

/// What a key held before it was changed.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum Before {
    /// Nobody asked.
    #[default]
    Unasked,
    /// Nothing.
    Absent,
    /// This value.
    Value(Bytes),
    /// A value that would make the message too large together with the others of its transaction. It can be read at the
    /// timestamp before the commit's ([`Timestamp::before`]).
    TooLarge,
}

/// One key that a transaction changed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Change {
    /// The key.
    pub key: Bytes,
    /// What it holds since; `None` where it was removed.
    pub value: Option<Bytes>,
    /// When the key was created; zero where it was removed.
    pub create_ts: Timestamp,
    /// Counts the versions since the key was created, from 1; zero where it was removed.
    pub version: u64,
    /// What it held before.
    pub before: Before,
}

impl Change {
    /// Bytes of key and values, the one from before too.
    pub fn size_bytes(&self) -> usize {
        let before = match &self.before {
            Before::Value(value) => value.len(),
            Before::Unasked | Before::Absent | Before::TooLarge => 0,
        };
        self.key.len() + self.value.as_ref().map_or(0, Bytes::len) + before
    }
}

/// What a committed transaction, or a single write, changed of the keys that are followed. No key twice.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Changes {
    /// The commit timestamp. No other transaction bears it.
    pub commit_ts: Timestamp,
    /// The changes, in the order of their keys.
    pub changes: Vec<Change>,
}

impl Changes {
    /// Bytes of keys and values, those from before too.
    pub fn size_bytes(&self) -> usize {
        self.changes.iter().map(Change::size_bytes).sum()
    }
}
