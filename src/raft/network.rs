//! openraft's view of the connections: what a replica sends to another replica of its group.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt};
use openraft::base::{BoxFuture, BoxStream};
use openraft::errors::{RPCError, ReplicationClosed, StreamingError, Timeout, Unreachable};
use openraft::impls::EmptyNode;
use openraft::network::{
    Backoff, NetAppend, NetBackoff, NetSnapshot, NetStreamAppend, NetTransferLeader, NetVote, RPCOption,
    stream_append_sequential,
};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::type_config::alias::{SnapshotOf, VoteOf};
use openraft::{RPCTypes, RaftNetworkFactory};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::append_stream::{AppendAnswer, pipeline};
use super::transfer::Courier;
use super::transport::{AppendCall, CallError, Kind, Link, Transport};
use super::{SnapshotData, TypeConfig};
use crate::codec;
use crate::types::{NodeId, ShardId};

/// An append is answered after the follower's disk has synced it, so a stream is given up only after
/// this many times the soft limit without any answer.
const STALL_FACTOR: u32 = 8;

/// Makes the senders of one group.
pub(super) struct NetworkFactory {
    pub transport: Arc<Transport>,
    pub courier: Arc<Courier>,
    pub group: ShardId,
    pub own: NodeId,
}

impl NetworkFactory {
    fn sender(&self, target: NodeId, heartbeat: bool) -> Sender {
        Sender {
            transport: Arc::clone(&self.transport),
            courier: Arc::clone(&self.courier),
            link: self.transport.link(target),
            group: self.group,
            own: self.own,
            target,
            heartbeat,
        }
    }
}

impl RaftNetworkFactory<TypeConfig> for NetworkFactory {
    type Network = Sender;

    async fn new_client(&mut self, target: NodeId, _node: &EmptyNode) -> Sender {
        self.sender(target, false)
    }

    async fn new_heartbeat_client(&mut self, target: NodeId, _node: &EmptyNode) -> Sender {
        self.sender(target, true)
    }
}

/// Sends to one other replica of a group.
pub(super) struct Sender {
    transport: Arc<Transport>,
    courier: Arc<Courier>,
    link: Arc<Link>,
    group: ShardId,
    own: NodeId,
    target: NodeId,
    /// Heartbeats come one at a time: a call each is less than a stream each.
    heartbeat: bool,
}

/// Everything that went wrong on the way is `Unreachable`, for which openraft waits before it tries
/// again; a `Network` error it would retry at once.
pub(super) fn unreachable(error: impl std::fmt::Display) -> RPCError<TypeConfig> {
    RPCError::Unreachable(Unreachable::from_string(error))
}

impl Sender {
    async fn ask<Q: Serialize, A: DeserializeOwned>(
        &self,
        kind: Kind,
        request: &Q,
        option: &RPCOption,
        action: RPCTypes,
    ) -> Result<A, RPCError<TypeConfig>> {
        let timeout = option.soft_ttl();
        let body = Bytes::from(codec::encode(request));
        match self.transport.call(self.target, kind, self.group.0, body, timeout).await {
            Ok(answer) => codec::decode(&answer, "an answer of another node").map_err(unreachable),
            Err(CallError::Timeout { timeout, .. }) => {
                Err(RPCError::Timeout(Timeout { action, id: self.own, target: self.target, timeout }))
            }
            Err(error) => Err(unreachable(error)),
        }
    }
}

impl NetAppend<TypeConfig> for Sender {
    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RPCError<TypeConfig>> {
        self.ask(Kind::Append, &request, &option, RPCTypes::AppendEntries).await
    }
}

impl NetStreamAppend<TypeConfig> for Sender {
    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        option: RPCOption,
    ) -> BoxFuture<'s, Result<BoxStream<'s, AppendAnswer>, RPCError<TypeConfig>>>
    where
        S: Stream<Item = AppendEntriesRequest<TypeConfig>> + Send + Unpin + 'static,
    {
        if self.heartbeat {
            return stream_append_sequential(self, input, option);
        }
        Box::pin(async move {
            let answers: BoxStream<'s, AppendAnswer> = Box::pin(self.append_when_asked(input, option));
            Ok(answers)
        })
    }
}

impl Sender {
    /// Opens a stream of appends for the first request, and goes on with those that follow.
    ///
    /// openraft waits between attempts in the stream of its requests, before the first one. A failure to
    /// connect must not come before that request was asked for: it would be tried again at once, for as long
    /// as the other node is down.
    fn append_when_asked<'s, S>(
        &'s self,
        mut input: S,
        option: RPCOption,
    ) -> impl Stream<Item = AppendAnswer> + Send + 's
    where
        S: Stream<Item = AppendEntriesRequest<TypeConfig>> + Send + Unpin + 'static,
    {
        async_stream::stream! {
            let Some(first) = input.next().await else { return };
            let call = match self.open_append(option.soft_ttl()).await {
                Ok(call) => call,
                Err(error) => {
                    yield Err(error);
                    return;
                }
            };
            let input = futures::stream::iter([first]).chain(input);
            let mut answers = std::pin::pin!(pipeline(call, input, option.soft_ttl() * STALL_FACTOR));
            while let Some(answer) = answers.next().await {
                yield answer;
            }
        }
    }

    async fn open_append(&self, patience: Duration) -> Result<AppendCall, RPCError<TypeConfig>> {
        let connection = self.link.connection(patience).await.map_err(unreachable)?;
        tokio::time::timeout(patience, connection.open_append(self.group.0))
            .await
            .map_err(|_| unreachable("too much waits to be sent"))?
            .map_err(unreachable)
    }
}

impl NetVote<TypeConfig> for Sender {
    async fn vote(
        &mut self,
        request: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        self.ask(Kind::Vote, &request, &option, RPCTypes::Vote).await
    }

    async fn pre_vote(
        &mut self,
        request: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        self.ask(Kind::PreVote, &request, &option, RPCTypes::Vote).await
    }
}

impl NetTransferLeader<TypeConfig> for Sender {
    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, RPCError<TypeConfig>> {
        self.ask(Kind::TransferLeader, &request, &option, RPCTypes::TransferLeader).await
    }
}

impl NetSnapshot<TypeConfig> for Sender {
    type SnapshotData = SnapshotData;

    async fn full_snapshot(
        &mut self,
        vote: VoteOf<TypeConfig>,
        snapshot: SnapshotOf<TypeConfig, SnapshotData>,
        cancel: impl Future<Output = ReplicationClosed> + Send + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        tokio::select! {
            sent = self.courier.send(self.target, self.group, vote, snapshot) => {
                sent.map_err(|error| StreamingError::Unreachable(Unreachable::from_string(error)))
            }
            closed = cancel => Err(StreamingError::Closed(closed)),
        }
    }
}

impl NetBackoff<TypeConfig> for Sender {
    fn backoff(&self) -> Option<Backoff> {
        // The links back off on their own; this only keeps a replica from asking a dead link in a loop.
        let pauses = (0..).map(|attempt: u32| {
            let pause = Duration::from_millis(50) * 2u32.pow(attempt.min(3));
            pause.mul_f64(rand::random_range(0.75..1.25))
        });
        Some(Backoff::new(pauses))
    }
}
