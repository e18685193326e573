//! Tests of the page.

use super::*;
use crate::check::Anomaly;
use crate::history::{F, Op, Value};
use crate::nemesis::{Happened, Nemesis};
use crate::report::results::tests::sample;

/// A write, a read that misses it, and a write that nobody knows of.
fn history() -> History {
    let at = |mut op: Op, index: u64| {
        (op.index, op.time_ns) = (index, index * 1_000_000_000);
        op
    };
    let write = Op::invoke(0, F::Write, Value::Int(1)).with_key("<r>");
    let read = Op::invoke(1, F::Read, Value::Nil).with_key("<r>");
    let lost = Op::invoke(2, F::Write, Value::Int(2)).with_key("<r>");
    let ops = [
        write.clone(),
        write.ok(Value::Int(1)),
        read.clone(),
        read.ok(Value::Nil),
        lost.clone(),
        lost.info("late"),
    ];
    History::new(ops.into_iter().zip(0..).map(|(op, index)| at(op, index)).collect()).unwrap()
}

fn invalid() -> Results {
    let mut results = sample();
    results.findings.push(Anomaly {
        name: "stale-read".into(),
        explanation: "the read began & missed it".into(),
        ops: vec![0, 1, 2, 3],
    });
    results.faults.push(Happened {
        nemesis: Nemesis::Kill,
        what: "killed: node 1".into(),
        begin_ns: 1_000_000_000,
        end_ns: 2_000_000_000,
        error: None,
    });
    results.conclude();
    results
}

#[test]
fn an_anomaly_is_told_with_its_operations_and_nothing_comes_from_elsewhere() {
    let page = page(&invalid(), &history());
    for words in [
        "class=\"verdict invalid\"",
        "stale-read",
        "the read began &amp; missed it",
        "#0 process 0: write &lt;r&gt; 1",
        "#2 process 1: read &lt;r&gt; nil",
        "killed: node 1",
        "(info)",
        "prefers-color-scheme: dark",
    ] {
        assert!(page.contains(words), "{words:?} is not in the page");
    }
    for foreign in ["http://", "https://", "<script", "src=", "<r>"] {
        assert!(!page.contains(foreign), "{foreign:?} is in the page");
    }
    // What shows the anomaly is marked in the timeline, and nothing else.
    assert_eq!(page.matches(" mark\"").count(), 2);
}

#[test]
fn every_element_that_is_opened_is_closed() {
    let page = page(&invalid(), &history());
    for element in ["svg", "table", "section", "div", "ul", "tr", "td", "text", "title", "pre"] {
        let opened =
            page.matches(&format!("<{element}>")).count() + page.matches(&format!("<{element} ")).count();
        assert_eq!(opened, page.matches(&format!("</{element}>")).count(), "{element}");
    }
}

#[test]
fn a_run_of_nothing_has_a_page_too() {
    let page = page(&sample(), &History::default());
    assert!(page.contains("valid") && page.contains("</html>"));
}
