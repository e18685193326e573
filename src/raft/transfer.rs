//! Snapshots on their way between nodes: on a connection of their own, few at a time.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use openraft::raft::SnapshotResponse;
use openraft::storage::Snapshot;
use openraft::type_config::alias::VoteOf;
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::machine::GroupSnapshot;
use super::snapshot::{ReceivedSnapshot, SnapshotData, SnapshotPart, SnapshotReceiver, SnapshotRow};
use super::transport::{Identity, MAX_MESSAGE_BYTES, Transport, refusal};
use super::{Group, TypeConfig};
use crate::codec;
use crate::engine::SharedEngine;
use crate::rpc::internal::v1;
use crate::rpc::internal::v1::node_client::NodeClient;
use crate::types::{ClusterId, Error, NodeId, Result, ShardId};

/// Snapshots that a node sends at a time.
const SENDS_AT_A_TIME: usize = 2;
/// Chunks that wait between the disk and the connection.
const CHUNKS_WAITING: usize = 4;
/// Once all rows have arrived, installing them may take this many times the stall limit.
const INSTALL_FACTOR: u32 = 20;

/// Sends snapshots.
pub(super) struct Courier {
    transport: Arc<Transport>,
    permits: Semaphore,
    stall: Duration,
}

impl Courier {
    pub fn new(transport: Arc<Transport>, stall: Duration) -> Self {
        Self { transport, permits: Semaphore::new(SENDS_AT_A_TIME), stall }
    }

    /// Sends a snapshot and waits until it is installed there. Dropped, it ends the transfer.
    pub async fn send(
        &self,
        to: NodeId,
        group: ShardId,
        vote: VoteOf<TypeConfig>,
        snapshot: GroupSnapshot,
    ) -> Result<SnapshotResponse<TypeConfig>> {
        let SnapshotData::Source(source) = snapshot.snapshot else {
            return Err(Error::invalid("a received snapshot is installed, not sent"));
        };
        let _permit = self.permits.acquire().await.map_err(|_| Error::unavailable("shutting down"))?;
        tracing::info!(shard = %group, %to, "sends a snapshot");
        let channel = self.transport.connect_apart(to).await?;
        let mut client = NodeClient::new(channel).max_encoding_message_size(MAX_MESSAGE_BYTES);
        let (chunks, waiting) = mpsc::channel(CHUNKS_WAITING);
        let head = self.head(to, group, &vote);
        let under = vote.leader_id;
        let moved = Arc::new(Moved::default());
        let counted = Arc::clone(&moved);
        let reading = tokio::task::spawn_blocking(move || {
            source.stream(Some(under), |part| {
                let sent = chunks.blocking_send(chunk(part, &head));
                counted.parts.fetch_add(1, Ordering::Relaxed);
                sent.map_err(|_| Error::unavailable("the receiver has ended the transfer"))
            })?;
            counted.all_read.store(1, Ordering::Relaxed);
            Ok(())
        });
        let reply = tokio::select! {
            reply = client.snapshot(ReceiverStream::new(waiting)) => reply,
            () = moved.stalled(self.stall) => {
                let stall = self.stall;
                return Err(Error::unavailable(format!("sending a snapshot has not moved for {stall:?}")));
            }
        };
        match reply {
            Ok(reply) => codec::decode(&reply.into_inner().body, "the answer to a snapshot"),
            Err(status) => {
                // A read that failed here is the cause of whatever the other side complains about.
                let read: Result<()> = match reading.await {
                    Ok(read) => read,
                    Err(error) => Err(Error::unavailable(format!("reading was cut short: {error}"))),
                };
                let refused = Error::unavailable(format!("node {to} refused it: {}", status.message()));
                Err(read.err().filter(|_| status.code() != tonic::Code::PermissionDenied).unwrap_or(refused))
            }
        }
    }

    fn head(&self, to: NodeId, group: ShardId, vote: &VoteOf<TypeConfig>) -> v1::SnapshotHead {
        let identity = self.transport.identity();
        v1::SnapshotHead {
            cluster_id: identity.cluster.to_string(),
            from_node: identity.node.id.0,
            to_node: to.0,
            group: group.0,
            vote: codec::encode(vote).into(),
            meta: Bytes::new(),
        }
    }
}

fn chunk(part: SnapshotPart, head: &v1::SnapshotHead) -> v1::SnapshotChunk {
    match part {
        SnapshotPart::Head(meta) => {
            v1::SnapshotChunk { head: Some(v1::SnapshotHead { meta, ..head.clone() }), ..Default::default() }
        }
        SnapshotPart::Rows(rows) => {
            let row =
                |row: SnapshotRow| v1::SnapshotRow { family: row.family, key: row.key, value: row.value };
            v1::SnapshotChunk { rows: rows.into_iter().map(row).collect(), ..Default::default() }
        }
        SnapshotPart::End(checksum) => {
            v1::SnapshotChunk { end_checksum: Some(checksum), ..Default::default() }
        }
    }
}

/// How far a transfer is.
#[derive(Default)]
struct Moved {
    parts: AtomicU64,
    all_read: AtomicU64,
}

impl Moved {
    /// Resolves when nothing was handed on for `stall`, or nothing was answered for much longer after the
    /// last part.
    async fn stalled(&self, stall: Duration) {
        let mut seen = 0;
        loop {
            tokio::time::sleep(stall).await;
            if self.all_read.load(Ordering::Relaxed) != 0 {
                tokio::time::sleep(stall * INSTALL_FACTOR).await;
                return;
            }
            let parts = self.parts.load(Ordering::Relaxed);
            if parts == seen {
                return;
            }
            seen = parts;
        }
    }
}

/// Where a snapshot is received.
pub(super) struct Receiving {
    pub engine: SharedEngine,
    pub identity: Identity,
    pub stall: Duration,
}

impl Receiving {
    /// Checks who sends to whom, from the first chunk.
    pub fn check(&self, head: &v1::SnapshotHead) -> Result<(), Status> {
        let cluster: ClusterId = head.cluster_id.parse().map_err(|error: Error| refusal(&error))?;
        if cluster != self.identity.cluster {
            let own = self.identity.cluster;
            return Err(Status::permission_denied(format!(
                "the snapshot is of cluster {cluster}, but this node belongs to cluster {own}"
            )));
        }
        if head.to_node != self.identity.node.id.0 {
            return Err(Status::failed_precondition(format!(
                "the snapshot is for node {}, but this is node {}",
                head.to_node, self.identity.node.id
            )));
        }
        Ok(())
    }

    /// Receives the rest, and has Raft install it.
    pub async fn receive(
        &self,
        group: &Group,
        head: v1::SnapshotHead,
        mut chunks: Streaming<v1::SnapshotChunk>,
    ) -> Result<v1::SnapshotReply, Status> {
        let vote: VoteOf<TypeConfig> =
            codec::decode(&head.vote, "the vote of a snapshot").map_err(|error| refusal(&error))?;
        let (parts, waiting) = mpsc::channel(CHUNKS_WAITING);
        let (engine, shard, meta) = (Arc::clone(&self.engine), group.id(), head.meta);
        let staging = tokio::task::spawn_blocking(move || stage(&engine, shard, &meta, waiting));
        loop {
            let chunk = tokio::time::timeout(self.stall, chunks.message()).await;
            match chunk {
                Ok(Ok(Some(chunk))) => {
                    // Where staging has failed, its error is found below.
                    if parts.send(chunk).await.is_err() {
                        break;
                    }
                }
                Ok(Ok(None)) => break,
                Ok(Err(status)) => return Err(status),
                Err(_) => {
                    return Err(Status::deadline_exceeded(format!("no chunk came for {:?}", self.stall)));
                }
            }
        }
        drop(parts);
        let received = staging
            .await
            .map_err(|error| Status::internal(format!("staging was cut short: {error}")))?
            .map_err(|error| refusal(&error))?;
        let response = self.install(group, vote, received).await?;
        Ok(v1::SnapshotReply { body: codec::encode(&response).into() })
    }

    async fn install(
        &self,
        group: &Group,
        vote: VoteOf<TypeConfig>,
        received: ReceivedSnapshot,
    ) -> Result<SnapshotResponse<TypeConfig>, Status> {
        // Whoever drops it without installing it discards what was staged.
        let snapshot = Snapshot { meta: received.meta(), snapshot: SnapshotData::Received(received) };
        let installed = group.core().raft.install_full_snapshot(vote, snapshot).await;
        let response =
            installed.map_err(|error| Status::unavailable(format!("the replica does not run: {error}")))?;
        if response.vote != vote {
            tracing::info!(shard = %group.id(), "a snapshot of an old leader was refused");
        }
        Ok(response)
    }
}

/// Stages the chunks of a snapshot as they come, to its end.
fn stage(
    engine: &SharedEngine,
    shard: ShardId,
    meta: &[u8],
    mut chunks: mpsc::Receiver<v1::SnapshotChunk>,
) -> Result<ReceivedSnapshot> {
    let mut receiver = SnapshotReceiver::begin(engine, shard, meta)?;
    while let Some(chunk) = chunks.blocking_recv() {
        let row = |row: v1::SnapshotRow| SnapshotRow { family: row.family, key: row.key, value: row.value };
        let rows: Vec<SnapshotRow> = chunk.rows.into_iter().map(row).collect();
        receiver.rows(&rows)?;
        if let Some(checksum) = chunk.end_checksum {
            return receiver.finish(checksum);
        }
    }
    Err(Error::unavailable(format!("a snapshot of shard {shard} has ended before its end")))
}
