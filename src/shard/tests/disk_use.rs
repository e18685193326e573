//! Garbage collection keeps the disk from filling: bytes after a fixed number of overwrites.

use super::*;
use crate::engine::{Durability, Engine, Family, Overlay, RocksEngine, RocksOptions};
use crate::mvcc::Floors;
use crate::shard;
use crate::types::Direction;

const KEYS: u64 = 20;
const OVERWRITES: u64 = 400;
const VALUE_BYTES: usize = 2048;
const ROUNDS: u64 = 6;

/// Bytes that no compression makes smaller.
fn noise(seed: u64) -> Bytes {
    let word = |number: u64| xxhash_rust::xxh3::xxh3_64_with_seed(&number.to_le_bytes(), seed);
    (0..VALUE_BYTES as u64 / 8).flat_map(|number| word(number).to_le_bytes()).collect()
}

/// Overwrites the same keys in each round, eleven minutes apart, with as many commands that leave markers.
/// Bytes on disk, and markers, after each round's compaction.
fn rounds(collect: bool) -> Vec<(u64, usize)> {
    let dir = tempfile::tempdir().expect("a directory");
    let engine = RocksEngine::open(&dir.path().join("db"), &RocksOptions::default()).expect("opens");
    let floors = Floors::new(shard::may_drop);
    engine.set_drop_rules(floors.clone());
    let mut state = new_state();
    let mut sizes = Vec::new();
    for round in 0..ROUNDS {
        let mut timestamp = Timestamp::from_ms((round + 1) * 11 * 60_000);
        let mut operations: Vec<Operation> = Vec::new();
        for number in 0..OVERWRITES {
            let key = Bytes::from(format!("key {}", number % KEYS));
            operations.push(Operation::Put { key, value: noise(round * OVERWRITES + number) });
            operations.push(Operation::Delete { key: Bytes::from(format!("absent {}", number % KEYS)) });
        }
        if collect {
            operations.push(Operation::AdvanceSafePoint { safe_point: timestamp, truncated: timestamp });
        }
        let commands = operations.into_iter().map(|operation| {
            let seen = timestamp;
            timestamp = timestamp.plus(1);
            let id = RequestId { seen, unique: u128::from(seen.0) };
            Command { id, timestamp, operation }
        });
        let entry = Entry::Commands(commands.collect());
        let view = engine.view();
        let mut overlay = Overlay::new(view.as_ref());
        apply(&mut state, &mut overlay, &entry).expect("applies");
        let batch = overlay.into_batch();
        drop(view);
        engine.write(batch, Durability::Synced).expect("writes");
        floors.publish(state.descriptor.id, state.descriptor.range.clone(), state.floor());
        engine.compact_all().expect("compacts");
        let markers = engine.view().scan(Family::Txn, &KeyRange::all(), Direction::Forward).count();
        sizes.push((engine.stats().size_bytes, markers));
    }
    sizes
}

#[test]
fn the_disk_stays_flat_under_overwrites() {
    let (kept, collected) = (rounds(false), rounds(true));
    let round_bytes = OVERWRITES * VALUE_BYTES as u64;
    let (first, last) = (collected[0].0, collected[ROUNDS as usize - 1].0);
    assert!(first > round_bytes, "values are stored as they are: {collected:?}");
    // A version more of each key than in the first round, and markers of one lifetime more.
    let more = (KEYS + 1) * VALUE_BYTES as u64 + 64 * 1024;
    assert!(last < first + more, "grows: {collected:?}");
    assert!(kept[ROUNDS as usize - 1].0 > ROUNDS * round_bytes, "nothing is dropped unasked: {kept:?}");
    let markers = OVERWRITES as usize;
    assert!(collected.iter().all(|(_, count)| *count <= 2 * markers), "markers stay: {collected:?}");
    assert_eq!(kept[ROUNDS as usize - 1].1, ROUNDS as usize * markers);
}
