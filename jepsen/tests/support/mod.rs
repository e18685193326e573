//! A simple correct store, and clients that use it at the same time: histories that every checker must accept.

#![allow(dead_code, reason = "each test file uses a part of it")]

pub mod follow;
pub mod index;

use std::collections::{BTreeMap, VecDeque};

use kvorum_jepsen::history::{Changed, F, History, MicroOp, Op, Seen, Told, Value};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

/// How a history is made.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub workload: &'static str,
    pub seed: u64,
    /// Operations, without the reads at the end.
    pub ops: usize,
    /// Clients at a time.
    pub clients: usize,
    /// Registers or lists in use at a time.
    pub keys: i64,
    /// Of 1,000 operations, how many fail, and of how many the outcome is unknown.
    pub fail_per_mille: u32,
    pub info_per_mille: u32,
}

impl Shape {
    pub fn new(workload: &'static str, seed: u64, ops: usize) -> Self {
        Shape { workload, seed, ops, clients: 8, keys: 4, fail_per_mille: 50, info_per_mille: 30 }
    }
}

/// Serial: operations take effect one by one.
#[derive(Debug, Default)]
struct Store {
    registers: BTreeMap<String, i64>,
    lists: BTreeMap<String, Vec<i64>>,
    balances: BTreeMap<String, i64>,
    log: Option<follow::Log>,
    /// How many transactions each follower was told.
    followed: BTreeMap<String, usize>,
    /// Rows as they were lately, with timestamps, where there are indexes: those may be behind.
    lately: VecDeque<(u64, BTreeMap<String, i64>)>,
    clock: u64,
}

impl Store {
    /// The completion, `None` if the operation is refused without effect.
    fn apply(&mut self, op: &Op) -> Option<Op> {
        self.clock += 1;
        if let (F::Query | F::Dump, Some(lately)) =
            (op.f, self.lately.get(self.clock as usize % index::BEHIND))
        {
            return Some(index::answer(op, self.clock, lately, &self.registers));
        }
        let key = op.key.clone().unwrap_or_default();
        let value = match (op.f, &op.value) {
            (F::Read, _) if self.log.is_some() => Value::Balances(self.registers.clone()),
            (F::Txn, Value::Txn(steps)) if self.log.is_some() => Value::Txn(self.logged(steps)),
            (F::Follow, _) => self.follow(&key, &op.value),
            (F::Read, _) if !self.balances.is_empty() => Value::Balances(self.balances.clone()),
            (F::Read, _) => match self.lists.get(&key) {
                Some(list) => Value::List(list.clone()),
                None => Value::register(self.registers.get(&key).copied()),
            },
            (F::Write, Value::Int(value)) => {
                self.registers.insert(key, *value);
                op.value.clone()
            }
            (F::Write, Value::Balances(balances)) => {
                self.balances = balances.clone();
                op.value.clone()
            }
            (F::Cas, Value::Cas { old, new }) => {
                if self.registers.get(&key) != old.as_ref() {
                    return None;
                }
                self.registers.insert(key, *new);
                op.value.clone()
            }
            (F::Add, Value::Int(value)) => {
                match self.lists.get_mut(&key) {
                    Some(list) => list.push(*value),
                    None => *self.registers.entry(key).or_insert(0) += value,
                }
                op.value.clone()
            }
            (F::Add, _) => {
                let value = self.registers.entry(key).or_insert(0);
                *value += 1;
                Value::Int(*value)
            }
            (F::Transfer, Value::Transfer { from, to, amount }) => {
                if self.balances[from] < *amount {
                    return None;
                }
                *self.balances.get_mut(from)? -= amount;
                *self.balances.get_mut(to)? += amount;
                op.value.clone()
            }
            (F::Txn, Value::Txn(steps)) => Value::Txn(self.txn(steps)),
            (f, value) => panic!("the store does not know {f} {value:?}"),
        };
        let done = op.ok(value);
        let is_timeless = op.f == F::Follow || (op.f == F::Txn && self.log.is_none());
        Some(if is_timeless { done } else { done.with_timestamp(self.clock) })
    }

    /// A transaction whose changes are kept.
    fn logged(&mut self, steps: &[MicroOp]) -> Vec<MicroOp> {
        let mut changes = Vec::new();
        for step in steps {
            let key = step.key();
            let before = self.registers.get(key).copied();
            let value = match step {
                MicroOp::Write { value, .. } => Some(*value),
                MicroOp::Add { delta, .. } => Some(before.unwrap_or(0) + delta),
                _ => None,
            };
            match value {
                Some(value) => self.registers.insert(key.to_owned(), value),
                None => self.registers.remove(key),
            };
            changes.push(Changed { key: key.to_owned(), value, before: Some(before) });
        }
        changes.sort_by(|a, b| a.key.cmp(&b.key));
        if let Some(log) = &mut self.log {
            log.transactions.push((self.clock, changes));
        }
        if !self.lately.is_empty() {
            self.lately.pop_front();
            self.lately.push_back((self.clock, self.registers.clone()));
        }
        steps.to_vec()
    }

    /// What a follower is told: with a scan first the rows, then what came since it was told last.
    fn follow(&mut self, name: &str, asked: &Value) -> Value {
        let Some(log) = &self.log else { panic!("no changes are kept") };
        let (_, following) = follow::followers()
            .into_iter()
            .find(|(other, _)| *other == name)
            .unwrap_or_else(|| panic!("no follower {name}"));
        let is_scan = following.scans && *asked != Value::Nil;
        let row = |(key, value): (&String, &i64)| Told::Row { key: key.clone(), value: *value };
        let mut told: Vec<Told> = if is_scan { self.registers.iter().map(row).collect() } else { Vec::new() };
        let place = self.followed.entry(name.to_owned()).or_default();
        if is_scan {
            *place = log.transactions.len();
        }
        told.extend(log.told(&following, *place, self.clock));
        *place = log.transactions.len();
        Value::Told(told)
    }

    fn txn(&mut self, steps: &[MicroOp]) -> Vec<MicroOp> {
        let mut done = Vec::new();
        for step in steps {
            match step {
                MicroOp::Append { key, value } => self.lists.entry(key.clone()).or_default().push(*value),
                MicroOp::Write { key, value } => drop(self.registers.insert(key.clone(), *value)),
                MicroOp::Add { .. } | MicroOp::Delete { .. } | MicroOp::Read { .. } => {}
            }
            done.push(match step {
                MicroOp::Read { key, .. } => match (self.lists.get(key), self.registers.get(key)) {
                    (Some(list), _) => MicroOp::read_list(key, list.clone()),
                    (None, value) => MicroOp::read_one(key, value.copied()),
                },
                other => other.clone(),
            });
        }
        done
    }
}

/// Makes a history of a workload.
pub fn generate(shape: &Shape) -> Vec<Op> {
    let mut world = World::new(*shape);
    if shape.workload == "bank" {
        let accounts = (0..5).map(|account| (account.to_string(), 20)).collect();
        world.alone(Op::invoke(0, F::Write, Value::Balances(accounts)));
    }
    for number in 0..shape.ops {
        let op = world.next_op();
        world.clients_step(Some(op));
        if world.store.log.is_some() && number % 50 == 49 {
            world.followers_step(number * 2 > shape.ops);
        }
    }
    while world.clients.iter().any(|client| !matches!(client, Client::Idle)) {
        world.clients_step(None);
    }
    if world.store.log.is_some() {
        world.followers_step(true);
    }
    for op in world.final_reads() {
        world.alone(op);
    }
    let mut ops = world.ops;
    for (index, op) in (0..).zip(&mut ops) {
        op.index = index;
        op.time_ns = index * 1_000;
    }
    ops
}

/// A history of these entries.
pub fn history(ops: Vec<Op>) -> History {
    History::new(ops).expect("the generator makes well-formed histories")
}

enum Client {
    Idle,
    /// Called, and not yet in effect.
    Called(Op),
    /// In effect, with the completion that is still to come.
    Done(Op),
}

struct World {
    shape: Shape,
    rng: SmallRng,
    store: Store,
    ops: Vec<Op>,
    clients: Vec<Client>,
    processes: Vec<u64>,
    next_process: u64,
    /// Operations whose clients have given up, and that may still take effect.
    late: Vec<Op>,
    counter: i64,
}

impl World {
    fn new(shape: Shape) -> Self {
        let mut store = Store::default();
        if shape.workload == "set" {
            store.lists.insert("s".to_owned(), Vec::new());
        }
        if ["changelog", "index"].contains(&shape.workload) {
            store.log = Some(follow::Log::default());
        }
        if shape.workload == "index" {
            store.lately = vec![(0, BTreeMap::new()); index::BEHIND].into();
        }
        World {
            shape,
            rng: SmallRng::seed_from_u64(shape.seed),
            store,
            ops: Vec::new(),
            clients: (0..shape.clients).map(|_| Client::Idle).collect(),
            processes: (1..=shape.clients as u64).collect(),
            next_process: shape.clients as u64 + 1,
            late: Vec::new(),
            counter: 0,
        }
    }

    /// One operation by process 0 while all others rest.
    fn alone(&mut self, op: Op) {
        let done = self.store.apply(&op).expect("nothing stands against it");
        self.ops.extend([op, done]);
    }

    /// Tells all followers what is new. One with a scan begins late.
    fn followers_step(&mut self, is_late: bool) {
        for (name, following) in follow::followers() {
            let is_there = self.shape.workload == "changelog" || name == "all";
            if is_there && (is_late || !following.scans) {
                let is_first = !self.store.followed.contains_key(name);
                self.alone(follow::invoke(name, &following, is_first));
            }
        }
    }

    /// Lets clients go on until one is free, which then calls.
    fn clients_step(&mut self, mut call: Option<Op>) {
        loop {
            if !self.late.is_empty() && self.rng.random_ratio(1, 20) {
                let place = self.rng.random_range(0..self.late.len());
                let op = self.late.swap_remove(place);
                self.store.apply(&op);
            }
            let place = self.rng.random_range(0..self.clients.len());
            match std::mem::replace(&mut self.clients[place], Client::Idle) {
                Client::Idle => {
                    if let Some(op) = call.take() {
                        let op = Op { process: self.processes[place], ..op };
                        self.ops.push(op.clone());
                        self.clients[place] = Client::Called(op);
                    }
                    return;
                }
                Client::Called(op) => self.clients[place] = self.take_effect(place, op),
                Client::Done(completion) => self.ops.push(completion),
            }
        }
    }

    fn take_effect(&mut self, place: usize, op: Op) -> Client {
        let lot = self.rng.random_range(0..1_000);
        if lot < self.shape.fail_per_mille {
            return Client::Done(op.fail("refused"));
        }
        if lot < self.shape.fail_per_mille + self.shape.info_per_mille {
            self.ops.push(op.info("timed out"));
            self.processes[place] = self.next_process;
            self.next_process += 1;
            self.late.push(op);
            return Client::Idle;
        }
        Client::Done(self.store.apply(&op).unwrap_or_else(|| op.fail("does not hold")))
    }

    fn key(&mut self, keys: i64) -> String {
        self.rng.random_range(0..keys).to_string()
    }

    /// Keys in use at a time; each is used for about 200 operations.
    fn moving_key(&mut self) -> String {
        let base = self.counter / 200;
        format!("k{}", base + self.rng.random_range(0..self.shape.keys))
    }

    fn next_op(&mut self) -> Op {
        self.counter += 1;
        let fresh = self.counter;
        let reads = self.rng.random_ratio(1, 2);
        match self.shape.workload {
            "register" => self.register_op(reads, fresh),
            "register-one-key" => {
                let op = self.register_op(reads, fresh);
                op.with_key("k")
            }
            "set" if self.rng.random_ratio(1, if self.shape.ops < 10_000 { 10 } else { 200 }) => {
                Op::invoke(0, F::Read, Value::Nil).with_key("s")
            }
            "set" => Op::invoke(0, F::Add, Value::Int(fresh)).with_key("s"),
            "counter" if reads => Op::invoke(0, F::Read, Value::Nil).with_key("c"),
            "counter" => {
                let delta = self.rng.random_range(1..5);
                Op::invoke(0, F::Add, Value::Int(delta)).with_key("c")
            }
            "bank" if reads => Op::invoke(0, F::Read, Value::Nil),
            "bank" => {
                let from = self.rng.random_range(0..5);
                let to = (from + self.rng.random_range(1..5)) % 5;
                let amount = self.rng.random_range(1..5);
                Op::invoke(
                    0,
                    F::Transfer,
                    Value::Transfer { from: from.to_string(), to: to.to_string(), amount },
                )
            }
            "monotonic" => {
                let key = self.key(3);
                Op::invoke(0, if reads { F::Read } else { F::Add }, Value::Nil).with_key(key)
            }
            "changelog" if self.rng.random_ratio(1, 10) => Op::invoke(0, F::Read, Value::Nil),
            "changelog" => self.change_op(fresh),
            "index" => index::op(&mut self.rng, fresh, self.store.clock),
            _ => self.txn_op(reads, fresh),
        }
    }

    fn register_op(&mut self, reads: bool, fresh: i64) -> Op {
        let key = self.moving_key();
        let op = if reads {
            Op::invoke(0, F::Read, Value::Nil)
        } else if self.rng.random_ratio(1, 3) {
            let name = if self.shape.workload == "register" { key.as_str() } else { "k" };
            let old = self.store.registers.get(name).copied();
            Op::invoke(0, F::Cas, Value::Cas { old, new: fresh })
        } else {
            Op::invoke(0, F::Write, Value::Int(fresh))
        };
        op.with_key(key)
    }

    /// Each value is written once, and each number added once.
    fn change_op(&mut self, fresh: i64) -> Op {
        let mut steps: Vec<MicroOp> = Vec::new();
        for step in 0..self.rng.random_range(1..4) {
            let (key, unique) = (self.rng.random_range(0..10), fresh * 10 + step);
            if steps.iter().any(|other| other.key() == format!("k{key}")) {
                continue;
            }
            steps.push(match (self.rng.random_range(0..4), key) {
                (0, _) => MicroOp::delete(format!("k{key}")),
                (_, 0..3) => MicroOp::add(format!("k{key}"), unique),
                _ => MicroOp::write(format!("k{key}"), unique),
            });
        }
        Op::invoke(0, F::Txn, Value::Txn(steps))
    }

    fn txn_op(&mut self, reads: bool, fresh: i64) -> Op {
        let steps = match self.shape.workload {
            "append" => (0..self.rng.random_range(1..5))
                .map(|step| {
                    let key = self.moving_key();
                    if self.rng.random_ratio(1, 2) {
                        MicroOp::read(key)
                    } else {
                        MicroOp::append(key, fresh * 10 + step)
                    }
                })
                .collect(),
            "long-fork" => {
                let group = fresh / 24;
                let names: Vec<String> = (0..4).map(|place| format!("g{group}-{place}")).collect();
                match fresh % 6 {
                    0 => vec![MicroOp::write(&names[(fresh / 6 % 4) as usize], 1)],
                    _ => names.into_iter().map(MicroOp::read).collect(),
                }
            }
            "write-skew" => {
                let pair = fresh / 20;
                let own = format!("p{pair}-{}", fresh % 2);
                let other = format!("p{pair}-{}", 1 - fresh % 2);
                let mut steps = vec![MicroOp::read(&own), MicroOp::read(&other)];
                if !reads {
                    steps.push(MicroOp::write(&own, fresh));
                }
                steps
            }
            other => panic!("no workload {other}"),
        };
        Op::invoke(0, F::Txn, Value::Txn(steps))
    }

    fn final_reads(&self) -> Vec<Op> {
        let read = |key: &String| Op::invoke(0, F::Read, Value::Nil).with_key(key);
        match self.shape.workload {
            "index" => index::closing(),
            "bank" | "changelog" => vec![Op::invoke(0, F::Read, Value::Nil)],
            "append" => {
                let txn = |key: &String| Op::invoke(0, F::Txn, Value::Txn(vec![MicroOp::read(key)]));
                self.store.lists.keys().map(txn).collect()
            }
            "set" => self.store.lists.keys().map(read).collect(),
            "long-fork" | "write-skew" => Vec::new(),
            _ => self.store.registers.keys().map(read).collect(),
        }
    }
}

/// What a transaction read under a key, if it is one element or none.
pub fn seen_one(step: &MicroOp) -> Option<(&str, Option<i64>)> {
    match step {
        MicroOp::Read { key, seen: Seen::One(value) } => Some((key, Some(*value))),
        MicroOp::Read { key, seen: Seen::Nothing } => Some((key, None)),
        _ => None,
    }
}
