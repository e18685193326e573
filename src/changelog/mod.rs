//! Floor 2: the changelog as its consumer sees it: one stream of whole transactions, in the order of their commit
//! timestamps, whatever the shards are or become.
//!
//! [`Cursor`] is the place in it that a consumer keeps. Pure, and part of the client.

mod cursor;

#[cfg(test)]
mod tests;

pub use cursor::{Cursor, CursorState};
