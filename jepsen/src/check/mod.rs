//! Checkers: whether a history could have come from a correct store. Pure: no I/O, no clock.
//!
//! Each checker is for one workload and says which anomalies it can find; [`by_name`] gives them. A history
//! in which almost nothing succeeded proves nothing, and its verdict is [`Valid::Unknown`].

mod append;
mod bank;
mod bounds;
mod changelog;
mod counter;
mod graph;
mod index;
mod long_fork;
mod monotonic;
mod register;
pub mod saga;
mod set;
mod show;
mod verdict;
mod write_skew;

pub use append::Append;
pub use bank::Bank;
pub use changelog::Changelog;
pub use counter::Counter;
pub use index::{BY_TEAM, COUNT_BY_TEAM, Index, SUM_BY_TEAM, TEAMS, team};
pub use long_fork::LongFork;
pub use monotonic::Monotonic;
pub use register::Registers;
pub use saga::Sagas;
pub use set::Set;
pub use verdict::{Anomaly, Valid, Verdict};
pub use write_skew::WriteSkew;

use crate::history::History;

/// Says whether a history could have come from a correct store.
pub trait Checker: Send + Sync {
    /// The workload that this checker is for.
    fn name(&self) -> &'static str;

    /// The names of all anomalies that it can find.
    fn anomalies(&self) -> &'static [&'static str];

    /// Checks a whole history.
    fn check(&self, history: &History) -> Verdict;
}

/// What checkers take as given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// How many successful operations of each needed sort a history must show for being called valid.
    pub least_ok: u64,
    /// What all balances of a bank add up to. Without it, the opening balances (a `write` with a map) say so,
    /// and without those the first read.
    pub total: Option<i64>,
    /// Whether an account of a bank may be below zero.
    pub allow_negative: bool,
    /// States that the search for linearizations goes through at most, over all keys; with more the verdict is
    /// unknown. It keeps one key's states at a time, 32 bytes each. Each key may have 20,000 in any case.
    pub max_states: usize,
    /// Edges that the search for shortest cycles follows for one sort of cycle at most. A search that is cut
    /// off may report a longer cycle, or a weaker sort, than there is.
    pub max_search: u64,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            least_ok: 20,
            total: None,
            allow_negative: false,
            max_states: 4_000_000,
            max_search: 100_000_000,
        }
    }
}

/// The workloads that have a checker.
pub const WORKLOADS: [&str; 11] = [
    "register",
    "append",
    "set",
    "counter",
    "bank",
    "long-fork",
    "write-skew",
    "monotonic",
    "changelog",
    "index",
    "saga",
];

/// The checker of a workload under the usual options, `None` if there is no such workload.
pub fn by_name(workload: &str) -> Option<Box<dyn Checker>> {
    with_options(workload, Options::default())
}

/// The checker of a workload, `None` if there is no such workload.
pub fn with_options(workload: &str, options: Options) -> Option<Box<dyn Checker>> {
    Some(match workload {
        "register" => Box::new(Registers::new(options)),
        "append" => Box::new(Append::new(options)),
        "set" => Box::new(Set::new(options)),
        "counter" => Box::new(Counter::new(options)),
        "bank" => Box::new(Bank::new(options)),
        "long-fork" => Box::new(LongFork::new(options)),
        "write-skew" => Box::new(WriteSkew::new(options)),
        "monotonic" => Box::new(Monotonic::new(options)),
        "changelog" => Box::new(Changelog::new(options)),
        "index" => Box::new(Index::new(options)),
        "saga" => Box::new(Sagas::new(options)),
        _ => return None,
    })
}
