//! At the primary key: the decision, the abort, and the end of the record.

use bytes::Bytes;

use super::apply::Work;
use super::record::{self, TxnRow};
use super::{finish, lock};
use crate::types::{AbortReason, Decision, KeyRange, Outcome, Result, Timestamp, TxnOutcome, key_after};

/// Writes COMMITTED and finishes this shard's own part. Only where the primary key is locked: else the
/// transaction was decided before, or was never prepared.
pub(super) fn decide(
    work: &mut Work<'_, '_>,
    primary: &Bytes,
    commit_ts: Option<Timestamp>,
    spans: &[KeyRange],
) -> Result<Outcome> {
    let context = work.context();
    let had = record::get(&*work.overlay, primary, context.id, context.safe_point)?;
    let locked = lock::own(&*work.overlay, primary, context.id)?.is_some();
    if !locked || !matches!(had, None | Some(TxnRow::Staging { .. })) {
        let known = record::trace(&*work.overlay, context, Some(primary), [primary])?;
        return Ok(Outcome::Txn(known.unwrap_or(TxnOutcome::NotPrepared)));
    }
    let commit_ts = commit_ts.unwrap_or(context.timestamp);
    release_own(work, primary, spans, Decision::Committed { commit_ts })?;
    record::put(work, primary, had.as_ref(), &TxnRow::Committed { commit_ts, spans: spans.to_vec() });
    Ok(Outcome::Txn(TxnOutcome::Committed { commit_ts }))
}

/// Writes ABORTED and releases this shard's own part, unless the transaction was committed (rule R6): then
/// a record, a marker or the primary's version says so. STAGING is overruled only by who is certain (rule R5).
pub(super) fn abort(
    work: &mut Work<'_, '_>,
    primary: &Bytes,
    certain: bool,
    spans: &[KeyRange],
) -> Result<Outcome> {
    let context = work.context();
    let had = record::get(&*work.overlay, primary, context.id, context.safe_point)?;
    if let (Some(TxnRow::Staging { listed }), false) = (&had, certain) {
        return Ok(Outcome::Txn(TxnOutcome::StillStaging { listed: listed.clone() }));
    }
    if let Some(known) = record::trace(&*work.overlay, context, Some(primary), [primary])? {
        if matches!(known, TxnOutcome::Aborted { .. }) {
            release_own(work, primary, spans, Decision::Aborted)?;
        }
        return Ok(Outcome::Txn(known));
    }
    let held = release_own(work, primary, spans, Decision::Aborted)?;
    // While a lock is held nothing can have been committed and forgotten. Without one, a commit may be so
    // long ago that its version and its record are gone. Then no marker is left either: it would tell a
    // retry of that commit that it was aborted, and no prepare can come any more (rule R7).
    if !held && context.too_old().is_some() {
        return Ok(Outcome::Txn(TxnOutcome::AbortedLate));
    }
    let reason = AbortReason::RolledBack;
    record::put(work, primary, had.as_ref(), &TxnRow::Aborted { reason: reason.clone() });
    Ok(Outcome::Txn(TxnOutcome::Aborted { reason }))
}

/// Removes the COMMITTED record, and nothing else: every participant has replicated its finish (rule R7).
pub(super) fn forget(work: &mut Work<'_, '_>, primary: &Bytes) -> Result<Outcome> {
    let had = record::get(&*work.overlay, primary, work.context.id, work.context.safe_point)?;
    if matches!(had, Some(TxnRow::Committed { .. })) {
        record::forget(work, primary);
    }
    Ok(Outcome::Txn(TxnOutcome::Forgotten))
}

/// Releases the primary's lock, and all others of the transaction in the parts of the spans in this shard.
/// Whether there was one.
fn release_own(
    work: &mut Work<'_, '_>,
    primary: &Bytes,
    spans: &[KeyRange],
    decision: Decision,
) -> Result<bool> {
    let primary = KeyRange { start: primary.clone(), end: Some(key_after(primary)) };
    let range = work.range;
    let mut any = false;
    // The primary's last: the first lock of a part leads to all of it.
    for span in spans.iter().chain([&primary]).filter_map(|span| range.intersect(span)) {
        any |= finish::release(work, &span, decision)?.any();
    }
    Ok(any)
}
