//! Floor 2: query indexes, as pure functions: from rows to entries, and from queries to ranges of them.
//!
//! A query index is a read model over users' rows. Whoever follows the changelog asks [`delta`] what a changed row
//! changes in the index, gathers that in a [`Batch`], and writes it; [`from_scan`] is the whole index computed from all
//! rows, and what any history must come to. Whoever asks makes a [`Plan`] of a [`Query`], scans the ranges that it
//! names, and pushes the rows through a [`Reader`]. A [`Step`] is what a projector writes in one transaction, with the
//! [`Checkpoint`] that says how far the index is.
//!
//! An index does not refuse writes: it comes after them. So a `unique` index shows duplicates instead of preventing
//! them, and a row that can't be indexed is reported ([`RowError`]) and counts as not in the index.
//!
//! Nothing here reads, writes, waits, or knows when it is. The rows are laid out in `layout`.

mod catalogue;
mod datum;
mod definition;
mod delta;
mod explain;
mod extract;
mod field;
mod fixed;
mod layout;
mod number;
mod parse;
mod plan;
mod projection;
mod query;
mod ranges;
mod read;
mod source;
mod token;

#[cfg(test)]
mod tests;

pub use catalogue::{Catalogued, Version};
pub use datum::Datum;
pub use definition::{Definition, Kind, Missing, OnError, Spec};
pub use delta::{Batch, Delta, GroupChange, delta, from_scan};
pub use extract::RowError;
pub use field::{DatumType, Field, Order};
pub use fixed::Fixed;
pub use number::Number;
pub use plan::{Plan, plan};
pub use projection::{Checkpoint, DeadLetter, State, Step, checkpoint_key, dead_letters, definition_key};
pub use query::{Aggregate, Condition, OrderBy, Query, QueryText, Test};
pub use read::{EntryItem, GroupItem, Item, Next, Reader};
pub use source::{Path, Source};
