//! Every keyspace, and every prefix of a key that lasts, in one file.
//!
//! The first byte of an internal key is its keyspace. Users' keys may be any bytes; the byte in front
//! keeps them apart from what the system stores about itself.

use bytes::{BufMut, Bytes, BytesMut};

use crate::types::{KeyRange, NodeId, StoreId};

/// The system keyspace: node registry, shard map, timestamp ceiling.
pub const SYSTEM: u8 = 0x00;
/// Users' keys.
pub const USER: u8 = 0x01;
/// Query indexes.
pub const INDEX: u8 = 0x02;
/// Sagas.
pub const SAGA: u8 = 0x03;

/// The internal key of a user's key.
pub fn user_key(key: &[u8]) -> Bytes {
    let mut internal = BytesMut::with_capacity(key.len() + 1);
    internal.put_u8(USER);
    internal.put_slice(key);
    internal.freeze()
}

/// The user's key in an internal key; `None` where it is of another keyspace.
pub fn strip_user(internal: &Bytes) -> Option<Bytes> {
    (internal.first() == Some(&USER)).then(|| internal.slice(1..))
}

/// The internal range of a range of users' keys.
pub fn user_range(range: &KeyRange) -> KeyRange {
    let end = match &range.end {
        Some(end) => user_key(end),
        None => Bytes::from_static(&[USER + 1]),
    };
    KeyRange { start: user_key(&range.start), end: Some(end) }
}

/// All of the system keyspace.
pub fn system_range() -> KeyRange {
    KeyRange::new(Bytes::new(), Some(Bytes::from_static(&[USER])))
}

/// The system key of a node's registry record.
pub fn node_record(node: NodeId) -> Bytes {
    let mut key = BytesMut::from(&b"\x00node/"[..]);
    key.put_u64(node.0);
    key.freeze()
}

/// The system key of the node id that a store was given: a store gets one id, however often it asks.
pub fn store_record(store: StoreId) -> Bytes {
    let mut key = BytesMut::from(&b"\x00store/"[..]);
    key.put_u128(store.0);
    key.freeze()
}

/// The system keys of all nodes' registry records.
pub fn node_records() -> KeyRange {
    KeyRange::prefix(&b"\x00node/"[..])
}

/// The system key of a shard's catalogue entry, by the start of its range, so that the map is read in
/// key order.
pub fn shard_record(range_start: &[u8]) -> Bytes {
    let mut key = BytesMut::from(&b"\x00shard/"[..]);
    key.put_slice(range_start);
    key.freeze()
}

/// The system keys of all shards' catalogue entries.
pub fn shard_records() -> KeyRange {
    KeyRange::prefix(&b"\x00shard/"[..])
}

/// The system key of a named consumer of the changelog.
pub fn consumer(name: &str) -> Bytes {
    let mut key = BytesMut::from(&b"\x00consumer/"[..]);
    key.put_slice(name.as_bytes());
    key.freeze()
}

/// The system keys of all named consumers.
pub fn consumers() -> KeyRange {
    KeyRange::prefix(&b"\x00consumer/"[..])
}

/// After an index's id and version: how far it is, one row.
pub const INDEX_CHECKPOINT: u8 = 0x00;
/// After an index's id and version: its definition, one row.
pub const INDEX_DEFINITION: u8 = 0x04;
/// After an index's id and version: why a row is not in it, one for each such row.
pub const INDEX_DEAD_LETTER: u8 = 0x03;
/// After an index's id and version: an entry, one for each row of users.
pub const INDEX_ENTRY: u8 = 0x01;
/// After an index's id and version: a group, one for each value.
pub const INDEX_GROUP: u8 = 0x02;
/// Bytes of an index row's key before its fields: keyspace, id, version, what kind of row.
pub const INDEX_HEADER_BYTES: usize = 1 + 8 + 4 + 1;

/// How keys of one version of an index begin, before what kind of row it is.
fn index_version_prefix(id: u64, version: u32) -> BytesMut {
    let mut key = BytesMut::with_capacity(64);
    key.put_u8(INDEX);
    key.put_u64(id);
    key.put_u32(version);
    key
}

/// How the keys of all rows of one kind of an index begin. Of an entry ([`INDEX_ENTRY`]) or a group ([`INDEX_GROUP`]) its
/// fields follow, of a dead letter ([`INDEX_DEAD_LETTER`]) the user's key, of the checkpoint ([`INDEX_CHECKPOINT`]) and the definition
/// ([`INDEX_DEFINITION`]) nothing.
pub fn index_rows(id: u64, version: u32, rows: u8) -> BytesMut {
    let mut key = index_version_prefix(id, version);
    key.put_u8(rows);
    key
}

/// All rows of one version of an index.
pub fn index_version_range(id: u64, version: u32) -> KeyRange {
    KeyRange::prefix(index_version_prefix(id, version))
}

/// All rows of all query indexes.
pub fn index_range() -> KeyRange {
    KeyRange::prefix(&[INDEX][..])
}

/// The system key of an index, by its name.
pub fn index_record(name: &str) -> Bytes {
    let mut key = BytesMut::from(&b"\x00index/"[..]);
    key.put_slice(name.as_bytes());
    key.freeze()
}

/// The system keys of all indexes.
pub fn index_records() -> KeyRange {
    KeyRange::prefix(&b"\x00index/"[..])
}

/// The most shards that sagas are spread over: what a saga's rows begin with is one of so many bytes.
pub const SAGA_PARTITIONS: usize = 256;
/// Where a saga is that has not ended, or has not told everybody who has to know: one row.
pub const SAGA_OPEN: u8 = 0x01;
/// Where a saga is that has ended: one row.
pub const SAGA_CLOSED: u8 = 0x02;
/// What happened in a saga: a row for each time that something did.
pub const SAGA_HISTORY: u8 = 0x03;
/// A saga's input, and what its steps came to.
pub const SAGA_PAYLOAD: u8 = 0x04;
/// A step that is a transaction may be committed: a row while a worker has it.
pub const SAGA_LEASE: u8 = 0x05;
/// What was written by transactions of users and the saga does not know of yet.
pub const SAGA_NEWS: u8 = 0x06;
/// Sagas by their status and name.
pub const SAGA_BY_STATUS: u8 = 0x07;
/// Sagas by their attributes.
pub const SAGA_BY_ATTRIBUTE: u8 = 0x08;
/// Sagas that have ended, by when they are to be forgotten.
pub const SAGA_BY_EXPIRY: u8 = 0x09;
/// Schedules.
pub const SAGA_SCHEDULE: u8 = 0x0a;

/// How all rows of one kind in a partition begin.
pub fn saga_rows(partition: u8, rows: u8) -> BytesMut {
    let mut key = BytesMut::with_capacity(64);
    key.put_slice(&[SAGA, partition, rows]);
    key
}

/// The partition of a saga, by its id (FNV-1a). All of its rows are in one, and so in one shard.
pub fn saga_partition(id: &str) -> u8 {
    let hash =
        id.bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    // All of it counts, not only the lowest byte.
    (hash ^ (hash >> 8) ^ (hash >> 16) ^ (hash >> 24)) as u8
}

/// The key of one of a saga's rows: of those that there is one of, without `rest`.
pub fn saga_row(id: &str, rows: u8, rest: &[u8]) -> Bytes {
    let mut key = saga_rows(saga_partition(id), rows);
    key.put_slice(id.as_bytes());
    if !rest.is_empty() {
        // An id has no zero byte: so no saga's rows lie among another one's.
        key.put_u8(0);
        key.put_slice(rest);
    }
    key.freeze()
}

/// All of a saga's rows of a kind that there may be many of.
pub fn saga_rows_of(id: &str, rows: u8) -> KeyRange {
    let mut key = saga_rows(saga_partition(id), rows);
    key.put_slice(id.as_bytes());
    key.put_u8(0);
    KeyRange::prefix(key)
}

/// All rows of all sagas.
pub fn saga_range() -> KeyRange {
    KeyRange::prefix(&[SAGA][..])
}

/// Where shards begin that sagas are spread over evenly: the first of `shards` with the range.
pub fn saga_starts(shards: usize) -> Vec<Bytes> {
    let shards = shards.clamp(1, SAGA_PARTITIONS);
    let start = |nth: usize| match nth {
        0 => saga_range().start,
        nth => Bytes::copy_from_slice(&[SAGA, (nth * SAGA_PARTITIONS / shards) as u8]),
    };
    (0..shards).map(start).collect()
}

/// The system key of a saga's definitions, by its name.
pub fn saga_record(name: &str) -> Bytes {
    let mut key = BytesMut::from(&b"\x00saga/"[..]);
    key.put_slice(name.as_bytes());
    key.freeze()
}

/// The system key of a queue of sagas.
pub fn saga_queue(name: &str) -> Bytes {
    let mut key = BytesMut::from(&b"\x00saga-queue/"[..]);
    key.put_slice(name.as_bytes());
    key.freeze()
}

/// The system keys of all queues of sagas.
pub fn saga_queues() -> KeyRange {
    KeyRange::prefix(&b"\x00saga-queue/"[..])
}

/// The system keys of all sagas' definitions.
pub fn saga_records() -> KeyRange {
    KeyRange::prefix(&b"\x00saga/"[..])
}

/// The system key of the timestamp ceiling.
pub const TIMESTAMP_CEILING: &[u8] = b"\x00oracle/ceiling";
/// The system key of the highest node id given so far.
pub const LAST_NODE_ID: &[u8] = b"\x00last_node_id";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keyspaces_do_not_overlap() {
        let users = user_range(&KeyRange::all());
        assert!(users.contains(&user_key(b"")) && users.contains(&user_key(&[0xff; 8])));
        assert!(system_range().contains(TIMESTAMP_CEILING) && !users.contains(TIMESTAMP_CEILING));
        assert_eq!(system_range().intersect(&users), None);
        assert_eq!(strip_user(&user_key(b"k")), Some(Bytes::from_static(b"k")));
        assert_eq!(strip_user(&Bytes::from_static(TIMESTAMP_CEILING)), None);
        let index = index_version_range(u64::MAX, u32::MAX);
        assert_eq!(index.intersect(&users), None);
        assert!(index.contains(&index_rows(u64::MAX, u32::MAX, INDEX_GROUP)));
        assert!(!index.contains(&index_rows(u64::MAX, u32::MAX - 1, INDEX_GROUP)));
        assert_eq!(index_rows(7, 1, INDEX_ENTRY).len(), INDEX_HEADER_BYTES);
        let sagas = saga_range();
        assert_eq!(index_range().intersect(&sagas), None);
        assert!(
            sagas.contains(&saga_row("x", SAGA_SCHEDULE, b"y")) && sagas.contains(&saga_rows(0xff, 0xff))
        );
        assert!(saga_rows_of("x", SAGA_HISTORY).contains(&saga_row("x", SAGA_HISTORY, b"1")));
        assert!(!saga_rows_of("x", SAGA_HISTORY).contains(&saga_row("xy", SAGA_HISTORY, b"1")));
    }

    #[test]
    fn sagas_are_spread_evenly() {
        let mut counts = vec![0; SAGA_PARTITIONS];
        (0..25_600).for_each(|n| counts[usize::from(saga_partition(&format!("order-{n}")))] += 1);
        assert!(counts.iter().all(|count| (50..200).contains(count)), "{counts:?}");
        assert_eq!(saga_starts(2), [Bytes::from_static(&[SAGA]), Bytes::from_static(&[SAGA, 128])]);
        assert_eq!((saga_starts(0).len(), saga_starts(1_000).len()), (1, SAGA_PARTITIONS));
        assert!(saga_starts(SAGA_PARTITIONS).windows(2).all(|pair| pair[0] < pair[1]));
    }
}
