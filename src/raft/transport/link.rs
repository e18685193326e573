//! The connection from this node to one other: made, kept, and made again.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tonic::Streaming;
use tonic::transport::{Channel, Endpoint};

use super::connection::{CallError, Connection};
use super::outbox::{Messages, outbox};
use super::{MAX_MESSAGE_BYTES, Shared, Side};
use crate::rpc::internal::v1::Frames;
use crate::rpc::internal::v1::node_client::NodeClient;
use crate::types::{Error, NodeId, Result};

/// How long an attempt to connect may take, and how long the other side may take to say Hello.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// A silent connection is asked for a sign of life so often...
const KEEP_ALIVE: Duration = Duration::from_secs(1);
/// ...and given up after so long without one.
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(3);

#[derive(Clone)]
enum State {
    /// An attempt is under way.
    Connecting,
    Up(Arc<Connection>),
    /// The last attempt failed, or the connection was lost; the next attempt comes.
    Down(Arc<str>),
}

/// The connection to one other node. Lives until the transport is closed.
pub struct Link {
    to: NodeId,
    state: watch::Sender<State>,
    /// Ends a pause between attempts: the other node was heard of.
    wake: Notify,
}

impl Link {
    /// Starts to connect.
    pub fn start(to: NodeId, shared: Arc<Shared>) -> Arc<Self> {
        let link = Arc::new(Self { to, state: watch::Sender::new(State::Connecting), wake: Notify::new() });
        tokio::spawn(Driver { link: Arc::clone(&link), shared }.run());
        link
    }

    /// The other node is known to live: try again at once.
    pub fn wake(&self) {
        if !self.is_up() {
            self.wake.notify_one();
        }
    }

    /// Whether the connection stands.
    pub fn is_up(&self) -> bool {
        matches!(*self.state.borrow(), State::Up(_))
    }

    /// The connection. Where it is being made, waits for it, up to `patience`; where the last attempt
    /// failed, fails at once.
    pub async fn connection(&self, patience: Duration) -> Result<Arc<Connection>, CallError> {
        let unreachable = |reason: String| CallError::Unreachable { to: self.to, reason };
        let mut state = self.state.subscribe();
        let settled = state.wait_for(|state| !matches!(state, State::Connecting));
        match tokio::time::timeout(patience, settled).await {
            Ok(Ok(state)) => match &*state {
                State::Up(connection) => Ok(Arc::clone(connection)),
                State::Down(reason) => Err(unreachable(reason.to_string())),
                State::Connecting => Err(unreachable("it is being connected to".to_string())),
            },
            Ok(Err(_)) => Err(unreachable("this node is shutting down".to_string())),
            Err(_) => Err(unreachable(format!("not connected after {patience:?}"))),
        }
    }
}

struct Driver {
    link: Arc<Link>,
    shared: Arc<Shared>,
}

/// What an attempt has made.
struct Established {
    connection: Arc<Connection>,
    replies: Streaming<Frames>,
}

impl Driver {
    async fn run(self) {
        let timing = &self.shared.timing;
        let mut pause = timing.reconnect_min;
        let closing = self.shared.closing.clone();
        while !closing.is_cancelled() {
            self.link.state.send_replace(State::Connecting);
            let attempt = tokio::select! {
                attempt = tokio::time::timeout(CONNECT_TIMEOUT, self.connect()) => attempt,
                () = closing.cancelled() => break,
            };
            let reason = match attempt {
                Ok(Ok(established)) => {
                    pause = timing.reconnect_min;
                    self.serve(established, &closing).await
                }
                Ok(Err(error)) => error,
                Err(_) => Error::unavailable(format!("no connection within {CONNECT_TIMEOUT:?}")),
            };
            self.down(&reason);
            let jittered = pause.mul_f64(rand::random_range(0.5..1.5));
            pause = (pause * 2).min(timing.reconnect_max);
            tokio::select! {
                () = tokio::time::sleep(jittered) => {}
                () = self.link.wake.notified() => {}
                () = closing.cancelled() => break,
            }
        }
        self.link.state.send_replace(State::Down("this node is shutting down".into()));
    }

    /// Notes why there is no connection. The log gets each reason once, not every attempt.
    fn down(&self, reason: &Error) {
        let to = self.link.to;
        if self.shared.note_trouble(Side::Us, to, &reason.message) {
            tracing::warn!(%to, error = %reason.message, "no connection to node");
        }
        self.link.state.send_replace(State::Down(reason.message.as_str().into()));
    }

    async fn connect(&self) -> Result<Established> {
        let to = self.link.to;
        if self.shared.faults.is_cut(to) {
            return Err(Error::unavailable(format!("the way to node {to} is cut by a test")));
        }
        let channel = connect(&self.shared, to).await?;
        let mut client = NodeClient::new(channel)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        let (outbox, messages) = outbox();
        let hello = Frames { hello: Some(self.shared.identity.hello(to)), frames: Vec::new() };
        let requests = self.requests(hello, messages);
        let status_error = |status: tonic::Status| Error::unavailable(status.message());
        let mut replies = client.channel(requests).await.map_err(status_error)?.into_inner();
        let first = replies.message().await.map_err(status_error)?;
        let hello = first.and_then(|frames| frames.hello).ok_or_else(|| {
            Error::invalid(format!("node {to} has answered without a Hello: is it a kvorum node?"))
        })?;
        let from = self.shared.identity.check(&hello, &self.shared.peers)?;
        if from != to {
            return Err(Error::denied(format!("node {from} has answered where node {to} was meant")));
        }
        Ok(Established { connection: Arc::new(Connection::new(to, outbox)), replies })
    }

    /// The messages of the connection: Hello, then what is queued. Ends with the connection's last user.
    fn requests(&self, hello: Frames, messages: Messages) -> impl futures::Stream<Item = Frames> + use<> {
        let (to, shared) = (self.link.to, Arc::clone(&self.shared));
        let queued = futures::stream::unfold(messages, |mut messages| async move {
            // Only the accepting side ends a connection with an error.
            let message = messages.next().await?.ok()?;
            Some((message, messages))
        });
        let passed = queued.filter(move |_| futures::future::ready(!shared.faults.is_cut(to)));
        futures::stream::once(futures::future::ready(hello)).chain(passed)
    }

    /// Hands out answers until the connection ends; says why it ended.
    async fn serve(&self, established: Established, closing: &CancellationToken) -> Error {
        let Established { connection, mut replies } = established;
        let to = self.link.to;
        self.shared.note_no_trouble(Side::Us, to);
        tracing::info!(%to, "connected to node");
        self.link.state.send_replace(State::Up(Arc::clone(&connection)));
        let reason = loop {
            let message = tokio::select! {
                message = replies.message() => message,
                () = closing.cancelled() => break Error::unavailable("this node is shutting down"),
            };
            match message {
                Ok(Some(message)) if self.shared.faults.is_cut(to) => drop(message),
                Ok(Some(message)) => {
                    let received = message.frames.into_iter().try_for_each(|reply| connection.receive(reply));
                    if let Err(error) = received {
                        break error;
                    }
                }
                Ok(None) => break Error::unavailable("the other node has ended the connection"),
                Err(status) => break Error::unavailable(format!("connection lost: {}", status.message())),
            }
        };
        connection.close();
        reason
    }
}

/// A fresh HTTP/2 connection to a node.
pub async fn connect(shared: &Shared, to: NodeId) -> Result<Channel> {
    let record = shared.peers.get(to).ok_or_else(|| {
        Error::unavailable(format!("no address is known for node {to}: it has not been heard of yet"))
    })?;
    let address = record.grpc_addr;
    let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(|error| {
        Error::invalid(format!("node {to} has the address {address:?}, which is not host:port: {error}"))
    })?;
    let endpoint = endpoint
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(super::STREAM_WINDOW_BYTES)
        .initial_connection_window_size(super::STREAM_WINDOW_BYTES);
    endpoint
        .connect()
        .await
        .map_err(|error| Error::unavailable(format!("node {to} at {address} can't be reached: {error}")))
}
