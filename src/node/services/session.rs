//! One session: many requests under way over one stream.
//!
//! What sessions may hold in memory is bounded: requests under way by count and by bytes (a session's, and
//! all sessions' of the node), pages of scans and reads of many keys (the large replies) by a smaller count.
//! No further message is read while the places are taken or the replies are not read.

use std::sync::Arc;

use futures::stream::FuturesUnordered;
use futures::{Stream, StreamExt};
use prost::Message;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tonic::{Status, Streaming};

use crate::node::core::Core;
use crate::rpc::v1::session_request::Request;
use crate::rpc::v1::{SessionReplies, SessionReply, SessionRequest, SessionRequests, session_reply};
use crate::rpc::{convert, v1};
use crate::types::Error;

/// Requests of one session under way at once.
const MAX_UNDER_WAY: usize = 1024;
/// Large replies of one session in the making at once.
const MAX_LARGE_UNDER_WAY: usize = 8;
/// Replies that travel together, at most.
const MAX_REPLIES_TOGETHER: usize = 256;
/// A message of replies is closed once it holds so many bytes.
const MAX_REPLY_BYTES: usize = 1024 * 1024;
/// Kibibytes of messages of one session whose requests are under way.
const SESSION_KIB: usize = 32 * 1024;

struct Places {
    all: Arc<Semaphore>,
    large: Arc<Semaphore>,
    kib: Arc<Semaphore>,
}

impl Places {
    fn new() -> Self {
        Self {
            all: Arc::new(Semaphore::new(MAX_UNDER_WAY)),
            large: Arc::new(Semaphore::new(MAX_LARGE_UNDER_WAY)),
            kib: Arc::new(Semaphore::new(SESSION_KIB)),
        }
    }

    /// Room for a message's bytes, in the session's share and the node's.
    async fn room(&self, core: &Core, size_bytes: usize) -> Option<Room> {
        let kib = size_bytes / 1024 + 1;
        // The largest message fits into either: it is smaller than both.
        let session = self.kib.clone().acquire_many_owned(kib.min(SESSION_KIB) as u32).await.ok()?;
        let node = core.session_room(kib).await?;
        Some(Room { _session: session, _node: node })
    }
}

/// Held while the requests of a message are under way.
struct Room {
    _session: OwnedSemaphorePermit,
    _node: OwnedSemaphorePermit,
}

/// Serves a session until the caller ends it, its connection breaks, or the node stops.
pub fn serve(
    core: Arc<Core>,
    requests: Streaming<SessionRequests>,
) -> impl Stream<Item = Result<SessionReplies, Status>> + Send + 'static {
    let (replies, mut ready) = mpsc::channel::<(SessionReply, OwnedSemaphorePermit)>(MAX_REPLIES_TOGETHER);
    tokio::spawn(read(core, requests, replies));
    async_stream::stream! {
        let mut batch = Vec::new();
        while ready.recv_many(&mut batch, MAX_REPLIES_TOGETHER).await > 0 {
            let mut replies = Vec::with_capacity(batch.len());
            let mut size_bytes = 0;
            // The places are given back when the replies are on their way.
            for (reply, _place) in batch.drain(..) {
                size_bytes += reply.encoded_len();
                replies.push(reply);
                if size_bytes >= MAX_REPLY_BYTES {
                    size_bytes = 0;
                    yield Ok(SessionReplies { replies: std::mem::take(&mut replies) });
                }
            }
            if !replies.is_empty() {
                yield Ok(SessionReplies { replies });
            }
        }
    }
}

async fn read(
    core: Arc<Core>,
    mut requests: Streaming<SessionRequests>,
    replies: mpsc::Sender<(SessionReply, OwnedSemaphorePermit)>,
) {
    let places = Arc::new(Places::new());
    loop {
        let message = tokio::select! {
            () = core.stopping().cancelled() => return,
            () = replies.closed() => return,
            message = requests.next() => message,
        };
        let message = match message {
            Some(Ok(message)) => message,
            Some(Err(status)) => {
                tracing::debug!(%status, "a session ended with an error");
                return;
            }
            None => return,
        };
        let Some(room) = places.room(&core, message.encoded_len()).await else { return };
        let room = Arc::new(room);
        let mut admitted = Vec::with_capacity(message.requests.len());
        for request in message.requests {
            let Ok(place) = places.all.clone().acquire_owned().await else { return };
            admitted.push((request, place));
            // A message with more requests than places must not wait for itself.
            if places.all.available_permits() == 0 {
                start(&core, &places, &replies, &room, std::mem::take(&mut admitted));
            }
        }
        start(&core, &places, &replies, &room, admitted);
    }
}

/// Serves requests that came together in one task: a task each would cost more than most requests do.
fn start(
    core: &Arc<Core>,
    places: &Arc<Places>,
    replies: &mpsc::Sender<(SessionReply, OwnedSemaphorePermit)>,
    room: &Arc<Room>,
    admitted: Vec<(SessionRequest, OwnedSemaphorePermit)>,
) {
    if admitted.is_empty() {
        return;
    }
    let (core, places, replies, room) = (core.clone(), places.clone(), replies.clone(), room.clone());
    tokio::spawn(async move {
        let _room = room;
        let mut under_way: FuturesUnordered<_> =
            admitted.into_iter().map(|(request, place)| answer(&core, &places, request, place)).collect();
        while let Some(answered) = under_way.next().await {
            if replies.send(answered).await.is_err() {
                // The caller is gone; what is under way ends by itself or with this task.
                return;
            }
        }
    });
}

async fn answer(
    core: &Core,
    places: &Places,
    request: SessionRequest,
    place: OwnedSemaphorePermit,
) -> (SessionReply, OwnedSemaphorePermit) {
    let reply = match (core.member(), request.request) {
        (Err(error), _) => failure(&error),
        (Ok(_), None) => failure(&Error::invalid(
            "the session request is empty or of a kind that this node does not know: set one of its fields, or ask a \
             newer node",
        )),
        (Ok(member), Some(request)) => {
            let large = matches!(request, Request::ScanPage(_) | Request::GetMany(_));
            let _large_place = match large {
                true => places.large.acquire().await.ok(),
                false => None,
            };
            member.dispatcher().call(request).await
        }
    };
    (SessionReply { call: request.call, reply: Some(reply) }, place)
}

fn failure(error: &Error) -> session_reply::Reply {
    let error: v1::Error = convert::error_to_proto(error);
    session_reply::Reply::Error(error)
}
