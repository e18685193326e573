//! Indexes of a correct store of which one answer is changed: the checker says so, and by the right name.

mod support;

use kvorum_jepsen::check::{self, Valid, Verdict};
use kvorum_jepsen::history::{F, Op, Value};
use support::index::{HARMS, harm};
use support::{Shape, generate, history};

fn judge(ops: Vec<Op>) -> Verdict {
    check::by_name("index").expect("a checker").check(&history(ops))
}

fn names(verdict: &Verdict) -> Vec<&str> {
    verdict.anomalies.iter().map(|found| found.name.as_str()).collect()
}

#[test]
fn whatever_an_index_answers_wrong_is_found() {
    for seed in 0..10 {
        let good = generate(&Shape::new("index", seed, 1_000));
        assert_eq!(judge(good.clone()).valid, Valid::Valid, "seed {seed}");
        for (what, shown_by) in HARMS {
            let verdict = judge(harm(&good, what, seed as usize / 2).expect("one can be changed so"));
            assert_eq!(verdict.valid, Valid::Invalid, "{what}, seed {seed}");
            assert!(names(&verdict).contains(&shown_by), "{what}, seed {seed}: {verdict:#?}");
        }
    }
}

#[test]
fn a_follower_that_stops_early_proves_nothing_of_what_comes_after() {
    let mut ops = generate(&Shape::new("index", 5, 1_000));
    assert!(ops.iter().any(|op| op.kind == kvorum_jepsen::history::Kind::Info));
    for op in ops.iter_mut().filter(|op| op.f == F::Follow).rev().take(10) {
        if let Value::Told(told) = &mut op.value {
            told.clear();
        }
    }
    let verdict = judge(ops);
    assert_eq!(verdict.valid, Valid::Unknown, "{verdict:#?}");
    assert!(verdict.notes[0].contains("it is not known what became"), "{:?}", verdict.notes);
}

#[test]
fn what_became_of_writes_of_unknown_fate_is_taken_from_the_follower() {
    let mut ops = generate(&Shape { info_per_mille: 200, ..Shape::new("index", 8, 1_000) });
    let verdict = judge(ops.clone());
    assert_eq!(verdict.valid, Valid::Valid, "{verdict:#?}");
    // Where it is told nothing of them, the rows do not come to what was read.
    let acknowledged: Vec<u64> =
        ops.iter().filter(|op| op.f == F::Txn).filter_map(|op| op.timestamp).collect();
    for op in &mut ops {
        if let Value::Told(told) = &mut op.value {
            use kvorum_jepsen::history::Told;
            told.retain(|told| !matches!(told, Told::Changes { at, .. } if !acknowledged.contains(at)));
        }
    }
    assert_eq!(judge(ops).valid, Valid::Invalid);
}
