//! Errors, sorted by what the caller does next.

use std::fmt;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{NodeId, ShardDescriptor, Timestamp};

/// The crate's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What the caller does next. A kind exists only where callers act differently.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorKind {
    /// Another operation was in the way; nothing was done. Retry at once, or read again first.
    Conflict,
    /// It went to the wrong place; nothing was done. Follow the hint. The client library does.
    Moved,
    /// No quorum or no node could be reached in time; nothing was done. Retry later.
    Unavailable,
    /// It may have taken effect, or may not, and that can't be learnt. Read before doing it again.
    Undetermined,
    /// The request is wrong; nothing was done. Correct it; a retry gets the same answer.
    Invalid,
    /// It refers to a time whose data is gone. Start again from a newer timestamp.
    TooOld,
    /// This caller may not do this here (wrong cluster, wiped node, no permission).
    Denied,
    /// Stored data failed a check, or a format is unknown. Needs an operator.
    Corrupt,
}

impl ErrorKind {
    /// The kind's name as it stands in JSON and in gRPC metadata.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Conflict => "conflict",
            Self::Moved => "moved",
            Self::Unavailable => "unavailable",
            Self::Undetermined => "undetermined",
            Self::Invalid => "invalid",
            Self::TooOld => "too_old",
            Self::Denied => "denied",
            Self::Corrupt => "corrupt",
        }
    }

    /// The exit code of the `kvorum` command for the kind. 0 is success and 1 is "no such key".
    pub const fn exit_code(self) -> u8 {
        match self {
            Self::Invalid => 2,
            Self::Unavailable => 3,
            Self::Conflict => 4,
            Self::Undetermined => 5,
            Self::TooOld => 6,
            Self::Denied => 7,
            Self::Corrupt => 8,
            Self::Moved => 9,
        }
    }
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A node that is believed to lead a shard.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct LeaderHint {
    /// Its id.
    pub node: NodeId,
    /// Its gRPC address, as `host:port`.
    pub grpc_addr: String,
}

/// What a node that can't serve a request knows about who can.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Moved {
    /// The shard that now holds the key, if known.
    pub shard: Option<ShardDescriptor>,
    /// Who leads it, if known.
    pub leader: Option<LeaderHint>,
}

/// What was in the way of a commit.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum ConflictReason {
    /// Something that the transaction read was changed after it read it.
    Changed,
    /// Another transaction holds a lock on something that it touches.
    Locked,
    /// It took so long that somebody who met its locks rolled it back.
    RolledBack,
    /// It adds to what is no counter, or beyond 64 bits: the error's kind is then [`ErrorKind::Invalid`].
    Counter,
    /// Something that this version does not know.
    Other,
}

impl ConflictReason {
    /// The reason's name as it stands in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Changed => "changed",
            Self::Locked => "locked",
            Self::RolledBack => "rolled_back",
            Self::Counter => "counter",
            Self::Other => "other",
        }
    }
}

/// Why a commit took no effect, for programs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Conflict {
    /// What was in the way.
    pub reason: ConflictReason,
    /// The key where it was, as the user knows it; of a range, where it begins. `None` where no key is to blame,
    /// or where it was too long to be told.
    pub key: Option<Bytes>,
    /// When the key was changed or locked, where that is known.
    pub ts: Option<Timestamp>,
    /// Whether this is kept: no attempt at this commit under this request id takes effect, neither an earlier nor
    /// a later one. Without it only this attempt did nothing.
    pub is_final: bool,
}

/// An error: what was wrong, the value, the limit, and what to do, in `message`.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    /// What the caller does next.
    pub kind: ErrorKind,
    /// For people.
    pub message: String,
    /// Where to go instead; only with [`ErrorKind::Moved`].
    pub moved: Option<Box<Moved>>,
    /// Why a commit took no effect; with [`ErrorKind::Conflict`], and with [`ErrorKind::Invalid`] for a counter.
    pub conflict: Option<Box<Conflict>>,
    /// With [`ErrorKind::Unavailable`]: the node has too much to do. Another one may not; this one should be spared.
    pub overloaded: bool,
    /// With [`ErrorKind::TooOld`], of whoever follows changes: the changelog begins after this timestamp, and what was
    /// committed before can't be had any more. Start over with a scan.
    pub oldest: Option<Timestamp>,
}

impl Error {
    /// An error of any kind.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), moved: None, conflict: None, overloaded: false, oldest: None }
    }

    /// The request is wrong.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Invalid, message)
    }

    /// Nobody could serve it in time; nothing was done.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Unavailable, message)
    }

    /// The node has too much to do; nothing was done.
    pub fn overloaded(message: impl Into<String>) -> Self {
        Self { overloaded: true, ..Self::unavailable(message) }
    }

    /// It may or may not have taken effect.
    pub fn undetermined(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Undetermined, message)
    }

    /// Not allowed here.
    pub fn denied(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Denied, message)
    }

    /// Stored data is not what it must be.
    pub fn corrupt(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Corrupt, message)
    }

    /// The changelog was cut past what is asked for.
    pub fn truncated(message: impl Into<String>, oldest: Timestamp) -> Self {
        Self { oldest: Some(oldest), ..Self::new(ErrorKind::TooOld, message) }
    }

    /// It went to the wrong place.
    pub fn moved(message: impl Into<String>, moved: Moved) -> Self {
        Self { moved: Some(Box::new(moved)), ..Self::new(ErrorKind::Moved, message) }
    }

    /// A commit took no effect: `Conflict`, or for a counter `Invalid`.
    pub fn conflict(message: impl Into<String>, conflict: Conflict) -> Self {
        let kind = match conflict.reason {
            ConflictReason::Counter => ErrorKind::Invalid,
            _ => ErrorKind::Conflict,
        };
        Self { conflict: Some(Box::new(conflict)), ..Self::new(kind, message) }
    }
}
