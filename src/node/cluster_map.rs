//! Where every shard is, as this node knows it: its own replicas first (they are the authority), then the
//! catalogue in the system keyspace, here or from a node that has it.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::de::DeserializeOwned;

use super::calls;
use super::member::Member;
use crate::codec::{self, keyspace};
use crate::raft::{Group, Leadership};
use crate::rpc::{convert, v1};
use crate::shard;
use crate::types::{
    Direction, KeyRange, NodeId, NodeRecord, Result, ShardDescriptor, ShardId, Timestamp, limits,
};

const CALL_TIMEOUT: Duration = Duration::from_millis(1000);

/// Every shard in key order, with the node that leads it (0 where that is not known).
///
/// # Errors
///
/// `Corrupt` where the catalogue can't be read.
pub async fn placements(member: &Member) -> Result<Vec<(ShardDescriptor, NodeId)>> {
    let mut shards: BTreeMap<ShardId, (ShardDescriptor, NodeId)> = BTreeMap::new();
    if let Some(system) = member.host().group(ShardId::SYSTEM) {
        for descriptor in catalogue(&system)? {
            shards.insert(descriptor.id, (descriptor, NodeId(0)));
        }
    } else {
        for placement in from_another_node(member).await {
            if let Some(shard) = placement.shard {
                let descriptor = convert::descriptor_from_proto(shard)?;
                shards.insert(descriptor.id, (descriptor, NodeId(placement.leader)));
            }
        }
    }
    for group in member.host().groups() {
        let descriptor = group.state().descriptor.clone();
        let leader = match group.leadership() {
            Leadership::Leading(_) => group.node(),
            Leadership::Following { leader } => leader.unwrap_or_default(),
            Leadership::Stopped { .. } => NodeId(0),
        };
        let newer = shards.get(&descriptor.id).is_some_and(|(known, _)| known.epoch > descriptor.epoch);
        if !newer {
            shards.insert(descriptor.id, (descriptor, leader));
        }
    }
    let mut shards: Vec<_> = shards.into_values().collect();
    shards.sort_by(|(a, _), (b, _)| a.range.start.cmp(&b.range.start));
    Ok(shards)
}

/// The map as a reply.
pub async fn read(member: &Member) -> Result<v1::GetMapReply> {
    let shards = placements(member).await?;
    let mut nodes = member.host().peers().all();
    nodes.push(member.record().clone());
    nodes.sort_by_key(|node| node.id);
    Ok(v1::GetMapReply {
        cluster_id: member.cluster().to_string(),
        nodes: nodes.iter().map(convert::node_to_proto).collect(),
        shards: shards
            .iter()
            .map(|(descriptor, leader)| v1::Placement {
                shard: Some(convert::descriptor_to_proto(descriptor)),
                leader: leader.0,
            })
            .collect(),
        seen_ts: seen(member).await.0,
    })
}

/// A first timestamp for a client's request ids. Without the oracle the newest known one must do: it
/// makes the client's first write ask again.
async fn seen(member: &Member) -> Timestamp {
    match member.timestamps().recent(Duration::from_secs(5)).await {
        Ok(ts) => ts,
        Err(_) => member.timestamps().newest_seen(),
    }
}

/// The catalogue, as this node's replica of the system shard has it. It may lag: it is only a catalogue.
pub fn catalogue(system: &Group) -> Result<Vec<ShardDescriptor>> {
    read_all(system, keyspace::shard_records(), "an entry of the shard catalogue")
}

/// The registry of nodes, as this node's replica of the system shard has it. It may lag.
pub fn registry(system: &Group) -> Result<Vec<NodeRecord>> {
    read_all(system, keyspace::node_records(), "a record of the node registry")
}

fn read_all<T: DeserializeOwned>(system: &Group, range: KeyRange, what: &str) -> Result<Vec<T>> {
    let replica = system.replica();
    let view = replica.view()?;
    let mut values = Vec::new();
    let mut request = shard::PageRequest {
        range,
        direction: Direction::Forward,
        keys_only: false,
        at: Timestamp::MAX,
        max_rows: limits::MAX_PAGE_ROWS,
        max_bytes: limits::MAX_PAGE_BYTES,
    };
    loop {
        // A catalogue that may lag need not wait for locks.
        let page =
            shard::scan_page(&*view, shard::Counts::default(), &request, &shard::Fates::new())?.unlocked()?;
        for (_, record) in &page.rows {
            values.push(codec::decode(&record.value, what)?);
        }
        match page.next {
            Some(next) => request = request.rest(next),
            None => return Ok(values),
        }
    }
}

async fn from_another_node(member: &Member) -> Vec<v1::Placement> {
    for peer in member.host().peers().all() {
        let asked = member.host().call(peer.id, calls::GET_MAP, bytes::Bytes::new(), CALL_TIMEOUT).await;
        match asked.and_then(calls::decode_map) {
            Ok(map) => return map.shards,
            Err(error) => tracing::debug!(peer = %peer.id, %error, "no map from this node"),
        }
    }
    Vec::new()
}
