//! Bugs on order: what the server can be made to do wrong, and the run that must find it.
//!
//! A test that has never found anything may not be able to. A server that is built with known bugs has one of them from its
//! start where `KVORUM_BUG` names it; each run here is made with one, and its checker must find what such a bug does to a
//! history. What a run shows besides, as replicas that differ, does not count. A control run of the same server without
//! a bug must be valid.

use std::collections::BTreeSet;

use crate::report::Results;
use crate::workload::Kind;

/// A bug, and how it is looked for.
#[derive(Clone, Copy, Debug)]
pub struct Order {
    /// Its name, as the server knows it.
    pub bug: &'static str,
    /// What is wrong, in a sentence.
    pub about: &'static str,
    /// The workload that shows it.
    pub workload: Kind,
    /// The faults that it needs, as on the command line.
    pub nemeses: &'static str,
    /// How long one attempt takes.
    pub seconds: u64,
    /// Requests a second.
    pub rate: u32,
    /// The anomalies that show it: what else may be wrong with a run does not count.
    pub shown_by: &'static [&'static str],
}

impl Order {
    /// The names of the anomalies in a run's history that show the bug; it is found where there are any.
    pub fn found(&self, results: &Results) -> BTreeSet<String> {
        let names = results.verdict.anomalies.iter().map(|anomaly| &anomaly.name);
        names.filter(|name| self.shown_by.contains(&name.as_str())).cloned().collect()
    }
}

/// The run of the same server without any bug, which must be valid.
pub const CONTROL: Order = Order {
    bug: "none (control)",
    about: "nothing is wrong: the run must be valid",
    workload: Kind::Append,
    nemeses: "kill,pause",
    seconds: 20,
    rate: 200,
    shown_by: &[],
};

/// What a lost or torn transaction on lists shows as.
const TORN_LISTS: &[&str] = &[
    "lost-append",
    "incompatible-order",
    "G0",
    "G1c",
    "G-single",
    "G2-item",
    "G0-realtime",
    "G1c-realtime",
    "G-single-realtime",
    "G2-item-realtime",
];

/// How often each is looked for, under a new seed each time.
pub const ATTEMPTS: u32 = 5;

/// All of them.
pub const ORDERS: [Order; 6] = [
    Order {
        bug: "AcknowledgeBeforeSync",
        about: "writes are acknowledged before they are synced",
        workload: Kind::Set,
        nemeses: "power",
        seconds: 20,
        rate: 300,
        shown_by: &["lost-element", "stale-read"],
    },
    Order {
        bug: "LeaseReadWithoutGuards",
        about: "a leader answers reads for as long as it believes that it leads",
        workload: Kind::Register,
        nemeses: "partition-leader,lease-hole",
        seconds: 30,
        rate: 200,
        shown_by: &["nonlinearizable"],
    },
    Order {
        bug: "FollowerReadWithoutReadIndex",
        about: "a follower answers reads from what it has applied",
        workload: Kind::Register,
        nemeses: "partition-halves",
        seconds: 20,
        rate: 200,
        shown_by: &["nonlinearizable"],
    },
    Order {
        bug: "ReadLocksIgnored",
        about: "a write does not mind the locks of those who read its key",
        workload: Kind::WriteSkew,
        nemeses: "none",
        seconds: 20,
        rate: 400,
        shown_by: &["write-skew", "lost-update", "G2-item", "G2-item-realtime"],
    },
    Order {
        bug: "MissingIsAborted",
        about: "a transaction whose record is missing is taken for aborted",
        workload: Kind::Append,
        nemeses: "pause,target-coordinator",
        seconds: 40,
        rate: 200,
        shown_by: TORN_LISTS,
    },
    Order {
        bug: "RetryAppliedTwice",
        about: "a request that is sent again takes effect again",
        workload: Kind::Counter,
        nemeses: "kill,pause,partition",
        seconds: 40,
        rate: 200,
        shown_by: &["out-of-bounds"],
    },
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::{self, Anomaly, Valid};
    use crate::report::sample;

    fn anomaly(name: &str) -> Anomaly {
        Anomaly { name: name.to_owned(), explanation: String::new(), ops: Vec::new() }
    }

    #[test]
    fn each_bug_is_shown_by_anomalies_that_its_checker_can_find() {
        for order in ORDERS {
            let checker = check::by_name(order.workload.name()).unwrap();
            assert!(!order.shown_by.is_empty(), "{}", order.bug);
            for name in order.shown_by {
                assert!(checker.anomalies().contains(name), "{}: {name}", order.bug);
            }
        }
    }

    #[test]
    fn only_the_anomalies_of_a_bug_count_as_found() {
        let mut results = sample();
        (results.valid, results.verdict.valid) = (Valid::Invalid, Valid::Invalid);
        results.findings = vec![anomaly("replicas-differ"), anomaly("lost-element")];
        results.verdict.anomalies = vec![anomaly("duplicate-element")];
        assert_eq!(ORDERS[0].found(&results), BTreeSet::new());
        results.verdict.anomalies.push(anomaly("lost-element"));
        assert_eq!(ORDERS[0].found(&results), BTreeSet::from(["lost-element".to_owned()]));
    }
}
