//! The connections between nodes: one long-lived stream for each ordered pair, all groups multiplexed.
//!
//! The connecting side asks, the accepting side answers on the same stream. What waits to be sent is
//! coalesced into messages, so that many groups' small frames cost few system calls; log entries wait in
//! a lane of their own, behind heartbeats and votes. Everything that waits is bounded.

mod accept;
mod connection;
mod faults;
mod frame;
mod hello;
mod link;
mod outbox;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;
use tonic::Streaming;
use tonic::transport::Channel;

pub use accept::FrameStream;
pub(super) use accept::{AppendRequests, Failure, Service};
pub(super) use connection::{AppendCall, CallError};
pub use faults::Faults;
pub(super) use frame::Kind;
pub(super) use hello::{Identity, refusal};
pub(super) use link::Link;

use super::{PeerBook, Timing};
use crate::rpc::internal::v1::Frames;
use crate::types::{NodeId, Result};

/// The largest message between nodes; the node service must accept so much. A message holds at least one
/// frame, a frame at least one log entry, and an entry at most a batch of full size.
pub const MAX_MESSAGE_BYTES: usize = 64 * 1024 * 1024;
/// The flow-control window of a stream between nodes.
pub const STREAM_WINDOW_BYTES: u32 = 8 * 1024 * 1024;
/// The most requests of one append stream that are sent and not answered.
pub(super) const APPEND_WINDOW: usize = 64;

/// Who began a connection.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Side {
    Us,
    Them,
}

/// What all connections of a node share.
pub(super) struct Shared {
    identity: Identity,
    peers: Arc<PeerBook>,
    timing: Timing,
    faults: Arc<Faults>,
    closing: CancellationToken,
    links: Mutex<HashMap<NodeId, Arc<Link>>>,
    /// The last trouble with each node that was logged, by who began the connection.
    troubles: Mutex<HashMap<(Side, NodeId), String>>,
}

impl Shared {
    /// Notes a trouble with a node; whether it is another one than last time, and so worth a line.
    fn note_trouble(&self, side: Side, node: NodeId, trouble: &str) -> bool {
        let mut troubles = self.troubles.lock();
        // Only nodes that are known and a few strangers: what comes from outside must not fill memory.
        if troubles.len() > 1000 && !troubles.contains_key(&(side, node)) {
            return false;
        }
        troubles.insert((side, node), trouble.to_string()).is_none_or(|before| before != trouble)
    }

    fn note_no_trouble(&self, side: Side, node: NodeId) {
        self.troubles.lock().remove(&(side, node));
    }

    /// The link to a node; begins to connect with the first call.
    fn link(self: &Arc<Self>, to: NodeId) -> Arc<Link> {
        let mut links = self.links.lock();
        Arc::clone(links.entry(to).or_insert_with(|| Link::start(to, Arc::clone(self))))
    }

    /// A node has connected to us, so it lives: connect to it too, without a pause.
    fn heard_of(self: &Arc<Self>, node: NodeId) {
        self.link(node).wake();
    }
}

/// The connections of a node.
pub(super) struct Transport {
    shared: Arc<Shared>,
}

impl Transport {
    pub fn new(identity: Identity, peers: Arc<PeerBook>, timing: Timing) -> Self {
        let shared = Shared {
            identity,
            peers,
            timing,
            faults: Arc::new(Faults::default()),
            closing: CancellationToken::new(),
            links: Mutex::new(HashMap::new()),
            troubles: Mutex::new(HashMap::new()),
        };
        Self { shared: Arc::new(shared) }
    }

    pub fn identity(&self) -> &Identity {
        &self.shared.identity
    }

    pub fn peers(&self) -> &Arc<PeerBook> {
        &self.shared.peers
    }

    pub fn faults(&self) -> &Arc<Faults> {
        &self.shared.faults
    }

    /// The link to a node; begins to connect with the first call.
    pub fn link(&self, to: NodeId) -> Arc<Link> {
        self.shared.link(to)
    }

    /// Whether a connection to the node stands.
    pub fn is_connected(&self, to: NodeId) -> bool {
        self.shared.links.lock().get(&to).is_some_and(|link| link.is_up())
    }

    /// Asks a node and waits for its answer, for `timeout` in all.
    pub async fn call(
        &self,
        to: NodeId,
        kind: Kind,
        group: u64,
        body: Bytes,
        timeout: Duration,
    ) -> Result<Bytes, CallError> {
        let started = tokio::time::Instant::now();
        let connection = self.link(to).connection(timeout).await?;
        connection.call(kind, group, body, timeout.saturating_sub(started.elapsed())).await
    }

    /// A connection of its own to a node, for bulk that must not stand in the way of frames.
    pub async fn connect_apart(&self, to: NodeId) -> Result<Channel> {
        if self.shared.faults.is_cut(to) {
            return Err(crate::types::Error::unavailable("the way is cut by a test"));
        }
        link::connect(&self.shared, to).await
    }

    /// Serves a connection that another node has made.
    pub async fn accept(
        &self,
        service: Arc<dyn Service>,
        frames: Streaming<Frames>,
    ) -> Result<FrameStream, tonic::Status> {
        accept::accept(Arc::clone(&self.shared), service, frames).await
    }

    /// Ends all connections.
    pub fn close(&self) {
        self.shared.closing.cancel();
    }
}
