//! Finish: releases a transaction's locks, and writes what they stage where it was committed.

use bytes::Bytes;

use super::apply::Work;
use super::lock::{self, Kind};
use super::record::{self, TxnRow};
use crate::bugs::{self, Bug};
use crate::mvcc::{self, Version};
use crate::types::{AbortReason, Decision, KeyRange, Outcome, Result, Timestamp, TxnOutcome};

/// Finishes the part of `span` in this shard. Leaves an outcome marker where locks were released and no
/// version tells of the end, so that a late prepare finds it (rule R8).
pub(super) fn finish(work: &mut Work<'_, '_>, span: &KeyRange, decision: Decision) -> Result<Outcome> {
    let covered = work.range.intersect(span);
    if let Some(covered) = &covered {
        let released = release(work, covered, decision)?;
        leave_trace(work, released, decision)?;
    }
    let covered = covered.unwrap_or_else(|| KeyRange::new(span.start.clone(), Some(span.start.clone())));
    Ok(Outcome::Txn(TxnOutcome::Finished { covered }))
}

/// What a release found.
#[derive(Default)]
pub(super) struct Released {
    /// The smallest key or start of a range that was locked.
    first: Option<Bytes>,
    /// Whether a version bears the transaction's id now.
    wrote: bool,
}

impl Released {
    /// Whether there was a lock.
    pub(super) fn any(&self) -> bool {
        self.first.is_some()
    }
}

/// Releases the command's transaction's locks in a span of this shard.
pub(super) fn release(work: &mut Work<'_, '_>, span: &KeyRange, decision: Decision) -> Result<Released> {
    let mut released = Released::default();
    if work.counts.locks == 0 {
        return Ok(released);
    }
    for held in lock::own_in(&*work.overlay, span, work.context.id)? {
        lock::remove(work, &held);
        if let (Kind::Write { value }, Decision::Committed { commit_ts }) = (&held.kind, decision) {
            // A commit is not earlier than any of its prepares: this lock is of another commit under the same id,
            // which a client has used twice. What it stages was never committed.
            if held.prepare_ts > commit_ts {
                continue;
            }
            write_version(work, &held.key, value.as_ref(), commit_ts)?;
            released.wrote = true;
        }
        released.first.get_or_insert(held.key);
    }
    Ok(released)
}

fn leave_trace(work: &mut Work<'_, '_>, released: Released, decision: Decision) -> Result<()> {
    let Some(key) = released.first else { return Ok(()) };
    match decision {
        Decision::Committed { .. } if released.wrote || bugs::on(Bug::ReadOnlyFinishLeavesNoTrace) => Ok(()),
        Decision::Committed { commit_ts } => {
            let had = record::get(&*work.overlay, &key, work.context.id, work.context.safe_point)?;
            if had.is_none() {
                let committed = TxnRow::Outcome(Outcome::Txn(TxnOutcome::Committed { commit_ts }));
                record::put(work, &key, None, &committed);
            }
            Ok(())
        }
        Decision::Aborted => record::put_aborted(work, &key, AbortReason::RolledBack),
    }
}

/// Writes a version that bears the command's id, or with `None` a tombstone, also over nothing: it tells
/// that the transaction was committed. One that is there already stays.
pub(super) fn write_version(
    work: &mut Work<'_, '_>,
    key: &Bytes,
    value: Option<&Bytes>,
    commit_ts: Timestamp,
) -> Result<()> {
    let id = work.context.id;
    let previous = mvcc::current(&*work.overlay, key, work.context.safe_point)?;
    if previous.as_ref().is_some_and(|row| row.version.id == id) {
        return Ok(());
    }
    let version = match value {
        Some(value) => Version::put(previous.as_ref(), commit_ts, id, value.clone()),
        None => Version::tombstone(commit_ts, id),
    };
    mvcc::write(work.overlay, key, previous, &version)
}
