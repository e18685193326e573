//! What a replica knows of its shard's closed timestamp, and how old that knowledge is at most.
//!
//! A replica that has applied an entry has everything that is at or below the entry's timestamp. An idle shard has
//! no new entries, so each node asks the leaders of its shards, a few times a second and once for all shards of one
//! leader, for a *word*: a timestamp and a log index such that whoever has applied that index has everything at or
//! below the timestamp. The node asks, rather than being told, so that it knows by its own clock when the word was
//! true at the latest: a message that was long under way can't make old data look fresh.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use crate::raft::Progress;
use crate::types::{Timestamp, limits};

/// Words that wait for the replica to catch up, at most. The newest is always kept, and the oldest, which comes true
/// first.
const MOST_PENDING: usize = 8;
/// Words that are remembered for ages. The older ones are thinned out.
const MOST_REMEMBERED: usize = 256;
/// Older words are apart by one part in so many of their age.
const APART_PART: u32 = 16;
/// Two clocks may go at different speeds: an age counts for one part in this more than it was measured.
const DRIFT_PART: u32 = 64;

/// What a leader said.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Word {
    /// Whoever has applied `index` has everything at or below this.
    pub closed: Timestamp,
    /// The log index.
    pub index: u64,
}

/// The words about one shard.
#[derive(Default, Debug)]
pub struct ClosedWords {
    /// The newest timestamp that is known to be closed here.
    reached: Timestamp,
    /// Words whose index was not applied yet when they were last looked at; both numbers rise.
    pending: VecDeque<Word>,
}

/// When timestamps were asked for, of all that were handed out to others for this node: what ages are measured by.
/// Timestamps alone would not do: the oracle's run slower than time after a clock that was ahead has been set back.
#[derive(Default, Debug)]
pub struct Ages {
    /// By timestamp; both rise.
    asked: VecDeque<(Timestamp, Instant)>,
}

impl ClosedWords {
    /// Takes in a word. Words of different leaders may come in any order.
    pub fn heard(&mut self, word: Word) {
        // One that says less than the last of those that wait helps nobody.
        if self.pending.back().is_some_and(|last| last.closed >= word.closed) {
            return;
        }
        while self.pending.back().is_some_and(|last| last.index >= word.index) {
            self.pending.pop_back();
        }
        if self.pending.len() >= MOST_PENDING {
            self.pending.pop_back();
        }
        self.pending.push_back(word);
    }

    /// The closed timestamp of a replica that has come so far.
    pub fn closed(&mut self, applied: Progress) -> Timestamp {
        while let Some(word) = self.pending.front().filter(|word| word.index <= applied.index) {
            self.reached = self.reached.max(word.closed);
            self.pending.pop_front();
        }
        self.reached.max(applied.closed)
    }
}

impl Ages {
    /// Takes in a timestamp that was handed out after `asked`, whatever it was for.
    pub fn remember(&mut self, handed_out: Timestamp, asked: Instant) {
        if self.asked.back().is_some_and(|(newest, _)| *newest >= handed_out) {
            return;
        }
        self.asked.push_back((handed_out, asked));
        if self.asked.len() <= MOST_REMEMBERED {
            return;
        }
        // The newer half stays. Of the older ones those stay that are apart by some part of their age: an age is then
        // larger by that part at most.
        let mut kept: VecDeque<(Timestamp, Instant)> = VecDeque::with_capacity(MOST_REMEMBERED + 1);
        for (at, one) in self.asked.drain(..).enumerate().collect::<Vec<_>>().into_iter().rev() {
            let age = asked.saturating_duration_since(one.1);
            let apart = kept.front().map_or(age, |newer| newer.1.saturating_duration_since(one.1));
            let is_new = at >= MOST_REMEMBERED / 2;
            if is_new || (apart >= age / APART_PART && age <= Duration::from_millis(limits::MAX_STALENESS_MS))
            {
                kept.push_front(one);
            }
        }
        self.asked = kept;
    }

    /// How old the state as of `at` is at most, at `now`. `None` where nothing is known: no timestamp is that old, or the
    /// machine was not `awake` all the time since that was asked for, and its clock may have stood still.
    pub fn age(&self, at: Timestamp, now: Instant, awake: Duration) -> Option<Duration> {
        // What the state as of `at` lacks was committed above it, so after this was asked for.
        let until = self.asked.partition_point(|(closed, _)| *closed <= at);
        let (_, asked) = self.asked.get(until.checked_sub(1)?)?;
        let since = now.saturating_duration_since(*asked);
        (since <= awake).then_some(since + since / DRIFT_PART)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ts(ms: u64) -> Timestamp {
        Timestamp::from_ms(ms)
    }

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn applied(index: u64, closed_ms: u64) -> Progress {
        Progress { index, closed: ts(closed_ms) }
    }

    #[tokio::test]
    async fn a_word_counts_once_its_index_is_applied() {
        let mut words = ClosedWords::default();
        words.heard(Word { closed: ts(100), index: 7 });
        assert_eq!(words.closed(applied(6, 40)), ts(40));
        assert_eq!(words.closed(applied(7, 50)), ts(100));
        // What was reached stays reached, and an entry may be further on than any word.
        assert_eq!(words.closed(applied(7, 50)), ts(100));
        assert_eq!(words.closed(applied(9, 130)), ts(130));
    }

    #[tokio::test]
    async fn a_replica_that_stays_behind_reaches_the_oldest_word_that_waits() {
        let mut words = ClosedWords::default();
        for step in 1..=100 {
            words.heard(Word { closed: ts(step * 10), index: step });
        }
        assert_eq!(words.closed(applied(1, 5)), ts(10));
        assert_eq!(words.closed(applied(100, 5)), ts(1000), "the newest is kept too");
    }

    #[tokio::test]
    async fn words_out_of_order_take_nothing_back() {
        let mut words = ClosedWords::default();
        words.heard(Word { closed: ts(100), index: 9 });
        words.heard(Word { closed: ts(50), index: 3 });
        assert_eq!(words.closed(applied(3, 0)), Timestamp::ZERO);
        // A later word that needs less replaces one that needs more.
        words.heard(Word { closed: ts(120), index: 4 });
        assert_eq!(words.closed(applied(4, 0)), ts(120));
    }

    #[tokio::test]
    async fn an_age_counts_from_the_question_whatever_the_oracles_clock_does() {
        let mut words = Ages::default();
        let start = Instant::now();
        let awake = ms(3_600_000);
        assert_eq!(words.age(ts(100), start, awake), None, "nothing is known");
        words.remember(ts(1000), start);
        assert_eq!(words.age(ts(999), start, awake), None, "older than any word");
        assert_eq!(words.age(ts(1000), start, awake), Some(ms(0)));
        assert_eq!(
            words.age(ts(5000), start + ms(640), awake),
            Some(ms(650)),
            "with a margin for the clocks"
        );
        assert_eq!(words.age(ts(1000), start + ms(640), ms(600)), None, "the machine slept meanwhile");
        // The oracle's clock stands nearly still for half a minute; the replica has not applied the second word.
        words.remember(ts(1001), start + ms(30_000));
        let now = start + ms(30_080);
        assert!(words.age(ts(1000), now, awake).expect("known") >= ms(30_080), "that state is old");
        assert!(words.age(ts(1001), now, awake).expect("known") < ms(100));
    }

    #[tokio::test]
    async fn old_words_are_thinned_out_and_never_make_a_state_look_younger() {
        let mut words = Ages::default();
        let start = Instant::now();
        let last = 20_000_u64;
        for step in 0..=last {
            words.remember(ts(step * 200), start + ms(step * 200));
        }
        assert!(words.asked.len() <= MOST_REMEMBERED + 1);
        let now = start + ms(last * 200);
        for back in [0, 1, 7, 100, 1000, 2900] {
            let at = (last - back) * 200;
            let age = words.age(ts(at), now, ms(10_000_000)).expect("remembered");
            let real = ms(back * 200);
            assert!(age >= real && age <= real * 6 / 5 + ms(1), "{back} words back: {age:?} for {real:?}");
        }
    }
}
