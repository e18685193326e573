//! Garbage collection: the safe point, and which rows of a shard nobody needs any more.

use serde::Deserialize;

use super::{State, lock, record};
use crate::changelog::record as changelog;
use crate::codec;
use crate::engine::{Family, View};
use crate::mvcc;
use crate::types::{Outcome, RequestId, Result, Timestamp, limits};

/// Raises the safe point; one that would come nearer to the entry's timestamp than
/// [`limits::RETENTION_MS`] is cut to that, so that no transaction is alive whose start lies below it (rule
/// R7). Cuts the changelog, to the safe point at least, else not past what is resolved. Rows stay: replicas drop them
/// when they compact.
pub(super) fn advance_safe_point(
    state: &mut State,
    view: &dyn View,
    timestamp: Timestamp,
    wanted: Timestamp,
    truncated: Timestamp,
) -> Result<Outcome> {
    let highest = Timestamp::from_ms(timestamp.ms().saturating_sub(limits::RETENTION_MS));
    state.safe_point = state.safe_point.max(wanted.min(highest));
    // What a lock holds back nobody was told yet.
    let oldest = lock::oldest_write(view, state.counts, &state.descriptor.range)?;
    let resolved = oldest.map_or(timestamp, Timestamp::before);
    state.truncated = state.truncated.max(truncated.min(resolved)).max(state.safe_point);
    Ok(Outcome::SafePoint { safe_point: state.safe_point })
}

/// Whether a replica may drop a row of a shard whose [`Floor`](mvcc::Floor) for the family is `floor`: a version that
/// was superseded at or before it, a tombstone that old, an outcome or ABORTED marker that is looked for no
/// longer, a row of the changelog that old. Locks, STAGING and COMMITTED never. What is malformed stays, for whoever
/// reads it to complain.
///
/// Ask it with a floor that is durable here and not above the timestamp of any read under way: then
/// whatever it drops counts as absent for apply too, before and after a crash.
pub fn may_drop(family: Family, key: &[u8], value: &[u8], floor: Timestamp) -> bool {
    let may = match family {
        Family::Txn => match record::parse_key(key) {
            Some((_, id)) => may_drop_record(id, value, floor),
            None => Ok(false),
        },
        Family::Changelog => Ok(changelog::commit_ts(key).is_some_and(|commit_ts| commit_ts <= floor)),
        _ => mvcc::may_drop_version(family, key, value, floor),
    };
    may.unwrap_or(false)
}

/// What errors call a row of `txn`.
const ROW: &str = "a transaction's record or an outcome marker";

/// What stands in front of an encoded `record::TxnRow`.
#[derive(Deserialize)]
enum Kind {
    Outcome,
    Staging,
    Committed,
    Aborted,
}

/// Whether a row of `txn` is a COMMITTED record. Reads no more than that of it: outcomes may be large.
pub(super) fn is_committed(value: &[u8]) -> Result<bool> {
    let (kind, _) = codec::decode_prefix(value, ROW)?;
    Ok(matches!(kind, Kind::Committed))
}

/// Whether a row of `txn` may be dropped. A marker is looked for by commands whose id is its own, and every
/// command that could still be harmed by its absence is refused as `TooOld` by then.
pub(super) fn may_drop_record(id: RequestId, value: &[u8], safe_point: Timestamp) -> Result<bool> {
    if id.seen.ms() + limits::MAX_COMMAND_AGE_MS >= safe_point.ms() {
        return Ok(false);
    }
    let (kind, _) = codec::decode_prefix(value, ROW)?;
    Ok(match kind {
        Kind::Outcome | Kind::Aborted => true,
        Kind::Staging | Kind::Committed => false,
    })
}
