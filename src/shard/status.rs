//! Questions about transactions: how one stands, who holds a lock, and what recovery has to look after.
//! When a replica may answer is decided above; here, what its rows say.

use bytes::Bytes;

use super::State;
use super::gc;
use super::lock;
use super::record::{self, TxnRow};
use crate::engine::{Family, View};
use crate::mvcc;
use crate::types::{
    Direction, Error, KeyRange, Lock, Outcome, Result, Timestamp, TxnId, TxnOutcome, TxnStatus,
};

/// How a transaction stands at its primary key. Without a record the primary's version tells of a commit
/// (rule R6): so `Missing` means that neither is there, and never that it was aborted.
///
/// `state` is that of the same replica, not older than what the question waited for.
///
/// # Errors
///
/// Those of the engine; `Corrupt` where a row is malformed. So for all functions here.
pub fn txn_status(view: &dyn View, state: &State, primary: &[u8], id: TxnId) -> Result<TxnStatus> {
    let committed = |commit_ts, spans| TxnStatus::Committed { commit_ts, spans };
    match record::get(view, primary, id, state.safe_point)? {
        Some(TxnRow::Staging { listed }) => return Ok(TxnStatus::Staging { listed }),
        Some(TxnRow::Committed { commit_ts, spans }) => return Ok(committed(commit_ts, spans)),
        Some(TxnRow::Outcome(Outcome::Txn(TxnOutcome::Committed { commit_ts }))) => {
            return Ok(committed(commit_ts, Vec::new()));
        }
        Some(TxnRow::Aborted { .. }) => return Ok(TxnStatus::Aborted),
        Some(TxnRow::Outcome(_)) | None => {}
    }
    Ok(match record::version_at(view, primary, id, state.safe_point)? {
        Some(commit_ts) => committed(commit_ts, Vec::new()),
        None => TxnStatus::Missing,
    })
}

/// When the transaction locked the key, or a range that begins there, if it holds such a lock.
pub fn lock_of(view: &dyn View, key: &[u8], id: TxnId) -> Result<Option<Timestamp>> {
    if let Some(held) = lock::own(view, key, id)? {
        return Ok(Some(held.prepare_ts));
    }
    for held in lock::of_ranges_from(view, key) {
        let held = held?;
        if held.txn == id {
            return Ok(Some(held.prepare_ts));
        }
    }
    Ok(None)
}

/// Locks in a range of internal keys that were taken before `before`, in key order, one for each
/// transaction that is not `known`, at most `limit`: what a leader recovers unasked (rules R5 and R11). Those of
/// ranges too.
pub fn expired_locks(
    view: &dyn View,
    range: &KeyRange,
    before: Timestamp,
    limit: usize,
    known: impl Fn(TxnId) -> bool,
) -> Result<Vec<Lock>> {
    let mut expired: Vec<Lock> = Vec::new();
    for held in lock::scan(view, range, Direction::Forward) {
        let held = held?;
        if held.prepare_ts < before && !known(held.txn) && expired.iter().all(|lock| lock.txn != held.txn) {
            if expired.len() >= limit {
                break;
            }
            expired.push(held.lock());
        }
    }
    Ok(expired)
}

/// A committed transaction whose record still stands: participants may not have finished it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Unfinished {
    /// The transaction.
    pub txn: TxnId,
    /// Where its record is.
    pub primary: Bytes,
    /// Its commit timestamp.
    pub commit_ts: Timestamp,
    /// Where the participants' locks lie.
    pub spans: Vec<KeyRange>,
}

/// The COMMITTED records with a primary in a range of internal keys, in key order, without those of
/// transactions that are `known`, at most `limit`: what a new leader finishes and forgets (rules R7 and R11).
/// Walks over all markers of the range: ask only where `State.counts.committed` is not 0.
pub fn unfinished(
    view: &dyn View,
    range: &KeyRange,
    limit: usize,
    known: impl Fn(TxnId) -> bool,
) -> Result<Vec<Unfinished>> {
    let mut found = Vec::new();
    for row in view.scan(Family::Txn, &mvcc::family_range(Family::Txn, range), Direction::Forward) {
        let (row, value) = row?;
        if found.len() >= limit {
            break;
        }
        if gc::is_committed(&value)?
            && let TxnRow::Committed { commit_ts, spans } = record::decode(&value)?
        {
            let (primary, txn) = record::parse_key(&row).ok_or_else(|| {
                Error::corrupt(format!("the row {} is not that of a transaction", hex::encode(&row)))
            })?;
            if known(txn) {
                continue;
            }
            found.push(Unfinished { txn, primary, commit_ts, spans });
        }
    }
    Ok(found)
}
