//! Registers: each key is linearizable.

mod explain;
mod model;
mod search;

use std::collections::BTreeMap;

use super::verdict::Findings;
use super::{Checker, Options, Verdict, show};
use crate::history::{Call, F, History, Kind, Value};
use model::Register;
use search::Outcome;

const NONLINEARIZABLE: &str = "nonlinearizable";
const UNWRITTEN: &str = "unwritten-value";
const ABORTED: &str = "aborted-read";

/// States that each key may take, also when other keys took more than all.
const EACH_STATES: usize = 20_000;

/// States of the search for an explanation, at most: it goes as far as it gets with these.
const EXPLAIN_STATES: usize = 200_000;

/// Checks `read`, `write` and `cas` (compare-and-swap) of registers, for each key by itself: there is an order
/// of all operations in which each takes effect at one moment between its invocation and its completion.
/// Failed operations are left out. One whose outcome is unknown takes effect at some moment after its
/// invocation, or never. The search is Wing and Gong's, with Lowe's memory of states that lead nowhere.
///
/// - `nonlinearizable`: there is no such order for a key. The explanation shows how far one gets.
/// - `unwritten-value`: a read sees a value that nobody wrote.
/// - `aborted-read`: a read sees a value that only failed operations wrote.
///
/// The verdict is unknown if the keys need more states than [`Options::max_states`] and no key is found wrong.
#[derive(Clone, Debug)]
pub struct Registers {
    options: Options,
}

impl Registers {
    /// A checker under these options.
    pub fn new(options: Options) -> Self {
        Registers { options }
    }
}

impl Checker for Registers {
    fn name(&self) -> &'static str {
        "register"
    }

    fn anomalies(&self) -> &'static [&'static str] {
        &[NONLINEARIZABLE, UNWRITTEN, ABORTED]
    }

    fn check(&self, history: &History) -> Verdict {
        let mut findings = Findings::new(history, self.anomalies());
        let mut keys: BTreeMap<&str, Vec<Call<'_>>> = BTreeMap::new();
        for call in history.calls() {
            keys.entry(call.key()).or_default().push(call);
        }
        let mut states = 0;
        for (key, calls) in &keys {
            let left = self.options.max_states.saturating_sub(states);
            states +=
                check_key(key, calls, left.max(EACH_STATES.min(self.options.max_states)), &mut findings);
        }
        findings.stat("keys", keys.len());
        findings.stat("states", states);
        findings.need_success(history);
        findings.need("a successful read", findings.count(Kind::Ok, F::Read), self.options.least_ok);
        findings.need("a successful write", findings.count(Kind::Ok, F::Write), self.options.least_ok);
        if history.calls().any(|call| call.f() == F::Cas) {
            findings.need("a successful compare-and-swap", findings.count(Kind::Ok, F::Cas), 1);
        }
        findings.verdict()
    }
}

/// Searches with `max_states` states at most, and returns how many it took.
fn check_key(key: &str, calls: &[Call<'_>], max_states: usize, findings: &mut Findings) -> usize {
    if check_sources(key, calls, findings) {
        return 0;
    }
    let register = Register::new(calls);
    let result = search::search(&register, max_states, true);
    match result.outcome {
        Outcome::Linearizable => {}
        Outcome::Impossible => findings.anomaly(NONLINEARIZABLE, || {
            let further = search::search(&register, max_states.min(EXPLAIN_STATES), false).stuck;
            let stuck = if further.certain > result.stuck.certain { further } else { result.stuck };
            explain::stuck(key, calls, &register, &stuck)
        }),
        Outcome::Bound => findings.doubt(format!(
            "Key {key:?}: no order was found with {} states, and the search ended; perhaps there is one.",
            result.states
        )),
    }
    result.states
}

/// Whether a read sees a value that no operation can have written.
fn check_sources(key: &str, calls: &[Call<'_>], findings: &mut Findings) -> bool {
    let mut writers: BTreeMap<i64, &Call<'_>> = BTreeMap::new();
    for call in calls {
        let value = match call.argument() {
            Value::Int(value) if call.f() == F::Write => *value,
            Value::Cas { new, .. } => *new,
            _ => continue,
        };
        if call.outcome() != Kind::Fail {
            writers.insert(value, call);
        } else {
            writers.entry(value).or_insert(call);
        }
    }
    let mut found = false;
    for read in calls.iter().filter(|call| call.f() == F::Read) {
        let Some(Value::Int(value)) = read.answer() else { continue };
        match writers.get(value) {
            Some(writer) if writer.outcome() != Kind::Fail => continue,
            Some(writer) => findings.anomaly(ABORTED, || {
                let text = format!(
                    "{}\n{}\nOnly this failed operation wrote {value} to key {key:?}.",
                    show::call(writer),
                    show::call(read)
                );
                (writer.indexes().into_iter().chain(read.indexes()).collect(), text)
            }),
            None => findings.anomaly(UNWRITTEN, || {
                (read.indexes(), format!("{}\nNobody wrote {value} to key {key:?}.", show::call(read)))
            }),
        }
        found = true;
    }
    found
}
