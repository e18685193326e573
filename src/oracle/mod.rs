//! Floor 3: timestamps in blocks under a ceiling.
//!
//! [`Oracle`] hands out timestamps that rise and never repeat, also across leaders: none above a ceiling
//! that is raised through the system shard's log, and a new leader starts above the ceiling it finds there.
//! [`PhysicalClock`] makes one physical time of a wall clock and a monotonic one. Neither reads a clock:
//! what the time is, is an argument.

mod blocks;
mod clock;

#[cfg(test)]
mod tests;

pub use blocks::{Block, CEILING_AHEAD_MS, NeedCeiling, Oracle, RAISE_WHEN_LEFT_MS};
pub use clock::{MAX_JUMP_MS, PhysicalClock, PhysicalMs, Reading};
