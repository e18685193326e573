//! Bugs on order: what the server can be made to do wrong, and the run that must find it.
//!
//! A test that has never found anything may not be able to. A server that is built with known bugs has one of them from its
//! start where `KVORUM_BUG` names it; each run here is made with one, and must come out invalid.

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
}

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
    },
    Order {
        bug: "LeaseReadWithoutGuards",
        about: "a leader answers reads for as long as it believes that it leads",
        workload: Kind::Register,
        nemeses: "partition-leader,lease-hole",
        seconds: 30,
        rate: 200,
    },
    Order {
        bug: "FollowerReadWithoutReadIndex",
        about: "a follower answers reads from what it has applied",
        workload: Kind::Register,
        nemeses: "partition-halves",
        seconds: 20,
        rate: 200,
    },
    Order {
        bug: "ReadLocksIgnored",
        about: "a write does not mind the locks of those who read its key",
        workload: Kind::WriteSkew,
        nemeses: "none",
        seconds: 20,
        rate: 400,
    },
    Order {
        bug: "MissingIsAborted",
        about: "a transaction whose record is missing is taken for aborted",
        workload: Kind::Append,
        nemeses: "pause,target-coordinator",
        seconds: 40,
        rate: 200,
    },
    Order {
        bug: "RetryAppliedTwice",
        about: "a request that is sent again takes effect again",
        workload: Kind::Counter,
        nemeses: "kill,pause,partition",
        seconds: 40,
        rate: 200,
    },
];
