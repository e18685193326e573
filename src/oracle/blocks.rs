//! Blocks of timestamps under a ceiling.

use super::PhysicalMs;
use crate::types::Timestamp;

/// How far ahead of physical time a raise puts the ceiling, in milliseconds.
pub const CEILING_AHEAD_MS: u64 = 5000;
/// A raise is due when less than this is left under the ceiling, in milliseconds.
pub const RAISE_WHEN_LEFT_MS: u64 = 2500;
/// The least that a raise leaves above what has been handed out, in milliseconds: where a new leader starts
/// above a ceiling that is still ahead of its time. Short, so that a row of short-lived leaders does not
/// carry timestamps ahead of the clock.
const LEAST_RAISE_MS: u64 = 1000;
/// The highest ceiling. The oracle never reaches [`Timestamp::MAX`].
const TOP: Timestamp = Timestamp::MAX.before();

/// Timestamps that follow one another: each belongs to one command only.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Block {
    /// The first.
    pub first: Timestamp,
    /// How many.
    pub count: u64,
}

impl Block {
    /// The timestamps, rising.
    pub fn timestamps(&self) -> impl Iterator<Item = Timestamp> + use<> {
        let first = self.first;
        (0..self.count).map(move |place| first.plus(place))
    }
}

/// There is no room under the ceiling: raise it at least so far, then ask again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NeedCeiling {
    /// The timestamp that must lie at or below the ceiling.
    pub at_least: Timestamp,
}

/// Hands out timestamps: rising, none twice, none above the ceiling.
#[derive(Clone, Debug)]
pub struct Oracle {
    /// The highest handed out, or perhaps handed out by a leader before.
    last: Timestamp,
    /// The highest that may be handed out.
    ceiling: Timestamp,
    /// The highest that a block could not be cut for.
    wanted: Timestamp,
}

impl Oracle {
    /// An oracle for a new leader. `ceiling` must hold every raise that any leader before it may have
    /// counted on: read after an entry of the own term has been applied. Starts above it, so it needs a
    /// raise of its own before it hands out anything.
    pub fn new(ceiling: Timestamp) -> Self {
        Self { last: ceiling, ceiling, wanted: Timestamp::ZERO }
    }

    /// Cuts a block of `count` timestamps, at or after `now`. When a millisecond's timestamps are used up the
    /// next one's are taken. A block of none uses up nothing.
    ///
    /// # Errors
    ///
    /// [`NeedCeiling`] where the block would go past the ceiling; then nothing is used up.
    pub fn cut(&mut self, now: PhysicalMs, count: u64) -> Result<Block, NeedCeiling> {
        let first = self.next(now);
        let Some(more) = count.checked_sub(1) else { return Ok(Block { first, count }) };
        let last = Timestamp(first.0.saturating_add(more));
        if last > self.ceiling {
            let at_least = last.min(TOP);
            self.wanted = self.wanted.max(at_least);
            return Err(NeedCeiling { at_least });
        }
        self.last = last;
        Ok(Block { first, count })
    }

    /// The ceiling to propose, where a raise is due: physical time has less than [`RAISE_WHEN_LEFT_MS`] left,
    /// or what is handed out (which runs ahead of a clock that is behind) has little left, or a block could
    /// not be cut. Stays due until a raise is applied: propose one at a time.
    pub fn next_ceiling(&self, now: PhysicalMs) -> Option<Timestamp> {
        let next = self.next(now);
        let due = self.wanted > self.ceiling
            || ahead(physical(now), RAISE_WHEN_LEFT_MS) > self.ceiling
            || ahead(next, LEAST_RAISE_MS / 2) > self.ceiling;
        let from_now = ahead(physical(now), CEILING_AHEAD_MS);
        let to = from_now.max(ahead(next.max(self.wanted), LEAST_RAISE_MS));
        (due && to > self.ceiling).then_some(to)
    }

    /// A raise has been applied: it counts from here on. A lower ceiling than the present changes nothing.
    pub fn raised(&mut self, to: Timestamp) {
        self.ceiling = self.ceiling.max(to.min(TOP));
    }

    /// The highest timestamp that may be handed out.
    pub fn ceiling(&self) -> Timestamp {
        self.ceiling
    }

    /// The highest timestamp handed out (or, before the first, the ceiling found at the start).
    pub fn last(&self) -> Timestamp {
        self.last
    }

    fn next(&self, now: PhysicalMs) -> Timestamp {
        physical(now).max(self.last.plus(1))
    }
}

/// The first timestamp of a millisecond. A time past the last one that timestamps can hold says nothing.
fn physical(now: PhysicalMs) -> Timestamp {
    if now.0 < TOP.ms() { Timestamp::from_ms(now.0) } else { Timestamp::ZERO }
}

/// The timestamp `ms` milliseconds later, or the highest.
fn ahead(ts: Timestamp, ms: u64) -> Timestamp {
    Timestamp(ts.0.saturating_add(Timestamp::from_ms(ms).0)).min(TOP)
}
