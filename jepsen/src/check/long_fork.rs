//! Long forks: two readers that see two writes in opposite orders.

use std::collections::{BTreeMap, HashMap};

use super::verdict::Findings;
use super::{Checker, Options, Verdict, show};
use crate::history::{Call, F, History, Kind, MicroOp, Seen, Value};

const LONG_FORK: &str = "long-fork";
const STALE: &str = "stale-read";
const UNWRITTEN: &str = "unwritten-value";
const ABORTED: &str = "aborted-read";

/// Checks transactions that write one key, which nobody writes again, and transactions that read a group of
/// keys. Reads of the same keys must be ordered: one of two sees all that the other sees.
///
/// - `long-fork`: one read sees a first write and not a second, another read the second and not the first.
/// - `stale-read`: a read lacks a write that was acknowledged, or seen by a read that ended, before it began or
///   before a write began that it sees.
/// - `unwritten-value`: a read sees a value that nobody had begun to write.
/// - `aborted-read`: a read sees a write that failed.
#[derive(Clone, Debug)]
pub struct LongFork {
    options: Options,
}

impl LongFork {
    /// A checker under these options.
    pub fn new(options: Options) -> Self {
        LongFork { options }
    }
}

/// The one write of a key.
struct Written<'a> {
    call: Call<'a>,
    value: i64,
    known_at: usize,
}

/// A read of a group: what it saw, in the order of the group's keys.
struct Read<'a> {
    call: Call<'a>,
    seen: Vec<Option<i64>>,
}

impl Checker for LongFork {
    fn name(&self) -> &'static str {
        "long-fork"
    }

    fn anomalies(&self) -> &'static [&'static str] {
        &[LONG_FORK, STALE, UNWRITTEN, ABORTED]
    }

    fn check(&self, history: &History) -> Verdict {
        let mut findings = Findings::new(history, self.anomalies());
        let mut writes = writes(history, &mut findings);
        let groups = groups(history);
        for (keys, reads) in &groups {
            for read in reads {
                check_values(keys, read, &mut writes, &mut findings);
            }
        }
        for (keys, reads) in &groups {
            reads.iter().for_each(|read| check_stale(keys, read, &writes, &mut findings));
            check_fork(keys, reads, &mut findings);
        }
        let written = writes.values().filter(|written| written.call.is_ok()).count();
        let partial = groups.values().flatten().filter(|read| read.seen.iter().any(Option::is_none));
        let telling = partial.filter(|read| read.seen.iter().any(Option::is_some)).count();
        findings.need_success(history);
        findings.need("a successful write", written as u64, self.options.least_ok);
        findings.need(
            "a read that sees some keys of its group and not others",
            telling as u64,
            self.options.least_ok,
        );
        findings.verdict()
    }
}

fn writes<'a>(history: &'a History, findings: &mut Findings) -> HashMap<&'a str, Written<'a>> {
    let mut writes: HashMap<&str, Written<'_>> = HashMap::new();
    for call in history.calls().filter(|call| call.f() == F::Txn) {
        let Value::Txn(steps) = call.argument() else { continue };
        for step in steps {
            let MicroOp::Write { key, value } = step else { continue };
            let known_at = if call.is_ok() { call.end } else { usize::MAX };
            if let Some(other) = writes.insert(key, Written { call, value: *value, known_at }) {
                findings.doubt(format!(
                    "Key {key} is written twice, so its reads have no order: {} and {}.",
                    show::call(&other.call),
                    show::call(&call)
                ));
            }
        }
    }
    writes
}

/// Reads by the keys that they read.
fn groups(history: &History) -> BTreeMap<Vec<&str>, Vec<Read<'_>>> {
    let mut groups: BTreeMap<Vec<&str>, Vec<Read<'_>>> = BTreeMap::new();
    for call in history.calls().filter(|call| call.f() == F::Txn) {
        let Some(Value::Txn(steps)) = call.answer() else { continue };
        let seen: BTreeMap<&str, Option<i64>> = steps
            .iter()
            .filter_map(|step| match step {
                MicroOp::Read { key, seen: Seen::One(value) } => Some((key.as_str(), Some(*value))),
                MicroOp::Read { key, seen: Seen::Nothing } => Some((key.as_str(), None)),
                _ => None,
            })
            .collect();
        if !seen.is_empty() {
            let read = Read { call, seen: seen.values().copied().collect() };
            groups.entry(seen.into_keys().collect()).or_default().push(read);
        }
    }
    groups
}

/// Whether what a read saw was written, and from when on everyone must see it.
fn check_values<'a>(
    keys: &[&'a str],
    read: &Read<'_>,
    writes: &mut HashMap<&'a str, Written<'_>>,
    findings: &mut Findings,
) {
    for (key, value) in keys.iter().zip(&read.seen) {
        let Some(value) = value else { continue };
        match writes.get_mut(key) {
            Some(written) if written.value == *value && written.call.start < read.call.end => {
                if written.call.outcome() == Kind::Fail {
                    findings.anomaly(ABORTED, || {
                        let text = format!(
                            "{}\n{}\nThe write of key {key} failed, and the read sees it.",
                            show::call(&written.call),
                            show::call(&read.call)
                        );
                        (both(&written.call, &read.call), text)
                    });
                } else {
                    written.known_at = written.known_at.min(read.call.end);
                }
            }
            _ => findings.anomaly(UNWRITTEN, || {
                let text =
                    format!("{}\nNobody had begun to write {value} to key {key}.", show::call(&read.call));
                (read.call.indexes(), text)
            }),
        }
    }
}

fn check_stale(keys: &[&str], read: &Read<'_>, writes: &HashMap<&str, Written<'_>>, findings: &mut Findings) {
    // A read is of a moment after its own beginning, and after that of every write that it sees.
    let of_seen = keys.iter().zip(&read.seen).filter(|(_, value)| value.is_some());
    let latest = of_seen.filter_map(|(key, _)| Some(&writes.get(key)?.call)).max_by_key(|call| call.start);
    let latest = latest.filter(|call| call.start > read.call.start && call.start < read.call.end);
    let moment = latest.map_or(read.call.start, |call| call.start);
    for (key, value) in keys.iter().zip(&read.seen) {
        let Some(written) = writes.get(key).filter(|written| written.known_at < moment) else { continue };
        if value.is_none() {
            findings.anomaly(STALE, || explain_stale(key, &written.call, latest, &read.call));
        }
    }
}

fn explain_stale(
    key: &str,
    written: &Call<'_>,
    latest: Option<&Call<'_>>,
    read: &Call<'_>,
) -> (Vec<u64>, String) {
    let calls: Vec<&Call<'_>> = [written].into_iter().chain(latest).chain([read]).collect();
    let mut lines: Vec<String> = calls.iter().map(|call| show::call(call)).collect();
    let when = match latest {
        Some(_) => "the second write began, which the read sees",
        None => "the read began",
    };
    lines.push(format!("The write of key {key} was known before {when}, and the read lacks it."));
    (calls.iter().flat_map(|call| call.indexes()).collect(), lines.join("\n"))
}

/// Whether all reads of a group can be put in one order. Sorted by how much they see, each must see all that
/// the one before it sees: if neighbours do, then all do.
fn check_fork(keys: &[&str], reads: &[Read<'_>], findings: &mut Findings) {
    let mut order: Vec<&Read<'_>> = reads.iter().collect();
    order.sort_by_key(|read| read.seen.iter().flatten().count());
    for pair in order.windows(2) {
        let [less, more] = pair else { continue };
        let lacks = |of: &Read<'_>, than: &Read<'_>| {
            (0..keys.len()).find(|place| of.seen[*place].is_none() && than.seen[*place].is_some())
        };
        if let (Some(second), Some(first)) = (lacks(less, more), lacks(more, less)) {
            findings.anomaly(LONG_FORK, || {
                let text = format!(
                    "{}\n{}\nThe first sees key {} and not key {}, the second sees key {} and not key {}: no order of the two writes allows both.",
                    show::call(&less.call),
                    show::call(&more.call),
                    keys[first],
                    keys[second],
                    keys[second],
                    keys[first]
                );
                (both(&less.call, &more.call), text)
            });
        }
    }
}

fn both(a: &Call<'_>, b: &Call<'_>) -> Vec<u64> {
    a.indexes().into_iter().chain(b.indexes()).collect()
}
