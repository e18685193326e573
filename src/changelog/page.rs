//! What is asked of a shard and what it answers: the changes of a range of keys between two timestamps.

use crate::types::{Changes, Epoch, Error, KeyRange, Result, Timestamp};

/// A shard's answer: `transactions` are exactly all that changed keys of `range` at timestamps above `after` and up to
/// `through`, and of each of them exactly what it changed there.
///
/// That stays true for ever, since a shard answers up to its resolved timestamp only. So a page may come twice, late,
/// out of order, or from a replica that does not know yet that its shard was cut.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Page {
    /// The keys that the page tells of.
    pub range: KeyRange,
    /// The epoch of the shard that answered, as the replica that answered knew it.
    pub epoch: Epoch,
    /// Changes at or below this timestamp are not in the page.
    pub after: Timestamp,
    /// Up to this timestamp, inclusive, none is missing. Not below `after`.
    pub through: Timestamp,
    /// The transactions, in the order of their commit timestamps.
    pub transactions: Vec<Changes>,
}

/// What to ask for: the changes of the keys of `range` above `after`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ask {
    /// The keys. They may lie in several shards by now: whoever asks cuts the range by the map of shards.
    pub range: KeyRange,
    /// Up to this timestamp everything is known.
    pub after: Timestamp,
    /// The epoch of the shard that last told something of these keys; `None` before the first page. A hint: the next
    /// page may come from another shard, with a larger or a smaller one.
    pub epoch: Option<Epoch>,
}

/// Some of the followed keys, of which equally much is known.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Part {
    /// The keys.
    pub range: KeyRange,
    /// Up to this timestamp, inclusive, all their changes are known.
    pub position: Timestamp,
    /// As in [`Ask::epoch`].
    pub epoch: Option<Epoch>,
    /// What is held of their changes because it was not delivered yet, in bytes of keys and values and
    /// [`Merge::CHANGE_OVERHEAD`](super::Merge::CHANGE_OVERHEAD) for each change.
    pub buffered: usize,
}

impl Part {
    /// What to ask for to know more of the keys of the part that lie in `range`.
    pub(super) fn ask(&self, range: KeyRange) -> Ask {
        Ask { range, after: self.position, epoch: self.epoch }
    }
}

/// What came of a page.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Accepted {
    /// Whether more is known now of any key. If not, all that the page tells was known, or it begins too late.
    pub advanced: bool,
    /// Where the page begins after what is known, so that taking it would have left a gap: what to ask for instead, in
    /// the order of keys. Nothing was taken there; for the rest of its keys the page counts.
    pub gaps: Vec<Ask>,
}

impl Page {
    /// Checks what can be checked of a page alone: it comes from outside.
    ///
    /// # Errors
    ///
    /// `Corrupt`, where the page contradicts itself: it covers no key, ends before it begins, its transactions do not
    /// rise or lie outside its timestamps, or their keys do not rise or lie outside its range.
    pub(super) fn check(&self) -> Result<()> {
        if self.range.is_empty() {
            return Err(self.corrupt("covers no key: its range's end must be past its start"));
        }
        if self.through < self.after {
            return Err(self.corrupt("ends before it begins"));
        }
        if self.through > Timestamp::MAX {
            return Err(self.corrupt(&format!("ends past the largest timestamp, {}", Timestamp::MAX)));
        }
        let mut previous = None;
        for transaction in &self.transactions {
            let commit_ts = transaction.commit_ts;
            if commit_ts <= self.after || commit_ts > self.through {
                return Err(
                    self.corrupt(&format!("has a transaction at {commit_ts}, which is outside of it"))
                );
            }
            if let Some(previous) = previous.filter(|previous| *previous >= commit_ts) {
                return Err(self.corrupt(&format!(
                    "has a transaction at {commit_ts} behind one at {previous}: commit timestamps must rise"
                )));
            }
            previous = Some(commit_ts);
            self.check_keys(transaction)?;
        }
        Ok(())
    }

    fn check_keys(&self, transaction: &Changes) -> Result<()> {
        let commit_ts = transaction.commit_ts;
        for change in &transaction.changes {
            if !self.range.contains(&change.key) {
                return Err(self.corrupt(&format!(
                    "has the key {:?} in the transaction at {commit_ts}, which is outside of its range",
                    change.key
                )));
            }
        }
        match transaction.changes.windows(2).find(|pair| pair[0].key >= pair[1].key) {
            Some(pair) => Err(self.corrupt(&format!(
                "has the key {:?} behind {:?} in the transaction at {commit_ts}: keys must rise",
                pair[1].key, pair[0].key
            ))),
            None => Ok(()),
        }
    }

    fn corrupt(&self, what: &str) -> Error {
        Error::corrupt(format!(
            "the changelog page of {:?} at epoch {}, after {} through {}, {what}; nothing of it was taken. The node \
             that sent it is faulty: follow from another replica, and report this",
            self.range, self.epoch, self.after, self.through
        ))
    }
}
