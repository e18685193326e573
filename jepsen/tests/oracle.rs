//! Small histories, most of them wrong, judged as the plainest possible search judges them: by trying every order.

mod support;

use std::collections::BTreeMap;

use kvorum_jepsen::check::{self, Options, Valid, Verdict};
use kvorum_jepsen::history::{Call, F, History, Kind, MicroOp, Op, Seen, Value};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use support::{Shape, generate, history};

/// What a store holds: lists and registers under their keys.
type State = BTreeMap<String, Vec<i64>>;

/// Whether the calls have an order in which each answer is right: those that are over before others begin come
/// before them, failed ones do not come at all, and those with an unknown outcome may come.
fn has_order(calls: &[Call<'_>]) -> bool {
    let calls: Vec<&Call<'_>> = calls.iter().filter(|call| call.outcome() != Kind::Fail).collect();
    place_next(&calls, &mut vec![false; calls.len()], &State::new())
}

fn place_next(calls: &[&Call<'_>], placed: &mut Vec<bool>, state: &State) -> bool {
    if calls.iter().zip(&*placed).all(|(call, placed)| *placed || !call.is_ok()) {
        return true;
    }
    let waiting =
        |placed: &[bool]| -> Vec<usize> { (0..calls.len()).filter(|place| !placed[*place]).collect() };
    let first_end = waiting(placed).into_iter().map(|place| calls[place].end).min().unwrap_or(usize::MAX);
    for place in waiting(placed) {
        if calls[place].start > first_end {
            continue;
        }
        if let Some(after) = apply(calls[place], state) {
            placed[place] = true;
            if place_next(calls, placed, &after) {
                return true;
            }
            placed[place] = false;
        }
    }
    false
}

/// The state after a call, `None` if its answer is wrong in this one.
fn apply(call: &Call<'_>, state: &State) -> Option<State> {
    let mut after = state.clone();
    let holds = |state: &State, key: &str| state.get(key).cloned().unwrap_or_default();
    match (call.f(), call.argument()) {
        (F::Read, _) => {
            let wanted: Vec<i64> = match call.answer() {
                Some(Value::Int(value)) => vec![*value],
                Some(Value::List(list)) => list.clone(),
                _ => vec![],
            };
            return (!call.is_ok() || holds(state, call.key()) == wanted).then_some(after);
        }
        (F::Add, Value::Int(value)) => {
            let set = after.entry(call.key().to_owned()).or_default();
            set.push(*value);
            set.sort_unstable();
        }
        (F::Write, Value::Int(value)) => drop(after.insert(call.key().to_owned(), vec![*value])),
        (F::Cas, Value::Cas { old, new }) => {
            if holds(state, call.key()) == old.iter().copied().collect::<Vec<_>>() {
                after.insert(call.key().to_owned(), vec![*new]);
            } else if call.is_ok() {
                return None;
            }
        }
        (F::Txn, argument) => {
            let Value::Txn(steps) = call.answer().unwrap_or(argument) else { panic!("{argument:?}") };
            for step in steps {
                match step {
                    MicroOp::Append { key, value } => after.entry(key.clone()).or_default().push(*value),
                    MicroOp::Write { key, value } => drop(after.insert(key.clone(), vec![*value])),
                    MicroOp::Read { key, seen } if call.is_ok() => {
                        let wanted = match seen {
                            Seen::Nothing => vec![],
                            Seen::One(value) => vec![*value],
                            Seen::List(list) => list.clone(),
                        };
                        if holds(&after, key) != wanted {
                            return None;
                        }
                    }
                    MicroOp::Add { .. } | MicroOp::Delete { .. } | MicroOp::Read { .. } => {}
                }
            }
        }
        (f, value) => panic!("{f} {value:?}"),
    }
    Some(after)
}

fn judge(workload: &str, history: &History) -> Verdict {
    let options = Options { least_ok: 0, ..Options::default() };
    check::with_options(workload, options).expect("a checker").check(history)
}

/// Compares the checker with the search for an order on many histories, and wants enough of both verdicts.
fn compare(workload: &str, histories: impl Iterator<Item = History>, exact: bool) {
    let mut verdicts = BTreeMap::new();
    for (number, history) in histories.enumerate() {
        let calls: Vec<Call<'_>> = history.calls().collect();
        let right = has_order(&calls);
        let verdict = judge(workload, &history);
        let refused = verdict.valid == Valid::Invalid;
        let agrees = if exact { refused != right } else { !(refused && right) };
        let entries: Vec<String> =
            history.ops().iter().map(|op| format!("{:?} {} {:?}", op.kind, op.process, op.value)).collect();
        assert!(
            agrees,
            "{workload} {number}: an order exists: {right}\n{verdict:#?}\n{}",
            entries.join("\n")
        );
        *verdicts.entry(refused).or_insert(0) += 1;
    }
    assert!(verdicts.values().all(|count| *count > 100) && verdicts.len() == 2, "{workload}: {verdicts:?}");
}

/// Operations on one register by three clients, with values and answers out of a hat.
fn random_registers(seed: u64) -> History {
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut ops: Vec<Op> = Vec::new();
    let mut open: Vec<Option<Op>> = vec![None; 3];
    let mut processes = [0, 1, 2];
    let unique = rng.random_ratio(1, 2);
    for step in 0..rng.random_range(8..18) {
        let client = rng.random_range(0..3);
        let value = rng.random_range(1..4);
        let seen = (value < 3).then_some(value);
        let Some(call) = open[client].take() else {
            let new = if unique { step / 2 + 1 } else { value };
            let (f, argument) = match rng.random_range(0..4) {
                0 | 1 => (F::Read, Value::Nil),
                2 => (F::Write, Value::Int(new)),
                _ => (F::Cas, Value::Cas { old: seen, new }),
            };
            let call = Op::invoke(processes[client], f, argument).with_key("k");
            ops.push(call.clone());
            open[client] = Some(call);
            continue;
        };
        ops.push(match rng.random_range(0..8) {
            0 => {
                processes[client] += 3;
                call.info("lost")
            }
            1 => call.fail("refused"),
            _ if call.f == F::Read => {
                call.ok(Value::register(rng.random_ratio(3, 4).then(|| rng.random_range(1..7))))
            }
            _ => call.ok(call.value.clone()),
        });
    }
    number(&mut ops);
    history(ops)
}

fn number(ops: &mut [Op]) {
    (0..).zip(ops).for_each(|(index, op)| op.index = index);
}

#[test]
fn registers_are_judged_as_by_trying_every_order() {
    compare("register", (0..30_000).map(random_registers), true);
}

#[test]
fn generated_registers_with_a_random_answer_are_judged_so_too() {
    let histories = (0..5_000).map(|seed| {
        let shape = Shape { clients: 4, info_per_mille: 150, ..Shape::new("register-one-key", seed, 10) };
        let mut rng = SmallRng::seed_from_u64(seed);
        let mut ops = generate(&shape);
        let reads: Vec<usize> =
            (0..ops.len()).filter(|at| ops[*at].f == F::Read && ops[*at].kind == Kind::Ok).collect();
        let place = reads[rng.random_range(0..reads.len())];
        ops[place].value = Value::register(rng.random_ratio(4, 5).then(|| rng.random_range(1..11)));
        history(ops)
    });
    compare("register", histories, true);
}

/// Small transactions, in which some reads are changed. With a read of every list at the end all versions are
/// known, so the checker must find exactly what is wrong.
fn random_txns(workload: &'static str, seed: u64) -> History {
    let info_per_mille = if workload == "write-skew" { 250 } else { 100 };
    let shape = Shape { clients: 3, info_per_mille, fail_per_mille: 100, ..Shape::new(workload, seed, 6) };
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut ops = generate(&shape);
    for op in ops.iter_mut().filter(|op| op.kind == Kind::Ok) {
        let Value::Txn(steps) = &mut op.value else { continue };
        for step in steps {
            let MicroOp::Read { seen, .. } = step else { continue };
            if !rng.random_ratio(1, 8) {
                continue;
            }
            match seen {
                Seen::List(list) if rng.random_ratio(1, 2) => {
                    list.pop();
                }
                Seen::List(list) if list.len() > 1 => list.swap(0, 1),
                Seen::List(list) => list.push(rng.random_range(1..7) * 10),
                Seen::One(_) => *seen = Seen::Nothing,
                Seen::Nothing if workload == "append" => {
                    *seen = Seen::List(vec![rng.random_range(1..7) * 10])
                }
                Seen::Nothing => *seen = Seen::One(rng.random_range(1..7)),
            }
        }
    }
    history(ops)
}

/// What three clients do to a group of keys of which each is written once: `Some` writes one, `None` reads all.
/// Reads see any of those whose writes have begun, mostly what a store could show.
fn random_group(
    seed: u64,
    invoke: impl Fn(Option<i64>) -> Op,
    complete: impl Fn(&Op, Option<Vec<i64>>) -> Op,
) -> History {
    let mut rng = SmallRng::seed_from_u64(seed);
    let (mut ops, mut begun): (Vec<Op>, Vec<i64>) = (Vec::new(), Vec::new());
    let mut open: Vec<Option<(Op, bool)>> = vec![None; 3];
    let mut processes = [0, 1, 2];
    for _ in 0..rng.random_range(6..16) {
        let client = rng.random_range(0..3);
        let Some((call, reads)) = open[client].take() else {
            let reads = begun.len() == 4 || rng.random_ratio(1, 2);
            let written = (!reads).then_some(begun.len() as i64 + 1);
            begun.extend(written);
            let call = Op { process: processes[client], ..invoke(written) };
            ops.push(call.clone());
            open[client] = Some((call, reads));
            continue;
        };
        ops.push(match rng.random_range(0..12) {
            0 => {
                processes[client] += 3;
                call.info("lost")
            }
            1 => call.fail("refused"),
            _ if reads => {
                let lacks = rng.random_range(0..4);
                let seen = begun.iter().copied().filter(|_| rng.random_range(0..4) >= lacks);
                complete(&call, Some(seen.collect()))
            }
            _ => complete(&call, None),
        });
    }
    number(&mut ops);
    history(ops)
}

#[test]
fn sets_are_judged_as_by_trying_every_order() {
    let invoke = |written: Option<i64>| match written {
        Some(value) => Op::invoke(0, F::Add, Value::Int(value)).with_key("s"),
        None => Op::invoke(0, F::Read, Value::Nil).with_key("s"),
    };
    let complete = |call: &Op, seen: Option<Vec<i64>>| call.ok(seen.map_or(call.value.clone(), Value::List));
    compare("set", (0..30_000).map(|seed| random_group(seed, invoke, complete)), true);
}

#[test]
fn groups_are_judged_as_by_trying_every_order() {
    let key = |value: i64| format!("k{value}");
    let invoke = |written: Option<i64>| {
        let steps = match written {
            Some(value) => vec![MicroOp::write(key(value), value)],
            None => (1..=4).map(|value| MicroOp::read(key(value))).collect(),
        };
        Op::invoke(0, F::Txn, Value::Txn(steps))
    };
    let complete = |call: &Op, seen: Option<Vec<i64>>| {
        let Some(seen) = seen else { return call.ok(call.value.clone()) };
        let read = |value: i64| MicroOp::read_one(key(value), seen.contains(&value).then_some(value));
        call.ok(Value::Txn((1..=4).map(read).collect()))
    };
    compare("long-fork", (0..30_000).map(|seed| random_group(seed, invoke, complete)), true);
}

#[test]
fn lists_are_judged_as_by_trying_every_order() {
    compare("append", (0..20_000).map(|seed| random_txns("append", seed)), true);
}

/// Whether the order of all versions of each key follows from what is known: each write tells what it replaced, or is
/// the only one of its key that does not.
fn has_known_versions(history: &History) -> bool {
    let mut unknown: BTreeMap<String, u32> = BTreeMap::new();
    for call in history.calls().filter(|call| call.outcome() == Kind::Info) {
        let Value::Txn(steps) = call.argument() else { continue };
        for step in steps {
            if let MicroOp::Write { key, .. } = step {
                *unknown.entry(key.clone()).or_default() += 1;
            }
        }
    }
    unknown.values().all(|count| *count < 2)
}

#[test]
fn registers_of_transactions_are_judged_as_by_trying_every_order() {
    let histories = (0..30_000).map(|seed| random_txns("write-skew", seed)).filter(has_known_versions);
    compare("write-skew", histories, true);
}

#[test]
fn registers_of_transactions_are_refused_only_if_there_is_no_order() {
    compare("write-skew", (30_000..40_000).map(|seed| random_txns("write-skew", seed)), false);
}
