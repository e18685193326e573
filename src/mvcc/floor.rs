//! Below which timestamp this node's engine may drop rows, shard by shard.
//!
//! Compaction does not know of views: what it drops is gone for reads under way too. And it does not wait
//! for a sync: what it drops stays dropped after a crash, which the replica may come out of at an older
//! state. So rows go only below what is lowest of a shard's safe point as it is *durable* here and the
//! timestamps of the reads under way, whichever shard they read.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;

use super::shard_rows;
use crate::changelog::record;
use crate::engine::{DropRule, DropRules, Family};
use crate::types::{Error, ErrorKind, KeyRange, Result, ShardId, Timestamp};

/// Whether a row of a shard may be dropped at a safe point: `shard::may_drop`.
pub type MayDrop = fn(Family, &[u8], &[u8], Timestamp) -> bool;

/// Up to where rows of a shard may be dropped.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Floor {
    /// Of versions, and what belongs to them.
    pub safe_point: Timestamp,
    /// Of the changelog; not below the safe point.
    pub truncated: Timestamp,
}

impl Floor {
    /// Up to where rows of a family may be dropped.
    pub fn of(self, family: Family) -> Timestamp {
        match family {
            Family::Changelog => self.truncated,
            _ => self.safe_point,
        }
    }
}

/// The floors of all replicas on a node. Give it to the engine as its rule of what to drop.
pub struct Floors {
    may_drop: MayDrop,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    /// Range and durable floor of each shard that has a replica here.
    shards: BTreeMap<ShardId, (KeyRange, Floor)>,
    /// How many reads are under way at each timestamp.
    reads: BTreeMap<Timestamp, usize>,
}

impl Floors {
    /// Floors of no shard yet: nothing is dropped.
    pub fn new(may_drop: MayDrop) -> Arc<Self> {
        Arc::new(Self { may_drop, known: Mutex::new(Known::default()) })
    }

    /// Says up to where a shard's rows may be dropped, as is durable here. Call it when a replica has been opened, and
    /// again once an applied rise of it, or a change of the range, has been synced; never sooner.
    pub fn publish(&self, shard: ShardId, range: KeyRange, durable: Floor) {
        self.known.lock().shards.insert(shard, (range, durable));
    }

    /// The rows of the changelogs of this node's shards that may be dropped now: none that a reader under way needs.
    pub fn truncated(&self) -> Vec<KeyRange> {
        let known = self.known.lock();
        let read = known.first_read();
        let below = |(shard, (_, floor)): (&ShardId, &(KeyRange, Floor))| {
            record::between(*shard, Timestamp::ZERO, floor.truncated.min(read))
        };
        known.shards.iter().map(below).filter(|range| !range.is_empty()).collect()
    }

    /// Drops nothing of a shard any more: its replica is closed, or its rows are being replaced.
    pub fn withdraw(&self, shard: ShardId) {
        self.known.lock().shards.remove(&shard);
    }

    /// Keeps what a read of a shard at `at` needs until the guard is dropped. Take it before the view.
    ///
    /// # Errors
    ///
    /// `TooOld` where rows that it needs may have been dropped already.
    pub fn hold(self: &Arc<Self>, shard: ShardId, at: Timestamp) -> Result<Hold> {
        let mut known = self.known.lock();
        let floor = known.shards.get(&shard).map_or(Timestamp::ZERO, |(_, floor)| floor.safe_point);
        if at < floor {
            return Err(Error::new(
                ErrorKind::TooOld,
                format!(
                    "versions as of {at} are gone: shard {shard} keeps those from {floor} on; begin again at a \
                     newer timestamp"
                ),
            ));
        }
        *known.reads.entry(at).or_default() += 1;
        Ok(Hold { floors: self.clone(), at })
    }
}

impl Known {
    /// The timestamp of the oldest read under way.
    fn first_read(&self) -> Timestamp {
        self.reads.keys().next().copied().unwrap_or(Timestamp::MAX)
    }
}

/// Keeps versions for a read; see [`Floors::hold`].
pub struct Hold {
    floors: Arc<Floors>,
    at: Timestamp,
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut known = self.floors.known.lock();
        if let Some(count) = known.reads.get_mut(&self.at) {
            *count -= 1;
            if *count == 0 {
                known.reads.remove(&self.at);
            }
        }
    }
}

impl DropRules for Floors {
    /// A rule stands still: floors only rise, and a read that begins later is not below its shard's.
    fn begin(&self, family: Family) -> Option<DropRule> {
        if !matches!(family, Family::Current | Family::History | Family::Txn | Family::Changelog) {
            return None;
        }
        let mut floors: Vec<(KeyRange, Timestamp)> = {
            let known = self.known.lock();
            let read = known.first_read();
            let floor = |(shard, (range, floor)): (&ShardId, &(KeyRange, Floor))| {
                (shard_rows(family, *shard, range), read.min(floor.of(family)))
            };
            known.shards.iter().map(floor).filter(|(_, floor)| *floor > Timestamp::ZERO).collect()
        };
        if floors.is_empty() {
            return None;
        }
        floors.sort_by(|a, b| a.0.start.cmp(&b.0.start));
        let may_drop = self.may_drop;
        Some(Box::new(move |key, value| {
            let place = floors.partition_point(|(range, _)| range.start <= key);
            match place.checked_sub(1).map(|place| &floors[place]) {
                Some((range, floor)) if range.contains(key) => may_drop(family, key, value, *floor),
                _ => false,
            }
        }))
    }
}
