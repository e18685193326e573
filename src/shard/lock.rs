//! Locks of transactions: the rows, and what they exclude.
//!
//! A prepared transaction holds a lock on every key it read or writes and on every range it read, from its
//! prepare to its finish. A write lock stages the value; a key that was read and is written has a write
//! lock only. Reads share; everything else excludes:
//!
//! | held by another transaction | a key is read | a key is written | a range is read |
//! | --- | --- | --- | --- |
//! | read lock of a key | | excluded | |
//! | write lock of a key | excluded | excluded | excluded where the key lies in the range |
//! | lock of a range | | excluded where the key lies in the range | |
//!
//! Rows of the family `lock`: the ordered key, or of a range its start, and a byte for the kind. So locks sort
//! like the keys they protect. A key has one write lock at most, whose row stands for all its holders one after
//! the other: looking for it is one get, however often the key was locked before. Rows of read locks and of
//! ranges end in the holder's id, and of ranges in their end.

use bytes::{BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};

use super::Counts;
use super::apply::{Context, Work};
use crate::bugs::{self, Bug};
use crate::codec::{self, ordered};
use crate::engine::{Family, View};
use crate::mvcc;
use crate::types::{Direction, Error, KeyRange, Lock, Result, Timestamp, TxnId, key_after};

const WRITE_LOCK: u8 = 1;
const READ_LOCK: u8 = 2;
const RANGE_LOCK: u8 = 3;
/// Stands in front of the end of a locked range, or alone where the range has none.
const BOUNDED: u8 = 1;
const UNBOUNDED: u8 = 0;

/// What a lock protects.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    /// A key that was read.
    Read,
    /// A key that is written.
    Write {
        /// The value; `None` removes the key.
        value: Option<Bytes>,
    },
    /// A range that was read, from the lock's key on.
    Range {
        /// The first key past it; `None` where it is unbounded.
        end: Option<Bytes>,
    },
}

/// A lock as it is stored.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Held {
    /// The locked key, or where the locked range begins.
    pub key: Bytes,
    /// Who holds it.
    pub txn: TxnId,
    /// Where the holder's record is.
    pub primary: Bytes,
    /// When it was locked.
    pub prepare_ts: Timestamp,
    /// What it protects.
    pub kind: Kind,
    /// Of the first key lock of a part, where no range begins before it: the rows of all others that were taken
    /// with it, so that a finish need not search for them.
    pub others: Option<Vec<Bytes>>,
}

impl Held {
    /// The lock as others need to know it.
    pub(super) fn lock(&self) -> Lock {
        Lock {
            key: self.key.clone(),
            txn: self.txn,
            primary: self.primary.clone(),
            prepare_ts: self.prepare_ts,
        }
    }

    pub(super) fn writes(&self) -> bool {
        matches!(self.kind, Kind::Write { .. })
    }

    /// Counts the lock.
    fn count(&self, counts: &mut Counts, change: impl Fn(&mut u64)) {
        change(&mut counts.locks);
        match self.kind {
            Kind::Write { .. } => {}
            Kind::Read => change(&mut counts.read_locks),
            Kind::Range { .. } => change(&mut counts.range_locks),
        }
    }
}

/// The value of a lock's row.
#[derive(Serialize, Deserialize)]
struct Body {
    txn: TxnId,
    primary: Bytes,
    prepare_ts: Timestamp,
    /// Of a write lock what will be written: a value, or with `None` a removal.
    writes: Option<Bytes>,
    others: Option<Vec<Bytes>>,
}

fn row_of_kind(key: &[u8], kind: u8) -> BytesMut {
    let mut row = BytesMut::with_capacity(key.len() + 2 + 1 + 8 + 16);
    ordered::put_bytes(&mut row, key);
    row.put_u8(kind);
    row
}

fn put_id(row: &mut BytesMut, id: TxnId) {
    row.put_u64(id.seen.0);
    row.put_u128(id.unique);
}

fn write_row(key: &[u8]) -> Bytes {
    row_of_kind(key, WRITE_LOCK).freeze()
}

fn read_row(key: &[u8], id: TxnId) -> Bytes {
    let mut row = row_of_kind(key, READ_LOCK);
    put_id(&mut row, id);
    row.freeze()
}

fn range_row(start: &[u8], end: Option<&Bytes>, id: TxnId) -> Bytes {
    let mut row = row_of_kind(start, RANGE_LOCK);
    put_id(&mut row, id);
    match end {
        Some(end) => {
            row.put_u8(BOUNDED);
            row.put_slice(end);
        }
        None => row.put_u8(UNBOUNDED),
    }
    row.freeze()
}

fn row_of(held: &Held) -> Bytes {
    match &held.kind {
        Kind::Write { .. } => write_row(&held.key),
        Kind::Read => read_row(&held.key, held.txn),
        Kind::Range { end } => range_row(&held.key, end.as_ref(), held.txn),
    }
}

fn decode(row: &Bytes, value: &[u8]) -> Result<Held> {
    let Body { txn, primary, prepare_ts, writes, others } = codec::decode(value, "a lock")?;
    let malformed = || Error::corrupt(format!("the row {} is not that of a lock", hex::encode(row)));
    let mut input = &row[..];
    let key = ordered::take_bytes(&mut input).ok_or_else(malformed)?;
    let (&kind, rest) = input.split_first().ok_or_else(malformed)?;
    input = rest;
    let kind = if kind == WRITE_LOCK {
        Kind::Write { value: writes }
    } else {
        let seen = ordered::take_u64(&mut input).map(Timestamp).ok_or_else(malformed)?;
        let unique = ordered::take_u128(&mut input).ok_or_else(malformed)?;
        if (TxnId { seen, unique }) != txn {
            return Err(malformed());
        }
        match (kind, input) {
            (READ_LOCK, []) => Kind::Read,
            (RANGE_LOCK, [UNBOUNDED]) => Kind::Range { end: None },
            (RANGE_LOCK, [BOUNDED, end @ ..]) => Kind::Range { end: Some(Bytes::copy_from_slice(end)) },
            _ => return Err(malformed()),
        }
    };
    Ok(Held { key, txn, primary, prepare_ts, kind, others })
}

/// The locks whose key, or whose range's start, lies in `range`, in key order or against it.
pub(super) fn scan<'v>(
    view: &'v dyn View,
    range: &KeyRange,
    direction: Direction,
) -> impl Iterator<Item = Result<Held>> + use<'v> {
    rows(view, &mvcc::family_range(Family::Lock, range), direction)
}

fn rows<'v>(
    view: &'v dyn View,
    rows: &KeyRange,
    direction: Direction,
) -> impl Iterator<Item = Result<Held>> + use<'v> {
    view.scan(Family::Lock, rows, direction).map(|row| row.and_then(|(row, value)| decode(&row, &value)))
}

fn get(view: &dyn View, row: &Bytes) -> Result<Option<Held>> {
    view.get(Family::Lock, row)?.map(|value| decode(row, &value)).transpose()
}

/// The write lock of a key.
pub(super) fn write_lock(view: &dyn View, key: &[u8]) -> Result<Option<Held>> {
    get(view, &write_row(key))
}

/// When the oldest write lock of the keys in a range was taken, where there is one. Values are not read: they may be
/// large.
pub(super) fn oldest_write(view: &dyn View, counts: Counts, range: &KeyRange) -> Result<Option<Timestamp>> {
    if counts.write_locks() == 0 {
        return Ok(None);
    }
    let mut oldest = None;
    for row in view.scan(Family::Lock, &mvcc::family_range(Family::Lock, range), Direction::Forward) {
        let (row, value) = row?;
        let mut input = &row[..];
        if ordered::take_bytes(&mut input).is_none() || input.first() != Some(&WRITE_LOCK) {
            continue;
        }
        let ((_, _, prepare_ts), _): ((TxnId, Bytes, Timestamp), usize) =
            codec::decode_prefix(&value, "a lock")?;
        if oldest.is_none_or(|oldest| prepare_ts < oldest) {
            oldest = Some(prepare_ts);
        }
    }
    Ok(oldest)
}

/// The locks of ranges that begin at `start`.
pub(super) fn of_ranges_from<'v>(
    view: &'v dyn View,
    start: &[u8],
) -> impl Iterator<Item = Result<Held>> + use<'v> {
    let mut prefix = BytesMut::with_capacity(start.len() + 3);
    ordered::put_bytes(&mut prefix, start);
    prefix.put_u8(RANGE_LOCK);
    rows(view, &KeyRange::prefix(prefix.freeze()), Direction::Forward)
}

/// The lock that `id` holds on a key.
pub(super) fn own(view: &dyn View, key: &[u8], id: TxnId) -> Result<Option<Held>> {
    match write_lock(view, key)? {
        Some(held) if held.txn == id => Ok(Some(held)),
        _ => get(view, &read_row(key, id)),
    }
}

/// The lock that `id` holds on exactly this range.
pub(super) fn own_range(view: &dyn View, range: &KeyRange, id: TxnId) -> Result<Option<Held>> {
    get(view, &range_row(&range.start, range.end.as_ref(), id))
}

/// The locks that `id` holds in a span, in key order. Found without a search where the span begins at the
/// first key of a part: other transactions' locks may be many, and the remains of past ones more.
pub(super) fn own_in(view: &dyn View, span: &KeyRange, id: TxnId) -> Result<Vec<Held>> {
    let mut held = Vec::new();
    let first = own(view, &span.start, id)?;
    if let Some(others) = first.as_ref().and_then(|first| first.others.clone()) {
        held.extend(first);
        for row in &others {
            held.extend(get(view, row)?.filter(|other| other.txn == id && span.contains(&other.key)));
        }
        return Ok(held);
    }
    for other in scan(view, span, Direction::Forward) {
        let other = other?;
        if other.txn == id {
            held.push(other);
        }
    }
    Ok(held)
}

/// What a command does to what others may have locked.
#[derive(Clone, Copy)]
pub(super) enum Access<'k> {
    /// Read a key.
    Read(&'k [u8]),
    /// Write a key, or look whether to write it.
    Write(&'k [u8]),
    /// Read a range.
    Range(&'k KeyRange),
}

/// A lock that excludes the access: another transaction's, and of whatever is no prepare also its own id's, which
/// somebody has used twice. Costs nothing while the shard has no locks that could.
pub(super) fn excluding(view: &dyn View, context: Context<'_>, access: Access<'_>) -> Result<Option<Lock>> {
    let counts = context.counts;
    let found = match access {
        Access::Read(key) => written(view, context, key)?,
        Access::Range(range) if counts.write_locks() > 0 => {
            foreign(scan(view, range, Direction::Forward), context, Held::writes)?
        }
        Access::Range(_) => None,
        Access::Write(key) => {
            let mut found = written(view, context, key)?;
            if found.is_none() && counts.read_locks > 0 && !bugs::on(Bug::ReadLocksIgnored) {
                let readers = KeyRange::prefix(row_of_kind(key, READ_LOCK).freeze());
                found = foreign(rows(view, &readers, Direction::Forward), context, |_| true)?;
            }
            if found.is_none() && counts.range_locks > 0 && !bugs::on(Bug::RangeLocksIgnored) {
                // Any lock of a range that begins before the key may reach it. There are few at a time.
                let before = KeyRange { start: context.range.start.clone(), end: Some(key_after(key)) };
                found = foreign(scan(view, &before, Direction::Forward), context, |held| match &held.kind {
                    Kind::Range { end } => end.as_ref().is_none_or(|end| key < end),
                    _ => false,
                })?;
            }
            found
        }
    };
    Ok(found.map(|held| held.lock()))
}

/// Another transaction's write lock of a key.
fn written(view: &dyn View, context: Context<'_>, key: &[u8]) -> Result<Option<Held>> {
    if context.counts.write_locks() == 0 {
        return Ok(None);
    }
    Ok(write_lock(view, key)?.filter(|held| context.passes != Some(held.txn)))
}

fn foreign(
    locks: impl Iterator<Item = Result<Held>>,
    context: Context<'_>,
    excludes: impl Fn(&Held) -> bool,
) -> Result<Option<Held>> {
    for held in locks {
        let held = held?;
        if context.passes != Some(held.txn) && excludes(&held) {
            return Ok(Some(held));
        }
    }
    Ok(None)
}

/// Takes the locks of a part, all of one transaction. Over its own earlier lock one counts once.
pub(super) fn put_all(work: &mut Work<'_, '_>, mut part: Vec<Held>) -> Result<()> {
    part.sort_by_cached_key(row_of);
    let others = part.iter().skip(1).map(row_of).collect();
    if let Some(first) = part.first_mut().filter(|first| !matches!(first.kind, Kind::Range { .. })) {
        first.others = Some(others);
    }
    for held in part {
        if bugs::on(Bug::OneLockPerKey) {
            let readers = KeyRange::prefix(row_of_kind(&held.key, READ_LOCK).freeze());
            let others = rows(&*work.overlay, &readers, Direction::Forward).collect::<Result<Vec<_>>>()?;
            others.iter().filter(|other| other.txn != held.txn).for_each(|other| remove(work, other));
        }
        let row = row_of(&held);
        if work.overlay.get(Family::Lock, &row)?.is_none() {
            held.count(work.counts, |count| *count += 1);
        }
        let Held { txn, primary, prepare_ts, kind, others, .. } = held;
        let writes = match kind {
            Kind::Read | Kind::Range { .. } => None,
            Kind::Write { value } => value,
        };
        let body = Body { txn, primary, prepare_ts, writes, others };
        work.overlay.put(Family::Lock, row, codec::encode(&body));
    }
    Ok(())
}

/// Unlocks; `held` must be stored.
pub(super) fn remove(work: &mut Work<'_, '_>, held: &Held) {
    held.count(work.counts, |count| *count = count.saturating_sub(1));
    work.overlay.delete(Family::Lock, row_of(held));
}
