//! Faults: what there is, when each comes, and how it is done to a cluster.
//!
//! [`schedule`] computes all faults of a run from its seed, before the run begins. [`perform`] does them. Where a
//! fault strikes a leader, only that is planned; who it is shows when the time has come, and is written down.

mod cuts;
mod lease;
mod perform;
mod plan;

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

pub use perform::{Happened, Stage, came_too_late, perform};
pub use plan::{Action, Fault, How, Plan, Victim, schedule};

use crate::hosts::Means;

/// A kind of fault.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Nemesis {
    /// SIGKILL of less than half of the nodes; they come back.
    Kill,
    /// SIGKILL of all nodes at once.
    KillAll,
    /// Nodes stop where they are, and go on later as if nothing had been.
    Pause,
    /// Two groups that can't reach each other.
    PartitionHalves,
    /// Every node reaches a majority, and no two nodes the same one.
    PartitionRing,
    /// A leader is alone.
    PartitionLeader,
    /// Packets are lost in one direction only.
    PartitionOneWay,
    /// Two groups that share one node.
    PartitionBridge,
    /// Wall clocks jump, and jump back.
    ClockJump,
    /// Wall clocks jump to and fro many times a second.
    ClockStrobe,
    /// A disk stands still for moments, again and again.
    DiskSlow,
    /// A disk is full.
    DiskFull,
    /// The leader of the system shard is killed, paused or cut off.
    TargetSystemLeader,
    /// The leader of a shard that coordinates transactions is killed, paused or cut off.
    TargetCoordinator,
    /// A follower restarts, and helps to elect another leader while the old one may still believe in its lease.
    LeaseHole,
    /// The power of nodes is cut: what they have not synced is lost.
    Power,
}

/// What a kind of fault asks of the machine, besides processes that can be killed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Need {
    /// Nothing.
    Nothing,
    /// Network namespaces.
    Namespaces,
    /// File systems of their own for data.
    Disks,
    /// Faked wall clocks.
    Clocks,
    /// Disks whose power can be cut.
    Power,
}

impl Nemesis {
    /// Every kind.
    pub const ALL: [Self; 16] = [
        Self::Kill,
        Self::KillAll,
        Self::Pause,
        Self::PartitionHalves,
        Self::PartitionRing,
        Self::PartitionLeader,
        Self::PartitionOneWay,
        Self::PartitionBridge,
        Self::ClockJump,
        Self::ClockStrobe,
        Self::DiskSlow,
        Self::DiskFull,
        Self::TargetSystemLeader,
        Self::TargetCoordinator,
        Self::LeaseHole,
        Self::Power,
    ];

    /// Its name on the command line and in results.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Kill => "kill",
            Self::KillAll => "kill-all",
            Self::Pause => "pause",
            Self::PartitionHalves => "partition-halves",
            Self::PartitionRing => "partition-ring",
            Self::PartitionLeader => "partition-leader",
            Self::PartitionOneWay => "partition-one-way",
            Self::PartitionBridge => "partition-bridge",
            Self::ClockJump => "clock-jump",
            Self::ClockStrobe => "clock-strobe",
            Self::DiskSlow => "disk-slow",
            Self::DiskFull => "disk-full",
            Self::TargetSystemLeader => "target-system-leader",
            Self::TargetCoordinator => "target-coordinator",
            Self::LeaseHole => "lease-hole",
            Self::Power => "power",
        }
    }

    /// What it does, in a sentence.
    pub const fn about(self) -> &'static str {
        match self {
            Self::Kill => "SIGKILL of less than half of the nodes, started again",
            Self::KillAll => "SIGKILL of all nodes at once, started again",
            Self::Pause => "SIGSTOP of some nodes, SIGCONT later",
            Self::PartitionHalves => "two groups that can't reach each other",
            Self::PartitionRing => "every node reaches a majority, no two the same one",
            Self::PartitionLeader => "a leader is alone",
            Self::PartitionOneWay => "packets are lost in one direction only",
            Self::PartitionBridge => "two groups that share one node",
            Self::ClockJump => "wall clocks jump by up to minutes, and back",
            Self::ClockStrobe => "wall clocks jump to and fro many times a second",
            Self::DiskSlow => "a disk stands still for moments, again and again",
            Self::DiskFull => "a disk is full, and later not",
            Self::TargetSystemLeader => "who leads the system shard is killed, paused or cut off",
            Self::TargetCoordinator => "who leads a coordinating shard is killed, paused or cut off",
            Self::LeaseHole => {
                "a restarted follower helps to elect another leader during the old one's lease"
            }
            Self::Power => {
                "nodes lose their power, often all at once, and with it all that they did not sync"
            }
        }
    }

    /// What it asks of the machine.
    pub const fn need(self) -> Need {
        match self {
            Self::Kill | Self::KillAll | Self::Pause => Need::Nothing,
            Self::ClockJump | Self::ClockStrobe => Need::Clocks,
            Self::DiskSlow | Self::DiskFull => Need::Disks,
            Self::Power => Need::Power,
            // Targeted ones do what they can without namespaces: kill and pause.
            Self::TargetSystemLeader | Self::TargetCoordinator => Need::Nothing,
            _ => Need::Namespaces,
        }
    }

    /// How many nodes it takes at least: with fewer there is nothing to cut, or nobody to play a part.
    pub const fn least_nodes(self) -> usize {
        match self {
            Self::PartitionRing | Self::PartitionBridge | Self::LeaseHole => 3,
            Self::PartitionHalves | Self::PartitionLeader | Self::PartitionOneWay => 2,
            _ => 1,
        }
    }

    /// Why it can't be had with so many nodes on this machine, if it can't.
    pub fn missing(self, means: &Means, nodes: usize) -> Option<String> {
        if nodes < self.least_nodes() {
            return Some(format!("it takes {} nodes", self.least_nodes()));
        }
        match self.need() {
            Need::Nothing => None,
            Need::Namespaces => means.namespaces.clone().err(),
            Need::Disks => means.disks.clone().err(),
            Need::Clocks => means.clocks.clone().err(),
            Need::Power => means.power.clone().err(),
        }
    }
}

impl fmt::Display for Nemesis {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.name())
    }
}

impl FromStr for Nemesis {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let known = Self::ALL.map(Self::name).join(", ");
        let found = Self::ALL.into_iter().find(|one| one.name() == name);
        found.ok_or_else(|| {
            format!("there is no nemesis {name:?}; there are: {known}, and the groups of `--list`")
        })
    }
}

/// Names that stand for several kinds.
pub const GROUPS: [(&str, &str); 6] = [
    ("none", "no faults"),
    ("partition", "every kind of partition"),
    ("clock", "clock-jump and clock-strobe"),
    ("disk", "disk-slow and disk-full"),
    ("target", "target-system-leader and target-coordinator"),
    ("all", "everything that this machine allows"),
];

/// The kinds that a list of names and groups means, each once, in the order of [`Nemesis::ALL`]. A name with `-` in
/// front takes what it means away: `all,-disk-full`.
///
/// # Errors
/// For a name that is neither a kind nor a group.
pub fn parse(names: &str) -> Result<Vec<Nemesis>, String> {
    let (mut found, mut without) = (Vec::new(), Vec::new());
    for name in names.split(',').map(str::trim).filter(|name| !name.is_empty()) {
        match name.strip_prefix('-') {
            Some(name) => without.extend(meant(name)?),
            None => found.extend(meant(name)?),
        }
    }
    found.retain(|one| !without.contains(one));
    found.sort_unstable();
    found.dedup();
    Ok(found)
}

/// The kinds that such a list names by themselves, not by a group that they are in: a run without one of these is not
/// what was asked for.
///
/// # Errors
/// As [`parse`].
pub fn named(names: &str) -> Result<Vec<Nemesis>, String> {
    let is_own = |name: &&str| !name.starts_with('-') && !GROUPS.iter().any(|(group, _)| group == name);
    let own: Vec<&str> = names.split(',').map(str::trim).filter(is_own).collect();
    let wanted = parse(names)?;
    Ok(parse(&own.join(","))?.into_iter().filter(|one| wanted.contains(one)).collect())
}

/// What one name means.
fn meant(name: &str) -> Result<Vec<Nemesis>, String> {
    let is_group = GROUPS.iter().any(|(group, _)| *group == name);
    let prefix = format!("{name}-");
    Ok(match name {
        "none" => Vec::new(),
        "all" => Nemesis::ALL.to_vec(),
        _ if is_group => Nemesis::ALL.into_iter().filter(|one| one.name().starts_with(&prefix)).collect(),
        _ => vec![name.parse()?],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_is_known_by_its_name() {
        for one in Nemesis::ALL {
            assert_eq!(one.name().parse(), Ok(one));
            assert_eq!(serde_json::to_value(one).unwrap(), one.name());
        }
        assert!("earthquake".parse::<Nemesis>().unwrap_err().contains("partition-ring"));
    }

    #[test]
    fn few_nodes_allow_few_kinds() {
        let means = Means { namespaces: Ok(()), disks: Ok(()), power: Ok(()), clocks: Ok("lib".into()) };
        let possible =
            |nodes| Nemesis::ALL.into_iter().filter(|one| one.missing(&means, nodes).is_none()).count();
        assert_eq!([1, 2, 3].map(possible), [10, 13, 16]);
    }

    #[test]
    fn groups_stand_for_their_kinds() {
        assert_eq!(parse("none").unwrap(), []);
        assert_eq!(parse("clock,kill").unwrap(), [Nemesis::Kill, Nemesis::ClockJump, Nemesis::ClockStrobe]);
        assert_eq!(parse("partition").unwrap().len(), 5);
        assert_eq!(parse("all, pause").unwrap(), Nemesis::ALL);
        assert_eq!(parse("disk,-disk-full").unwrap(), [Nemesis::DiskSlow]);
        assert_eq!(parse("-clock,all").unwrap().len(), Nemesis::ALL.len() - 2);
        assert_eq!(named("all,power, kill,clock").unwrap(), [Nemesis::Kill, Nemesis::Power]);
        assert_eq!(named("all,-power,power").unwrap(), []);
        assert!(parse("kill,earthquake").is_err() && parse("all,-earthquake").is_err());
    }
}
