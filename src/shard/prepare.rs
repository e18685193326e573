//! Prepare: validates a part of a transaction, and locks what it touches.

use std::collections::BTreeSet;

use bytes::Bytes;

use super::apply::Work;
use super::lock::{self, Held, Kind};
use super::record::{self, TxnRow};
use super::validate::{self, Staged};
use crate::bugs::{self, Bug};
use crate::engine::View;
use crate::types::{AbortReason, Outcome, Result, Timestamp, TxnId, TxnOutcome, TxnPart, TxnWrite};

/// What a prepare consists of.
#[derive(Clone, Copy)]
pub(super) struct Body<'c> {
    pub primary: &'c Bytes,
    pub part: &'c TxnPart,
    pub listed: Option<&'c Vec<Bytes>>,
}

/// Prepares a part. A repeated one gets the first one's timestamp while the locks are held, and the outcome
/// of the transaction after its finish: so a late duplicate locks nothing (rule R8). A refusal sticks,
/// since the transaction is aborted by it: a marker tells later attempts.
pub(super) fn prepare(work: &mut Work<'_, '_>, body: Body<'_>) -> Result<Outcome> {
    let Body { primary, part, listed } = body;
    let context = work.context();
    if context.counts.locks > 0
        && let Some(prepare_ts) = held(&*work.overlay, part, context.id)?
    {
        return Ok(Outcome::Txn(TxnOutcome::Prepared { prepare_ts }));
    }
    let first_written = part.writes.first().map(TxnWrite::key);
    if let Some(known) = record::trace(&*work.overlay, context, first_written, named_keys(part))? {
        return Ok(Outcome::Txn(known));
    }
    if let Some(refusal) = context.too_old() {
        return Ok(Outcome::Refused(refusal));
    }
    if let Some(reason) = validate::changed(&*work.overlay, context, part)? {
        return aborted(work, body, reason);
    }
    if let Some(lock) = validate::locked(&*work.overlay, context, part)? {
        return aborted(work, body, AbortReason::Locked(lock));
    }
    let staged = match validate::staged(&*work.overlay, context, &part.writes)? {
        Ok(staged) => staged,
        Err(reason) => return aborted(work, body, reason),
    };
    lock_all(work, primary, part, staged)?;
    if let Some(listed) = listed {
        record::put(work, primary, None, &TxnRow::Staging { listed: listed.clone() });
    }
    Ok(Outcome::Txn(TxnOutcome::Prepared { prepare_ts: context.timestamp }))
}

/// Every key that the part names; of a range, where it begins. A marker may be at any of them.
fn named_keys(part: &TxnPart) -> BTreeSet<&Bytes> {
    let ranges = part.ranges.iter().map(|range| &range.start);
    part.reads.iter().chain(part.writes.iter().map(TxnWrite::key)).chain(ranges).collect()
}

/// When the part was prepared, if all of it is still locked.
fn held(view: &dyn View, part: &TxnPart, id: TxnId) -> Result<Option<Timestamp>> {
    let mut prepared = None;
    for key in part.reads.iter().chain(part.writes.iter().map(TxnWrite::key)) {
        match lock::own(view, key, id)? {
            Some(held) => prepared = prepared.max(Some(held.prepare_ts)),
            None => return Ok(None),
        }
    }
    for range in &part.ranges {
        match lock::own_range(view, range, id)? {
            Some(held) => prepared = prepared.max(Some(held.prepare_ts)),
            None => return Ok(None),
        }
    }
    Ok(prepared)
}

/// Locks the part; a key that was read and is written gets a write lock only.
fn lock_all(work: &mut Work<'_, '_>, primary: &Bytes, part: &TxnPart, staged: Staged) -> Result<()> {
    let written: BTreeSet<&Bytes> = part.writes.iter().map(TxnWrite::key).collect();
    let only_read = part.reads.iter().filter(|key| !written.contains(key));
    let reads = only_read.map(|key| (key.clone(), Kind::Read));
    let writes = staged.into_iter().map(|(key, value)| (key, Kind::Write { value }));
    let ranges =
        part.ranges.iter().map(|range| (range.start.clone(), Kind::Range { end: range.end.clone() }));
    let (txn, prepare_ts) = (work.context.id, work.context.timestamp);
    let locks = reads.chain(writes).chain(ranges).map(|(key, kind)| {
        let primary = primary.clone();
        Held { key, txn, primary, prepare_ts, kind, others: None }
    });
    let locks = locks.collect();
    lock::put_all(work, locks)
}

/// Leaves the refusal where later attempts look for it: at the primary, where whoever asks for the
/// transaction looks too, or at the smallest key of the part.
fn aborted(work: &mut Work<'_, '_>, body: Body<'_>, reason: AbortReason) -> Result<Outcome> {
    let keys = named_keys(body.part);
    let place = keys.get(body.primary).or_else(|| keys.first()).copied();
    if let Some(key) = place.filter(|_| !bugs::on(Bug::RefusalDoesNotStick)) {
        record::put_aborted(work, key, reason.clone())?;
    }
    Ok(Outcome::Txn(TxnOutcome::Aborted { reason }))
}
