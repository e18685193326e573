//! Followers of a correct store who are told one thing wrong: the checker says so, and by the right name.

mod support;

use kvorum_jepsen::check::{self, Valid, Verdict};
use kvorum_jepsen::history::{Op, Told, Value};
use support::follow::{HARMS, harm};
use support::{Shape, generate, history};

fn judge(ops: Vec<Op>) -> Verdict {
    check::by_name("changelog").expect("a checker").check(&history(ops))
}

fn names(verdict: &Verdict) -> Vec<&str> {
    verdict.anomalies.iter().map(|found| found.name.as_str()).collect()
}

#[test]
fn whatever_a_follower_is_told_wrong_is_found() {
    for seed in 0..10 {
        let good = generate(&Shape::new("changelog", seed, 1_000));
        assert_eq!(judge(good.clone()).valid, Valid::Valid, "seed {seed}");
        for follower in ["all", "part", "scan"] {
            for (what, shown_by) in HARMS {
                // Only those who asked are told what was there before.
                if follower == "scan" && what == "other before" {
                    continue;
                }
                let bad = harm(&good, follower, what, 3 * seed as usize).expect("one can be told so");
                let verdict = judge(bad);
                let found = names(&verdict);
                assert_eq!(verdict.valid, Valid::Invalid, "{follower}, {what}, seed {seed}");
                assert!(found.iter().any(|name| shown_by.contains(name)), "{follower}, {what}: {found:?}");
            }
        }
    }
}

#[test]
fn wrong_rows_of_a_scan_are_found() {
    for change in [0, 1] {
        let mut ops = generate(&Shape::new("changelog", 3, 1_000));
        let rows = ops.iter_mut().find_map(|op| match &mut op.value {
            Value::Told(told) if matches!(told.first(), Some(Told::Row { .. })) => Some(told),
            _ => None,
        });
        let rows = rows.expect("one begins with rows");
        match (change, &mut rows[0]) {
            (0, Told::Row { value, .. }) => *value += 1,
            _ => drop(rows.remove(0)),
        }
        let verdict = judge(ops);
        assert_eq!(names(&verdict), ["wrong-rows"]);
    }
}

#[test]
fn a_follower_that_stops_early_proves_nothing_of_what_comes_after() {
    let mut ops = generate(&Shape::new("changelog", 5, 1_000));
    let last = ops.iter().rposition(|op| op.key.as_deref() == Some("all")).expect("it is told something");
    // Its last two entries are told nothing.
    for op in ops.iter_mut().take(last + 1).filter(|op| op.key.as_deref() == Some("all")).rev().take(4) {
        if let Value::Told(told) = &mut op.value {
            told.clear();
        }
    }
    let verdict = judge(ops);
    assert_eq!(verdict.valid, Valid::Unknown, "{verdict:#?}");
    assert!(verdict.notes[0].contains("were acknowledged after that"), "{:?}", verdict.notes);
}
