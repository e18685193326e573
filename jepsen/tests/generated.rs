//! Histories of a correct store are accepted; with one read changed they are refused.

mod support;

use std::collections::HashMap;
use std::time::Instant;

use kvorum_jepsen::check::{self, Options, Valid, WORKLOADS};
use kvorum_jepsen::history::{Call, F, History, MicroOp, Op, Seen, Value, edn, jsonl};
use support::{Shape, generate, history, seen_one};

/// Those whose histories are generated here. Of sagas `saga.rs` has its own.
fn generated() -> impl Iterator<Item = &'static str> {
    WORKLOADS.into_iter().filter(|workload| *workload != "saga")
}

fn checker(workload: &str) -> Box<dyn check::Checker> {
    check::by_name(workload.trim_end_matches("-one-key")).expect("a checker for each workload")
}

#[test]
fn histories_of_a_correct_store_are_valid() {
    for workload in generated().chain(["register-one-key"]) {
        for seed in 0..20 {
            let shape = Shape { clients: 2 + seed as usize, ..Shape::new(workload, seed, 1_500) };
            let verdict = checker(workload).check(&history(generate(&shape)));
            assert_eq!(verdict.valid, Valid::Valid, "{workload} of seed {seed}: {verdict:#?}");
        }
    }
}

#[test]
fn one_changed_read_is_refused() {
    for workload in generated() {
        for seed in 0..20 {
            let shape = Shape { clients: 2 + seed as usize, ..Shape::new(workload, seed, 1_500) };
            let good = history(generate(&shape));
            let bad = corrupt(workload, &good, seed).expect("some read can be changed");
            let verdict = checker(workload).check(&history(bad));
            assert_eq!(verdict.valid, Valid::Invalid, "{workload} of seed {seed}: {verdict:#?}");
        }
    }
}

#[test]
fn histories_that_show_too_little_prove_nothing() {
    for workload in generated() {
        let empty = checker(workload).check(&History::default());
        assert_eq!(empty.valid, Valid::Unknown, "{workload}");
        assert!(empty.notes[0].contains("empty"), "{workload}: {:?}", empty.notes);
        let shape = Shape { fail_per_mille: 1_000, ..Shape::new(workload, 1, 500) };
        let failed = checker(workload).check(&history(generate(&shape)));
        assert_eq!(failed.valid, Valid::Unknown, "{workload}: {failed:#?}");
    }
}

#[test]
fn a_search_without_room_says_so() {
    let shape = Shape::new("register-one-key", 7, 1_500);
    let options = Options { max_states: 100, ..Options::default() };
    let verdict =
        check::with_options("register", options).expect("a checker").check(&history(generate(&shape)));
    assert_eq!(verdict.valid, Valid::Unknown);
    assert!(verdict.notes[0].contains("100 states"), "{:?}", verdict.notes);
}

#[test]
fn a_history_is_judged_alike_from_both_files() {
    for workload in generated() {
        let ops = generate(&Shape::new(workload, 3, 300));
        let (mut json, mut text) = (Vec::new(), Vec::new());
        for op in &ops {
            jsonl::write_op(&mut json, op).expect("memory takes it");
            edn::write_op(&mut text, op).expect("memory takes it");
        }
        let json = jsonl::read(json.as_slice()).expect("a history");
        let text = edn::read(text.as_slice()).expect("a history");
        assert_eq!(json.ops(), ops, "{workload}");
        assert_eq!(text.ops(), ops, "{workload}");
        assert_eq!(checker(workload).check(&json), checker(workload).check(&history(ops)), "{workload}");
    }
}

/// Prints times for people too: `cargo test --package kvorum-jepsen --test generated -- --nocapture large hundred`.
#[test]
fn a_hundred_thousand_operations_are_judged_right() {
    for workload in generated().chain(["register-one-key"]) {
        for clients in [10, 50] {
            let shape = Shape { clients, ..Shape::new(workload, 42, 100_000) };
            let good = history(generate(&shape));
            let began = Instant::now();
            let verdict = checker(workload).check(&good);
            let good_time = began.elapsed();
            assert_eq!(
                verdict.valid,
                Valid::Valid,
                "{workload}: {:?} {:?}",
                verdict.notes,
                verdict.anomalies
            );
            let name = workload.trim_end_matches("-one-key");
            let bad = history(corrupt(name, &good, 42).expect("some read can be changed"));
            let began = Instant::now();
            let refused = checker(workload).check(&bad);
            println!(
                "{workload:18} {clients:3} clients {:7} entries: valid in {:.2} s, {:?} in {:.2} s; {:?}",
                good.ops().len(),
                good_time.as_secs_f64(),
                refused.valid,
                began.elapsed().as_secs_f64(),
                verdict.stats.get("states")
            );
            assert_eq!(refused.valid, Valid::Invalid, "{workload}: {:?}", refused.notes);
        }
    }
}

/// The hardest large histories: a store that forgets the last append in a tenth of its reads, and clients
/// of one register of whom a third get no answer.
#[test]
fn large_histories_that_are_hard_are_judged_right() {
    let mut ops = generate(&Shape { clients: 50, ..Shape::new("append", 42, 100_000) });
    for op in ops.iter_mut().filter(|op| op.index % 10 == 0) {
        let Value::Txn(steps) = &mut op.value else { continue };
        for step in steps {
            if let MicroOp::Read { seen: Seen::List(list), .. } = step {
                list.pop();
            }
        }
    }
    let began = Instant::now();
    let verdict = checker("append").check(&history(ops));
    println!(
        "append, forgetful: {:?} in {:.2} s; {:?}",
        verdict.valid,
        began.elapsed().as_secs_f64(),
        verdict.stats
    );
    assert_eq!(verdict.valid, Valid::Invalid);
    for clients in [10, 50, 200] {
        let shape = Shape { clients, info_per_mille: 300, ..Shape::new("register-one-key", 42, 100_000) };
        let good = history(generate(&shape));
        let bad = history(corrupt("register", &good, 42).expect("some read can be changed"));
        let [good, bad] = [good, bad].map(|history| {
            let began = Instant::now();
            let verdict = checker("register").check(&history);
            let time = began.elapsed().as_secs_f64();
            println!("register, {clients} clients: {:?} in {time:.2} s; {:?}", verdict.valid, verdict.stats);
            verdict.valid
        });
        // A search may give up at its bounds, but these it must decide.
        assert_eq!(good, Valid::Valid, "{clients} clients");
        assert_eq!(bad, Valid::Invalid, "{clients} clients, one read changed");
    }
}

/// A copy with one read changed into an answer that no correct store gives. The read is taken from the second
/// half, a different one for each seed.
fn corrupt(workload: &str, history: &History, seed: u64) -> Option<Vec<Op>> {
    let calls: Vec<Call<'_>> = history.calls().collect();
    let facts = Facts::new(&calls);
    let reads: Vec<&Call<'_>> = calls[calls.len() / 2..].iter().filter(|call| call.is_ok()).collect();
    let skip = seed as usize * 7 % reads.len();
    let (call, value) = reads.iter().cycle().skip(skip).take(reads.len()).find_map(|call| {
        let value = match (workload, call.answer()?) {
            ("register", Value::Int(_) | Value::Nil) if call.f() == F::Read => {
                Value::Int(facts.overwritten(call.key(), call.start)?)
            }
            ("set", Value::List(list)) => {
                let known = list.iter().position(|value| facts.ended(call.key(), *value) < call.start)?;
                Value::List(list[..known].iter().chain(&list[known + 1..]).copied().collect())
            }
            ("counter", Value::Int(value)) if call.f() == F::Read => Value::Int(value + 1_000_000),
            ("bank" | "changelog", Value::Balances(balances)) if call.f() == F::Read => {
                let mut balances = balances.clone();
                *balances.values_mut().next()? += 1;
                Value::Balances(balances)
            }
            ("index", Value::Found(found)) => {
                let mut found = found.clone();
                found.first_mut()?.1 += 1_000_000_000;
                Value::Found(found)
            }
            ("monotonic", Value::Int(value)) if call.f() == F::Read => {
                (facts.ended(call.key(), *value) < call.start).then_some(Value::Int(value - 1))?
            }
            (_, Value::Txn(steps)) => Value::Txn(corrupt_txn(steps, call, &facts)?),
            _ => return None,
        };
        Some((call, value))
    })?;
    let index = call.complete?.index as usize;
    let mut ops = history.ops().to_vec();
    ops[index].value = value;
    Some(ops)
}

/// Changes a read of a key that the transaction does not write.
fn corrupt_txn(steps: &[MicroOp], call: &Call<'_>, facts: &Facts) -> Option<Vec<MicroOp>> {
    let alone = |key: &str| steps.iter().filter(|step| step.key() == key).count() == 1;
    let mut steps_now = steps.to_vec();
    let (place, seen) =
        steps.iter().enumerate().filter(|(_, step)| alone(step.key())).find_map(|(place, step)| {
            if let MicroOp::Read { key, seen: Seen::List(list) } = step {
                let last = *list.last()?;
                let known = facts.ended(key, last) < call.start;
                return known.then(|| (place, Seen::List(list[..list.len() - 1].to_vec())));
            }
            let (key, value) = seen_one(step)?;
            match facts.overwritten(key, call.start) {
                Some(old) => Some((place, Seen::One(old))),
                None => (facts.ended(key, value?) < call.start).then_some((place, Seen::Nothing)),
            }
        })?;
    if let MicroOp::Read { seen: now, .. } = &mut steps_now[place] {
        *now = seen;
    }
    Some(steps_now)
}

/// When writes began and ended, by key.
struct Facts {
    /// Value, begin and end of acknowledged writes.
    writes: HashMap<String, Vec<(i64, usize, usize)>>,
}

impl Facts {
    fn new(calls: &[Call<'_>]) -> Self {
        let mut writes: HashMap<String, Vec<(i64, usize, usize)>> = HashMap::new();
        let mut add = |key: &str, value: i64, call: &Call<'_>| {
            writes.entry(key.to_owned()).or_default().push((value, call.start, call.end));
        };
        for call in calls.iter().filter(|call| call.is_ok()) {
            match (call.f(), call.answer()) {
                (F::Write | F::Add, Some(Value::Int(value))) => add(call.key(), *value, call),
                (_, Some(Value::Cas { new, .. })) => add(call.key(), *new, call),
                (_, Some(Value::Txn(steps))) => {
                    for step in steps {
                        if let MicroOp::Append { key, value } | MicroOp::Write { key, value } = step {
                            add(key, *value, call);
                        }
                    }
                }
                _ => {}
            }
        }
        Facts { writes }
    }

    /// Where the write of a value ended; nowhere if it was not acknowledged.
    fn ended(&self, key: &str, value: i64) -> usize {
        let of_key = self.writes.get(key).into_iter().flatten();
        of_key.filter(|(other, ..)| *other == value).map(|(.., end)| *end).next().unwrap_or(usize::MAX)
    }

    /// A value that was overwritten in real time before this place.
    fn overwritten(&self, key: &str, before: usize) -> Option<i64> {
        let writes = self.writes.get(key)?;
        let (_, begin, _) =
            writes.iter().filter(|(.., end)| *end < before).max_by_key(|(_, begin, _)| *begin)?;
        writes.iter().find(|(.., end)| end < begin).map(|(value, ..)| *value)
    }
}
