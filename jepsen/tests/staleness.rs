//! Reads that may be old: what a history must not show, and what it may, written by hand.

use kvorum_jepsen::check::Valid;
use kvorum_jepsen::history::{F, History, Op, Value};
use kvorum_jepsen::run::check;
use kvorum_jepsen::workload::Kind;

/// A history under construction; times in milliseconds.
#[derive(Default)]
struct Script(Vec<(u64, Op)>);

impl Script {
    fn call(&mut self, from_ms: u64, to_ms: u64, invoke: Op, answer: Value) {
        let complete = invoke.ok(answer);
        self.0.extend([(from_ms, invoke), (to_ms, complete)]);
    }

    fn history(mut self) -> History {
        self.0.sort_by_key(|(at_ms, _)| *at_ms);
        let ops = self.0.into_iter().zip(0..).map(|((at_ms, op), index)| Op {
            index,
            time_ns: at_ms * 1_000_000,
            ..op
        });
        History::new(ops.collect()).expect("well formed")
    }
}

/// Writes of 1 to 3, a second each, and enough reads that the history is not vacuous; then a read that may be 1.5 s old.
fn register(read_at_ms: u64, seen: i64) -> History {
    let mut script = Script::default();
    for value in 1..=3 {
        let at_ms = value as u64 * 10_000;
        script.call(
            at_ms,
            at_ms + 1_000,
            Op::invoke(0, F::Write, Value::Int(value)).with_key("k"),
            Value::Int(value),
        );
        for read in 0..20 {
            let at_ms = at_ms + 2_000 + read * 10;
            script.call(
                at_ms,
                at_ms + 5,
                Op::invoke(1, F::Read, Value::Nil).with_key("k"),
                Value::Int(value),
            );
        }
    }
    let read = Op::invoke(2, F::Read, Value::Nil).with_key("k").with_staleness_ms(1_500);
    script.call(read_at_ms, read_at_ms + 10, read, Value::Int(seen));
    script.history()
}

fn is_refused(history: &History) -> bool {
    let verdict = check(Kind::Register, history).expect("there is a checker");
    verdict.valid == Valid::Invalid && verdict.anomalies.iter().any(|one| one.name == "nonlinearizable")
}

#[test]
fn a_bounded_read_may_see_what_was_there_within_its_bound_and_nothing_older() {
    // The third write took effect between 30 s and 31 s.
    for (read_at_ms, seen, refused) in [
        (32_400, 2, false),
        (32_600, 2, true),
        (40_000, 3, false),
        (40_000, 2, true),
        (30_500, 3, false),
        (30_500, 2, false),
        (22_000, 1, false),
        (29_000, 1, true),
        (29_000, 3, true),
    ] {
        let history = register(read_at_ms, seen);
        assert_eq!(is_refused(&history), refused, "a read at {read_at_ms} ms that sees {seen}");
    }
}

#[test]
fn a_read_without_a_bound_is_checked_as_ever() {
    let mut ops = register(32_400, 2).ops().to_vec();
    ops.iter_mut().for_each(|op| op.staleness_ms = None);
    assert!(is_refused(&History::new(ops).expect("well formed")));
}

#[test]
fn entries_keep_their_indexes_and_the_order_of_all_others() {
    let history = register(32_400, 2);
    let relaxed = history.relaxed();
    assert_eq!(relaxed.ops().len(), history.ops().len());
    let without = |history: &History| -> Vec<u64> {
        history.ops().iter().filter(|op| op.staleness_ms.is_none()).map(|op| op.index).collect()
    };
    assert_eq!(without(&relaxed), without(&history));
    for op in history.ops() {
        assert_eq!(relaxed.at(op.index).map(|found| &found.value), Some(&op.value));
    }
    let moved = relaxed.calls().find(|call| call.invoke.staleness_ms.is_some()).expect("it is there");
    let before = history.calls().find(|call| call.invoke.staleness_ms.is_some()).expect("it is there");
    assert!(moved.start < before.start && moved.end == before.end);
}
