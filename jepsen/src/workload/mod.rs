//! What clients do: a generator of requests and a client that makes them, for each workload.
//!
//! A workload is made anew for each run, on an empty store. Its requests come from a seeded generator; what the store
//! does with them decides what is seen, and nothing else. [`make`] knows all workloads by name; another one
//! implements [`Workload`] and is added there.

mod append;
mod bank;
mod changelog;
mod counter;
mod index;
mod keys;
mod long_fork;
mod monotonic;
mod outcome;
mod reading;
mod register;
mod saga;
mod set;
mod told;
mod write_skew;

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use bytes::Bytes;
use futures::future::BoxFuture;
use kvorum::codec::keyspace;
use kvorum::{Client, Error};
use rand::rngs::SmallRng;
use serde::{Deserialize, Serialize};

pub use keys::{Rotation, placed, split_keys};
pub use outcome::Outcome;
pub use reading::ReadLevel;
pub use saga::{Crew, definition as saga_definition};
pub use told::told;

use crate::history::{F, Following, MicroOp, Recorder, Value};
use crate::hosts::Cluster;

/// What a client asks for: an operation of the history before it has a process and a time.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Request {
    /// The function.
    pub f: F,
    /// The register, set or counter; transactions name their own.
    pub key: Option<String>,
    /// Its arguments.
    pub value: Value,
}

impl Request {
    /// A request about one key.
    pub fn of(key: impl Into<String>, f: F, value: Value) -> Self {
        Self { f, key: Some(key.into()), value }
    }

    /// A request about no key, or several.
    pub fn whole(f: F, value: Value) -> Self {
        Self { f, key: None, value }
    }

    /// Whether it changes nothing, so that one that fails in whatever way has had no effect.
    pub fn only_reads(&self) -> bool {
        match &self.value {
            Value::Txn(steps) => steps.iter().all(|step| matches!(step, MicroOp::Read { .. })),
            _ => matches!(self.f, F::Read | F::Follow | F::Query | F::Dump | F::Await | F::Inspect | F::List),
        }
    }
}

/// Somebody who follows changes while clients work.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FollowerPlan {
    /// The name.
    pub name: &'static str,
    /// What it asks for.
    pub following: Following,
    /// When it begins, in hundredths of the time in which clients work.
    pub begins_at_percent: u64,
    /// Whether it drops its stream again and again, and goes on from a cursor.
    pub resumes: bool,
}

/// A workload of one run. Its methods are called from many tasks.
pub trait Workload: Send + Sync {
    /// Requests that come before all others, one after the other; each has to succeed.
    fn opening(&self) -> Vec<Request> {
        Vec::new()
    }

    /// The next request.
    fn next(&self, rng: &mut SmallRng) -> Request;

    /// A request with what the client that makes it knows: when its own last write was committed.
    fn knowing(&self, request: Request, own_commit: Option<u64>) -> Request {
        let _ = own_commit;
        request
    }

    /// Makes a request, once, by a client whose calls have a deadline.
    fn perform<'a>(
        &'a self,
        client: &'a Client,
        request: &'a Request,
        level: ReadLevel,
    ) -> BoxFuture<'a, Outcome>;

    /// Reads of everything, when the load and all faults are over.
    fn closing(&self) -> Vec<Request>;

    /// A key, as stored, that is in use now: whose shard a fault may aim at.
    fn hot_key(&self) -> String;

    /// Where a fault may aim: that key, with the byte of its keyspace.
    fn hot_place(&self) -> Bytes {
        keyspace::user_key(self.hot_key().as_bytes())
    }

    /// The number that is stored in some bytes, of which followers are told.
    ///
    /// # Errors
    /// `Corrupt` where no client wrote them.
    fn held(&self, stored: &[u8]) -> Result<i64, Error> {
        outcome::number(stored)
    }

    /// Those who follow changes meanwhile.
    fn followers(&self) -> Vec<FollowerPlan> {
        Vec::new()
    }

    /// Those who work at sagas meanwhile; they begin at once.
    fn crew(&self, cluster: &Arc<Cluster>, recorder: &Arc<Recorder>, seed: u64) -> Option<Crew> {
        let _ = (cluster, recorder, seed);
        None
    }
}

/// A workload that can be made by name.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Reads, writes and compare-and-swaps of single keys.
    Register,
    /// Elements that are added to sets, and scans of whole sets.
    Set,
    /// Additions to counters, and reads.
    Counter,
    /// Transfers between accounts, and reads of all of them.
    Bank,
    /// Transactions that append to lists and read them, over shards.
    Append,
    /// Writes of single keys and reads of several: all readers must see the same order.
    LongFork,
    /// Transactions that read two keys and write one of them.
    WriteSkew,
    /// Additions and reads with the timestamps that the store gives them.
    Monotonic,
    /// Writes of all sorts, and followers who are told of every change.
    Changelog,
    /// Rows that move between groups, and queries of their indexes.
    Index,
    /// Sagas, and workers that fail and are killed.
    Saga,
}

impl Kind {
    /// Every workload.
    pub const ALL: [Self; 11] = [
        Self::Register,
        Self::Set,
        Self::Counter,
        Self::Bank,
        Self::Append,
        Self::LongFork,
        Self::WriteSkew,
        Self::Monotonic,
        Self::Changelog,
        Self::Index,
        Self::Saga,
    ];

    /// Whether it reads outside transactions, so that its reads can be of every level.
    pub const fn reads_alone(self) -> bool {
        matches!(self, Self::Register | Self::Set | Self::Counter | Self::Bank | Self::LongFork)
    }

    /// Its name on the command line and in results.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Register => "register",
            Self::Set => "set",
            Self::Counter => "counter",
            Self::Bank => "bank",
            Self::Append => "append",
            Self::LongFork => "long-fork",
            Self::WriteSkew => "write-skew",
            Self::Monotonic => "monotonic",
            Self::Changelog => "changelog",
            Self::Index => "index",
            Self::Saga => "saga",
        }
    }

    /// What it does and what it shows, in a sentence.
    pub const fn about(self) -> &'static str {
        match self {
            Self::Register => "read, write and compare-and-swap single keys: linearizable per key",
            Self::Set => {
                "add elements to sets, scan whole sets over shards: nothing lost, nothing comes back"
            }
            Self::Counter => "add to counters and read them: each addition counts once",
            Self::Bank => "transfer between accounts, read all of them: the sum never changes",
            Self::Append => {
                "transactions that append to lists and read them, over shards: strictly serializable"
            }
            Self::LongFork => "write single keys, read several at once: all see one order",
            Self::WriteSkew => "read two keys and write one of them: no two decide on what the other changes",
            Self::Monotonic => {
                "raise and read counters with timestamps: their order is the order of real time"
            }
            Self::Changelog => {
                "write of all sorts and follow the changes: each is told once, whole and in order, and all come to the data"
            }
            Self::Index => {
                "move rows between groups and query their indexes: own writes are seen, and each index is what the rows come to"
            }
            Self::Saga => {
                "start, cancel and signal sagas whose workers fail and are killed: each ends done, or undone in order"
            }
        }
    }

    /// A workload for one run.
    pub fn make(self) -> Box<dyn Workload> {
        match self {
            Self::Register => Box::new(register::Register::default()),
            Self::Set => Box::new(set::Sets::default()),
            Self::Counter => Box::new(counter::Counters::default()),
            Self::Bank => Box::new(bank::Bank),
            Self::Append => Box::new(append::Append::default()),
            Self::LongFork => Box::new(long_fork::LongFork::default()),
            Self::WriteSkew => Box::new(write_skew::WriteSkew::default()),
            Self::Monotonic => Box::new(monotonic::Monotonic),
            Self::Changelog => Box::new(changelog::Changelog::default()),
            Self::Index => Box::new(index::Indexes::default()),
            Self::Saga => Box::new(saga::Sagas::default()),
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.name())
    }
}

impl FromStr for Kind {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let known = Self::ALL.map(Self::name).join(", ");
        let found = Self::ALL.into_iter().find(|kind| kind.name() == name);
        found.ok_or_else(|| format!("there is no workload {name:?}; there are: {known}"))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use rand::SeedableRng;

    use super::*;

    #[test]
    fn every_workload_is_known_by_its_name() {
        for kind in Kind::ALL {
            assert_eq!(kind.name().parse(), Ok(kind));
        }
        assert!("chess".parse::<Kind>().unwrap_err().contains("long-fork"));
    }

    #[test]
    fn the_same_seed_gives_the_same_requests_and_both_reads_and_writes() {
        for kind in Kind::ALL {
            let draw = |seed| {
                let (workload, mut rng) = (kind.make(), SmallRng::seed_from_u64(seed));
                (0..500).map(|_| workload.next(&mut rng)).collect::<Vec<_>>()
            };
            assert_eq!(draw(1), draw(1), "{kind}");
            assert_ne!(draw(1), draw(2), "{kind}");
            let reads = draw(1).iter().filter(|request| request.only_reads()).count();
            assert!((50..450).contains(&reads), "{kind}: {reads} of 500 requests are reads");
        }
    }

    #[test]
    fn every_key_that_is_asked_for_is_read_at_the_end() {
        // These read everything, without naming it.
        let whole = [Kind::Bank, Kind::Changelog, Kind::Index];
        for kind in Kind::ALL.into_iter().filter(|kind| !whole.contains(kind)) {
            let (workload, mut rng) = (kind.make(), SmallRng::seed_from_u64(3));
            let keys = |request: &Request| -> Vec<String> {
                match &request.value {
                    Value::Txn(steps) => steps.iter().map(|step| step.key().to_owned()).collect(),
                    _ => request.key.iter().cloned().collect(),
                }
            };
            let asked: HashSet<String> = (0..500).flat_map(|_| keys(&workload.next(&mut rng))).collect();
            let closing = workload.closing();
            assert!(closing.iter().all(Request::only_reads), "{kind}");
            let read: HashSet<String> = closing.iter().flat_map(keys).collect();
            assert!(asked.is_subset(&read), "{kind}: {:?}", asked.difference(&read));
        }
    }
}
