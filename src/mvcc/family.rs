//! Where the rows of a key lie in each family.

use bytes::{BufMut, Bytes, BytesMut};

use crate::changelog::record;
use crate::codec::ordered;
use crate::engine::Family;
use crate::types::{KeyRange, ShardId, Timestamp, prefix_end};

/// The keys of `family` that belong to a range of internal keys.
///
/// In `current` rows bear the internal key itself. In `history`, `lock` and `txn` they begin with its
/// ordered encoding, in which no encoded key is the beginning of another: so whatever follows it, the row
/// sorts between the encoded ends of a range exactly where its key lies between the ends themselves. The
/// other families are not keyed by keys of the store: the range is empty. For a shard's changelog see
/// [`shard_rows`].
pub fn family_range(family: Family, range: &KeyRange) -> KeyRange {
    match family {
        Family::Current => range.clone(),
        Family::History | Family::Lock | Family::Txn => {
            KeyRange { start: ordered_key(&range.start), end: range.end.as_ref().map(|end| ordered_key(end)) }
        }
        Family::Log | Family::Group | Family::Changelog => KeyRange::new(Bytes::new(), Some(Bytes::new())),
    }
}

/// The keys of `family` that belong to a shard which holds `range`: what a snapshot of it carries and what removing it
/// removes. The changelog's rows are kept by shard, all others by key.
pub fn shard_rows(family: Family, shard: ShardId, range: &KeyRange) -> KeyRange {
    match family {
        Family::Changelog => record::of_shard(shard),
        _ => family_range(family, range),
    }
}

fn ordered_key(key: &[u8]) -> Bytes {
    let mut encoded = BytesMut::with_capacity(key.len() + 2);
    ordered::put_bytes(&mut encoded, key);
    encoded.freeze()
}

/// The key in `history` of the version of `key` that was superseded at `superseded_at`.
pub(super) fn history_key(key: &[u8], superseded_at: Timestamp) -> Bytes {
    let mut encoded = BytesMut::with_capacity(key.len() + 10);
    ordered::put_bytes(&mut encoded, key);
    encoded.put_u64(superseded_at.0);
    encoded.freeze()
}

/// The versions of `key` in `history` that were superseded after `ts`, the oldest first.
pub(super) fn superseded_after(key: &[u8], ts: Timestamp) -> KeyRange {
    let end = prefix_end(&ordered_key(key));
    match ts.0.checked_add(1) {
        Some(next) => KeyRange { start: history_key(key, Timestamp(next)), end },
        None => KeyRange { start: end.clone().unwrap_or_default(), end },
    }
}
