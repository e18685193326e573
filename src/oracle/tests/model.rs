//! Random histories: leaders that cut, raise and crash, under clocks that jump.

use proptest::prelude::*;

use crate::oracle::{MAX_JUMP_MS, Oracle, PhysicalClock, PhysicalMs};
use crate::types::Timestamp;

#[derive(Clone, Debug)]
enum Event {
    /// The leader's clock shows another time.
    Now(u64),
    Cut(u64),
    /// The leader proposes the raise that is due.
    Propose,
    /// The oldest proposal is applied: the log has it, and the leader hears of it, if it still leads.
    Apply {
        heard: bool,
    },
    /// The leader is gone. Its open proposals are in the log of the next one, or not.
    Crash {
        kept: usize,
    },
}

fn event() -> impl Strategy<Value = Event> {
    let top = Timestamp::MAX.ms();
    let now = prop_oneof![6 => 0..60_000u64, 1 => top - 10..top + 10, 1 => any::<u64>()];
    let count = prop_oneof![8 => 0..5000u64, 1 => 0..40_000_000u64, 1 => any::<u64>()];
    prop_oneof![
        3 => now.prop_map(Event::Now),
        4 => count.prop_map(Event::Cut),
        3 => Just(Event::Propose),
        3 => any::<bool>().prop_map(|heard| Event::Apply { heard }),
        1 => (0..3usize).prop_map(|kept| Event::Crash { kept }),
    ]
}

proptest! {
    #[test]
    fn no_timestamp_twice_none_above_the_ceiling_across_leaders(
        events in proptest::collection::vec(event(), 0..200),
    ) {
        // What the log says, and what is on its way into it.
        let mut replicated = Timestamp::ZERO;
        let mut proposed: Vec<Timestamp> = Vec::new();
        let mut oracle = Oracle::new(replicated);
        let mut now = PhysicalMs(0);
        let mut last = None;
        for event in events {
            match event {
                Event::Now(ms) => now = PhysicalMs(ms),
                Event::Cut(count) => {
                    let before = oracle.clone();
                    match oracle.cut(now, count) {
                        Ok(block) if block.count > 0 => {
                            prop_assert_eq!(block.count, count);
                            prop_assert!(last.is_none_or(|last| block.first > last));
                            let end = block.first.plus(block.count - 1);
                            prop_assert!(end <= replicated && end < Timestamp::MAX);
                            last = Some(end);
                        }
                        Ok(_) => prop_assert_eq!(oracle.last(), before.last()),
                        Err(need) => {
                            prop_assert_eq!(oracle.last(), before.last());
                            prop_assert!(need.at_least > oracle.ceiling() || need.at_least.plus(1) == Timestamp::MAX);
                        }
                    }
                }
                Event::Propose => {
                    if let Some(to) = oracle.next_ceiling(now) {
                        prop_assert!(to > oracle.ceiling() && to < Timestamp::MAX);
                        proposed.push(to);
                    }
                }
                Event::Apply { heard } => {
                    if !proposed.is_empty() {
                        let to = proposed.remove(0);
                        replicated = replicated.max(to);
                        if heard {
                            oracle.raised(to);
                        }
                    }
                }
                Event::Crash { kept } => {
                    for to in proposed.drain(..).take(kept) {
                        replicated = replicated.max(to);
                    }
                    oracle = Oracle::new(replicated);
                }
            }
        }
    }

    #[test]
    fn a_need_that_is_met_is_the_last(now in 0..100_000u64, ceiling in 0..100_000u64, count in 1..50_000_000u64) {
        let now = PhysicalMs(now);
        let mut oracle = Oracle::new(Timestamp::from_ms(ceiling));
        if let Err(need) = oracle.cut(now, count) {
            let to = oracle.next_ceiling(now).expect("a raise is due");
            prop_assert!(to >= need.at_least);
            oracle.raised(to);
            prop_assert!(oracle.cut(now, count).is_ok());
        }
    }

    #[test]
    fn physical_time_keeps_up_with_monotonic_time_and_never_runs_away(
        readings in proptest::collection::vec((0..30_000_000u64, 0..100_000u64), 1..50),
    ) {
        let mut mono = 1000;
        let mut clock = PhysicalClock::new(Timestamp::UNIX_OFFSET_MS + 5000, mono);
        let (start, mut last) = ((5000, mono), (5000, mono));
        for (wall, passed) in readings {
            mono += passed;
            let now = clock.read(Timestamp::UNIX_OFFSET_MS + wall, mono).now.0;
            prop_assert!(now >= start.0 + (mono - start.1), "time stands still");
            let expected = (last.0 + (mono - last.1)).max(start.0 + (mono - start.1));
            prop_assert!(now <= expected + MAX_JUMP_MS, "time jumps");
            prop_assert!(wall > expected + MAX_JUMP_MS || now >= wall, "a clock that is right is believed");
            last = (now, mono);
        }
    }
}
