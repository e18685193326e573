//! Linearizability and serializability tests of kvorum: clients work on a real cluster while faults strike it,
//! everything they saw is written down, and checkers say whether a correct store could have answered so.
//!
//! Modules, each importing only from those below it: `run` (one test from set-up to verdict), `report`,
//! `workload`, `nemesis`, `hosts`, `check` and `history`. The last two are pure.

pub mod check;
pub mod history;
pub mod hosts;
pub mod nemesis;
pub mod report;
pub mod run;
pub mod workload;
