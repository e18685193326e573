//! The edge of transactions: carries out what the machines in `txn/` decide.
//!
//! `router` finds the leader of the shard that a command or a question is for, `wire` is how it travels to
//! another node, `drive` runs a machine, `coordinate` commits for clients, `resolve` tells readers what
//! became of the locks they met, `recover` ends transactions that nobody ends.

mod coordinate;
mod drive;
mod recover;
mod resolve;
mod router;
mod wire;

pub use coordinate::commit;
pub use recover::run as run_recovery;
pub use resolve::resolve;
pub use router::Router;
pub use wire::{CALL, answer};
