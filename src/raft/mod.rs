//! Floor 5: Raft groups. The only place that names openraft.
//!
//! What stores: [`LogWriter`] writes the logs and votes of all groups of a node, [`LogStore`] is one group's
//! log, [`ReplicaMachine`] its state machine, `snapshot` moves a replica's rows, `seed` makes replicas.

mod entry;
pub mod keys;
mod log_cache;
mod log_reader;
mod log_store;
mod log_writer;
mod machine;
mod records;
mod seed;
mod snapshot;
#[cfg(test)]
mod tests;
mod types;

pub use entry::{Entry, LeaderId, LogId};
pub use log_reader::{Log, LogReader};
pub use log_store::{DEFAULT_CACHE_BYTES, LogStore};
pub use log_writer::{LogWriter, LogWriterStats};
pub use machine::{GroupSnapshot, Progress, Replica, ReplicaMachine, SnapshotBuilder};
pub use records::{AppliedRecord, SnapshotMeta, StoredMembership, Vote};
pub use seed::{create_empty_replica, create_group, exists, list_groups, recover};
pub use snapshot::{
    ReceivedSnapshot, SnapshotData, SnapshotPart, SnapshotReceiver, SnapshotRow, SnapshotSource,
    family_number,
};
pub use types::{Applied, Payload, TypeConfig};
