//! Sets: what was added is in every later read, and nothing else ever is.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::verdict::Findings;
use super::{Checker, Options, Verdict, show};
use crate::history::{Call, F, History, Kind, Value};

const LOST: &str = "lost-element";
const STALE: &str = "stale-read";
const UNWRITTEN: &str = "unwritten-element";
const ABORTED: &str = "aborted-element";
const DUPLICATE: &str = "duplicate-element";

/// Checks `add` (one element, each added once) and `read` (all elements), for each key by itself.
///
/// An element is known from the end of its acknowledged add on, or of the first read that saw it.
/// - `lost-element`: the last read that began after the element was known lacks it.
/// - `stale-read`: a read that began after the element was known lacks it, but a later one has it.
/// - `unwritten-element`: a read has an element before anyone began to add it, or that nobody added.
/// - `aborted-element`: a read has an element whose add failed.
/// - `duplicate-element`: a read has an element twice.
#[derive(Clone, Debug)]
pub struct Set {
    options: Options,
}

impl Set {
    /// A checker under these options.
    pub fn new(options: Options) -> Self {
        Set { options }
    }
}

impl Checker for Set {
    fn name(&self) -> &'static str {
        "set"
    }

    fn anomalies(&self) -> &'static [&'static str] {
        &[LOST, STALE, UNWRITTEN, ABORTED, DUPLICATE]
    }

    fn check(&self, history: &History) -> Verdict {
        let mut findings = Findings::new(history, self.anomalies());
        let mut keys: BTreeMap<&str, Vec<Call<'_>>> = BTreeMap::new();
        for call in history.calls() {
            keys.entry(call.key()).or_default().push(call);
        }
        for calls in keys.values() {
            check_set(calls, &mut findings);
        }
        findings.need_success(history);
        findings.need("a successful read", findings.count(Kind::Ok, F::Read), self.options.least_ok);
        findings.need("a successful add", findings.count(Kind::Ok, F::Add), self.options.least_ok);
        findings.verdict()
    }
}

struct Element<'a> {
    add: Call<'a>,
    /// Reads that begin after this place must have the element.
    known_at: usize,
}

fn check_set<'a>(calls: &[Call<'a>], findings: &mut Findings) {
    let mut elements: HashMap<i64, Element<'a>> = HashMap::new();
    for call in calls {
        let (F::Add, Value::Int(value)) = (call.f(), call.argument()) else { continue };
        let known_at = if call.is_ok() { call.end } else { usize::MAX };
        if let Some(other) = elements.insert(*value, Element { add: *call, known_at }) {
            findings.doubt(format!(
                "Element {value} is added twice, so nothing can be said about it: {} and {}.",
                show::call(&other.add),
                show::call(call)
            ));
        }
    }
    let mut reads: Vec<(Call<'a>, &'a [i64])> = Vec::new();
    for call in calls.iter().filter(|call| call.f() == F::Read) {
        match call.answer() {
            Some(Value::List(seen)) => reads.push((*call, seen)),
            Some(Value::Nil) => reads.push((*call, &[])),
            _ => {}
        }
    }
    for (read, seen) in &reads {
        check_elements(read, seen, &mut elements, findings);
    }
    check_presence(&elements, &reads, findings);
}

/// Whether each element of a read may be in it.
fn check_elements(
    read: &Call<'_>,
    seen: &[i64],
    elements: &mut HashMap<i64, Element<'_>>,
    findings: &mut Findings,
) {
    let mut once = HashSet::with_capacity(seen.len());
    for value in seen {
        if !once.insert(*value) {
            findings.anomaly(DUPLICATE, || {
                (read.indexes(), format!("{}\nElement {value} is in it more than once.", show::call(read)))
            });
        }
        match elements.get_mut(value) {
            Some(element) if element.add.outcome() == Kind::Fail => findings.anomaly(ABORTED, || {
                let text = format!(
                    "{}\n{}\nThe add of element {value} failed.",
                    show::call(&element.add),
                    show::call(read)
                );
                (element.add.indexes().into_iter().chain(read.indexes()).collect(), text)
            }),
            Some(element) if element.add.start < read.end => {
                element.known_at = element.known_at.min(read.end)
            }
            _ => findings.anomaly(UNWRITTEN, || {
                let text = format!("{}\nNobody had begun to add element {value}.", show::call(read));
                (read.indexes(), text)
            }),
        }
    }
}

/// Whether each read has what it must have.
fn check_presence(
    elements: &HashMap<i64, Element<'_>>,
    reads: &[(Call<'_>, &[i64])],
    findings: &mut Findings,
) {
    let Some(last) = reads.iter().map(|(read, _)| read.start).max() else { return };
    let mut known: Vec<(usize, i64)> = elements
        .iter()
        .map(|(value, element)| (element.known_at, *value))
        .filter(|(at, _)| *at < last)
        .collect();
    known.sort_unstable();
    let mut missed: BTreeMap<i64, &Call<'_>> = BTreeMap::new();
    let mut lost: HashSet<i64> = HashSet::new();
    for (read, seen) in reads {
        let expected = &known[..known.partition_point(|(at, _)| *at < read.start)];
        let seen: HashSet<i64> = seen.iter().copied().collect();
        for (_, value) in expected.iter().filter(|(_, value)| !seen.contains(value)) {
            missed.entry(*value).or_insert(read);
            if read.start == last {
                lost.insert(*value);
            }
        }
    }
    for (value, read) in missed {
        let add = &elements[&value].add;
        let (name, what) = if lost.contains(&value) {
            (LOST, "and the last read lacks it too")
        } else {
            (STALE, "though a later read has it again")
        };
        findings.anomaly(name, || {
            let text = format!(
                "{}\n{}\nElement {value} was known to be in the set before this read began, and the read lacks it, {what}.",
                show::call(add),
                show::call(read)
            );
            (add.indexes().into_iter().chain(read.indexes()).collect(), text)
        });
    }
}
