//! The appends on their way to one replica: which of openraft's requests are sent, and when it is given
//! the answers.
//!
//! openraft follows each commit that no entry can carry with a request without entries, and takes an
//! answer as word of *every* request up to the answered log id, also of one that left later. Two things
//! follow, and [`Flight`] decides both:
//!
//! - A request that only says "all is committed" is held for [`COMMIT_HOLD`]: under writes, the next entries
//!   carry the commit, and two messages for each entry and follower are saved.
//! - The answer to an entry is kept back while such a request is on its way or held: else the leader would
//!   count its lease from a moment at which the follower may have heard nothing.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt};
use openraft::errors::RPCError;
use openraft::raft::{AppendEntriesRequest, StreamAppendResult};
use openraft::type_config::alias::LogIdOf;
use tokio::time::Instant;

use super::TypeConfig;
use super::network::unreachable;
use super::transport::{self, AppendCall, CallError};
use crate::codec;

/// The most bytes of one append stream that are sent and not answered. One request may exceed it.
const WINDOW_BYTES: usize = 8 * 1024 * 1024;
/// How long a commit may wait for entries that carry it. A follower serves a read that needs the entry
/// so much later; nobody else waits.
const COMMIT_HOLD: Duration = Duration::from_millis(2);

pub(super) type AppendAnswer = Result<StreamAppendResult<TypeConfig>, RPCError<TypeConfig>>;
type Request = AppendEntriesRequest<TypeConfig>;
type LogId = LogIdOf<TypeConfig>;

/// What is known of a request that was sent and is not answered.
struct Sent {
    size_bytes: usize,
    last: Option<LogId>,
    has_entries: bool,
}

/// The requests of one stream between the first that was sent and the last that was answered.
#[derive(Default)]
struct Flight {
    sent: VecDeque<Sent>,
    sent_bytes: usize,
    held: Option<Request>,
    /// The other side has answered in this stream: its log is known to match.
    matched: bool,
}

impl Flight {
    fn has_room(&self) -> bool {
        self.sent.len() < transport::APPEND_WINDOW && self.sent_bytes < WINDOW_BYTES
    }

    /// Takes openraft's next request; returns it where it is to be sent now. It carries all that a held one
    /// says.
    fn take(&mut self, request: Request) -> Option<Request> {
        // The first request of a stream may be a question where the logs part: it is never held.
        let only_commits = request.entries.is_empty()
            && request.prev_log_id.is_some()
            && request.leader_commit == request.prev_log_id;
        if self.matched && only_commits {
            self.held = Some(request);
            return None;
        }
        self.held = None;
        Some(request)
    }

    fn note_sent(&mut self, last: Option<LogId>, has_entries: bool, size_bytes: usize) {
        self.sent.push_back(Sent { size_bytes, last, has_entries });
        self.sent_bytes += size_bytes;
    }

    /// Takes note that the oldest request was answered well; whether openraft may be told now.
    fn note_answered(&mut self) -> bool {
        self.matched = true;
        let Some(answered) = self.sent.pop_front() else { return true };
        self.sent_bytes -= answered.size_bytes;
        let later = match self.sent.front() {
            Some(next) => (!next.has_entries).then_some(next.last),
            None => self.held.as_ref().map(|held| held.prev_log_id),
        };
        later != Some(answered.last)
    }
}

fn last_log_id(request: &Request) -> Option<LogId> {
    request.entries.last().map_or(request.prev_log_id, |entry| Some(entry.log_id))
}

/// Forwards requests as they come, within a window, and yields the answers in the same order. Ends after
/// the last answer, or with the first error.
pub(super) fn pipeline<S>(
    mut call: AppendCall,
    mut input: S,
    stall: Duration,
) -> impl Stream<Item = AppendAnswer> + Send
where
    S: Stream<Item = Request> + Send + Unpin + 'static,
{
    async_stream::stream! {
        let mut flight = Flight::default();
        let mut input_ended = false;
        let mut deadline = Instant::now() + stall;
        let mut hold_until = Instant::now();
        while !(input_ended && flight.sent.is_empty() && flight.held.is_none()) {
            let to_send = tokio::select! {
                biased;
                answer = call.recv(), if !flight.sent.is_empty() => {
                    deadline = Instant::now() + stall;
                    let answer = read_answer(answer);
                    let ended = !matches!(answer, Ok(Ok(_)));
                    if ended || flight.note_answered() {
                        yield answer;
                    }
                    if ended {
                        return;
                    }
                    continue;
                }
                request = input.next(), if flight.has_room() && !input_ended => match request {
                    Some(request) => {
                        let now = flight.take(request);
                        hold_until = Instant::now() + COMMIT_HOLD;
                        now
                    }
                    None => {
                        input_ended = true;
                        flight.held.take()
                    }
                },
                () = tokio::time::sleep_until(hold_until), if flight.held.is_some() => flight.held.take(),
                () = tokio::time::sleep_until(deadline), if !flight.sent.is_empty() => {
                    yield Err(unreachable(format!("no answer to an append within {stall:?}")));
                    return;
                }
            };
            let Some(request) = to_send else { continue };
            let body = Bytes::from(codec::encode(&request));
            if flight.sent.is_empty() {
                deadline = Instant::now() + stall;
            }
            flight.note_sent(last_log_id(&request), !request.entries.is_empty(), body.len());
            match tokio::time::timeout(stall, call.send(body)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    yield Err(unreachable(error));
                    return;
                }
                Err(_) => {
                    yield Err(unreachable("too much waits to be sent"));
                    return;
                }
            }
        }
    }
}

fn read_answer(answer: Result<Bytes, CallError>) -> AppendAnswer {
    let body = answer.map_err(unreachable)?;
    codec::decode(&body, "an answer to an append").map_err(unreachable)
}

#[cfg(test)]
mod tests {
    use openraft::vote::RaftLeaderId;

    use super::*;
    use crate::types::NodeId;

    type LeaderId = openraft::type_config::alias::LeaderIdOf<TypeConfig>;

    fn log_id(index: u64) -> LogId {
        LogId { leader_id: LeaderId::new(1, NodeId(1)), index }
    }

    /// A request as openraft makes it: what comes before, how many entries, what is committed.
    fn request(prev: u64, entries: u64, commit: u64) -> Request {
        let blank = |index| openraft::Entry { log_id: log_id(index), payload: openraft::EntryPayload::Blank };
        Request {
            vote: openraft::type_config::alias::VoteOf::<TypeConfig>::new(1, NodeId(1)),
            prev_log_id: Some(log_id(prev)),
            leader_commit: Some(log_id(commit)),
            entries: (prev + 1..=prev + entries).map(blank).collect(),
        }
    }

    /// Hands a request to the flight; whether it goes out now.
    fn offer(flight: &mut Flight, request: Request) -> bool {
        match flight.take(request) {
            Some(now) => {
                flight.note_sent(last_log_id(&now), !now.entries.is_empty(), 10);
                true
            }
            None => false,
        }
    }

    /// A stream whose first entry, at 1, was sent and answered.
    fn matched() -> Flight {
        let mut flight = Flight::default();
        assert!(offer(&mut flight, request(0, 1, 0)));
        assert!(flight.note_answered());
        flight
    }

    #[test]
    fn the_first_request_is_sent_though_it_has_no_entries() {
        assert!(offer(&mut Flight::default(), request(5, 0, 5)), "it asks where the logs part");
    }

    #[test]
    fn a_mere_commit_is_held_and_the_next_entries_take_its_place() {
        let mut flight = matched();
        assert!(!offer(&mut flight, request(1, 0, 1)));
        assert!(offer(&mut flight, request(1, 1, 1)));
        assert!(flight.held.is_none(), "the entries carry the commit");
        assert!(flight.note_answered());
    }

    #[test]
    fn an_answer_is_kept_back_while_a_commit_is_held_behind_it() {
        let mut flight = matched();
        assert!(offer(&mut flight, request(1, 1, 1)));
        assert!(!offer(&mut flight, request(2, 0, 2)), "committed by another follower");
        assert!(!flight.note_answered(), "openraft would take it as word of the held request too");
        let held = flight.held.take().expect("held");
        flight.note_sent(last_log_id(&held), false, 10);
        assert!(flight.note_answered());
    }

    #[test]
    fn a_commit_below_the_last_entry_is_sent_at_once_and_answered_for_both() {
        let mut flight = matched();
        assert!(offer(&mut flight, request(1, 2, 1)));
        assert!(
            offer(&mut flight, request(3, 0, 2)),
            "the last entry's answer may be what its commit waits for"
        );
        assert!(!flight.note_answered());
        assert!(flight.note_answered());
        assert_eq!(flight.sent_bytes, 0);
    }

    #[test]
    fn an_answer_with_entries_behind_it_goes_through() {
        let mut flight = matched();
        assert!(offer(&mut flight, request(1, 1, 1)));
        assert!(offer(&mut flight, request(2, 1, 1)));
        assert!(!offer(&mut flight, request(3, 0, 3)));
        assert!(flight.note_answered(), "the next in flight has a later log id");
        assert!(!flight.note_answered());
    }
}
