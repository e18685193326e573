//! The changelog against a plain record of what was committed, whatever pages it is read by.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::engine::{Durability, Family, View};
use crate::mvcc::Floors;
use crate::shard::{self, ChangesPage, ChangesRequest};
use crate::types::{Before, Change, Changes, Direction, Expect};

const KEYS: [&str; 5] = ["a", "b", "c\0", "c\0x", "z"];

/// What happens to the shard; numbers choose among keys and open transactions.
#[derive(Clone, Debug)]
enum Step {
    Put(usize, u8),
    Delete(usize),
    /// A compare-and-swap that may fail.
    Swap(usize, u8),
    /// Locks two keys.
    Prepare(usize, usize, u8),
    /// Ends a prepared transaction: committed so many timestamps after its lock, or at the newest, or rolled back.
    Finish(usize, Option<u64>),
    /// Raises the safe point, and cuts the changelog so much further on.
    Cut(u64),
    /// A reader learns the state, and reads later.
    Remember,
    /// Reads pages: from so far back, so large.
    Read {
        back: u64,
        rows: usize,
        bytes: usize,
        start: usize,
        end: usize,
    },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let key = || 0..KEYS.len();
    let step = prop_oneof![
        4 => (key(), any::<u8>()).prop_map(|(key, value)| Step::Put(key, value)),
        2 => key().prop_map(Step::Delete),
        2 => (key(), any::<u8>()).prop_map(|(key, value)| Step::Swap(key, value)),
        3 => (key(), key(), any::<u8>()).prop_map(|(a, b, value)| Step::Prepare(a, b, value)),
        3 => (0..4_usize, proptest::option::weighted(0.7, 0..30_u64)).prop_map(|(one, at)| Step::Finish(one, at)),
        1 => (0..200_u64).prop_map(Step::Cut),
        1 => Just(Step::Remember),
        3 => (0..400_u64, 1..5_usize, 1..20_usize, key(), key())
            .prop_map(|(back, rows, bytes, start, end)| Step::Read { back, rows, bytes, start, end }),
    ];
    proptest::collection::vec(step, 1..60)
}

/// A prepared transaction.
struct Open {
    id: RequestId,
    prepare_ts: Timestamp,
    writes: Vec<(Bytes, Option<Bytes>)>,
}

/// What a key holds since, and what it held before.
type Changed = (Option<Bytes>, Option<Bytes>);

struct World {
    engine: MemoryEngine,
    state: State,
    floors: std::sync::Arc<Floors>,
    open: Vec<Open>,
    /// Locks counted some steps ago, and what was closed then: what a reader may have learnt before it took its view.
    earlier: (Counts, Timestamp),
    /// By how much the next command's timestamp jumps ahead.
    jump: u64,
    /// What each key holds.
    holds: BTreeMap<Bytes, Option<Bytes>>,
    /// What was committed when: key, value, what it held before.
    committed: BTreeMap<Timestamp, BTreeMap<Bytes, Changed>>,
}

impl World {
    fn new() -> Self {
        let engine = MemoryEngine::new();
        let floors = Floors::new(shard::may_drop);
        engine.set_drop_rules(floors.clone());
        let (holds, committed) = (BTreeMap::new(), BTreeMap::new());
        Self {
            engine,
            state: new_state(),
            floors,
            open: Vec::new(),
            earlier: Default::default(),
            jump: 0,
            holds,
            committed,
        }
    }

    /// Applies a command a little later.
    fn apply(&mut self, id: Option<RequestId>, operation: Operation) -> (Timestamp, Outcome) {
        let timestamp = Timestamp(self.state.closed.0.max(1 << 32) + 7 + std::mem::take(&mut self.jump));
        let fresh = RequestId { seen: timestamp.before(), unique: u128::from(timestamp.0) };
        let command = Command { id: id.unwrap_or(fresh), timestamp, operation };
        let batch = {
            let view = self.engine.view();
            let mut overlay = Overlay::new(view.as_ref());
            let outcomes =
                apply(&mut self.state, &mut overlay, &Entry::Commands(vec![command])).expect("applies");
            (overlay.into_batch(), outcomes.into_iter().next().expect("an outcome"))
        };
        self.engine.write(batch.0, Durability::Buffered).expect("writes");
        (timestamp, batch.1)
    }

    fn note(&mut self, commit_ts: Timestamp, key: Bytes, value: Option<Bytes>) {
        let before = self.holds.insert(key.clone(), value.clone()).flatten();
        self.committed.entry(commit_ts).or_default().insert(key, (value, before));
    }

    fn step(&mut self, step: &Step) {
        let key = |index: &usize| Bytes::from_static(KEYS[*index].as_bytes());
        let value = |byte: &u8| Bytes::from(vec![*byte; usize::from(byte % 9)]);
        match step {
            Step::Put(at, byte) => {
                let (key, value) = (key(at), value(byte));
                let (_, outcome) =
                    self.apply(None, Operation::Put { key: key.clone(), value: value.clone() });
                if let Outcome::Put { commit_ts, .. } = outcome {
                    self.note(commit_ts, key, Some(value));
                }
            }
            Step::Delete(at) => {
                let (_, outcome) = self.apply(None, Operation::Delete { key: key(at) });
                if let Outcome::Deleted { commit_ts, existed: true } = outcome {
                    self.note(commit_ts, key(at), None);
                }
            }
            Step::Swap(at, byte) => {
                let (key, value) = (key(at), Some(value(byte)));
                let expect = if byte % 2 == 0 { Expect::Present } else { Expect::Absent };
                let swap = Operation::CompareAndSwap { key: key.clone(), expect, value: value.clone() };
                if let (_, Outcome::Put { commit_ts, .. }) = self.apply(None, swap) {
                    self.note(commit_ts, key, value);
                }
            }
            Step::Prepare(a, b, byte) => self.prepare([key(a), key(b)], &value(byte)),
            Step::Finish(which, at) => self.finish(*which, *at),
            Step::Cut(further) => self.cut(*further),
            Step::Remember => self.earlier = (self.state.counts, self.state.closed),
            Step::Read { back, rows, bytes, start, end } => {
                let range = KeyRange::new(key(start.min(end)), Some(key(start.max(end))));
                for range in [KeyRange::all(), range] {
                    self.check(&range, *back, *rows, *bytes);
                }
            }
        }
    }

    fn prepare(&mut self, keys: [Bytes; 2], value: &Bytes) {
        let [first, second] = keys;
        let mut writes = vec![(first.clone(), Some(value.clone()))];
        if second != first {
            // A removal, of what is there or not.
            writes.push((second, None));
        }
        let write = |(key, value): &(Bytes, Option<Bytes>)| match value {
            Some(value) => TxnWrite::Put { key: key.clone(), value: value.clone() },
            None => TxnWrite::Delete { key: key.clone() },
        };
        let part = TxnPart { writes: writes.iter().map(write).collect(), ..TxnPart::default() };
        let id = RequestId { seen: self.state.closed, unique: u128::from(self.state.closed.0) << 64 };
        let prepare = TxnCommand::Prepare { primary: "elsewhere".into(), part, listed: None };
        if let (_, Outcome::Txn(TxnOutcome::Prepared { prepare_ts })) =
            self.apply(Some(id), Operation::Txn(prepare))
        {
            self.open.push(Open { id, prepare_ts, writes });
        }
    }

    fn finish(&mut self, which: usize, at: Option<u64>) {
        if which >= self.open.len() {
            return;
        }
        let Open { id, prepare_ts, writes } = self.open.swap_remove(which);
        // No other transaction bears it: commands' timestamps are seven apart, and prepares commit at their own.
        let taken = |ts: &Timestamp| self.committed.contains_key(ts);
        let commit_ts = at.map(|later| Timestamp(prepare_ts.0 + later).min(self.state.closed));
        let decision = match commit_ts.filter(|ts| !taken(ts)) {
            Some(commit_ts) => Decision::Committed { commit_ts },
            None => Decision::Aborted,
        };
        self.apply(Some(id), Operation::Txn(TxnCommand::Finish { span: KeyRange::all(), decision }));
        if let Decision::Committed { commit_ts } = decision {
            for (key, value) in writes {
                self.note(commit_ts, key, value);
            }
        }
    }

    /// Long after: so that versions may be dropped too.
    fn cut(&mut self, further: u64) {
        self.jump = Timestamp::from_ms(limits::RETENTION_MS + 1000).0;
        let safe_point = Timestamp(self.state.closed.0.saturating_sub(further.min(100)));
        let truncated = Timestamp(self.state.closed.0.saturating_sub(further));
        self.apply(None, Operation::AdvanceSafePoint { safe_point, truncated });
        let state = &self.state;
        self.floors.publish(state.descriptor.id, state.descriptor.range.clone(), state.floor());
        self.engine.compact_all().expect("compacts");
        for range in self.floors.truncated() {
            self.engine.drop_files(Family::Changelog, &range).expect("drops");
        }
    }

    /// Reads from `back` timestamps ago to the end by pages, and compares with the record.
    fn check(&self, range: &KeyRange, back: u64, max_rows: usize, max_bytes: usize) {
        let newest = self.committed.keys().last().copied().unwrap_or(self.state.closed);
        let begin = Timestamp(newest.0.saturating_sub(back)).max(self.state.truncated);
        let mut after = begin;
        let mut found = Vec::new();
        let view = self.engine.view();
        loop {
            let request = ChangesRequest {
                range: range.clone(),
                after,
                up_to: self.state.closed,
                before_images: true,
                max_bytes,
                max_rows,
                max_before_bytes: 1000,
            };
            let page = self.page(view.as_ref(), &request);
            let newest = page.transactions.last().map(|changes| changes.commit_ts);
            assert!(page.through >= after && newest.is_none_or(|newest| newest <= page.through));
            found.extend(page.transactions);
            let is_last = page.through == after;
            after = page.through;
            if is_last || after >= self.resolved_in(range).max(begin) {
                break;
            }
        }
        self.check_earlier(range, begin);
        let reached = self.resolved_in(range).max(begin);
        assert_eq!(after, reached, "as far as the oldest lock of the keys, and no further");
        assert_eq!(found, self.expected(range, begin, reached));
    }

    /// The rows may be later than the state that the reader knows.
    fn check_earlier(&self, range: &KeyRange, begin: Timestamp) {
        let (counts, closed) = self.earlier;
        if begin > closed {
            return;
        }
        let request = ChangesRequest {
            range: range.clone(),
            after: begin,
            up_to: closed,
            before_images: true,
            max_bytes: usize::MAX,
            max_rows: usize::MAX,
            max_before_bytes: 1000,
        };
        let view = self.engine.view();
        let page =
            shard::changes_page(view.as_ref(), self.state.descriptor.id, counts, &request).expect("reads");
        let reached = self.resolved_in(range).min(closed).max(begin);
        assert_eq!(page.through, reached, "a lock of later does not matter to what was closed before");
        assert_eq!(page.transactions, self.expected(range, begin, reached));
    }

    fn resolved_in(&self, range: &KeyRange) -> Timestamp {
        let locks = self.open.iter().filter(|open| open.writes.iter().any(|(key, _)| range.contains(key)));
        let oldest = locks.map(|open| open.prepare_ts.before()).min();
        oldest.unwrap_or(Timestamp::MAX).min(self.state.closed)
    }

    fn page(&self, view: &dyn View, request: &ChangesRequest) -> ChangesPage {
        shard::changes_page(view, self.state.descriptor.id, self.state.counts, request).expect("reads")
    }

    fn expected(&self, range: &KeyRange, after: Timestamp, through: Timestamp) -> Vec<Changes> {
        let inside = self.committed.iter().filter(|(ts, _)| **ts > after && **ts <= through);
        let changes = inside.map(|(commit_ts, keys)| {
            let kept = keys.iter().filter(|(key, _)| range.contains(key));
            let changes = kept.map(|(key, (value, before))| {
                // What is said of a version is compared with what a read of it says.
                let seen = shard::look(
                    self.engine.view().as_ref(),
                    Counts::default(),
                    key,
                    *commit_ts,
                    &Fates::new(),
                );
                let record = seen.and_then(Look::unlocked).expect("reads");
                assert_eq!(record.as_ref().map(|record| &record.value), value.as_ref());
                let before = before.clone().map_or(Before::Absent, Before::Value);
                let (create_ts, version) =
                    record.map_or((Timestamp::ZERO, 0), |record| (record.create_ts, record.version));
                Change { key: key.clone(), value: value.clone(), create_ts, version, before }
            });
            Changes { commit_ts: *commit_ts, changes: changes.collect() }
        });
        changes.filter(|changes| !changes.changes.is_empty()).collect()
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn pages_tell_what_was_committed(steps in steps()) {
        let mut world = World::new();
        for step in &steps {
            world.step(step);
        }
        world.check(&KeyRange::all(), u64::MAX, 2, 10);
        let rows = world.engine.view().scan(Family::Changelog, &KeyRange::all(), Direction::Forward).count();
        let committed: usize = world.committed.values().map(BTreeMap::len).sum();
        prop_assert!(rows <= committed, "a row for each change, no more");
        prop_assert_eq!(world.state.changes.entries, committed as u64);
    }
}

#[test]
fn a_changelog_that_is_too_large_is_cut_to_what_it_may_hold() {
    let mut world = World::new();
    for number in 0..100_u8 {
        world.step(&Step::Put(usize::from(number) % KEYS.len(), 8));
    }
    let cut = |world: &World, most| {
        shard::cut_to_size(world.engine.view().as_ref(), &world.state, most).expect("reads")
    };
    let all = world.state.changes.size_bytes;
    assert_eq!(cut(&world, all), None, "it may hold all");
    let half = cut(&world, all / 2).expect("it must be cut");
    let kept: usize = world.committed.range(half.plus(1)..).count();
    // Keys differ in length, and so do changes in size.
    assert!((47..=53).contains(&kept), "{kept} of 100 are kept");
    world.apply(None, Operation::AdvanceSafePoint { safe_point: Timestamp::ZERO, truncated: half });
    assert_eq!(world.state.truncated, half);
    assert_eq!(cut(&world, all / 2), None, "once is enough");
    let newest = world.committed.keys().last().copied();
    assert_eq!(cut(&world, 0), newest, "nothing fits in nothing");
}

#[test]
fn values_from_before_that_are_too_large_together_are_left_out() {
    let mut world = World::new();
    let value = |byte: u8| Bytes::from(vec![byte; 600]);
    for key in ["a", "b", "z"] {
        world.apply(None, Operation::Put { key: key.into(), value: value(1) });
    }
    let writes = ["a", "b", "z"].map(|key| TxnWrite::Delete { key: key.into() });
    let part = TxnPart { writes: writes.to_vec(), ..TxnPart::default() };
    let after = world.state.closed;
    let id = RequestId { seen: after, unique: 1 };
    world.apply(Some(id), Operation::Txn(TxnCommand::Commit { primary: "a".into(), part }));
    let request = ChangesRequest {
        range: KeyRange::all(),
        after,
        up_to: world.state.closed,
        before_images: true,
        max_bytes: 1,
        max_rows: 1,
        max_before_bytes: 1300,
    };
    let page = world.page(world.engine.view().as_ref(), &request);
    let [changes] = &page.transactions[..] else { panic!("one transaction, whole: {page:?}") };
    let before: Vec<&Before> = changes.changes.iter().map(|change| &change.before).collect();
    assert_eq!(before, [&Before::Value(value(1)), &Before::Value(value(1)), &Before::TooLarge]);
}
