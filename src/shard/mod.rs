//! Floor 3: the deterministic machine of a shard. Command in, writes and outcomes out.
//!
//! [`apply`] is a pure function of the state, a view and an entry: no clock, no randomness, no I/O, no
//! knowledge of who leads. The same log gives the same state on every replica, byte for byte. Which
//! replica may answer a read, and when, is decided above (`node/`); what a read sees is decided here.
//!
//! One file for each family of commands: `single` (put, delete, compare-and-swap), `counter`, `batch`;
//! of transactions `commit` (in one shard), `prepare`, `decide` (with abort and forget), `mark`, `finish`.
//! `lock` and `record` hold their rows, `validate` says whether one may be committed.
//! `outcome` recognises retries, `checksum` chains what was written, `gc` says what may be dropped, `read`
//! answers reads, `changes` writes and reads the changelog, `status` answers questions about transactions.

mod apply;
mod batch;
mod changes;
mod checksum;
mod commit;
mod counter;
mod decide;
mod finish;
mod gc;
mod lock;
mod mark;
mod outcome;
mod prepare;
mod read;
mod record;
mod single;
mod state;
mod status;
mod validate;

#[cfg(test)]
mod tests;

pub use apply::apply;
pub use changes::{ChangesPage, ChangesRequest, changes_after, changes_page, cut_to_size};
pub use checksum::{RowsChecksum, checksum_rows};
pub use gc::may_drop;
pub use read::{
    Fate, Fates, Look, MAX_EXAMINED_ROWS, MAX_PAGE_LOCKS, Page, PageLook, PageRequest, check_readable, look,
    scan_page,
};
pub use state::{Command, Counts, Entry, State};
pub use status::{Unfinished, expired_locks, lock_of, txn_status, unfinished};
