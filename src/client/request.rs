//! One logical request: attempts until one is answered or the deadline comes.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::replicas::{Called, Chosen, attempt_until};
use super::retry::{Attempts, Decision, Failure};
use super::router::{Place, Target};
use super::{Client, LinkError, Policy, Shared};
use crate::codec::keyspace;
use crate::rpc::v1::session_reply::Reply;
use crate::rpc::v1::session_request::Request;
use crate::rpc::{convert, v1};
use crate::saga::Token;
use crate::types::{Error, ErrorKind, NodeId, RequestId, Result, Timestamp};

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
    /// For a read that any replica may answer: how one is chosen. Without it the request goes to the leader.
    pub(super) read: Option<Reading<'a>>,
}

/// Where a request goes.
enum Way {
    /// To the leader of its shard, or to whom may know it.
    Leader(Target),
    /// To a replica.
    Replica(Chosen),
}

impl Way {
    /// The target, and how many replicas there are to choose from.
    fn parts(&self) -> (&Target, usize) {
        match self {
            Self::Leader(target) => (target, 0),
            Self::Replica(chosen) => (&chosen.target, chosen.replicas),
        }
    }
}

/// How the replica that answers a read is chosen.
#[derive(Clone, Copy)]
pub(super) struct Reading<'a> {
    /// The policy.
    pub(super) policy: Policy,
    /// Who is asked first, whatever the policy.
    pub(super) prefer: Option<NodeId>,
    /// Where to note which nodes were asked, and why.
    pub(super) route: Option<&'a Mutex<Vec<String>>>,
    /// It waits at the replica for something to happen: how long that takes says nothing about the node.
    pub(super) waits: bool,
}

impl Client {
    /// A read: retried freely until the client's deadline.
    pub(super) async fn ask(&self, asked: Asked<'_>) -> Result<Reply> {
        self.shared.execute(asked, None, self.deadline.until()?).await
    }

    /// A write that may be repeated without an id: done twice it is done once.
    pub(super) async fn ask_to_do(&self, asked: Asked<'_>) -> Result<Reply> {
        self.shared.execute_from(Attempts::repeatable(), asked, None, self.deadline.until()?).await
    }

    /// A write: its retries keep its id, so that it takes effect once (rule R8).
    pub(super) async fn write(&self, place: Place<'_>, build: Build<'_>) -> Result<Reply> {
        let until = self.deadline.until()?;
        let id = self.shared.new_id(until).await?;
        self.shared.execute(Asked { place, build, fresh: true, read: None }, Some(id), until).await
    }
}

impl Shared {
    /// Sends until a node answers, a failure is final, or the deadline comes. A write has an `id`, made for this
    /// call.
    pub(super) async fn execute(
        self: &Arc<Self>,
        asked: Asked<'_>,
        id: Option<RequestId>,
        until: Instant,
    ) -> Result<Reply> {
        self.execute_from(Attempts::new(id.is_some()), asked, id, until).await
    }

    /// As [`execute`](Self::execute), for a write whose `id` comes from elsewhere and may have been sent before.
    pub(super) async fn execute_as(
        self: &Arc<Self>,
        asked: Asked<'_>,
        id: RequestId,
        until: Instant,
    ) -> Result<Reply> {
        self.execute_from(Attempts::with_foreign_id(), asked, Some(id), until).await
    }

    /// Sends a commit to the leader of its primary key's shard, the smallest key written, until its outcome is
    /// known or the deadline comes. Every attempt bears `id`, so that the first one's outcome is what counts.
    ///
    /// # Errors
    /// `Conflict` where it was refused; `TooOld` where the id is older than retries are recognised and nothing was
    /// done; `Undetermined` where it was sent and its outcome can't be learnt.
    pub(super) async fn commit(
        self: &Arc<Self>,
        commit: v1::CommitRequest,
        id: RequestId,
        until: Instant,
    ) -> Result<Timestamp> {
        let primary = commit.writes.iter().filter_map(written_key).min().cloned();
        // What is written of sagas comes behind all users' keys.
        let of_sagas = saga_place(&commit);
        let place = match (&primary, &of_sagas) {
            (Some(primary), _) => Place::Key(primary),
            (None, Some(rows)) => Place::Internal(rows),
            (None, None) => {
                return Err(Error::invalid("the transaction has no writes: it needs no commit"));
            }
        };
        let build = |header, _: &Target| {
            Ok(Request::Commit(v1::CommitRequest { header: Some(header), ..commit.clone() }))
        };
        let asked = Asked { place, build: &build, fresh: true, read: None };
        match self.execute_from(Attempts::of_commit(), asked, Some(id), until).await? {
            Reply::Commit(reply) => Ok(Timestamp(reply.commit_ts)),
            other => Err(mismatched(&other)),
        }
    }

    async fn execute_from(
        self: &Arc<Self>,
        mut attempts: Attempts,
        asked: Asked<'_>,
        mut id: Option<RequestId>,
        until: Instant,
    ) -> Result<Reply> {
        let mut tried: Vec<NodeId> = Vec::new();
        let mut made = 0;
        let salt = rand::random::<u32>() as usize;
        loop {
            let now = Instant::now();
            if now >= until {
                return Err(attempts.at_deadline());
            }
            let Some(way) = self.way(&asked, &tried, salt.wrapping_add(tried.len())) else {
                self.refresh_map();
                sleep_until((now + HOLE_PAUSE).min(until)).await;
                continue;
            };
            let (target, replicas) = way.parts();
            let attempt_until = match asked.read {
                Some(_) => attempt_until(now, made, until),
                None => until,
            };
            made += 1;
            let header = self.header(id, attempt_until - now);
            let request = (asked.build)(header, target).map_err(|e| attempts.stopped(e))?;
            let (target, called) = match (&way, asked.read) {
                (Way::Replica(chosen), Some(reading)) => {
                    self.call_replica(chosen, &reading, asked.place, request, attempt_until).await
                }
                (Way::Replica(Chosen { target, .. }) | Way::Leader(target), _) => {
                    (target.clone(), self.call(target, request, until).await)
                }
            };
            let failure = match self.sort(&target, called) {
                Ok(reply) => {
                    self.seen.note_reply(&reply, asked.fresh);
                    return Ok(reply);
                }
                Err(failure) => failure,
            };
            tracing::debug!(node = target.node.0, addr = &*target.addr, ?failure, "an attempt failed");
            self.learn(&target, &failure, &mut tried);
            // Another replica may answer at once; but where one has too much to do, others may soon have.
            let is_overload = matches!(&failure, Failure::Answered { error, .. } if error.overloaded);
            let others = asked.read.is_some() && tried.len() < replicas && !is_overload;
            match attempts.failed(failure, rand::random()) {
                Decision::Now => {}
                Decision::After(_) if others => {}
                Decision::After(wait) => sleep_until((Instant::now() + wait).min(until)).await,
                Decision::Renew => {
                    self.seen.distrust();
                    Box::pin(self.refresh_seen(until)).await?;
                    id = Some(self.seen.request_id());
                }
                Decision::Fail(error) => return Err(error),
            }
        }
    }

    /// Where a request goes; `None` where the map does not say.
    fn way(&self, asked: &Asked<'_>, tried: &[NodeId], salt: usize) -> Option<Way> {
        match &asked.read {
            Some(reading) => self.choose_replica(asked.place, reading, tried).map(Way::Replica),
            None => self.map.pick(asked.place, tried, salt).map(Way::Leader),
        }
    }

    pub(super) async fn call(&self, target: &Target, request: Request, until: Instant) -> Called {
        match timeout_at(until, self.map.link(&target.addr).call(request, until)).await {
            Ok(called) => called,
            Err(_) => Err(LinkError::Unknown("no reply within the deadline".to_owned())),
        }
    }

    /// What a call came to: a reply that ends the request, or a failure.
    fn sort(&self, target: &Target, called: Called) -> Result<Reply, Failure> {
        match called {
            Ok(Reply::Error(error)) => {
                let error = convert::error_from_proto(error);
                let led = match &error.moved {
                    Some(moved) => self.map.follow(target.shard.as_ref().map(|(id, _)| *id), moved),
                    None => false,
                };
                Err(Failure::Answered { error, led })
            }
            Ok(reply) => Ok(reply),
            Err(LinkError::NotSent(why)) => Err(Failure::NotSent(format!("{}: {why}", target.addr))),
            Err(LinkError::Unknown(why)) => Err(Failure::Unknown(format!("{}: {why}", target.addr))),
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
            tokio::spawn(async move {
                shared.map.refresh().await;
                shared.replicas.retain(&shared.map.router().nodes());
            });
        }
    }

    /// An id for a new write, whose timestamp is not old.
    pub(super) async fn new_id(self: &Arc<Self>, until: Instant) -> Result<RequestId> {
        if self.seen.is_stale() {
            self.refresh_seen(until).await?;
        }
        Ok(self.seen.request_id())
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
        let build =
            |header, _: &Target| Ok(Request::Timestamp(v1::TimestampRequest { header: Some(header) }));
        // A map without the system shard leaves it to the node.
        let place = if self.map.pick(Place::System, &[], 0).is_some() { Place::System } else { Place::Any };
        let asked = Asked { place, build: &build, fresh: true, read: None };
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

/// How the smallest rows begin that a commit writes of sagas.
fn saga_place(commit: &v1::CommitRequest) -> Option<Bytes> {
    let step = commit.saga_step.as_ref().and_then(|step| Token::from_text(&step.token).ok());
    let started = commit.saga_starts.iter().map(|start| keyspace::saga_partition(&start.id));
    let partitions = started.chain(step.map(|(id, _)| keyspace::saga_partition(&id)));
    partitions.min().map(|partition| keyspace::saga_rows(partition, 0).freeze())
}

fn written_key(write: &v1::Write) -> Option<&Bytes> {
    use v1::write::Write;
    write.write.as_ref().map(|write| match write {
        Write::Put(put) => &put.key,
        Write::Delete(key) => key,
        Write::Add(add) => &add.key,
    })
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
        Reply::Commit(_) => "a commit's",
        Reply::ChangesPage(_) => "a page of changes'",
        Reply::Consumer(_) => "a consumer's",
        Reply::IndexCatalogue(_) => "an index catalogue's",
        Reply::IndexVersion(_) => "an index version's",
        Reply::SagaCatalogue(_) => "a saga catalogue's",
        Reply::Saga(_) => "a saga's",
        Reply::Timestamp(_) => "a timestamp's",
        Reply::Empty(_) => "an empty call's",
    };
    Error::undetermined(format!("the node answered with {name} reply, which does not fit the request"))
}
