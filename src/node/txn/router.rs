//! Finds the leader of the shard that holds a key, and sends it commands and questions.

use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::wire::{self, Answer, Ask, Call};
use crate::codec;
use crate::node::cluster_map;
use crate::node::member::Member;
use crate::raft::Leadership;
use crate::types::{Error, KeyRange, NodeId, Outcome, Refusal, Result, TxnId};

/// How long one attempt may take before it counts as failed.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(2);

/// What came of one attempt.
pub enum Attempt {
    /// An answer.
    Answered(Answer),
    /// It went to the wrong shard, and was not done.
    WrongShard,
    /// It came to nothing, or its fate is unknown.
    Failed(Error),
}

/// The way from this node to every shard's leader. Cheap to clone.
#[derive(Clone)]
pub struct Router {
    member: Weak<Member>,
    /// Kibibytes of commits whose coordinators run here, also after their clients have gone.
    commits_kib: Arc<Semaphore>,
    stopping: CancellationToken,
}

/// The most that the commits under way on a node may hold.
const COMMITS_KIB: usize = 256 * 1024;

impl Router {
    /// A router of a member. It holds the member weakly: the member's own tasks use it.
    pub fn new(member: Weak<Member>, stopping: CancellationToken) -> Self {
        Self { member, commits_kib: Arc::new(Semaphore::new(COMMITS_KIB)), stopping }
    }

    /// Cancelled when the node stops: what is under way is left to those who recover it.
    pub fn stopping(&self) -> &CancellationToken {
        &self.stopping
    }

    /// Room for a commit of so many bytes, until it is dropped.
    ///
    /// # Errors
    ///
    /// `Unavailable` where too much is under way.
    pub fn room_for(&self, size_bytes: usize) -> Result<OwnedSemaphorePermit> {
        // A commit counts for more than its bytes: its coordinator and its requests too.
        let kib = size_bytes / 512 + 4;
        self.commits_kib.clone().try_acquire_many_owned(kib as u32).map_err(|_| {
            Error::unavailable(format!(
                "{COMMITS_KIB} KiB of commits are under way on this node: nothing was begun; try again later"
            ))
        })
    }

    /// Tries once to have the leader of the shard that holds `to` answer.
    pub async fn attempt(&self, txn: TxnId, to: &Bytes, ask: Ask) -> Attempt {
        let failed = Attempt::Failed;
        let Some(member) = self.member.upgrade() else {
            return failed(Error::unavailable("the node is stopping"));
        };
        let call = Call { txn, to: to.clone(), timeout_ms: ATTEMPT_TIMEOUT.as_millis() as u64, ask };
        let leader = match leader_of(&member, to).await {
            Ok(Some(leader)) => leader,
            Ok(None) => return failed(Error::unavailable("no leader of the shard is known: retry")),
            Err(error) => return failed(error),
        };
        let answer = if leader == member.record().id {
            wire::serve(member.replicas(), call, Instant::now() + ATTEMPT_TIMEOUT).await
        } else {
            let body = Bytes::from(codec::encode(&call));
            match member.host().call(leader, wire::CALL, body, ATTEMPT_TIMEOUT).await {
                Ok(reply) => wire::decode_reply(&reply),
                // The other node may have got it all the same.
                Err(error) => return failed(error),
            }
        };
        match answer {
            Ok(Answer::Outcome(Outcome::Refused(Refusal::OutOfRange))) => Attempt::WrongShard,
            Ok(answer) => Attempt::Answered(answer),
            Err(error) => failed(error),
        }
    }

    /// The ranges of the shards that hold `spans`, as far as this node knows.
    ///
    /// # Errors
    ///
    /// `Unavailable` where the node is stopping or the catalogue can't be read.
    pub async fn cut(&self, spans: &[KeyRange]) -> Result<Vec<KeyRange>> {
        let member = self.member.upgrade().ok_or_else(|| Error::unavailable("the node is stopping"))?;
        let mut cut = Vec::new();
        for span in spans {
            let mut at = span.start.clone();
            loop {
                let Some(replica) = member.replicas().holding(&at) else {
                    // Not all of it is on this node: the catalogue knows the rest.
                    let shards = cluster_map::placements(&member).await?;
                    return Ok(shards.into_iter().map(|(descriptor, _)| descriptor.range).collect());
                };
                let range = replica.group().state().descriptor.range.clone();
                let end = range.end.clone();
                if cut.last() != Some(&range) {
                    cut.push(range);
                }
                match end {
                    Some(end) if span.end.as_ref().is_none_or(|wanted| end < *wanted) => at = end,
                    _ => break,
                }
            }
        }
        cut.sort_unstable_by(|a, b| a.start.cmp(&b.start));
        cut.dedup();
        Ok(cut)
    }
}

/// Who leads the shard that holds the key: this node's replica knows, or the catalogue of shards.
async fn leader_of(member: &Member, key: &[u8]) -> Result<Option<NodeId>> {
    if let Some(replica) = member.replicas().holding(key) {
        return Ok(match replica.group().leadership() {
            Leadership::Leading(_) => Some(member.record().id),
            Leadership::Following { leader } => leader,
            Leadership::Stopped { .. } => None,
        });
    }
    let shards = cluster_map::placements(member).await?;
    let holder = shards.into_iter().find(|(descriptor, _)| descriptor.range.contains(key));
    Ok(holder.and_then(
        |(descriptor, leader)| {
            if leader == NodeId(0) { descriptor.replicas.first().copied() } else { Some(leader) }
        },
    ))
}
