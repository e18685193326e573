//! Floor 2: the changelog as its consumer sees it: one stream of whole transactions, in the order of their commit
//! timestamps, whatever the shards are or become.
//!
//! Each shard keeps rows that say which key was changed when ([`record`]). [`Merge`] makes one stream out of [`Page`]s
//! of many shards, and [`Cursor`] is the place in it that a consumer keeps. Both are pure, and part of the client; who
//! asks the shards, and when again, decides the edge.

mod cursor;
mod merge;
mod page;
pub mod record;

#[cfg(test)]
mod tests;

pub use cursor::{Cursor, CursorState};
pub use merge::Merge;
pub use page::{Accepted, Ask, Page, Part};
