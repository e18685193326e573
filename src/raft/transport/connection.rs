//! One established connection to another node: calls on their way, and their answers.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};

use super::frame::{Kind, frame, reply_result};
use super::outbox::{Closed, Lane, Outbox};
use crate::rpc::internal::v1::Frame;
use crate::types::{Error, NodeId};

/// Why a call has no answer.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum CallError {
    /// There is no connection, or it ended before the answer. The call may have arrived.
    #[error("node {to} is unreachable: {reason}")]
    Unreachable {
        /// The other node.
        to: NodeId,
        /// What is wrong.
        reason: String,
    },
    /// No answer in time. The call may have arrived.
    #[error("node {to} has not answered within {timeout:?}")]
    Timeout {
        /// The other node.
        to: NodeId,
        /// The limit.
        timeout: Duration,
    },
    /// The other node answered with an error.
    #[error("node {to} answered: {error}")]
    Refused {
        /// The other node.
        to: NodeId,
        /// Its answer.
        error: Error,
    },
}

impl From<CallError> for Error {
    fn from(error: CallError) -> Self {
        match error {
            CallError::Refused { error, .. } => error,
            other => Error::unavailable(other.to_string()),
        }
    }
}

type Reply = Result<Bytes, Error>;

enum Slot {
    Once(oneshot::Sender<Reply>),
    /// Not bounded itself: the sender of requests keeps within its window, and each is answered once.
    Many(mpsc::UnboundedSender<Reply>),
}

/// The calls of one connection that wait for answers. `None` once the connection is gone.
struct Calls {
    next: AtomicU64,
    slots: Mutex<Option<HashMap<u64, Slot>>>,
}

impl Calls {
    fn add(&self, slot: Slot) -> Result<u64, Closed> {
        let call = self.next.fetch_add(1, Ordering::Relaxed);
        self.slots.lock().as_mut().ok_or(Closed)?.insert(call, slot);
        Ok(call)
    }

    fn remove(&self, call: u64) {
        if let Some(slots) = self.slots.lock().as_mut() {
            slots.remove(&call);
        }
    }
}

/// Forgets a call when it is answered or given up.
struct Registered {
    calls: Arc<Calls>,
    call: u64,
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.calls.remove(self.call);
    }
}

/// One established connection, as its user sees it.
pub struct Connection {
    to: NodeId,
    outbox: Outbox,
    calls: Arc<Calls>,
}

impl Connection {
    pub fn new(to: NodeId, outbox: Outbox) -> Self {
        let calls = Calls { next: AtomicU64::new(1), slots: Mutex::new(Some(HashMap::new())) };
        Self { to, outbox, calls: Arc::new(calls) }
    }

    fn lost(&self) -> CallError {
        CallError::Unreachable { to: self.to, reason: "the connection was lost".to_string() }
    }

    /// Sends one frame and waits for its answer.
    pub async fn call(
        &self,
        kind: Kind,
        group: u64,
        body: Bytes,
        timeout: Duration,
    ) -> Result<Bytes, CallError> {
        let (slot, answer) = oneshot::channel();
        let call = self.calls.add(Slot::Once(slot)).map_err(|Closed| self.lost())?;
        let registered = Registered { calls: Arc::clone(&self.calls), call };
        let exchange = async {
            let sent = self.outbox.send(Lane::Urgent, frame(call, kind, group, body)).await;
            sent.map_err(|Closed| self.lost())?;
            answer.await.map_err(|_| self.lost())?.map_err(|error| CallError::Refused { to: self.to, error })
        };
        let result = tokio::time::timeout(timeout, exchange).await;
        drop(registered);
        result.unwrap_or(Err(CallError::Timeout { to: self.to, timeout }))
    }

    /// Begins a stream of append requests for a group.
    pub async fn open_append(self: &Arc<Self>, group: u64) -> Result<AppendCall, CallError> {
        let (slot, replies) = mpsc::unbounded_channel();
        let call = self.calls.add(Slot::Many(slot)).map_err(|Closed| self.lost())?;
        let registered = Registered { calls: Arc::clone(&self.calls), call };
        // Made before the first frame is sent, so that a stream that is given up here is closed there.
        let append = AppendCall { connection: Arc::clone(self), registered, group, replies };
        let open = frame(call, Kind::AppendOpen, group, Bytes::new());
        self.outbox.send(Lane::Bulk, open).await.map_err(|Closed| self.lost())?;
        Ok(append)
    }

    /// Hands an answer to whoever waits for it. An answer nobody waits for came too late.
    ///
    /// # Errors
    ///
    /// `Invalid` for a frame that is no answer.
    pub fn receive(&self, reply: Frame) -> Result<(), Error> {
        let kind = Kind::of(&reply)?;
        let mut slots = self.calls.slots.lock();
        let Some(slots) = slots.as_mut() else { return Ok(()) };
        let call = reply.call;
        match (kind, slots.get(&call)) {
            (Kind::AppendReply, Some(Slot::Many(replies))) => {
                // The receiver may have gone just now.
                replies.send(reply_result(reply)).ok();
                Ok(())
            }
            (Kind::Reply, Some(Slot::Once(_))) => {
                if let Some(Slot::Once(answer)) = slots.remove(&call) {
                    answer.send(reply_result(reply)).ok();
                }
                Ok(())
            }
            (Kind::AppendReply | Kind::Reply, None) => Ok(()),
            (kind, _) => Err(Error::invalid(format!("a frame of kind {kind:?} is no answer to call {call}"))),
        }
    }

    /// Ends every call: the connection is gone.
    pub fn close(&self) {
        self.calls.slots.lock().take();
    }
}

/// A stream of append requests on its way. Dropping it ends the stream at the other node.
pub struct AppendCall {
    connection: Arc<Connection>,
    registered: Registered,
    group: u64,
    replies: mpsc::UnboundedReceiver<Reply>,
}

impl AppendCall {
    /// Sends the next request; waits while too much waits to be sent.
    pub async fn send(&self, body: Bytes) -> Result<(), CallError> {
        let item = frame(self.registered.call, Kind::AppendItem, self.group, body);
        self.connection.outbox.send(Lane::Bulk, item).await.map_err(|Closed| self.connection.lost())
    }

    /// The answer to the next unanswered request. Can be dropped while it waits.
    pub async fn recv(&mut self) -> Result<Bytes, CallError> {
        let to = self.connection.to;
        match self.replies.recv().await {
            Some(reply) => reply.map_err(|error| CallError::Refused { to, error }),
            None => Err(self.connection.lost()),
        }
    }
}

impl Drop for AppendCall {
    fn drop(&mut self) {
        let close = frame(self.registered.call, Kind::AppendClose, self.group, Bytes::new());
        // In the same lane as the requests, so that it can't overtake the opening.
        if self.connection.outbox.try_send(Lane::Bulk, close.clone()).is_ok() {
            return;
        }
        let outbox = self.connection.outbox.clone();
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            // Where the connection is gone there is nothing left to end.
            runtime.spawn(async move { outbox.send(Lane::Bulk, close).await.ok() });
        }
    }
}
