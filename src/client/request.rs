//! One logical request: attempts until one is answered or the deadline comes.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep_until, timeout_at};

use super::retry::{Attempts, Decision, Failure};
use super::router::{Place, Target};
use super::{Client, LinkError, Shared};
use crate::rpc::v1::session_reply::Reply;
use crate::rpc::v1::session_request::Request;
use crate::rpc::{convert, v1};
use crate::types::{Error, ErrorKind, NodeId, RequestId, Result};

/// The pause before the map is looked at again, where it did not say whom to ask.
const HOLE_PAUSE: Duration = Duration::from_millis(20);

/// Makes the request of an attempt from its header and its target. An error ends the call.
pub(super) type Build<'a> = &'a (dyn Fn(v1::Header, &Target) -> Result<Request> + Send + Sync);

/// What a request is about, and how to make it.
pub(super) struct Asked<'a> {
    /// Where it goes.
    pub(super) place: Place<'a>,
    /// How it is made.
    pub(super) build: Build<'a>,
    /// Whether the timestamps of its reply were handed out after it was sent.
    pub(super) fresh: bool,
}

/// The id of a write.
#[derive(Clone, Copy)]
pub(super) enum WriteId {
    /// Made here: where it turns out to be too old and nothing was done under it, another takes its place.
    Own(RequestId),
    /// The caller's, who may have sent it before, elsewhere: another id could make its write happen twice.
    Callers(RequestId),
}

impl WriteId {
    fn get(self) -> RequestId {
        match self {
            Self::Own(id) | Self::Callers(id) => id,
        }
    }
}

impl Client {
    /// A read: retried freely until the client's deadline.
    pub(super) async fn read(&self, asked: Asked<'_>) -> Result<Reply> {
        self.shared.execute(asked, None, self.deadline.until()?).await
    }

    /// A write: its retries keep its id, so that it takes effect once (rule R8).
    pub(super) async fn write(&self, place: Place<'_>, build: Build<'_>) -> Result<Reply> {
        let until = self.deadline.until()?;
        if self.shared.seen.is_stale() {
            self.shared.refresh_seen(until).await?;
        }
        let id = self.shared.seen.request_id();
        self.shared.execute(Asked { place, build, fresh: true }, Some(WriteId::Own(id)), until).await
    }
}

impl Shared {
    /// Sends until a node answers, a failure is final, or the deadline comes. A write has an `id`.
    pub(super) async fn execute(
        self: &Arc<Self>,
        asked: Asked<'_>,
        mut id: Option<WriteId>,
        until: Instant,
    ) -> Result<Reply> {
        let mut attempts = match id {
            None => Attempts::of_read(),
            Some(WriteId::Own(_)) => Attempts::of_write(true),
            Some(WriteId::Callers(_)) => Attempts::of_write(false),
        };
        let mut tried: Vec<NodeId> = Vec::new();
        let salt = rand::random::<u32>() as usize;
        loop {
            let now = Instant::now();
            if now >= until {
                return Err(attempts.at_deadline());
            }
            let Some(target) = self.map.pick(asked.place, &tried, salt.wrapping_add(tried.len())) else {
                self.refresh_map();
                sleep_until((now + HOLE_PAUSE).min(until)).await;
                continue;
            };
            let request = (asked.build)(self.header(id.map(WriteId::get), until - now), &target)
                .map_err(|e| attempts.stopped(e))?;
            let failure = match self.attempt(&target, request, until).await {
                Ok(reply) => {
                    self.seen.note_reply(&reply, asked.fresh);
                    return Ok(reply);
                }
                Err(failure) => failure,
            };
            tracing::debug!(node = target.node.0, addr = &*target.addr, ?failure, "an attempt failed");
            self.learn(&target, &failure, &mut tried);
            match attempts.failed(failure, rand::random()) {
                Decision::Now => {}
                Decision::After(wait) => sleep_until((Instant::now() + wait).min(until)).await,
                Decision::Renew => {
                    self.seen.distrust();
                    Box::pin(self.refresh_seen(until)).await?;
                    id = Some(WriteId::Own(self.seen.request_id()));
                }
                Decision::Fail(error) => return Err(error),
            }
        }
    }

    async fn attempt(&self, target: &Target, request: Request, until: Instant) -> Result<Reply, Failure> {
        let call = self.map.link(&target.addr).call(request, until);
        match timeout_at(until, call).await {
            Ok(Ok(Reply::Error(error))) => {
                let error = convert::error_from_proto(error);
                let led = match &error.moved {
                    Some(moved) => self.map.follow(target.shard.as_ref().map(|(id, _)| *id), moved),
                    None => false,
                };
                Err(Failure::Answered { error, led })
            }
            Ok(Ok(reply)) => Ok(reply),
            Ok(Err(LinkError::NotSent(why))) => Err(Failure::NotSent(format!("{}: {why}", target.addr))),
            Ok(Err(LinkError::Unknown(why))) => Err(Failure::Unknown(format!("{}: {why}", target.addr))),
            Err(_) => Err(Failure::Unknown(format!("{}: no reply within the deadline", target.addr))),
        }
    }

    /// What a failure says about the node and the map.
    fn learn(self: &Arc<Self>, target: &Target, failure: &Failure, tried: &mut Vec<NodeId>) {
        let (elsewhere, led) = match failure {
            Failure::NotSent(_) | Failure::Unknown(_) => (true, false),
            Failure::Answered { error, led } => (
                matches!(error.kind, ErrorKind::Moved | ErrorKind::Unavailable | ErrorKind::Undetermined),
                *led,
            ),
        };
        if led {
            // The hint may name a node that was tried when it did not lead yet.
            tried.clear();
        }
        if !elsewhere {
            return;
        }
        if let Some((shard, _)) = &target.shard
            && !led
        {
            self.map.forget_leader(*shard, target.node);
        }
        tried.push(target.node);
        if !led {
            self.refresh_map();
        }
    }

    /// Refreshes the map in the background, unless somebody does already.
    pub(super) fn refresh_map(self: &Arc<Self>) {
        if self.map.begin_refresh() {
            let shared = Arc::clone(self);
            tokio::spawn(async move { shared.map.refresh().await });
        }
    }

    /// Asks for a fresh timestamp, once for all who want one now.
    async fn refresh_seen(self: &Arc<Self>, until: Instant) -> Result<()> {
        let Ok(_asking) = timeout_at(until, self.seen.asking.lock()).await else {
            return Err(Error::unavailable(
                "the deadline came before a timestamp for the request's id could be had; nothing was sent",
            ));
        };
        if self.seen.is_stale() {
            self.timestamp(until).await?;
        }
        Ok(())
    }

    /// A timestamp above all that were handed out before.
    pub(super) async fn timestamp(self: &Arc<Self>, until: Instant) -> Result<u64> {
        let build = |_: v1::Header, _: &Target| Ok(Request::Timestamp(v1::TimestampRequest {}));
        // A map without the system shard leaves it to the node.
        let place = if self.map.pick(Place::System, &[], 0).is_some() { Place::System } else { Place::Any };
        let asked = Asked { place, build: &build, fresh: true };
        match Box::pin(self.execute(asked, None, until)).await? {
            Reply::Timestamp(reply) => Ok(reply.ts),
            other => Err(mismatched(&other)),
        }
    }

    fn header(&self, id: Option<RequestId>, left: Duration) -> v1::Header {
        // The node stops a little earlier, so that its own answer arrives in time.
        let served = left - (left / 20).min(Duration::from_millis(100));
        v1::Header {
            cluster_id: self.map.cluster_id(),
            deadline_ms: u32::try_from(served.as_millis()).unwrap_or(u32::MAX).max(1),
            request_id: id.map(convert::request_id_to_proto),
        }
    }
}

/// The error of a reply that does not fit its request. What the node did is unknown.
pub(super) fn mismatched(reply: &Reply) -> Error {
    let name = match reply {
        Reply::Error(_) => "an error",
        Reply::Put(_) => "a put's",
        Reply::Get(_) => "a get's",
        Reply::GetMany(_) => "a get_many's",
        Reply::Delete(_) => "a delete's",
        Reply::CompareAndSwap(_) => "a compare_and_swap's",
        Reply::Add(_) => "an add's",
        Reply::Batch(_) => "a batch's",
        Reply::ScanPage(_) => "a scan page's",
        Reply::Timestamp(_) => "a timestamp's",
        Reply::Empty(_) => "an empty call's",
    };
    Error::undetermined(format!("the node answered with {name} reply, which does not fit the request"))
}
