//! The choice among a shard's replicas.

use std::collections::BTreeMap;

use super::Policy;
use super::node::{Ejected, FailureKind, Node, Others, Probed, Words, outlier_bound};
use crate::types::NodeId;

/// A queue is clearly longer than another if it is three times as long and 8 more, since small numbers differ
/// by chance, or, where that would be more than 40 above one and a half times its length, than that. A
/// follower that serves as many reads as the leader has about twice as many under way, since each takes twice
/// as long. Where the numbers are large the reads wait for each other, and that is no longer so.
const QUEUE_FACTOR: f64 = 1.5;
const QUEUE_EXCESS: f64 = 8.0;
const MOST_QUEUE_EXCESS: f64 = 32.0;

/// A client that reads less often, per second, ejects nobody for latency: its few probes would take too long
/// to bring a node back. It avoids slow nodes all the same, for as long as it remembers.
const FREQUENT: f64 = 10.0;
const READS_OVER_S: f64 = 2.0;

/// A replica that a read may go to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::client) struct Candidate {
    /// The node.
    pub(in crate::client) node: NodeId,
    /// Whether it is known to lead the shard.
    pub(in crate::client) is_leader: bool,
    /// Whether it is in the client's own zone; false where either zone is unknown.
    pub(in crate::client) is_near: bool,
}

/// Where a read goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::client) struct Choice {
    /// The node to send it to.
    pub(in crate::client) node: NodeId,
    /// A node to send a copy of the read to. Nobody waits for it; its end has to be reported with
    /// [`Balancer::probed`], and it should have a deadline of about a second.
    pub(in crate::client) probe: Option<NodeId>,
    /// The reason.
    pub(in crate::client) why: Why,
}

/// Why a node was chosen; [`Balancer::explain`] makes sentences of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::client) struct Why {
    /// Among which it was chosen.
    pub(in crate::client) scope: Scope,
    /// By which rule among those.
    pub(in crate::client) rule: Rule,
}

/// The candidates among which a choice was made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::client) enum Scope {
    /// The leader alone.
    Leader,
    /// Those of the client's own zone that are well, are not to be spared and were not tried.
    Near,
    /// All that are well and were not tried.
    Well,
    /// All that were not tried: none of them is well.
    Untried,
    /// All that are well: each was tried.
    Again,
    /// All: each was tried, and none is well.
    All,
}

/// How the choice was made within its [`Scope`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::client) enum Rule {
    /// There was no other.
    Only,
    /// It was drawn at random, and is not clearly worse than the other that was drawn.
    Drawn {
        /// The other.
        beside: NodeId,
    },
    /// Two were drawn, and the other one is clearly worse.
    Better {
        /// The other.
        than: NodeId,
        /// In which regard it is worse.
        by: Measure,
    },
}

/// What two nodes are compared by, mostly in this order: the first that tells them apart decides.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::client) enum Measure {
    /// One failed lately.
    Failures,
    /// The cluster finds one slow. A client's own good figures of that node don't count against it: a node that
    /// stands still half of the time answers half of the reads well. Failures of the other one do.
    Spared,
    /// One has owed answers for too long.
    Waiting,
    /// The latencies.
    Latency,
    /// The reads under way.
    Queue,
}

impl Measure {
    const ALL: [Self; 5] = [Self::Failures, Self::Spared, Self::Waiting, Self::Latency, Self::Queue];
    /// The order where most are to be spared, rightly or since one that is wrong lists all others: what is left
    /// is to be asked first, but not to be buried.
    const MOST_SPARED: [Self; 5] = [Self::Failures, Self::Queue, Self::Spared, Self::Waiting, Self::Latency];

    /// Whether `a` is clearly worse than `b` by it.
    fn is_worse(self, a: &Node, b: &Node, now_us: u64) -> bool {
        match self {
            Self::Failures => now_us < a.avoided_until_us() && now_us >= b.avoided_until_us(),
            Self::Spared => a.is_spared(now_us) && !b.is_spared(now_us),
            Self::Waiting => a.is_stuck(now_us) && !b.is_stuck(now_us),
            Self::Latency => {
                b.latency_us(now_us).is_some_and(|other_us| a.against_us(now_us) > outlier_bound(other_us))
            }
            Self::Queue => a.queue_against(now_us) > queue_bound(b.queue()),
        }
    }
}

/// What is clearly longer than a queue.
fn queue_bound(queue: f64) -> f64 {
    let part = queue * QUEUE_FACTOR;
    part + part.min(MOST_QUEUE_EXCESS) + QUEUE_EXCESS
}

/// What a client knows of the nodes it reads at, and the choice that follows from it.
#[derive(Clone, Debug, Default)]
pub(in crate::client) struct Balancer {
    pub(super) nodes: BTreeMap<NodeId, Node>,
    /// How many choices were made lately: each counts less with time.
    reads: f64,
    reads_us: u64,
    /// How many replies said lately which nodes are slow: each counts less with time.
    words: Words,
}

impl Balancer {
    /// A read was sent to `node`. One of [`answered`](Self::answered), [`failed`](Self::failed) and
    /// [`abandoned`](Self::abandoned) has to follow. Probes are not reported here.
    pub(in crate::client) fn sent(&mut self, node: NodeId, now_us: u64) {
        self.nodes.entry(node).or_default().sent(now_us);
    }

    /// The read was answered `latency_us` after it was sent. `load` is how many reads the node said to have
    /// under way; 0 where it said nothing.
    pub(in crate::client) fn answered(&mut self, node: NodeId, now_us: u64, latency_us: u64, load: u32) {
        if let Some(node) = self.nodes.get_mut(&node) {
            node.answered(now_us, latency_us, load);
        }
    }

    /// A read was answered whose latency says nothing: one of many rows.
    pub(in crate::client) fn served(&mut self, node: NodeId, now_us: u64) {
        if let Some(node) = self.nodes.get_mut(&node) {
            node.served(now_us);
        }
    }

    /// The read failed.
    pub(in crate::client) fn failed(&mut self, node: NodeId, now_us: u64, kind: FailureKind) {
        if let Some(node) = self.nodes.get_mut(&node) {
            node.failed(now_us, kind);
        }
    }

    /// The read is no longer waited for, `waited_us` after it was sent: its call was dropped, or another copy
    /// was answered first. It is no failure, but the time counts where it is longer than usual.
    pub(in crate::client) fn abandoned(&mut self, node: NodeId, now_us: u64, waited_us: u64) {
        if let Some(node) = self.nodes.get_mut(&node) {
            node.abandoned(now_us, waited_us);
        }
    }

    /// A probe that [`Choice::probe`] asked for has ended.
    pub(in crate::client) fn probed(&mut self, node: NodeId, now_us: u64, outcome: Probed) {
        if let Some(node) = self.nodes.get_mut(&node) {
            node.probed(now_us, outcome);
        }
    }

    /// A reply, of any node, says that the cluster finds these nodes slow now. To be called for every reply: that
    /// a node is not listed says as much as that it is. Of nodes that no read may go to nothing is kept.
    pub(in crate::client) fn told_slow(&mut self, slow: &[NodeId], now_us: u64) {
        let words = self.words.add(now_us);
        self.nodes.iter_mut().for_each(|(id, node)| node.told(now_us, slow.contains(id), words));
    }

    /// Forgets all nodes but these. What is still under way at a forgotten node may be reported or not.
    pub(in crate::client) fn retain(&mut self, nodes: &[NodeId]) {
        self.nodes.retain(|node, _| nodes.contains(node));
    }

    /// Where to send a read, of which attempts at `tried` failed. `None` only where there is no candidate.
    /// All bits of `random` have to be random.
    pub(in crate::client) fn choose(
        &mut self,
        policy: Policy,
        candidates: &[Candidate],
        tried: &[NodeId],
        now_us: u64,
        random: u64,
    ) -> Option<Choice> {
        self.count_read(now_us);
        self.judge(candidates, now_us);
        let leader = candidates.iter().find(|candidate| candidate.is_leader);
        if policy == Policy::Leader
            && let Some(leader) = leader.filter(|leader| !tried.contains(&leader.node))
        {
            let why = Why { scope: Scope::Leader, rule: Rule::Only };
            return Some(Choice { node: leader.node, probe: None, why });
        }
        let (scope, pool) = self.pool(policy, candidates, tried, now_us)?;
        let (node, rule) = self.draw(&pool, now_us, random)?;
        let probe = if policy == Policy::Leader || !tried.is_empty() {
            None
        } else {
            self.take_probe(candidates, node, now_us, random)
        };
        Some(Choice { node, probe, why: Why { scope, rule } })
    }

    fn count_read(&mut self, now_us: u64) {
        self.reads = self.reads_a_second(now_us) * READS_OVER_S + 1.0;
        self.reads_us = now_us;
    }

    fn reads_a_second(&self, now_us: u64) -> f64 {
        let age_us = now_us.saturating_sub(self.reads_us) as f64;
        self.reads * (-age_us / (READS_OVER_S * 1e6)).exp() / READS_OVER_S
    }

    /// Compares every candidate's latency with the others', and ejects outliers, of which at most half.
    fn judge(&mut self, candidates: &[Candidate], now_us: u64) {
        let is_frequent = self.reads_a_second(now_us) >= FREQUENT;
        for candidate in candidates {
            self.nodes.entry(candidate.node).or_default();
        }
        for candidate in candidates {
            let (others, others_answered_us) = self.others(candidates, candidate.node, now_us);
            let ejected = self.ejected(candidates).filter(|ejected| ejected.is_for_latency()).count();
            let Some(node) = self.nodes.get_mut(&candidate.node) else { continue };
            node.compare_with(others);
            if is_frequent
                && node.ejected.is_none()
                && ejected < candidates.len() / 2
                && let Some(cause) = node.outlier(now_us, others_answered_us)
            {
                node.eject_outlier(now_us, cause);
            }
        }
    }

    /// A typical candidate besides `node` (of two the faster), and when one last answered.
    fn others(&self, candidates: &[Candidate], node: NodeId, now_us: u64) -> (Option<Others>, u64) {
        let others = || {
            let others = candidates.iter().filter(move |other| other.node != node);
            others.filter_map(|other| self.nodes.get(&other.node)).filter(|other| other.ejected.is_none())
        };
        let mut known: Vec<Others> = others().filter_map(|other| other.as_other(now_us)).collect();
        known.sort_by(|a, b| a.mean_us.total_cmp(&b.mean_us));
        let middle = known.len().saturating_sub(1) / 2;
        (known.get(middle).copied(), others().map(Node::answered_us).max().unwrap_or(0))
    }

    fn ejected(&self, candidates: &[Candidate]) -> impl Iterator<Item = &Ejected> {
        candidates.iter().filter_map(|candidate| self.nodes.get(&candidate.node)?.ejected.as_ref())
    }

    /// The best group of candidates that is not empty.
    fn pool(
        &self,
        policy: Policy,
        candidates: &[Candidate],
        tried: &[NodeId],
        now_us: u64,
    ) -> Option<(Scope, Vec<NodeId>)> {
        // Nodes have many shards: all replicas of one may have been ejected beside those of others.
        let slow = self.ejected(candidates).filter(|ejected| ejected.is_for_latency()).count();
        let too_many = slow > candidates.len() / 2;
        let is_well = |candidate: &Candidate| {
            let ejected = self.nodes.get(&candidate.node).and_then(|node| node.ejected.as_ref());
            ejected.is_none_or(|ejected| too_many && ejected.is_for_latency())
        };
        let is_new = |candidate: &Candidate| !tried.contains(&candidate.node);
        let is_free = |candidate: &Candidate| !self.is_spared(candidate.node, now_us);
        let is_good = |candidate: &Candidate| is_new(candidate) && is_well(candidate);
        // Where all have to be spared none is better elsewhere.
        let any_free = candidates.iter().any(|candidate| is_good(candidate) && is_free(candidate));
        let scopes = [Scope::Near, Scope::Well, Scope::Untried, Scope::Again, Scope::All];
        scopes.into_iter().find_map(|scope| {
            let is_in = |candidate: &&Candidate| match scope {
                Scope::Leader => false,
                Scope::Near => {
                    let is_near = policy == Policy::Nearest && candidate.is_near;
                    is_near && is_good(candidate) && (is_free(candidate) || !any_free)
                }
                Scope::Well => is_good(candidate),
                Scope::Untried => is_new(candidate),
                Scope::Again => is_well(candidate),
                Scope::All => true,
            };
            let pool: Vec<NodeId> = candidates.iter().filter(is_in).map(|candidate| candidate.node).collect();
            (!pool.is_empty()).then_some((scope, pool))
        })
    }

    /// Draws two and takes the first, unless it is clearly worse. The second is none that is to be spared, where
    /// there is a choice: of two such nodes one would have to be taken.
    fn draw(&self, pool: &[NodeId], now_us: u64, random: u64) -> Option<(NodeId, Rule)> {
        let (high, low) = ((random >> 32) as usize, (random & 0xffff_ffff) as usize);
        let place = high.checked_rem(pool.len())?;
        let first = pool[place];
        let others = || (1..pool.len()).map(|step| pool[(place + step) % pool.len()]);
        let free = || others().filter(|node| !self.is_spared(*node, now_us));
        let second = low.checked_rem(free().count()).and_then(|place| free().nth(place));
        let any = || low.checked_rem(others().count()).and_then(|place| others().nth(place));
        let Some(second) = second.or_else(any) else { return Some((first, Rule::Only)) };
        let (Some(a), Some(b)) = (self.nodes.get(&first), self.nodes.get(&second)) else {
            return Some((first, Rule::Drawn { beside: second }));
        };
        let spared = pool.iter().filter(|node| self.is_spared(**node, now_us)).count();
        let most_are = spared > pool.len() / 2;
        for by in if most_are { Measure::MOST_SPARED } else { Measure::ALL } {
            if by.is_worse(a, b, now_us) {
                return Some((second, Rule::Better { than: first, by }));
            }
            if by.is_worse(b, a, now_us) {
                return Some((first, Rule::Better { than: second, by }));
            }
        }
        Some((first, Rule::Drawn { beside: second }))
    }

    fn is_spared(&self, node: NodeId, now_us: u64) -> bool {
        self.nodes.get(&node).is_some_and(|node| node.is_spared(now_us))
    }

    fn take_probe(
        &mut self,
        candidates: &[Candidate],
        chosen: NodeId,
        now_us: u64,
        random: u64,
    ) -> Option<NodeId> {
        let mut probe = None;
        for candidate in candidates.iter().filter(|candidate| candidate.node != chosen) {
            if probe.is_none()
                && self.nodes.get_mut(&candidate.node).is_some_and(|node| node.take_probe(now_us, random))
            {
                probe = Some(candidate.node);
            }
        }
        probe
    }
}
