//! Floor 3: the deterministic machine of a shard. Command in, writes and outcomes out.
//!
//! [`apply`] is a pure function of the state, a view and an entry: no clock, no randomness, no I/O, no
//! knowledge of who leads. The same log gives the same state on every replica, byte for byte. Which
//! replica may answer a read, and when, is decided above (`node/`); what a read sees is decided here.
//!
//! One file for each family of commands: `single` (put, delete, compare-and-swap), `counter`, `batch`.
//! `outcome` recognises retries, `checksum` chains what was written, `read` answers reads.

mod apply;
mod batch;
mod checksum;
mod counter;
mod outcome;
mod read;
mod single;
mod state;

#[cfg(test)]
mod tests;

pub use apply::apply;
pub use checksum::{RowsChecksum, checksum_rows};
pub use read::{MAX_EXAMINED_ROWS, Page, PageRequest, get_at, get_latest, scan_page};
pub use state::{Command, Entry, State};
