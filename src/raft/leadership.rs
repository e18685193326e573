//! Who leads a group, as seen from one replica.

use openraft::RaftMetrics;

use super::{LeaderId, TypeConfig};
use crate::types::NodeId;

/// Fences what is done under one leadership: a proposal with a token is refused once another leadership
/// has begun, be it of the same node. It is a term and a node: one term may have two leaders, one after the
/// other.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Token(pub(super) LeaderId);

impl Token {
    /// The leadership's term.
    pub fn term(&self) -> u64 {
        self.0.term
    }

    /// The node that leads.
    pub fn node(&self) -> NodeId {
        self.0.node_id
    }
}

/// What a replica knows of its group's leadership.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Leadership {
    /// This replica leads, and has applied an entry of its own term, and with it everything that any
    /// leader before it has acknowledged: its state is current. It says nothing about the lease: ask
    /// [`Group::ensure_leader`](super::Group::ensure_leader) before answering a read.
    Leading(Token),
    /// Another replica leads, or nobody that is known; or this one was elected and is not ready yet.
    Following {
        /// Who leads, where that is known and is another node.
        leader: Option<NodeId>,
    },
    /// The replica does not run. It is started again after a pause.
    Stopped {
        /// Why.
        fault: String,
    },
}

impl Leadership {
    /// The token, where this replica leads.
    pub fn token(&self) -> Option<Token> {
        match self {
            Self::Leading(token) => Some(*token),
            Self::Following { .. } | Self::Stopped { .. } => None,
        }
    }

    /// The other node that is believed to lead.
    pub fn leader_elsewhere(&self) -> Option<NodeId> {
        match self {
            Self::Following { leader } => *leader,
            Self::Leading(_) | Self::Stopped { .. } => None,
        }
    }

    /// What openraft's picture of a replica means.
    ///
    /// The vote alone is not enough: a restarted leader's stored vote still says that it leads, so the
    /// server state must say so too; and a fresh leader must have applied an entry of its own leadership.
    pub(super) fn of(metrics: &RaftMetrics<TypeConfig>) -> Self {
        if let Err(fatal) = &metrics.running_state {
            return Self::Stopped { fault: fatal.to_string() };
        }
        match leading_token(metrics) {
            Some(token) => Self::Leading(token),
            None => Self::Following { leader: metrics.current_leader.filter(|leader| *leader != metrics.id) },
        }
    }
}

/// The token of a replica that leads and has applied an entry of its own leadership.
pub(super) fn leading_token(metrics: &RaftMetrics<TypeConfig>) -> Option<Token> {
    if !metrics.state.is_leader() || !metrics.vote.is_committed() {
        return None;
    }
    let leader_id = metrics.vote.leader_id;
    let applied = metrics.last_applied.as_ref()?;
    (leader_id.node_id == metrics.id && applied.leader_id == leader_id).then_some(Token(leader_id))
}
