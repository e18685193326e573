//! The transactions of a history over registers.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::show;
use crate::check::verdict::Findings;
use crate::history::{Call, F, History, Kind, MicroOp, Seen, Value};

/// A step of a transaction.
#[derive(Clone, Copy, Debug)]
pub(super) enum Step<'a> {
    Read { key: &'a str, value: Option<i64> },
    Write { key: &'a str, value: i64 },
}

/// One transaction.
#[derive(Debug)]
pub(super) struct Txn<'a> {
    pub call: Call<'a>,
    /// With what the reads saw if it succeeded; else the writes alone.
    pub steps: Vec<Step<'a>>,
}

impl<'a> Txn<'a> {
    fn new(call: Call<'a>) -> Option<Self> {
        let value = call.answer().filter(|answer| **answer != Value::Nil).unwrap_or(call.argument());
        let Value::Txn(steps) = value else { return None };
        let steps = steps.iter().filter_map(|step| match step {
            MicroOp::Write { key, value } => Some(Step::Write { key, value: *value }),
            MicroOp::Read { key, seen: Seen::One(value) } if call.is_ok() => {
                Some(Step::Read { key, value: Some(*value) })
            }
            MicroOp::Read { key, seen: Seen::Nothing } if call.is_ok() => {
                Some(Step::Read { key, value: None })
            }
            _ => None,
        });
        Some(Txn { call, steps: steps.collect() })
    }

    pub fn failed(&self) -> bool {
        self.call.outcome() == Kind::Fail
    }

    /// What it leaves in a key.
    pub fn last_write(&self, key: &str) -> Option<i64> {
        self.steps.iter().rev().find_map(|step| match step {
            Step::Write { key: other, value } if *other == key => Some(*value),
            _ => None,
        })
    }

    /// For each key that it read before it wrote it: what it read, and what it left there if it wrote it.
    pub fn accesses(&self) -> Vec<(&'a str, Option<i64>, Option<i64>)> {
        let mut first: BTreeMap<&str, Option<Option<i64>>> = BTreeMap::new();
        for step in &self.steps {
            match step {
                Step::Read { key, value } => first.entry(key).or_insert(Some(*value)),
                Step::Write { key, .. } => first.entry(key).or_insert(None),
            };
        }
        first.into_iter().filter_map(|(key, read)| Some((key, read?, self.last_write(key)))).collect()
    }

    /// Whether it writes a key and reads one that it does not write.
    pub fn reads_more_than_it_writes(&self) -> bool {
        let accesses = self.accesses();
        accesses.iter().any(|(_, _, written)| written.is_some())
            && accesses.iter().any(|(_, _, written)| written.is_none())
    }
}

/// All transactions of a history.
#[derive(Debug)]
pub(super) struct Txns<'a> {
    /// In the order of invocations.
    pub all: Vec<Txn<'a>>,
    /// Positions in `all` of those that took effect: successful, or seen.
    pub committed: Vec<usize>,
    /// Names of keys by number.
    pub keys: Vec<&'a str>,
    /// Numbers of keys by name.
    pub numbers: HashMap<&'a str, u32>,
    /// Who wrote a value to a key: a position in `all`.
    pub writers: HashMap<(&'a str, i64), usize>,
}

impl<'a> Txns<'a> {
    pub fn new(history: &'a History, findings: &mut Findings) -> Self {
        let calls = history.calls().filter(|call| call.f() == F::Txn);
        let mut txns = Txns {
            all: calls.filter_map(Txn::new).collect(),
            committed: Vec::new(),
            keys: Vec::new(),
            numbers: HashMap::new(),
            writers: HashMap::new(),
        };
        let mut seen: HashSet<(&str, i64)> = HashSet::new();
        for (place, txn) in txns.all.iter().enumerate() {
            for step in &txn.steps {
                let (Step::Read { key, .. } | Step::Write { key, .. }) = *step;
                txns.numbers.entry(key).or_insert_with(|| {
                    txns.keys.push(key);
                    (txns.keys.len() - 1) as u32
                });
                match *step {
                    Step::Read { key, value } => seen.extend(value.map(|value| (key, value))),
                    Step::Write { key, value } => {
                        if let Some(other) = txns.writers.insert((key, value), place) {
                            findings.doubt(format!(
                                "Value {value} is written to {key} twice, so nothing can be said about it: {} and {}.",
                                show::call(&txns.all[other].call),
                                show::call(&txn.call)
                            ));
                        }
                    }
                }
            }
        }
        let mut committed: Vec<bool> = txns.all.iter().map(|txn| txn.call.is_ok()).collect();
        for writer in seen.iter().filter_map(|version| txns.writers.get(version)) {
            committed[*writer] |= !txns.all[*writer].failed();
        }
        txns.committed = (0..txns.all.len()).filter(|place| committed[*place]).collect();
        txns
    }
}
