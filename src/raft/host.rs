//! The host: all groups of a node, and the connections to other nodes.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::Stream;
use futures::future::BoxFuture;
use tonic::{Status, Streaming};

use super::{Group, PeerBook, Timing};
use crate::engine::SharedEngine;
use crate::rpc::internal::v1::{Frames, SnapshotChunk, SnapshotReply};
use crate::types::{ClusterId, NodeId, NodeRecord, Result, ShardDescriptor, ShardId};

/// What a host is started with.
pub struct HostConfig {
    /// The node's store.
    pub engine: SharedEngine,
    /// The cluster it belongs to.
    pub cluster: ClusterId,
    /// The node itself: id, store, addresses, zone, version.
    pub node: NodeRecord,
    /// Other nodes known from elsewhere. Those that were stored, and what they say of themselves when
    /// they connect, win.
    pub peers: Vec<NodeRecord>,
    /// How long things take.
    pub timing: Timing,
}

/// Answers calls of other nodes: who asks, the kind of the call, its body.
pub type CallHandler = Arc<dyn Fn(NodeId, u32, Bytes) -> BoxFuture<'static, Result<Bytes>> + Send + Sync>;

/// All groups of a node, and the connections to other nodes.
pub struct Host {}

impl Host {
    /// Starts the host with no groups running; see [`open_groups`](Self::open_groups).
    ///
    /// # Errors
    ///
    /// `Invalid` for an unusable timing, `Corrupt` where what is stored can't be read.
    pub async fn start(_config: HostConfig) -> Result<Arc<Self>> {
        unimplemented!("written next")
    }

    /// Starts every group that is on disk. Call it once, after [`on_call`](Self::on_call).
    ///
    /// # Errors
    ///
    /// `Corrupt` where a group can't be read.
    pub async fn open_groups(&self) -> Result<Vec<Arc<Group>>> {
        unimplemented!("written next")
    }

    /// Creates this node's replica of a shard, unless it is there already, and starts it. The first of
    /// the descriptor's replicas stands for election at once.
    ///
    /// # Errors
    ///
    /// `Invalid` where the descriptor does not name this node, or where another descriptor is stored
    /// under the id.
    pub async fn create_group(&self, _descriptor: ShardDescriptor) -> Result<Arc<Group>> {
        unimplemented!("written next")
    }

    /// This node's replica of a shard.
    pub fn group(&self, _shard: ShardId) -> Option<Arc<Group>> {
        unimplemented!("written next")
    }

    /// All replicas of this node, by shard id.
    pub fn groups(&self) -> Vec<Arc<Group>> {
        unimplemented!("written next")
    }

    /// What is known of other nodes.
    pub fn peers(&self) -> &Arc<PeerBook> {
        unimplemented!("written next")
    }

    /// A small request to another node (or this one), over the same connection as Raft's messages.
    /// `kind` says what it is; kinds and bodies are the caller's business.
    ///
    /// # Errors
    ///
    /// `Unavailable` where the node can't be reached or does not answer in `timeout` (it may have got the
    /// call all the same); otherwise the handler's error.
    pub async fn call(&self, _to: NodeId, _kind: u32, _body: Bytes, _timeout: Duration) -> Result<Bytes> {
        unimplemented!("written next")
    }

    /// Says who answers the calls of other nodes.
    pub fn on_call(&self, _handler: CallHandler) {
        unimplemented!("written next")
    }

    /// Whether a connection to the node stands.
    pub fn is_connected(&self, _to: NodeId) -> bool {
        unimplemented!("written next")
    }

    /// Serves rpc `Channel` of the node service: waits for the other side's Hello, answers it, and then
    /// serves its frames for as long as the connection lasts.
    ///
    /// # Errors
    ///
    /// `PERMISSION_DENIED` for another cluster or a wiped node, `FAILED_PRECONDITION` where another node
    /// or protocol version is meant, `INVALID_ARGUMENT` for malformed frames.
    pub async fn accept_channel(
        self: &Arc<Self>,
        _frames: Streaming<Frames>,
    ) -> Result<FrameStream, Status> {
        unimplemented!("written next")
    }

    /// Serves rpc `Snapshot` of the node service: receives a snapshot, checks and installs it.
    ///
    /// # Errors
    ///
    /// As [`accept_channel`](Self::accept_channel); `NOT_FOUND` for a group that is not here,
    /// `DATA_LOSS` for a wrong checksum.
    pub async fn accept_snapshot(
        self: &Arc<Self>,
        _chunks: Streaming<SnapshotChunk>,
    ) -> Result<SnapshotReply, Status> {
        unimplemented!("written next")
    }

    /// Stops all groups and connections, and flushes the store.
    ///
    /// # Errors
    ///
    /// What the store says while flushing.
    pub async fn shutdown(&self) -> Result<()> {
        unimplemented!("written next")
    }
}
