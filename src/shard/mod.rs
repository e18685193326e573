//! Floor 3: the deterministic machine of a shard. Command in, writes and outcomes out.
//!
//! [`apply`] is a pure function of the state, a view and an entry: no clock, no randomness, no I/O, no
//! knowledge of who leads. The same log gives the same state on every replica, byte for byte. Which
//! replica may answer a read, and when, is decided above (`node/`); what a read sees is decided here.

mod state;

pub use state::{Command, Entry, State};
