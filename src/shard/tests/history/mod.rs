//! Random histories of transactions over two shards, with retries, lost coordinators, recovery, long pauses and
//! garbage collection. Each runs on two replicas, of which one compacts and the other never does: they must
//! not differ. In the end everything that was committed must have happened one by one, in the order of the
//! commit timestamps.

mod acts;
mod replica;

use std::collections::BTreeMap;

use bytes::Bytes;
use proptest::prelude::*;
use proptest::sample::Index;

use acts::{Act, act};
use replica::Replica;

use super::*;
use crate::engine::{DropRules, Durability, Engine, MemoryEngine, Overlay};
use crate::mvcc::Floors;
use crate::shard::{self, Counts, Fate, Fates, PageLook, PageRequest};
use crate::types::{
    Decision, Direction, Lock, Outcome, TxnCommand, TxnId, TxnOutcome, TxnPart, TxnStatus, TxnWrite,
};

const CUT: &[u8] = b"m";
const SHARDS: usize = 2;
const MINUTE_MS: u64 = 60_000;

/// A transaction as its coordinators know it, and what its client has read.
struct Txn {
    id: TxnId,
    part: TxnPart,
    saw: BTreeMap<Bytes, Option<Bytes>>,
    saw_ranges: Vec<Vec<(Bytes, Bytes)>>,
    prepared: [Option<Timestamp>; SHARDS],
    /// A participant has refused, or bears a marker.
    certain: bool,
    decided: Option<Decision>,
    /// When the client was told that it is committed.
    acknowledged: Option<Timestamp>,
    finished: [bool; SHARDS],
}

impl Txn {
    fn primary(&self) -> Bytes {
        self.part.writes[0].key().clone()
    }

    fn parallel(&self) -> bool {
        self.part.ranges.is_empty()
    }

    fn participants(&self) -> Vec<usize> {
        (0..SHARDS).filter(|shard| !self.part.within(&range_of(*shard)).is_empty()).collect()
    }

    fn all_prepared(&self) -> Option<Timestamp> {
        let prepared: Option<Vec<_>> =
            self.participants().into_iter().map(|shard| self.prepared[shard]).collect();
        prepared?.into_iter().max()
    }

    fn learn(&mut self, decision: Decision) {
        assert!(self.decided.is_none_or(|known| known == decision), "decided twice: {:?}", self.id);
        self.decided = Some(decision);
    }
}

fn range_of(shard: usize) -> KeyRange {
    Replica::new().states[shard].descriptor.range.clone()
}

fn shard_of(key: &[u8]) -> usize {
    usize::from(key >= CUT)
}

/// What was committed at a timestamp.
struct Committed {
    txn: Option<usize>,
    writes: Vec<TxnWrite>,
}

struct World {
    compacting: Replica,
    keeping: Replica,
    now: Timestamp,
    unique: u128,
    txns: Vec<Txn>,
    plain: BTreeMap<Timestamp, Committed>,
    /// What single reads saw, and at which timestamp.
    looks: Vec<(Timestamp, Bytes, Option<Bytes>)>,
}

impl World {
    fn new() -> Self {
        Self {
            compacting: Replica::new(),
            keeping: Replica::new(),
            now: Timestamp::from_ms(1),
            unique: 0,
            txns: Vec::new(),
            plain: BTreeMap::new(),
            looks: Vec::new(),
        }
    }

    fn tick(&mut self) -> Timestamp {
        self.now = self.now.plus(1);
        self.now
    }

    fn new_id(&mut self) -> TxnId {
        self.unique += 1;
        TxnId { seen: self.tick(), unique: self.unique }
    }

    /// On both replicas, which must do the same.
    fn apply(&mut self, shard: usize, id: RequestId, operation: Operation) -> Outcome {
        let command = Command { id, timestamp: self.tick(), operation };
        let outcome = self.compacting.apply(shard, &command);
        assert_eq!(outcome, self.keeping.apply(shard, &command), "{command:?}");
        assert_eq!(self.compacting.states, self.keeping.states, "{command:?}");
        outcome
    }

    fn run(&mut self, txn: usize, shard: usize, command: TxnCommand) -> TxnOutcome {
        let id = self.txns[txn].id;
        match self.apply(shard, id, Operation::Txn(command)) {
            Outcome::Txn(outcome) => {
                match &outcome {
                    TxnOutcome::Committed { commit_ts } => {
                        self.txns[txn].learn(Decision::Committed { commit_ts: *commit_ts });
                    }
                    TxnOutcome::Prepared { prepare_ts } => {
                        let earlier = self.txns[txn].prepared[shard].replace(*prepare_ts);
                        assert!(earlier.is_none_or(|earlier| earlier == *prepare_ts), "prepared twice");
                    }
                    _ => {}
                }
                outcome
            }
            // A lock in the way of a whole commit, or too old: nothing was done.
            Outcome::Refused(Refusal::Locked(_) | Refusal::TooOld { .. }) => TxnOutcome::NotPrepared,
            outcome => panic!("{outcome:?}"),
        }
    }

    /// What a question at `at` learns of a transaction. Nothing is under way here that could still come at or
    /// below it, so that undecided means "not at or below".
    fn fate(&self, lock: &Lock) -> Fate {
        let replica = &self.keeping;
        let (view, home) = (replica.engine.view(), &replica.states[shard_of(&lock.primary)]);
        let status = shard::txn_status(view.as_ref(), home, &lock.primary, lock.txn).expect("reads");
        match status {
            TxnStatus::Committed { commit_ts, .. } => Fate::Committed { commit_ts },
            TxnStatus::Aborted | TxnStatus::Missing => Fate::NotBelow,
            TxnStatus::Staging { listed } => {
                let locked = |key: &Bytes| shard::lock_of(view.as_ref(), key, lock.txn).expect("reads");
                let all: Option<Vec<Timestamp>> = listed.iter().map(locked).collect();
                let latest = all.and_then(|all| all.into_iter().max());
                latest.map_or(Fate::NotBelow, |commit_ts| Fate::Committed { commit_ts })
            }
        }
    }

    fn get(&self, key: &Bytes, at: Timestamp) -> Option<Bytes> {
        let mut fates = Fates::new();
        loop {
            let look = |replica: &Replica| {
                let counts = replica.states[shard_of(key)].counts;
                shard::look(replica.engine.view().as_ref(), counts, key, at, &fates).expect("reads")
            };
            let seen = look(&self.keeping);
            assert_eq!(seen, look(&self.compacting), "a read at {at} of {key:?}");
            match seen {
                Look::Value(record) => return record.map(|record| record.value),
                Look::Locked(lock) => {
                    assert_eq!(fates.insert(lock.txn, self.fate(&lock)), None);
                }
            }
        }
    }

    fn scan(&self, range: &KeyRange, at: Timestamp) -> Vec<(Bytes, Bytes)> {
        let mut rows = Vec::new();
        for shard in 0..SHARDS {
            let Some(range) = range_of(shard).intersect(range) else { continue };
            let direction = Direction::Forward;
            let mut request =
                PageRequest { range, direction, keys_only: false, at, max_rows: 2, max_bytes: usize::MAX };
            let mut fates = Fates::new();
            loop {
                let page = |replica: &Replica| {
                    let counts = replica.states[shard].counts;
                    shard::scan_page(replica.engine.view().as_ref(), counts, &request, &fates).expect("reads")
                };
                // Pages may end elsewhere where tombstones are gone: only the rows are the same.
                let page = match (page(&self.keeping), page(&self.compacting)) {
                    (PageLook::Page(page), PageLook::Page(other)) => {
                        assert_eq!(page.rows, other.rows);
                        page
                    }
                    (PageLook::Locked(locks), PageLook::Locked(others)) => {
                        assert_eq!(locks, others);
                        for lock in locks {
                            assert_eq!(fates.insert(lock.txn, self.fate(&lock)), None);
                        }
                        continue;
                    }
                    differ => panic!("{differ:?}"),
                };
                rows.extend(page.rows.into_iter().map(|(key, record)| (key, record.value)));
                match page.next {
                    Some(next) => request = request.rest(next),
                    None => break,
                }
            }
        }
        rows
    }

    fn begin(&mut self, mut reads: Vec<Bytes>, range: Option<KeyRange>, writes: &[TxnWrite]) {
        let id = self.new_id();
        reads.sort();
        reads.dedup();
        // Every write leaves a value of its own.
        let value = Bytes::from(id.unique.to_string());
        let writes: BTreeMap<Bytes, TxnWrite> = writes
            .iter()
            .map(|write| match write {
                TxnWrite::Put { key, .. } => TxnWrite::Put { key: key.clone(), value: value.clone() },
                write => write.clone(),
            })
            .map(|write| (write.key().clone(), write))
            .collect();
        let part =
            TxnPart { reads, ranges: range.into_iter().collect(), writes: writes.into_values().collect() };
        let saw = part.reads.iter().map(|key| (key.clone(), self.get(key, id.seen))).collect();
        let saw_ranges = part.ranges.iter().map(|range| self.scan(range, id.seen)).collect();
        self.txns.push(Txn {
            id,
            part,
            saw,
            saw_ranges,
            prepared: [None; SHARDS],
            certain: false,
            decided: None,
            acknowledged: None,
            finished: [false; SHARDS],
        });
    }

    /// Prepares a part, or commits where there is but one. Also again, and also long after the end.
    fn prepare(&mut self, txn: usize, shard: usize) {
        let Txn { part, .. } = &self.txns[txn];
        let (primary, participants) = (self.txns[txn].primary(), self.txns[txn].participants());
        if let [only] = participants[..] {
            let part = part.clone();
            match self.run(txn, only, TxnCommand::Commit { primary, part }) {
                TxnOutcome::Committed { commit_ts } => self.acknowledge(txn, commit_ts),
                TxnOutcome::Aborted { .. } => self.txns[txn].learn(Decision::Aborted),
                _ => {}
            }
            return;
        }
        let staged = self.txns[txn].parallel() && shard_of(&primary) == shard;
        let (listed, part) = (staged.then(|| part.keys()), part.within(&range_of(shard)));
        match self.run(txn, shard, TxnCommand::Prepare { primary, part, listed }) {
            TxnOutcome::Prepared { .. } if self.txns[txn].parallel() => {
                if let Some(commit_ts) = self.txns[txn].all_prepared() {
                    self.acknowledge(txn, commit_ts);
                }
            }
            TxnOutcome::Aborted { .. } => self.txns[txn].certain = true,
            _ => {}
        }
    }

    fn acknowledge(&mut self, txn: usize, commit_ts: Timestamp) {
        // A refusal that came once can't be followed by a commit.
        assert!(!self.txns[txn].certain || self.txns[txn].decided.is_some(), "{:?}", self.txns[txn].id);
        let earlier = self.txns[txn].acknowledged.replace(commit_ts);
        assert!(earlier.is_none_or(|earlier| earlier == commit_ts), "acknowledged twice");
    }

    fn spans(&self, txn: usize) -> Vec<KeyRange> {
        let txn = &self.txns[txn];
        let span = |shard| txn.part.within(&range_of(shard)).span();
        txn.participants().into_iter().filter_map(span).collect()
    }

    fn decide(&mut self, txn: usize) {
        let (primary, spans) = (self.txns[txn].primary(), self.spans(txn));
        let Some(latest) = self.txns[txn].all_prepared() else { return };
        if self.txns[txn].certain {
            return;
        }
        let commit_ts = Some(latest).filter(|_| self.txns[txn].parallel());
        let shard = shard_of(&primary);
        if let TxnOutcome::Committed { commit_ts } =
            self.run(txn, shard, TxnCommand::Decide { primary, commit_ts, spans })
        {
            self.acknowledge(txn, commit_ts);
        }
    }

    fn abort(&mut self, txn: usize) {
        let (primary, spans) = (self.txns[txn].primary(), self.spans(txn));
        let (shard, certain) = (shard_of(&primary), self.txns[txn].certain);
        match self.run(txn, shard, TxnCommand::Abort { primary, certain, spans }) {
            TxnOutcome::Aborted { .. } | TxnOutcome::AbortedLate if self.txns[txn].decided.is_none() => {
                self.txns[txn].learn(Decision::Aborted);
            }
            _ => {}
        }
    }

    fn mark(&mut self, txn: usize, key: Bytes) -> TxnOutcome {
        let outcome = self.run(txn, shard_of(&key), TxnCommand::Mark { key });
        match outcome {
            TxnOutcome::Marked | TxnOutcome::Aborted { .. } if self.txns[txn].decided.is_none() => {
                self.txns[txn].certain = true;
            }
            _ => {}
        }
        outcome
    }

    fn finish(&mut self, txn: usize, shard: usize) {
        let Some(decision) = self.txns[txn].decided else { return };
        let Some(span) = self.txns[txn].part.within(&range_of(shard)).span() else { return };
        self.run(txn, shard, TxnCommand::Finish { span, decision });
        self.txns[txn].finished[shard] = true;
    }

    fn forget(&mut self, txn: usize) {
        let primary = self.txns[txn].primary();
        let finished = self.txns[txn].participants().into_iter().all(|shard| self.txns[txn].finished[shard]);
        if finished {
            self.run(txn, shard_of(&primary), TxnCommand::Forget { primary });
        }
    }

    /// Whoever meets an expired lock: knows the primary and nothing else.
    fn recover(&mut self, txn: usize) {
        let (primary, id) = (self.txns[txn].primary(), self.txns[txn].id);
        if self.txns[txn].participants().len() == 1 {
            return;
        }
        let replica = &self.keeping;
        let home = &replica.states[shard_of(&primary)];
        let status = shard::txn_status(replica.engine.view().as_ref(), home, &primary, id).expect("reads");
        match status {
            TxnStatus::Committed { commit_ts, .. } => self.txns[txn].learn(Decision::Committed { commit_ts }),
            TxnStatus::Aborted => self.txns[txn].learn(Decision::Aborted),
            TxnStatus::Missing => self.abort(txn),
            TxnStatus::Staging { listed } => {
                let mut latest = Some(Timestamp::ZERO);
                for key in listed {
                    match self.mark(txn, key) {
                        TxnOutcome::StillLocked { prepare_ts } => {
                            latest = latest.map(|latest| latest.max(prepare_ts));
                        }
                        _ => latest = None,
                    }
                }
                match latest {
                    Some(commit_ts) => {
                        let spans = self.spans(txn);
                        let shard = shard_of(&primary);
                        let decide = TxnCommand::Decide { primary, commit_ts: Some(commit_ts), spans };
                        self.run(txn, shard, decide);
                    }
                    None => self.abort(txn),
                }
            }
        }
    }

    fn plain(&mut self, operation: Operation, write: TxnWrite) {
        let (id, shard) = (self.new_id(), shard_of(write.key()));
        let done = self.apply(shard, id, operation.clone());
        assert!(!matches!(done, Outcome::Refused(Refusal::TooOld { .. } | Refusal::OutOfRange)));
        if let Outcome::Put { .. } | Outcome::Deleted { .. } | Outcome::Added { .. } = done {
            self.plain.insert(self.now, Committed { txn: None, writes: vec![write] });
            // Again: the same outcome, whatever has come in between.
            assert_eq!(self.apply(shard, id, operation), done);
        }
    }

    fn act(&mut self, act: Act) {
        let pick = |index: Index, txns: &[Txn]| (!txns.is_empty()).then(|| index.index(txns.len()));
        let txns = &self.txns[..];
        match act {
            Act::Begin { reads, range, writes } => self.begin(reads, range, &writes),
            Act::Prepare(txn, shard) => {
                if let Some(txn) = pick(txn, txns)
                    && (txns[txn].participants().contains(&shard) || txns[txn].participants().len() == 1)
                {
                    self.prepare(txn, shard);
                }
            }
            Act::Decide(txn) => drop(pick(txn, txns).map(|txn| self.decide(txn))),
            Act::Abort(txn) => {
                // Only a transaction over several shards is ever aborted from outside.
                let many = |txn: &usize| txns[*txn].participants().len() > 1;
                if let Some(txn) = pick(txn, txns).filter(many) {
                    self.abort(txn);
                }
            }
            Act::Mark(txn, key) => {
                if let Some(txn) = pick(txn, txns)
                    && txns[txn].parallel()
                    && txns[txn].participants().len() > 1
                {
                    let keys = txns[txn].part.keys();
                    let key = key.get(&keys).clone();
                    self.mark(txn, key);
                }
            }
            Act::Finish(txn, shard) => drop(pick(txn, txns).map(|txn| self.finish(txn, shard))),
            Act::Forget(txn) => drop(pick(txn, txns).map(|txn| self.forget(txn))),
            Act::Recover(txn) => drop(pick(txn, txns).map(|txn| self.recover(txn))),
            Act::Put(key) => {
                let value = Bytes::from(self.now.to_string());
                let write = TxnWrite::Put { key: key.clone(), value: value.clone() };
                self.plain(Operation::Put { key, value }, write);
            }
            Act::Delete(key) => {
                self.plain(Operation::Delete { key: key.clone() }, TxnWrite::Delete { key });
            }
            Act::Add(key) => {
                let write = TxnWrite::Add { key: key.clone(), delta: 5 };
                self.plain(Operation::Add { key, delta: 5 }, write);
            }
            Act::Look(key, back) => {
                let at = Timestamp(self.now.0 - back);
                if at >= self.keeping.states[shard_of(&key)].safe_point {
                    let saw = self.get(&key, at);
                    self.looks.push((at, key, saw));
                }
            }
            Act::Pause { minutes } => self.now = self.now.plus(Timestamp::from_ms(minutes * MINUTE_MS).0),
            Act::Collect => {
                for shard in 0..SHARDS {
                    let (id, safe_point) = (self.new_id(), self.now);
                    self.apply(shard, id, Operation::AdvanceSafePoint { safe_point, truncated: safe_point });
                }
            }
            Act::Compact => {
                self.compacting.compact();
                assert_eq!(self.compacting.sums(), self.keeping.sums());
            }
        }
    }

    /// Recovery ends everything; nothing stays locked.
    fn drain(&mut self) {
        for txn in 0..self.txns.len() {
            for _ in 0..3 {
                self.recover(txn);
            }
            for shard in 0..SHARDS {
                self.finish(txn, shard);
            }
            self.forget(txn);
        }
        for state in &self.keeping.states {
            assert_eq!(state.counts, Counts::default(), "locks or records are left");
        }
        self.compacting.compact();
        assert_eq!(self.compacting.sums(), self.keeping.sums());
    }

    /// Takes what was committed one by one, in the order of the timestamps.
    fn check(mut self) {
        let mut order = std::mem::take(&mut self.plain);
        for (number, txn) in self.txns.iter().enumerate() {
            if let Some(acknowledged) = txn.acknowledged {
                let committed = Decision::Committed { commit_ts: acknowledged };
                assert_eq!(txn.decided, Some(committed), "acknowledged, then lost: {:?}", txn.id);
            }
            if let Some(Decision::Committed { commit_ts }) = txn.decided {
                assert!(commit_ts > txn.id.seen);
                let committed = Committed { txn: Some(number), writes: txn.part.writes.clone() };
                assert!(order.insert(commit_ts, committed).is_none(), "a timestamp was used twice");
            }
        }
        let mut keys: BTreeMap<Bytes, Bytes> = BTreeMap::new();
        let mut looks = std::mem::take(&mut self.looks);
        looks.sort();
        let mut looks = looks.into_iter().peekable();
        for (commit_ts, Committed { txn, writes }) in &order {
            while let Some((at, key, saw)) = looks.next_if(|(at, ..)| at < commit_ts) {
                assert_eq!(saw.as_ref(), keys.get(&key), "a read of {key:?} at {at}");
            }
            if let Some(txn) = txn.map(|txn| &self.txns[txn]) {
                for (key, saw) in &txn.saw {
                    assert_eq!(saw.as_ref(), keys.get(key), "{:?} read {key:?}", txn.id);
                }
                for (range, saw) in txn.part.ranges.iter().zip(&txn.saw_ranges) {
                    let holds: Vec<_> = keys
                        .iter()
                        .filter(|(key, _)| range.contains(key))
                        .map(|(key, value)| (key.clone(), value.clone()))
                        .collect();
                    assert_eq!(saw, &holds, "{:?} read {range:?}", txn.id);
                }
            }
            for write in writes {
                match write {
                    TxnWrite::Put { key, value } => drop(keys.insert(key.clone(), value.clone())),
                    TxnWrite::Delete { key } => drop(keys.remove(key)),
                    TxnWrite::Add { key, delta } => {
                        let held = keys.get(key).map_or("0".into(), |value| String::from_utf8_lossy(value));
                        let sum = held.parse::<i64>().expect("a counter") + delta;
                        keys.insert(key.clone(), sum.to_string().into());
                    }
                }
            }
        }
        let now = self.tick();
        let rows = self.scan(&KeyRange::all(), now);
        assert_eq!(rows, keys.into_iter().collect::<Vec<_>>());
    }
}

proptest! {
    #[test]
    fn what_is_committed_happened_in_one_order_and_replicas_never_differ(
        acts in proptest::collection::vec(act(), 1..120)
    ) {
        let mut world = World::new();
        for act in acts {
            world.act(act);
        }
        world.drain();
        world.check();
    }
}
