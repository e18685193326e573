//! The host: all groups of a node, and the connections to other nodes.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};

use super::core::Env;
use super::housekeeping::keep_house;
use super::inbound::{Inbound, Registry};
use super::log_writer::{LogWriter, LogWriterStats};
use super::transfer::{Courier, Receiving};
use super::transport::{Faults, FrameStream, Identity, Kind, Transport};
use super::wakefulness::Wakefulness;
use super::{Group, Leadership, PeerBook, Timing, seed};
use crate::engine::SharedEngine;
use crate::rpc::internal::v1::{Frames, SnapshotChunk, SnapshotReply};
use crate::types::{ClusterId, Error, NodeId, NodeRecord, Result, ShardDescriptor, ShardId};

/// What a host is started with.
pub struct HostConfig {
    /// The node's store.
    pub engine: SharedEngine,
    /// The cluster it belongs to.
    pub cluster: ClusterId,
    /// The node itself: id, store, addresses, zone, version.
    pub node: NodeRecord,
    /// Other nodes known from elsewhere. What is stored of them, and what they say of themselves when
    /// they connect, wins.
    pub peers: Vec<NodeRecord>,
    /// How long things take.
    pub timing: Timing,
}

/// Answers calls of other nodes: who asks, the kind of the call, its body.
pub type CallHandler = Arc<dyn Fn(NodeId, u32, Bytes) -> BoxFuture<'static, Result<Bytes>> + Send + Sync>;

/// All groups of a node, and the connections to other nodes. Ends with [`shutdown`](Self::shutdown).
pub struct Host {
    env: Arc<Env>,
    registry: Arc<Registry>,
    inbound: Arc<Inbound>,
    /// Groups are made one at a time, so that none is started twice.
    making: tokio::sync::Mutex<()>,
    receiving: Mutex<HashSet<ShardId>>,
}

impl Host {
    /// Starts the host with no groups running; see [`open_groups`](Self::open_groups).
    ///
    /// # Errors
    ///
    /// `Invalid` for an unusable timing, `Corrupt` where what is stored can't be read, `Denied` where a
    /// given peer contradicts what is stored.
    pub async fn start(config: HostConfig) -> Result<Arc<Self>> {
        let HostConfig { engine, cluster, node, peers, timing } = config;
        timing.raft_config(true)?;
        let own = node.id;
        let opening = {
            let engine = Arc::clone(&engine);
            tokio::task::spawn_blocking(move || {
                seed::recover(engine.as_ref())?;
                let peers = PeerBook::open(Arc::clone(&engine), own, &peers)?;
                Ok::<_, Error>((peers, LogWriter::start(engine)?))
            })
        };
        let (peers, writer) = opening
            .await
            .map_err(|error| Error::unavailable(format!("opening the store was cut short: {error}")))??;
        let election_max_ms = timing.election_max.as_millis() as u64;
        let identity = Identity { cluster, node, election_max_ms };
        let transport = Arc::new(Transport::new(identity, Arc::new(peers), timing.clone()));
        for peer in transport.peers().all() {
            // Not waited for. The others learn by it where this node is now.
            transport.link(peer.id);
        }
        let courier = Arc::new(Courier::new(Arc::clone(&transport), timing.snapshot_stall));
        let closing = CancellationToken::new();
        let wakefulness = Wakefulness::begin(
            timing.clock_tolerance(),
            tokio::time::Instant::now(),
            std::time::SystemTime::now(),
        );
        let env = Arc::new(Env { engine, writer, transport, courier, own, timing, wakefulness, closing });
        let registry = Arc::new(Registry::new(own));
        tokio::spawn(keep_house(Arc::clone(&registry), Arc::clone(&env)));
        Ok(Arc::new(Self {
            env,
            inbound: Arc::new(Inbound(Arc::clone(&registry))),
            registry,
            making: tokio::sync::Mutex::new(()),
            receiving: Mutex::new(HashSet::new()),
        }))
    }

    /// Starts every group that is on disk and does not run yet. Set [`on_call`](Self::on_call) before.
    ///
    /// # Errors
    ///
    /// `Corrupt` where a group can't be read.
    pub async fn open_groups(&self) -> Result<Vec<Arc<Group>>> {
        let _one_at_a_time = self.making.lock().await;
        let engine = Arc::clone(&self.env.engine);
        let shards = tokio::task::spawn_blocking(move || seed::list_groups(engine.as_ref()))
            .await
            .map_err(|error| Error::unavailable(format!("listing the groups was cut short: {error}")))??;
        for shard in shards {
            self.open(shard).await?;
        }
        Ok(self.groups())
    }

    async fn open(&self, shard: ShardId) -> Result<Arc<Group>> {
        if let Some(group) = self.group(shard) {
            return Ok(group);
        }
        if self.env.closing.is_cancelled() {
            return Err(Error::unavailable("the node is shutting down"));
        }
        let group = Group::start(Arc::clone(&self.env), shard).await?;
        self.registry.add(Arc::clone(&group));
        Ok(group)
    }

    /// Creates this node's replica of a new shard, unless it is there already, and starts it. On the node
    /// that comes first in the descriptor the replica stands for election at once, if it has just been
    /// created, and again until somebody leads. Every node of the descriptor must be told the same.
    ///
    /// # Errors
    ///
    /// `Invalid` where the descriptor does not name this node.
    pub async fn create_group(&self, descriptor: ShardDescriptor) -> Result<Arc<Group>> {
        let own = self.env.own;
        if !descriptor.replicas.contains(&own) {
            return Err(Error::invalid(format!(
                "shard {} has no replica on node {own}: its replicas are on {:?}",
                descriptor.id, descriptor.replicas
            )));
        }
        let _one_at_a_time = self.making.lock().await;
        let shard = descriptor.id;
        let is_first = descriptor.replicas.first() == Some(&own);
        let engine = Arc::clone(&self.env.engine);
        let created = tokio::task::spawn_blocking(move || seed::create_group(engine.as_ref(), &descriptor))
            .await
            .map_err(|error| {
                Error::unavailable(format!("creating shard {shard} was cut short: {error}"))
            })??;
        let group = self.open(shard).await?;
        if created && is_first {
            tokio::spawn(Arc::clone(&group).stand_first());
        }
        Ok(group)
    }

    /// This node's replica of a shard.
    pub fn group(&self, shard: ShardId) -> Option<Arc<Group>> {
        self.registry.group(shard)
    }

    /// All replicas of this node, by shard id.
    pub fn groups(&self) -> Vec<Arc<Group>> {
        self.registry.groups()
    }

    /// What is known of other nodes.
    pub fn peers(&self) -> &Arc<PeerBook> {
        self.env.transport.peers()
    }

    /// What the log writer did so far, for metrics.
    pub fn log_writer_stats(&self) -> &LogWriterStats {
        self.env.writer.stats()
    }

    /// Waits until the node's disk has refused a write, and says why. Nothing of this host is written from then on:
    /// it is for the owner to shut it down.
    pub async fn disk_failed(&self) -> Error {
        self.env.writer.failed().await
    }

    /// A small request to another node (or this one), over the same connection as Raft's messages.
    /// `kind` says what it is; kinds and bodies are the caller's business.
    ///
    /// # Errors
    ///
    /// `Unavailable` where the node can't be reached or does not answer in `timeout` (it may have got the
    /// call all the same); otherwise the handler's error.
    pub async fn call(&self, to: NodeId, kind: u32, body: Bytes, timeout: Duration) -> Result<Bytes> {
        if to == self.env.own {
            let answer = tokio::time::timeout(timeout, self.registry.call(to, kind, body)).await;
            return answer.unwrap_or_else(|_| {
                Err(Error::unavailable(format!("node {to} has not answered itself within {timeout:?}")))
            });
        }
        // The kind of the call travels where Raft's frames name their group.
        Ok(self.env.transport.call(to, Kind::Call, u64::from(kind), body, timeout).await?)
    }

    /// Says who answers the calls of other nodes.
    pub fn on_call(&self, handler: CallHandler) {
        self.registry.set_handler(handler);
    }

    /// Whether a connection to the node stands.
    pub fn is_connected(&self, to: NodeId) -> bool {
        self.env.transport.is_connected(to)
    }

    /// A network that fails on purpose, for tests.
    pub fn faults(&self) -> &Arc<Faults> {
        self.env.transport.faults()
    }

    /// Serves rpc `Channel` of the node service: waits for the other side's Hello, answers it, and then
    /// serves its frames for as long as the connection lasts.
    ///
    /// The service must accept messages of [`MAX_MESSAGE_BYTES`](super::MAX_MESSAGE_BYTES); its server
    /// must set `TCP_NODELAY` on what it accepts (else every answer waits for an acknowledgement: ten
    /// milliseconds and more a write), should give streams a window of
    /// [`STREAM_WINDOW_BYTES`](super::STREAM_WINDOW_BYTES), and should ping silent connections, so that
    /// those of nodes that vanished end.
    ///
    /// # Errors
    ///
    /// `PERMISSION_DENIED` for another cluster or a wiped node, `FAILED_PRECONDITION` where another node
    /// or protocol version is meant, `INVALID_ARGUMENT` for a malformed frame (in the stream, which it
    /// ends).
    pub async fn accept_channel(&self, frames: Streaming<Frames>) -> Result<FrameStream, Status> {
        let service = Arc::clone(&self.inbound);
        self.env.transport.accept(service, frames).await
    }

    /// Serves rpc `Snapshot` of the node service: receives a snapshot, checks and installs it.
    ///
    /// # Errors
    ///
    /// As [`accept_channel`](Self::accept_channel); `NOT_FOUND` for a group that is not here,
    /// `RESOURCE_EXHAUSTED` where one is being received for it, `DATA_LOSS` for a wrong checksum.
    pub async fn accept_snapshot(
        &self,
        mut chunks: Streaming<SnapshotChunk>,
    ) -> Result<SnapshotReply, Status> {
        let timing = &self.env.timing;
        let receiving = Receiving {
            engine: Arc::clone(&self.env.engine),
            identity: self.env.transport.identity().clone(),
            stall: timing.snapshot_stall,
        };
        let first = tokio::time::timeout(timing.snapshot_stall, chunks.message())
            .await
            .map_err(|_| Status::deadline_exceeded("no first chunk came"))??;
        let head = first
            .and_then(|chunk| chunk.head)
            .ok_or_else(|| Status::invalid_argument("the first chunk of a snapshot must carry its head"))?;
        receiving.check(&head)?;
        if self.faults().is_cut(NodeId(head.from_node)) {
            return Err(Status::unavailable("the way is cut by a test"));
        }
        let shard = ShardId(head.group);
        let group = self
            .group(shard)
            .ok_or_else(|| Status::not_found(format!("there is no replica of shard {shard} here")))?;
        let _alone = Alone::enter(&self.receiving, shard).ok_or_else(|| {
            Status::resource_exhausted(format!("shard {shard} is receiving a snapshot already"))
        })?;
        receiving.receive(&group, head, chunks).await
    }

    /// Stops all groups and connections, and flushes the store. What was acknowledged is on disk before
    /// that; what is under way ends as unknown.
    ///
    /// # Errors
    ///
    /// What the store says while flushing.
    pub async fn shutdown(&self) -> Result<()> {
        self.env.closing.cancel();
        let _one_at_a_time = self.making.lock().await;
        for group in self.groups() {
            let mut leadership = group.watch_leadership();
            // Fails only without the group, which is here.
            leadership.wait_for(|leadership| matches!(leadership, Leadership::Stopped { .. })).await.ok();
            group.core().stop(&self.env.writer).await;
        }
        self.env.transport.close();
        let env = Arc::clone(&self.env);
        let flushing = tokio::task::spawn_blocking(move || {
            env.writer.stop();
            env.engine.flush()
        });
        flushing.await.map_err(|error| Error::unavailable(format!("flushing was cut short: {error}")))?
    }
}

/// Whoever holds it is alone in receiving a snapshot for a shard.
struct Alone<'a> {
    shards: &'a Mutex<HashSet<ShardId>>,
    shard: ShardId,
}

impl<'a> Alone<'a> {
    fn enter(shards: &'a Mutex<HashSet<ShardId>>, shard: ShardId) -> Option<Self> {
        shards.lock().insert(shard).then_some(Self { shards, shard })
    }
}

impl Drop for Alone<'_> {
    fn drop(&mut self) {
        self.shards.lock().remove(&self.shard);
    }
}
