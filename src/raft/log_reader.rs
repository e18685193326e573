//! Reading a group's log: the tail from memory, what is older from the engine.

use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::sync::Arc;

use futures::Stream;
use openraft::OptionalSend;
use openraft::storage::RaftLogReader;
use parking_lot::Mutex;

use super::TypeConfig;
use super::entry::{self, Entry, LogId, StoredEntry};
use super::keys::{self, Item};
use super::log_cache::LogCache;
use super::records::{self, AppliedRecord, Vote};
use crate::codec;
use crate::engine::{Batch, Durability, Family, SharedEngine};
use crate::types::{Direction, Error, Result, ShardId};

/// A read for replication ends after the entry that takes it past so many bytes.
const READ_BYTES: u64 = 2 * 1024 * 1024;

/// What a log holds at the moment, some of it not on disk yet.
pub(super) struct LogState {
    /// The last entry that was purged.
    pub(super) purged: Option<LogId>,
    /// The index of the first entry there is, or of the next one where there is none.
    pub(super) first: u64,
    /// The last entry, or where there is none the last one purged.
    pub(super) last: Option<LogId>,
    /// The position at which the first entry begins.
    pub(super) start_position: u64,
    /// The position at which the last entry ends.
    pub(super) end_position: u64,
    /// Counts truncations and purges, so that a read notices one that it ran into.
    pub(super) changes: u64,
    /// The last vote on disk.
    pub(super) vote: Option<Vote>,
    /// The tail.
    pub(super) cache: LogCache,
}

impl LogState {
    /// The index after the last entry.
    pub(super) fn end(&self) -> u64 {
        self.last.map_or(self.first, |last| last.index + 1).max(self.first)
    }
}

/// A group's log, shared by its store, its readers and its host.
pub struct Log {
    pub(super) group: ShardId,
    pub(super) engine: SharedEngine,
    pub(super) state: Mutex<LogState>,
}

impl Log {
    /// Opens the log of a group. Where what was applied lies beyond it (apply does not wait for the local
    /// disk), the log is purged up to there.
    ///
    /// # Errors
    ///
    /// `Corrupt` where records or entries can't be read, or entries are missing.
    pub(super) fn open(engine: SharedEngine, group: ShardId, cache_bytes: u64) -> Result<Arc<Self>> {
        let vote = records::read(engine.as_ref(), group, Item::Vote)?;
        let purged: Option<LogId> = records::read(engine.as_ref(), group, Item::Purged)?;
        let (first_entry, last_entry, applied) = {
            let view = engine.view();
            let end_of = |direction| -> Result<Option<StoredEntry>> {
                match view.scan(Family::Log, &keys::log_from(group, 0), direction).next() {
                    Some(row) => decode_row(group, &row?).map(Some),
                    None => Ok(None),
                }
            };
            (
                end_of(Direction::Forward)?,
                end_of(Direction::Reverse)?,
                AppliedRecord::read(view.as_ref(), group)?,
            )
        };
        let first = purged.map_or(0, |purged| purged.index + 1);
        let mut state = LogState {
            purged,
            first,
            last: purged,
            start_position: 0,
            end_position: 0,
            changes: 0,
            vote,
            cache: LogCache::new(cache_bytes),
        };
        if let (Some(first_entry), Some(last_entry)) = (first_entry, last_entry) {
            state.first = first_entry.entry.log_id.index;
            if purged.is_some() && state.first != first {
                return Err(Error::corrupt(format!(
                    "the log of group {group} is purged up to {}, but its first entry is {}",
                    first - 1,
                    state.first
                )));
            }
            state.last = Some(last_entry.entry.log_id);
            state.start_position =
                first_entry.end_position.saturating_sub(entry::counted_bytes(&first_entry.entry));
            state.end_position = last_entry.end_position;
        }
        let log = Arc::new(Self { group, engine, state: Mutex::new(state) });
        if let Some(applied) = applied.and_then(|applied| applied.last_log_id) {
            log.repair(applied)?;
        }
        Ok(log)
    }

    /// Makes the log fit what was applied. Where it ends before that, or holds another entry in its place
    /// (a crash took the truncation and the entries that were applied, before their sync), none of its
    /// entries is of use: those below are applied, and those from there on can never be committed.
    fn repair(&self, applied: LogId) -> Result<()> {
        let last = self.state.lock().last;
        let fits = match last {
            Some(last) if last.index >= applied.index => match self.stored(applied.index)? {
                Some(stored) => stored.entry.log_id == applied,
                None => true,
            },
            _ => false,
        };
        if fits {
            return Ok(());
        }
        tracing::info!(group = %self.group, ?last, %applied, "purges the log up to what was applied");
        let mut state = self.state.lock();
        state.purged = Some(applied);
        state.last = Some(applied);
        state.first = applied.index + 1;
        state.start_position = state.end_position;
        let mut batch = Batch::new();
        batch.delete_range(Family::Log, keys::log_from(self.group, 0));
        batch.put(Family::Group, keys::item(self.group, Item::Purged), codec::encode(&applied));
        self.engine.write(batch, Durability::Synced)
    }

    /// The group.
    pub fn group(&self) -> ShardId {
        self.group
    }

    /// Bytes of the entries that are kept, as counted for purging.
    pub fn size_bytes(&self) -> u64 {
        let state = self.state.lock();
        state.end_position - state.start_position
    }

    /// The indexes of the first and the last entry that are kept; `None` where there is none.
    pub fn bounds(&self) -> Option<(u64, u64)> {
        let state = self.state.lock();
        (state.first < state.end()).then(|| (state.first, state.end() - 1))
    }

    /// The highest index up to which the log can be purged so that the entries after it, at least
    /// `keep_bytes` of them, are kept; `None` where there is no more than that.
    pub fn purge_point(&self, keep_bytes: u64) -> Result<Option<u64>> {
        let (first, end, wanted) = {
            let state = self.state.lock();
            (state.first, state.end(), state.end_position.saturating_sub(keep_bytes))
        };
        // The entries whose end lies at or below the wanted position come first: find the last of them.
        let (mut low, mut high) = (first, end);
        while low < high {
            let middle = low + (high - low) / 2;
            match self.position(middle)? {
                Some(position) if position > wanted => high = middle,
                // An entry that is gone meanwhile was purged.
                _ => low = middle + 1,
            }
        }
        Ok((low > first).then(|| low - 1))
    }

    /// The entry at an index as the engine has it.
    fn stored(&self, index: u64) -> Result<Option<StoredEntry>> {
        match self.engine.get(Family::Log, &keys::log(self.group, index))? {
            Some(bytes) => entry::decode(&bytes).map(Some),
            None => Ok(None),
        }
    }

    /// The position at which the entry at an index ends.
    pub(super) fn position(&self, index: u64) -> Result<Option<u64>> {
        if let Some((_, position)) = self.state.lock().cache.get(index) {
            return Ok(Some(position));
        }
        Ok(self.stored(index)?.map(|stored| stored.end_position))
    }

    /// Appends up to `sequence` are on disk.
    pub(super) fn flushed(&self, sequence: u64) {
        self.state.lock().cache.flushed(sequence);
    }

    /// Forgets the entries up to and with `upto`, and gives the batch that does so on disk; `None` where
    /// they are gone already.
    pub(super) fn purge_batch(&self, upto: LogId) -> Result<Option<Batch>> {
        let (first, last) = {
            let state = self.state.lock();
            (state.first, state.last)
        };
        if first > upto.index {
            return Ok(None);
        }
        let position = self.position(upto.index)?;
        let mut state = self.state.lock();
        state.changes += 1;
        state.cache.purge_to(upto.index);
        state.start_position = position.unwrap_or(state.end_position);
        state.first = upto.index + 1;
        state.purged = Some(upto);
        if last.is_none_or(|last| last.index < upto.index) {
            state.last = Some(upto);
        }
        let mut batch = Batch::new();
        batch.delete_range(Family::Log, keys::log_range(self.group, first, upto.index + 1));
        batch.put(Family::Group, keys::item(self.group, Item::Purged), codec::encode(&upto));
        Ok(Some(batch))
    }

    /// The entries from `start` up to, not including, `end`, ending after the one that takes them past
    /// `limit_bytes`. Entries that are purged or not there yet are left out.
    pub(super) fn read(&self, start: u64, end: u64, limit_bytes: u64) -> Result<Vec<Entry>> {
        loop {
            let (start, cached_from, changes, tail) = {
                let state = self.state.lock();
                let start = start.max(state.first);
                let end = end.min(state.end());
                if start >= end {
                    return Ok(Vec::new());
                }
                let cached_from = state.cache.first_index().unwrap_or(end).clamp(start, end);
                let mut tail = Vec::new();
                let mut bytes = 0;
                for index in cached_from..end {
                    if bytes >= limit_bytes {
                        break;
                    }
                    let Some((entry, _)) = state.cache.get(index) else {
                        return Err(self.hole(index));
                    };
                    bytes += entry::counted_bytes(entry);
                    tail.push(entry.clone());
                }
                (start, cached_from, state.changes, tail)
            };
            if start == cached_from {
                return Ok(tail);
            }
            match self.read_stored(start, cached_from, limit_bytes)? {
                Ok((mut entries, mut bytes)) => {
                    let whole = entries.len() as u64 == cached_from - start;
                    for entry in tail.into_iter().filter(|_| whole) {
                        if bytes >= limit_bytes {
                            break;
                        }
                        bytes += entry::counted_bytes(&entry);
                        entries.push(entry);
                    }
                    return Ok(entries);
                }
                // A purge or truncation came between: look again.
                Err(_) if self.state.lock().changes != changes => {}
                Err(missing) => return Err(self.hole(missing)),
            }
        }
    }

    /// Entries that must all be in the engine; the inner error is the index of one that is not.
    fn read_stored(&self, start: u64, end: u64, limit_bytes: u64) -> Result<Result<(Vec<Entry>, u64), u64>> {
        let view = self.engine.view();
        let mut entries = Vec::new();
        let mut bytes = 0;
        let mut next = start;
        for row in view.scan(Family::Log, &keys::log_range(self.group, start, end), Direction::Forward) {
            if bytes >= limit_bytes {
                return Ok(Ok((entries, bytes)));
            }
            let stored = decode_row(self.group, &row?)?;
            if stored.entry.log_id.index != next {
                return Ok(Err(next));
            }
            next += 1;
            bytes += entry::counted_bytes(&stored.entry);
            entries.push(stored.entry);
        }
        if next < end && bytes < limit_bytes {
            return Ok(Err(next));
        }
        Ok(Ok((entries, bytes)))
    }

    fn hole(&self, index: u64) -> Error {
        Error::corrupt(format!("the log of group {} has no entry {index}, but entries around it", self.group))
    }
}

/// Decodes a row of the log and checks that it stands where it belongs.
fn decode_row(group: ShardId, (key, value): &crate::engine::Row) -> Result<StoredEntry> {
    let stored = entry::decode(value)?;
    if keys::parse_log(group, key) != Some(stored.entry.log_id.index) {
        return Err(Error::corrupt(format!(
            "the log of group {group} holds entry {} under the key {}",
            stored.entry.log_id,
            hex::encode(key)
        )));
    }
    Ok(stored)
}

/// Start and end of a range of indexes, the end excluded.
fn bounds_of(range: &impl RangeBounds<u64>) -> (u64, u64) {
    let start = match range.start_bound() {
        Bound::Included(start) => *start,
        Bound::Excluded(start) => start.saturating_add(1),
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(end) => end.saturating_add(1),
        Bound::Excluded(end) => *end,
        Bound::Unbounded => u64::MAX,
    };
    (start, end)
}

/// Reads a group's log for openraft.
#[derive(Clone)]
pub struct LogReader(pub(super) Arc<Log>);

impl RaftLogReader<TypeConfig> for LogReader {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, io::Error> {
        let (start, end) = bounds_of(&range);
        self.0.read(start, end, u64::MAX).map_err(io::Error::other)
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        Ok(self.0.state.lock().vote)
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<Entry>, io::Error> {
        self.0.read(start, end, READ_BYTES).map_err(io::Error::other)
    }

    /// Reads on only as the entries are taken, so that a long range is never in memory as a whole.
    async fn entries_stream<RB>(
        &mut self,
        range: RB,
    ) -> impl Stream<Item = Result<Entry, io::Error>> + OptionalSend
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let log = self.0.clone();
        let (mut next, end) = bounds_of(&range);
        async_stream::try_stream! {
            while next < end {
                let entries = log.read(next, end, READ_BYTES).map_err(io::Error::other)?;
                let Some(last) = entries.last() else { break };
                next = last.log_id.index + 1;
                for entry in entries {
                    yield entry;
                }
            }
        }
    }
}
