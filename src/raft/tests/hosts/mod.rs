//! Tests of hosts: several in one process, over real sockets.

mod groups;
mod network;
mod recovery;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status, Streaming};

use crate::codec;
use crate::engine::{MemoryEngine, SharedEngine};
use crate::raft::{
    FrameStream, Group, Host, HostConfig, Leadership, MAX_MESSAGE_BYTES, Proposal, Timing, Token,
};
use crate::rpc::internal::v1;
use crate::rpc::internal::v1::node_server::{Node, NodeServer};
use crate::shard::{self, Command};
use crate::types::{
    ClusterId, Epoch, KeyRange, NodeId, NodeRecord, Operation, RequestId, ShardDescriptor, ShardId, StoreId,
    Timestamp,
};

const SHARD: ShardId = ShardId(5);
const CLUSTER: ClusterId = ClusterId(77);

/// The node service, as far as it is the host's.
struct Service(Arc<Host>);

#[tonic::async_trait]
impl Node for Service {
    type ChannelStream = FrameStream;

    async fn channel(
        &self,
        request: Request<Streaming<v1::Frames>>,
    ) -> Result<Response<Self::ChannelStream>, Status> {
        self.0.accept_channel(request.into_inner()).await.map(Response::new)
    }

    async fn snapshot(
        &self,
        request: Request<Streaming<v1::SnapshotChunk>>,
    ) -> Result<Response<v1::SnapshotReply>, Status> {
        self.0.accept_snapshot(request.into_inner()).await.map(Response::new)
    }

    async fn probe(&self, _: Request<v1::ProbeRequest>) -> Result<Response<v1::ProbeReply>, Status> {
        Err(Status::unimplemented("not a part of these tests"))
    }

    async fn adopt(&self, _: Request<v1::AdoptRequest>) -> Result<Response<v1::AdoptReply>, Status> {
        Err(Status::unimplemented("not a part of these tests"))
    }

    async fn join(&self, _: Request<v1::JoinRequest>) -> Result<Response<v1::JoinReply>, Status> {
        Err(Status::unimplemented("not a part of these tests"))
    }
}

struct TestNode {
    host: Arc<Host>,
    record: NodeRecord,
    server_ends: CancellationToken,
    server: tokio::task::JoinHandle<()>,
}

/// Some nodes of one cluster. Their stores live on when they are stopped.
struct Cluster {
    engines: BTreeMap<NodeId, SharedEngine>,
    nodes: BTreeMap<NodeId, TestNode>,
    timing: Timing,
}

fn node(id: u64) -> NodeId {
    NodeId(id)
}

impl Cluster {
    /// Nodes 1 to `count`, that know each other.
    async fn start(count: u64, timing: Timing) -> Self {
        let engines =
            (1..=count).map(|id| (node(id), Arc::new(MemoryEngine::new()) as SharedEngine)).collect();
        Self::on(engines, timing).await
    }

    async fn on(engines: BTreeMap<NodeId, SharedEngine>, timing: Timing) -> Self {
        let ids: Vec<NodeId> = engines.keys().copied().collect();
        let mut cluster = Self { engines, nodes: BTreeMap::new(), timing };
        for id in ids {
            cluster.start_node(id).await;
        }
        cluster
    }

    /// Starts a node on its store, at a new address. It knows the nodes that run; they learn of it when
    /// it connects.
    async fn start_node(&mut self, id: NodeId) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let record = record(id, &listener.local_addr().expect("bound").to_string());
        let config = HostConfig {
            engine: Arc::clone(&self.engines[&id]),
            cluster: CLUSTER,
            node: record.clone(),
            peers: self.nodes.values().map(|node| node.record.clone()).collect(),
            timing: self.timing.clone(),
        };
        let host = Host::start(config).await.expect("starts");
        host.on_call(Arc::new(|from, kind, body| Box::pin(network::answer_call(from, kind, body))));
        host.open_groups().await.expect("opens");
        let server_ends = CancellationToken::new();
        let server = tokio::spawn(serve(Arc::clone(&host), listener, server_ends.clone()));
        self.nodes.insert(id, TestNode { host, record, server_ends, server });
    }

    /// Stops a node; its store stays.
    async fn stop_node(&mut self, id: NodeId) {
        let node = self.nodes.remove(&id).expect("runs");
        node.host.shutdown().await.expect("stops");
        node.server_ends.cancel();
        node.server.await.expect("ends");
    }

    async fn stop(mut self) {
        for id in self.nodes.keys().copied().collect::<Vec<_>>() {
            self.stop_node(id).await;
        }
    }

    fn host(&self, id: NodeId) -> &Arc<Host> {
        &self.nodes[&id].host
    }

    fn group(&self, id: NodeId) -> Arc<Group> {
        self.host(id).group(SHARD).expect("has a replica")
    }

    /// A replica of one shard on every node.
    async fn create_group(&self) {
        let replicas: Vec<NodeId> = self.nodes.keys().copied().collect();
        for node in self.nodes.values() {
            node.host.create_group(descriptor(replicas.clone())).await.expect("creates");
        }
    }

    /// Waits for a leader among the running nodes, other than `not`, that can serve a read.
    async fn leader(&self, not: Option<NodeId>) -> (Arc<Group>, Token) {
        let mut found = None;
        eventually("a leader", async || {
            for node in self.nodes.values() {
                let group = node.host.group(SHARD).expect("has a replica");
                if Some(group.node()) == not {
                    continue;
                }
                if let Leadership::Leading(token) = group.leadership()
                    && group.ensure_leader().await.is_ok_and(|point| point.token == token)
                {
                    found = Some((group, token));
                    return true;
                }
            }
            false
        })
        .await;
        found.expect("found")
    }

    /// Waits until all running replicas have applied the same, and checks that they are the same.
    async fn converge(&self) {
        let (leader, _) = self.leader(None).await;
        let last = leader.status().last_log_index;
        eventually("all replicas to catch up", async || {
            self.nodes.keys().all(|id| self.group(*id).applied_index() >= last)
        })
        .await;
        let checksum = leader.state().checksum;
        for id in self.nodes.keys() {
            assert_eq!(self.group(*id).state().checksum, checksum, "node {id} differs");
        }
    }
}

async fn serve(host: Arc<Host>, listener: TcpListener, ends: CancellationToken) {
    let service = NodeServer::new(Service(host))
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES);
    // Without it, small answers wait for the other side's acknowledgements.
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    tonic::transport::Server::builder()
        .add_service(service)
        .serve_with_incoming_shutdown(incoming, ends.cancelled())
        .await
        .expect("serves");
}

fn record(id: NodeId, grpc_addr: &str) -> NodeRecord {
    NodeRecord {
        id,
        store: StoreId(u128::from(id.0) + 1000),
        grpc_addr: grpc_addr.to_string(),
        http_addr: String::new(),
        zone: String::new(),
        version: "test".to_string(),
    }
}

fn descriptor(replicas: Vec<NodeId>) -> ShardDescriptor {
    ShardDescriptor { id: SHARD, range: KeyRange::all(), epoch: Epoch(1), replicas }
}

/// An encoded entry that puts one key. Timestamps must rise.
fn put(timestamp: u64, key: &str, value_bytes: usize) -> Bytes {
    let command = Command {
        id: RequestId { seen: Timestamp::ZERO, unique: u128::from(timestamp) },
        timestamp: Timestamp(timestamp),
        operation: Operation::Put {
            key: Bytes::copy_from_slice(key.as_bytes()),
            value: Bytes::from(vec![b'v'; value_bytes]),
        },
    };
    codec::encode(&shard::Entry::Commands(vec![command])).into()
}

/// Submits puts with the timestamps, all before the first is applied.
async fn submit(group: &Group, token: Token, timestamps: std::ops::Range<u64>) -> Vec<Proposal> {
    let mut proposals = Vec::new();
    for timestamp in timestamps {
        let key = format!("key{:04}", timestamp % 500);
        proposals.push(group.submit(token, put(timestamp, &key, 100)).await);
    }
    proposals
}

/// Submits puts and waits until each was applied.
async fn submit_all(group: &Group, token: Token, timestamps: std::ops::Range<u64>) {
    for proposal in submit(group, token, timestamps).await {
        let outcomes = proposal.await.expect("applied");
        assert!(matches!(outcomes[..], [crate::types::Outcome::Put { .. }]), "{outcomes:?}");
    }
}

/// Looks until the condition holds, for a time that is long against anything it waits for.
async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    while !condition().await {
        assert!(tokio::time::Instant::now() < deadline, "waited too long for {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
