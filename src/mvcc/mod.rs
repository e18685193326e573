//! Floor 2: versions of keys.
//!
//! The newest version of a key is a row of the family `current`, under the key itself. The write that
//! supersedes it moves it, as it is, to the family `history`, under the key and the timestamp of that
//! write. So reads of the newest version touch one row, and a snapshot read at T finds what it needs with
//! one more: the first entry of the key's history that was superseded after T, if that entry had been
//! committed at or before T; else the key was absent at T.
//!
//! A removed key keeps a tombstone in `current`, and tombstones move to the history like values: they
//! carry the id of the request that wrote them (rule R8).
//!
//! What was superseded or removed at or before the safe point may be dropped (`gc`), by each replica when its
//! engine compacts (`floor`): reads there are refused above, and writes do not depend on it.
//!
//! Functions here take internal keys (`codec::keyspace`) and know nothing of shards, locks or ids beyond
//! storing them.

mod family;
mod floor;
mod gc;
mod read;
mod row;
mod write;

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

pub use family::{family_range, shard_rows};
pub use floor::{Floor, Floors, Hold, MayDrop};
pub use gc::may_drop_version;
pub use read::{Examined, at, committed_at, current, latest, newer_in, scan, superseded_at, written_by};
pub use row::{Row, Version, commit_ts, is_tombstone};
pub use write::{overwrite, write};
