//! A choice in words and figures, for those who ask why a read went where it went.

use std::fmt;

use super::choice::{Balancer, Candidate, Choice, Measure, Rule, Scope};
use super::node::{Cause, FailureKind, Node};
use crate::types::NodeId;

/// What was known of one candidate. Ages and times to go are from the moment of the choice.
#[derive(Clone, PartialEq, Debug)]
pub(in crate::client) struct Fact {
    /// The node.
    pub(in crate::client) node: NodeId,
    /// Whether it leads the shard.
    pub(in crate::client) is_leader: bool,
    /// Whether it is in the client's own zone.
    pub(in crate::client) is_near: bool,
    /// The client's own reads under way there.
    pub(in crate::client) in_flight: u32,
    /// How many reads it is believed to have under way, of all clients.
    pub(in crate::client) queue: u64,
    /// Its mean latency; unset before there were enough answers.
    pub(in crate::client) latency_us: Option<u64>,
    /// The mean latency beyond which it is an outlier; unset where the others' is not known.
    pub(in crate::client) bound_us: Option<u64>,
    /// For how long it has owed an answer without giving any.
    pub(in crate::client) waited_us: u64,
    /// Failures in a row.
    pub(in crate::client) failures: u32,
    /// For how much longer it is avoided because of these.
    pub(in crate::client) avoided_for_us: u64,
    /// For how much longer it is spared because the cluster finds it slow, if no reply says otherwise.
    pub(in crate::client) spared_for_us: u64,
    /// Set where it is ejected.
    pub(in crate::client) ejected: Option<Ejection>,
}

/// Why a node gets no users' reads, and what brings it back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::client) struct Ejection {
    /// Why.
    pub(in crate::client) cause: Cause,
    /// For how long now.
    pub(in crate::client) for_us: u64,
    /// The good probes so far.
    pub(in crate::client) run: u32,
    /// How many good probes bring it back.
    pub(in crate::client) need: u32,
}

/// Why a choice was made. [`Display`](fmt::Display) gives a line on the choice and one on each candidate.
#[derive(Clone, PartialEq, Debug)]
pub(in crate::client) struct Explanation {
    /// The choice.
    pub(in crate::client) choice: Choice,
    /// What was known of each candidate.
    pub(in crate::client) facts: Vec<Fact>,
}

impl Balancer {
    /// What a choice was based on. To be asked right after [`choose`](Self::choose), before the read is sent,
    /// with the same candidates and time: the figures are those of this moment.
    pub(in crate::client) fn explain(
        &self,
        choice: Choice,
        candidates: &[Candidate],
        now_us: u64,
    ) -> Explanation {
        let unknown = Node::default();
        let facts = candidates
            .iter()
            .map(|candidate| fact(*candidate, self.nodes.get(&candidate.node).unwrap_or(&unknown), now_us));
        Explanation { choice, facts: facts.collect() }
    }
}

fn fact(candidate: Candidate, node: &Node, now_us: u64) -> Fact {
    let ejected = node.ejected.map(|ejected| Ejection {
        cause: ejected.cause,
        for_us: now_us.saturating_sub(ejected.since_us),
        run: ejected.run,
        need: ejected.need,
    });
    Fact {
        node: candidate.node,
        is_leader: candidate.is_leader,
        is_near: candidate.is_near,
        in_flight: node.in_flight,
        queue: node.queue_against(now_us).round() as u64,
        latency_us: node.latency_us(now_us).map(|latency| latency as u64),
        bound_us: node.bound_us.map(|bound| bound as u64),
        waited_us: node.waited_us(now_us),
        failures: node.failures,
        avoided_for_us: node.avoided_until_us().saturating_sub(now_us),
        spared_for_us: node.spared_until_us().saturating_sub(now_us),
        ejected,
    }
}

/// Microseconds as milliseconds.
fn ms(us: u64) -> String {
    format!("{}.{} ms", us / 1000, us / 100 % 10)
}

impl fmt::Display for FailureKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Refused => "it could not be reached",
            Self::Overloaded => "it had too much to do",
            Self::Lost => "it did not answer",
            Self::Stale => "it could not serve reads",
        })
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failures(kind) => write!(f, "reads failed, the last because {kind}"),
            Self::Slow { latency_us, bound_us } => {
                write!(f, "it took {} where the others would allow {}", ms(*latency_us), ms(*bound_us))
            }
            Self::Silent { waited_us } => {
                write!(f, "it gave no answer for {} while others did", ms(*waited_us))
            }
        }
    }
}

impl fmt::Display for Ejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cause, for_us, run, need } = self;
        write!(f, "ejected {} ago: {cause}; back after {need} good probes, {run} so far", ms(*for_us))
    }
}

impl fmt::Display for Measure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Failures => "failed lately",
            Self::Spared => "is spared, as the cluster finds it slow",
            Self::Waiting => "has owed an answer for too long",
            Self::Latency => "is several times as slow",
            Self::Queue => "has several times as many reads under way",
        })
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Leader => "the leader",
            Self::Near => "the replicas of this zone that are well and need not be spared",
            Self::Well => "the replicas that are well",
            Self::Untried => "the replicas that were not tried, none of which is well",
            Self::Again => "the replicas that are well, each of which was tried",
            Self::All => "all replicas, none of which is well and untried",
        })
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Choice { node, probe, why } = self.choice;
        match why.rule {
            Rule::Only if why.scope == Scope::Leader => write!(f, "node {node}: it leads the shard")?,
            Rule::Only => write!(f, "node {node}: there is no other among {}", why.scope)?,
            Rule::Drawn { beside } => {
                write!(f, "node {node}: drawn from {}; not clearly worse than node {beside}", why.scope)?;
            }
            Rule::Better { than, by } => {
                write!(f, "node {node}: of {}, node {than} was drawn too but {by}", why.scope)?;
            }
        }
        if let Some(probe) = probe {
            write!(f, "; a copy goes to node {probe} to see whether it is well again")?;
        }
        self.facts.iter().try_for_each(|fact| write!(f, "\n  {fact}"))
    }
}

impl fmt::Display for Fact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "node {}", self.node)?;
        if self.is_leader {
            f.write_str(", leader")?;
        }
        if self.is_near {
            f.write_str(", this zone")?;
        }
        match self.latency_us {
            Some(latency_us) => write!(f, ": {}", ms(latency_us))?,
            None => f.write_str(": latency not known")?,
        }
        write!(f, ", {} reads under way of which {} own", self.queue, self.in_flight)?;
        if self.waited_us > 0 {
            write!(f, ", answer owed for {}", ms(self.waited_us))?;
        }
        if self.failures > 0 {
            write!(f, ", {} failures in a row", self.failures)?;
        }
        if self.avoided_for_us > 0 {
            write!(f, ", avoided for {}", ms(self.avoided_for_us))?;
        }
        if self.spared_for_us > 0 {
            write!(f, ", the cluster finds it slow: spared for {}", ms(self.spared_for_us))?;
        }
        match &self.ejected {
            Some(ejected) => write!(f, "; {ejected}"),
            None => Ok(()),
        }
    }
}
