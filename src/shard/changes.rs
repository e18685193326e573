//! The changelog of a shard: a row for every change, written with it, and reading what was changed.
//!
//! A page answers with all changes committed in a stretch of time, whole transactions at a time. It reaches no further
//! than the *resolved* timestamp: below every prepared lock of the keys asked for, since what a lock stages may be
//! committed at any timestamp from its own on (resolved is the closed timestamp, or what is just before the oldest lock).

use bytes::Bytes;

use super::{Counts, State, lock};
use crate::bugs::{self, Bug};
use crate::changelog::record::{self, Totals};
use crate::codec::keyspace;
use crate::engine::{BatchEntry, Family, Overlay, View};
use crate::mvcc;
use crate::types::{Before, Change, Changes, Direction, Error, KeyRange, Result, ShardId, Timestamp};

/// Writes a row for every version that the last entry wrote: those in the overlay's batch from `first` on. Nobody follows
/// indexes, which are read models, and the rows of sagas: what is written there leaves no row.
///
/// # Errors
///
/// `Corrupt` where a version in the batch is malformed.
pub(super) fn record(state: &mut State, overlay: &mut Overlay<'_>, first: usize) -> Result<()> {
    let shard = state.descriptor.id;
    let written = overlay.batch().entries().len();
    for place in first..written {
        let row = match &overlay.batch().entries()[place] {
            BatchEntry::Put(Family::Current, key, version) if is_followed(key) => {
                state.changes.entries += 1;
                state.changes.size_bytes += (key.len() + version.len()) as u64;
                record::key(shard, mvcc::commit_ts(version)?, key)
            }
            _ => continue,
        };
        overlay.put(Family::Changelog, row, record::value(state.changes));
    }
    Ok(())
}

fn is_followed(key: &[u8]) -> bool {
    !matches!(key.first(), Some(&keyspace::INDEX | &keyspace::SAGA))
}

/// What to read of a shard's changelog.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ChangesRequest {
    /// The keys, with their keyspace byte; they lie in the shard.
    pub range: KeyRange,
    /// What was committed at or before it is known.
    pub after: Timestamp,
    /// How far to read at most: everything up to there is applied.
    pub up_to: Timestamp,
    /// Whether to tell what the keys held before.
    pub before_images: bool,
    /// The page ends after the transaction that takes it past so many bytes of keys and values, those from before too.
    pub max_bytes: usize,
    /// The page ends after the transaction that takes it past so many rows, of other keys too.
    pub max_rows: usize,
    /// Values from before are left out of a transaction once they come to more than this.
    pub max_before_bytes: usize,
}

/// The changes of a stretch of time.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ChangesPage {
    /// Transactions in the order of their commit timestamps, with what they changed of the keys asked for.
    pub transactions: Vec<Changes>,
    /// The stretch reaches from the request's `after` to here: nothing else was, or will be, committed in between.
    pub through: Timestamp,
}

/// Reads a page. `counts` are those of the state that was read before the view was taken.
///
/// # Errors
///
/// Those of the engine; `Corrupt` where rows are not what they must be.
pub fn changes_page(
    view: &dyn View,
    shard: ShardId,
    counts: Counts,
    request: &ChangesRequest,
) -> Result<ChangesPage> {
    let mut through = request.up_to;
    let oldest = lock::oldest_write(view, counts, &request.range)?;
    if let Some(oldest) = oldest.filter(|_| !bugs::on(Bug::ChangesPastLocks)) {
        through = through.min(oldest.before());
    }
    // A reader that begins at a snapshot may be further than a lock that was undecided then: what that commits comes
    // after the snapshot.
    let mut page = ChangesPage { transactions: Vec::new(), through: through.max(request.after) };
    let (mut rows, mut size_bytes) = (0, 0);
    let mut whole = 0;
    let mut last = request.after;
    for row in
        view.scan(Family::Changelog, &record::between(shard, request.after, page.through), Direction::Forward)
    {
        let (commit_ts, key) = record::parse_key(&row?.0)?;
        if commit_ts != last {
            size_bytes += complete(view, request, &mut page.transactions[whole..])?;
            whole = page.transactions.len();
            if rows >= request.max_rows || size_bytes >= request.max_bytes {
                page.through = last;
                return Ok(page);
            }
        }
        rows += 1;
        last = commit_ts;
        if !request.range.contains(&key) {
            continue;
        }
        let change = read_change(view, key, commit_ts)?;
        size_bytes += change.key.len() + change.value.as_ref().map_or(0, Bytes::len);
        match page.transactions.last_mut() {
            Some(transaction) if transaction.commit_ts == commit_ts => transaction.changes.push(change),
            _ => page.transactions.push(Changes { commit_ts, changes: vec![change] }),
        }
    }
    complete(view, request, &mut page.transactions[whole..])?;
    Ok(page)
}

/// Adds what is told besides to transactions that are whole. Answers how many bytes that is.
fn complete(view: &dyn View, request: &ChangesRequest, transactions: &mut [Changes]) -> Result<usize> {
    if !request.before_images {
        return Ok(0);
    }
    let mut size_bytes = 0;
    for transaction in transactions {
        size_bytes += add_before(view, transaction, request.max_before_bytes)?;
    }
    Ok(size_bytes)
}

fn read_change(view: &dyn View, key: Bytes, commit_ts: Timestamp) -> Result<Change> {
    let Some(row) = mvcc::committed_at(view, &key, commit_ts)? else {
        return Err(Error::corrupt(format!(
            "the changelog says that the key {} was changed at {commit_ts}, but no such version is there: rebuild this \
             replica",
            hex::encode(&key)
        )));
    };
    let version = row.version;
    let (value, create_ts, version) = (version.value, version.create_ts, version.number);
    Ok(Change { key, value, create_ts, version, before: Before::Unasked })
}

/// Adds what the keys held before, as long as that does not come to more than `max_bytes`. Answers to how many it comes.
fn add_before(view: &dyn View, transaction: &mut Changes, max_bytes: usize) -> Result<usize> {
    let mut size_bytes = 0;
    for change in &mut transaction.changes {
        let superseded = mvcc::superseded_at(view, &change.key, transaction.commit_ts)?;
        change.before = match superseded.and_then(|row| row.version.value) {
            None => Before::Absent,
            Some(value) if size_bytes + value.len() > max_bytes => Before::TooLarge,
            Some(value) => {
                size_bytes += value.len();
                Before::Value(value)
            }
        };
    }
    Ok(size_bytes)
}

/// How many changes of a shard were committed after a timestamp, nearly: a transaction over several shards is counted
/// when its locks are released, not when it was committed. `totals` are of the state that was read before the view was
/// taken.
///
/// # Errors
///
/// Those of the engine; `Corrupt` where rows are malformed.
pub fn changes_after(view: &dyn View, shard: ShardId, totals: Totals, after: Timestamp) -> Result<u64> {
    let rest = record::between(shard, after, Timestamp::MAX);
    match view.scan(Family::Changelog, &rest, Direction::Forward).next() {
        Some(row) => Ok(totals.since(record::parse_value(&row?.1)?).entries + 1),
        None => Ok(0),
    }
}

/// Rows whose totals are looked at where one would do but for transactions under way.
const NEIGHBOURS: usize = 64;

/// The timestamp up to which a shard's changelog must be cut to hold at most `max_bytes` of changes; `None` where it
/// holds no more than that. For a leader, which decides and writes it down.
///
/// # Errors
///
/// Those of the engine; `Corrupt` where rows are malformed.
pub fn cut_to_size(view: &dyn View, state: &State, max_bytes: u64) -> Result<Option<Timestamp>> {
    let shard = state.descriptor.id;
    let fits = |after: Timestamp| -> Result<(bool, Option<Timestamp>)> {
        let rest = record::between(shard, after, state.closed);
        let (mut kept, mut first) = (0, None);
        // A row of a transaction that was long under way bears totals of later: its neighbours know better.
        for row in view.scan(Family::Changelog, &rest, Direction::Forward).take(NEIGHBOURS) {
            let (key, value) = row?;
            kept = state.changes.since(record::parse_value(&value)?).size_bytes.max(kept);
            if first.is_none() {
                first = Some(record::parse_key(&key)?.0);
            }
        }
        Ok((kept <= max_bytes && (max_bytes > 0 || first.is_none()), first))
    };
    if fits(state.truncated)?.0 {
        return Ok(None);
    }
    // Totals rise with timestamps, but for transactions under way: near enough.
    let (mut too_much, mut enough) = (state.truncated, state.closed);
    while let Some(middle) = midpoint(too_much, enough) {
        match fits(middle)? {
            (true, _) => enough = middle,
            // Nothing lies in between: go on from the next row.
            (false, next) => too_much = next.map_or(middle, |next| next.before().max(middle)),
        }
    }
    Ok(Some(enough))
}

/// A timestamp between two others, unless they are neighbours.
fn midpoint(low: Timestamp, high: Timestamp) -> Option<Timestamp> {
    let distance = high.0.saturating_sub(low.0);
    (distance > 1).then(|| Timestamp(low.0 + distance / 2))
}
