//! Checksums by which replicas are compared.

use xxhash_rust::xxh3::Xxh3;

use super::{State, gc};
use crate::engine::{BatchEntry, Family, View};
use crate::mvcc;
use crate::types::{Direction, Result, Timestamp};

/// The running checksum after an entry: over the one before it, the closed timestamp it leaves and its
/// writes in their order. Equal on all replicas at the same log index, however entries are grouped into
/// batches of the engine.
pub(super) fn chain(before: u64, closed: Timestamp, written: &[BatchEntry]) -> u64 {
    let mut hash = Xxh3::with_seed(before);
    hash.update(&closed.0.to_le_bytes());
    for entry in written {
        match entry {
            BatchEntry::Put(family, key, value) => {
                update(&mut hash, b'p', *family);
                update_bytes(&mut hash, key);
                update_bytes(&mut hash, value);
            }
            BatchEntry::Delete(family, key) => {
                update(&mut hash, b'd', *family);
                update_bytes(&mut hash, key);
            }
            BatchEntry::DeleteRange(family, range) => {
                update(&mut hash, b'r', *family);
                update_bytes(&mut hash, &range.start);
                hash.update(&[u8::from(range.end.is_some())]);
                update_bytes(&mut hash, range.end.as_deref().unwrap_or_default());
            }
        }
    }
    hash.digest()
}

/// What the rows of a range come to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct RowsChecksum {
    /// How many rows there are, in all families of the shard's data together.
    pub rows: u64,
    /// Over families, keys and values, in their order.
    pub hash: u64,
}

/// Reads every row of a shard's data, and sums it up. For comparing replicas that have applied the same log index,
/// so with the same state: rows that one of them may have dropped are left out. Reads everything: call it where blocking is allowed.
///
/// # Errors
///
/// Those of the engine.
pub fn checksum_rows(view: &dyn View, state: &State) -> Result<RowsChecksum> {
    let mut hash = Xxh3::new();
    let mut rows = 0;
    for family in Family::SHARD_DATA {
        let range = mvcc::shard_rows(family, state.descriptor.id, &state.descriptor.range);
        if range.is_empty() {
            continue;
        }
        for row in view.scan(family, &range, Direction::Forward) {
            let (key, value) = row?;
            if gc::may_drop(family, &key, &value, state.floor().of(family)) {
                continue;
            }
            update(&mut hash, b'p', family);
            update_bytes(&mut hash, &key);
            update_bytes(&mut hash, &value);
            rows += 1;
        }
    }
    Ok(RowsChecksum { rows, hash: hash.digest() })
}

fn update(hash: &mut Xxh3, what: u8, family: Family) {
    hash.update(&[what]);
    update_bytes(hash, family.name().as_bytes());
}

/// The length goes first, so that no two sequences of strings hash the same bytes.
fn update_bytes(hash: &mut Xxh3, bytes: &[u8]) {
    hash.update(&(bytes.len() as u64).to_le_bytes());
    hash.update(bytes);
}
