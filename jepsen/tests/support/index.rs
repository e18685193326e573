//! Requests of indexes, and how the simple store answers them.

use std::collections::BTreeMap;

use kvorum_jepsen::check::{BY_TEAM, COUNT_BY_TEAM, SUM_BY_TEAM, TEAMS, team};
use kvorum_jepsen::history::{Dump, F, MicroOp, Op, Query, Value};
use rand::Rng;
use rand::rngs::SmallRng;

/// So many transactions an index may be behind.
pub const BEHIND: usize = 4;

/// A request. One that is to be of a timestamp at least is to be of `now`.
pub fn op(rng: &mut SmallRng, fresh: i64, now: u64) -> Op {
    let index = [BY_TEAM, COUNT_BY_TEAM, SUM_BY_TEAM][rng.random_range(0..3)];
    match rng.random_range(0..100) {
        0..50 => {
            let mut steps: Vec<MicroOp> = Vec::new();
            for step in 0..rng.random_range(1..4) {
                let key = format!("k{}", rng.random_range(0..10));
                if steps.iter().any(|other| other.key() == key) {
                    continue;
                }
                let value = (fresh * 3 + step) * TEAMS + rng.random_range(0..TEAMS);
                let is_removal = rng.random_ratio(1, 4);
                steps.push(if is_removal { MicroOp::delete(key) } else { MicroOp::write(key, value) });
            }
            Op::invoke(0, F::Txn, Value::Txn(steps))
        }
        50..96 => {
            let group = rng.random_ratio(1, 2).then(|| rng.random_range(1..TEAMS));
            let at_least = rng.random_ratio(1, 2).then_some(now);
            Op::invoke(0, F::Query, Value::Query(Query { group, at_least })).with_key(index)
        }
        96..98 => Op::invoke(0, F::Dump, Value::Nil).with_key(index),
        _ => Op::invoke(0, F::Read, Value::Nil),
    }
}

/// What is read at the end.
pub fn closing() -> Vec<Op> {
    let indexes = [BY_TEAM, COUNT_BY_TEAM, SUM_BY_TEAM].into_iter();
    indexes.map(|index| Op::invoke(0, F::Dump, Value::Nil).with_key(index)).collect()
}

/// The answer: as things are `now`, or where that is enough, were lately.
pub fn answer(op: &Op, now: u64, lately: &(u64, BTreeMap<String, i64>), rows: &BTreeMap<String, i64>) -> Op {
    let index = op.key.as_deref().expect("an index is named");
    if let Value::Query(Query { group, at_least }) = &op.value {
        let (at, rows) = match at_least {
            Some(_) => (now, rows),
            None => (lately.0, &lately.1),
        };
        return op.ok(Value::Found(found(index, *group, rows))).with_timestamp(at);
    }
    let stored: BTreeMap<String, String> =
        found(index, None, rows).into_iter().map(|(name, number)| (name, number.to_string())).collect();
    let dump = Dump { rows: rows.clone(), stored: stored.clone(), computed: stored };
    op.ok(Value::Dump(dump)).with_timestamp(now)
}

/// What an index says of rows, in its order.
fn found(index: &str, group: Option<i64>, rows: &BTreeMap<String, i64>) -> Vec<(String, i64)> {
    let mut found = Vec::new();
    for asked in (1..TEAMS).filter(|team| group.is_none_or(|group| group == *team)) {
        let mut of_team: Vec<(&String, i64)> = rows
            .iter()
            .map(|(key, value)| (key, *value))
            .filter(|(_, value)| team(*value) == Some(asked))
            .collect();
        of_team.sort_by_key(|(_, value)| *value);
        match index {
            BY_TEAM => found.extend(of_team.into_iter().map(|(key, value)| (key.clone(), value))),
            _ if of_team.is_empty() => {}
            COUNT_BY_TEAM => found.push((asked.to_string(), of_team.len() as i64)),
            _ => found.push((asked.to_string(), of_team.iter().map(|(_, value)| value).sum())),
        }
    }
    found
}

/// What can be done to an answer of an index, and the anomaly that shows it.
pub const HARMS: [(&str, &str); 6] = [
    ("as it was before a write", "missed-own-write"),
    ("a result left out", "wrong-answer"),
    ("a result twice", "wrong-answer"),
    ("two results swapped", "wrong-answer"),
    ("of an older watermark", "stale-watermark"),
    ("a stored value changed", "index-differs"),
];

/// A copy in which one answer is changed so, the first after so many that could be; `None` where there is none.
pub fn harm(ops: &[Op], harm: &str, skip: usize) -> Option<Vec<Op>> {
    let mut ops = ops.to_vec();
    let harmed = (0..ops.len()).filter_map(|place| Some((place, harmed(&ops, place, harm)?))).nth(skip)?;
    ops[harmed.0] = harmed.1;
    Some(ops)
}

fn harmed(ops: &[Op], place: usize, harm: &str) -> Option<Op> {
    let mut op = ops[place].clone();
    let invoke = ops[..place].iter().rfind(|other| other.process == op.process && other.f == op.f);
    let asked = match (invoke.map(|invoke| &invoke.value), &op.value) {
        (Some(Value::Query(query)), Value::Found(_)) => Some(query),
        (_, Value::Dump(_)) => None,
        _ => return None,
    };
    match (&mut op.value, harm) {
        (Value::Found(found), "as it was before a write") => {
            let (of, at_least) = (asked?, asked?.at_least?);
            // The last transaction that was acknowledged before what it was to be of: it must show in this answer.
            let of_index = |other: &&Op| matches!(other.value, Value::Found(_)) && other.key == op.key;
            let older = ops[..place].iter().filter(of_index).rfind(|other| {
                let begun = ops[..place].iter().rfind(|begun| {
                    begun.process == other.process && begun.index < other.index && begun.f == F::Query
                });
                let is_alike = matches!(begun.map(|begun| &begun.value), Some(Value::Query(query)) if query.group == of.group);
                is_alike && other.timestamp < Some(at_least) && other.value != ops[place].value
            })?;
            let Value::Found(before) = &older.value else { return None };
            // What changed after it was asked for may not be missed, so that this is no proof: all of it must be before.
            let changed = ops[..place].iter().any(|other| {
                other.f == F::Txn && other.timestamp > Some(at_least) && other.timestamp <= op.timestamp
            });
            if changed {
                return None;
            }
            found.clone_from(before);
        }
        // Of one row: a row that nobody was told of may be one that was not yet there.
        (Value::Found(found), "a result left out") if asked?.at_least.is_none() && !found.is_empty() => {
            found.remove(0);
        }
        (Value::Found(found), "a result twice") => found.push(found.last()?.clone()),
        (Value::Found(found), "two results swapped") if found.len() > 1 => found.swap(0, 1),
        (Value::Found(_), "of an older watermark") => op.timestamp = asked?.at_least?.checked_sub(1),
        (Value::Dump(dump), "a stored value changed") => dump.stored.values_mut().next()?.push('0'),
        _ => return None,
    }
    Some(op)
}
