//! Proof of corruption that clients met: what the store says of its own data, and values that no client wrote.

use parking_lot::Mutex;

use super::finding;
use crate::check::Anomaly;
use crate::workload::{Outcome, Request};

/// So many are told one by one; the others are counted.
const TOLD: usize = 20;

/// What was met so far, by all clients together.
#[derive(Default)]
pub(super) struct Corruption {
    met: Mutex<Met>,
}

#[derive(Default)]
struct Met {
    told: Vec<Anomaly>,
    more: usize,
}

impl Corruption {
    /// Takes an outcome down where it proves corruption. `ops` are the indexes of its entries in the history.
    pub(super) fn note(&self, request: &Request, outcome: &Outcome, ops: [u64; 2]) {
        let Outcome::Corrupt { why, .. } = outcome else { return };
        let mut met = self.met.lock();
        if met.told.len() >= TOLD {
            met.more += 1;
            return;
        }
        let key = request.key.as_ref().map(|key| format!(" of {key}")).unwrap_or_default();
        let told = format!("{}{key} {:?} came to: {why}", request.f, request.value);
        met.told.push(Anomaly { ops: ops.to_vec(), ..finding("corrupt-data", told) });
    }

    /// Each as a finding.
    pub(super) fn findings(&self) -> Vec<Anomaly> {
        let met = self.met.lock();
        let more = (met.more > 0).then(|| finding("corrupt-data", format!("and {} times more", met.more)));
        met.told.iter().cloned().chain(more).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::{F, Value};

    #[test]
    fn each_corrupt_answer_is_a_finding_with_its_operation_and_nothing_else_is() {
        let (corruption, read) = (Corruption::default(), Request::of("r7", F::Read, Value::Nil));
        corruption.note(&read, &Outcome::Fail("unavailable: nobody".into()), [0, 1]);
        corruption.note(&read, &Outcome::Info("lost".into()), [2, 3]);
        assert_eq!(corruption.findings(), []);
        let corrupt = Outcome::Corrupt { why: "corrupt: a key holds \"x\"".into(), is_open: false };
        for index in 0..TOLD as u64 + 3 {
            corruption.note(&read, &corrupt, [2 * index, 2 * index + 1]);
        }
        let findings = corruption.findings();
        assert_eq!(findings.len(), TOLD + 1);
        assert_eq!((findings[1].name.as_str(), &findings[1].ops), ("corrupt-data", &vec![2, 3]));
        for words in ["r7", "read", "a key holds \"x\""] {
            assert!(findings[1].explanation.contains(words), "{}", findings[1].explanation);
        }
        assert_eq!(findings[TOLD].explanation, "and 3 times more");
    }
}
