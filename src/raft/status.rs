//! What a replica shows of itself.

use openraft::{RaftMetrics, ServerState};

use super::TypeConfig;
use crate::types::{NodeId, ShardId};

/// What a replica does in its group.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// It leads.
    Leader,
    /// It follows, and votes.
    Follower,
    /// It stands for election.
    Candidate,
    /// It follows, and does not vote.
    Learner,
    /// It does not run.
    Stopped,
}

impl Role {
    /// The role's name, as `status` shows it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Leader => "leader",
            Self::Follower => "follower",
            Self::Candidate => "candidate",
            Self::Learner => "learner",
            Self::Stopped => "stopped",
        }
    }
}

/// A replica's place in its group, at one moment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GroupStatus {
    /// The shard.
    pub shard: ShardId,
    /// What the replica does.
    pub role: Role,
    /// The Raft term.
    pub term: u64,
    /// Who leads, if known.
    pub leader: Option<NodeId>,
    /// The last log index here; 0 where there is none.
    pub last_log_index: u64,
    /// The last log index known to be committed; 0 where there is none.
    pub committed_index: u64,
    /// The last log index applied here; 0 where there is none.
    pub applied_index: u64,
    /// The first log index kept here.
    pub first_log_index: u64,
    /// Bytes of the kept log.
    pub log_bytes: u64,
    /// The voters, as the newest membership has them.
    pub voters: Vec<NodeId>,
    /// Why the replica does not run, or why it was last started again; empty where neither is the case.
    pub fault: String,
    /// How often it was started again since the node started.
    pub restarts: u64,
}

impl GroupStatus {
    pub(super) fn of(
        shard: ShardId,
        metrics: &RaftMetrics<TypeConfig>,
        log_bytes: u64,
        fault: String,
        restarts: u64,
    ) -> Self {
        let index = |log_id: &Option<openraft::type_config::alias::LogIdOf<TypeConfig>>| {
            log_id.as_ref().map_or(0, |log_id| log_id.index)
        };
        let role = match metrics.state {
            _ if metrics.running_state.is_err() => Role::Stopped,
            ServerState::Leader => Role::Leader,
            ServerState::Follower => Role::Follower,
            ServerState::Candidate => Role::Candidate,
            ServerState::Learner => Role::Learner,
            ServerState::Shutdown => Role::Stopped,
        };
        Self {
            shard,
            role,
            term: metrics.current_term,
            leader: metrics.current_leader,
            last_log_index: metrics.last_log_index.unwrap_or(0),
            committed_index: index(&metrics.local_committed),
            applied_index: index(&metrics.last_applied),
            first_log_index: metrics.purged.as_ref().map_or(0, |purged| purged.index + 1),
            log_bytes,
            voters: metrics.membership_config.membership().voter_ids().collect(),
            fault,
            restarts,
        }
    }
}
