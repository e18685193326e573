//! The machine that makes one stream of whole transactions, in commit order, out of pages from many shards.
//!
//! It knows no shards, only keys: for every part of the followed ranges a position, up to which all changes of its
//! keys are known. The smallest position is the watermark. Below it every transaction is known whole and none is
//! missing, so those may be delivered; the rest waits. A shard that is cut, joined or moved makes no difference: its
//! pages then cover other ranges, and parts are split and joined to fit.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::{Accepted, Ask, Page, Part};
use crate::types::{Before, Change, Changes, Error, KeyRange, Result, Timestamp};

/// Merges pages into one stream. Create it with [`Merge::new`], give it pages with [`Merge::accept`], take
/// transactions with [`Merge::next`] until there is none, and ask for what [`Merge::wanted`] says.
#[derive(Clone, Debug)]
pub struct Merge {
    /// The followed keys, in order, none twice.
    parts: Vec<Part>,
    /// The smallest position of a part.
    watermark: Timestamp,
    /// What is known of transactions that were not delivered yet. A change is here if and only if its commit timestamp
    /// is above what was delivered and not above its part's position.
    pending: BTreeMap<Timestamp, Vec<Change>>,
}

impl Merge {
    /// What a buffered change counts besides its bytes: about what it takes in memory.
    pub const CHANGE_OVERHEAD: usize = 128;

    /// Follows the keys of these ranges, from the first transaction after a timestamp on. Ranges that overlap or touch
    /// are joined.
    ///
    /// # Errors
    ///
    /// `Invalid`, where no key lies in any range.
    pub fn new(followed: Vec<KeyRange>, after: Timestamp) -> Result<Self> {
        let given = followed.len();
        let part = |range| Part { range, position: after, epoch: None, buffered: 0 };
        let parts: Vec<Part> = KeyRange::join(followed).into_iter().map(part).collect();
        if parts.is_empty() {
            return Err(Error::invalid(format!(
                "the {given} ranges to follow hold no key: give at least one whose end is past its start"
            )));
        }
        Ok(Self { parts, watermark: after, pending: BTreeMap::new() })
    }

    /// Takes what is new in a page: changes of followed keys above the position of their part. Keys that are not
    /// followed are passed over, and what is known already is dropped.
    ///
    /// # Errors
    ///
    /// `Corrupt`, where the page contradicts itself. Nothing is taken then.
    pub fn accept(&mut self, page: Page) -> Result<Accepted> {
        page.check()?;
        let (taking, gaps) = self.fit(&page);
        for transaction in page.transactions {
            for change in transaction.changes {
                self.take(&taking, transaction.commit_ts, change);
            }
        }
        for index in &taking {
            self.parts[*index].position = page.through;
            self.parts[*index].epoch = Some(page.epoch);
        }
        self.join_parts();
        self.watermark = self.parts.iter().map(|part| part.position).min().unwrap_or(self.watermark);
        Ok(Accepted { advanced: !taking.is_empty(), gaps })
    }

    /// The timestamp up to which all changes of all followed keys are known.
    pub fn watermark(&self) -> Timestamp {
        self.watermark
    }

    /// The next transaction at or below the watermark, with all that it changed of the followed keys. `None` means
    /// none yet.
    #[expect(clippy::should_implement_trait, reason = "`None` is not the end, as an iterator's would be")]
    pub fn next(&mut self) -> Option<Changes> {
        let first = self.pending.first_entry().filter(|first| *first.key() <= self.watermark)?;
        let (commit_ts, mut changes) = first.remove_entry();
        changes.sort_unstable_by(|a, b| a.key.cmp(&b.key));
        for change in &changes {
            if let Some(index) = self.find(&change.key) {
                let part = &mut self.parts[index];
                part.buffered = part.buffered.saturating_sub(weight(change));
            }
        }
        Some(Changes { commit_ts, changes })
    }

    /// The consumer's position: every transaction at or below this timestamp was delivered, and none above it. It may
    /// lie above the last one's commit timestamp, and never goes back. Delivered means given by [`Merge::next`]: who keeps
    /// transactions waiting after that goes on, for each of them, at its own commit timestamp.
    pub fn delivered(&self) -> Timestamp {
        match self.pending.first_key_value() {
            Some((first, _)) => self.watermark.min(first.before()),
            None => self.watermark,
        }
    }

    /// What to ask for next, what is furthest behind first. A part of which more than `limit` bytes are buffered is not
    /// asked for while others are behind it; those at the watermark always are, since nothing goes on without them.
    ///
    /// So memory stays within `limit` and a page for each part, as long as transactions are taken with [`Merge::next`]
    /// until there is none before more is asked for.
    pub fn wanted(&self, limit: usize) -> Vec<Ask> {
        let wanted = |part: &&Part| part.position == self.watermark || part.buffered <= limit;
        let mut asks: Vec<Ask> =
            self.parts.iter().filter(wanted).map(|part| part.ask(part.range.clone())).collect();
        asks.sort_by_key(|ask| ask.after);
        asks
    }

    /// What is buffered altogether, counted as in [`Part::buffered`].
    pub fn buffered(&self) -> usize {
        self.parts.iter().map(|part| part.buffered).sum()
    }

    /// What is known of which keys, in the order of keys: for metrics, and for people who ask what holds the stream up.
    pub fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// The part of a key, where it is followed.
    fn find(&self, key: &[u8]) -> Option<usize> {
        let index = self.parts.partition_point(|part| part.range.start.as_ref() <= key).checked_sub(1)?;
        self.parts[index].range.contains(key).then_some(index)
    }

    /// Splits parts such that each takes the page whole or not at all. Gives the indices of those that take it,
    /// rising, and what to ask for where it begins too late.
    fn fit(&mut self, page: &Page) -> (Vec<usize>, Vec<Ask>) {
        let (mut taking, mut gaps) = (Vec::new(), Vec::new());
        let mut index = self
            .parts
            .partition_point(|part| part.range.end.as_ref().is_some_and(|end| *end <= page.range.start));
        while let Some(part) = self.parts.get(index)
            && let Some(piece) = part.range.intersect(&page.range)
        {
            if page.after > part.position {
                gaps.push(part.ask(piece));
            } else if page.through > part.position {
                index = self.isolate(index, &piece);
                taking.push(index);
            }
            index += 1;
        }
        (taking, gaps)
    }

    /// Splits a part so that `piece`, which lies in it, becomes a part. Gives its index.
    fn isolate(&mut self, mut index: usize, piece: &KeyRange) -> usize {
        if self.parts[index].range.start < piece.start {
            self.split(index, &piece.start);
            index += 1;
        }
        if self.parts[index].range.end != piece.end
            && let Some(end) = &piece.end
        {
            self.split(index, end);
        }
        index
    }

    /// Splits a part at a key inside of it.
    fn split(&mut self, index: usize, at: &Bytes) {
        let mut right = self.parts[index].clone();
        right.range.start = at.clone();
        if right.buffered > 0 {
            let changes = self.pending.values().flatten();
            right.buffered = changes.filter(|change| right.range.contains(&change.key)).map(weight).sum();
        }
        let left = &mut self.parts[index];
        left.range.end = Some(at.clone());
        left.buffered = left.buffered.saturating_sub(right.buffered);
        self.parts.insert(index + 1, right);
    }

    /// Joins neighbours of which equally much is known and nothing is buffered, so that parts do not get ever more. With
    /// something buffered they stay apart, and each has the limit of [`Merge::wanted`] for itself.
    fn join_parts(&mut self) {
        self.parts.dedup_by(|right, left| {
            let touch = left.range.end.as_ref() == Some(&right.range.start);
            let alike = (left.position, left.epoch) == (right.position, right.epoch);
            let join = touch && alike && left.buffered == 0 && right.buffered == 0;
            if join {
                left.range.end = right.range.end.take();
            }
            join
        });
    }

    /// Buffers a change where its part takes the page and did not know it.
    fn take(&mut self, taking: &[usize], commit_ts: Timestamp, change: Change) {
        let Some(index) = self.find(&change.key) else { return };
        if taking.binary_search(&index).is_err() || commit_ts <= self.parts[index].position {
            return;
        }
        self.parts[index].buffered += weight(&change);
        self.pending.entry(commit_ts).or_default().push(change);
    }
}

/// What a change counts while it is buffered.
fn weight(change: &Change) -> usize {
    let before = match &change.before {
        Before::Value(value) => value.len(),
        Before::Unasked | Before::Absent | Before::TooLarge => 0,
    };
    Merge::CHANGE_OVERHEAD + change.key.len() + change.value.as_ref().map_or(0, Bytes::len) + before
}

#[cfg(test)]
impl Merge {
    /// Panics where the machine's own rules do not hold; for tests.
    pub(super) fn assert_sound(&self, followed: &[KeyRange]) {
        let ranges: Vec<KeyRange> = self.parts.iter().map(|part| part.range.clone()).collect();
        assert!(ranges.windows(2).all(|pair| pair[0].end.as_ref().is_some_and(|end| *end <= pair[1].start)));
        assert_eq!(
            KeyRange::join(ranges),
            KeyRange::join(followed.to_vec()),
            "the parts are what is followed"
        );
        assert_eq!(Some(self.watermark), self.parts.iter().map(|part| part.position).min());
        for part in &self.parts {
            let held =
                self.pending.iter().flat_map(|(ts, changes)| changes.iter().map(move |change| (ts, change)));
            let held: Vec<_> = held.filter(|(_, change)| part.range.contains(&change.key)).collect();
            assert_eq!(
                held.iter().map(|(_, change)| weight(change)).sum::<usize>(),
                part.buffered,
                "{part:?}"
            );
            assert!(held.iter().all(|(ts, _)| **ts <= part.position), "{part:?}");
        }
        let outside = |change: &Change| self.find(&change.key).is_none();
        assert!(!self.pending.values().flatten().any(outside), "only followed keys are buffered");
        assert!(self.pending.values().all(|changes| !changes.is_empty()));
    }
}
