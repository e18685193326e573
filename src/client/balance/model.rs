//! Clients and servers in simulated time, for what no single choice shows: shares, herds, flapping.
//!
//! Everything follows from the seed. A server has workers and a queue in front of them; a follower waits for
//! its leader before it queues a read. A frozen server does nothing and loses nothing: what it had goes on
//! afterwards.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::choice::{Balancer, Candidate};
use super::model_gossip::{Lists, lists};
use super::node::{FailureKind, Probed};
use super::policy::Policy;
use crate::types::NodeId;

pub(super) const MS: u64 = 1_000;
pub(super) const SECOND: u64 = 1_000 * MS;

/// A pseudo-random sequence (splitmix64).
#[derive(Clone, Debug)]
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// The time to the next of events that come independently, `mean_us` apart in the mean.
    fn gap_us(&mut self, mean_us: f64) -> u64 {
        (-(1.0 - self.unit()).ln() * mean_us) as u64 + 1
    }
}

/// A span of time in which a server is bad, and how.
#[derive(Clone, Copy, Debug)]
pub(super) struct Spell {
    pub(super) from_us: u64,
    pub(super) to_us: u64,
    pub(super) what: Bad,
}

#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) enum Bad {
    /// Frozen for the first so many microseconds of every 100 ms.
    Paused(u64),
    Fails(FailureKind),
    /// Refuses what is more than so many reads under way.
    Limited(usize),
}

#[derive(Clone, Debug)]
pub(super) struct Server {
    pub(super) rtt_us: u64,
    pub(super) service_us: u64,
    /// What a read waits before it queues.
    pub(super) index_us: u64,
    pub(super) is_leader: bool,
    pub(super) is_near: bool,
    pub(super) spells: Vec<Spell>,
    /// Frozen spans, in order; none touches another.
    stalls: Vec<(u64, u64)>,
    /// When each worker is free.
    workers: Vec<u64>,
    under_way: usize,
}

impl Server {
    /// 0.8 ms a read at the leader, 1.6 ms at a follower, 10,000 reads/s.
    pub(super) fn new(is_leader: bool) -> Self {
        Self {
            rtt_us: 400,
            service_us: 400,
            index_us: if is_leader { 0 } else { 800 },
            is_leader,
            is_near: false,
            spells: Vec::new(),
            stalls: Vec::new(),
            workers: vec![0; 4],
            under_way: 0,
        }
    }

    /// Stalls of 5 to 20 ms at random, so far apart in the mean.
    pub(super) fn stall(&mut self, mean_us: u64, until_us: u64, random: &mut Random) {
        let mut at_us = random.gap_us(mean_us as f64);
        while at_us < until_us {
            let end_us = at_us + 5 * MS + random.next() % (15 * MS);
            self.stalls.push((at_us, end_us));
            at_us = end_us + random.gap_us(mean_us as f64);
        }
    }

    fn bad(&self, now_us: u64) -> Option<Bad> {
        self.spells
            .iter()
            .find(|spell| (spell.from_us..spell.to_us).contains(&now_us))
            .map(|spell| spell.what)
    }

    /// The frozen span that holds `at_us`, or the next one.
    fn frozen(&self, at_us: u64) -> (u64, u64) {
        let next = self.stalls.partition_point(|stall| stall.1 <= at_us);
        let mut span = self.stalls.get(next).copied().unwrap_or((u64::MAX, u64::MAX));
        for spell in &self.spells {
            let Bad::Paused(pause_us) = spell.what else { continue };
            let mut start_us = at_us - at_us % (100 * MS);
            if start_us + pause_us <= at_us {
                start_us += 100 * MS;
            }
            start_us = start_us.max(spell.from_us);
            if start_us < spell.to_us && start_us < span.0 {
                span = (start_us, start_us + pause_us);
            }
        }
        span
    }

    /// When work is done that starts at `at_us`.
    pub(super) fn work(&self, mut at_us: u64, mut work_us: u64) -> u64 {
        loop {
            let (from_us, to_us) = self.frozen(at_us);
            if at_us + work_us <= from_us {
                return at_us + work_us;
            }
            work_us -= from_us.saturating_sub(at_us);
            at_us = to_us;
        }
    }

    /// Takes a read in; answers when it is done.
    fn take(&mut self, now_us: u64, random: &mut Random) -> u64 {
        self.under_way += 1;
        let work_us = self.service_us / 2 + random.next() % self.service_us;
        let (worker, free_us) =
            self.workers.iter().copied().enumerate().min_by_key(|(_, free_us)| *free_us).expect("workers");
        let done_us = self.work(free_us.max(now_us + self.index_us), work_us);
        self.workers[worker] = done_us;
        done_us
    }
}

/// How a client asks.
#[derive(Clone, Copy, Debug)]
pub(super) enum Load {
    /// So many reads under way at all times.
    Closed(usize),
    /// Independent reads, so far apart in the mean.
    Open(u64),
}

/// How a read's node is chosen: by the machine, or by one that is broken on purpose. Those but the last are told
/// nothing of what the cluster finds slow, which would help them.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) enum Variant {
    Real,
    /// Ejects nobody.
    NoEjection,
    /// Never sends a probe.
    NoProbes,
    /// The lowest mean latency.
    Greedy,
    /// Any, whatever is known.
    Blind,
    /// Is not broken otherwise.
    Untold,
    /// Does not listen to replies that list none.
    Credulous,
}

#[derive(Clone, Debug)]
struct Read {
    client: usize,
    server: usize,
    begun_us: u64,
    sent_us: u64,
    tried: Vec<NodeId>,
    is_probe: bool,
}

#[derive(Clone, Debug)]
enum Event {
    /// A client begins a read.
    Begin(usize),
    /// A read tries again.
    Again(Read),
    Arrive(Read),
    Done(Read),
    /// The reads that the server has under way, or why it failed.
    Reply(Read, Result<u32, FailureKind>),
}

/// What is to be simulated.
pub(super) struct Setup {
    pub(super) seed: u64,
    pub(super) servers: Vec<Server>,
    pub(super) clients: usize,
    pub(super) load: Load,
    pub(super) policy: Policy,
    pub(super) variant: Variant,
    /// Whether servers say how many reads they have under way.
    pub(super) hints: bool,
    /// Stalls of each server, so far apart in the mean.
    pub(super) stalls_us: u64,
    /// Whether all servers stall at the same times, as on one machine.
    pub(super) stalls_together: bool,
    /// A server whose replies always list the given ones, whatever the others say.
    pub(super) mistaken: Option<(usize, Vec<usize>)>,
    pub(super) seconds: u64,
}

impl Setup {
    /// Three replicas of one shard, the first leads.
    pub(super) fn new(clients: usize, load: Load, seconds: u64) -> Self {
        Self {
            seed: 1,
            servers: vec![Server::new(true), Server::new(false), Server::new(false)],
            clients,
            load,
            policy: Policy::Balanced,
            variant: Variant::Real,
            hints: true,
            stalls_us: SECOND,
            stalls_together: false,
            mistaken: None,
            seconds,
        }
    }

    pub(super) fn spell(mut self, server: usize, seconds: std::ops::Range<u64>, what: Bad) -> Self {
        let (from_us, to_us) = (seconds.start * SECOND, seconds.end * SECOND);
        self.servers[server].spells.push(Spell { from_us, to_us, what });
        self
    }

    pub(super) fn variant(mut self, variant: Variant) -> Self {
        self.variant = variant;
        self
    }

    pub(super) fn run(self) -> Seen {
        World::new(self).run()
    }
}

/// What was seen of a run.
pub(super) struct Seen {
    servers: usize,
    /// Reads that arrived, by 10 ms and server; with and without probes.
    arrived: Vec<Vec<u32>>,
    of_users: Vec<Vec<u32>>,
    /// Latencies of users' reads by the second in which they ended.
    latencies: Vec<Vec<u64>>,
    /// Attempts that failed, by second.
    pub(super) failed: Vec<u32>,
    /// Client and server pairs that are ejected at the end of each second.
    pub(super) ejected: Vec<Vec<usize>>,
}

impl Seen {
    fn sums(&self, of: &[Vec<u32>], seconds: std::ops::Range<u64>) -> Vec<f64> {
        let slots = &of[seconds.start as usize * 100..seconds.end as usize * 100];
        (0..self.servers).map(|server| slots.iter().map(|slot| f64::from(slot[server])).sum()).collect()
    }

    /// The part of all arrivals that each server had, in percent, probes included.
    pub(super) fn shares(&self, seconds: std::ops::Range<u64>) -> Vec<f64> {
        let sums = self.sums(&self.arrived, seconds);
        let all: f64 = sums.iter().sum();
        sums.into_iter().map(|sum| sum * 100.0 / all).collect()
    }

    /// The same of users' reads.
    pub(super) fn user_shares(&self, seconds: std::ops::Range<u64>) -> Vec<f64> {
        let sums = self.sums(&self.of_users, seconds);
        let all: f64 = sums.iter().sum();
        sums.into_iter().map(|sum| sum * 100.0 / all).collect()
    }

    /// The most that a server had of all arrivals in any half second, in percent.
    pub(super) fn peak_share(&self, server: usize, seconds: std::ops::Range<u64>) -> f64 {
        let slots = &self.arrived[seconds.start as usize * 100..seconds.end as usize * 100];
        let share = |slots: &[Vec<u32>]| {
            let all: u32 = slots.iter().flatten().sum();
            let own: u32 = slots.iter().map(|slot| slot[server]).sum();
            f64::from(own) * 100.0 / f64::from(all)
        };
        slots.chunks(50).map(share).fold(0.0, f64::max)
    }

    /// The most reads that arrived at one server in any 10 ms.
    pub(super) fn most_in_10_ms(&self, seconds: std::ops::Range<u64>) -> u32 {
        let slots = &self.arrived[seconds.start as usize * 100..seconds.end as usize * 100];
        slots.iter().flatten().copied().max().unwrap_or(0)
    }

    /// A percentile of users' latencies.
    pub(super) fn percentile_us(&self, percent: usize, seconds: std::ops::Range<u64>) -> u64 {
        let slots = &self.latencies[seconds.start as usize..seconds.end as usize];
        let mut all: Vec<u64> = slots.iter().flatten().copied().collect();
        all.sort_unstable();
        all[all.len() * percent / 100]
    }

    /// Users' reads that ended, a second.
    pub(super) fn rate(&self, seconds: std::ops::Range<u64>) -> usize {
        let count = (seconds.end - seconds.start) as usize;
        let slots = &self.latencies[seconds.start as usize..seconds.end as usize];
        slots.iter().map(Vec::len).sum::<usize>() / count
    }
}

struct World {
    setup: Setup,
    random: Random,
    balancers: Vec<Balancer>,
    candidates: Vec<Candidate>,
    lists: Vec<Lists>,
    events: BinaryHeap<Reverse<(u64, u64, usize)>>,
    /// Events by place; the heap holds places.
    store: Vec<Option<Event>>,
    free: Vec<usize>,
    count: u64,
    seen: Seen,
}

pub(super) fn node(server: usize) -> NodeId {
    NodeId(server as u64 + 1)
}

impl World {
    fn new(mut setup: Setup) -> Self {
        let mut random = Random(setup.seed);
        let end_us = setup.seconds * SECOND;
        for server in &mut setup.servers {
            let mut own = random.clone();
            server.stall(setup.stalls_us, end_us, if setup.stalls_together { &mut own } else { &mut random });
        }
        let candidates = setup.servers.iter().enumerate().map(|(index, server)| Candidate {
            node: node(index),
            is_leader: server.is_leader,
            is_near: server.is_near,
        });
        let (count, seconds) = (setup.servers.len(), setup.seconds as usize);
        let seen = Seen {
            servers: count,
            arrived: vec![vec![0; count]; seconds * 100],
            of_users: vec![vec![0; count]; seconds * 100],
            latencies: vec![Vec::new(); seconds],
            failed: vec![0; seconds],
            ejected: Vec::new(),
        };
        let mut lists = lists(&setup.servers, end_us);
        if let Some((server, listed)) = &setup.mistaken {
            lists[*server] = Lists::always(listed.iter().copied().map(node).collect());
        }
        Self {
            candidates: candidates.collect(),
            lists,
            balancers: vec![Balancer::default(); setup.clients],
            setup,
            random,
            events: BinaryHeap::new(),
            store: Vec::new(),
            free: Vec::new(),
            count: 0,
            seen,
        }
    }

    fn at(&mut self, time_us: u64, event: Event) {
        let place = self.free.pop().unwrap_or_else(|| {
            self.store.push(None);
            self.store.len() - 1
        });
        self.store[place] = Some(event);
        self.count += 1;
        self.events.push(Reverse((time_us, self.count, place)));
    }

    fn run(mut self) -> Seen {
        for client in 0..self.setup.clients {
            match self.setup.load {
                Load::Closed(reads) => (0..reads).for_each(|_| {
                    let at_us = self.random.next() % MS;
                    self.at(at_us, Event::Begin(client));
                }),
                Load::Open(mean_us) => {
                    let at_us = self.random.gap_us(mean_us as f64);
                    self.at(at_us, Event::Begin(client));
                }
            }
        }
        while let Some(Reverse((now_us, _, place))) = self.events.pop() {
            while self.seen.ejected.len() as u64 * SECOND + SECOND <= now_us {
                let ejected = self.ejected();
                self.seen.ejected.push(ejected);
            }
            if now_us >= self.setup.seconds * SECOND {
                break;
            }
            let event = self.store[place].take().expect("an event");
            self.free.push(place);
            self.step(now_us, event);
        }
        self.seen
    }

    fn ejected(&self) -> Vec<usize> {
        let is_ejected = |balancer: &&Balancer, server| {
            balancer.nodes.get(&node(server)).is_some_and(|node| node.ejected.is_some())
        };
        (0..self.setup.servers.len())
            .map(|server| self.balancers.iter().filter(|balancer| is_ejected(balancer, server)).count())
            .collect()
    }

    fn step(&mut self, now_us: u64, event: Event) {
        match event {
            Event::Begin(client) => {
                if let Load::Open(mean_us) = self.setup.load {
                    let next_us = now_us + self.random.gap_us(mean_us as f64);
                    self.at(next_us, Event::Begin(client));
                }
                let (begun_us, tried) = (now_us, Vec::new());
                let read = Read { client, server: 0, begun_us, sent_us: now_us, tried, is_probe: false };
                self.send(now_us, read);
            }
            Event::Again(read) => self.send(now_us, read),
            Event::Arrive(read) => self.arrive(now_us, read),
            Event::Done(read) => {
                let server = &mut self.setup.servers[read.server];
                let load = if self.setup.hints { server.under_way as u32 } else { 0 };
                server.under_way -= 1;
                let reply_us = now_us + server.rtt_us / 2;
                self.at(reply_us, Event::Reply(read, Ok(load)));
            }
            Event::Reply(read, result) if read.is_probe => self.probed(now_us, &read, result),
            Event::Reply(read, result) => self.replied(now_us, read, result),
        }
    }

    fn send(&mut self, now_us: u64, mut read: Read) {
        let (random, variant) = (self.random.next(), self.setup.variant);
        let balancer = &mut self.balancers[read.client];
        if variant == Variant::NoEjection {
            balancer.nodes.values_mut().for_each(|node| node.ejected = None);
        }
        let choice = balancer
            .choose(self.setup.policy, &self.candidates, &read.tried, now_us, random)
            .expect("there are candidates");
        let mut chosen = choice.node;
        let mut probe = choice.probe;
        match variant {
            Variant::Greedy => {
                let latency = |node: NodeId| balancer.nodes[&node].latency_us(now_us).unwrap_or(0.0);
                let best = self.candidates.iter().map(|candidate| candidate.node);
                chosen = best.min_by(|a, b| latency(*a).total_cmp(&latency(*b))).expect("candidates");
            }
            Variant::Blind => {
                chosen = self.candidates[random as usize % self.candidates.len()].node;
                probe = None;
            }
            Variant::NoProbes => probe = None,
            Variant::Real | Variant::NoEjection | Variant::Untold | Variant::Credulous => {}
        }
        balancer.sent(chosen, now_us);
        read.server = chosen.0 as usize - 1;
        read.sent_us = now_us;
        if let Some(probe) = probe {
            let copy = Read { server: probe.0 as usize - 1, is_probe: true, ..read.clone() };
            self.dispatch(now_us, copy);
        }
        self.dispatch(now_us, read);
    }

    fn dispatch(&mut self, now_us: u64, read: Read) {
        let arrives_us = now_us + self.setup.servers[read.server].rtt_us / 2;
        self.at(arrives_us, Event::Arrive(read));
    }

    fn arrive(&mut self, now_us: u64, read: Read) {
        let slot = (now_us / (10 * MS)) as usize;
        let count = |slots: &mut Vec<Vec<u32>>| {
            slots.get_mut(slot).into_iter().for_each(|slot| slot[read.server] += 1);
        };
        count(&mut self.seen.arrived);
        if !read.is_probe {
            count(&mut self.seen.of_users);
        }
        let server = &mut self.setup.servers[read.server];
        let failure = match server.bad(now_us) {
            Some(Bad::Fails(kind)) => Some(kind),
            Some(Bad::Limited(most)) if server.under_way >= most => Some(FailureKind::Overloaded),
            _ => None,
        };
        match failure {
            Some(kind) => {
                let wait_us = if kind == FailureKind::Lost { SECOND } else { server.rtt_us / 2 };
                self.at(now_us + wait_us, Event::Reply(read, Err(kind)));
            }
            None => {
                let done_us = server.take(now_us, &mut self.random);
                self.at(done_us, Event::Done(read));
            }
        }
    }

    fn probed(&mut self, now_us: u64, read: &Read, result: Result<u32, FailureKind>) {
        let outcome = match result {
            Ok(load) => Probed::Answered { latency_us: now_us - read.sent_us, load },
            Err(kind) => Probed::Failed(kind),
        };
        self.balancers[read.client].probed(node(read.server), now_us, outcome);
    }

    fn replied(&mut self, now_us: u64, mut read: Read, result: Result<u32, FailureKind>) {
        let balancer = &mut self.balancers[read.client];
        let second = (now_us / SECOND) as usize;
        match result {
            Ok(load) => {
                balancer.answered(node(read.server), now_us, now_us - read.sent_us, load);
                // The server said so when it answered.
                let server = &self.setup.servers[read.server];
                let slow = self.lists[read.server].at(now_us.saturating_sub(server.rtt_us / 2));
                let listens = match self.setup.variant {
                    Variant::Real => true,
                    Variant::Credulous => !slow.is_empty(),
                    _ => false,
                };
                if listens {
                    balancer.told_slow(slow, now_us);
                }
                self.seen.latencies[second].push(now_us - read.begun_us);
                if let Load::Closed(_) = self.setup.load {
                    self.at(now_us, Event::Begin(read.client));
                }
            }
            Err(kind) => {
                balancer.failed(node(read.server), now_us, kind);
                self.seen.failed[second] += 1;
                read.tried.push(node(read.server));
                let all = read.tried.len() >= self.setup.servers.len();
                if all {
                    read.tried.clear();
                }
                self.at(now_us + if all { 20 * MS } else { 0 }, Event::Again(read));
            }
        }
    }
}
