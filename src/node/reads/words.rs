//! Asking for words about closed timestamps, and giving them: one small message for each pair of nodes, a few times a
//! second (see `closed` for what a word is). How the nodes are goes along (see `pulse`).

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::closed::{Ages, Word};
use super::read_index::Need;
use crate::codec;
use crate::node::member::Member;
use crate::node::pulse::Pulses;
use crate::node::replica::Replica;
use crate::raft::Leadership;
use crate::types::{Error, NodeId, Result, ShardId, Timestamp};

/// The kind of these calls (`calls` has the others).
pub const CALL: u32 = 6;

/// How often words are asked for: a bounded read sees a state that is about so old.
const INTERVAL: Duration = Duration::from_millis(200);
/// How long a word waits for a batch under way in its shard. A shard that takes longer is left out this time.
const SETTLED_WITHIN: Duration = Duration::from_millis(100);
/// How long the oracle may take.
const STAMPED_WITHIN: Duration = Duration::from_millis(500);
/// How long a message may take on its way, besides.
const ON_THE_WAY: Duration = Duration::from_millis(300);

/// The body of a call.
#[derive(Serialize, Deserialize)]
struct Asking {
    from: NodeId,
    shards: Vec<ShardId>,
    /// How the nodes are, as the asking one knows.
    pulses: Pulses,
}

/// The answer to a call: the timestamp, and the log index of each shard that is led there.
#[derive(Serialize, Deserialize)]
struct Words {
    closed: Timestamp,
    indexes: Vec<(ShardId, u64)>,
    /// How the nodes are, as the answering one knows.
    pulses: Pulses,
}

/// Keeps the words of a member's replicas fresh until it stops.
pub async fn run(member: Weak<Member>, stopping: CancellationToken) {
    let mut every = tokio::time::interval(INTERVAL);
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stopping.cancelled() => return,
            _ = every.tick() => {}
        }
        let Some(member) = member.upgrade() else { return };
        member.words().recount(&member.replicas().all());
        member.pulse().refresh();
        // A leader that does not answer must not hold up the words of others: each is asked on its own, and whoever is
        // still being asked is not asked again.
        for (leader, shards) in by_leader(&member) {
            let Some(turn) = member.words().begin(leader) else { continue };
            let member = Arc::clone(&member);
            tokio::spawn(async move {
                if let Err(error) = ask(&member, leader, shards).await {
                    tracing::debug!(%leader, %error, "no word about closed timestamps; asking again");
                }
                drop(turn);
            });
        }
    }
}

/// The shards of this node by who leads them, as far as it knows.
fn by_leader(member: &Member) -> BTreeMap<NodeId, Vec<ShardId>> {
    let mut shards: BTreeMap<NodeId, Vec<ShardId>> = BTreeMap::new();
    for replica in member.replicas().all() {
        let leader = match replica.group().leadership() {
            Leadership::Leading(_) => Some(member.record().id),
            Leadership::Following { leader } => leader,
            Leadership::Stopped { .. } => None,
        };
        if let Some(leader) = leader {
            shards.entry(leader).or_default().push(replica.group().id());
        }
    }
    shards
}

async fn ask(member: &Arc<Member>, leader: NodeId, shards: Vec<ShardId>) -> Result<()> {
    let asked = Instant::now();
    let words = if leader == member.record().id {
        give(member, shards).await?
    } else {
        let asking = Asking { from: member.record().id, shards, pulses: member.pulse().tell() };
        let body = Bytes::from(codec::encode(&asking));
        let within = STAMPED_WITHIN + SETTLED_WITHIN + ON_THE_WAY;
        let body = member.host().call(leader, CALL, body, within).await?;
        let words: Words = codec::decode(&body, "words about closed timestamps")?;
        member.pulse().hear(leader, &words.pulses);
        words
    };
    member.words().ages.lock().remember(words.closed, asked);
    for (shard, index) in words.indexes {
        if let Some(replica) = member.replicas().of(shard) {
            replica.heard(Word { closed: words.closed, index });
        }
    }
    Ok(())
}

/// Answers another node that asks for words.
///
/// # Errors
///
/// `Corrupt` where the call can't be read; `Unavailable` where the oracle gives no timestamp in time.
pub async fn answer(member: &Arc<Member>, body: &[u8]) -> Result<Bytes> {
    let Asking { from, shards, pulses } = codec::decode(body, "a call for words about closed timestamps")?;
    member.pulse().hear(from, &pulses);
    Ok(codec::encode(&give(member, shards).await?).into())
}

/// First the timestamp; then, for each shard, every batch that was asked for before is settled, then this node makes
/// sure that it leads. Whoever leads later asks for timestamps later, and gets larger ones.
async fn give(member: &Arc<Member>, shards: Vec<ShardId>) -> Result<Words> {
    let closed =
        tokio::time::timeout(STAMPED_WITHIN, member.timestamps().take(1)).await.map_err(|_| {
            Error::unavailable(format!(
                "the oracle gave no timestamp within {} ms",
                STAMPED_WITHIN.as_millis()
            ))
        })??;
    let deadline = Instant::now() + SETTLED_WITHIN;
    let need = Need::Snapshot(closed);
    let one = async |shard| {
        let replica = member.replicas().of(shard)?;
        let index =
            tokio::time::timeout_at(deadline, replica.read_index(&need, deadline)).await.ok()?.ok()?;
        Some((shard, index))
    };
    let indexes = join_all(shards.into_iter().map(one)).await.into_iter().flatten().collect();
    Ok(Words { closed, indexes, pulses: member.pulse().tell() })
}

/// Who is being asked, how old timestamps are, and which is closed in all replicas of the node.
#[derive(Default)]
pub struct WordBook {
    asking: Arc<Mutex<HashSet<NodeId>>>,
    node_wide: AtomicU64,
    ages: Mutex<Ages>,
}

/// Whoever holds it is alone in asking a node.
struct Turn {
    asking: Arc<Mutex<HashSet<NodeId>>>,
    leader: NodeId,
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.asking.lock().remove(&self.leader);
    }
}

impl WordBook {
    fn begin(&self, leader: NodeId) -> Option<Turn> {
        let began = self.asking.lock().insert(leader);
        began.then(|| Turn { asking: Arc::clone(&self.asking), leader })
    }

    fn recount(&self, replicas: &[Arc<Replica>]) {
        let least = replicas.iter().map(|replica| replica.closed()).min().unwrap_or(Timestamp::ZERO);
        self.node_wide.fetch_max(least.0, Ordering::AcqRel);
    }

    /// How old the state as of `at` is at most; see [`Ages::age`].
    pub fn age(&self, at: Timestamp, now: Instant, awake: Duration) -> Option<Duration> {
        self.ages.lock().age(at, now, awake)
    }

    /// A timestamp that is closed in every replica of this node: bounded reads of several shards that go to one node
    /// see one instant by it. Zero before it is known.
    pub fn node_wide(&self) -> Timestamp {
        Timestamp(self.node_wide.load(Ordering::Acquire))
    }
}
