//! Timestamps: those of commits and snapshots respect real time, and values respect them.

use std::collections::{BTreeMap, HashMap};

use super::verdict::Findings;
use super::{Checker, Options, Verdict, show};
use crate::history::{Call, F, History, Kind, Value};

const REAL_TIME: &str = "timestamp-order";
const SHARED: &str = "shared-timestamp";
const VALUES: &str = "value-order";
const SNAPSHOT: &str = "wrong-snapshot";
const UNEXPLAINED: &str = "unexplained-value";

/// Checks operations that carry a timestamp: `add` or `write` answers the key's new value, which is larger
/// than every earlier one, with the commit's timestamp; `read` answers the key's value (nil for none) with the
/// timestamp of the snapshot that it read. Operations without a timestamp are left out.
///
/// - `timestamp-order`: an operation began after another had ended, and its timestamp is smaller; for one that
///   writes, not larger.
/// - `shared-timestamp`: two writes have the same timestamp.
/// - `value-order`: of two writes of one key, the one with the larger timestamp has not the larger value.
/// - `unexplained-value`: a key that is only ever raised by one holds less than it was certainly raised by up to the
///   timestamp, or more than it may have been.
/// - `wrong-snapshot`: a read does not see what was written last before or at its timestamp.
#[derive(Clone, Debug)]
pub struct Monotonic {
    options: Options,
}

impl Monotonic {
    /// A checker under these options.
    pub fn new(options: Options) -> Self {
        Monotonic { options }
    }
}

/// A successful operation with its timestamp.
#[derive(Clone, Copy)]
struct Stamped<'a> {
    call: Call<'a>,
    at: u64,
    value: Option<i64>,
    writes: bool,
}

impl Checker for Monotonic {
    fn name(&self) -> &'static str {
        "monotonic"
    }

    fn anomalies(&self) -> &'static [&'static str] {
        &[REAL_TIME, SHARED, VALUES, SNAPSHOT, UNEXPLAINED]
    }

    fn check(&self, history: &History) -> Verdict {
        let mut findings = Findings::new(history, self.anomalies());
        let stamped: Vec<Stamped<'_>> = history.calls().filter_map(stamped).collect();
        check_real_time(&stamped, &mut findings);
        check_shared(&stamped, &mut findings);
        let mut keys: BTreeMap<&str, (Vec<Stamped<'_>>, Vec<Stamped<'_>>)> = BTreeMap::new();
        for op in &stamped {
            let (writes, reads) = keys.entry(op.call.key()).or_default();
            if op.writes { writes.push(*op) } else { reads.push(*op) }
        }
        let mut raises = raises(history);
        for (key, (writes, reads)) in &mut keys {
            writes.sort_by_key(|write| write.at);
            if let Some(open) = raises.get_mut(key) {
                open.sort_unstable();
                let all = writes.iter().chain(reads.iter());
                all.for_each(|op| check_count(writes, open, op, &mut findings));
            }
            check_values(writes, &mut findings);
            reads.iter().for_each(|read| check_snapshot(writes, read, &mut findings));
        }
        let writes = stamped.iter().filter(|op| op.writes).count();
        findings.need_success(history);
        findings.need("a write with a timestamp", writes as u64, self.options.least_ok);
        findings.need("a read with a timestamp", (stamped.len() - writes) as u64, self.options.least_ok);
        findings.verdict()
    }
}

fn stamped(call: Call<'_>) -> Option<Stamped<'_>> {
    let at = call.timestamp()?;
    let value = match call.answer()? {
        Value::Int(value) => Some(*value),
        Value::Nil => None,
        _ => return None,
    };
    Some(Stamped { call, at, value, writes: matches!(call.f(), F::Add | F::Write) })
}

/// Of each key that is only ever raised by one, when those additions began of which nobody knows whether or at what
/// timestamp they took effect.
fn raises(history: &History) -> HashMap<&str, Vec<usize>> {
    let mut raises: HashMap<&str, Option<Vec<usize>>> = HashMap::new();
    for call in history.calls().filter(|call| call.f() != F::Read) {
        let by_one = call.f() == F::Add && matches!(call.argument(), Value::Nil | Value::Int(1));
        let open = raises.entry(call.key()).or_insert_with(|| Some(Vec::new()));
        if !by_one {
            *open = None;
        } else if let Some(open) = open
            && call.outcome() != Kind::Fail
            && !(call.is_ok() && call.timestamp().is_some())
        {
            open.push(call.start);
        }
    }
    raises.into_iter().filter_map(|(key, open)| Some((key, open?))).collect()
}

/// Whether a value is what the additions up to its timestamp make, with those or without those that are open.
fn check_count(writes: &[Stamped<'_>], open: &[usize], op: &Stamped<'_>, findings: &mut Findings) {
    let certain = writes.partition_point(|write| write.at <= op.at) as i64;
    let possible = open.partition_point(|start| *start < op.call.end) as i64;
    let value = op.value.unwrap_or(0);
    if value < certain || value > certain + possible {
        findings.anomaly(UNEXPLAINED, || {
            let text = format!(
                "{}\nUp to its timestamp the key was raised {certain} times by one, and at most {possible} times more, not to {value}.",
                show::call(&op.call)
            );
            (op.call.indexes(), text)
        });
    }
}

/// Compares each operation with the largest timestamp that was known before it began.
fn check_real_time(stamped: &[Stamped<'_>], findings: &mut Findings) {
    let mut by_end: Vec<&Stamped<'_>> = stamped.iter().collect();
    by_end.sort_by_key(|op| op.call.end);
    let mut ended = by_end.into_iter().peekable();
    let mut largest: Option<&Stamped<'_>> = None;
    for op in stamped {
        while let Some(before) = ended.next_if(|before| before.call.end < op.call.start) {
            if largest.is_none_or(|largest| largest.at < before.at) {
                largest = Some(before);
            }
        }
        let Some(before) = largest else { continue };
        if op.at < before.at || (op.writes && op.at == before.at) {
            let rule = if op.writes { "must be larger" } else { "must not be smaller" };
            report(
                REAL_TIME,
                before,
                op,
                &format!("The second began after the first had ended, so its timestamp {rule}."),
                findings,
            );
        }
    }
}

fn check_shared(stamped: &[Stamped<'_>], findings: &mut Findings) {
    let mut owners: HashMap<u64, &Stamped<'_>> = HashMap::new();
    for op in stamped.iter().filter(|op| op.writes) {
        if let Some(other) = owners.insert(op.at, op) {
            report(SHARED, other, op, "Two writes have the same timestamp.", findings);
        }
    }
}

fn check_values(writes: &[Stamped<'_>], findings: &mut Findings) {
    for pair in writes.windows(2) {
        let [earlier, later] = pair else { continue };
        if later.value <= earlier.value {
            report(VALUES, earlier, later, "The timestamps rise, and the values do not.", findings);
        }
    }
}

/// A read sees a value from the last write up to its timestamp on, and below that of the next one. Between the
/// two there may be writes whose outcome is unknown.
fn check_snapshot(writes: &[Stamped<'_>], read: &Stamped<'_>, findings: &mut Findings) {
    let next = writes.partition_point(|write| write.at <= read.at);
    if let Some(last) = writes[..next].last()
        && read.value < last.value
    {
        report(
            SNAPSHOT,
            last,
            read,
            "The read's snapshot is not before the write, and it lacks it.",
            findings,
        );
    }
    if let Some(write) = writes.get(next)
        && read.value >= write.value
    {
        report(
            SNAPSHOT,
            write,
            read,
            "The read's snapshot is before the write, and it sees it or a later one.",
            findings,
        );
    }
}

fn report(name: &'static str, a: &Stamped<'_>, b: &Stamped<'_>, why: &str, findings: &mut Findings) {
    findings.anomaly(name, || {
        let text = format!("{}\n{}\n{why}", show::call(&a.call), show::call(&b.call));
        (a.call.indexes().into_iter().chain(b.call.indexes()).collect(), text)
    });
}
