//! Noticing that the machine was suspended.
//!
//! Monotonic time stands still while a machine sleeps (`CLOCK_MONOTONIC` of Linux), so a leader that
//! wakes up would take its lease for as young as it was. The wall clock goes on: where it has moved much
//! further than the monotonic one, the machine slept, or somebody set the clock; either way no word from
//! before counts any more. What is noticed is a sleep between two looks. One that begins right after a look
//! is not noticed by whoever looked; nothing here can do that.

use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use tokio::time::Instant;

/// Compares the two clocks from one look to the next.
pub(super) struct Wakefulness {
    /// How much further the wall clock may move between two looks.
    tolerance: Duration,
    seen: Mutex<Seen>,
}

struct Seen {
    /// Both clocks at the last look.
    monotonic: Instant,
    wall: SystemTime,
    /// When it was last noticed that the machine had slept; the first look where it never was.
    woke: Instant,
}

impl Wakefulness {
    /// The first look.
    pub fn begin(tolerance: Duration, monotonic: Instant, wall: SystemTime) -> Self {
        Self { tolerance, seen: Mutex::new(Seen { monotonic, wall, woke: monotonic }) }
    }

    /// A look at both clocks. Answers for how long, up to `monotonic`, the machine has been awake for all that
    /// is known: what is older proves nothing.
    pub fn look(&self, monotonic: Instant, wall: SystemTime) -> Duration {
        let mut seen = self.seen.lock();
        // Another thread may have looked later and been here first.
        let awake = monotonic.saturating_duration_since(seen.monotonic);
        // A wall clock that was set back tells nothing.
        let passed = wall.duration_since(seen.wall).unwrap_or_default();
        if passed > awake + self.tolerance {
            tracing::warn!(
                ?passed,
                ?awake,
                "the machine was suspended, or its clock was set: leases are void"
            );
            seen.woke = seen.woke.max(monotonic);
        }
        if monotonic >= seen.monotonic {
            (seen.monotonic, seen.wall) = (monotonic, wall);
        }
        monotonic.saturating_duration_since(seen.woke)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sleep_is_noticed_and_what_is_sent_after_it_counts() {
        let ms = Duration::from_millis;
        let (start, wall) = (Instant::now(), SystemTime::now());
        let clocks = Wakefulness::begin(ms(50), start, wall);
        assert_eq!(clocks.look(start + ms(100), wall + ms(100)), ms(100));
        // Clocks that run a little apart are no sleep, however long it goes on.
        for second in 1..100 {
            let awake = clocks.look(start + ms(1000 * second), wall + ms(1010 * second));
            assert_eq!(awake, ms(1000 * second));
        }
        let (woke, wall) = (start + ms(100_100), wall + ms(105_000));
        assert_eq!(clocks.look(woke, wall), ms(0));
        // From then on it counts anew, also while the clock is set back.
        assert_eq!(clocks.look(woke + ms(10), wall + ms(10)), ms(10));
        assert_eq!(clocks.look(woke + ms(20), wall - ms(9000)), ms(20));
        assert_eq!(clocks.look(woke + ms(30), wall - ms(8990)), ms(30));
        // A look that was overtaken by another, and one from before the sleep was noticed.
        assert_eq!(clocks.look(woke + ms(25), wall - ms(8995)), ms(25));
        assert_eq!(clocks.look(woke - ms(5), wall - ms(9025)), ms(0));
        // A clock that is set forward is taken for a sleep.
        assert_eq!(clocks.look(woke + ms(40), wall), ms(0));
    }
}
