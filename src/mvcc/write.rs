//! Writing versions.

use bytes::Bytes;

use super::{Row, Version, family::history_key};
use crate::engine::{Family, Overlay};
use crate::types::{Error, Result};

/// Writes a version of `key` over `previous`, which must be what [`current`](super::current) gives now:
/// the caller has read it to decide, and it is not read again. Moves `previous` to the history.
///
/// # Errors
///
/// `Corrupt` where the version was not committed after the one it supersedes. Apply refuses entries whose
/// timestamps do not rise, so it means that rows are not what this replica's log made of them.
pub fn write(overlay: &mut Overlay<'_>, key: &Bytes, previous: Option<Row>, version: &Version) -> Result<()> {
    if let Some(previous) = previous {
        if version.commit_ts <= previous.version.commit_ts {
            return Err(Error::corrupt(format!(
                "a version committed at {} would supersede one committed at {}: versions of a key must rise; \
                 rebuild this replica from a snapshot",
                version.commit_ts, previous.version.commit_ts
            )));
        }
        overlay.put(Family::History, history_key(key, version.commit_ts), previous.raw);
    }
    overlay.put(Family::Current, key.clone(), version.encode());
    Ok(())
}

/// Writes a version of `key` in place of the present one, which is lost: for a row whose older versions
/// nobody may ask for.
pub fn overwrite(overlay: &mut Overlay<'_>, key: &Bytes, version: &Version) {
    overlay.put(Family::Current, key.clone(), version.encode());
}
