//! A transaction that touches one shard: one command, which validates and writes.

use bytes::Bytes;

use super::apply::Work;
use super::record::{self, TxnRow};
use super::{finish, outcome, validate};
use crate::bugs::{self, Bug};
use crate::types::{AbortReason, Outcome, Refusal, Result, TxnOutcome, TxnPart, TxnWrite};

/// Commits at the entry's timestamp. A foreign lock refuses it without a trace, so that it can come again
/// after the release (rule R9); whatever else stands against it is kept for retries at the primary key.
pub(super) fn commit(work: &mut Work<'_, '_>, primary: &Bytes, part: &TxnPart) -> Result<Outcome> {
    let context = work.context();
    let first_written = part.writes.first().map(TxnWrite::key);
    if let Some(known) = record::trace(&*work.overlay, context, first_written, [primary])? {
        return Ok(Outcome::Txn(known));
    }
    if let Some(refusal) = context.too_old() {
        return Ok(Outcome::Refused(refusal));
    }
    // What changed stays changed: no need to wait for a lock to say so.
    if let Some(reason) = validate::changed(&*work.overlay, context, part)? {
        return aborted(work, primary, reason);
    }
    if let Some(lock) = validate::locked(&*work.overlay, context, part)? {
        return Ok(Outcome::Refused(Refusal::Locked(lock)));
    }
    let staged = match validate::staged(&*work.overlay, context, &part.writes)? {
        Ok(staged) => staged,
        Err(reason) => return aborted(work, primary, reason),
    };
    let commit_ts = context.timestamp;
    for (key, value) in &staged {
        finish::write_version(work, key, value.as_ref(), commit_ts)?;
    }
    let committed = Outcome::Txn(TxnOutcome::Committed { commit_ts });
    if staged.is_empty() {
        // No version tells of it.
        return Ok(outcome::mark(work.overlay, primary, context, committed));
    }
    Ok(committed)
}

fn aborted(work: &mut Work<'_, '_>, primary: &Bytes, reason: AbortReason) -> Result<Outcome> {
    if bugs::on(Bug::RefusalDoesNotStick) {
        return Ok(Outcome::Txn(TxnOutcome::Aborted { reason }));
    }
    let had = record::get(&*work.overlay, primary, work.context.id, work.context.safe_point)?;
    record::put(work, primary, had.as_ref(), &TxnRow::Aborted { reason: reason.clone() });
    Ok(Outcome::Txn(TxnOutcome::Aborted { reason }))
}
