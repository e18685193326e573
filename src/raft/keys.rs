//! Where a group keeps its log and its records: keys of the families `Log` and `Group`.
//!
//! A log key is group and index, a record's key is group and item, numbers big-endian, so that a group's
//! keys stand together and its entries stand in order.

use bytes::{BufMut, Bytes, BytesMut};

use crate::codec::ordered;
use crate::types::{KeyRange, ShardId};

/// The group number under which a node keeps what it knows of itself. No shard has it.
pub const NODE_GROUP: ShardId = ShardId(u64::MAX);

/// A record of a group. The numbers are on disk: never change one, never use one again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Item {
    /// There is a replica of the group here. Written first, with everything else of a new replica.
    Replica = 0,
    /// The last vote.
    Vote = 1,
    /// The id of the last entry that was purged.
    Purged = 2,
    /// What was applied: last log id, membership, the shard's state.
    Applied = 3,
    /// A snapshot was built or installed here; holds the log id that it had then.
    Snapshot = 4,
    /// A received snapshot is being installed.
    Installing = 5,
}

/// The key of a group's record.
pub fn item(group: ShardId, item: Item) -> Bytes {
    node_item(group, item as u8)
}

/// The key of a node's own record, by a number that the node chooses.
pub fn node_record(number: u8) -> Bytes {
    node_item(NODE_GROUP, number)
}

fn node_item(group: ShardId, number: u8) -> Bytes {
    let mut key = BytesMut::with_capacity(9);
    key.put_u64(group.0);
    key.put_u8(number);
    key.freeze()
}

/// The group and the number of a record's key; `None` where it is not one.
pub fn parse_item(mut key: &[u8]) -> Option<(ShardId, u8)> {
    let group = ordered::take_u64(&mut key)?;
    let [number] = key else { return None };
    Some((ShardId(group), *number))
}

/// The key of a log entry.
pub fn log(group: ShardId, index: u64) -> Bytes {
    let mut key = BytesMut::with_capacity(16);
    key.put_u64(group.0);
    key.put_u64(index);
    key.freeze()
}

/// The keys of the log entries from `start` up to, not including, `end`.
pub fn log_range(group: ShardId, start: u64, end: u64) -> KeyRange {
    KeyRange::new(log(group, start), Some(log(group, end.max(start))))
}

/// The keys of a group's log entries from `start` on.
pub fn log_from(group: ShardId, start: u64) -> KeyRange {
    let end = group.0.checked_add(1).map(|next| log(ShardId(next), 0));
    KeyRange::new(log(group, start), end)
}

/// The index in a log entry's key; `None` where it is not one of the group.
pub fn parse_log(group: ShardId, mut key: &[u8]) -> Option<u64> {
    let found = ordered::take_u64(&mut key)?;
    let index = ordered::take_u64(&mut key)?;
    (found == group.0 && key.is_empty()).then_some(index)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_stand_in_order_and_parse_back() {
        let group = ShardId(7);
        assert!(log(group, 255) < log(group, 256) && log(group, u64::MAX) < log(ShardId(8), 0));
        assert_eq!(parse_log(group, &log(group, 9)), Some(9));
        assert_eq!(parse_log(ShardId(8), &log(group, 9)), None);
        assert!(log_from(group, 3).contains(&log(group, u64::MAX)));
        assert!(!log_from(group, 3).contains(&log(ShardId(8), 0)));
        assert_eq!(log_from(NODE_GROUP, 0).end, None);
        assert_eq!(parse_item(&item(group, Item::Applied)), Some((group, 3)));
        assert_eq!(parse_item(&log(group, 9)), None);
        assert!(log_range(group, 5, 2).is_empty());
    }
}
