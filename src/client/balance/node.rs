//! What a client knows of one node: the figures, and whether it is ejected. Events in, facts out.

/// The time constant of the mean latency.
const LATENCY_OVER_US: f64 = 1e6;
/// No answer weighs more than this in the mean, however long ago the last one was.
const MOST_WEIGHT: f64 = 0.3;
/// So many answers make a mean that others are compared with.
const ENOUGH_ANSWERS: u32 = 3;
/// ... if the first of them, or the node's return, is so long ago: one that was idle is fast at first.
const SETTLED_US: u64 = 1_000_000;
/// Of the first answers each weighs at least one part in so many.
const FIRST_ANSWERS: u32 = 10;
/// An old figure that speaks against a node counts half after this time.
const FADES_BY_HALF_US: f64 = 2e6;
/// Slow answers are remembered longer: half of them after this time.
const SLOW_FADES_BY_HALF_US: f64 = 20e6;
/// An outlier is slower than four times the others' latency and 2 ms, below which it is not worth doing
/// anything about; where the others take so long that this is 6 ms more than twice their latency, than that.
const OUTLIER_FACTOR: f64 = 2.0;
const OUTLIER_EXCESS_US: f64 = 2_000.0;
const MOST_EXCESS_US: f64 = 6_000.0;
/// The least latency seen of a node rises to its mean with this time constant.
const LEAST_OVER_US: f64 = 60e6;
/// An idle node may take at least this part of what the others' load adds to their latency.
const LEAST_PART: f64 = 0.25;
/// So many separate slow answers eject, if the mean is slow too.
const SLOW_TO_EJECT: f64 = 2.5;
/// A node that owes answers and gave none for so long is ejected, while others answer.
const SILENT_US: u64 = 1_000_000;
/// Failures in a row that eject.
const FAILURES_TO_EJECT: u32 = 3;
/// The part of failed reads, over the last twenty or so, that ejects.
const RATIO_TO_EJECT: f64 = 0.5;
const RATIO_WEIGHT: f64 = 0.05;
/// A node that failed is avoided for so long, and after the second failure in a row for twice as long.
const AVOIDED_US: u64 = 1_000_000;
/// Good probes that bring a slow node back at the first ejection, and how many more at each later one.
const SLOW_RUN: u32 = 12;
const SLOW_RUN_STEP: u32 = 6;
/// The run grows with at most so many ejections ...
const MOST_LEVEL: u32 = 3;
/// ... and one is forgotten in each such time of being well.
const LEVEL_FORGOTTEN_US: u64 = 30_000_000;
/// A bad probe takes back so many good ones.
const BAD_PROBE: u32 = 8;
/// A slow node is back also after this time with no bad probe and at least five good ones.
const PATIENCE_US: u64 = 3_000_000;
const PATIENCE_PROBES: u32 = 5;
/// From one probe to the next: at least this, and at random up to so much more, lest they fall into step with
/// a node that stalls at regular intervals ...
const PROBE_GAP_US: u64 = 25_000;
const PROBE_JITTER_US: u64 = 150_000;
/// ... and either so many reads, so that probes are a small part of them, or so much time. A node that fails
/// is cheap to ask, a slow or busy one is not.
const PROBE_READS: u32 = 12;
const PROBE_FAILING_US: u64 = 4_000_000;
const PROBE_SLOW_US: u64 = 10_000_000;
/// A node that the cluster finds slow is spared for so long after a reply last said so.
const SPARED_US: u64 = 10_000_000;
/// ... if of what replies said lately more than this part lists it. One node of three that is wrong thus changes
/// nothing for a client that reads often: neither if it lists a node for ever, nor if it never lists one, where
/// that is slow: then the words of the two others would make the client change its mind all the time.
const TOLD_PART: f64 = 0.7;
/// What a reply said counts half after this time. For a client that reads once a second the last word counts,
/// since it has none to waste; one that reads often waits until most say the same.
const TOLD_FADES_BY_HALF_US: f64 = 250e3;
/// A probe that was never reported on is given up after this time.
const PROBE_LOST_US: u64 = 10_000_000;

/// How a read failed at a node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::client) enum FailureKind {
    /// It never reached the node.
    Refused,
    /// The node said that it has too much to do.
    Overloaded,
    /// It may have reached the node, which did not answer.
    Lost,
    /// The node said that it can't serve reads now: it is behind, or knows no leader.
    Stale,
}

/// How a probe ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::client) enum Probed {
    /// It was answered.
    Answered {
        /// From sending to the answer.
        latency_us: u64,
        /// How many reads the node said to have under way.
        load: u32,
    },
    /// It failed.
    Failed(FailureKind),
    /// It was not sent, or nobody waited for it: it says nothing.
    Abandoned,
}

/// Why a node was ejected.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::client) enum Cause {
    /// Reads failed; the last one so.
    Failures(FailureKind),
    /// It was slower than the other replicas.
    Slow {
        /// Its mean latency.
        latency_us: u64,
        /// The most that the other replicas' latency allowed.
        bound_us: u64,
    },
    /// It owed answers and gave none, while others did.
    Silent {
        /// For how long.
        waited_us: u64,
    },
}

/// The state of a node that gets no users' reads.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) struct Ejected {
    pub(super) cause: Cause,
    pub(super) since_us: u64,
    /// The good probes that count.
    pub(super) run: u32,
    /// How many bring it back.
    pub(super) need: u32,
    /// When it last was found bad.
    bad_us: u64,
    /// When a read last counted as a probe.
    counted_us: u64,
}

impl Ejected {
    pub(super) fn is_for_latency(&self) -> bool {
        !matches!(self.cause, Cause::Failures(_))
    }
}

/// What a typical other replica is like.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) struct Others {
    pub(super) mean_us: f64,
    pub(super) least_us: f64,
    pub(super) load: f64,
}

impl Others {
    /// The most that a probe may take at a node which says that it has so much to do: one that gets no users'
    /// reads has to be faster than those that do.
    fn probe_bound_us(&self, load: f64) -> f64 {
        let part = if self.load > load { (load / self.load).max(LEAST_PART) } else { 1.0 };
        outlier_bound(self.least_us + (self.mean_us - self.least_us) * part)
    }
}

/// A number of replies, each of which counts less with time.
#[derive(Clone, Debug, Default)]
pub(super) struct Words {
    count: f64,
    at_us: u64,
}

impl Words {
    fn at(&self, now_us: u64) -> f64 {
        faded(self.count, now_us.saturating_sub(self.at_us), TOLD_FADES_BY_HALF_US)
    }

    /// One more. Answers with how many there are.
    pub(super) fn add(&mut self, now_us: u64) -> f64 {
        self.count = self.at(now_us) + 1.0;
        self.at_us = now_us;
        self.count
    }
}

/// The figures of one node. Times are those of the caller's clock.
#[derive(Clone, Debug, Default)]
pub(super) struct Node {
    pub(super) in_flight: u32,
    /// Since when answers are owed and none came; means nothing while none is in flight.
    owing_since_us: u64,
    answered_us: u64,
    answers: u32,
    mean_us: f64,
    least_us: f64,
    load: f64,
    slow: f64,
    slow_us: u64,
    /// Failures in a row, and when the last was.
    pub(super) failures: u32,
    failed_us: u64,
    failure_ratio: f64,
    /// Slower than this is slow, by the other replicas of the last choice.
    pub(super) bound_us: Option<f64>,
    /// What the others of the last choice are like.
    others: Option<Others>,
    pub(super) ejected: Option<Ejected>,
    level: u32,
    /// When it came back, or gave its first answer.
    back_us: u64,
    probe_sent_us: Option<u64>,
    probed_us: u64,
    next_probe_us: u64,
    reads_since_probe: u32,
    /// The replies that listed it among the slow ones, and when the last did.
    listed: Words,
    listed_us: u64,
    spared_until_us: u64,
}

/// What an age leaves of a figure.
fn faded(figure: f64, age_us: u64, half_us: f64) -> f64 {
    figure * (-(age_us as f64) / half_us).exp2()
}

impl Node {
    pub(super) fn sent(&mut self, now_us: u64) {
        if self.in_flight == 0 {
            self.owing_since_us = now_us;
        }
        self.in_flight = self.in_flight.saturating_add(1);
    }

    /// A read that was sent `latency_us` ago was answered.
    pub(super) fn answered(&mut self, now_us: u64, latency_us: u64, load: u32) {
        self.served(now_us);
        self.learn(now_us, latency_us, load);
        self.count(now_us, now_us.saturating_sub(latency_us), Some((latency_us, load)));
    }

    /// A read was answered, whenever it was sent.
    pub(super) fn served(&mut self, now_us: u64) {
        self.in_flight = self.in_flight.saturating_sub(1);
        self.owing_since_us = now_us;
        self.failures = 0;
        self.failure_ratio -= self.failure_ratio * RATIO_WEIGHT;
    }

    /// A read that was sent `waited_us` ago is no longer waited for.
    pub(super) fn abandoned(&mut self, now_us: u64, waited_us: u64) {
        self.in_flight = self.in_flight.saturating_sub(1);
        // It would have taken longer still.
        if self.answers > 0 && waited_us as f64 > self.mean_us {
            self.learn_latency(now_us, waited_us);
        }
    }

    /// A read failed.
    pub(super) fn failed(&mut self, now_us: u64, kind: FailureKind) {
        self.in_flight = self.in_flight.saturating_sub(1);
        self.owing_since_us = now_us;
        self.fail(now_us);
        self.failure_ratio += (1.0 - self.failure_ratio) * RATIO_WEIGHT;
        if self.ejected.is_none()
            && (self.failures >= FAILURES_TO_EJECT || self.failure_ratio >= RATIO_TO_EJECT)
        {
            self.eject(now_us, Cause::Failures(kind));
        }
        self.count(now_us, now_us, None);
    }

    fn fail(&mut self, now_us: u64) {
        self.failures = self.failures.saturating_add(1);
        self.failed_us = now_us;
    }

    /// A probe that was allowed by [`take_probe`](Self::take_probe) has ended.
    pub(super) fn probed(&mut self, now_us: u64, outcome: Probed) {
        let Some(sent_us) = self.probe_sent_us.take() else { return };
        match outcome {
            Probed::Answered { latency_us, load } => {
                self.failures = 0;
                self.learn(now_us, latency_us, load);
                self.count(now_us, sent_us, Some((latency_us, load)));
            }
            Probed::Failed(_) => {
                self.fail(now_us);
                self.count(now_us, sent_us, None);
            }
            Probed::Abandoned => {}
        }
    }

    fn learn(&mut self, now_us: u64, latency_us: u64, load: u32) {
        let load = f64::from(load);
        let before = self.load_against(now_us);
        self.load = if load > before { load } else { (before + load) / 2.0 };
        self.learn_latency(now_us, latency_us);
    }

    /// The mean is over time: an answer stands for the time since the one before.
    fn learn_latency(&mut self, now_us: u64, latency_us: u64) {
        let latency = latency_us as f64;
        let since = now_us.saturating_sub(self.answered_us) as f64;
        let mut weight = (1.0 - (-since / LATENCY_OVER_US).exp()).min(MOST_WEIGHT);
        if self.answers < FIRST_ANSWERS {
            weight = weight.max(1.0 / f64::from(self.answers + 1));
        }
        self.mean_us += (latency - self.mean_us) * weight;
        let rise = (since / LEAST_OVER_US).min(MOST_WEIGHT);
        self.least_us = if self.answers == 0 {
            latency
        } else {
            latency.min(self.least_us + (latency - self.least_us) * rise)
        };
        // Those that were under way together in one stall are one slow answer.
        let sent_us = now_us.saturating_sub(latency_us);
        if self.bound_us.is_some_and(|bound| latency > bound) && sent_us >= self.slow_us {
            let age_us = now_us.saturating_sub(self.slow_us);
            self.slow = faded(self.slow, age_us, SLOW_FADES_BY_HALF_US) + 1.0;
            self.slow_us = now_us;
        }
        if self.answers == 0 {
            self.back_us = now_us;
        }
        self.answers = self.answers.saturating_add(1);
        self.answered_us = now_us;
    }

    /// Takes a read of an ejected node, which was sent at `sent_us`, as a probe of it. `answer` is its
    /// latency and load; `None` failed.
    fn count(&mut self, now_us: u64, sent_us: u64, answer: Option<(u64, u32)>) {
        let others = self.others;
        let Some(ejected) = self.ejected.as_mut().filter(|ejected| sent_us >= ejected.since_us) else {
            return;
        };
        let for_latency = ejected.is_for_latency();
        let is_good = |(latency_us, load): &(u64, u32)| {
            let bound_us = others.map_or(f64::MAX, |others| others.probe_bound_us(f64::from(*load)));
            !for_latency || *latency_us as f64 <= bound_us
        };
        if answer.filter(is_good).is_none() {
            ejected.bad_us = now_us;
            ejected.run = if for_latency { ejected.run.saturating_sub(BAD_PROBE) } else { 0 };
            return;
        }
        // Many reads at once say no more than one.
        if now_us.saturating_sub(ejected.counted_us) < PROBE_GAP_US {
            return;
        }
        ejected.counted_us = now_us;
        ejected.run += 1;
        let patient = for_latency
            && ejected.run >= PATIENCE_PROBES
            && now_us.saturating_sub(ejected.bad_us) >= PATIENCE_US;
        if ejected.run >= ejected.need || patient {
            self.ejected = None;
            self.back_us = now_us;
            self.failure_ratio = 0.0;
            self.answers = 0;
            self.slow = self.slow.min(SLOW_TO_EJECT - 1.0);
        }
    }

    fn eject(&mut self, now_us: u64, cause: Cause) {
        let forgotten = now_us.saturating_sub(self.back_us) / LEVEL_FORGOTTEN_US;
        let level = self.level.saturating_sub(u32::try_from(forgotten).unwrap_or(u32::MAX));
        self.level = (level + 1).min(MOST_LEVEL);
        let need = match cause {
            Cause::Failures(_) => 1 << (self.level - 1),
            Cause::Slow { .. } | Cause::Silent { .. } => SLOW_RUN + SLOW_RUN_STEP * (self.level - 1),
        };
        self.ejected =
            Some(Ejected { cause, since_us: now_us, run: 0, need, bad_us: now_us, counted_us: now_us });
        self.probed_us = now_us;
        self.next_probe_us = now_us + PROBE_GAP_US;
        self.reads_since_probe = 0;
    }

    /// A reply said which nodes are slow. `words` is how many did lately, this one among them.
    pub(super) fn told(&mut self, now_us: u64, is_listed: bool, words: f64) {
        if is_listed {
            self.listed.add(now_us);
            self.listed_us = now_us;
        } else if !self.is_spared(now_us) {
            return;
        }
        let is_clear = self.listed.at(now_us) > words * TOLD_PART;
        self.spared_until_us = if is_clear { self.listed_us + SPARED_US } else { 0 };
    }

    /// Whether the cluster finds it slow.
    pub(super) fn is_spared(&self, now_us: u64) -> bool {
        now_us < self.spared_until_us
    }

    /// The time up to which it is spared, where no reply says otherwise.
    pub(super) fn spared_until_us(&self) -> u64 {
        self.spared_until_us
    }

    /// Takes in what the other replicas are like, which bounds what is not slow.
    pub(super) fn compare_with(&mut self, others: Option<Others>) {
        if let Some(others) = others {
            self.bound_us = Some(outlier_bound(others.mean_us));
            self.others = Some(others);
        }
    }

    /// What it is like, if there were enough answers to compare others with it.
    pub(super) fn as_other(&self, now_us: u64) -> Option<Others> {
        let Self { mean_us, least_us, load, .. } = *self;
        self.is_settled(now_us).then_some(Others { mean_us, least_us, load })
    }

    /// Why it should be ejected for its latency. `others_us` is when another replica last answered.
    pub(super) fn outlier(&self, now_us: u64, others_us: u64) -> Option<Cause> {
        let bound_us = self.bound_us?;
        let slow = faded(self.slow, now_us.saturating_sub(self.slow_us), SLOW_FADES_BY_HALF_US);
        if slow >= SLOW_TO_EJECT && self.against_us(now_us) > bound_us {
            return Some(Cause::Slow { latency_us: self.mean_us as u64, bound_us: bound_us as u64 });
        }
        let waited_us = self.waited_us(now_us);
        // Where nobody answers, it is the client that was held up.
        let others_answer = now_us.saturating_sub(others_us) < SILENT_US / 4;
        (waited_us >= SILENT_US && others_answer).then_some(Cause::Silent { waited_us })
    }

    pub(super) fn eject_outlier(&mut self, now_us: u64, cause: Cause) {
        self.eject(now_us, cause);
    }

    /// Whether a copy of this read shall go to this node, which is ejected. If so, one is under way until
    /// [`probed`](Self::probed).
    pub(super) fn take_probe(&mut self, now_us: u64, random: u64) -> bool {
        let Some(ejected) = &self.ejected else { return false };
        self.reads_since_probe = self.reads_since_probe.saturating_add(1);
        if self.probe_sent_us.is_some_and(|sent_us| now_us.saturating_sub(sent_us) < PROBE_LOST_US) {
            return false;
        }
        let longest_us = match ejected.cause {
            Cause::Failures(FailureKind::Overloaded) | Cause::Slow { .. } | Cause::Silent { .. } => {
                PROBE_SLOW_US
            }
            Cause::Failures(_) => PROBE_FAILING_US,
        };
        let due = self.reads_since_probe >= PROBE_READS
            || now_us.saturating_sub(self.probed_us) >= longest_us + random % longest_us / 4;
        if !due || now_us < self.next_probe_us {
            return false;
        }
        self.probe_sent_us = Some(now_us);
        self.probed_us = now_us;
        self.next_probe_us = now_us + PROBE_GAP_US + random % PROBE_JITTER_US;
        self.reads_since_probe = 0;
        true
    }

    /// Its mean latency, if there were enough answers to compare others with it.
    pub(super) fn latency_us(&self, now_us: u64) -> Option<f64> {
        self.is_settled(now_us).then_some(self.mean_us)
    }

    fn is_settled(&self, now_us: u64) -> bool {
        self.answers >= ENOUGH_ANSWERS && now_us.saturating_sub(self.back_us) >= SETTLED_US
    }

    /// Its mean latency as far as it still speaks against the node.
    pub(super) fn against_us(&self, now_us: u64) -> f64 {
        faded(self.mean_us, now_us.saturating_sub(self.answered_us), FADES_BY_HALF_US)
    }

    /// For how long it has owed an answer without giving any.
    pub(super) fn waited_us(&self, now_us: u64) -> u64 {
        if self.in_flight == 0 { 0 } else { now_us.saturating_sub(self.owing_since_us) }
    }

    /// Whether it lets the client wait for longer than a node that is well.
    pub(super) fn is_stuck(&self, now_us: u64) -> bool {
        self.bound_us.is_some_and(|bound| self.waited_us(now_us) as f64 > bound)
    }

    /// The time up to which it is avoided because it failed.
    pub(super) fn avoided_until_us(&self) -> u64 {
        match self.failures {
            0 => 0,
            failures => self.failed_us + (AVOIDED_US << (failures - 1).min(2)),
        }
    }

    /// How many reads the node is believed to have under way.
    pub(super) fn queue(&self) -> f64 {
        self.load.max(f64::from(self.in_flight))
    }

    /// The same as far as it still speaks against the node.
    pub(super) fn queue_against(&self, now_us: u64) -> f64 {
        self.load_against(now_us).max(f64::from(self.in_flight))
    }

    fn load_against(&self, now_us: u64) -> f64 {
        faded(self.load, now_us.saturating_sub(self.answered_us), FADES_BY_HALF_US)
    }

    pub(super) fn answered_us(&self) -> u64 {
        self.answered_us
    }
}

/// What is slow beside replicas of this latency.
pub(super) fn outlier_bound(others_us: f64) -> f64 {
    let excess_us = (others_us * OUTLIER_FACTOR + OUTLIER_EXCESS_US).min(MOST_EXCESS_US);
    others_us * OUTLIER_FACTOR + excess_us
}
