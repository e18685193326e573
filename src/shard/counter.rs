//! Counters: values that are a whole number as text.

use bytes::Bytes;

use super::apply::Context;
use super::outcome;
use super::single::{self, Found};
use crate::engine::Overlay;
use crate::types::{Outcome, Refusal, Result};

/// Adds to a counter; an absent one counts as 0. What can't be added to is kept for retries.
pub(super) fn add(
    overlay: &mut Overlay<'_>,
    context: Context<'_>,
    key: &Bytes,
    delta: i64,
) -> Result<Outcome> {
    let current = match single::find(&*overlay, context, key)? {
        Found::Retry(first) => {
            let commit_ts = first.version.commit_ts;
            // Another kind of command under the same id has no sum to tell: it gets what that one got.
            let sum = first.version.value.as_deref().and_then(parse);
            return Ok(sum.map_or_else(
                || outcome::of_version(&first.version),
                |value| Outcome::Added { commit_ts, value },
            ));
        }
        Found::Marked(first) => return Ok(first),
        Found::Locked(lock) => return Ok(Outcome::Refused(Refusal::Locked(lock))),
        Found::Fresh(current) => current,
    };
    let held = current.as_ref().and_then(|row| row.version.value.as_deref());
    match sum(key, held, delta) {
        Ok(value) => {
            single::write(overlay, context, key, current, Some(&text(value)))?;
            Ok(Outcome::Added { commit_ts: context.timestamp, value })
        }
        Err(refusal) => Ok(outcome::mark(overlay, key, context, Outcome::Refused(refusal))),
    }
}

/// What `delta` more than the counter in `held` is, or why that can't be said.
pub(super) fn sum(key: &Bytes, held: Option<&[u8]>, delta: i64) -> Result<i64, Refusal> {
    let value = match held {
        None => 0,
        Some(held) => parse(held).ok_or_else(|| Refusal::NotACounter { key: key.clone() })?,
    };
    value.checked_add(delta).ok_or_else(|| Refusal::CounterOverflow { key: key.clone(), value, delta })
}

/// A counter as it is stored.
pub(super) fn text(value: i64) -> Bytes {
    value.to_string().into()
}

/// The number in a value: decimal digits with or without a sign, nothing around them.
fn parse(value: &[u8]) -> Option<i64> {
    std::str::from_utf8(value).ok()?.parse().ok()
}
