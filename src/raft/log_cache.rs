//! The tail of a group's log in memory: what was appended is readable at once, and what replication and
//! apply read a moment later costs no read of the disk.

use std::collections::VecDeque;

use super::entry::{Entry, counted_bytes};

struct Cached {
    entry: Entry,
    end_position: u64,
    /// The append that it came with.
    sequence: u64,
}

/// The newest entries of a log, without a gap, up to its end. Entries that are not on disk yet stay,
/// however many; of the others, so many bytes are kept.
pub(super) struct LogCache {
    entries: VecDeque<Cached>,
    bytes: u64,
    limit_bytes: u64,
    /// Appends up to this one are on disk.
    flushed: u64,
}

impl LogCache {
    /// An empty cache.
    pub(super) fn new(limit_bytes: u64) -> Self {
        Self { entries: VecDeque::new(), bytes: 0, limit_bytes, flushed: 0 }
    }

    /// The index of the first entry, if there is any.
    pub(super) fn first_index(&self) -> Option<u64> {
        self.entries.front().map(|cached| cached.entry.log_id.index)
    }

    fn offset(&self, index: u64) -> Option<usize> {
        let offset = index.checked_sub(self.first_index()?)?;
        usize::try_from(offset).ok().filter(|offset| *offset < self.entries.len())
    }

    /// The entry at an index and the position of its end.
    pub(super) fn get(&self, index: u64) -> Option<(&Entry, u64)> {
        let cached = self.entries.get(self.offset(index)?)?;
        Some((&cached.entry, cached.end_position))
    }

    /// Adds an entry right after the last one.
    pub(super) fn push(&mut self, entry: Entry, end_position: u64, sequence: u64) {
        self.bytes += counted_bytes(&entry);
        self.entries.push_back(Cached { entry, end_position, sequence });
    }

    /// Appends up to `sequence` are on disk: they may leave.
    pub(super) fn flushed(&mut self, sequence: u64) {
        self.flushed = self.flushed.max(sequence);
        while self.bytes > self.limit_bytes
            && self.entries.front().is_some_and(|cached| cached.sequence <= self.flushed)
        {
            self.pop_front();
        }
    }

    /// Removes the entries from `index` on.
    pub(super) fn truncate_from(&mut self, index: u64) {
        while self.entries.back().is_some_and(|cached| cached.entry.log_id.index >= index) {
            if let Some(cached) = self.entries.pop_back() {
                self.bytes -= counted_bytes(&cached.entry);
            }
        }
    }

    /// Removes the entries up to and with `index`.
    pub(super) fn purge_to(&mut self, index: u64) {
        while self.first_index().is_some_and(|first| first <= index) {
            self.pop_front();
        }
    }

    fn pop_front(&mut self) {
        if let Some(cached) = self.entries.pop_front() {
            self.bytes -= counted_bytes(&cached.entry);
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use openraft::impls::EntryPayload;

    use super::*;
    use crate::raft::Payload;
    use crate::raft::entry::{LeaderId, LogId};
    use crate::types::NodeId;

    fn entry(index: u64) -> Entry {
        let leader = LeaderId { term: 1, node_id: NodeId(1) };
        let payload = EntryPayload::Normal(Payload(Bytes::from(vec![0; 68])));
        Entry { log_id: LogId::new(leader, index), payload }
    }

    #[test]
    fn only_flushed_entries_leave_and_only_over_the_limit() {
        let mut cache = LogCache::new(300);
        for index in 5..15 {
            cache.push(entry(index), 100 * index, index);
        }
        assert_eq!(cache.first_index(), Some(5));
        cache.flushed(7);
        assert_eq!(cache.first_index(), Some(8), "8 and later are not on disk");
        cache.flushed(14);
        assert_eq!(cache.first_index(), Some(12), "three of 100 bytes fit");
        assert_eq!(cache.get(13).map(|(entry, end)| (entry.log_id.index, end)), Some((13, 1300)));
        assert!(cache.get(11).is_none() && cache.get(15).is_none());
    }

    #[test]
    fn a_flush_of_truncated_entries_does_not_count_for_what_took_their_place() {
        let mut cache = LogCache::new(0);
        cache.push(entry(5), 0, 1);
        cache.push(entry(6), 0, 1);
        cache.truncate_from(6);
        cache.push(entry(6), 0, 2);
        cache.flushed(1);
        assert_eq!(cache.first_index(), Some(6));
        cache.purge_to(6);
        assert_eq!(cache.first_index(), None);
        assert_eq!(cache.bytes, 0);
    }
}
