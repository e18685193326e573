//! What is done with other nodes' frames: they find their group, and its answer is sent back.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use openraft::raft::{AppendEntriesRequest, TransferLeaderRequest, VoteRequest};
use parking_lot::{Mutex, RwLock};
use serde::de::DeserializeOwned;

use super::core::Core;
use super::transport::{AppendRequests, Failure, Kind, Service};
use super::{CallHandler, Group, TypeConfig};
use crate::codec;
use crate::types::{Error, NodeId, Result, ShardId};

/// The groups of a node, and who answers the calls of others.
pub(super) struct Registry {
    own: NodeId,
    groups: RwLock<BTreeMap<ShardId, Arc<Group>>>,
    handler: RwLock<Option<CallHandler>>,
}

impl Registry {
    pub fn new(own: NodeId) -> Self {
        Self { own, groups: RwLock::default(), handler: RwLock::default() }
    }

    pub fn group(&self, shard: ShardId) -> Option<Arc<Group>> {
        self.groups.read().get(&shard).cloned()
    }

    pub fn groups(&self) -> Vec<Arc<Group>> {
        self.groups.read().values().cloned().collect()
    }

    pub fn add(&self, group: Arc<Group>) {
        self.groups.write().insert(group.id(), group);
    }

    pub fn set_handler(&self, handler: CallHandler) {
        *self.handler.write() = Some(handler);
    }

    /// Answers a call, of another node or of this one.
    pub fn call(&self, from: NodeId, kind: u32, body: Bytes) -> BoxFuture<'static, Result<Bytes>> {
        match self.handler.read().as_ref() {
            Some(handler) => handler(from, kind, body),
            None => {
                let error = Error::unavailable(format!("node {} does not answer calls yet", self.own));
                Box::pin(futures::future::ready(Err(error)))
            }
        }
    }

    fn core(&self, group: u64) -> Result<Arc<Core>, Failure> {
        let shard = ShardId(group);
        self.group(shard).map(|group| group.core()).ok_or_else(|| {
            Failure::Refused(Error::unavailable(format!(
                "node {} has no replica of shard {shard} (yet)",
                self.own
            )))
        })
    }

    /// A core that may vote (see [`super::gate`]).
    fn voting_core(&self, group: u64, asked_by_leader: bool) -> Result<Arc<Core>, Failure> {
        let core = self.core(group)?;
        match core.gate.closed_for(tokio::time::Instant::now()) {
            Some(left) if !asked_by_leader => Err(Failure::Refused(Error::unavailable(format!(
                "node {} was started less than a lease ago and does not vote in shard {group} for {left:?}",
                self.own
            )))),
            _ => Ok(core),
        }
    }

    async fn answer_raft(&self, kind: Kind, group: u64, body: Bytes) -> Result<Bytes, Failure> {
        let answer = match kind {
            Kind::Append => {
                let request: AppendEntriesRequest<TypeConfig> = request(&body, "an append request")?;
                codec::encode(&self.core(group)?.raft.append_entries(request).await.map_err(stopped)?)
            }
            Kind::Vote => {
                let request: VoteRequest<TypeConfig> = request(&body, "a vote request")?;
                let core = self.voting_core(group, request.leadership_transfer)?;
                codec::encode(&core.raft.vote(request).await.map_err(stopped)?)
            }
            Kind::PreVote => {
                let request: VoteRequest<TypeConfig> = request(&body, "a pre-vote request")?;
                let core = self.voting_core(group, false)?;
                codec::encode(&core.raft.pre_vote(request).await.map_err(stopped)?)
            }
            Kind::TransferLeader => {
                let request: TransferLeaderRequest<TypeConfig> = request(&body, "a transfer request")?;
                codec::encode(&self.core(group)?.raft.handle_transfer_leader(request).await.map_err(stopped)?)
            }
            Kind::Call
            | Kind::Reply
            | Kind::AppendOpen
            | Kind::AppendItem
            | Kind::AppendReply
            | Kind::AppendClose => {
                return Err(Failure::Malformed(Error::invalid(format!(
                    "a frame of kind {kind:?} is no call"
                ))));
            }
        };
        Ok(answer.into())
    }
}

fn request<T: DeserializeOwned>(body: &[u8], what: &str) -> Result<T, Failure> {
    codec::decode(body, what).map_err(Failure::Malformed)
}

fn stopped(error: impl std::fmt::Display) -> Failure {
    Failure::Refused(Error::unavailable(format!("the replica does not run: {error}")))
}

/// The registry as the transport's service.
pub(super) struct Inbound(pub Arc<Registry>);

impl Service for Inbound {
    fn answer(
        &self,
        from: NodeId,
        kind: Kind,
        group: u64,
        body: Bytes,
    ) -> BoxFuture<'static, Result<Bytes, Failure>> {
        let registry = Arc::clone(&self.0);
        Box::pin(async move {
            if kind != Kind::Call {
                return registry.answer_raft(kind, group, body).await;
            }
            let Ok(call_kind) = u32::try_from(group) else {
                return Err(Failure::Malformed(Error::invalid(format!("{group} is no kind of a call"))));
            };
            registry.call(from, call_kind, body).await.map_err(Failure::Refused)
        })
    }

    fn append(
        &self,
        _from: NodeId,
        group: u64,
        requests: AppendRequests,
    ) -> BoxStream<'static, Result<Bytes, Failure>> {
        let core = match self.0.core(group) {
            Ok(core) => core,
            Err(failure) => return futures::stream::once(futures::future::ready(Err(failure))).boxed(),
        };
        // Where a request can't be read, its error is kept here and the requests end; the answers to those
        // before it still go out, then the error.
        let malformed = Arc::new(Mutex::new(None));
        let decoded =
            futures::stream::unfold((requests, Arc::clone(&malformed)), |(mut requests, slot)| async {
                let body = requests.next().await?;
                match codec::decode::<AppendEntriesRequest<TypeConfig>>(&body, "an append request") {
                    Ok(request) => Some((request, (requests, slot))),
                    Err(error) => {
                        *slot.lock() = Some(error);
                        None
                    }
                }
            });
        let answers = core.raft.stream_append(decoded).map(|answer| match answer {
            Ok(result) => Ok(Bytes::from(codec::encode(&result))),
            Err(fatal) => Err(stopped(fatal)),
        });
        let end = futures::stream::once(async move { malformed.lock().take() })
            .filter_map(|error| futures::future::ready(error.map(|error| Err(Failure::Malformed(error)))));
        answers.chain(end).boxed()
    }
}
