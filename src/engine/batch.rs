//! Writes that happen together or not at all.

use bytes::Bytes;

use super::Family;
use crate::types::KeyRange;

/// One write of a batch. Later ones win.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum BatchEntry {
    /// Set a key.
    Put(Family, Bytes, Bytes),
    /// Remove a key.
    Delete(Family, Bytes),
    /// Remove every key of a range.
    DeleteRange(Family, KeyRange),
}

/// Writes in order.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Batch {
    entries: Vec<BatchEntry>,
    size_bytes: usize,
}

impl Batch {
    /// An empty batch.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets a key.
    pub fn put(&mut self, family: Family, key: impl Into<Bytes>, value: impl Into<Bytes>) {
        let (key, value) = (key.into(), value.into());
        self.size_bytes += key.len() + value.len();
        self.entries.push(BatchEntry::Put(family, key, value));
    }

    /// Removes a key.
    pub fn delete(&mut self, family: Family, key: impl Into<Bytes>) {
        let key = key.into();
        self.size_bytes += key.len();
        self.entries.push(BatchEntry::Delete(family, key));
    }

    /// Removes every key of a range.
    pub fn delete_range(&mut self, family: Family, range: KeyRange) {
        self.entries.push(BatchEntry::DeleteRange(family, range));
    }

    /// Appends the writes of another batch.
    pub fn append(&mut self, other: Batch) {
        self.size_bytes += other.size_bytes;
        self.entries.extend(other.entries);
    }

    /// The writes, in order.
    pub fn entries(&self) -> &[BatchEntry] {
        &self.entries
    }

    /// Whether there is nothing to write.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Bytes of keys and values.
    pub fn size_bytes(&self) -> usize {
        self.size_bytes
    }
}

impl IntoIterator for Batch {
    type Item = BatchEntry;
    type IntoIter = std::vec::IntoIter<BatchEntry>;

    fn into_iter(self) -> Self::IntoIter {
        self.entries.into_iter()
    }
}
