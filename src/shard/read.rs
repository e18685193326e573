//! Reads of a shard's rows, through the locks of transactions. When a replica may answer one is decided
//! above; here, what it sees.
//!
//! A read does not write and does not wait. Where it meets a lock that may hide a value it says so; the
//! caller learns the transaction's fate (rules R3 and R4) and reads again, in one view, with what it has
//! learnt. Staged values of a committed transaction are shown as the versions they will become.
//!
//! Every read takes the counts of the replica's state, and costs nothing more than a look at versions while
//! there are no locks. Take the state first, then the view: the rows may be further on than the state, never
//! behind it. A lock that came in between has a prepare timestamp above that of any read which the state was
//! far enough on for, and hides nothing from it.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use bytes::Bytes;

use super::lock::{self, Held, Kind};
use super::{Counts, State};
use crate::engine::View;
use crate::mvcc::{self, Row, Version};
use crate::types::{Direction, Error, ErrorKind, KeyRange, Lock, Record, Result, Timestamp, TxnId, limits};

/// The most keys that one page looks at. A page that walks over removed keys, or keys written after its
/// timestamp, ends there, perhaps without a row.
pub const MAX_EXAMINED_ROWS: usize = 50_000;

/// The most transactions in the way of one page that it names.
pub const MAX_PAGE_LOCKS: usize = 256;

/// What a reader has learnt of a transaction whose lock it met.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fate {
    /// It is committed.
    Committed {
        /// The commit timestamp.
        commit_ts: Timestamp,
    },
    /// It is aborted, or not committed at or below the read's timestamp: its locks hide nothing.
    NotBelow,
}

/// What a reader knows of transactions. Of use for one timestamp.
pub type Fates = BTreeMap<TxnId, Fate>;

/// What a read of one key sees.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Look {
    /// What the key holds.
    Value(Option<Record>),
    /// A lock hides it: learn the fate of its transaction, then look again.
    Locked(Lock),
}

impl Look {
    /// What the key holds, where no lock hides it.
    ///
    /// # Errors
    ///
    /// `Conflict` where one does.
    pub fn unlocked(self) -> Result<Option<Record>> {
        match self {
            Self::Value(record) => Ok(record),
            Self::Locked(lock) => Err(locked(&lock)),
        }
    }
}

fn locked(lock: &Lock) -> Error {
    Error::new(
        ErrorKind::Conflict,
        format!("a transaction ({}) that is being committed has locked the key: retry", lock.txn),
    )
}

/// Refuses a read below the safe point, whose versions may be gone; so do all replicas, whether or not they
/// have dropped any. [`mvcc::Floors::hold`] keeps those of a read that has begun.
///
/// # Errors
///
/// `TooOld`.
pub fn check_readable(state: &State, at: Timestamp) -> Result<()> {
    if at >= state.safe_point {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::TooOld,
        format!(
            "versions as of {at} may be gone: shard {} keeps those from {} on; begin again at a newer timestamp",
            state.descriptor.id, state.safe_point
        ),
    ))
}

/// What `key` (an internal key) held at `at`; at [`Timestamp::MAX`] what it holds now. A latest read stops at
/// any write lock that `fates` does not name, a snapshot at those prepared at or before it (rule R3).
///
/// # Errors
///
/// Those of the engine; `Corrupt` where a row is malformed. So for all functions here.
pub fn look(view: &dyn View, counts: Counts, key: &[u8], at: Timestamp, fates: &Fates) -> Result<Look> {
    let row = match at {
        Timestamp::MAX => mvcc::latest(view, key)?,
        at => mvcc::at(view, key, at)?,
    };
    let held = if counts.write_locks() > 0 { lock::write_lock(view, key)? } else { None };
    Ok(match held.map_or(Met::Nothing, |held| resolve(held, at, fates)) {
        Met::Nothing => Look::Value(row.and_then(|row| row.version.record())),
        Met::Locked(lock) => Look::Locked(lock),
        Met::Staged(staged) => Look::Value(staged.over(row.as_ref())),
    })
}

/// What a lock means for a read.
enum Met {
    /// The read goes on as if it were not there.
    Nothing,
    /// Its transaction's fate is not known.
    Locked(Lock),
    /// Its transaction is committed, for this read too.
    Staged(Staged),
}

/// A value that is committed but not written yet.
struct Staged {
    txn: TxnId,
    commit_ts: Timestamp,
    value: Option<Bytes>,
}

impl Staged {
    /// What the key holds by it, over the version that it supersedes. No other write can have come between:
    /// the key is locked since.
    fn over(self, previous: Option<&Row>) -> Option<Record> {
        let value = self.value?;
        Version::put(previous, self.commit_ts, self.txn, value).record()
    }
}

/// Only write locks matter to reads, and of a snapshot only those prepared at or before it: the commit
/// timestamp is not below the prepare timestamp.
fn resolve(held: Held, at: Timestamp, fates: &Fates) -> Met {
    let fate = fates.get(&held.txn);
    match (&held.kind, fate) {
        (Kind::Read | Kind::Range { .. }, _) => Met::Nothing,
        (Kind::Write { .. }, _) if held.prepare_ts > at => Met::Nothing,
        (Kind::Write { .. }, None) => Met::Locked(held.lock()),
        (Kind::Write { .. }, Some(Fate::NotBelow)) => Met::Nothing,
        (Kind::Write { value }, Some(Fate::Committed { commit_ts })) if *commit_ts <= at => {
            Met::Staged(Staged { txn: held.txn, commit_ts: *commit_ts, value: value.clone() })
        }
        (Kind::Write { .. }, Some(Fate::Committed { .. })) => Met::Nothing,
    }
}

/// Which rows a page of a scan is to hold.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PageRequest {
    /// The internal keys.
    pub range: KeyRange,
    /// From which end.
    pub direction: Direction,
    /// Leave values out.
    pub keys_only: bool,
    /// The timestamp to read at. [`Timestamp::MAX`] reads the newest versions.
    pub at: Timestamp,
    /// The page ends after so many rows. At least 1; counts as at most [`limits::MAX_PAGE_ROWS`].
    pub max_rows: usize,
    /// The page ends after the row that takes it to so many bytes of keys and values. Counts as at most
    /// [`limits::MAX_PAGE_BYTES`].
    pub max_bytes: usize,
}

impl PageRequest {
    /// The request for what comes after a page that said `next`.
    pub fn rest(&self, next: Bytes) -> Self {
        let range = match self.direction {
            Direction::Forward => KeyRange { start: next, end: self.range.end.clone() },
            Direction::Reverse => KeyRange { start: self.range.start.clone(), end: Some(next) },
        };
        Self { range, ..self.clone() }
    }
}

/// A page of a scan.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Page {
    /// Internal keys and what they hold, in the direction of the scan. Values are empty where only keys
    /// were asked for.
    pub rows: Vec<(Bytes, Record)>,
    /// Where to go on; `None` where the range is finished. Forward it is the first key of what is left, in
    /// reverse the key before which what is left ends. Rows may be none and `next` given: see
    /// [`MAX_EXAMINED_ROWS`].
    pub next: Option<Bytes>,
}

/// What a scan of a page sees.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum PageLook {
    /// The page.
    Page(Page),
    /// Locks hide some of it: one of each transaction met, at most [`MAX_PAGE_LOCKS`]. Learn their fates, then
    /// read the page again.
    Locked(Vec<Lock>),
}

impl PageLook {
    /// The page, where no lock hides any of it.
    ///
    /// # Errors
    ///
    /// `Conflict` where one does.
    pub fn unlocked(self) -> Result<Page> {
        match self {
            Self::Page(page) => Ok(page),
            Self::Locked(locks) => Err(locks.first().map_or_else(
                || Error::corrupt("a page is said to be locked, but by nobody: report this"),
                locked,
            )),
        }
    }
}

/// Reads a page, with locks as in [`look`]. Holds a page's rows and no more, however long the range is.
///
/// # Errors
///
/// `Invalid` where no row is asked for, else see [`look`].
pub fn scan_page(view: &dyn View, counts: Counts, request: &PageRequest, fates: &Fates) -> Result<PageLook> {
    scan_page_examining(view, counts, request, fates, MAX_EXAMINED_ROWS)
}

pub(super) fn scan_page_examining(
    view: &dyn View,
    counts: Counts,
    request: &PageRequest,
    fates: &Fates,
    most: usize,
) -> Result<PageLook> {
    if request.max_rows == 0 {
        return Err(Error::invalid("a page of 0 rows was asked for: ask for at least 1"));
    }
    let max_rows = request.max_rows.min(limits::MAX_PAGE_ROWS);
    let max_bytes = request.max_bytes.min(limits::MAX_PAGE_BYTES);
    let mut page = Page::default();
    let mut locks: Vec<Lock> = Vec::new();
    let (mut rows, mut bytes, mut examined) = (0, 0, 0);
    let mut last = None;
    for found in examine(view, counts, request, fates) {
        let (key, seen) = found?;
        let full = rows > 0 && (rows >= max_rows || bytes >= max_bytes);
        if full || examined >= most || locks.len() >= MAX_PAGE_LOCKS {
            // `key` is the first key that is left; in reverse, what is left ends before the one before it.
            page.next = match request.direction {
                Direction::Forward => Some(key),
                Direction::Reverse => last,
            };
            break;
        }
        examined += 1;
        match seen {
            Look::Value(Some(mut record)) => {
                if request.keys_only {
                    record.value = Bytes::new();
                }
                rows += 1;
                bytes += key.len() + record.value.len();
                // Once a lock is met the page is read again: its rows are only counted.
                if locks.is_empty() {
                    page.rows.push((key.clone(), record));
                }
            }
            Look::Value(None) => {}
            Look::Locked(lock) => {
                // It may become a row.
                rows += 1;
                bytes += key.len();
                if locks.iter().all(|known| known.txn != lock.txn) {
                    locks.push(lock);
                }
            }
        }
        last = Some(key);
    }
    Ok(if locks.is_empty() { PageLook::Page(page) } else { PageLook::Locked(locks) })
}

/// The keys of a page's range that have versions or are to get one, with what is seen of each.
fn examine<'v>(
    view: &'v dyn View,
    counts: Counts,
    request: &PageRequest,
    fates: &'v Fates,
) -> Box<dyn Iterator<Item = Result<(Bytes, Look)>> + 'v> {
    let (at, direction) = (request.at, request.direction);
    let versions = mvcc::scan(view, &request.range, direction, at)
        .map(|found| found.map(|found| (found.key, found.row)));
    if counts.write_locks() == 0 || request.range.is_empty() {
        let look = |row: Option<Row>| Look::Value(row.and_then(|row| row.version.record()));
        return Box::new(versions.map(move |found| found.map(|(key, row)| (key, look(row)))));
    }
    let locks = lock::scan(view, &request.range, direction).filter_map(move |held| match held {
        Ok(held) => {
            let key = held.key.clone();
            match resolve(held, at, fates) {
                Met::Nothing => None,
                met => Some(Ok((key, met))),
            }
        }
        Err(error) => Some(Err(error)),
    });
    Box::new(Merge { versions: versions.peekable(), locks: locks.peekable(), direction })
}

/// Versions and locks of a range in one order. A key may have either or both; at most one write lock.
struct Merge<V: Iterator, L: Iterator> {
    versions: std::iter::Peekable<V>,
    locks: std::iter::Peekable<L>,
    direction: Direction,
}

impl<V, L> Iterator for Merge<V, L>
where
    V: Iterator<Item = Result<(Bytes, Option<Row>)>>,
    L: Iterator<Item = Result<(Bytes, Met)>>,
{
    type Item = Result<(Bytes, Look)>;

    fn next(&mut self) -> Option<Self::Item> {
        let order = match (self.versions.peek(), self.locks.peek()) {
            (None, None) => return None,
            (Some(_), None) | (Some(Err(_)), _) => Ordering::Less,
            (None, Some(_)) | (_, Some(Err(_))) => Ordering::Greater,
            (Some(Ok((version, _))), Some(Ok((lock, _)))) => match self.direction {
                Direction::Forward => version.cmp(lock),
                Direction::Reverse => lock.cmp(version),
            },
        };
        let version = if order.is_le() { self.versions.next() } else { None };
        let lock = if order.is_ge() { self.locks.next() } else { None };
        combine(version, lock).transpose()
    }
}

/// What is seen of one key, of which a version, a lock or both were met.
fn combine(
    version: Option<Result<(Bytes, Option<Row>)>>,
    lock: Option<Result<(Bytes, Met)>>,
) -> Result<Option<(Bytes, Look)>> {
    let (version, lock) = (version.transpose()?, lock.transpose()?);
    let (locked_key, met) = lock.map_or((None, Met::Nothing), |(key, met)| (Some(key), met));
    let (key, row) = version.map_or((locked_key, None), |(key, row)| (Some(key), row));
    Ok(key.map(|key| {
        let seen = match met {
            Met::Nothing => Look::Value(row.and_then(|row| row.version.record())),
            Met::Locked(lock) => Look::Locked(lock),
            Met::Staged(staged) => Look::Value(staged.over(row.as_ref())),
        };
        (key, seen)
    }))
}
