//! Sagas that the real machine has run are found to be right; with one thing changed they are not, and the checker says by name
//! why.

#[path = "support/sagas.rs"]
mod sagas;

use kvorum_jepsen::check::saga::UNDONE;
use kvorum_jepsen::check::{self, Valid, Verdict};
use kvorum_jepsen::history::saga::{Read, Saga};
use kvorum_jepsen::history::{F, History, Kind, Op, Value, edn, jsonl};
use sagas::generate;

fn judge(ops: Vec<Op>) -> Verdict {
    let history = History::new(ops).expect("the generator makes well-formed histories");
    check::by_name("saga").expect("a checker").check(&history)
}

/// The sagas as they are read at the end.
fn ends(ops: &mut [Op]) -> impl Iterator<Item = &mut Read> {
    let mut is_last = false;
    ops.iter_mut().filter_map(move |op| {
        if op.f == F::Inspect && op.kind == Kind::Invoke {
            is_last = op.value == Value::Int(1);
        }
        match &mut op.value {
            Value::Saga(Saga::Read(read)) if is_last => Some(&mut **read),
            _ => None,
        }
    })
}

fn rows(ops: &mut [Op]) -> &mut std::collections::BTreeMap<String, i64> {
    let rows = ops.iter_mut().rev().find_map(|op| match &mut op.value {
        Value::Balances(rows) => Some(rows),
        _ => None,
    });
    rows.expect("rows")
}

/// What is done to a history, and the anomaly that shows it. `None` where there is nothing that it could be done to.
type Harm = (&'static str, fn(&mut Vec<Op>) -> Option<()>);

const HARMS: [Harm; 11] = [
    ("lost-start", |ops| {
        let last = ops.iter_mut().rev().find(|op| matches!(op.value, Value::Saga(Saga::Read(_))))?;
        last.value = Value::Nil;
        Some(())
    }),
    ("aborted-start", |ops| {
        let start = ops.iter_mut().find(|op| op.f == F::Start && op.kind == Kind::Ok)?;
        start.kind = Kind::Fail;
        Some(())
    }),
    ("torn-start", |ops| {
        let key = rows(ops).keys().find(|key| key.starts_with("row/"))?.clone();
        rows(ops).remove(&key).map(drop)
    }),
    ("wrong-list", |ops| {
        let list = ops.iter_mut().rev().find_map(|op| match &mut op.value {
            Value::Saga(Saga::List(list)) => Some(list),
            _ => None,
        })?;
        list.pop_first().map(drop)
    }),
    ("doubled-effect", |ops| {
        let count = rows(ops).iter_mut().find(|(key, _)| key.starts_with("count/"))?;
        *count.1 += 1;
        Some(())
    }),
    ("not-undone", |ops| {
        let count = rows(ops).values_mut().find(|count| **count == 1 + UNDONE)?;
        *count = 1;
        Some(())
    }),
    ("missing-effect", |ops| {
        let read = ends(ops).find(|read| read.status == "completed")?;
        let step = read.lines.iter().rposition(|line| line.what() == "completed")?;
        read.lines.remove(step);
        Some(())
    }),
    ("missing-compensation", |ops| {
        let undone = |line: &kvorum_jepsen::history::saga::Line| {
            (line.what(), line.kind()) == ("completed", "compensation")
        };
        let read = ends(ops).find(|read| read.lines.iter().any(undone))?;
        read.lines.retain(|line| !undone(line));
        Some(())
    }),
    ("out-of-order", |ops| {
        let read = ends(ops).find(|read| read.status == "completed")?;
        let last = read.lines.iter().rposition(|line| line.what() == "handed_out")?;
        let line = read.lines.remove(last);
        read.lines.insert(1, line);
        Some(())
    }),
    ("history-changed", |ops| {
        let read = ends(ops).find(|read| read.status == "completed")?;
        read.status = "compensated".to_owned();
        Some(())
    }),
    ("unrecorded-attempt", |ops| {
        let task = ops.iter_mut().find_map(|op| match &mut op.value {
            Value::Saga(Saga::Task(task)) => Some(task),
            _ => None,
        })?;
        task.attempt += 50;
        Some(())
    }),
];

#[test]
fn what_the_machine_does_is_right() {
    for seed in 0..30 {
        let verdict = judge(generate(seed, 60));
        assert_eq!(verdict.valid, Valid::Valid, "seed {seed}: {verdict:#?}");
    }
}

#[test]
fn whatever_is_changed_is_found() {
    for seed in 0..10 {
        let good = generate(seed, 60);
        for (name, harm) in HARMS {
            let mut ops = good.clone();
            harm(&mut ops).expect("one can be changed so");
            let verdict = judge(ops);
            let names: Vec<&str> = verdict.anomalies.iter().map(|found| found.name.as_str()).collect();
            assert!(names.contains(&name), "{name}, seed {seed}: {verdict:#?}");
        }
    }
}

#[test]
fn an_end_that_was_refused_and_is_taken_for_good_is_found() {
    let mut found = 0;
    for seed in 0..10 {
        let mut ops = generate(seed, 60);
        let Some(refused) = ops.iter_mut().rev().find(|op| op.f == F::Tell && op.kind == Kind::Fail) else {
            continue;
        };
        refused.kind = Kind::Ok;
        refused.value = Value::Saga(Saga::Told { already: false, recorded: String::new() });
        let verdict = judge(ops);
        let shown = ["stale-end", "wrong-end"];
        found += usize::from(verdict.anomalies.iter().any(|found| shown.contains(&found.name.as_str())));
    }
    // One whose task was not handed out again can't be told from one that came in time.
    assert!(found >= 7, "{found} of 10");
}

#[test]
fn too_little_proves_nothing() {
    assert_eq!(judge(Vec::new()).valid, Valid::Unknown);
    let mut ops = generate(1, 30);
    ops.pop();
    ops.pop();
    let verdict = judge(ops);
    assert_eq!(verdict.valid, Valid::Unknown, "{verdict:#?}");
}

#[test]
fn a_history_is_judged_alike_from_both_files_and_a_large_one_in_time() {
    let ops = generate(3, 30);
    let (mut json, mut text) = (Vec::new(), Vec::new());
    for op in &ops {
        jsonl::write_op(&mut json, op).expect("memory takes it");
        edn::write_op(&mut text, op).expect("memory takes it");
    }
    assert_eq!(jsonl::read(json.as_slice()).expect("a history").ops(), ops);
    assert_eq!(edn::read(text.as_slice()).expect("a history").ops(), ops);
    let large = generate(4, 250);
    let (entries, began) = (large.len(), std::time::Instant::now());
    assert_eq!(judge(large).valid, Valid::Valid);
    println!("{entries} entries in {:.2} s", began.elapsed().as_secs_f64());
}
