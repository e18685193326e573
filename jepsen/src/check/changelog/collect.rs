//! What clients made, and what followers were told.

use std::collections::{BTreeMap, HashMap};

use super::{Findings, SHARED};
use crate::check::show;
use crate::history::{Call, F, Following, History, Kind, MicroOp, Told, Value};

/// What a transaction does to a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Write {
    Put(i64),
    Add(i64),
    Delete,
}

/// A transaction that a client made, or tried to.
pub(super) struct Made<'a> {
    pub call: Call<'a>,
    /// By key. Of an acknowledged one those of the answer: a removal of what is not there changes nothing.
    pub writes: BTreeMap<&'a str, Write>,
}

impl Made<'_> {
    /// Its commit timestamp, where it was acknowledged with one.
    pub fn acknowledged_at(&self) -> Option<u64> {
        self.call.timestamp().filter(|_| self.call.is_ok())
    }
}

/// All rows at a timestamp.
pub(super) struct Snapshot<'a> {
    pub call: Call<'a>,
    pub at: u64,
    pub rows: &'a BTreeMap<String, i64>,
}

/// What one follower asked for and was told.
pub(super) struct Follower<'a> {
    pub name: &'a str,
    process: u64,
    pub following: Following,
    pub told: Vec<(Call<'a>, &'a Told)>,
}

impl Follower<'_> {
    /// Whether it follows all keys, from the start on.
    pub fn is_whole(&self) -> bool {
        !self.following.scans && self.following.ranges.is_empty()
    }
}

/// Everything, with indexes by which a transaction is found again in what was told.
#[derive(Default)]
pub(super) struct Collected<'a> {
    pub made: Vec<Made<'a>>,
    pub reads: Vec<Snapshot<'a>>,
    pub followers: Vec<Follower<'a>>,
    /// Places of acknowledged transactions.
    pub by_timestamp: BTreeMap<u64, usize>,
    by_value: HashMap<(&'a str, i64), usize>,
    by_delta: HashMap<(&'a str, i64), usize>,
    /// Transactions that only remove, by their keys: these may be several.
    removals: HashMap<Vec<&'a str>, Vec<usize>>,
}

impl<'a> Collected<'a> {
    pub fn of(history: &'a History, findings: &mut Findings) -> Self {
        let mut collected = Self::default();
        for call in history.calls() {
            match (call.f(), call.argument()) {
                (F::Txn, Value::Txn(steps)) => collected.transaction(call, steps, findings),
                (F::Read, _) => {
                    if let (Some(Value::Balances(rows)), Some(at)) = (call.answer(), call.timestamp()) {
                        collected.reads.push(Snapshot { call, at, rows });
                    }
                }
                (F::Follow, argument) => collected.follow(call, argument),
                _ => {}
            }
        }
        collected.reads.sort_by_key(|read| read.at);
        // Who of them was heard of first is chance.
        collected.followers.sort_by_key(|follower| follower.process);
        collected
    }

    fn transaction(&mut self, call: Call<'a>, steps: &'a [MicroOp], findings: &mut Findings) {
        let place = self.made.len();
        let asked = writes(steps);
        for (key, write) in &asked {
            let other = match write {
                Write::Put(value) => self.by_value.insert((key, *value), place),
                Write::Add(delta) => self.by_delta.insert((key, *delta), place),
                Write::Delete => None,
            };
            if let Some(other) = other {
                findings.doubt(format!(
                    "Two transactions do the same to {key}, so they can't be told apart: {} and {}.",
                    show::call(&self.made[other].call),
                    show::call(&call)
                ));
            }
        }
        if asked.values().all(|write| *write == Write::Delete) {
            self.removals.entry(asked.keys().copied().collect()).or_default().push(place);
        }
        let writes = match call.answer() {
            Some(Value::Txn(done)) => writes(done),
            _ => asked,
        };
        let made = Made { call, writes };
        if let Some(at) = made.acknowledged_at().filter(|_| !made.writes.is_empty())
            && let Some(other) = self.by_timestamp.insert(at, place)
        {
            let other = self.made[other].call;
            findings.anomaly(SHARED, || {
                let text = format!("{}\n{}", show::call(&other), show::call(&call));
                ([other.indexes(), call.indexes()].concat(), text)
            });
        }
        self.made.push(made);
    }

    fn follow(&mut self, call: Call<'a>, argument: &Value) {
        let known = self.followers.iter().position(|follower| follower.name == call.key());
        let place = known.unwrap_or_else(|| {
            let following = match argument {
                Value::Follow(following) => following.clone(),
                _ => Following::default(),
            };
            self.followers.push(Follower {
                name: call.key(),
                process: call.invoke.process,
                following,
                told: Vec::new(),
            });
            self.followers.len() - 1
        });
        if let Some(Value::Told(told)) = call.answer() {
            self.followers[place].told.extend(told.iter().map(|told| (call, told)));
        }
    }

    /// The place of the transaction that changed a key so, in which it held `before` until then.
    pub fn by_change(&self, key: &str, value: i64, before: Option<i64>) -> Option<usize> {
        let by_value = self.by_value.get(&(key, value));
        let delta = value.checked_sub(before.unwrap_or(0));
        by_value.or_else(|| delta.and_then(|delta| self.by_delta.get(&(key, delta)))).copied()
    }

    /// Places of transactions that remove just these keys, in the order of their beginnings.
    pub fn removals(&self, keys: &[&'a str]) -> &[usize] {
        self.removals.get(keys).map_or(&[], Vec::as_slice)
    }

    /// How many transactions ended so.
    pub fn count(&self, outcome: Kind) -> usize {
        self.made.iter().filter(|made| made.call.outcome() == outcome).count()
    }
}

fn writes(steps: &[MicroOp]) -> BTreeMap<&str, Write> {
    let write = |step: &MicroOp| match step {
        MicroOp::Write { value, .. } => Some(Write::Put(*value)),
        MicroOp::Add { delta, .. } => Some(Write::Add(*delta)),
        MicroOp::Delete { .. } => Some(Write::Delete),
        MicroOp::Append { .. } | MicroOp::Read { .. } => None,
    };
    steps.iter().filter_map(|step| Some((step.key(), write(step)?))).collect()
}
