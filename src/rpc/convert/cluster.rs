//! Shards and nodes.

use crate::rpc::v1;
use crate::types::{Epoch, Error, KeyRange, NodeId, NodeRecord, Result, ShardDescriptor, ShardId};

/// A shard; its range keeps the keyspace byte.
pub fn descriptor_to_proto(shard: &ShardDescriptor) -> v1::Shard {
    v1::Shard {
        id: shard.id.0,
        start: shard.range.start.clone(),
        end: shard.range.end.clone(),
        epoch: shard.epoch.0,
        replicas: shard.replicas.iter().map(|node| node.0).collect(),
    }
}

/// A shard, with a range that can hold a key.
pub fn descriptor_from_proto(shard: v1::Shard) -> Result<ShardDescriptor> {
    let range = KeyRange::new(shard.start, shard.end);
    if range.is_empty() {
        return Err(Error::invalid(format!(
            "shard {} has the empty range {range:?}: its end must be past its start",
            shard.id
        )));
    }
    Ok(ShardDescriptor {
        id: ShardId(shard.id),
        range,
        epoch: Epoch(shard.epoch),
        replicas: shard.replicas.into_iter().map(NodeId).collect(),
    })
}

/// A node of the registry.
pub fn node_to_proto(node: &NodeRecord) -> v1::Node {
    v1::Node {
        id: node.id.0,
        grpc_addr: node.grpc_addr.clone(),
        http_addr: node.http_addr.clone(),
        zone: node.zone.clone(),
        version: node.version.clone(),
    }
}
