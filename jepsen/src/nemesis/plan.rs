//! When which fault comes: computed from the seed alone. Pure.

use rand::rngs::SmallRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};

use super::{Nemesis, cuts};
use crate::hosts::Cut;

/// What a schedule is computed from.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The kinds of faults; each comes about equally often.
    pub kinds: Vec<Nemesis>,
    /// How many nodes there are.
    pub nodes: usize,
    /// How long the run takes. All faults end before.
    pub length_ms: u64,
    /// Decides everything else.
    pub seed: u64,
    /// Whether nodes can be cut off from each other; without it leaders that are targeted are killed or paused.
    pub can_cut: bool,
}

/// One fault to come.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fault {
    /// Its kind.
    pub nemesis: Nemesis,
    /// When it begins, counted from the beginning of the load.
    pub begin_ms: u64,
    /// How long it takes.
    pub length_ms: u64,
    /// What it does.
    pub action: Action,
}

/// What a fault does. Nodes are named by index.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Action {
    /// Kill these.
    Kill(Vec<usize>),
    /// Pause these.
    Pause(Vec<usize>),
    /// Cut the power of these. What reaches their disks all the same is drawn from this number.
    PowerCut {
        /// Whose.
        nodes: Vec<usize>,
        /// Any number.
        seed: u64,
    },
    /// Drop these packets.
    Cut(Cut),
    /// Set wall clocks off by so many milliseconds.
    Clocks(Vec<(usize, i64)>),
    /// Set wall clocks off and back in turns.
    Strobe {
        /// Whose.
        nodes: Vec<usize>,
        /// By so much.
        offset_ms: i64,
        /// For so long each time.
        every_ms: u64,
    },
    /// Freeze these disks for moments.
    Slow {
        /// Whose.
        nodes: Vec<usize>,
        /// How long writes stand still each time.
        frozen_ms: u64,
        /// How long they go on in between.
        thawed_ms: u64,
    },
    /// Fill these disks.
    Fill(Vec<usize>),
    /// Strike a leader.
    Strike {
        /// Which.
        victim: Victim,
        /// How.
        how: How,
    },
    /// The steps of `lease-hole`, on a leader. Who restarts is chosen by this number.
    LeaseHole {
        /// Any number.
        choice: u64,
    },
}

/// A leader, whoever it is when the time comes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Victim {
    /// Of the system shard.
    System,
    /// Of the shard that holds the workload's hot key.
    Coordinator,
}

/// How a leader is struck.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum How {
    /// Killed.
    Kill,
    /// Paused.
    Pause,
    /// Cut off from all other nodes.
    Isolate,
}

/// The quiet before the first fault.
const FIRST_AFTER_MS: u64 = 1500;
/// The shortest and longest quiet between two faults that don't overlap.
const QUIET_MS: (u64, u64) = (1000, 3500);
/// The shortest and longest fault.
const FAULT_MS: (u64, u64) = (2000, 6000);
/// The steps of `lease-hole` take their time.
const LEASE_HOLE_MS: u64 = 6000;
/// How many of a hundred faults begin while the one before is still on.
const OVERLAPPING: u32 = 25;
/// Clocks jump by up to two to the power of this many milliseconds: four minutes and a half.
const LARGEST_JUMP_LOG2: u32 = 18;

/// All faults of a run, in the order in which they begin. The same plan gives the same schedule.
pub fn schedule(plan: &Plan) -> Vec<Fault> {
    let mut rng = SmallRng::seed_from_u64(plan.seed ^ 0x6e65_6d65_7369_7300);
    let mut faults: Vec<Fault> = Vec::new();
    let mut turn = Vec::new();
    let mut begin_ms = FIRST_AFTER_MS;
    while !plan.kinds.is_empty() {
        // Every kind has its turn before any comes again.
        if turn.is_empty() {
            turn.clone_from(&plan.kinds);
            turn.shuffle(&mut rng);
        }
        let Some(nemesis) = turn.pop() else { break };
        let length_ms = match nemesis {
            Nemesis::LeaseHole => LEASE_HOLE_MS,
            // All nodes at once: nothing is learnt from their being away for long.
            Nemesis::KillAll | Nemesis::Power => rng.random_range(200..1500),
            _ => rng.random_range(FAULT_MS.0..=FAULT_MS.1),
        };
        let action = action(nemesis, plan, &mut rng);
        let overlaps = rng.random_ratio(OVERLAPPING, 100);
        let quiet_ms = rng.random_range(QUIET_MS.0..=QUIET_MS.1);
        if begin_ms + length_ms > plan.length_ms {
            break;
        }
        faults.push(Fault { nemesis, begin_ms, length_ms, action });
        begin_ms += if overlaps { length_ms / 2 } else { length_ms + quiet_ms };
    }
    faults
}

fn action(nemesis: Nemesis, plan: &Plan, rng: &mut SmallRng) -> Action {
    let mut order: Vec<usize> = (0..plan.nodes).collect();
    order.shuffle(rng);
    let minority = (plan.nodes.saturating_sub(1) / 2).max(1);
    let few = order[..rng.random_range(1..=minority)].to_vec();
    let any = order[..rng.random_range(1..=plan.nodes)].to_vec();
    match nemesis {
        Nemesis::Kill => Action::Kill(few),
        Nemesis::KillAll => Action::Kill((0..plan.nodes).collect()),
        // Sometimes more than a minority: nothing can be served then, but nothing may be wrong afterwards.
        Nemesis::Pause => Action::Pause(if rng.random_ratio(1, 4) { any } else { few }),
        Nemesis::PartitionHalves => Action::Cut(cuts::between(&order[..minority], &order[minority..])),
        Nemesis::PartitionRing => Action::Cut(cuts::ring(&order)),
        Nemesis::PartitionBridge => Action::Cut(cuts::bridge(&order)),
        Nemesis::PartitionOneWay => {
            let (one, other) = order.split_at(minority);
            let (from, to) = if rng.random() { (one, other) } else { (other, one) };
            Action::Cut(cuts::one_way(from, to))
        }
        Nemesis::PartitionLeader => Action::Strike { victim: victim(rng), how: How::Isolate },
        Nemesis::ClockJump => Action::Clocks(any.into_iter().map(|node| (node, jump(rng))).collect()),
        Nemesis::ClockStrobe => {
            Action::Strobe { nodes: any, offset_ms: jump(rng), every_ms: rng.random_range(20..=200) }
        }
        Nemesis::DiskSlow => Action::Slow {
            nodes: if rng.random_ratio(1, 4) { any } else { few },
            frozen_ms: rng.random_range(50..=600),
            thawed_ms: rng.random_range(20..=200),
        },
        Nemesis::DiskFull => Action::Fill(few),
        Nemesis::TargetSystemLeader => Action::Strike { victim: Victim::System, how: how(plan, rng) },
        Nemesis::TargetCoordinator => Action::Strike { victim: Victim::Coordinator, how: how(plan, rng) },
        Nemesis::LeaseHole => Action::LeaseHole { choice: rng.random() },
        // All at once more often than not: what one node lost its peers may still have.
        Nemesis::Power => Action::PowerCut {
            nodes: if rng.random_ratio(2, 3) { (0..plan.nodes).collect() } else { any },
            seed: rng.random(),
        },
    }
}

fn victim(rng: &mut SmallRng) -> Victim {
    if rng.random() { Victim::System } else { Victim::Coordinator }
}

fn how(plan: &Plan, rng: &mut SmallRng) -> How {
    let ways = [How::Kill, How::Pause, How::Isolate];
    let count = if plan.can_cut { ways.len() } else { ways.len() - 1 };
    ways[rng.random_range(0..count)]
}

/// A jump of a wall clock: small and large ones are equally likely, ahead and behind too.
fn jump(rng: &mut SmallRng) -> i64 {
    let size = 1 << rng.random_range(3..=LARGEST_JUMP_LOG2);
    if rng.random() { size } else { -size }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(seed: u64, nodes: usize) -> Plan {
        Plan { kinds: Nemesis::ALL.to_vec(), nodes, length_ms: 600_000, seed, can_cut: true }
    }

    #[test]
    fn the_same_seed_gives_the_same_schedule_and_another_seed_another() {
        assert_eq!(schedule(&plan(7, 5)), schedule(&plan(7, 5)));
        assert_ne!(schedule(&plan(7, 5)), schedule(&plan(8, 5)));
    }

    #[test]
    fn faults_come_in_order_end_in_time_and_each_kind_comes() {
        for seed in 0..50 {
            let faults = schedule(&plan(seed, 3));
            assert!(faults.windows(2).all(|pair| pair[0].begin_ms <= pair[1].begin_ms));
            assert!(faults.iter().all(|fault| fault.begin_ms + fault.length_ms <= 600_000));
            for kind in Nemesis::ALL {
                assert!(faults.iter().any(|fault| fault.nemesis == kind), "seed {seed}: no {kind}");
            }
        }
    }

    #[test]
    fn kills_leave_a_majority_unless_all_are_meant() {
        for seed in 0..50 {
            for fault in schedule(&plan(seed, 5)) {
                let Action::Kill(nodes) = fault.action else { continue };
                let most = if fault.nemesis == Nemesis::KillAll { 5 } else { 2 };
                assert!((1..=most).contains(&nodes.len()), "{:?}: {nodes:?}", fault.nemesis);
            }
        }
    }

    #[test]
    fn nobody_is_cut_off_where_that_cannot_be_done() {
        let kinds = vec![Nemesis::TargetSystemLeader, Nemesis::TargetCoordinator];
        for seed in 0..50 {
            let faults = schedule(&Plan { kinds: kinds.clone(), can_cut: false, ..plan(seed, 3) });
            let isolates = |fault: &Fault| matches!(fault.action, Action::Strike { how: How::Isolate, .. });
            assert!(!faults.is_empty() && !faults.iter().any(isolates));
        }
    }

    #[test]
    fn without_kinds_nothing_happens() {
        assert_eq!(schedule(&Plan { kinds: Vec::new(), ..plan(1, 3) }), []);
    }
}
