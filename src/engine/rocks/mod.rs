//! The engine on disk: one RocksDB with a column family for each [`Family`] and one write-ahead log.
//!
//! All families share the log, so a batch is in all of them or in none, and a crash leaves a prefix of
//! the batches. RocksDB syncs a closed log before it installs a flush where there are several families,
//! so a flushed family never runs ahead of what the log can restore in the others.

mod compaction;
mod options;
mod staging;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use bytes::Bytes;
use rocksdb::{
    BottommostLevelCompaction, ColumnFamily, ColumnFamilyDescriptor, CompactOptions, DB,
    DBRawIteratorWithThreadMode, FlushOptions, IngestExternalFileOptions, Options, ReadOptions,
    SnapshotWithThreadMode, WriteBatch, WriteOptions,
};

pub use options::RocksOptions;

use super::drops::Drops;
use super::{
    Batch, BatchEntry, DropRules, Durability, Engine, EngineStats, Family, KeepRows, Row, Rows, StagedName,
    Staging, View,
};
use crate::types::{Direction, Error, ErrorKind, KeyRange, Result};

/// What RocksDB calls the family that it makes unasked; nothing is stored there.
const DEFAULT_FAMILY: &str = "default";

/// An engine in one directory. A second one in the same directory, in any process, is refused.
pub struct RocksEngine {
    db: DB,
    staging_dir: PathBuf,
    drops: Drops,
    next_staging: AtomicU64,
    syncs: AtomicU64,
    /// Dropped last, when the database is closed: fields go in the order in which they stand.
    open: Arc<()>,
}

impl RocksEngine {
    /// Opens the database in `path`, or makes one there.
    ///
    /// # Errors
    ///
    /// `Unavailable` where another process has it open or the disk fails; `Corrupt` where it holds
    /// families that this build does not know, or data that fails its checks.
    pub fn open(path: &Path, options: &RocksOptions) -> Result<Self> {
        let db_options = options.database();
        refuse_unknown_families(&db_options, path)?;
        std::fs::create_dir_all(path).map_err(|error| io_error("create", path, &error))?;
        let drops = Drops::default();
        let families = options
            .families(&drops)
            .into_iter()
            .map(|(family, options)| ColumnFamilyDescriptor::new(family.name(), options));
        let db =
            DB::open_cf_descriptors(&db_options, path, families).map_err(|error| open_error(path, &error))?;
        let staging_dir = staging::directory(path);
        std::fs::create_dir_all(&staging_dir).map_err(|error| io_error("create", &staging_dir, &error))?;
        let next_staging = AtomicU64::new(staging::last_number(&staging_dir)? + 1);
        let (syncs, open) = (AtomicU64::new(0), Arc::new(()));
        Ok(Self { db, staging_dir, drops, next_staging, syncs, open })
    }

    /// What is gone once the database is closed, and the directory can be opened again.
    pub fn open_mark(&self) -> Weak<()> {
        Arc::downgrade(&self.open)
    }

    fn family(&self, family: Family) -> Result<&ColumnFamily> {
        self.db
            .cf_handle(family.name())
            .ok_or_else(|| Error::corrupt(format!("the database has no column family {:?}", family.name())))
    }

    /// The first key past everything in a family and in the batch so far: RocksDB removes ranges only
    /// up to a key, so an unbounded range ends here.
    fn end_of_family(&self, family: Family, before: &[BatchEntry]) -> Result<Vec<u8>> {
        let mut last = vec![0xff; 32];
        let mut rows = self.db.raw_iterator_cf(self.family(family)?);
        rows.seek_to_last();
        if let Some(key) = rows.key() {
            last = last.max(key.to_vec());
        }
        rows.status().map_err(|error| engine_error("read", &error))?;
        for entry in before {
            if let BatchEntry::Put(of, key, _) = entry
                && *of == family
            {
                last = last.max(key.to_vec());
            }
        }
        last.push(0);
        Ok(last)
    }

    fn to_rocks(&self, batch: &Batch) -> Result<WriteBatch> {
        let mut out = WriteBatch::with_capacity_bytes(batch.size_bytes() + batch.entries().len() * 16);
        for (position, entry) in batch.entries().iter().enumerate() {
            match entry {
                BatchEntry::Put(family, key, value) => out.put_cf(self.family(*family)?, key, value),
                BatchEntry::Delete(family, key) => out.delete_cf(self.family(*family)?, key),
                BatchEntry::DeleteRange(_, range) if range.is_empty() => {}
                BatchEntry::DeleteRange(family, range) => {
                    let end = match &range.end {
                        Some(end) => end.to_vec(),
                        None => self.end_of_family(*family, &batch.entries()[..position])?,
                    };
                    out.delete_range_cf(self.family(*family)?, range.start.as_ref(), end.as_ref());
                }
            }
        }
        Ok(out)
    }
}

impl Engine for RocksEngine {
    fn view(&self) -> Box<dyn View + '_> {
        Box::new(RocksView { engine: self, snapshot: self.db.snapshot() })
    }

    /// A synced write is a buffered one and then a sync of the log: RocksDB syncs outside its write
    /// queue then, so that the buffered writes of apply never wait for a disk.
    fn write(&self, batch: Batch, durability: Durability) -> Result<()> {
        let batch = self.to_rocks(&batch)?;
        self.db.write_opt(batch, &WriteOptions::default()).map_err(|error| engine_error("write", &error))?;
        if durability == Durability::Synced {
            self.db.flush_wal(true).map_err(|error| engine_error("sync", &error))?;
            self.syncs.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }

    fn get(&self, family: Family, key: &[u8]) -> Result<Option<Bytes>> {
        let value =
            self.db.get_cf(self.family(family)?, key).map_err(|error| engine_error("read", &error))?;
        Ok(value.map(Bytes::from))
    }

    fn stage(&self) -> Result<Box<dyn Staging>> {
        let number = self.next_staging.fetch_add(1, Ordering::Relaxed);
        Ok(Box::new(staging::RocksStaging::begin(&self.staging_dir, number)?))
    }

    fn install(&self, staged: &str, replaced: &[(Family, KeyRange)]) -> Result<()> {
        let files = staging::files(&self.staging_dir, staged)?;
        let mut clear = Batch::new();
        for (family, range) in replaced {
            clear.delete_range(*family, range.clone());
        }
        self.write(clear, Durability::Synced)?;
        // The files are copied, so that the call can be repeated after a crash.
        let mut options = IngestExternalFileOptions::default();
        options.set_move_files(false);
        options.set_snapshot_consistency(true);
        for (family, paths) in files {
            self.db
                .ingest_external_file_cf_opts(self.family(family)?, &options, paths)
                .map_err(|error| engine_error("ingest staged rows into", &error))?;
        }
        Ok(())
    }

    fn discard_staged(&self, staged: &str) -> Result<()> {
        staging::remove(&self.staging_dir, staged)
    }

    fn discard_staged_except(&self, keep: &[StagedName]) -> Result<()> {
        for name in staging::names(&self.staging_dir)? {
            if !keep.contains(&name) {
                staging::remove(&self.staging_dir, &name)?;
            }
        }
        Ok(())
    }

    fn set_drop_rules(&self, rules: Arc<dyn DropRules>) {
        self.drops.set(rules);
    }

    fn keep_rows(&self) -> KeepRows {
        self.drops.keep()
    }

    fn drop_files(&self, family: Family, range: &KeyRange) -> Result<()> {
        let handle = self.family(family)?;
        match &range.end {
            // Files are dropped up to a key that is named, itself included: one that nothing lies at.
            Some(end) if !range.is_empty() && self.drops.allowed() => self
                .db
                .delete_file_in_range_cf(handle, &range.start, end)
                .map_err(|error| engine_error("drop files of", &error)),
            _ => Ok(()),
        }
    }

    fn compact_all(&self) -> Result<()> {
        self.flush()?;
        let mut options = CompactOptions::default();
        options.set_bottommost_level_compaction(BottommostLevelCompaction::Force);
        for family in Family::ALL {
            self.db.compact_range_cf_opt(self.family(family)?, None::<&[u8]>, None::<&[u8]>, &options);
        }
        Ok(())
    }

    fn stats(&self) -> EngineStats {
        let size_of = |family: Family, property: &str| {
            let handle = self.db.cf_handle(family.name())?;
            self.db.property_int_value_cf(handle, property).ok().flatten()
        };
        let size_bytes =
            Family::ALL.iter().filter_map(|family| size_of(*family, "rocksdb.total-sst-files-size")).sum();
        EngineStats { size_bytes, syncs: self.syncs.load(Ordering::Relaxed) }
    }

    fn flush(&self) -> Result<()> {
        let families = Family::ALL.iter().map(|family| self.family(*family)).collect::<Result<Vec<_>>>()?;
        self.db.flush_wal(true).map_err(|error| engine_error("sync", &error))?;
        self.db
            .flush_cfs_opt(&families, &FlushOptions::default())
            .map_err(|error| engine_error("flush", &error))
    }
}

struct RocksView<'e> {
    engine: &'e RocksEngine,
    snapshot: SnapshotWithThreadMode<'e, DB>,
}

impl View for RocksView<'_> {
    fn get(&self, family: Family, key: &[u8]) -> Result<Option<Bytes>> {
        let value = self
            .snapshot
            .get_cf(self.engine.family(family)?, key)
            .map_err(|error| engine_error("read", &error))?;
        Ok(value.map(Bytes::from))
    }

    fn scan(&self, family: Family, range: &KeyRange, direction: Direction) -> Rows<'_> {
        if range.is_empty() {
            return Box::new(std::iter::empty());
        }
        let handle = match self.engine.family(family) {
            Ok(handle) => handle,
            Err(error) => return Box::new(std::iter::once(Err(error))),
        };
        let mut options = ReadOptions::default();
        options.set_iterate_lower_bound(range.start.to_vec());
        if let Some(end) = &range.end {
            options.set_iterate_upper_bound(end.to_vec());
        }
        let mut rows = self.snapshot.raw_iterator_cf_opt(handle, options);
        match direction {
            Direction::Forward => rows.seek_to_first(),
            Direction::Reverse => rows.seek_to_last(),
        }
        Box::new(RocksRows { rows, direction, ended: false })
    }
}

struct RocksRows<'a> {
    rows: DBRawIteratorWithThreadMode<'a, DB>,
    direction: Direction,
    ended: bool,
}

impl Iterator for RocksRows<'_> {
    type Item = Result<Row>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        if let Some((key, value)) = self.rows.item() {
            let row = (Bytes::copy_from_slice(key), Bytes::copy_from_slice(value));
            match self.direction {
                Direction::Forward => self.rows.next(),
                Direction::Reverse => self.rows.prev(),
            }
            return Some(Ok(row));
        }
        // An iterator that met an error looks like one at its end.
        self.ended = true;
        self.rows.status().err().map(|error| Err(engine_error("scan", &error)))
    }
}

/// A newer build may have made families that hold state; opening without them would lose it unseen.
fn refuse_unknown_families(options: &Options, path: &Path) -> Result<()> {
    if !path.join("CURRENT").exists() {
        return Ok(());
    }
    let names = DB::list_cf(options, path).map_err(|error| open_error(path, &error))?;
    let known = |name: &String| {
        name == DEFAULT_FAMILY || Family::ALL.iter().any(|family| family.name() == name.as_str())
    };
    let unknown: Vec<String> = names.into_iter().filter(|name| !known(name)).collect();
    if unknown.is_empty() {
        return Ok(());
    }
    Err(Error::corrupt(format!(
        "the database in {} has column families that this build does not know ({}): start a build at least \
         as new as the one that made it",
        path.display(),
        unknown.join(", ")
    )))
}

fn open_error(path: &Path, error: &rocksdb::Error) -> Error {
    let text = error.to_string();
    if error.kind() == rocksdb::ErrorKind::IOError && text.contains("lock") {
        return Error::unavailable(format!(
            "the database in {} is in use by another process: stop the other kvorum that runs on this data \
             directory, or choose another one ({text})",
            path.display()
        ));
    }
    let mut failed = engine_error("open", error);
    failed.message = format!("{} (in {})", failed.message, path.display());
    failed
}

fn engine_error(doing: &str, error: &rocksdb::Error) -> Error {
    let kind = match error.kind() {
        rocksdb::ErrorKind::Corruption => ErrorKind::Corrupt,
        _ => ErrorKind::Unavailable,
    };
    Error::new(kind, format!("RocksDB can't {doing} the database: {error}"))
}

fn io_error(doing: &str, path: &Path, error: &std::io::Error) -> Error {
    Error::unavailable(format!("can't {doing} {}: {error}", path.display()))
}

/// Adds a family that no build knows, as a newer one would.
#[cfg(test)]
pub(crate) fn add_family(path: &Path, name: &str) {
    let names = Family::ALL.map(Family::name);
    let mut db = DB::open_cf(&Options::default(), path, names).expect("opens");
    db.create_cf(name, &Options::default()).expect("makes the family");
}
