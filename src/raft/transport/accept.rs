//! The accepting side of a connection: Hello, then the other node's frames, dispatched and answered.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{Stream, StreamExt};
use tokio::sync::{Semaphore, mpsc};
use tonic::{Status, Streaming};

use super::frame::{Kind, reply};
use super::hello::refusal;
use super::outbox::{Lane, Messages, Outbox, outbox};
use super::{APPEND_WINDOW, Shared, Side};
use crate::rpc::internal::v1::{Frame, Frames};
use crate::types::{Error, NodeId};

/// How long a fresh connection may be silent before its Hello.
const HELLO_TIMEOUT: Duration = Duration::from_secs(5);
/// The most calls of one connection that are worked on at a time.
const CALLS_AT_A_TIME: usize = 1024;

/// Why a frame is not answered with a body.
#[derive(Debug)]
pub enum Failure {
    /// It can't be read: the connection is ended, since nothing after it can be trusted.
    Malformed(Error),
    /// It was read, and the answer is no.
    Refused(Error),
}

/// What is done with the frames of other nodes.
pub trait Service: Send + Sync + 'static {
    /// Answers a call.
    fn answer(
        &self,
        from: NodeId,
        kind: Kind,
        group: u64,
        body: Bytes,
    ) -> BoxFuture<'static, Result<Bytes, Failure>>;

    /// Answers a stream of append requests, one by one and in order, until either side ends it.
    fn append(
        &self,
        from: NodeId,
        group: u64,
        requests: AppendRequests,
    ) -> BoxStream<'static, Result<Bytes, Failure>>;
}

/// The requests of one append stream, as they come.
pub struct AppendRequests {
    bodies: mpsc::UnboundedReceiver<Bytes>,
    waiting: Arc<AtomicUsize>,
}

impl AppendRequests {
    /// The next request; `None` when the other side has ended the stream.
    pub async fn next(&mut self) -> Option<Bytes> {
        let body = self.bodies.recv().await?;
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        Some(body)
    }
}

/// The other end of [`AppendRequests`].
struct AppendStream {
    bodies: mpsc::UnboundedSender<Bytes>,
    waiting: Arc<AtomicUsize>,
}

/// A connection's answers.
pub type FrameStream = BoxStream<'static, Result<Frames, Status>>;

/// Waits for Hello, answers it, and serves the connection in a task of its own until it ends.
pub async fn accept(
    shared: Arc<Shared>,
    service: Arc<dyn Service>,
    mut frames: Streaming<Frames>,
) -> Result<FrameStream, Status> {
    let first = tokio::time::timeout(HELLO_TIMEOUT, frames.message())
        .await
        .map_err(|_| Status::deadline_exceeded(format!("no Hello within {HELLO_TIMEOUT:?}")))??;
    let hello = first.and_then(|frames| frames.hello).ok_or_else(|| {
        tracing::warn!("refused a connection that did not begin with a Hello");
        Status::invalid_argument("the first message of a connection must be a Hello")
    })?;
    let from = shared.identity.check(&hello, &shared.peers).map_err(|error| {
        if shared.note_trouble(Side::Them, NodeId(hello.from_node), &error.message) {
            tracing::error!(from = hello.from_node, error = %error.message, "refused a connection");
        }
        refusal(&error)
    })?;
    if shared.faults.is_cut(from) {
        return Err(Status::unavailable("the way is cut by a test"));
    }
    shared.note_no_trouble(Side::Them, from);
    shared.heard_of(from);
    let (outbox, messages) = outbox();
    let reader = Reader {
        from,
        shared: Arc::clone(&shared),
        service,
        outbox,
        calls: Arc::new(Semaphore::new(CALLS_AT_A_TIME)),
        appends: HashMap::new(),
    };
    tokio::spawn(reader.run(frames));
    let hello = Frames { hello: Some(shared.identity.hello(from)), frames: Vec::new() };
    Ok(answers(shared, from, hello, messages).boxed())
}

fn answers(
    shared: Arc<Shared>,
    from: NodeId,
    hello: Frames,
    messages: Messages,
) -> impl Stream<Item = Result<Frames, Status>> + Send + 'static {
    let queued = futures::stream::unfold(Some(messages), |messages| async move {
        let mut messages = messages?;
        match messages.next().await? {
            Ok(message) => Some((Ok(message), Some(messages))),
            Err(status) => Some((Err(status), None)),
        }
    });
    let passed = queued.filter(move |_| futures::future::ready(!shared.faults.is_cut(from)));
    futures::stream::once(futures::future::ready(Ok(hello))).chain(passed)
}

/// Reads a connection's frames. Never waits for anything but the next message: a slow group must not
/// hold up the others.
struct Reader {
    from: NodeId,
    shared: Arc<Shared>,
    service: Arc<dyn Service>,
    outbox: Outbox,
    calls: Arc<Semaphore>,
    appends: HashMap<u64, AppendStream>,
}

impl Reader {
    async fn run(mut self, mut frames: Streaming<Frames>) {
        loop {
            let message = tokio::select! {
                message = frames.message() => message,
                () = self.outbox.closed() => break,
                () = self.shared.closing.cancelled() => {
                    self.outbox.end_with(Status::unavailable("the node is shutting down"));
                    break;
                }
            };
            let message = match message {
                Ok(Some(message)) => message,
                Ok(None) => break,
                Err(status) => {
                    tracing::info!(from = %self.from, error = status.message(), "a node's connection ended");
                    break;
                }
            };
            if self.shared.faults.is_cut(self.from) {
                continue;
            }
            for frame in message.frames {
                if let Err(error) = self.receive(frame) {
                    malformed(&self.outbox, self.from, &error);
                    return;
                }
            }
        }
    }

    fn receive(&mut self, frame: Frame) -> Result<(), Error> {
        match Kind::of(&frame)? {
            kind @ (Kind::Append | Kind::Vote | Kind::PreVote | Kind::TransferLeader | Kind::Call) => {
                self.answer(kind, frame);
                Ok(())
            }
            Kind::AppendOpen => self.open(&frame),
            Kind::AppendItem => self.append(frame),
            Kind::AppendClose => {
                self.appends.remove(&frame.call);
                Ok(())
            }
            kind @ (Kind::AppendReply | Kind::Reply) => {
                Err(Error::invalid(format!("a frame of kind {kind:?} came from the asking side")))
            }
        }
    }

    fn answer(&self, kind: Kind, frame: Frame) {
        let outbox = self.outbox.clone();
        let Ok(permit) = Arc::clone(&self.calls).try_acquire_owned() else {
            let busy = Error::unavailable(format!(
                "{CALLS_AT_A_TIME} calls of node {} are being worked on: retry later",
                self.from
            ));
            // Where not even the refusal fits, the caller runs into its time limit.
            outbox.try_send(Lane::Urgent, reply(frame.call, Kind::Reply, Err(busy))).ok();
            return;
        };
        let answer = self.service.answer(self.from, kind, frame.group, frame.body);
        let from = self.from;
        tokio::spawn(async move {
            let result = match answer.await {
                Ok(body) => Ok(body),
                Err(Failure::Refused(error)) => Err(error),
                Err(Failure::Malformed(error)) => {
                    malformed(&outbox, from, &error);
                    return;
                }
            };
            // Where the connection is gone, nobody waits for the answer.
            outbox.send(Lane::Urgent, reply(frame.call, Kind::Reply, result)).await.ok();
            drop(permit);
        });
    }

    fn open(&mut self, frame: &Frame) -> Result<(), Error> {
        let (sender, bodies) = mpsc::unbounded_channel();
        let waiting = Arc::new(AtomicUsize::new(0));
        let stream = AppendStream { bodies: sender, waiting: Arc::clone(&waiting) };
        let call = frame.call;
        if self.appends.insert(call, stream).is_some() {
            return Err(Error::invalid(format!("append stream {call} was opened twice")));
        }
        let mut replies = self.service.append(self.from, frame.group, AppendRequests { bodies, waiting });
        let (outbox, from) = (self.outbox.clone(), self.from);
        tokio::spawn(async move {
            while let Some(result) = replies.next().await {
                let result = match result {
                    Ok(body) => Ok(body),
                    Err(Failure::Refused(error)) => Err(error),
                    Err(Failure::Malformed(error)) => return malformed(&outbox, from, &error),
                };
                if outbox.send(Lane::Urgent, reply(call, Kind::AppendReply, result)).await.is_err() {
                    return;
                }
            }
        });
        Ok(())
    }

    fn append(&mut self, frame: Frame) -> Result<(), Error> {
        // A stream that ended here first (a conflict, a stopped group) may get a few requests more.
        let Some(stream) = self.appends.get(&frame.call) else { return Ok(()) };
        if stream.waiting.fetch_add(1, Ordering::Relaxed) >= APPEND_WINDOW {
            return Err(Error::invalid(format!(
                "append stream {} has more than {APPEND_WINDOW} requests waiting",
                frame.call
            )));
        }
        if stream.bodies.send(frame.body).is_err() {
            self.appends.remove(&frame.call);
        }
        Ok(())
    }
}

fn malformed(outbox: &Outbox, from: NodeId, error: &Error) {
    tracing::error!(%from, error = %error.message, "ended a connection that sent a malformed frame");
    outbox.end_with(Status::invalid_argument(&error.message));
}
