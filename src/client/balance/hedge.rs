//! Whether and when a second copy of a read may be sent: a budget, and a wait. No clock.

/// Answers that have to be known before [`After::Auto`] names a wait.
const ENOUGH_ANSWERS: u64 = 64;
/// The wait of [`After::Auto`] is this percentile of the latencies.
const AUTO_PERCENT: u64 = 95;
/// After so many answers the counts are halved, so that old ones fade.
const HALVED_AFTER: u64 = 1024;
/// The most copies that may be saved up: what a stall can send at once.
const MOST_SAVED_PERCENT: u64 = 1000;
/// Buckets an octave; a bucket's upper end is at most a quarter above its lower.
const STEPS: u64 = 4;
const BUCKETS: usize = 160;

/// When a second copy of a read is sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::client) enum After {
    /// When the first has taken longer than 95 of 100 recent ones.
    Auto,
    /// After this time, in microseconds.
    FixedUs(u64),
}

/// What is allowed. Not to hedge is the default: a client without a [`Budget`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::client) struct Hedge {
    /// When.
    pub(in crate::client) after: After,
    /// The most second copies per hundred reads, in the long run.
    pub(in crate::client) budget_percent: u32,
}

/// The second copies that a client may still send. For every read: [`began`](Self::began), wait
/// [`wait_us`](Self::wait_us) for the answer, then [`take`](Self::take) where there is none.
#[derive(Clone, Debug)]
pub(in crate::client) struct Budget {
    hedge: Hedge,
    /// In hundredths of a copy.
    saved_percent: u64,
    /// Answers by latency, in buckets.
    counts: Vec<u64>,
    total: u64,
    auto_us: Option<u64>,
}

impl Budget {
    /// A budget with nothing saved.
    pub(in crate::client) fn new(hedge: Hedge) -> Self {
        Self { hedge, saved_percent: 0, counts: vec![0; BUCKETS], total: 0, auto_us: None }
    }

    /// A read begins: it earns its part of a copy.
    pub(in crate::client) fn began(&mut self) {
        let earned = u64::from(self.hedge.budget_percent.min(100));
        self.saved_percent = (self.saved_percent + earned).min(MOST_SAVED_PERCENT);
    }

    /// The first answer to a read came so long after it began.
    pub(in crate::client) fn answered(&mut self, latency_us: u64) {
        if self.hedge.after != After::Auto {
            return;
        }
        self.counts[bucket(latency_us)] += 1;
        self.total += 1;
        if self.total >= HALVED_AFTER {
            self.counts.iter_mut().for_each(|count| *count /= 2);
            self.total = self.counts.iter().sum();
        }
        // Walking the buckets for every answer would cost more than it gives.
        if self.total.is_multiple_of(ENOUGH_ANSWERS) || self.auto_us.is_none() {
            self.auto_us = self.percentile_us();
        }
    }

    /// How long to wait for the first copy before a second is sent; `None` where there may be none, because
    /// nothing is saved or too little is known.
    pub(in crate::client) fn wait_us(&self) -> Option<u64> {
        if self.saved_percent < 100 {
            return None;
        }
        match self.hedge.after {
            After::FixedUs(us) => Some(us),
            After::Auto => self.auto_us,
        }
    }

    /// Whether a second copy may be sent now; if so it is paid for.
    pub(in crate::client) fn take(&mut self) -> bool {
        match self.saved_percent.checked_sub(100) {
            Some(left) => {
                self.saved_percent = left;
                true
            }
            None => false,
        }
    }

    fn percentile_us(&self) -> Option<u64> {
        if self.total < ENOUGH_ANSWERS {
            return None;
        }
        let mut below = 0;
        let place = self.counts.iter().position(|count| {
            below += count;
            below * 100 >= self.total * AUTO_PERCENT
        })?;
        Some(upper_us(place))
    }
}

/// The bucket of a latency.
fn bucket(latency_us: u64) -> usize {
    let latency_us = latency_us.max(STEPS);
    let octave = u64::from(latency_us.ilog2());
    let step = (latency_us >> (octave - 2)) - STEPS;
    usize::try_from((octave - 2) * STEPS + step).unwrap_or(BUCKETS).min(BUCKETS - 1)
}

/// The least latency above a bucket.
fn upper_us(bucket: usize) -> u64 {
    let next = bucket as u64 + 1;
    (STEPS + next % STEPS) << (next / STEPS)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn budget(after: After, budget_percent: u32) -> Budget {
        Budget::new(Hedge { after, budget_percent })
    }

    #[test]
    fn a_latency_is_in_its_bucket() {
        for latency_us in (0..2000).chain([1 << 20, 123_456_789]) {
            let place = bucket(latency_us);
            assert!(latency_us < upper_us(place), "{latency_us}");
            assert!(place == 0 || latency_us >= upper_us(place - 1), "{latency_us}");
            assert!(upper_us(place) <= latency_us.max(STEPS) * 5 / 4 + 1, "{latency_us}");
        }
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn twenty_reads_at_five_percent_pay_for_one_copy() {
        let mut budget = budget(After::FixedUs(700), 5);
        for _ in 0..19 {
            budget.began();
            assert_eq!(budget.wait_us(), None);
            assert!(!budget.take());
        }
        budget.began();
        assert_eq!(budget.wait_us(), Some(700));
        assert!(budget.take());
        assert!(!budget.take());
    }

    #[test]
    fn at_most_ten_copies_are_saved_up_and_none_without_a_budget() {
        let mut rich = budget(After::FixedUs(1), 50);
        let mut poor = budget(After::FixedUs(1), 0);
        for _ in 0..10_000 {
            rich.began();
            poor.began();
        }
        assert_eq!((0..100).filter(|_| rich.take()).count(), 10);
        assert_eq!((poor.wait_us(), poor.take()), (None, false));
    }

    #[test]
    fn auto_waits_for_the_95th_percentile_of_recent_answers() {
        let mut budget = budget(After::Auto, 100);
        budget.began();
        for n in 0..63 {
            budget.answered(if n % 10 == 0 { 10_000 } else { 1_000 });
            assert_eq!(budget.wait_us(), None);
        }
        budget.answered(1_000);
        let wait_us = budget.wait_us().unwrap();
        assert!((10_000..=12_500).contains(&wait_us), "{wait_us}");
        for n in 0..4_096 {
            budget.answered(if n % 50 == 0 { 10_000 } else { 1_000 });
        }
        let wait_us = budget.wait_us().unwrap();
        assert!((1_000..=1_250).contains(&wait_us), "{wait_us}");
    }
}
