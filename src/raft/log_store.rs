//! A group's log and vote for openraft: the tail in memory, the disk behind the node's one writer.

use std::io;
use std::sync::Arc;

use openraft::OptionalSend;
use openraft::storage::{IOFlushed, LogState, RaftLogStorage};

use super::TypeConfig;
use super::entry::{self, Entry, LogId};
use super::keys::{self, Item};
use super::log_reader::{Log, LogReader};
use super::log_writer::{Done, LogWriter};
use super::records::Vote;
use crate::codec;
use crate::engine::{Batch, Family, SharedEngine};
use crate::types::{Error, Result, ShardId};

/// Bytes of entries that a group keeps in memory once they are on disk.
pub const DEFAULT_CACHE_BYTES: u64 = 4 * 1024 * 1024;

/// The log store of one group.
pub struct LogStore {
    log: Arc<Log>,
    writer: Arc<LogWriter>,
    /// Numbers the appends, in the order of the writer's queue.
    sequence: u64,
}

impl LogStore {
    /// Opens the log of a group, and repairs what a crash left (see [`Log`]). Of a group's log there is
    /// one store at a time: before it is opened again, an empty [`LogWriter::write_synced`] sees to it that
    /// nothing of the last one is queued any more.
    ///
    /// # Errors
    ///
    /// `Corrupt` where the log can't be read or has a hole.
    pub fn open(
        engine: SharedEngine,
        writer: Arc<LogWriter>,
        group: ShardId,
        cache_bytes: u64,
    ) -> Result<Self> {
        let log = Log::open(engine, group, cache_bytes)?;
        Ok(Self { log, writer, sequence: 0 })
    }

    /// The log, for its size and bounds while openraft owns the store.
    pub fn log(&self) -> Arc<Log> {
        self.log.clone()
    }

    fn append_entries(
        &mut self,
        entries: impl Iterator<Item = Entry>,
        callback: IOFlushed<TypeConfig>,
    ) -> Result<()> {
        self.sequence += 1;
        let mut batch = Batch::new();
        let mut count = 0;
        let mut state = self.log.state.lock();
        for entry in entries {
            let index = entry.log_id.index;
            if state.last.is_none() && state.first == 0 {
                state.first = index;
            }
            if index != state.end() {
                return Err(Error::corrupt(format!(
                    "entry {} can't be appended to the log of group {}: the next index is {}",
                    entry.log_id,
                    self.log.group,
                    state.end()
                )));
            }
            let end_position = state.end_position + entry::counted_bytes(&entry);
            batch.put(Family::Log, keys::log(self.log.group, index), entry::encode(&entry, end_position));
            state.end_position = end_position;
            state.last = Some(entry.log_id);
            state.cache.push(entry, end_position, self.sequence);
            count += 1;
        }
        drop(state);
        let done = Done::Appended { log: self.log.clone(), sequence: self.sequence, callback };
        self.writer.push(batch, count, true, done);
        Ok(())
    }

    fn truncate_to(&mut self, last: Option<LogId>) -> Result<()> {
        let (first, end, purged) = {
            let state = self.log.state.lock();
            (state.first, state.end(), state.purged)
        };
        let from = last.map_or(first, |last| last.index + 1).max(first);
        if from >= end {
            return Ok(());
        }
        let position = if from > first { self.log.position(from - 1)? } else { None };
        let mut state = self.log.state.lock();
        state.changes += 1;
        state.cache.truncate_from(from);
        state.end_position = position.unwrap_or(state.start_position);
        state.last = if from > first { last } else { purged };
        if state.last.is_none() {
            state.first = 0;
        }
        drop(state);
        let mut batch = Batch::new();
        batch.delete_range(Family::Log, keys::log_range(self.log.group, from, end));
        self.writer.write_ordered(batch);
        Ok(())
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = LogReader;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, io::Error> {
        let state = self.log.state.lock();
        Ok(LogState { last_purged_log_id: state.purged, last_log_id: state.last })
    }

    async fn get_log_reader(&mut self) -> LogReader {
        LogReader(self.log.clone())
    }

    /// On disk when it returns, behind every append and truncation that came before it.
    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        let mut batch = Batch::new();
        batch.put(Family::Group, keys::item(self.log.group, Item::Vote), codec::encode(vote));
        self.writer.write_synced(batch).await.map_err(io::Error::other)?;
        self.log.state.lock().vote = Some(*vote);
        Ok(())
    }

    /// Readable when it returns; on disk when the callback is called.
    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        self.append_entries(entries.into_iter(), callback).map_err(io::Error::other)
    }

    async fn truncate_after(&mut self, last_log_id: Option<LogId>) -> Result<(), io::Error> {
        self.truncate_to(last_log_id).map_err(io::Error::other)
    }

    async fn purge(&mut self, log_id: LogId) -> Result<(), io::Error> {
        if let Some(batch) = self.log.purge_batch(log_id).map_err(io::Error::other)? {
            self.writer.write_ordered(batch);
        }
        Ok(())
    }
}
