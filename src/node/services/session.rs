//! One session: many requests under way over one stream.
//!
//! What a session may hold in memory is bounded: requests under way by count and by bytes (its own, and all
//! sessions' of the node), replies in the making and replies that were not read by bytes. No further message is
//! read while these are taken, so that a caller who sends faster than it reads, or than the node works, waits.
//! What all sessions share is given back as soon as a message's requests are answered, read or not, so that slow
//! readers hold up others as little as can be.

use std::sync::Arc;

use futures::stream::FuturesUnordered;
use futures::{Stream, StreamExt};
use prost::Message;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tonic::{Status, Streaming};

use crate::node::core::Core;
use crate::rpc::v1::index_version_request::What as About;
use crate::rpc::v1::saga_request::What as AboutSagas;
use crate::rpc::v1::session_request::Request;
use crate::rpc::v1::step::Step;
use crate::rpc::v1::{SessionReplies, SessionReply, SessionRequest, SessionRequests, session_reply};
use crate::rpc::{convert, v1};
use crate::types::Error;

/// Requests of one session under way at once.
const MAX_UNDER_WAY: usize = 1024;
/// Bytes of requests of one session under way at once; a larger one takes all of it.
const MAX_REQUEST_KIB: usize = 32 * 1024;
/// Bytes of replies of one session that wait for their reader; a larger one takes all of it.
const MAX_REPLY_KIB: usize = 8 * 1024;
/// What the replies of one session in the making may come to, for those that may be large, in MiB.
const MAX_MAKING_MIB: usize = 64;
/// What is counted for a page of a scan or of changes, and for any read of many keys at most, in MiB.
const PAGE_MIB: usize = 4;
const LARGEST_MIB: usize = 16;
/// Replies that travel together, at most.
const MAX_REPLIES_TOGETHER: usize = 256;

struct Places {
    all: Arc<Semaphore>,
    request_kib: Arc<Semaphore>,
    reply_kib: Arc<Semaphore>,
    making_mib: Semaphore,
}

/// What a request holds of its session.
struct Place {
    /// Until its reply is on its way. Of nothing for a wait: those are bounded by the node.
    _one: OwnedSemaphorePermit,
    /// Until it is answered. Nothing where it is small.
    request_kib: Option<OwnedSemaphorePermit>,
    /// Its message's share of what all sessions of the node may hold; until it is answered.
    node_room: Option<Arc<OwnedSemaphorePermit>>,
    /// From its answer until that is on its way. Nothing where it is small.
    reply_kib: Option<OwnedSemaphorePermit>,
}

impl Places {
    fn new() -> Self {
        Self {
            all: Arc::new(Semaphore::new(MAX_UNDER_WAY)),
            request_kib: Arc::new(Semaphore::new(MAX_REQUEST_KIB)),
            reply_kib: Arc::new(Semaphore::new(MAX_REPLY_KIB)),
            making_mib: Semaphore::new(MAX_MAKING_MIB),
        }
    }

    /// A place at once, or `None`.
    fn try_take(&self, request: &SessionRequest) -> Option<Place> {
        let one = self.all.clone().try_acquire_many_owned(places(request)).ok()?;
        let request_kib = match kib(request, MAX_REQUEST_KIB) {
            0 => None,
            kib => Some(self.request_kib.clone().try_acquire_many_owned(kib).ok()?),
        };
        Some(Place { _one: one, request_kib, node_room: None, reply_kib: None })
    }

    /// A place as soon as there is one; `None` never comes, since the semaphores are not closed.
    async fn take(&self, request: &SessionRequest) -> Option<Place> {
        let one = self.all.clone().acquire_many_owned(places(request)).await.ok()?;
        let request_kib = match kib(request, MAX_REQUEST_KIB) {
            0 => None,
            kib => Some(self.request_kib.clone().acquire_many_owned(kib).await.ok()?),
        };
        Some(Place { _one: one, request_kib, node_room: None, reply_kib: None })
    }

    /// What the reply to a request may come to, in MiB; 0 where it is hardly ever large.
    fn making_mib(&self, request: &Request) -> u32 {
        let mib = match request {
            Request::ScanPage(_) => PAGE_MIB,
            // A wait tells no changes.
            Request::ChangesPage(page) => usize::from(page.up_to_ts != 0) * PAGE_MIB,
            Request::IndexVersion(about) => {
                usize::from(matches!(about.what, Some(About::Query(_) | About::Dump(_)))) * PAGE_MIB
            }
            Request::Saga(about) => {
                let is_large = matches!(
                    about.what,
                    Some(AboutSagas::Get(_) | AboutSagas::List(_) | AboutSagas::History(_))
                );
                usize::from(is_large) * PAGE_MIB
            }
            Request::GetMany(many) => many.keys.len().min(LARGEST_MIB),
            Request::Batch(batch) => {
                let is_get = |step: &&v1::Step| matches!(step.step, Some(Step::Get(_)));
                let gets = |steps: &[v1::Step]| steps.iter().filter(is_get).count();
                gets(&batch.then).max(gets(&batch.otherwise)).min(LARGEST_MIB)
            }
            // Most values are small. Where large replies pile up, this may be one more.
            _ => usize::from(self.reply_kib.available_permits() < MAX_REPLY_KIB / 2) * PAGE_MIB,
        };
        mib as u32
    }
}

/// Whether a request waits for something to happen, and takes nothing meanwhile.
fn waits(request: &SessionRequest) -> bool {
    match &request.request {
        Some(Request::ChangesPage(page)) => page.up_to_ts == 0 && !page.count_only,
        Some(Request::IndexVersion(about)) => matches!(about.what, Some(About::ReachTs(_))),
        Some(Request::Saga(about)) => matches!(about.what, Some(AboutSagas::Take(_) | AboutSagas::Wait(_))),
        _ => false,
    }
}

/// How many of a session's places a request takes.
fn places(request: &SessionRequest) -> u32 {
    u32::from(!waits(request))
}

/// The size of a message in KiB, rounded down, at most `most`.
fn kib(message: &impl Message, most: usize) -> u32 {
    u32::try_from((message.encoded_len() / 1024).min(most)).unwrap_or(u32::MAX)
}

type Answered = (SessionReply, Place);

/// Serves a session until the caller ends it, its connection breaks, or the node stops. Where a message could
/// not be read, the session ends with a status that says why, after the replies to what came before it.
pub fn serve(
    core: Arc<Core>,
    requests: Streaming<SessionRequests>,
) -> impl Stream<Item = Result<SessionReplies, Status>> + Send + 'static {
    let (replies, mut ready) = mpsc::channel::<Answered>(MAX_REPLIES_TOGETHER);
    let reader = tokio::spawn(read(core, requests, replies));
    async_stream::stream! {
        let mut batch = Vec::new();
        while ready.recv_many(&mut batch, MAX_REPLIES_TOGETHER).await > 0 {
            // The places are given back when the replies are on their way.
            let replies = batch.drain(..).map(|(reply, _place)| reply).collect();
            yield Ok(SessionReplies { replies });
        }
        if let Ok(Some(status)) = reader.await {
            yield Err(status);
        }
    }
}

/// Reads messages and starts their requests. Answers why no further message can be read, where that is no
/// proper end.
async fn read(
    core: Arc<Core>,
    mut requests: Streaming<SessionRequests>,
    replies: mpsc::Sender<Answered>,
) -> Option<Status> {
    let places = Arc::new(Places::new());
    loop {
        let message = tokio::select! {
            () = core.stopping().cancelled() => return None,
            () = replies.closed() => return None,
            message = requests.next() => message?,
        };
        let message = match message {
            Ok(message) => message,
            Err(status) => {
                tracing::debug!(%status, "a session ended with an error");
                return Some(status);
            }
        };
        let node_room = tokio::select! {
            () = core.stopping().cancelled() => return None,
            () = replies.closed() => return None,
            room = core.session_room(message.encoded_len() / 1024 + 1) => Arc::new(room?),
        };
        let mut admitted = Vec::with_capacity(message.requests.len());
        for request in message.requests {
            let mut place = match places.try_take(&request) {
                Some(place) => place,
                None => {
                    // What is admitted and not started would never give its places back.
                    start(&core, &places, &replies, std::mem::take(&mut admitted));
                    tokio::select! {
                        () = core.stopping().cancelled() => return None,
                        () = replies.closed() => return None,
                        place = places.take(&request) => place?,
                    }
                }
            };
            // A wait must not keep what its message took.
            place.node_room = (!waits(&request)).then(|| node_room.clone());
            admitted.push((request, place));
        }
        start(&core, &places, &replies, admitted);
    }
}

/// Serves requests that came together in one task: a task each would cost more than most requests do.
fn start(
    core: &Arc<Core>,
    places: &Arc<Places>,
    replies: &mpsc::Sender<Answered>,
    admitted: Vec<(SessionRequest, Place)>,
) {
    if admitted.is_empty() {
        return;
    }
    let (core, places, replies) = (core.clone(), places.clone(), replies.clone());
    tokio::spawn(async move {
        let mut under_way: FuturesUnordered<_> =
            admitted.into_iter().map(|(request, place)| answer(&core, &places, request, place)).collect();
        loop {
            let answered = tokio::select! {
                // What waits for something to happen need not any longer.
                () = replies.closed() => return,
                answered = under_way.next() => answered,
            };
            let Some(answered) = answered else { return };
            if replies.send(answered).await.is_err() {
                // The caller is gone; what is under way ends by itself or with this task.
                return;
            }
        }
    });
}

async fn answer(core: &Core, places: &Places, request: SessionRequest, mut place: Place) -> Answered {
    let SessionRequest { call, request } = request;
    let mut making = None;
    let reply = match (core.member(), request) {
        (Err(error), _) => failure(&error),
        (Ok(_), None) => failure(&Error::invalid(
            "the session request is empty or of a kind that this node does not know: set one of its fields, or ask a \
             newer node",
        )),
        (Ok(member), Some(request)) => {
            let mib = places.making_mib(&request);
            if mib > 0 {
                making = places.making_mib.acquire_many(mib).await.ok();
            }
            member.dispatcher().call(request).await
        }
    };
    place.request_kib = None;
    place.node_room = None;
    let reply = SessionReply { call, reply: Some(reply) };
    let reply_kib = kib(&reply, MAX_REPLY_KIB);
    if reply_kib > 0 {
        place.reply_kib = places.reply_kib.clone().acquire_many_owned(reply_kib).await.ok();
    }
    drop(making);
    (reply, place)
}

fn failure(error: &Error) -> session_reply::Reply {
    let error: v1::Error = convert::error_to_proto(error);
    session_reply::Reply::Error(error)
}
