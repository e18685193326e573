//! Bugs on order: what the server can be made to do wrong, and the run that must find it.
//!
//! A test that has never found anything may not be able to. A server that is built with known bugs has one of them from its
//! start where `KVORUM_BUG` names it; each run here is made with one, and its checker must find what such a bug does to a
//! history. What a run shows besides, as replicas that differ, does not count. Control runs of the same server without
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
    /// How many clients work at a time.
    pub clients: u64,
    /// How many nodes there are.
    pub nodes: u64,
    /// How many shards keys are spread over.
    pub shards: u32,
    /// How long a client's call may take, in milliseconds.
    pub deadline_ms: u64,
    /// What the nodes have in their environment besides the bug's name. The control has it too.
    pub environment: Option<(&'static str, &'static str)>,
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

/// What most orders have in common.
const USUAL: Order = Order {
    bug: "",
    about: "",
    workload: Kind::Append,
    nemeses: "none",
    seconds: 20,
    rate: 200,
    clients: 10,
    nodes: 3,
    shards: 4,
    deadline_ms: 4_000,
    environment: None,
    shown_by: &[],
};

/// Five in a hundred coordinators wait for four and a half seconds before they lock the primary key. Others take locks
/// for left behind after three.
const HELD_UP: Option<(&str, &str)> = Some(("KVORUM_DELAY", "primary-prepare:4500:5"));

/// What a control has for the name of a bug.
pub const NO_BUG: &str = "none (control)";

/// The runs of the same server without any bug, which must be valid. Sagas have their own: their workers do wrong by
/// themselves, and none of that may look like a bug.
pub const CONTROLS: [Order; 2] = [
    Order {
        bug: NO_BUG,
        about: "nothing is wrong: the run must be valid",
        workload: Kind::Counter,
        nemeses: "kill,pause",
        clients: 30,
        deadline_ms: 20_000,
        environment: HELD_UP,
        ..USUAL
    },
    Order {
        bug: NO_BUG,
        about: "nothing is wrong with sagas: the run must be valid",
        workload: Kind::Saga,
        nemeses: "kill,pause",
        seconds: 30,
        ..USUAL
    },
];

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

/// What changes that were passed over show as.
const TORN_CHANGES: &[&str] = &[
    "torn-transaction",
    "lost-transaction",
    "wrong-before-image",
    "wrong-replay",
    "wrong-rows",
    "followers-differ",
];

/// How often each is looked for, under a new seed each time.
pub const ATTEMPTS: u32 = 5;

/// All of them.
pub const ORDERS: [Order; 12] = [
    Order {
        bug: "AcknowledgeBeforeSync",
        about: "writes are acknowledged before they are synced",
        workload: Kind::Set,
        nemeses: "power",
        rate: 300,
        shown_by: &["lost-element", "stale-read"],
        ..USUAL
    },
    Order {
        bug: "LeaseReadWithoutGuards",
        about: "a leader answers reads for as long as it believes that it leads",
        workload: Kind::Register,
        nemeses: "partition-leader,lease-hole",
        seconds: 30,
        shown_by: &["nonlinearizable"],
        ..USUAL
    },
    Order {
        bug: "FollowerReadWithoutReadIndex",
        about: "a follower answers reads from what it has applied",
        workload: Kind::Register,
        nemeses: "partition-halves",
        shown_by: &["nonlinearizable"],
        ..USUAL
    },
    // Coordinators stand still for moments after they have locked what they read, and whoever writes there does not wait.
    Order {
        bug: "ReadLocksIgnored",
        about: "a write does not mind the locks of those who read its key",
        seconds: 30,
        rate: 400,
        clients: 30,
        environment: Some(("KVORUM_DELAY", "primary-prepare:300:20")),
        shown_by: TORN_LISTS,
        ..USUAL
    },
    // A coordinator stands still between two messages, as a paused process may, until others recover its locks.
    Order {
        bug: "MissingIsAborted",
        about: "a transaction whose record is missing is taken for aborted",
        workload: Kind::Counter,
        seconds: 30,
        clients: 30,
        deadline_ms: 20_000,
        environment: HELD_UP,
        shown_by: &["out-of-bounds"],
        ..USUAL
    },
    Order {
        bug: "RetryAppliedTwice",
        about: "a request that is sent again takes effect again",
        workload: Kind::Counter,
        nemeses: "kill,pause,partition",
        seconds: 40,
        shown_by: &["out-of-bounds"],
        ..USUAL
    },
    Order {
        bug: "ChangesPastLocks",
        about: "a page of changes reaches past prepared locks",
        workload: Kind::Changelog,
        nemeses: "kill",
        shown_by: TORN_CHANGES,
        ..USUAL
    },
    Order {
        bug: "IndexWatermarkAhead",
        about: "an index tells whoever waits for it that it is there, whatever it has written",
        workload: Kind::Index,
        nemeses: "kill",
        shown_by: &["missed-own-write"],
        ..USUAL
    },
    // Two projectors are at work where the node of one of them stands still, or is cut off, and does not know it yet.
    Order {
        bug: "IndexForgetsCheckpoint",
        about: "an index is written without a look at the checkpoint that another projector may have left",
        workload: Kind::Index,
        nemeses: "target-coordinator,pause",
        seconds: 30,
        shown_by: &["index-differs", "wrong-answer", "missed-own-write"],
        ..USUAL
    },
    // Workers of sagas fail by themselves, and are killed, whatever the faults.
    Order {
        bug: "SagaForgetsUnsure",
        about: "an attempt at a saga's step that was lost counts as one that did nothing",
        workload: Kind::Saga,
        nemeses: "kill",
        shown_by: &["not-undone", "missing-compensation"],
        ..USUAL
    },
    Order {
        bug: "SagaStaleFence",
        about: "the end of an attempt at a saga's step counts as that of the newest one",
        workload: Kind::Saga,
        nemeses: "kill",
        seconds: 30,
        shown_by: &["stale-end", "not-undone"],
        ..USUAL
    },
    // A commit reaches a node that stands still while its worker has the lease, and is carried out once it does not.
    Order {
        bug: "SagaTxnWithoutLease",
        about: "the transaction that is a saga's step is committed whether or not its worker holds the step",
        workload: Kind::Saga,
        nemeses: "pause",
        seconds: 40,
        shown_by: &["doubled-effect", "not-undone"],
        ..USUAL
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
