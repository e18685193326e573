//! A proposal on its way, and how it can fail.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use openraft::errors::ClientWriteError;
use openraft::raft::ClientWriteResult;
use openraft::type_config::alias::OneshotReceiverOf;

use super::TypeConfig;
use crate::types::{NodeId, Outcome};

/// Why a proposal has no outcomes.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ProposeError {
    /// It is certainly not in the log and never will be: it may be proposed again, elsewhere too.
    #[error("not proposed: this replica does not lead under the token{}", leader_hint(.leader))]
    NotLeader {
        /// Who is believed to lead.
        leader: Option<NodeId>,
    },
    /// It may be in the log or not, be applied now or later or never. Only its request ids can tell.
    #[error("the outcome is unknown: {reason}")]
    Unknown {
        /// What happened to it here.
        reason: String,
    },
}

fn leader_hint(leader: &Option<NodeId>) -> String {
    leader.map(|node| format!("; node {node} leads")).unwrap_or_default()
}

type Completion = OneshotReceiverOf<TypeConfig, ClientWriteResult<TypeConfig>>;

/// A proposal that was handed to Raft. Resolves when the entry was applied on this replica, or when that
/// can't happen or can't be learnt any more. Dropping it takes nothing back.
#[must_use = "whether the proposal took effect is learnt by awaiting it"]
pub struct Proposal(State);

enum State {
    Waiting(Completion),
    Failed(Option<ProposeError>),
}

impl Proposal {
    pub(super) fn waiting(completion: Completion) -> Self {
        Self(State::Waiting(completion))
    }

    pub(super) fn failed(error: ProposeError) -> Self {
        Self(State::Failed(Some(error)))
    }
}

impl Future for Proposal {
    type Output = Result<Vec<Outcome>, ProposeError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.0 {
            State::Waiting(completion) => Pin::new(completion).poll(context).map(|result| match result {
                Ok(result) => read(result),
                Err(_) => Err(unknown("the replica stopped before the proposal was applied")),
            }),
            State::Failed(error) => {
                Poll::Ready(Err(error.take().unwrap_or_else(|| unknown("the proposal was awaited twice"))))
            }
        }
    }
}

pub(super) fn unknown(reason: impl Into<String>) -> ProposeError {
    ProposeError::Unknown { reason: reason.into() }
}

/// Reads openraft's answer. `ForwardToLeader` is given only before the entry is appended (another
/// leadership than the expected one, a transfer under way, a lease that ran out), so nothing was
/// proposed. `LogEntryDiscarded` comes after the append: a copy of the entry may live on and commit.
/// Everything else is taken as unknown.
fn read(result: ClientWriteResult<TypeConfig>) -> Result<Vec<Outcome>, ProposeError> {
    match result {
        Ok(response) => Ok(response.data.0),
        Err(ClientWriteError::ForwardToLeader(forward)) => {
            Err(ProposeError::NotLeader { leader: forward.leader_id })
        }
        Err(ClientWriteError::LogEntryDiscarded(_)) => {
            Err(unknown("the leadership ended before the entry was committed here"))
        }
        Err(other) => Err(unknown(other.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use openraft::errors::ForwardToLeader;

    use super::*;

    #[test]
    fn only_a_refusal_before_the_append_is_certain() {
        let forward = ForwardToLeader { leader_id: Some(NodeId(2)), ..ForwardToLeader::empty() };
        let certain = read(Err(ClientWriteError::ForwardToLeader(forward.clone())));
        assert_eq!(certain, Err(ProposeError::NotLeader { leader: Some(NodeId(2)) }));
        let discarded = read(Err(ClientWriteError::LogEntryDiscarded(forward)));
        assert!(matches!(discarded, Err(ProposeError::Unknown { .. })), "{discarded:?}");
    }
}
