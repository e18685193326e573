//! A store as the changelog sees it: shards with committed changes, locks and closed timestamps, that are cut and
//! joined while pages are read from them, also from replicas that lag behind.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::changelog::Page;
use crate::types::{Before, Change, Changes, Epoch, KeyRange, Timestamp};

/// What a transaction writes: keys and values; a removal has none.
pub(super) type Writes = BTreeMap<Bytes, Option<Bytes>>;

/// Keys of which a shard has the changes in (`from`, `through`]; while it holds them, up to its resolved timestamp.
#[derive(Clone, Debug)]
pub(super) struct Holding {
    pub(super) range: KeyRange,
    pub(super) from: Timestamp,
    pub(super) through: Option<Timestamp>,
}

impl Holding {
    fn is_present(&self) -> bool {
        self.through.is_none()
    }
}

#[derive(Clone, Debug)]
struct Lock {
    txn: String,
    prepare_ts: Timestamp,
    value: Option<Bytes>,
}

/// A shard, or a replica of it that lags.
#[derive(Clone, Debug)]
pub(super) struct Shard {
    pub(super) epoch: Epoch,
    pub(super) holdings: Vec<Holding>,
    closed: Timestamp,
    locks: BTreeMap<Bytes, Lock>,
    records: BTreeMap<Timestamp, BTreeMap<Bytes, Change>>,
}

impl Shard {
    fn new(epoch: Epoch, holdings: Vec<Holding>, closed: Timestamp) -> Self {
        Self { epoch, holdings, closed, locks: BTreeMap::new(), records: BTreeMap::new() }
    }

    pub(super) fn resolved(&self) -> Timestamp {
        let oldest = self.locks.values().map(|lock| lock.prepare_ts).min();
        oldest.map_or(self.closed, |prepare_ts| self.closed.min(prepare_ts.before()))
    }

    /// Whether a page of keys from `start` on could begin after `after`.
    pub(super) fn serves(&self, holding: &Holding, start: &[u8], after: Timestamp) -> bool {
        let through = holding.through.unwrap_or(self.resolved());
        holding.range.contains(start) && holding.from <= after && after < through
    }

    /// At most `most` transactions of those keys of `range` that are in a holding, after `after`. Where the shard has
    /// begun later the page begins there; where it has nothing there is none.
    pub(super) fn page(
        &self,
        holding: &Holding,
        range: &KeyRange,
        after: Timestamp,
        most: usize,
    ) -> Option<Page> {
        let mut held = holding.range.clone();
        let after = after.max(holding.from);
        // Where the shard was joined with a neighbour, one page has the keys of both.
        while let Some(next) = self.holdings.iter().find(|next| {
            next.is_present()
                && holding.is_present()
                && next.from <= after
                && Some(&next.range.start) == held.end.as_ref()
        }) {
            held.end.clone_from(&next.range.end);
        }
        let range = held.intersect(range)?;
        let mut through = holding.through.unwrap_or(self.resolved());
        let mut transactions = Vec::new();
        for (commit_ts, changes) in self.records.iter().filter(|(ts, _)| **ts > after && **ts <= through) {
            let inside = changes.values().filter(|change| range.contains(&change.key));
            let changes: Vec<Change> = inside.cloned().collect();
            if !changes.is_empty() {
                transactions.push(Changes { commit_ts: *commit_ts, changes });
            }
        }
        if transactions.len() > most {
            transactions.truncate(most);
            through = transactions.last().map_or(after, |last| last.commit_ts);
        }
        (after <= through).then_some(Page { range, epoch: self.epoch, after, through, transactions })
    }

    fn record(&mut self, commit_ts: Timestamp, key: &Bytes, value: Option<Bytes>) {
        let change = Change {
            key: key.clone(),
            create_ts: value.as_ref().map_or(Timestamp::ZERO, |_| commit_ts),
            version: u64::from(value.is_some()),
            value,
            before: Before::Unasked,
        };
        self.records.entry(commit_ts).or_default().insert(key.clone(), change);
    }

    /// Takes out what is above a timestamp of the keys of a range.
    fn take_above(&mut self, range: &KeyRange, ts: Timestamp) -> Vec<(Timestamp, Change)> {
        let mut taken = Vec::new();
        for (commit_ts, changes) in self.records.iter_mut().filter(|(commit_ts, _)| **commit_ts > ts) {
            let moved = take_out(changes, |key, _| range.contains(key));
            taken.extend(moved.into_iter().map(|(_, change)| (*commit_ts, change)));
        }
        taken
    }

    /// Takes over records and locks of a range from another shard, of which that keeps what is at or below `ts`.
    fn take_over(&mut self, other: &mut Shard, range: &KeyRange, ts: Timestamp) {
        for (commit_ts, change) in other.take_above(range, ts) {
            self.records.entry(commit_ts).or_default().insert(change.key.clone(), change);
        }
        self.locks.extend(take_out(&mut other.locks, |key, _| range.contains(key)));
    }
}

/// Takes some of a map out of it.
fn take_out<V>(map: &mut BTreeMap<Bytes, V>, which: impl Fn(&Bytes, &V) -> bool) -> Vec<(Bytes, V)> {
    let all = std::mem::take(map).into_iter();
    let (out, rest): (Vec<_>, Vec<_>) = all.partition(|(key, value)| which(key, value));
    *map = rest.into_iter().collect();
    out
}

/// All shards there ever were.
#[derive(Clone, Debug)]
pub(super) struct Store {
    pub(super) shards: Vec<Shard>,
}

impl Store {
    /// One shard between each two keys.
    pub(super) fn new(cuts: impl IntoIterator<Item = Bytes>) -> Self {
        let all = Holding { range: KeyRange::all(), from: Timestamp::ZERO, through: None };
        let mut store = Self { shards: vec![Shard::new(Epoch(1), vec![all], Timestamp::ZERO)] };
        for at in cuts {
            store.cut(store.shard_of(&at), at);
        }
        for shard in &mut store.shards {
            shard.epoch = Epoch(1);
            shard.holdings.retain(Holding::is_present);
        }
        store
    }

    /// The shard that holds a key now.
    pub(super) fn shard_of(&self, key: &[u8]) -> usize {
        let holds =
            |shard: &Shard| shard.holdings.iter().any(|held| held.is_present() && held.range.contains(key));
        self.shards.iter().position(holds).expect("every key is in a shard")
    }

    fn shard_mut(&mut self, key: &[u8]) -> &mut Shard {
        let index = self.shard_of(key);
        &mut self.shards[index]
    }

    /// Commits at once, in every shard concerned.
    pub(super) fn write(&mut self, ts: Timestamp, writes: &Writes) {
        for (key, value) in writes {
            let shard = self.shard_mut(key);
            shard.record(ts, key, value.clone());
            shard.closed = shard.closed.max(ts);
        }
    }

    pub(super) fn prepare(&mut self, txn: &str, ts: Timestamp, writes: &Writes) {
        for (key, value) in writes {
            let shard = self.shard_mut(key);
            let lock = Lock { txn: txn.to_owned(), prepare_ts: ts, value: value.clone() };
            shard.locks.insert(key.clone(), lock);
            shard.closed = shard.closed.max(ts);
        }
    }

    /// Ends a transaction in one shard: its locks go, and if it was committed what they staged is recorded.
    pub(super) fn finish(&mut self, txn: &str, committed: Option<Timestamp>, shard: usize) {
        let shard = &mut self.shards[shard];
        for (key, lock) in take_out(&mut shard.locks, |_, lock| lock.txn == txn) {
            if let Some(commit_ts) = committed {
                shard.record(commit_ts, &key, lock.value);
            }
        }
    }

    /// The shards in which a transaction holds locks.
    pub(super) fn locked(&self, txn: &str) -> Vec<usize> {
        let holds = |shard: &Shard| shard.locks.values().any(|lock| lock.txn == txn);
        (0..self.shards.len()).filter(|index| holds(&self.shards[*index])).collect()
    }

    pub(super) fn is_locked(&self, key: &[u8]) -> bool {
        self.shards.iter().any(|shard| shard.locks.contains_key(key))
    }

    pub(super) fn close(&mut self, shard: usize, ts: Timestamp) {
        let shard = &mut self.shards[shard];
        shard.closed = shard.closed.max(ts);
    }

    /// Cuts a shard: r is its resolved timestamp; of the keys from `at` on it keeps what is at or below r, and what is
    /// above goes to a new shard, with the locks and the closed timestamp. Gives the new shard and r.
    pub(super) fn cut(&mut self, parent: usize, at: Bytes) -> (usize, Timestamp) {
        let old = &mut self.shards[parent];
        let r = old.resolved();
        old.epoch.0 += 1;
        let cut_off = KeyRange::new(at.clone(), None);
        let kept = KeyRange::new(Bytes::new(), Some(at));
        let mut child = Shard::new(old.epoch, Vec::new(), old.closed);
        let (present, mut holdings): (Vec<_>, Vec<_>) = old.holdings.drain(..).partition(Holding::is_present);
        for held in present {
            holdings.extend(held.range.intersect(&kept).map(|range| Holding { range, ..held.clone() }));
            let Some(range) = held.range.intersect(&cut_off) else { continue };
            // Of what came from a neighbour that was joined the shard may have begun above r.
            let from = r.max(held.from);
            if held.from < from {
                holdings.push(Holding { range: range.clone(), from: held.from, through: Some(from) });
            }
            child.take_over(old, &range, from);
            child.holdings.push(Holding { range, from, through: None });
        }
        old.holdings = holdings;
        self.shards.push(child);
        (self.shards.len() - 1, r)
    }

    /// Joins a shard with another: what that one has up to its resolved timestamp it keeps, and ends there.
    pub(super) fn join(&mut self, into: usize, other: usize) -> Timestamp {
        let mut ended = self.shards[other].clone();
        let joined = &mut self.shards[into];
        let r = ended.resolved();
        joined.epoch = Epoch(joined.epoch.0.max(ended.epoch.0) + 1);
        let (present, mut formers): (Vec<_>, Vec<_>) =
            ended.holdings.drain(..).partition(Holding::is_present);
        for Holding { range, from, .. } in present {
            let through = r.max(from);
            joined.take_over(&mut ended, &range, through);
            joined.holdings.push(Holding { range: range.clone(), from: through, through: None });
            formers.push(Holding { range, from, through: Some(through) });
        }
        ended.holdings = formers;
        self.shards[other] = ended;
        r
    }
}
