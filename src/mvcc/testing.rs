//! For tests of machines: two engines side by side, and how bytes and rows are written in scripts.

use std::error::Error;
use std::fmt::{Debug, Write as _};
use std::path::Path;
use std::str::FromStr;

use bytes::Bytes;
use goldenscript::{ArgumentConsumer, Runner};

use super::Row;
use crate::changelog::record;
use crate::engine::{
    Batch, BatchEntry, Durability, Engine, Family, MemoryEngine, RocksEngine, RocksOptions, View,
};
use crate::types::{Direction, KeyRange, RequestId, Timestamp};

pub(crate) type ScriptResult<T> = Result<T, Box<dyn Error>>;

/// The engine in memory and one on RocksDB, which must never differ.
pub(crate) struct Engines {
    memory: MemoryEngine,
    rocks: RocksEngine,
    _dir: tempfile::TempDir,
}

impl Engines {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let rocks = RocksEngine::open(&dir.path().join("db"), &RocksOptions::default()).expect("opens");
        Self { memory: MemoryEngine::new(), rocks, _dir: dir }
    }

    /// Runs the same on both and gives what both gave.
    pub(crate) fn on_both<T: PartialEq + Debug>(&self, run: impl Fn(&dyn Engine) -> T) -> T {
        let (memory, rocks) = (run(&self.memory), run(&self.rocks));
        assert_eq!(memory, rocks, "the engines differ");
        memory
    }

    /// Writes the same to both.
    pub(crate) fn write(&self, batch: &Batch) {
        self.on_both(|engine| engine.write(batch.clone(), Durability::Buffered)).expect("writes");
    }
}

/// Runs every script of a directory, each with a runner of its own.
pub(crate) fn run_scripts<R: Runner>(dir: &str, runner: impl Fn() -> R) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join(dir);
    let mut paths: Vec<_> = std::fs::read_dir(&dir)
        .expect("the directory of scripts")
        .map(|entry| entry.expect("an entry").path())
        .collect();
    paths.sort();
    assert!(!paths.is_empty(), "no scripts in {}", dir.display());
    for path in paths {
        goldenscript::run(&mut runner(), &path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }
}

/// The bytes a script means: each character is one byte, so `\x00` to `\xff` write any.
pub(crate) fn bytes(text: &str) -> Bytes {
    text.chars().map(|c| u8::try_from(u32::from(c)).expect("a character below 0x100")).collect()
}

/// Bytes as output shows them.
pub(crate) fn show(bytes: &[u8]) -> String {
    format!("\"{}\"", bytes.escape_ascii())
}

/// A timestamp: a number, or one with `ms` behind it.
pub(crate) fn timestamp(text: &str) -> ScriptResult<Timestamp> {
    Ok(match text.strip_suffix("ms") {
        Some(ms) => Timestamp::from_ms(ms.parse()?),
        None => Timestamp(text.parse()?),
    })
}

/// An id: `SEEN.UNIQUE`.
pub(crate) fn request_id(text: &str) -> ScriptResult<RequestId> {
    let (seen, unique) = text.split_once('.').ok_or("an id is SEEN.UNIQUE")?;
    Ok(RequestId { seen: timestamp(seen)?, unique: unique.parse()? })
}

/// An argument that may be left out.
pub(crate) fn optional<T: FromStr>(args: &mut ArgumentConsumer<'_>, name: &str) -> ScriptResult<Option<T>>
where
    T::Err: Error + 'static,
{
    Ok(args.take_key(name).map(str::parse).transpose()?)
}

/// A timestamp that may be left out.
pub(crate) fn optional_ts(args: &mut ArgumentConsumer<'_>, name: &str) -> ScriptResult<Option<Timestamp>> {
    args.take_key(name).map(timestamp).transpose()
}

/// A range out of the next two arguments, where there are any.
pub(crate) fn key_range(args: &mut ArgumentConsumer<'_>) -> KeyRange {
    let start = args.next_pos().map(bytes).unwrap_or_default();
    KeyRange { start, end: args.next_pos().map(bytes) }
}

pub(crate) fn direction(args: &mut ArgumentConsumer<'_>) -> ScriptResult<Direction> {
    Ok(match optional(args, "reverse")?.unwrap_or(false) {
        true => Direction::Reverse,
        false => Direction::Forward,
    })
}

/// A version with all that is stored of it.
pub(crate) fn show_row(row: &Row) -> String {
    let version = &row.version;
    match &version.value {
        Some(value) => format!(
            "{} @{} created {} v{} by {}.{}",
            show(value),
            version.commit_ts,
            version.create_ts,
            version.number,
            version.id.seen,
            version.id.unique
        ),
        None => format!("removed @{} by {}.{}", version.commit_ts, version.id.seen, version.id.unique),
    }
}

/// A stored row, read where its family is one of versions.
fn show_stored(family: Family, value: &Bytes) -> String {
    match family {
        Family::Current | Family::History => show_row(&Row::decode(value.clone()).expect("a version")),
        _ => show(value),
    }
}

/// The writes of a batch, a line each.
pub(crate) fn show_batch(entries: &[BatchEntry]) -> String {
    let mut out = String::new();
    for entry in entries {
        let line = match entry {
            BatchEntry::Put(Family::Changelog, key, value) => {
                let (commit_ts, changed) = record::parse_key(key).expect("a row of the changelog");
                let totals = record::parse_value(value).expect("a row of the changelog");
                format!("log {} @{commit_ts} row {}", show(&changed), totals.entries)
            }
            BatchEntry::Put(family, key, value) => {
                format!("write {} {} = {}", family.name(), show(key), show_stored(*family, value))
            }
            BatchEntry::Delete(family, key) => format!("erase {} {}", family.name(), show(key)),
            BatchEntry::DeleteRange(family, range) => format!("erase {} {range:?}", family.name()),
        };
        writeln!(out, "{line}").expect("writes to a string");
    }
    out
}

/// Every row of the shard's data but the changelog, which repeats what the others say.
pub(crate) fn dump(view: &dyn View) -> String {
    let mut out = String::new();
    for family in Family::SHARD_DATA.into_iter().filter(|family| *family != Family::Changelog) {
        for row in view.scan(family, &KeyRange::all(), Direction::Forward) {
            let (key, value) = row.expect("a row");
            writeln!(out, "{} {} = {}", family.name(), show(&key), show_stored(family, &value))
                .expect("writes to a string");
        }
    }
    out
}
