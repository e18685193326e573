//! Rows of the family `changelog`: which key was changed when, shard by shard.
//!
//! The key is the shard's id, the commit timestamp and the internal key, so that the changes of a shard lie in commit
//! order. The value is a format byte and two running totals. What was written, and what it took the place of, is not
//! repeated here: versions are kept as long as the rows are (see docs/decisions, "changelog rows point at versions").

use bytes::{BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};

use crate::codec::ordered::take_u64;
use crate::types::{Error, KeyRange, Result, ShardId, Timestamp};

const FORMAT: u8 = 1;

/// All that a shard's changelog was ever given: rows, and bytes of what they stand for. Running totals lie in the rows
/// too, so that the difference of two says how much lies between them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Totals {
    /// Rows.
    pub entries: u64,
    /// Bytes of the changes: keys and versions, as they are stored.
    pub size_bytes: u64,
}

impl Totals {
    /// What was added since `earlier`.
    pub fn since(self, earlier: Totals) -> Totals {
        Totals {
            entries: self.entries.saturating_sub(earlier.entries),
            size_bytes: self.size_bytes.saturating_sub(earlier.size_bytes),
        }
    }
}

/// A row's key.
pub fn key(shard: ShardId, commit_ts: Timestamp, changed: &[u8]) -> Bytes {
    let mut row = BytesMut::with_capacity(16 + changed.len());
    row.put_u64(shard.0);
    row.put_u64(commit_ts.0);
    row.put_slice(changed);
    row.freeze()
}

/// A row's value: the totals with this row counted.
pub fn value(totals: Totals) -> Bytes {
    let mut value = BytesMut::with_capacity(17);
    value.put_u8(FORMAT);
    value.put_u64(totals.entries);
    value.put_u64(totals.size_bytes);
    value.freeze()
}

/// When which key was changed.
///
/// # Errors
///
/// `Corrupt` where it is not the key of a row.
pub fn parse_key(row: &Bytes) -> Result<(Timestamp, Bytes)> {
    match commit_ts(row) {
        Some(commit_ts) => Ok((commit_ts, row.slice(16..))),
        None => Err(Error::corrupt(format!(
            "the changelog has a row under {}, which is too short: rebuild this replica",
            hex::encode(row)
        ))),
    }
}

/// The commit timestamp in a row's key.
pub fn commit_ts(row: &[u8]) -> Option<Timestamp> {
    take_u64(&mut row.get(8..)?).map(Timestamp)
}

/// The totals in a row's value.
///
/// # Errors
///
/// `Corrupt` where the format is unknown or the value malformed.
pub fn parse_value(value: &[u8]) -> Result<Totals> {
    let totals = match value.split_first() {
        Some((&FORMAT, mut rest)) => {
            let (entries, size_bytes) = (take_u64(&mut rest), take_u64(&mut rest));
            entries.zip(size_bytes).filter(|_| rest.is_empty())
        }
        _ => None,
    };
    match totals {
        Some((entries, size_bytes)) => Ok(Totals { entries, size_bytes }),
        None => Err(Error::corrupt(format!(
            "a row of the changelog holds {}, which is not of format {FORMAT}: start a build at least as new as the one \
             that wrote it, or rebuild this replica",
            hex::encode(value)
        ))),
    }
}

/// The rows of a shard's changes after `after`, up to and with `through`.
pub fn between(shard: ShardId, after: Timestamp, through: Timestamp) -> KeyRange {
    let from = |ts: Timestamp| key(shard, Timestamp(ts.0.saturating_add(1)), &[]);
    KeyRange { start: from(after), end: Some(from(through)) }
}

/// All rows of a shard.
pub fn of_shard(shard: ShardId) -> KeyRange {
    KeyRange::prefix(Bytes::copy_from_slice(&shard.0.to_be_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_lie_in_commit_order_within_their_shard() {
        let row = |shard, ts, key: &[u8]| super::key(ShardId(shard), Timestamp(ts), key);
        let rows = [
            row(1, 9, b"z"),
            row(2, 3, b"b"),
            row(2, 4, b"a"),
            row(2, 4, b"ab"),
            row(2, 5, b""),
            row(3, 1, b"a"),
        ];
        assert!(rows.is_sorted());
        let inside = between(ShardId(2), Timestamp(3), Timestamp(4));
        assert_eq!(rows.iter().filter(|row| inside.contains(row)).count(), 2);
        assert_eq!(rows.iter().filter(|row| of_shard(ShardId(2)).contains(row)).count(), 4);
        assert_eq!(parse_key(&rows[3]), Ok((Timestamp(4), Bytes::from_static(b"ab"))));
    }

    #[test]
    fn malformed_rows_are_refused() {
        let totals = Totals { entries: 7, size_bytes: 1 << 40 };
        assert_eq!(parse_value(&value(totals)), Ok(totals));
        for length in 0..16 {
            assert!(parse_key(&Bytes::from(vec![0; length])).is_err());
            assert!(parse_value(&value(totals)[..length]).is_err());
        }
        let mut newer = value(totals).to_vec();
        newer[0] = 2;
        assert!(parse_value(&newer).is_err());
    }
}
