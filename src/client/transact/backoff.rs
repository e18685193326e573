//! How long a transaction waits after a conflict before it starts again. No clock; the jitter is an argument.
//!
//! This is the place where a hint about whose turn it is on a hot key would come in: a wait that is known in
//! advance instead of drawn.

use std::time::Duration;

use bytes::Bytes;

use super::Priority;
use crate::types::Error;

/// The first ceiling is the time that the attempt took, between these two: who meets another within that time
/// meets it again unless the two start so far apart.
const SHORTEST_STEP_MS: u64 = 4;
const LONGEST_STEP_MS: u64 = 100;
/// The last ceiling is so many times the first: some sixty transactions over one hot key, one after the other.
const MOST_STEPS: u64 = 64;
/// No ceiling is higher.
const LONGEST_CEILING_MS: u64 = 2000;
/// What a lower or higher priority multiplies or divides a wait by.
const PRIORITY_FACTOR: u32 = 4;

/// The conflicts of one transaction so far.
#[derive(Debug)]
pub(super) struct Backoff {
    priority: Priority,
    /// How often the ceiling was doubled.
    doublings: u32,
    /// The key of the last conflict.
    last: Option<Bytes>,
}

impl Backoff {
    pub(super) fn new(priority: Priority) -> Self {
        Self { priority, doublings: 0, last: None }
    }

    /// The wait after a conflict, in an attempt that `took` so long: anything from nothing up to a ceiling that
    /// doubles with every conflict, and doubles twice where the same key was in the way again, since others wait for
    /// it too. `jitter` is from 0 to 1; all of it counts, so that those who met at a key do not meet again.
    pub(super) fn after(&mut self, error: &Error, took: Duration, jitter: f64) -> Duration {
        let took_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        let step = took_ms.clamp(SHORTEST_STEP_MS, LONGEST_STEP_MS);
        let steps = (1 << self.doublings.min(16)).min(MOST_STEPS);
        let ceiling = (step * steps).min(LONGEST_CEILING_MS);
        let key = error.conflict.as_ref().and_then(|conflict| conflict.key.clone());
        let is_hot = key.is_some() && key == self.last;
        self.doublings += if is_hot { 2 } else { 1 };
        self.last = key;
        let ceiling = Duration::from_millis(ceiling);
        let ceiling = match self.priority {
            Priority::Low => ceiling * PRIORITY_FACTOR,
            Priority::Normal => ceiling,
            Priority::High => ceiling / PRIORITY_FACTOR,
        };
        ceiling.mul_f64(jitter.clamp(0.0, 1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Conflict, ConflictReason, Timestamp};

    fn on(key: &'static str) -> Error {
        let conflict = Conflict {
            reason: ConflictReason::Changed,
            key: Some(key.into()),
            ts: Some(Timestamp(1)),
            is_final: true,
        };
        Error::conflict("changed", conflict)
    }

    fn ceilings(priority: Priority, took_ms: u64, conflicts: &[&'static str]) -> Vec<u128> {
        let mut backoff = Backoff::new(priority);
        let took = Duration::from_millis(took_ms);
        conflicts.iter().map(|key| backoff.after(&on(key), took, 1.0).as_millis()).collect()
    }

    #[test]
    fn waits_grow_and_faster_on_one_key() {
        let (low, normal, high) = (Priority::Low, Priority::Normal, Priority::High);
        assert_eq!(ceilings(normal, 0, &["a", "b", "c", "d"]), [4, 8, 16, 32]);
        assert_eq!(ceilings(normal, 0, &["a", "a", "a", "a", "a", "a"]), [4, 8, 32, 128, 256, 256]);
        assert_eq!(ceilings(low, 0, &["a", "b"]), [16, 32]);
        assert_eq!(ceilings(high, 0, &["a", "b"]), [1, 2]);
    }

    #[test]
    fn waits_are_as_long_as_the_attempts_that_collide() {
        let same = ["a", "a", "a", "a"];
        assert_eq!(ceilings(Priority::Normal, 20, &same), [20, 40, 160, 640]);
        assert_eq!(ceilings(Priority::Normal, 60_000, &same), [100, 200, 800, 2000]);
    }

    #[test]
    fn all_of_the_jitter_counts() {
        let mut backoff = Backoff::new(Priority::Normal);
        assert_eq!(backoff.after(&on("a"), Duration::ZERO, 0.0), Duration::ZERO);
        assert_eq!(backoff.after(&on("b"), Duration::ZERO, 0.5), Duration::from_millis(4));
    }
}
