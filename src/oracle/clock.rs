//! Physical time out of a wall clock that may jump and a monotonic one that has no date.

use crate::types::Timestamp;

/// A wall clock further ahead than this of what monotonic time allows is not believed, in milliseconds.
pub const MAX_JUMP_MS: u64 = 60 * 60 * 1000;

/// Milliseconds since 2025-01-01 UTC, as timestamps count them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct PhysicalMs(pub u64);

impl PhysicalMs {
    /// From Unix milliseconds; before 2025 is zero.
    pub const fn from_unix_ms(unix_ms: u64) -> Self {
        Self(unix_ms.saturating_sub(Timestamp::UNIX_OFFSET_MS))
    }
}

/// What the clock says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Reading {
    /// Physical time.
    pub now: PhysicalMs,
    /// The wall clock has just jumped ahead by so many milliseconds more than [`MAX_JUMP_MS`] allows, and is
    /// ignored while it stays there. Said once, in the first reading that ignores it: for a warning.
    pub refused_jump_ms: Option<u64>,
}

/// Physical time = max(wall clock, time at start + monotonic time since the start). A wall clock that
/// jumps back stops nothing, and one that jumps far ahead is not followed: timestamps could never come
/// back from there.
///
/// Arguments are Unix milliseconds of the wall clock, and milliseconds of any clock that never goes back.
#[derive(Clone, Debug)]
pub struct PhysicalClock {
    /// The time at the start, and what the monotonic clock said then.
    start: (u64, u64),
    /// The last reading, and what the monotonic clock said then.
    last: (u64, u64),
    /// Whether the last reading ignored the wall clock.
    refusing: bool,
}

impl PhysicalClock {
    /// A clock that starts now. The wall clock is believed here: there is nothing to measure it by.
    pub fn new(wall_unix_ms: u64, monotonic_ms: u64) -> Self {
        let start = (PhysicalMs::from_unix_ms(wall_unix_ms).0, monotonic_ms);
        Self { start, last: start, refusing: false }
    }

    /// Says that it is not earlier than `time`. A new leader of the system shard calls it with the ceiling
    /// it found less [`CEILING_AHEAD_MS`](super::CEILING_AHEAD_MS), which some leader's clock has shown: so
    /// time goes on from there where this node's wall clock is behind, instead of standing still until it
    /// has caught up.
    pub fn not_before(&mut self, time: PhysicalMs, monotonic_ms: u64) {
        if time.0 > steady(self.start, monotonic_ms) {
            self.start = (time.0, monotonic_ms);
        }
    }

    /// What time it is.
    pub fn read(&mut self, wall_unix_ms: u64, monotonic_ms: u64) -> Reading {
        let wall = PhysicalMs::from_unix_ms(wall_unix_ms).0;
        let since_start = steady(self.start, monotonic_ms);
        // Measured from the last reading, so that a machine that slept for some minutes each night (its
        // monotonic clock stood still) is followed.
        let expected = steady(self.last, monotonic_ms).max(since_start);
        let jump = wall.saturating_sub(expected);
        let refused = jump > MAX_JUMP_MS;
        let now = if refused { expected } else { wall.max(since_start) };
        let refused_jump_ms = (refused && !self.refusing).then_some(jump);
        self.refusing = refused;
        self.last = (now, monotonic_ms.max(self.last.1));
        Reading { now: PhysicalMs(now), refused_jump_ms }
    }
}

/// The time at `monotonic_ms`, counted from a known moment.
fn steady((time, monotonic_then): (u64, u64), monotonic_ms: u64) -> u64 {
    time.saturating_add(monotonic_ms.saturating_sub(monotonic_then))
}
