//! What a frame carries, and how failures travel back.

use bytes::Bytes;

use crate::rpc::internal::v1::Frame;
use crate::rpc::v1;
use crate::types::{Error, ErrorKind, LeaderHint, Moved, NodeId};

/// What a frame's body is. The numbers are part of the protocol.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// One `AppendEntriesRequest`, answered by one `AppendEntriesResponse`. For heartbeats.
    Append,
    /// Begins a stream of append requests for a group. No body.
    AppendOpen,
    /// The next `AppendEntriesRequest` of a stream.
    AppendItem,
    /// The answer to the next unanswered request of a stream, in order: a `StreamAppendResult`.
    AppendReply,
    /// Ends a stream. No body.
    AppendClose,
    /// A `VoteRequest`, answered by a `VoteResponse`.
    Vote,
    /// As `Vote`, but nothing is promised.
    PreVote,
    /// A `TransferLeaderRequest`, answered by a `TransferLeaderResponse`.
    TransferLeader,
    /// A small call between nodes. The frame's `group` is the kind of the call, the body is the caller's.
    Call,
    /// The answer to a `Vote`, `PreVote`, `TransferLeader`, `Append` or `Call`.
    Reply,
}

impl Kind {
    const ALL: [(u32, Kind); 10] = [
        (1, Self::Append),
        (2, Self::AppendOpen),
        (3, Self::AppendItem),
        (4, Self::AppendReply),
        (5, Self::AppendClose),
        (6, Self::Vote),
        (7, Self::PreVote),
        (8, Self::TransferLeader),
        (9, Self::Call),
        (10, Self::Reply),
    ];

    /// The kind of a frame's number.
    ///
    /// # Errors
    ///
    /// `Invalid` for a number this build does not know.
    pub fn of(frame: &Frame) -> Result<Self, Error> {
        let found = Self::ALL.iter().find(|(number, _)| *number == frame.kind);
        found.map(|(_, kind)| *kind).ok_or_else(|| {
            Error::invalid(format!("a frame is of kind {}, but this build knows kinds 1 to 10", frame.kind))
        })
    }

    /// The kind's number.
    pub fn number(self) -> u32 {
        Self::ALL.iter().find(|(_, kind)| *kind == self).map_or(0, |(number, _)| *number)
    }
}

/// A frame with a body.
pub fn frame(call: u64, kind: Kind, group: u64, body: Bytes) -> Frame {
    Frame { call, kind: kind.number(), group, body, error: None }
}

/// A reply: a body, or why there is none.
pub fn reply(call: u64, kind: Kind, result: Result<Bytes, Error>) -> Frame {
    let (body, error) = match result {
        Ok(body) => (body, None),
        Err(error) => (Bytes::new(), Some(error_to_proto(error))),
    };
    Frame { call, kind: kind.number(), group: 0, body, error }
}

/// What a reply says.
pub fn reply_result(frame: Frame) -> Result<Bytes, Error> {
    match frame.error {
        Some(error) => Err(error_from_proto(error)),
        None => Ok(frame.body),
    }
}

/// Bytes a frame takes in a message, about.
pub fn frame_bytes(frame: &Frame) -> usize {
    frame.body.len() + 32
}

const KINDS: [ErrorKind; 8] = [
    ErrorKind::Conflict,
    ErrorKind::Moved,
    ErrorKind::Unavailable,
    ErrorKind::Undetermined,
    ErrorKind::Invalid,
    ErrorKind::TooOld,
    ErrorKind::Denied,
    ErrorKind::Corrupt,
];

fn error_to_proto(error: Error) -> v1::Error {
    let moved = error.moved.and_then(|moved| moved.leader).map(|leader| v1::Moved {
        shard: None,
        leader_node: leader.node.0,
        leader_grpc_addr: leader.grpc_addr,
    });
    v1::Error {
        kind: error.kind.name().to_string(),
        message: error.message,
        moved: moved.map(Box::new),
        ..Default::default()
    }
}

fn error_from_proto(error: v1::Error) -> Error {
    // A kind of a newer build says at least that there is no answer.
    let kind = KINDS.into_iter().find(|kind| kind.name() == error.kind).unwrap_or(ErrorKind::Unavailable);
    let moved = error.moved.map(|moved| {
        let leader = LeaderHint { node: NodeId(moved.leader_node), grpc_addr: moved.leader_grpc_addr };
        Box::new(Moved { shard: None, leader: (moved.leader_node != 0).then_some(leader) })
    });
    Error { moved, ..Error::new(kind, error.message) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_have_their_own_numbers_and_unknown_ones_are_refused() {
        for (number, kind) in Kind::ALL {
            assert_eq!(kind.number(), number);
            assert_eq!(Kind::of(&frame(1, kind, 0, Bytes::new())), Ok(kind));
        }
        let unknown = Frame { kind: 99, ..Frame::default() };
        assert!(Kind::of(&unknown).expect_err("unknown").message.contains("99"));
    }

    #[test]
    fn errors_travel_with_kind_and_hint() {
        for kind in KINDS {
            let sent = Error::new(kind, "why");
            assert_eq!(reply_result(reply(1, Kind::Reply, Err(sent.clone()))), Err(sent));
        }
        let leader = LeaderHint { node: NodeId(3), grpc_addr: "a:1".into() };
        let sent = Error::moved("elsewhere", Moved { shard: None, leader: Some(leader) });
        assert_eq!(reply_result(reply(1, Kind::Reply, Err(sent.clone()))), Err(sent));
    }
}
