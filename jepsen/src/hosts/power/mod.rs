//! A disk whose power can be cut: a volume that forgets what was not synced, mounted where a node keeps its data.

mod mount;
mod volume;

pub use mount::{PowerDisk, available};
pub use volume::{Attributes, Ino, ROOT, Refused, Usage, Volume};
