//! Floor 5: Raft groups. The only place that names openraft.
//!
//! A node has one [`Host`]. It holds the node's [`Group`]s (its replicas), the connections to other
//! nodes, and one log writer for all groups. Whoever stands above proposes entries, asks whether a replica
//! may answer a read, and calls other nodes; nothing of openraft shows.

mod group;
mod host;
mod leadership;
mod peers;
mod proposal;
mod status;
mod timing;
mod types;

pub use group::{Group, ReadPoint};
pub use host::{CallHandler, Host, HostConfig};
pub use leadership::{Leadership, Token};
pub use peers::PeerBook;
pub use proposal::{Proposal, ProposeError};
pub use status::{GroupStatus, Role};
pub use timing::Timing;
pub use types::{Applied, Payload, TypeConfig};
