//! Commands and questions of the commit protocol between nodes. Only members send them: they come over the
//! connections between nodes, never from a client.

use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::codec;
use crate::node::dispatch::Replicas;
use crate::types::{
    Error, ErrorKind, Moved, Outcome, Result, Timestamp, TxnCommand, TxnId, TxnStatus, limits,
};

/// The kind of these calls (`calls` has the others).
pub const CALL: u32 = 4;

/// What is asked of a shard's leader.
#[derive(Clone, Serialize, Deserialize, Debug)]
pub enum Ask {
    /// Sequence a command.
    Command(TxnCommand),
    /// What the record at the primary key says.
    Status {
        /// The primary key.
        primary: Bytes,
        /// See [`crate::txn::Action::Ask`].
        at: Option<Timestamp>,
    },
    /// Whether the transaction holds a lock that is stored at a key.
    Look {
        /// The key.
        key: Bytes,
        /// See [`crate::txn::Action::Ask`].
        at: Option<Timestamp>,
    },
}

/// The body of a call.
#[derive(Clone, Serialize, Deserialize, Debug)]
pub struct Call {
    /// Which transaction it is about.
    pub txn: TxnId,
    /// A key of the shard.
    pub to: Bytes,
    /// How long the other side may take.
    pub timeout_ms: u64,
    /// What is asked.
    pub ask: Ask,
}

/// An answer.
#[derive(Clone, Serialize, Deserialize, Debug)]
pub enum Answer {
    /// What came of a command.
    Outcome(Outcome),
    /// What the record says.
    Status(TxnStatus),
    /// When the lock was taken, if it is there.
    Looked(Option<Timestamp>),
}

/// The reply to a call: apart from the call's own failure, after which nobody knows whether it was done.
#[derive(Serialize, Deserialize)]
enum Reply {
    Answer(Answer),
    Failed { kind: ErrorKind, message: String, moved: Option<Box<Moved>> },
}

/// The body of a reply.
pub fn encode_reply(result: Result<Answer>) -> Bytes {
    let reply = match result {
        Ok(answer) => Reply::Answer(answer),
        Err(error) => Reply::Failed { kind: error.kind, message: error.message, moved: error.moved },
    };
    codec::encode(&reply).into()
}

/// Reads the body of a reply.
pub fn decode_reply(body: &[u8]) -> Result<Answer> {
    match codec::decode(body, "a reply about a transaction")? {
        Reply::Answer(answer) => Ok(answer),
        Reply::Failed { kind, message, moved } => Err(Error { moved, ..Error::new(kind, message) }),
    }
}

/// Answers a call of another node.
///
/// # Errors
///
/// `Corrupt` where the call can't be read. What becomes of a readable one is in the reply.
pub async fn answer(replicas: &Replicas, body: &[u8]) -> Result<Bytes> {
    let call: Call = codec::decode(body, "a call about a transaction")?;
    let timeout = Duration::from_millis(call.timeout_ms.min(limits::MAX_DEADLINE_MS));
    Ok(encode_reply(serve(replicas, call, Instant::now() + timeout).await))
}

/// Serves a call by a replica of this node.
pub async fn serve(replicas: &Replicas, call: Call, deadline: Instant) -> Result<Answer> {
    let replica = replicas.holding(&call.to).ok_or_else(|| {
        Error::moved(
            "this node has no replica of the shard that holds the key: refresh the map",
            Moved::default(),
        )
    })?;
    match call.ask {
        Ask::Command(command) => replica.execute_txn(call.txn, command, deadline).await.map(Answer::Outcome),
        Ask::Status { primary, at } => {
            replica.txn_status(&primary, call.txn, at, deadline).await.map(Answer::Status)
        }
        Ask::Look { key, at } => replica.lock_of(&key, call.txn, at, deadline).await.map(Answer::Looked),
    }
}
