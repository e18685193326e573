//! Arbitrary transactions, locks, cuts, joins and pages, and a consumer that dies: what it received is always exactly
//! what was committed up to its position, and in the end all of it.

use std::collections::BTreeMap;

use bytes::Bytes;
use proptest::prelude::*;

use super::store::{Shard, Store, Writes};
use crate::changelog::{Ask, Cursor, CursorState, Merge, Page, Part};
use crate::types::{Changes, ClusterId, Epoch, KeyRange, Timestamp};

const CLUSTER: ClusterId = ClusterId(7);

/// Keys are one letter, so that transactions meet in them.
const KEYS: u8 = 12;

/// The most pages that are under way.
const UNDER_WAY: usize = 24;

/// Whole numbers choose among what there is, modulo how much that is.
#[derive(Clone, Debug)]
enum Op {
    Write {
        keys: Vec<u8>,
    },
    Prepare {
        keys: Vec<u8>,
        parallel: bool,
    },
    Finish {
        which: usize,
        shard: usize,
    },
    Abort {
        which: usize,
    },
    Close {
        shard: usize,
    },
    Cut {
        key: u8,
    },
    Join {
        key: u8,
    },
    /// A replica of the shard stands still from now on.
    Lag {
        key: u8,
    },
    /// A page for one of what is wanted sets out, from whichever shard or replica.
    Ask {
        which: usize,
        shard: usize,
        holding: usize,
        most: usize,
        lagging: bool,
        back: u64,
        wide: bool,
    },
    /// A page for one of what is wanted sets out, from whoever has it.
    AskRightly {
        which: usize,
        most: usize,
    },
    Arrive {
        which: usize,
        again: bool,
    },
    Next {
        most: usize,
    },
    Save,
    Die,
}

fn ops() -> impl Strategy<Value = Op> {
    let keys = || proptest::collection::vec(0..KEYS, 1..5);
    let one = || 0..1_000usize;
    let most = || prop_oneof![1..4usize, Just(usize::MAX)];
    prop_oneof![
        6 => keys().prop_map(|keys| Op::Write { keys }),
        4 => (keys(), any::<bool>()).prop_map(|(keys, parallel)| Op::Prepare { keys, parallel }),
        6 => (one(), one()).prop_map(|(which, shard)| Op::Finish { which, shard }),
        1 => one().prop_map(|which| Op::Abort { which }),
        4 => one().prop_map(|shard| Op::Close { shard }),
        2 => (0..KEYS).prop_map(|key| Op::Cut { key }),
        1 => (0..KEYS).prop_map(|key| Op::Join { key }),
        2 => (0..KEYS).prop_map(|key| Op::Lag { key }),
        6 => (one(), one(), one(), most(), any::<bool>(), prop_oneof![Just(0), 0..30u64], any::<bool>()).prop_map(
            |(which, shard, holding, most, lagging, back, wide)| Op::Ask {
                which, shard, holding, most, lagging, back, wide,
            }
        ),
        8 => (one(), most()).prop_map(|(which, most)| Op::AskRightly { which, most }),
        16 => (one(), any::<bool>()).prop_map(|(which, again)| Op::Arrive { which, again }),
        6 => most().prop_map(|most| Op::Next { most }),
        3 => Just(Op::Save),
        1 => Just(Op::Die),
    ]
}

/// All keys, or some ranges of them, which may overlap.
fn followed() -> impl Strategy<Value = Vec<KeyRange>> {
    let some = (0..KEYS, 1..6u8).prop_map(|(start, keys)| {
        KeyRange::new(key(start), (start + keys < KEYS).then(|| key(start + keys)))
    });
    prop_oneof![Just(vec![KeyRange::all()]), proptest::collection::vec(some, 1..4)]
}

fn key(number: u8) -> Bytes {
    vec![b'a' + number].into()
}

struct Txn {
    name: String,
    writes: Writes,
    /// A parallel commit has one from its last prepare on, a classic one from its first finish on.
    commit_ts: Option<Timestamp>,
}

struct World {
    store: Store,
    clock: Timestamp,
    txns: Vec<Txn>,
    committed: BTreeMap<Timestamp, Writes>,
    lagging: Vec<Shard>,
    under_way: Vec<Page>,
    followed: Vec<KeyRange>,
    merge: Merge,
    received: Vec<Changes>,
    /// What survives the consumer: its cursor, and how much it had received.
    saved: (String, usize),
}

impl World {
    fn new(followed: Vec<KeyRange>, cuts: &[u8]) -> Self {
        let merge = Merge::new(followed.clone(), Timestamp::ZERO).expect("keys");
        let mut cuts = cuts.to_vec();
        cuts.sort_unstable();
        cuts.dedup();
        let mut world = Self {
            store: Store::new(cuts.into_iter().map(key)),
            clock: Timestamp(0),
            txns: Vec::new(),
            committed: BTreeMap::new(),
            lagging: Vec::new(),
            under_way: Vec::new(),
            followed,
            merge,
            received: Vec::new(),
            saved: (String::new(), 0),
        };
        world.save();
        world
    }

    fn tick(&mut self) -> Timestamp {
        self.clock = self.clock.plus(1);
        self.clock
    }

    /// Writes of those keys that are not locked. No two writes are the same.
    fn writes(&self, keys: &[u8]) -> Writes {
        let free = keys.iter().map(|number| key(*number)).filter(|key| !self.store.is_locked(key));
        let value = |key: &Bytes| !(self.clock.0 + u64::from(key[0])).is_multiple_of(4);
        free.map(|key| (key.clone(), value(&key).then(|| self.clock.to_string().into()))).collect()
    }

    fn prepare(&mut self, keys: &[u8], parallel: bool) {
        let writes = self.writes(keys);
        if writes.is_empty() {
            return;
        }
        let name = self.tick().to_string();
        for (key, value) in &writes {
            let prepare_ts = self.tick();
            self.store.prepare(&name, prepare_ts, &[(key.clone(), value.clone())].into());
        }
        let commit_ts = parallel.then_some(self.clock);
        self.committed.extend(commit_ts.map(|ts| (ts, writes.clone())));
        self.txns.push(Txn { name, writes, commit_ts });
    }

    /// Finishes a transaction in one of the shards in which it still holds locks.
    fn finish(&mut self, which: usize, shard: usize) {
        let Some(index) = which.checked_rem(self.txns.len()) else { return };
        let now = self.tick();
        let txn = &mut self.txns[index];
        let commit_ts = *txn.commit_ts.get_or_insert(now);
        self.committed.entry(commit_ts).or_insert_with(|| txn.writes.clone());
        let shards = self.store.locked(&txn.name);
        self.store.finish(&txn.name, Some(commit_ts), shards[shard % shards.len()]);
        if shards.len() == 1 {
            self.txns.remove(index);
        }
    }

    fn abort(&mut self, which: usize) {
        let undecided = |txn: &&Txn| txn.commit_ts.is_none();
        let names: Vec<String> = self.txns.iter().filter(undecided).map(|txn| txn.name.clone()).collect();
        let Some(index) = which.checked_rem(names.len()) else { return };
        let name = &names[index];
        for shard in self.store.locked(name) {
            self.store.finish(name, None, shard);
        }
        self.txns.retain(|txn| txn.name != *name);
    }

    fn cut(&mut self, at: u8) {
        let shard = self.store.shard_of(&key(at));
        let begins = |shard: &Shard| shard.holdings.iter().any(|held| held.range.start == key(at));
        if !begins(&self.store.shards[shard]) && at > 0 {
            self.store.cut(shard, key(at));
        }
    }

    fn join(&mut self, at: u8) {
        let (left, right) = (self.store.shard_of(&key(at)), self.store.shard_of(&key((at + 1) % KEYS)));
        if left != right {
            self.store.join(left, right);
        }
    }

    fn send(&mut self, page: Option<Page>) {
        self.under_way.extend(page);
        if self.under_way.len() > UNDER_WAY {
            self.under_way.remove(0);
        }
    }

    fn wanted(&self, which: usize) -> Ask {
        let asks = self.merge.wanted(1_000);
        asks[which % asks.len()].clone()
    }

    /// Who has changes from the first key of what is wanted on, after what is known: the shard that holds the key, or
    /// one that held it.
    fn routed(&self, ask: &Ask, most: usize) -> Option<Page> {
        self.store.shards.iter().find_map(|shard| {
            let serves = |held: &&_| shard.serves(held, &ask.range.start, ask.after);
            let holding = shard.holdings.iter().find(serves)?;
            shard.page(holding, &ask.range, ask.after, most)
        })
    }

    fn accept(&mut self, page: Page) {
        let shown = format!("{page:?}");
        let (after, through, range) = (page.after, page.through, page.range.clone());
        let before = self.merge.parts().to_vec();
        let overlaps: Vec<&Part> =
            before.iter().filter(|part| part.range.intersect(&range).is_some()).collect();
        let late = overlaps.iter().filter(|part| part.position < after).count();
        let new = overlaps.iter().any(|part| after <= part.position && part.position < through);
        let accepted = self.merge.accept(page).unwrap_or_else(|error| panic!("{error}: {shown}"));
        assert_eq!((accepted.advanced, accepted.gaps.len()), (new, late), "what came of it is told: {shown}");
    }

    fn next(&mut self, most: usize) {
        for _ in 0..most {
            let delivered = self.merge.delivered();
            let Some(transaction) = self.merge.next() else { break };
            assert!(delivered < transaction.commit_ts && transaction.commit_ts <= self.merge.delivered());
            self.received.push(transaction);
        }
    }

    fn save(&mut self) {
        let state = CursorState::Following { after: self.merge.delivered() };
        self.saved = (Cursor::new(CLUSTER, &self.followed, state).to_string(), self.received.len());
    }

    fn die(&mut self) {
        let cursor: Cursor = self.saved.0.parse().expect("what was saved");
        cursor.check(CLUSTER, &self.followed).expect("its own ranges");
        let CursorState::Following { after } = *cursor.state() else { panic!("it was following") };
        self.merge = Merge::new(self.followed.clone(), after).expect("keys");
        self.received.truncate(self.saved.1);
    }

    fn run(&mut self, op: Op) {
        match op {
            Op::Write { keys } => {
                let (ts, writes) = (self.tick(), self.writes(&keys));
                self.store.write(ts, &writes);
                self.committed.extend((!writes.is_empty()).then_some((ts, writes)));
            }
            Op::Prepare { keys, parallel } => self.prepare(&keys, parallel),
            Op::Finish { which, shard } => self.finish(which, shard),
            Op::Abort { which } => self.abort(which),
            Op::Close { shard } => {
                let ts = self.tick();
                self.store.close(shard % self.store.shards.len(), ts);
            }
            Op::Cut { key } => self.cut(key),
            Op::Join { key } => self.join(key),
            Op::Lag { key: number } => {
                self.lagging.push(self.store.shards[self.store.shard_of(&key(number))].clone());
            }
            Op::Ask { which, shard, holding, most, lagging, back, wide } => {
                let ask = self.wanted(which);
                let shards = if lagging { &self.lagging } else { &self.store.shards };
                let Some(index) = shard.checked_rem(shards.len()) else { return };
                let shard = &shards[index];
                let holding = &shard.holdings[holding % shard.holdings.len()];
                let range = if wide { KeyRange::all() } else { ask.range };
                let page = shard.page(holding, &range, Timestamp(ask.after.0.saturating_sub(back)), most);
                self.send(page);
            }
            Op::AskRightly { which, most } => self.send(self.routed(&self.wanted(which), most)),
            Op::Arrive { which, again } => {
                let Some(index) = which.checked_rem(self.under_way.len()) else { return };
                let page = if again { self.under_way[index].clone() } else { self.under_way.remove(index) };
                self.accept(page);
            }
            Op::Next { most } => self.next(most),
            Op::Save => self.save(),
            Op::Die => self.die(),
        }
    }

    /// What was committed of the followed keys, up to a timestamp.
    fn expected(&self, through: Timestamp) -> Vec<(Timestamp, Writes)> {
        let followed = |key: &Bytes| self.followed.iter().any(|range| range.contains(key));
        let part = |writes: &Writes| -> Writes {
            writes
                .iter()
                .filter(|(key, _)| followed(key))
                .map(|(key, value)| (key.clone(), value.clone()))
                .collect()
        };
        let all = self.committed.range(..=through).map(|(ts, writes)| (*ts, part(writes)));
        all.filter(|(_, writes)| !writes.is_empty()).collect()
    }

    fn check(&self) {
        self.merge.assert_sound(&self.followed);
        let received = self.received.iter().map(|transaction| {
            let changes = transaction.changes.iter().map(|change| (change.key.clone(), change.value.clone()));
            let writes: Writes = changes.collect();
            assert_eq!(writes.len(), transaction.changes.len(), "no key twice");
            assert!(transaction.changes.is_sorted_by(|a, b| a.key < b.key), "in the order of keys");
            (transaction.commit_ts, writes)
        });
        assert_eq!(received.collect::<Vec<_>>(), self.expected(self.merge.delivered()));
    }

    /// All transactions end, all shards are closed, and the consumer asks for what it wants until it has all.
    fn settle(&mut self) {
        while !self.txns.is_empty() {
            self.finish(0, 0);
        }
        let end = self.tick();
        (0..self.store.shards.len()).for_each(|shard| self.store.close(shard, end));
        let mut rounds = 0;
        while self.merge.delivered() < end {
            rounds += 1;
            assert!(rounds < 2_000, "it comes to an end: {:?}", self.merge.parts());
            // So little that most parts are over it: only those furthest behind are asked for then.
            let asks = self.merge.wanted(200);
            let furthest = |ask: &Ask| ask.after == self.merge.watermark();
            assert!(furthest(&asks[0]), "what is furthest behind comes first");
            for ask in asks {
                let page = self.routed(&ask, 2);
                assert!(page.is_some() || ask.after == end, "somebody has {ask:?}");
                page.into_iter().for_each(|page| self.accept(page));
            }
            self.next(usize::MAX);
            self.check();
        }
        assert_eq!((self.merge.delivered(), self.merge.buffered()), (end, 0));
        assert_eq!(self.received.len(), self.expected(Timestamp::MAX).len());
        // Once all is known alike, the cuts of the past have left no trace.
        let (after, through) = (end, end.plus(1));
        self.accept(Page {
            range: KeyRange::all(),
            epoch: Epoch(99),
            after,
            through,
            transactions: Vec::new(),
        });
        assert_eq!(self.merge.parts().len(), KeyRange::join(self.followed.clone()).len());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_048))]
    #[test]
    fn the_consumer_receives_exactly_what_was_committed(
        followed in followed(),
        cuts in proptest::collection::vec(1..KEYS, 0..4),
        ops in proptest::collection::vec(ops(), 0..160),
    ) {
        let mut world = World::new(followed, &cuts);
        for op in ops {
            world.run(op);
            world.check();
        }
        world.settle();
    }
}

/// One shard has much that another, which is behind, holds back: of that no more than the limit and a page is taken.
#[test]
fn what_is_buffered_is_bounded() {
    const LIMIT: usize = 10 * Merge::CHANGE_OVERHEAD;
    let mut world = World::new(vec![KeyRange::all()], &[6]);
    for _ in 0..1_000 {
        world.run(Op::Write { keys: vec![0] });
    }
    world.store.close(0, Timestamp(2_000));
    let (mut most, mut answers) = (0, 0);
    for closed in 0..=2_000 {
        world.store.close(1, Timestamp(closed));
        for ask in world.merge.wanted(LIMIT) {
            answers += 1;
            world.routed(&ask, 5).into_iter().for_each(|page| world.accept(page));
        }
        world.next(usize::MAX);
        most = most.max(world.merge.buffered());
        assert!(most <= LIMIT + 5 * (Merge::CHANGE_OVERHEAD + 8), "{most} bytes are buffered");
    }
    world.check();
    assert_eq!((world.received.len(), world.merge.delivered()), (1_000, Timestamp(2_000)));
    assert!(most > LIMIT && answers > 2_000, "the limit was reached: {most} bytes, {answers} answers");
}
