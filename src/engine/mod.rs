//! Floor 1: an ordered store with atomic batches. In memory for tests, RocksDB for nodes.
//!
//! One engine a node. Everything above sees families of ordered keys, read views that stand still, and
//! batches that are written whole or not at all. Batches are durable in the order in which they were
//! written: a synced one makes all before it durable too, and a crash leaves a prefix.

mod batch;
mod drops;
mod memory;
mod overlay;
mod rocks;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use bytes::Bytes;

pub use batch::{Batch, BatchEntry};
pub use drops::{DropRule, DropRules, KeepRows};
pub use memory::MemoryEngine;
pub use overlay::Overlay;
pub use rocks::{RocksEngine, RocksOptions};

use crate::types::{Direction, Error, KeyRange, Result};

/// The families of keys (see docs/ARCHITECTURE.md): each is ordered by its bytes on its own.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Family {
    /// Raft entries, by group and index.
    Log,
    /// A group's vote, applied state, membership, purge point; and what the node knows of itself.
    Group,
    /// The newest version of each key.
    Current,
    /// Older versions, by key and the timestamp that superseded them.
    History,
    /// Locks of transactions.
    Lock,
    /// Transaction records and outcome markers.
    Txn,
    /// Changes in commit order.
    Changelog,
}

impl Family {
    /// All of them.
    pub const ALL: [Family; 7] =
        [Self::Log, Self::Group, Self::Current, Self::History, Self::Lock, Self::Txn, Self::Changelog];

    /// The families that hold a shard's data: what a snapshot carries.
    pub const SHARD_DATA: [Family; 5] =
        [Self::Current, Self::History, Self::Lock, Self::Txn, Self::Changelog];

    /// The family's name on disk.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Log => "log",
            Self::Group => "group",
            Self::Current => "current",
            Self::History => "history",
            Self::Lock => "lock",
            Self::Txn => "txn",
            Self::Changelog => "changelog",
        }
    }
}

/// A row: key and value.
pub type Row = (Bytes, Bytes);

/// Rows in order; an error ends them.
pub type Rows<'a> = Box<dyn Iterator<Item = Result<Row>> + 'a>;

/// A picture of the store that does not change while it is held.
pub trait View {
    /// The value of a key.
    fn get(&self, family: Family, key: &[u8]) -> Result<Option<Bytes>>;

    /// The rows of a range, in either direction. Reads lazily: taking few rows costs little.
    fn scan(&self, family: Family, range: &KeyRange, direction: Direction) -> Rows<'_>;
}

/// When a write returns.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Durability {
    /// At once. It survives a crash once a later batch was synced.
    Buffered,
    /// After it, and everything before it, is on disk.
    Synced,
}

/// What an engine holds and does, for metrics and `status`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct EngineStats {
    /// Bytes of files on disk (of keys and values, in memory).
    pub size_bytes: u64,
    /// Batches synced since it was opened.
    pub syncs: u64,
}

/// Rows received in order, waiting to take the place of a range (a snapshot being installed). Dropped
/// unfinished, it leaves the engine as it was.
pub trait Staging: Send {
    /// Adds a row. Families may come in any order; keys rise within each.
    fn put(&mut self, family: Family, key: &[u8], value: &[u8]) -> Result<()>;

    /// Syncs what was staged and gives it a name that survives a restart.
    fn finish(self: Box<Self>) -> Result<StagedName>;
}

/// Names a finished staging, for [`Engine::install`] now or after a restart.
pub type StagedName = String;

/// An ordered store with atomic batches.
pub trait Engine: Send + Sync + 'static {
    /// A view of everything written so far.
    fn view(&self) -> Box<dyn View + '_>;

    /// Writes a batch, whole or not at all.
    fn write(&self, batch: Batch, durability: Durability) -> Result<()>;

    /// Reads one key outside any view.
    fn get(&self, family: Family, key: &[u8]) -> Result<Option<Bytes>>;

    /// Begins to collect rows for [`install`](Engine::install).
    fn stage(&self) -> Result<Box<dyn Staging>>;

    /// Removes everything in the given ranges and puts the staged rows there. Not atomic, but can be
    /// done again: a caller records the name and the ranges first (synced), and repeats the call after a
    /// crash.
    fn install(&self, staged: &str, replaced: &[(Family, KeyRange)]) -> Result<()>;

    /// Forgets one finished staging. One that is not there is no error.
    fn discard_staged(&self, staged: &str) -> Result<()>;

    /// Forgets every finished or unfinished staging but those named. For a start, before any is begun.
    fn discard_staged_except(&self, keep: &[StagedName]) -> Result<()>;

    /// Sets which rows may be dropped from now on; none before it is called.
    fn set_drop_rules(&self, rules: Arc<dyn DropRules>);

    /// Keeps every row while the guard is held, but for what rewritings that have begun already drop by the rules of
    /// then. For a view that is read as a whole and at length. Take it before the view.
    fn keep_rows(&self) -> KeepRows;

    /// Drops whole files of rows that all lie in a range, at once; other rows of the range may stay. Like a rule of
    /// dropping, under views too: none may still ask for a row of the range.
    fn drop_files(&self, family: Family, range: &KeyRange) -> Result<()>;

    /// Rewrites everything, so that rows which may be dropped are. Slow: for tests and by hand.
    fn compact_all(&self) -> Result<()>;

    /// What it holds.
    fn stats(&self) -> EngineStats;

    /// Writes what is buffered to disk and syncs it. For a clean end.
    fn flush(&self) -> Result<()>;
}

/// An engine shared by everything on a node.
pub type SharedEngine = Arc<dyn Engine>;

/// The error of a staging whose caller broke the order.
fn out_of_order(family: Family, key: &[u8]) -> Error {
    Error::corrupt(format!(
        "staged rows of family {} must rise, but key {} is not above the one before it",
        family.name(),
        hex::encode(key)
    ))
}
