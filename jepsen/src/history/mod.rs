//! Operations of clients: what they are, how they are recorded, written and read.
//!
//! A history is a sequence of [`Op`]s in the order in which they happened: an invocation when a client calls
//! the store, and a completion when it has its answer. [`Recorder`] makes one out of many threads, [`jsonl`]
//! and [`edn`] are the two file formats, and [`History`] pairs each invocation with its completion.

pub mod edn;
pub mod form;
pub mod jsonl;
mod op;
mod pairing;
mod queries;
mod read;
mod recorder;
pub mod saga;
mod shape;
#[cfg(test)]
mod tests;
mod told;

pub use op::{F, Kind, MicroOp, Op, Seen, Value};
pub use pairing::{Builder, Call, History, Malformed, Pair};
pub use queries::{Dump, Query};
pub use read::ReadError;
pub use recorder::Recorder;
pub use shape::value_form as to_edn_value;
pub use told::{Changed, Following, Told};
