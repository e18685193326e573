//! Garbage collection: which rows of versions nobody needs any more.
//!
//! Nothing reads below the safe point. So a version that was superseded at or before it is never shown
//! again, nor does a tombstone at or before it hide anything. Replicas drop such rows when their engine
//! compacts, each at its own time. What decides over writes therefore takes the safe point, and treats
//! as absent whatever could have been dropped: so replicas stay equal.

use bytes::Bytes;

use super::row;
use crate::engine::Family;
use crate::types::{Result, Timestamp};

/// Whether a row of `current` or `history` may be dropped. Rows of other families are not versions: never.
///
/// # Errors
///
/// `Corrupt` where the row is malformed.
pub fn may_drop_version(family: Family, key: &[u8], value: &[u8], safe_point: Timestamp) -> Result<bool> {
    Ok(match family {
        Family::Current => row::tombstone_ts(value)?.is_some_and(|removed_at| removed_at <= safe_point),
        Family::History => superseded_at(key).is_some_and(|superseded| superseded <= safe_point),
        _ => false,
    })
}

/// When the version in a row of `history` was superseded: the end of the row's key.
pub(super) fn superseded_at(key: &[u8]) -> Option<Timestamp> {
    let (_, ts) = key.split_last_chunk::<8>()?;
    Some(Timestamp(u64::from_be_bytes(*ts)))
}

/// Drops a row that may be gone already.
pub(super) fn unless_dropped(found: Option<Bytes>, safe_point: Timestamp) -> Result<Option<Bytes>> {
    match found {
        Some(raw) if may_drop_version(Family::Current, &[], &raw, safe_point)? => Ok(None),
        found => Ok(found),
    }
}
