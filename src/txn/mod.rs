//! Floor 3: the commit protocol as seen from outside the shards, as machines: an event in, actions out.
//!
//! Three machines, each total and without clock, randomness and I/O: [`Coordinator`] carries one commit,
//! [`Recovery`] ends one that nobody carries any more, [`Inquiry`] tells a reader what to make of a lock. They
//! share their [`Action`]s and [`Event`]s. What a shard makes of the commands is decided in `shard/`; who sends
//! them, and when again, by the edge in `node/`.

mod commit;
mod coordinator;
mod cut;
mod ending;
mod inquiry;
mod recovery;
mod step;

#[cfg(test)]
mod tests;

pub use commit::{Path, TxnCommit};
pub use coordinator::Coordinator;
pub use inquiry::{Inquiry, Learnt};
pub use recovery::Recovery;
pub use step::{Action, Event, Step, Verdict};
