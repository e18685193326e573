//! Counters: each read lies between what was certainly added and what may have been.

use std::collections::BTreeMap;

use super::bounds::{Addition, Bounds};
use super::verdict::Findings;
use super::{Checker, Options, Verdict, show};
use crate::history::{Call, F, History, Kind, Value};

const OUT_OF_BOUNDS: &str = "out-of-bounds";
const WENT_BACK: &str = "went-back";

/// Checks `add` (a number that the counter is raised by) and `read` (the counter), for each key by itself.
///
/// - `out-of-bounds`: a read is below or above all that the additions allow.
/// - `went-back`: nothing was subtracted, and a read is below one that was over before it began.
#[derive(Clone, Debug)]
pub struct Counter {
    options: Options,
}

impl Counter {
    /// A checker under these options.
    pub fn new(options: Options) -> Self {
        Counter { options }
    }
}

impl Checker for Counter {
    fn name(&self) -> &'static str {
        "counter"
    }

    fn anomalies(&self) -> &'static [&'static str] {
        &[OUT_OF_BOUNDS, WENT_BACK]
    }

    fn check(&self, history: &History) -> Verdict {
        let mut findings = Findings::new(history, self.anomalies());
        let mut keys: BTreeMap<&str, Vec<Call<'_>>> = BTreeMap::new();
        for call in history.calls() {
            keys.entry(call.key()).or_default().push(call);
        }
        for calls in keys.values() {
            check_counter(calls, &mut findings);
        }
        findings.need_success(history);
        findings.need("a successful read", findings.count(Kind::Ok, F::Read), self.options.least_ok);
        findings.need("a successful add", findings.count(Kind::Ok, F::Add), self.options.least_ok);
        findings.verdict()
    }
}

fn check_counter(calls: &[Call<'_>], findings: &mut Findings) {
    let additions: Vec<Addition> = calls
        .iter()
        .filter_map(|call| match (call.f(), call.argument()) {
            (F::Add, Value::Int(delta)) => Addition::of(call, *delta),
            _ => None,
        })
        .collect();
    let only_up = additions.iter().all(|addition| addition.delta >= 0);
    let bounds = Bounds::new(&additions);
    let reads: Vec<(&Call<'_>, i64)> = calls
        .iter()
        .filter(|call| call.f() == F::Read)
        .filter_map(|call| match call.answer()? {
            Value::Int(seen) => Some((call, *seen)),
            Value::Nil => Some((call, 0)),
            _ => None,
        })
        .collect();
    for (read, seen) in &reads {
        let (low, high) = bounds.range(read.start, read.end);
        if *seen < low || *seen > high {
            findings.anomaly(OUT_OF_BOUNDS, || {
                let text = format!(
                    "{}\nThe counter is between {low} and {high} then: additions that ended before the read began are in it, and those that began after it ended are not.",
                    show::call(read)
                );
                (read.indexes(), text)
            });
        }
    }
    if only_up {
        check_order(&reads, findings);
    }
}

/// Of reads that do not overlap, the later one is not below the earlier one.
fn check_order(reads: &[(&Call<'_>, i64)], findings: &mut Findings) {
    let mut by_end = reads.to_vec();
    by_end.sort_by_key(|(read, _)| read.end);
    let mut ended = by_end.into_iter().peekable();
    let mut largest: Option<(&Call<'_>, i64)> = None;
    for (read, seen) in reads {
        while let Some(before) = ended.next_if(|(before, _)| before.end < read.start) {
            if largest.is_none_or(|(_, value)| value < before.1) {
                largest = Some(before);
            }
        }
        if let Some((before, value)) = largest.filter(|(_, value)| value > seen) {
            findings.anomaly(WENT_BACK, || {
                let text = format!(
                    "{}\n{}\nNothing is subtracted, and the second read began after the first had ended, but {seen} is below {value}.",
                    show::call(before),
                    show::call(read)
                );
                (before.indexes().into_iter().chain(read.indexes()).collect(), text)
            });
        }
    }
}
