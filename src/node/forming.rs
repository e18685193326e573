//! How clusters come to be: one node makes the plan and has every node adopt its part of it; later nodes
//! join and are given an id.
//!
//! The plan is stored before anything is done by it, so an interrupted `init` is repeated to the same end:
//! same cluster id, same node ids, same shards. Every step can be done again.

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::cuts::{self, Cut};
use super::identity;
use super::peer_client;
use crate::rpc::internal::v1 as internal;
use crate::rpc::{convert, v1};
use crate::types::{ClusterId, Error, NodeId, NodeRecord, Result, ShardDescriptor, StoreId};

const PLAN_FILE: &str = "init.json";
/// Replicas a shard, where `init` says nothing.
const DEFAULT_REPLICAS: usize = 3;
/// How long one node may take to adopt its part.
const ADOPT_TIMEOUT: Duration = Duration::from_secs(20);

/// Everything that `init` decides, before anything is done.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Plan {
    /// The new cluster.
    pub cluster: ClusterId,
    /// The nodes, with the ids they are given.
    pub nodes: Vec<NodeRecord>,
    /// The shards.
    pub shards: Vec<ShardDescriptor>,
}

impl Plan {
    /// A plan for one node that is a cluster of its own.
    pub fn single(mut node: NodeRecord) -> Self {
        node.id = NodeId(1);
        let shards = cuts::descriptors(&[], &[node.id], 1);
        Self { cluster: ClusterId(rand::random()), nodes: vec![node], shards }
    }

    fn load(data_dir: &Path) -> Result<Option<Self>> {
        let path = data_dir.join(PLAN_FILE);
        match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|error| {
                Error::corrupt(format!(
                    "{} is damaged: {error}; remove it and repeat the init on \
                     nodes with fresh data directories",
                    path.display()
                ))
            }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::corrupt(format!("{} can't be read: {error}", path.display()))),
        }
    }

    fn store(&self, data_dir: &Path) -> Result<()> {
        identity::write_whole(data_dir, PLAN_FILE, self)
    }

    /// The part of the plan that a node adopts.
    pub fn part_of(&self, node: &NodeRecord) -> internal::AdoptRequest {
        internal::AdoptRequest {
            cluster_id: self.cluster.to_string(),
            node_id: node.id.0,
            store_id: node.store.to_string(),
            peers: self.nodes.iter().map(peer_to_proto).collect(),
            shards: self
                .shards
                .iter()
                .filter(|shard| shard.replicas.contains(&node.id))
                .map(convert::descriptor_to_proto)
                .collect(),
        }
    }
}

/// Makes the plan of an `init`, or takes up one that was interrupted here; stores it.
///
/// # Errors
///
/// `Invalid` for a bad request, `Unavailable` where a node can't be reached, `Denied` where one belongs to
/// a cluster already. Nothing was done then.
pub async fn plan(data_dir: &Path, own: &NodeRecord, request: &v1::InitRequest) -> Result<Plan> {
    let cut = cut_of(request)?;
    let split_keys = cuts::split_keys(cut)?;
    let stored = Plan::load(data_dir)?;
    let mut nodes = probe_all(own, &request.nodes, stored.as_ref().map(|plan| plan.cluster)).await?;
    if let Some(mut plan) = stored {
        let same = |a: &NodeRecord, b: &NodeRecord| a.store == b.store;
        let complete = plan.nodes.len() == nodes.len()
            && plan.nodes.iter().all(|planned| nodes.iter().any(|probed| same(planned, probed)));
        if !complete {
            return Err(Error::denied(format!(
                "an init of other nodes ({}) was begun here and not finished: repeat it with just those, or start \
                 all nodes with fresh data directories",
                plan.nodes.iter().map(|node| node.grpc_addr.as_str()).collect::<Vec<_>>().join(", ")
            )));
        }
        for planned in &mut plan.nodes {
            if let Some(probed) = nodes.iter().find(|probed| same(planned, probed)) {
                *planned = NodeRecord { id: planned.id, ..probed.clone() };
            }
        }
        plan.store(data_dir)?;
        return Ok(plan);
    }
    for (position, node) in nodes.iter_mut().enumerate() {
        node.id = NodeId(position as u64 + 1);
    }
    let replicas = match request.replicas as usize {
        0 => DEFAULT_REPLICAS.min(nodes.len()),
        wanted if wanted <= nodes.len() => wanted,
        wanted => {
            return Err(Error::invalid(format!(
                "{wanted} replicas a shard were asked for, but there are {} nodes: ask for at most one a node",
                nodes.len()
            )));
        }
    };
    let ids: Vec<NodeId> = nodes.iter().map(|node| node.id).collect();
    let shards = cuts::descriptors(&split_keys, &ids, replicas);
    let plan = Plan { cluster: ClusterId(rand::random()), nodes, shards };
    plan.store(data_dir)?;
    Ok(plan)
}

fn cut_of(request: &v1::InitRequest) -> Result<Cut> {
    if request.nodes.is_empty() {
        return Err(Error::invalid(
            "the init names no nodes: name the gRPC address of each, this one included",
        ));
    }
    if request.split_keys.is_empty() {
        let shards = (request.shards as usize).max(1);
        return Ok(Cut::Evenly { shards, sample: request.sample_keys.clone() });
    }
    if request.shards != 0 || !request.sample_keys.is_empty() {
        return Err(Error::invalid(
            "split keys were given together with a number of shards or sample keys: give one or the other",
        ));
    }
    Ok(Cut::Before(request.split_keys.clone()))
}

/// Asks every named node who it is. All must wait for a cluster, or belong to the one that is being formed.
async fn probe_all(
    own: &NodeRecord,
    addrs: &[String],
    forming: Option<ClusterId>,
) -> Result<Vec<NodeRecord>> {
    let mut nodes: Vec<NodeRecord> = Vec::new();
    for addr in addrs {
        let reply = peer_client::probe(addr).await?;
        let cluster = parse_optional::<ClusterId>(&reply.cluster_id)?;
        if cluster.is_some() && cluster != forming {
            return Err(Error::denied(format!(
                "the node at {addr} belongs to cluster {} already (as node {}): leave it out, repeat the init where \
                 it was begun, or start it with a fresh data directory",
                reply.cluster_id, reply.node_id
            )));
        }
        let record = NodeRecord {
            id: NodeId(0),
            store: reply.store_id.parse()?,
            // The address that it was reached at is the one that surely works.
            grpc_addr: addr.clone(),
            http_addr: reply.http_addr,
            zone: reply.zone,
            version: reply.version,
        };
        if let Some(twice) = nodes.iter().find(|known| known.store == record.store) {
            return Err(Error::invalid(format!(
                "{} and {addr} are the same node: name each once",
                twice.grpc_addr
            )));
        }
        nodes.push(record);
    }
    if !nodes.iter().any(|node| node.store == own.store) {
        return Err(Error::invalid(format!(
            "the node that was asked to form the cluster ({}) is not among its nodes: name it too, or ask one of \
             them",
            own.grpc_addr
        )));
    }
    Ok(nodes)
}

/// Has every other node of the plan adopt its part. The caller adopts its own part last, so that it can
/// still be asked to repeat this until then.
///
/// # Errors
///
/// `Unavailable` where a node can't be reached: repeat the init.
pub async fn have_others_adopt(plan: &Plan, own: StoreId) -> Result<()> {
    let adopting = plan.nodes.iter().filter(|node| node.store != own).map(|node| async {
        peer_client::adopt(&node.grpc_addr, plan.part_of(node), ADOPT_TIMEOUT).await.map_err(|error| {
            Error::unavailable(format!(
                "node {} did not adopt its part of the new cluster ({error}): repeat the init",
                node.grpc_addr
            ))
        })
    });
    for adopted in futures::future::join_all(adopting).await {
        adopted?;
    }
    Ok(())
}

/// What a node adopts, checked.
pub struct Part {
    /// The cluster.
    pub cluster: ClusterId,
    /// The id that this node is given.
    pub node: NodeId,
    /// All nodes.
    pub peers: Vec<NodeRecord>,
    /// The shards that it gets a replica of.
    pub shards: Vec<ShardDescriptor>,
}

/// Checks what another node wants this one to adopt.
///
/// # Errors
///
/// `Denied` where another data directory is meant, `Invalid` for a malformed request.
pub fn check_part(own: StoreId, request: internal::AdoptRequest) -> Result<Part> {
    let meant: StoreId = request.store_id.parse()?;
    if meant != own {
        return Err(Error::denied(format!(
            "the init means data directory {meant}, but here is {own}: the data directory was exchanged meanwhile; \
             repeat the init"
        )));
    }
    if request.node_id == 0 {
        return Err(Error::invalid("the node id is 0, which is nobody's"));
    }
    Ok(Part {
        cluster: request.cluster_id.parse()?,
        node: NodeId(request.node_id),
        peers: request.peers.into_iter().map(peer_from_proto).collect::<Result<_>>()?,
        shards: request.shards.into_iter().map(convert::descriptor_from_proto).collect::<Result<_>>()?,
    })
}

/// A node's record as it travels between nodes.
pub fn peer_to_proto(record: &NodeRecord) -> internal::Peer {
    internal::Peer {
        node_id: record.id.0,
        store_id: record.store.to_string(),
        grpc_addr: record.grpc_addr.clone(),
        http_addr: record.http_addr.clone(),
        zone: record.zone.clone(),
        version: record.version.clone(),
    }
}

/// A node's record from another node.
pub fn peer_from_proto(peer: internal::Peer) -> Result<NodeRecord> {
    Ok(NodeRecord {
        id: NodeId(peer.node_id),
        store: peer.store_id.parse()?,
        grpc_addr: peer.grpc_addr,
        http_addr: peer.http_addr,
        zone: peer.zone,
        version: peer.version,
    })
}

/// An id that is empty where there is none.
pub fn parse_optional<T: std::str::FromStr<Err = Error>>(text: &str) -> Result<Option<T>> {
    if text.is_empty() { Ok(None) } else { text.parse().map(Some) }
}

/// The key that a joining node's id is counted under.
pub fn last_node_id_key() -> Bytes {
    Bytes::from_static(crate::codec::keyspace::LAST_NODE_ID)
}
