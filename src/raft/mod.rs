//! Floor 5: Raft groups. The only place that names openraft.
//!
//! A node has one [`Host`]. It holds the node's [`Group`]s (its replicas), the connections to other
//! nodes, and one log writer for all groups. Whoever stands above proposes entries, asks whether a replica
//! may answer a read, and calls other nodes.
//!
//! What stores: [`LogWriter`] writes the logs and votes of all groups of a node, [`LogStore`] is one group's
//! log, [`ReplicaMachine`] its state machine, `snapshot` moves a replica's rows, `seed` makes replicas.
//!
//! What connects: `transport` has one stream for each ordered pair of nodes, `network` is openraft's view
//! of it, `inbound` the way from it to the groups, `transfer` carries snapshots, `peers` knows addresses.
//!
//! What runs: `core` is one running Raft core, [`Group`] what stands in front of it, `supervision` starts
//! it again when it stops, `gate` keeps the promises it made before, `wakefulness` notices that the machine
//! was suspended, `housekeeping` cuts its log.

mod append_stream;
mod core;
mod entry;
mod gate;
mod group;
mod host;
mod housekeeping;
mod inbound;
pub mod keys;
mod leadership;
mod log_cache;
mod log_reader;
mod log_store;
mod log_writer;
mod machine;
mod network;
mod peers;
mod proposal;
mod records;
mod seed;
mod snapshot;
mod status;
mod supervision;
#[cfg(test)]
mod tests;
mod timing;
mod transfer;
mod transport;
mod types;
mod wakefulness;

pub use entry::{Entry, LeaderId, LogId};
pub use group::{Group, ReadPoint};
pub use host::{CallHandler, Host, HostConfig};
pub use leadership::{Leadership, Token};
pub use log_reader::{Log, LogReader};
pub use log_store::{DEFAULT_CACHE_BYTES, LogStore};
pub use log_writer::{LogWriter, LogWriterStats};
pub use machine::{GroupSnapshot, Heard, Progress, Replica, ReplicaMachine, SnapshotBuilder};
pub use peers::PeerBook;
pub use proposal::{Proposal, ProposeError};
pub use records::{AppliedRecord, SnapshotMeta, StoredMembership, Vote};
pub use seed::{create_empty_replica, create_group, exists, list_groups, recover};
pub use snapshot::{
    ReceivedSnapshot, SnapshotData, SnapshotPart, SnapshotReceiver, SnapshotRow, SnapshotSource,
    family_number,
};
pub use status::{GroupStatus, Role};
pub use timing::Timing;
pub use transport::{Faults, FrameStream, MAX_MESSAGE_BYTES, STREAM_WINDOW_BYTES};
pub use types::{Applied, Payload, TypeConfig};
