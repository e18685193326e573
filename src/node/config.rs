//! What a node is told when it starts.

use std::path::PathBuf;
use std::time::Duration;

use crate::raft::Timing;

/// How much of the changelog is kept, and with it of old versions. What transactions under way may need is kept in any
/// case ([`limits::RETENTION_MS`](crate::types::limits::RETENTION_MS)). The leader of a shard goes by its own settings.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ChangelogRetention {
    /// For how long.
    pub time: Duration,
    /// How many bytes of changes in a shard, at most.
    pub size_bytes: u64,
}

impl Default for ChangelogRetention {
    fn default() -> Self {
        Self { time: Duration::from_secs(3600), size_bytes: 1024 * 1024 * 1024 }
    }
}

/// The settings of one node.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// Where the node keeps everything. Made if it is not there.
    pub data_dir: PathBuf,
    /// The gRPC address to listen on, as `host:port`; port 0 takes a free one.
    pub listen: String,
    /// The gRPC address that others reach this node at; by default the one it listens on.
    pub advertise: Option<String>,
    /// The HTTP address that others reach this node at, as the registry shows it; empty for none.
    pub http_addr: String,
    /// gRPC addresses of nodes to form or join a cluster with. Empty: a new node is a cluster of its own.
    pub join: Vec<String>,
    /// The failure domain the node is in; empty for none.
    pub zone: String,
    /// Bytes of commands that may wait on this node at once.
    pub admission_bytes: usize,
    /// Bytes of the cache of rows read from disk.
    pub block_cache_bytes: usize,
    /// How much of the changelog is kept.
    pub changelog: ChangelogRetention,
    /// Heartbeats, elections, log retention.
    pub timing: Timing,
    /// Whether sagas' clock is put forward over what they wait for, once nothing else is to be done: for tests of sagas.
    pub skips_saga_waits: bool,
}

impl NodeConfig {
    /// The defaults, on a data directory.
    pub fn new(data_dir: impl Into<PathBuf>) -> Self {
        Self {
            data_dir: data_dir.into(),
            listen: "127.0.0.1:7400".to_string(),
            advertise: None,
            http_addr: String::new(),
            join: Vec::new(),
            zone: String::new(),
            admission_bytes: 128 * 1024 * 1024,
            block_cache_bytes: 128 * 1024 * 1024,
            changelog: ChangelogRetention::default(),
            timing: Timing::default(),
            skips_saga_waits: false,
        }
    }
}
