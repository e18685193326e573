//! What a shard and a node are, as the system shard and the shards themselves record it.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{KeyRange, NodeId, ShardId, StoreId};

/// Counts the changes of a shard's range and members. A request under an older epoch is answered `Moved`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Epoch(pub u64);

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A shard's range, epoch and members. The authority is the shard's own state; copies elsewhere may lag.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ShardDescriptor {
    /// The shard's id, which is its Raft group's id too.
    pub id: ShardId,
    /// The keys it holds, with their keyspace byte in front (`codec::keyspace`).
    pub range: KeyRange,
    /// Rises with every change of range or members.
    pub epoch: Epoch,
    /// The nodes that hold a replica.
    pub replicas: Vec<NodeId>,
}

/// A node, as the registry in the system shard records it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct NodeRecord {
    /// The node's id.
    pub id: NodeId,
    /// The data directory that bears the id.
    pub store: StoreId,
    /// Where others reach its gRPC port, as `host:port`.
    pub grpc_addr: String,
    /// Where others reach its HTTP port, as `host:port`; empty where it has none.
    pub http_addr: String,
    /// The failure domain it says it is in; empty where it says none.
    pub zone: String,
    /// The version of kvorum it runs.
    pub version: String,
}
