//! The transactions of a history, and who appended what.

use std::collections::HashMap;

use crate::check::show;
use crate::check::verdict::Findings;
use crate::history::{Call, F, History, Kind, MicroOp, Seen, Value};

/// A step of a transaction, its key numbered.
#[derive(Clone, Copy, Debug)]
pub(super) enum Step<'a> {
    Append { key: u32, value: i64 },
    Read { key: u32, list: &'a [i64] },
}

/// One transaction.
#[derive(Debug)]
pub(super) struct Txn<'a> {
    pub call: Call<'a>,
    /// With what the reads saw if it succeeded; else the appends alone.
    pub steps: Vec<Step<'a>>,
}

impl Txn<'_> {
    pub fn is_ok(&self) -> bool {
        self.call.is_ok()
    }

    pub fn failed(&self) -> bool {
        self.call.outcome() == Kind::Fail
    }

    pub fn appends_something(&self) -> bool {
        self.steps.iter().any(|step| matches!(step, Step::Append { .. }))
    }

    pub fn sees_something(&self) -> bool {
        self.steps.iter().any(|step| matches!(step, Step::Read { list, .. } if !list.is_empty()))
    }

    /// What it appends to each key, in order.
    pub fn appends(&self) -> impl Iterator<Item = (u32, i64)> {
        self.steps.iter().filter_map(|step| match step {
            Step::Append { key, value } => Some((*key, *value)),
            Step::Read { .. } => None,
        })
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
    /// Who appended a value to a key: a position in `all`.
    pub writers: HashMap<(u32, i64), usize>,
}

impl<'a> Txns<'a> {
    pub fn new(history: &'a History, findings: &mut Findings) -> Self {
        let mut txns =
            Txns { all: Vec::new(), committed: Vec::new(), keys: Vec::new(), writers: HashMap::new() };
        let mut numbers: HashMap<&str, u32> = HashMap::new();
        for call in history.calls().filter(|call| call.f() == F::Txn) {
            let value = call.answer().filter(|answer| **answer != Value::Nil).unwrap_or(call.argument());
            let Value::Txn(steps) = value else { continue };
            let mut number = |key: &'a str| {
                *numbers.entry(key).or_insert_with(|| {
                    txns.keys.push(key);
                    (txns.keys.len() - 1) as u32
                })
            };
            let steps = steps
                .iter()
                .filter_map(|step| match step {
                    MicroOp::Append { key, value } => Some(Step::Append { key: number(key), value: *value }),
                    MicroOp::Read { key, seen: Seen::List(list) } if call.is_ok() => {
                        Some(Step::Read { key: number(key), list })
                    }
                    MicroOp::Read { key, seen: Seen::Nothing } if call.is_ok() => {
                        Some(Step::Read { key: number(key), list: &[] })
                    }
                    _ => None,
                })
                .collect();
            txns.all.push(Txn { call, steps });
        }
        txns.find_writers(findings);
        txns.find_committed();
        txns
    }

    fn find_writers(&mut self, findings: &mut Findings) {
        for (place, txn) in self.all.iter().enumerate() {
            for (key, value) in txn.appends() {
                if let Some(other) = self.writers.insert((key, value), place) {
                    findings.doubt(format!(
                        "Element {value} is appended to {} twice, so nothing can be said about it: {} and {}.",
                        self.keys[key as usize],
                        show::call(&self.all[other].call),
                        show::call(&txn.call)
                    ));
                }
            }
        }
    }

    fn find_committed(&mut self) {
        let mut seen = vec![false; self.all.len()];
        for txn in &self.all {
            for step in &txn.steps {
                let Step::Read { key, list } = step else { continue };
                for value in *list {
                    if let Some(writer) = self.writers.get(&(*key, *value)) {
                        seen[*writer] = true;
                    }
                }
            }
        }
        let took_effect = |place: &usize| {
            let txn = &self.all[*place];
            txn.is_ok() || (!txn.failed() && seen[*place])
        };
        self.committed = (0..self.all.len()).filter(took_effect).collect();
    }
}
