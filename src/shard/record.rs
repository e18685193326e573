//! Rows of the family `txn`: what came of commands and transactions where no version tells.
//!
//! A row's key is a key of the store and an id. At the primary key of a transaction it is the record:
//! STAGING, COMMITTED or ABORTED. At any other key it is a marker: the outcome of a command, a refused
//! prepare, a rollback marker (rule R5), or the finish of a participant that only read (rule R8).

use bytes::{BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};

use super::apply::{Context, Work};
use super::gc;
use crate::codec::{self, ordered};
use crate::engine::{Family, Overlay, View};
use crate::mvcc;
use crate::types::{AbortReason, KeyRange, Outcome, RequestId, Result, Timestamp, TxnId, TxnOutcome};

/// What a row of `txn` holds. `gc::Kind` names the variants in the same order.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) enum TxnRow {
    /// What came of a command that can't be told from a version.
    Outcome(Outcome),
    /// The transaction is committed once all these keys are locked (rule R4).
    Staging {
        /// All keys of the transaction.
        listed: Vec<Bytes>,
    },
    /// It is committed, and participants may not have finished yet (rule R7).
    Committed {
        /// The commit timestamp.
        commit_ts: Timestamp,
        /// Where the participants' locks lie.
        spans: Vec<KeyRange>,
    },
    /// It is aborted, or can't be prepared here any more.
    Aborted {
        /// Why.
        reason: AbortReason,
    },
}

impl TxnRow {
    /// What the row says of its transaction; nothing where it is undecided.
    fn decided(self) -> Option<TxnOutcome> {
        match self {
            Self::Staging { .. } => None,
            Self::Committed { commit_ts, .. }
            | Self::Outcome(Outcome::Txn(TxnOutcome::Committed { commit_ts })) => {
                Some(TxnOutcome::Committed { commit_ts })
            }
            Self::Aborted { reason } => Some(TxnOutcome::Aborted { reason }),
            // The id has been used for another command: no transaction can bear it any more.
            Self::Outcome(_) => Some(TxnOutcome::Aborted { reason: AbortReason::RolledBack }),
        }
    }

    /// The row as the outcome of an earlier attempt of a command under the same id.
    pub(super) fn outcome(self) -> Outcome {
        match self {
            Self::Outcome(outcome) => outcome,
            Self::Staging { listed } => Outcome::Txn(TxnOutcome::StillStaging { listed }),
            Self::Committed { commit_ts, .. } => Outcome::Txn(TxnOutcome::Committed { commit_ts }),
            Self::Aborted { reason } => Outcome::Txn(TxnOutcome::Aborted { reason }),
        }
    }
}

fn row_key(key: &[u8], id: RequestId) -> Bytes {
    let mut row = BytesMut::with_capacity(key.len() + 2 + 8 + 16);
    ordered::put_bytes(&mut row, key);
    row.put_u64(id.seen.0);
    row.put_u128(id.unique);
    row.freeze()
}

/// The key and the id in a row's key; `None` where it is malformed.
pub(super) fn parse_key(mut row: &[u8]) -> Option<(Bytes, RequestId)> {
    let key = ordered::take_bytes(&mut row)?;
    let seen = Timestamp(ordered::take_u64(&mut row)?);
    let unique = ordered::take_u128(&mut row)?;
    row.is_empty().then_some((key, RequestId { seen, unique }))
}

pub(super) fn decode(value: &[u8]) -> Result<TxnRow> {
    codec::decode(value, "a transaction's record or an outcome marker")
}

/// The row of `id` at `key`; none where it may have been dropped.
pub(super) fn get(
    view: &dyn View,
    key: &[u8],
    id: RequestId,
    safe_point: Timestamp,
) -> Result<Option<TxnRow>> {
    let Some(value) = view.get(Family::Txn, &row_key(key, id))? else { return Ok(None) };
    if gc::may_drop_record(id, &value, safe_point)? { Ok(None) } else { decode(&value).map(Some) }
}

/// Writes the row of the command's id at `key`, over what is there. `had` is what [`get`] gives now.
pub(super) fn put(work: &mut Work<'_, '_>, key: &[u8], had: Option<&TxnRow>, row: &TxnRow) {
    work.counts.committed += u64::from(matches!(row, TxnRow::Committed { .. }));
    if matches!(had, Some(TxnRow::Committed { .. })) {
        work.counts.committed = work.counts.committed.saturating_sub(1);
    }
    work.overlay.put(Family::Txn, row_key(key, work.context.id), codec::encode(row));
}

/// Writes the outcome of a command that is no transaction's, where there is no row yet.
pub(super) fn put_outcome(overlay: &mut Overlay<'_>, key: &[u8], id: RequestId, outcome: Outcome) {
    overlay.put(Family::Txn, row_key(key, id), codec::encode(&TxnRow::Outcome(outcome)));
}

/// Removes the COMMITTED record of the command's id at `key`.
pub(super) fn forget(work: &mut Work<'_, '_>, key: &[u8]) {
    work.counts.committed = work.counts.committed.saturating_sub(1);
    work.overlay.delete(Family::Txn, row_key(key, work.context.id));
}

/// Leaves a marker that the transaction of the command can't be prepared here any more, unless the row
/// tells of its end already. Left out where every prepare is too old by now: then no marker is looked for.
pub(super) fn put_aborted(work: &mut Work<'_, '_>, key: &[u8], reason: AbortReason) -> Result<()> {
    let had = get(&*work.overlay, key, work.context.id, work.context.safe_point)?;
    if work.context.too_old().is_none() && had.clone().and_then(TxnRow::decided).is_none() {
        put(work, key, had.as_ref(), &TxnRow::Aborted { reason });
    }
    Ok(())
}

/// When the transaction `id` was committed, if it wrote a version of `key`.
pub(super) fn version_at(
    view: &dyn View,
    key: &[u8],
    id: TxnId,
    safe_point: Timestamp,
) -> Result<Option<Timestamp>> {
    let newest = mvcc::current(view, key, safe_point)?;
    let written = mvcc::written_by(view, key, newest.as_ref(), id, safe_point)?;
    Ok(written.map(|row| row.version.commit_ts))
}

/// What is known here of the end of the command's transaction (rule R8): from the version of the first key
/// it writes, or a row at any of `keys`. That it was committed counts before a marker that says otherwise,
/// which a late recovery may have left at a key that was only read.
pub(super) fn trace<'k>(
    view: &dyn View,
    context: Context<'_>,
    first_written: Option<&Bytes>,
    keys: impl IntoIterator<Item = &'k Bytes>,
) -> Result<Option<TxnOutcome>> {
    if let Some(key) = first_written
        && let Some(commit_ts) = version_at(view, key, context.id, context.safe_point)?
    {
        return Ok(Some(TxnOutcome::Committed { commit_ts }));
    }
    let mut known = None;
    for key in keys {
        match get(view, key, context.id, context.safe_point)?.and_then(TxnRow::decided) {
            Some(committed @ TxnOutcome::Committed { .. }) => return Ok(Some(committed)),
            decided => known = known.or(decided),
        }
    }
    Ok(known)
}
