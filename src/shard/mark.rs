//! The rollback marker: what makes sure that a listed key is never prepared (rule R5).

use bytes::Bytes;

use super::apply::Work;
use super::lock;
use super::record;
use crate::bugs::{self, Bug};
use crate::types::{AbortReason, Outcome, Result, TxnOutcome};

/// Places a marker at a listed key, which refuses every later prepare of the key. A lock refuses it, and so
/// does any trace of the transaction's end. A second marker finds the first.
pub(super) fn mark(work: &mut Work<'_, '_>, key: &Bytes) -> Result<Outcome> {
    let context = work.context();
    if let Some(held) = lock::own(&*work.overlay, key, context.id)? {
        return Ok(Outcome::Txn(TxnOutcome::StillLocked { prepare_ts: held.prepare_ts }));
    }
    Ok(Outcome::Txn(match record::trace(&*work.overlay, context, Some(key), [key])? {
        Some(TxnOutcome::Aborted { reason: AbortReason::RolledBack }) => TxnOutcome::Marked,
        Some(known) => known,
        None if bugs::on(Bug::NoRollbackMarker) => TxnOutcome::Marked,
        None => {
            record::put_aborted(work, key, AbortReason::RolledBack)?;
            TxnOutcome::Marked
        }
    }))
}
