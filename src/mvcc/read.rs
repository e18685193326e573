//! Reading versions: one key or a range, the newest or at a timestamp.

use bytes::Bytes;

use super::family::{history_key, superseded_after};
use super::{Row, family_range, gc};
use crate::bugs::{self, Bug};
use crate::engine::{Family, Rows, View};
use crate::types::{Direction, KeyRange, RequestId, Result, Timestamp};

/// The row of `key` in `current`: its newest version, which may be a tombstone. `None` where the key was
/// never written, or removed at or before the safe point, so that its tombstone may be gone.
///
/// # Errors
///
/// Those of the engine; `Corrupt` where the row is malformed. So for all functions here.
pub fn current(view: &dyn View, key: &[u8], safe_point: Timestamp) -> Result<Option<Row>> {
    let found = gc::unless_dropped(view.get(Family::Current, key)?, safe_point)?;
    found.map(Row::decode).transpose()
}

/// The newest version of `key`, where it holds something.
pub fn latest(view: &dyn View, key: &[u8]) -> Result<Option<Row>> {
    Ok(current(view, key, Timestamp::ZERO)?.filter(|row| row.version.value.is_some()))
}

/// The version of `key` that a snapshot at `ts` shows, where it shows one. What it shows does not depend on
/// what was dropped, as long as `ts` is not below the safe point.
pub fn at(view: &dyn View, key: &[u8], ts: Timestamp) -> Result<Option<Row>> {
    match current(view, key, Timestamp::ZERO)? {
        Some(newest) => visible(view, key, newest, ts),
        None => Ok(None),
    }
}

/// The version of `key` that a snapshot at `ts` shows, its newest version being known.
fn visible(view: &dyn View, key: &[u8], newest: Row, ts: Timestamp) -> Result<Option<Row>> {
    Ok(newest_at(view, key, newest, ts)?.filter(|row| row.version.value.is_some()))
}

/// The newest version of `key` that was committed at or before `ts`, a tombstone too, the newest of all being known.
fn newest_at(view: &dyn View, key: &[u8], newest: Row, ts: Timestamp) -> Result<Option<Row>> {
    if newest.version.commit_ts <= ts {
        return Ok(Some(newest));
    }
    let mut later = view.scan(Family::History, &superseded_after(key, ts), Direction::Forward);
    match later.next() {
        Some(row) => Ok(Some(Row::decode(row?.1)?).filter(|row| row.version.commit_ts <= ts)),
        None => Ok(None),
    }
}

/// The version of `key` that was committed at `commit_ts`, a tombstone too. Of one that was superseded: as long as that
/// was after the safe point.
pub fn committed_at(view: &dyn View, key: &[u8], commit_ts: Timestamp) -> Result<Option<Row>> {
    let Some(newest) = current(view, key, Timestamp::ZERO)? else { return Ok(None) };
    Ok(newest_at(view, key, newest, commit_ts)?.filter(|row| row.version.commit_ts == commit_ts))
}

/// The version of `key` that was superseded at `ts`, a tombstone too; `None` where there was none, or it was a tombstone
/// that may be gone. Right for a `ts` above the safe point.
pub fn superseded_at(view: &dyn View, key: &[u8], ts: Timestamp) -> Result<Option<Row>> {
    view.get(Family::History, &history_key(key, ts))?.map(Row::decode).transpose()
}

/// The version of `key` that the request `id` wrote, if it wrote one (rule R8), the newest being known.
///
/// Every effect of a request has a commit timestamp above `id.seen`. So a key whose newest version is not
/// above it costs nothing further; else its history is walked from the newest down to `id.seen`, a step
/// for each write of this key since the caller last heard of the store. Versions superseded at or before the
/// safe point may be gone, and are not found.
pub fn written_by(
    view: &dyn View,
    key: &[u8],
    newest: Option<&Row>,
    id: RequestId,
    safe_point: Timestamp,
) -> Result<Option<Row>> {
    let Some(newest) = newest else { return Ok(None) };
    if newest.version.commit_ts <= id.seen || bugs::on(Bug::RetryAppliedTwice) {
        return Ok(None);
    }
    if newest.version.id == id {
        return Ok(Some(newest.clone()));
    }
    let later = superseded_after(key, id.seen.max(safe_point));
    for row in view.scan(Family::History, &later, Direction::Reverse) {
        let row = Row::decode(row?.1)?;
        if row.version.commit_ts <= id.seen {
            return Ok(None);
        }
        if row.version.id == id {
            return Ok(Some(row));
        }
    }
    Ok(None)
}

/// A key of a range with a version committed after `ts`, removals included, and when that was; the first
/// there is. Right for a `ts` not below the safe point.
pub fn newer_in(view: &dyn View, range: &KeyRange, ts: Timestamp) -> Result<Option<(Bytes, Timestamp)>> {
    if range.is_empty() {
        return Ok(None);
    }
    for row in view.scan(Family::Current, &family_range(Family::Current, range), Direction::Forward) {
        let (key, raw) = row?;
        let commit_ts = Row::decode(raw)?.version.commit_ts;
        if commit_ts > ts {
            return Ok(Some((key, commit_ts)));
        }
    }
    Ok(None)
}

/// One key that a scan looked at.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Examined {
    /// The key.
    pub key: Bytes,
    /// What the snapshot shows of it; `None` where it shows nothing, so that a caller can count how much
    /// was walked over.
    pub row: Option<Row>,
}

/// The keys of a range in either direction, with what a snapshot at `ts` shows of each; at
/// [`Timestamp::MAX`] that is the newest version. Lazy: holds one row.
///
/// Driven by `current`, which has a row for every key that a snapshot could show. A row that is newer than
/// the snapshot costs one look into the history. What is shown does not depend on what was dropped, as long as
/// `ts` is not below the safe point; how many removed keys are walked over does.
pub fn scan<'v>(
    view: &'v dyn View,
    range: &KeyRange,
    direction: Direction,
    ts: Timestamp,
) -> impl Iterator<Item = Result<Examined>> + 'v {
    let rows: Rows<'v> = if range.is_empty() {
        Box::new(std::iter::empty())
    } else {
        view.scan(Family::Current, &family_range(Family::Current, range), direction)
    };
    rows.map(move |row| {
        let (key, raw) = row?;
        let row = visible(view, &key, Row::decode(raw)?, ts)?;
        Ok(Examined { key, row })
    })
}
