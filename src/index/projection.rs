//! The projector's machine: what it is told of users' rows goes in, and what it writes in one transaction comes out.
//!
//! A [`Checkpoint`] says how far an index is. It is a row of the index, and every transaction that changes the index
//! changes it too, after it was read: so each event takes effect once, and of two projectors one fails. A [`Step`]
//! gathers events that are written together. It is made from a checkpoint, fed, asked which group rows it must know, and
//! gives the writes with the next checkpoint.
//!
//! A row that can't be indexed stops an index that halts: what came before it is written, with the state
//! [`State::Halted`]. An index with dead letters writes one, and removes it once the row can be indexed or is gone.

use std::collections::BTreeMap;

use bytes::{BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};

use super::{Batch, Definition, OnError, delta};
use crate::codec::{self, keyspace};
use crate::types::{Before, Change, Changes, Error, KeyRange, Result, Timestamp, TxnWrite};

/// What an index is doing.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum State {
    /// It reads the rows as they were at one timestamp. It answers nothing yet.
    Building,
    /// It follows changes.
    Ready,
    /// It has stopped before an event that it can't take in.
    Halted {
        /// The row that is to blame.
        key: Bytes,
        /// When it was written; zero for a row of the scan.
        commit_ts: Timestamp,
        /// What is wrong with it.
        reason: String,
    },
}

/// How far an index is.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Checkpoint {
    /// Where to go on in the changelog, as a consumer's cursor; empty before the first event.
    pub cursor: Bytes,
    /// The index is that of the rows at this timestamp; zero while it is built.
    pub watermark: Timestamp,
    /// What it is doing.
    pub state: State,
    /// Rows read by the scan at the beginning.
    pub scanned_rows: u64,
    /// Changed rows taken in since.
    pub changed_rows: u64,
    /// Dead letters written and not removed.
    pub dead_letters: u64,
    /// Rows of the next transaction, or the next row of the scan, that the index is to go on without.
    pub without: Vec<Bytes>,
}

impl Checkpoint {
    /// The checkpoint of an index of which nothing is built.
    pub fn new() -> Self {
        Self {
            cursor: Bytes::new(),
            watermark: Timestamp::ZERO,
            state: State::Building,
            scanned_rows: 0,
            changed_rows: 0,
            dead_letters: 0,
            without: Vec::new(),
        }
    }

    /// Reads a checkpoint.
    ///
    /// # Errors
    ///
    /// `Corrupt` where it can't be read.
    pub fn decode(stored: &[u8]) -> Result<Self> {
        codec::decode(stored, "the checkpoint of an index")
    }

    /// Goes on where it halted: with another program, or, with `without`, as if the row that it halted at had a dead
    /// letter. Answers whether it had halted.
    pub fn resume(&mut self, without: bool) -> bool {
        let State::Halted { key, .. } = &self.state else { return false };
        // It halts before the same transaction once for each of its rows: they add up, until it is taken in.
        if without && !self.without.contains(key) {
            self.without.push(key.clone());
        }
        self.state = if self.watermark == Timestamp::ZERO { State::Building } else { State::Ready };
        true
    }

    /// As it is stored.
    pub fn encode(&self) -> Bytes {
        codec::encode(self).into()
    }
}

impl Default for Checkpoint {
    fn default() -> Self {
        Self::new()
    }
}

/// The key of the checkpoint of an index's version.
pub fn checkpoint_key(id: u64, version: u32) -> Bytes {
    keyspace::index_rows(id, version, keyspace::INDEX_CHECKPOINT).freeze()
}

/// The key of the definition of an index's version: it never changes.
pub fn definition_key(id: u64, version: u32) -> Bytes {
    keyspace::index_rows(id, version, keyspace::INDEX_DEFINITION).freeze()
}

/// All dead letters of an index's version; behind what their keys begin with is the row's key, as users know it.
pub fn dead_letters(id: u64, version: u32) -> KeyRange {
    KeyRange::prefix(keyspace::index_rows(id, version, keyspace::INDEX_DEAD_LETTER).freeze())
}

/// Why a row is not in the index, kept until it is.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct DeadLetter {
    /// When it was written; of a row of the scan, the timestamp that was read at.
    pub commit_ts: Timestamp,
    /// What is wrong with it.
    pub reason: String,
}

impl DeadLetter {
    /// Reads a dead letter.
    ///
    /// # Errors
    ///
    /// `Corrupt` where it can't be read.
    pub fn decode(stored: &[u8]) -> Result<Self> {
        codec::decode(stored, "a dead letter of an index")
    }
}

/// Events that are written together.
#[derive(Clone, Debug)]
pub struct Step {
    definition: Definition,
    batch: Batch,
    dead: BTreeMap<Bytes, Option<DeadLetter>>,
    next: Checkpoint,
    size_bytes: usize,
}

impl Step {
    /// A step from a checkpoint: nothing is gathered yet.
    pub fn new(definition: Definition, from: Checkpoint) -> Self {
        Self { definition, batch: Batch::default(), dead: BTreeMap::new(), next: from, size_bytes: 0 }
    }

    /// Takes in a row of the scan, as of `at`. `cursor` goes on behind it.
    ///
    /// # Errors
    ///
    /// `Invalid` where the gathered changes of a group are too large: write what is gathered, and begin again.
    pub fn row(&mut self, key: &Bytes, value: &Bytes, at: Timestamp, cursor: Bytes) -> Result<()> {
        let change = Change {
            key: key.clone(),
            value: Some(value.clone()),
            create_ts: Timestamp::ZERO,
            version: 0,
            before: Before::Absent,
        };
        if self.take(std::slice::from_ref(&change), at, Timestamp::ZERO)? {
            self.next.scanned_rows += 1;
            self.next.cursor = cursor;
        }
        Ok(())
    }

    /// Takes in a transaction, whole or, where the index halts at it, not at all. Values from before must be told.
    ///
    /// # Errors
    ///
    /// `Invalid` where a value from before is not told, or where the gathered changes of a group are too large. Nothing of
    /// the transaction was taken in then.
    pub fn changes(&mut self, changes: &Changes, cursor: Bytes) -> Result<()> {
        if self.take(&changes.changes, changes.commit_ts, changes.commit_ts)? {
            self.next.changed_rows += changes.changes.len() as u64;
            self.next.watermark = changes.commit_ts;
            self.next.cursor = cursor;
        }
        Ok(())
    }

    /// Takes in that nothing more is committed at or before a timestamp; the first one after a scan ends the building.
    pub fn progress(&mut self, ts: Timestamp, cursor: Bytes) {
        if self.is_halted() {
            return;
        }
        if self.next.state == State::Building {
            self.next.state = State::Ready;
        }
        self.next.watermark = ts;
        self.next.cursor = cursor;
    }

    /// Takes in a row that has a dead letter once more, as it was at the watermark: where it can be indexed now, or is gone,
    /// the letter is removed.
    ///
    /// # Errors
    ///
    /// As for [`row`](Self::row).
    pub fn replay(&mut self, key: &Bytes, value: Option<&Bytes>) -> Result<()> {
        let lenient = self.definition.leaving_out();
        let Ok(delta) = delta(&lenient, key, None, value.map(|value| &value[..])) else { return Ok(()) };
        if delta.rejected.is_none() {
            self.size_bytes += delta.size_bytes();
            self.batch.add(delta)?;
            self.letter(key.clone(), true, None);
        }
        Ok(())
    }

    /// Stops the index before an event that it can't take in. Of the transaction nothing must have been taken in.
    pub fn halt(&mut self, key: Bytes, commit_ts: Timestamp, reason: String) {
        self.next.state = State::Halted { key, commit_ts, reason };
    }

    /// Whether the index stops with this step: nothing more is taken in.
    pub fn is_halted(&self) -> bool {
        matches!(self.next.state, State::Halted { .. })
    }

    /// How many rows it writes at most, with the checkpoint.
    pub fn len(&self) -> usize {
        self.batch.entries.len() + self.batch.groups.len() + self.dead.len() + 1
    }

    /// Whether it writes the checkpoint only.
    pub fn is_empty(&self) -> bool {
        self.len() == 1
    }

    /// About how many bytes of keys and values it writes.
    pub fn size_bytes(&self) -> usize {
        self.size_bytes
    }

    /// The checkpoint that it leads to.
    pub fn next(&self) -> &Checkpoint {
        &self.next
    }

    /// The group rows that must be known to write it.
    pub fn groups(&self) -> impl Iterator<Item = &Bytes> {
        self.batch.groups.keys()
    }

    /// What to write, the checkpoint with it. `stored` gives the group rows as they are; those that are not there are left
    /// out.
    ///
    /// # Errors
    ///
    /// `Corrupt` where a group row can't have these changes: the index is not that of its checkpoint.
    pub fn writes(self, stored: &BTreeMap<Bytes, Bytes>) -> Result<(Vec<TxnWrite>, Checkpoint)> {
        let write = |key: Bytes, value: Option<Bytes>| match value {
            Some(value) => TxnWrite::Put { key, value },
            None => TxnWrite::Delete { key },
        };
        let mut writes: Vec<TxnWrite> =
            self.batch.entries.into_iter().map(|(key, value)| write(key, value)).collect();
        for (key, change) in self.batch.groups {
            let value = change.apply(stored.get(&key).map(|value| &value[..]))?;
            writes.push(write(key, value));
        }
        let prefix = dead_letters(self.definition.id(), self.definition.version()).start;
        for (key, letter) in self.dead {
            let mut internal = BytesMut::from(&prefix[..]);
            internal.put_slice(&key);
            writes.push(write(internal.freeze(), letter.map(|letter| codec::encode(&letter).into())));
        }
        writes.push(TxnWrite::Put {
            key: checkpoint_key(self.definition.id(), self.definition.version()),
            value: self.next.encode(),
        });
        Ok((writes, self.next))
    }

    /// Takes in changes, all or none; answers whether it did. `commit_ts` is what a halt names.
    fn take(&mut self, changes: &[Change], letter_ts: Timestamp, commit_ts: Timestamp) -> Result<bool> {
        if self.is_halted() {
            return Ok(false);
        }
        // Of this transaction alone, so that it is added whole or not at all.
        let mut whole = Batch::default();
        let (mut letters, mut size_bytes) = (Vec::new(), 0);
        for change in changes {
            let before = told_before(change)?;
            let is_left_out = self.next.without.contains(&change.key);
            let after = change.value.as_deref();
            let delta = match is_left_out {
                true => delta(&self.definition.leaving_out(), &change.key, before, after),
                false => delta(&self.definition, &change.key, before, after),
            };
            let delta = match delta {
                Ok(delta) => delta,
                Err(error) => {
                    self.halt(error.key.clone(), commit_ts, error.reason());
                    return Ok(false);
                }
            };
            if self.definition.spec().on_error != OnError::Skip {
                let letter = delta
                    .rejected
                    .as_ref()
                    .map(|error| DeadLetter { commit_ts: letter_ts, reason: error.reason() });
                letters.push((change.key.clone(), delta.rejected_before, letter));
            }
            size_bytes += delta.size_bytes();
            whole.add(delta)?;
        }
        self.batch.join(whole)?;
        self.size_bytes += size_bytes;
        self.next.without.clear();
        for (key, had, letter) in letters {
            self.letter(key, had, letter);
        }
        Ok(true)
    }

    /// Notes a row's dead letter, or that it has none any more.
    fn letter(&mut self, key: Bytes, had: bool, letter: Option<DeadLetter>) {
        match (had, letter.is_some()) {
            (false, false) => return,
            (false, true) => self.next.dead_letters += 1,
            (true, false) => self.next.dead_letters = self.next.dead_letters.saturating_sub(1),
            (true, true) => {}
        }
        self.size_bytes += key.len() + letter.as_ref().map_or(0, |letter| letter.reason.len());
        self.dead.insert(key, letter);
    }
}

/// What the key held before a change.
fn told_before(change: &Change) -> Result<Option<&[u8]>> {
    match &change.before {
        Before::Absent => Ok(None),
        Before::Value(value) => Ok(Some(value)),
        Before::Unasked | Before::TooLarge => Err(Error::invalid(format!(
            "what \"{}\" held before it was changed is not told: follow with values from before, and read those that are \
             too large",
            change.key.escape_ascii()
        ))),
    }
}
