//! Floor 5: Raft groups. The only place that names openraft.

mod types;

pub use types::{Applied, Payload, TypeConfig};
