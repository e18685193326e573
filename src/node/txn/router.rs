//! Finds the leader of the shard that holds a key, and sends it commands and questions.

use std::collections::VecDeque;
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

/// How long one attempt may take, over all nodes that it asks, before it counts as failed.
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

    /// Has the leader of the shard that holds `to` answer. Where it is not known, or is not whom this node believes, its
    /// replicas are asked in turn, and whoever they name.
    pub async fn attempt(&self, txn: TxnId, to: &Bytes, ask: Ask) -> Attempt {
        let Some(member) = self.member.upgrade() else {
            return Attempt::Failed(Error::unavailable("the node is stopping"));
        };
        let mut candidates = match candidates(&member, to).await {
            Ok(candidates) => VecDeque::from(candidates),
            Err(error) => return Attempt::Failed(error),
        };
        let end = Instant::now() + ATTEMPT_TIMEOUT;
        let mut failed = Error::unavailable("no leader of the shard is known: retry");
        let mut asked = Vec::new();
        while let Some(node) = candidates.pop_front() {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            if asked.contains(&node) {
                continue;
            }
            asked.push(node);
            let timeout_ms = left.as_millis() as u64;
            match self
                .ask(&member, node, Call { txn, to: to.clone(), timeout_ms, ask: ask.clone() }, left)
                .await
            {
                Ok(Answer::Outcome(Outcome::Refused(Refusal::OutOfRange))) => return Attempt::WrongShard,
                Ok(answer) => return Attempt::Answered(answer),
                // What may have been done there is recognised where it is sent next.
                Err(error) => {
                    let named = error.moved.as_ref().and_then(|moved| moved.leader.as_ref());
                    named.into_iter().for_each(|leader| candidates.push_front(leader.node));
                    failed = error;
                }
            }
        }
        Attempt::Failed(failed)
    }

    async fn ask(&self, member: &Member, node: NodeId, call: Call, timeout: Duration) -> Result<Answer> {
        if node == member.record().id {
            return wire::serve(member.replicas(), call, Instant::now() + timeout).await;
        }
        let body = Bytes::from(codec::encode(&call));
        wire::decode_reply(&member.host().call(node, wire::CALL, body, timeout).await?)
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

/// Who may lead the shard that holds the key, most likely first: this node's replica knows, or the catalogue of
/// shards, which may not.
async fn candidates(member: &Member, key: &[u8]) -> Result<Vec<NodeId>> {
    let (leader, replicas) = if let Some(replica) = member.replicas().holding(key) {
        let leader = match replica.group().leadership() {
            Leadership::Leading(_) => Some(member.record().id),
            Leadership::Following { leader } => leader,
            Leadership::Stopped { .. } => None,
        };
        (leader, replica.group().state().descriptor.replicas.clone())
    } else {
        let shards = cluster_map::placements(member).await?;
        match shards.into_iter().find(|(descriptor, _)| descriptor.range.contains(key)) {
            Some((descriptor, leader)) => {
                (Some(leader).filter(|leader| *leader != NodeId(0)), descriptor.replicas)
            }
            None => (None, Vec::new()),
        }
    };
    Ok(leader.into_iter().chain(replicas).collect())
}
