//! What a sum can be while additions to it are under way.

use crate::history::{Call, Kind};

/// An addition to a sum.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Addition {
    /// Place of its invocation.
    pub start: usize,
    /// Place of its completion as ok; `usize::MAX` if nobody knows whether it took effect.
    pub end: usize,
    /// What it adds, perhaps below zero.
    pub delta: i64,
}

impl Addition {
    /// The addition that a call makes, `None` if it failed.
    pub(crate) fn of(call: &Call<'_>, delta: i64) -> Option<Self> {
        (call.outcome() != Kind::Fail).then_some(Addition { start: call.start, end: call.end, delta })
    }
}

/// Answers what a sum can be for a reader, in logarithmic time.
#[derive(Debug)]
pub(crate) struct Bounds {
    /// Sums of what is certain from a place on.
    ended: Steps,
    /// Sums of what is possible from a place on.
    started: Steps,
}

/// Running sums of negative and positive deltas, by place.
#[derive(Debug)]
struct Steps {
    places: Vec<usize>,
    sums: Vec<(i64, i64)>,
}

impl Steps {
    fn new(mut events: Vec<(usize, i64)>) -> Self {
        events.sort_unstable();
        let mut sums = vec![(0, 0)];
        let mut sum = (0_i64, 0_i64);
        for (_, delta) in &events {
            sum = (sum.0.saturating_add(*delta.min(&0)), sum.1.saturating_add(*delta.max(&0)));
            sums.push(sum);
        }
        Steps { places: events.into_iter().map(|(place, _)| place).collect(), sums }
    }

    /// The sums of everything at places before `place`.
    fn before(&self, place: usize) -> (i64, i64) {
        self.sums[self.places.partition_point(|at| *at < place)]
    }
}

impl Bounds {
    pub(crate) fn new(additions: &[Addition]) -> Self {
        let certain = additions.iter().filter(|addition| addition.end != usize::MAX);
        Bounds {
            ended: Steps::new(certain.map(|addition| (addition.end, addition.delta)).collect()),
            started: Steps::new(additions.iter().map(|addition| (addition.start, addition.delta)).collect()),
        }
    }

    /// The least and the greatest sum that a read from place `start` to place `end` can see: additions that
    /// ended before it are in it, those that began after it are not, and of all others each may be.
    pub(crate) fn range(&self, start: usize, end: usize) -> (i64, i64) {
        let certain = self.ended.before(start);
        let possible = self.started.before(end);
        (possible.0.saturating_add(certain.1), certain.0.saturating_add(possible.1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certain_additions_count_and_others_may() {
        let sure = Addition { start: 0, end: 1, delta: 5 };
        let concurrent = Addition { start: 2, end: 5, delta: -2 };
        let unknown = Addition { start: 3, end: usize::MAX, delta: 10 };
        let bounds = Bounds::new(&[sure, concurrent, unknown]);
        assert_eq!(bounds.range(0, 1), (0, 5));
        assert_eq!(bounds.range(2, 3), (3, 5));
        assert_eq!(bounds.range(4, 6), (3, 15));
        assert_eq!(bounds.range(6, 7), (3, 13));
    }
}
