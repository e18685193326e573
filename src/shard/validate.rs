//! Whether a transaction may be committed or prepared: what it read is as it was, and what it touches is
//! not locked.

use bytes::Bytes;

use super::apply::Context;
use super::counter;
use super::lock::{self, Access};
use crate::engine::View;
use crate::mvcc;
use crate::types::{AbortReason, Lock, Result, TxnPart, TxnWrite};

/// A key that the transaction read, or one in a range it read, with a version newer than its start. Removals
/// count like values: their tombstones lie above the safe point.
pub(super) fn changed(view: &dyn View, context: Context<'_>, part: &TxnPart) -> Result<Option<AbortReason>> {
    let start_ts = context.id.seen;
    for key in &part.reads {
        if let Some(row) = mvcc::current(view, key, context.safe_point)?
            && row.version.commit_ts > start_ts
        {
            return Ok(Some(AbortReason::Changed { key: key.clone(), commit_ts: row.version.commit_ts }));
        }
    }
    for range in &part.ranges {
        if let Some((key, commit_ts)) = mvcc::newer_in(view, range, start_ts)? {
            return Ok(Some(AbortReason::Changed { key, commit_ts }));
        }
    }
    Ok(None)
}

/// A lock of another transaction that excludes the part.
pub(super) fn locked(view: &dyn View, context: Context<'_>, part: &TxnPart) -> Result<Option<Lock>> {
    let reads = part.reads.iter().map(|key| Access::Read(key));
    let writes = part.writes.iter().map(|write| Access::Write(write.key()));
    let ranges = part.ranges.iter().map(Access::Range);
    for access in reads.chain(writes).chain(ranges) {
        if let Some(lock) = lock::excluding(view, context, access)? {
            return Ok(Some(lock));
        }
    }
    Ok(None)
}

/// Keys, and what they are to hold; `None` removes.
pub(super) type Staged = Vec<(Bytes, Option<Bytes>)>;

/// What the writes leave at their keys, `None` where they remove: an addition becomes its sum, which stays
/// right since the key is locked from now on, or written. Or why one can't be said.
pub(super) fn staged(
    view: &dyn View,
    context: Context<'_>,
    writes: &[TxnWrite],
) -> Result<Result<Staged, AbortReason>> {
    let mut staged = Vec::with_capacity(writes.len());
    for write in writes {
        let value = match write {
            TxnWrite::Put { value, .. } => Some(value.clone()),
            TxnWrite::Delete { .. } => None,
            TxnWrite::Add { key, delta } => {
                let held = mvcc::current(view, key, context.safe_point)?;
                let held = held.as_ref().and_then(|row| row.version.value.as_deref());
                match counter::sum(key, held, *delta) {
                    Ok(sum) => Some(counter::text(sum)),
                    Err(refusal) => return Ok(Err(AbortReason::Counter(Box::new(refusal)))),
                }
            }
        };
        staged.push((write.key().clone(), value));
    }
    Ok(Ok(staged))
}
