//! The gRPC link: one `Kv.Session` stream a node, with many calls under way at once.
//!
//! Calls wait in a bounded queue. The stream takes all that wait, up to a count and a number of bytes, as one
//! message; replies are matched by the call's number. When a stream breaks, the calls it took are of unknown
//! fate and those still in the queue were not sent; the next call connects anew, not before a pause that
//! doubles.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures::future::{BoxFuture, FutureExt, Shared};
use futures::stream::Stream;
use parking_lot::Mutex;
use prost::Message;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout, timeout_at};
use tonic::transport::{Channel, Endpoint};

use super::{Dialer, Link, LinkError};
use crate::rpc::v1::cluster_client::ClusterClient;
use crate::rpc::v1::kv_client::KvClient;
use crate::rpc::v1::session_reply::Reply;
use crate::rpc::v1::session_request::Request;
use crate::rpc::{convert, v1};
use crate::types::{Error, Result, limits};

/// Calls that may wait for a stream to take them; more callers wait for room.
const QUEUE_CALLS: usize = 1024;
/// A message is closed once it holds so many requests, or so many bytes of them.
const MESSAGE_CALLS: usize = 256;
const MESSAGE_BYTES: usize = 256 * 1024;
const CONNECT_WITHIN: Duration = Duration::from_secs(2);
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// A silent peer is asked this often; one that does not answer within the second time is given up, and the
/// calls under way with it. A machine that lost its power says nothing, and by the time it is given up the
/// others have elected a leader.
const PING_EVERY: Duration = Duration::from_millis(1500);
const PING_WITHIN: Duration = Duration::from_millis(1500);
const STREAM_WINDOW_BYTES: u32 = 8 * 1024 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 16 * 1024 * 1024;

/// Makes links over gRPC.
#[derive(Default)]
pub struct GrpcDialer {
    /// Channels for questions about the cluster.
    channels: Mutex<HashMap<String, Channel>>,
}

fn endpoint(addr: &str) -> Result<Endpoint> {
    let endpoint = Endpoint::from_shared(format!("http://{addr}"))
        .map_err(|error| Error::invalid(format!("{addr:?} is not an address: {error}; write host:port")))?;
    Ok(endpoint
        .connect_timeout(CONNECT_WITHIN)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_WITHIN)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES))
}

impl GrpcDialer {
    fn cluster(&self, addr: &str) -> Result<ClusterClient<Channel>> {
        let mut channels = self.channels.lock();
        let channel = match channels.get(addr) {
            Some(channel) => channel.clone(),
            None => {
                let channel = endpoint(addr)?.connect_lazy();
                channels.insert(addr.to_owned(), channel.clone());
                channel
            }
        };
        Ok(ClusterClient::new(channel).max_decoding_message_size(limits::MAX_MESSAGE_BYTES))
    }
}

impl Dialer for GrpcDialer {
    fn link(&self, addr: &str) -> Arc<dyn Link> {
        Arc::new(SessionLink { core: Arc::new(Core { addr: addr.to_owned(), state: Mutex::default() }) })
    }

    fn map(&self, addr: &str) -> BoxFuture<'static, Result<v1::GetMapReply>> {
        let cluster = self.cluster(addr);
        async move {
            let reply = cluster?.get_map(v1::GetMapRequest {}).await;
            reply.map(tonic::Response::into_inner).map_err(|status| read_error(&status))
        }
        .boxed()
    }

    fn status(&self, addr: &str) -> BoxFuture<'static, Result<v1::GetStatusReply>> {
        let cluster = self.cluster(addr);
        async move {
            let reply = cluster?.get_status(v1::GetStatusRequest {}).await;
            reply.map(tonic::Response::into_inner).map_err(|status| read_error(&status))
        }
        .boxed()
    }
}

/// The error of a question: one of unknown fate did nothing, so that it only was not answered.
fn read_error(status: &tonic::Status) -> Error {
    let error = convert::error_from_status(status);
    match error.kind {
        crate::ErrorKind::Undetermined => Error::unavailable(error.message),
        _ => error,
    }
}

/// A connection, or why there is none; shared by all who wait for it.
type Connecting = Shared<BoxFuture<'static, Result<Arc<Connection>, Arc<str>>>>;

/// The link to one node.
struct SessionLink {
    core: Arc<Core>,
}

struct Core {
    addr: String,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    now: Now,
    /// The pause after the last failure; zero once a reply came.
    pause: Duration,
}

#[derive(Default)]
enum Now {
    #[default]
    Idle,
    Connecting(Connecting),
    Up(Arc<Connection>),
    Down {
        until: Instant,
        why: Arc<str>,
    },
}

impl Link for SessionLink {
    fn call(&self, request: Request, deadline: Instant) -> BoxFuture<'static, Result<Reply, LinkError>> {
        let core = Arc::clone(&self.core);
        async move {
            let connection = match timeout_at(deadline, core.connection()).await {
                Ok(Ok(connection)) => connection,
                Ok(Err(why)) => return Err(LinkError::NotSent(why.to_string())),
                Err(_) => return Err(LinkError::NotSent("no connection within the deadline".into())),
            };
            connection.call(request, deadline).await
        }
        .boxed()
    }
}

impl Core {
    /// The connection, made anew where it broke.
    async fn connection(self: &Arc<Self>) -> Result<Arc<Connection>, Arc<str>> {
        let connecting = {
            let mut state = self.state.lock();
            match &state.now {
                Now::Up(connection) => return Ok(Arc::clone(connection)),
                Now::Down { until, why } if Instant::now() < *until => return Err(Arc::clone(why)),
                Now::Connecting(connecting) => connecting.clone(),
                Now::Idle | Now::Down { .. } => {
                    let connecting = self.begin();
                    state.now = Now::Connecting(connecting.clone());
                    connecting
                }
            }
        };
        connecting.await
    }

    /// Connects in a task of its own, so that a caller who gives up does not undo it for the others.
    fn begin(self: &Arc<Self>) -> Connecting {
        let core = Arc::clone(self);
        let task = tokio::spawn(async move {
            let result = match timeout(CONNECT_WITHIN, core.connect()).await {
                Ok(result) => result,
                Err(_) => Err(format!("no connection within {} s", CONNECT_WITHIN.as_secs()).into()),
            };
            let mut state = core.state.lock();
            match &result {
                // It may have broken already: then its reader found nothing to take down.
                Ok(connection) if connection.calls.taken.lock().is_none() => {
                    state.fall(&"the stream broke at once".into());
                }
                Ok(connection) => state.now = Now::Up(Arc::clone(connection)),
                Err(why) => state.fall(why),
            }
            result
        });
        async move { task.await.unwrap_or_else(|stopped| Err(format!("connecting stopped: {stopped}").into())) }
            .boxed()
            .shared()
    }

    async fn connect(self: &Arc<Self>) -> Result<Arc<Connection>, Arc<str>> {
        let told = |error: &dyn std::error::Error| -> Arc<str> { chain(error).into() };
        let channel = endpoint(&self.addr).map_err(|e| told(&e))?.connect().await.map_err(|e| told(&e))?;
        let (queue, waiting) = mpsc::channel(QUEUE_CALLS);
        let calls = Arc::new(Calls { taken: Mutex::new(Some(HashMap::new())), next: AtomicU64::new(1) });
        let mut client = KvClient::new(channel)
            .max_decoding_message_size(limits::MAX_MESSAGE_BYTES)
            .max_encoding_message_size(limits::MAX_MESSAGE_BYTES);
        let replies = client.session(messages(waiting, Arc::clone(&calls))).await.map_err(|e| told(&e))?;
        let connection = Arc::new(Connection { queue, calls: Arc::clone(&calls) });
        let reader = Reader { core: Arc::downgrade(self), calls, why: "the session ended".into() };
        tokio::spawn(reader.run(replies.into_inner()));
        Ok(connection)
    }
}

/// An error with all its causes: tonic's own text is only "transport error".
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

impl State {
    fn fall(&mut self, why: &Arc<str>) {
        self.pause = (self.pause * 2).clamp(FIRST_PAUSE, LONGEST_PAUSE);
        self.now = Now::Down { until: Instant::now() + self.pause, why: Arc::clone(why) };
    }
}

/// One stream to a node, from its first to its last message.
struct Connection {
    queue: mpsc::Sender<Waiting>,
    calls: Arc<Calls>,
}

type Answer = oneshot::Sender<Result<Reply, LinkError>>;

/// A call in the queue.
struct Waiting {
    call: u64,
    request: Request,
    answer: Answer,
    ticket: Arc<Ticket>,
}

/// Decides between the stream that takes a call from the queue and the caller that gives it up: only one of
/// them gets it.
#[derive(Default)]
struct Ticket(AtomicBool);

impl Ticket {
    fn claim(&self) -> bool {
        !self.0.swap(true, Ordering::AcqRel)
    }
}

/// The calls that the stream took, by number; `None` once it broke.
struct Calls {
    taken: Mutex<Option<HashMap<u64, Answer>>>,
    next: AtomicU64,
}

impl Connection {
    async fn call(&self, request: Request, deadline: Instant) -> Result<Reply, LinkError> {
        let room = match timeout_at(deadline, self.queue.reserve()).await {
            Ok(Ok(room)) => room,
            Ok(Err(_)) => return Err(LinkError::NotSent("the stream broke".into())),
            Err(_) => return Err(LinkError::NotSent("no room in the queue within the deadline".into())),
        };
        let (answer, mut answered) = oneshot::channel();
        let call = self.calls.next.fetch_add(1, Ordering::Relaxed);
        let ticket = Arc::new(Ticket::default());
        let given_up = GivenUp { calls: &self.calls, call, ticket: Arc::clone(&ticket) };
        room.send(Waiting { call, request, answer, ticket });
        match timeout_at(deadline, &mut answered).await {
            Ok(Ok(result)) => result,
            // Whatever the stream took is answered; this was still in the queue.
            Ok(Err(_)) => Err(LinkError::NotSent("the stream broke before the call was sent".into())),
            Err(_) if given_up.ticket.claim() => {
                Err(LinkError::NotSent("the call was still in the queue at the deadline".into()))
            }
            // The reply, or the queue's end, may have come at the last moment.
            Err(_) => match answered.try_recv() {
                Ok(result) => result,
                Err(_) => Err(LinkError::Unknown("no reply within the deadline".into())),
            },
        }
    }
}

/// Withdraws a call whose caller is gone: from the queue, or from the calls under way.
struct GivenUp<'a> {
    calls: &'a Calls,
    call: u64,
    ticket: Arc<Ticket>,
}

impl Drop for GivenUp<'_> {
    fn drop(&mut self) {
        if !self.ticket.claim()
            && let Some(taken) = self.calls.taken.lock().as_mut()
        {
            taken.remove(&self.call);
        }
    }
}

/// The messages of a stream: all calls that wait, as one.
fn messages(queue: mpsc::Receiver<Waiting>, calls: Arc<Calls>) -> impl Stream<Item = v1::SessionRequests> {
    futures::stream::unfold((queue, calls), |(mut queue, calls)| async move {
        let mut requests = Vec::new();
        let mut bytes = 0;
        while requests.is_empty() {
            calls.take(queue.recv().await?, &mut requests, &mut bytes);
            while requests.len() < MESSAGE_CALLS
                && bytes < MESSAGE_BYTES
                && let Ok(waiting) = queue.try_recv()
            {
                calls.take(waiting, &mut requests, &mut bytes);
            }
        }
        Some((v1::SessionRequests { requests }, (queue, calls)))
    })
}

impl Calls {
    /// Takes a call from the queue into a message, unless its caller gave it up or the stream broke.
    fn take(&self, waiting: Waiting, requests: &mut Vec<v1::SessionRequest>, bytes: &mut usize) {
        if !waiting.ticket.claim() {
            return;
        }
        match self.taken.lock().as_mut() {
            Some(taken) => taken.insert(waiting.call, waiting.answer),
            None => return,
        };
        let request = v1::SessionRequest { call: waiting.call, request: Some(waiting.request) };
        *bytes += request.encoded_len();
        requests.push(request);
    }

    fn answer(&self, call: u64, reply: Option<Reply>) {
        let answer = self.taken.lock().as_mut().and_then(|taken| taken.remove(&call));
        // No one waits for a call that was given up.
        let Some(answer) = answer else { return };
        let result = reply.ok_or_else(|| {
            LinkError::Unknown("the node answered with a reply that this version does not know".into())
        });
        let _gone = answer.send(result);
    }
}

/// Hands replies out. When it ends, for whatever reason, the calls under way are of unknown fate.
struct Reader {
    core: Weak<Core>,
    calls: Arc<Calls>,
    why: Arc<str>,
}

impl Reader {
    async fn run(mut self, mut replies: tonic::Streaming<v1::SessionReplies>) {
        let mut first = true;
        loop {
            match replies.message().await {
                Ok(Some(message)) => {
                    if std::mem::take(&mut first)
                        && let Some(core) = self.core.upgrade()
                    {
                        core.state.lock().pause = Duration::ZERO;
                    }
                    for reply in message.replies {
                        self.calls.answer(reply.call, reply.reply);
                    }
                }
                Ok(None) => {
                    self.why = "the node ended the session".into();
                    return;
                }
                Err(status) => {
                    self.why = format!("the stream broke: {}", chain(&status)).into();
                    return;
                }
            }
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let taken = self.calls.taken.lock().take();
        // The state before the answers: who tries again at once does not meet the broken stream.
        if let Some(core) = self.core.upgrade() {
            let mut state = core.state.lock();
            if matches!(&state.now, Now::Up(connection) if Arc::ptr_eq(&connection.calls, &self.calls)) {
                state.fall(&self.why);
            }
        }
        for (_, answer) in taken.into_iter().flatten() {
            let _gone = answer.send(Err(LinkError::Unknown(self.why.to_string())));
        }
    }
}

#[cfg(test)]
#[path = "session_tests.rs"]
mod tests;
