//! Hands over the leaderships of a node that stops, so that its shards go on at once: those who are left alone wait for
//! the lease and an election first.

use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;

use crate::raft::{Group, Host};
use crate::types::NodeId;

/// How long one voter has to take over, before the next is asked.
const TIMEOUT: Duration = Duration::from_millis(500);
/// How long all of it may take. What is not handed over by then is found leaderless, as after a crash.
const PATIENCE: Duration = Duration::from_millis(1500);

/// Hands over every shard that this node leads to another of its voters, where one lives and has caught up.
pub async fn hand_over_all(host: &Arc<Host>, own: NodeId) {
    let led = host.groups().into_iter().filter(|group| group.leadership().token().is_some());
    let all = join_all(led.map(|group| hand_over(group, own)));
    match tokio::time::timeout(PATIENCE, all).await {
        Ok(results) => {
            let shards = results.iter().filter(|handed_over| **handed_over).count();
            if shards > 0 {
                tracing::info!(shards, "handed over what this node led");
            }
        }
        Err(_) => tracing::warn!("not all that this node led could be handed over in time"),
    }
}

/// Begins at another voter in each shard, so that not one node gets them all.
async fn hand_over(group: Arc<Group>, own: NodeId) -> bool {
    let mut voters: Vec<NodeId> = group.status().voters.into_iter().filter(|voter| *voter != own).collect();
    if voters.is_empty() {
        return false;
    }
    let first = group.id().0 as usize % voters.len();
    voters.rotate_left(first);
    for voter in voters {
        match group.transfer_leader(voter, TIMEOUT).await {
            Ok(()) => return true,
            Err(error) => tracing::debug!(shard = %group.id(), to = %voter, %error, "not handed over"),
        }
    }
    false
}
