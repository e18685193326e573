//! Commands of one key: put, delete, compare-and-swap.

use bytes::Bytes;

use super::apply::Context;
use super::lock::{self, Access};
use super::outcome;
use crate::bugs::{self, Bug};
use crate::engine::{Overlay, View};
use crate::mvcc::{self, Row, Version};
use crate::types::{Expect, Lock, Outcome, Record, Refusal, Result};

/// What a command of one key finds.
pub(super) enum Found {
    /// An earlier attempt, which wrote this version.
    Retry(Row),
    /// An earlier attempt, which left this outcome.
    Marked(Outcome),
    /// A lock in the way (rule R9).
    Locked(Lock),
    /// Nothing of the kind: the newest version, to be decided on.
    Fresh(Option<Row>),
}

/// Reads the newest version of a key, and looks for an earlier attempt (rule R8), then for a lock.
pub(super) fn find(view: &dyn View, context: Context<'_>, key: &[u8]) -> Result<Found> {
    let current = mvcc::current(view, key, context.safe_point)?;
    if let Some(first) = mvcc::written_by(view, key, current.as_ref(), context.id, context.safe_point)? {
        return Ok(Found::Retry(first));
    }
    if let Some(first) = outcome::marked(view, key, context)? {
        return Ok(Found::Marked(first));
    }
    Ok(match lock::excluding(view, context, Access::Write(key))? {
        Some(lock) => Found::Locked(lock),
        None => Found::Fresh(current),
    })
}

/// Writes a value.
pub(super) fn put(
    overlay: &mut Overlay<'_>,
    context: Context<'_>,
    key: &Bytes,
    value: &Bytes,
) -> Result<Outcome> {
    let current = mvcc::current(&*overlay, key, context.safe_point)?;
    // No look for a marker: a put that is admitted always writes, and so never leaves one.
    if let Some(first) = mvcc::written_by(&*overlay, key, current.as_ref(), context.id, context.safe_point)? {
        return Ok(outcome::of_version(&first.version));
    }
    match lock::excluding(&*overlay, context, Access::Write(key))? {
        Some(lock) => Ok(Outcome::Refused(Refusal::Locked(lock))),
        None => write(overlay, context, key, current, Some(value)),
    }
}

/// Removes a key. Where it holds nothing only a marker is left.
pub(super) fn delete(overlay: &mut Overlay<'_>, context: Context<'_>, key: &Bytes) -> Result<Outcome> {
    match find(&*overlay, context, key)? {
        Found::Retry(first) => Ok(outcome::of_version(&first.version)),
        Found::Marked(first) => Ok(first),
        Found::Locked(lock) => Ok(Outcome::Refused(Refusal::Locked(lock))),
        Found::Fresh(current) => write(overlay, context, key, current, None),
    }
}

/// Writes or removes where the key holds what is expected. What was found instead is kept for retries too.
pub(super) fn compare_and_swap(
    overlay: &mut Overlay<'_>,
    context: Context<'_>,
    key: &Bytes,
    expect: &Expect,
    value: Option<&Bytes>,
) -> Result<Outcome> {
    let current = match find(&*overlay, context, key)? {
        Found::Retry(first) => return Ok(outcome::of_version(&first.version)),
        Found::Marked(first) => return Ok(first),
        Found::Locked(lock) => return Ok(Outcome::Refused(Refusal::Locked(lock))),
        Found::Fresh(current) => current,
    };
    let record = current.as_ref().and_then(|row| row.version.record());
    if !holds(expect, record.as_ref()) {
        let not_matched = Outcome::NotMatched { commit_ts: context.timestamp, current: record };
        if bugs::on(Bug::RefusalDoesNotStick) {
            return Ok(not_matched);
        }
        return Ok(outcome::mark(overlay, key, context, not_matched));
    }
    write(overlay, context, key, current, value)
}

/// Whether a key that holds `record` holds what is expected.
pub(super) fn holds(expect: &Expect, record: Option<&Record>) -> bool {
    match (expect, record) {
        (Expect::Absent, record) => record.is_none(),
        (_, None) => false,
        (Expect::Present, Some(_)) => true,
        (Expect::Version(version), Some(record)) => record.version == *version,
        (Expect::CommitTs(commit_ts), Some(record)) => record.commit_ts == *commit_ts,
        (Expect::Value(value), Some(record)) => record.value == *value,
    }
}

/// Writes a value, or with `None` removes the key, over what it holds.
pub(super) fn write(
    overlay: &mut Overlay<'_>,
    context: Context<'_>,
    key: &Bytes,
    current: Option<Row>,
    value: Option<&Bytes>,
) -> Result<Outcome> {
    let version = match value {
        Some(value) => Version::put(current.as_ref(), context.timestamp, context.id, value.clone()),
        None if current.as_ref().is_some_and(|row| row.version.value.is_some()) => {
            Version::tombstone(context.timestamp, context.id)
        }
        None => {
            let absent = Outcome::Deleted { commit_ts: context.timestamp, existed: false };
            return Ok(outcome::mark(overlay, key, context, absent));
        }
    };
    mvcc::write(overlay, key, current, &version)?;
    Ok(outcome::of_version(&version))
}
