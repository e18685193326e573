//! The checker. Timestamps are the witness: they must be a serial order that explains everything the clients saw
//! and were told, and that real time agrees with. Latest reads have no timestamp; for them, and for everything
//! together, no cycle of dependencies and real time may exist.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use kvorum::mvcc::Version;
use kvorum::txn::Verdict;
use kvorum::types::{Expect, KeyRange, Operation, Outcome, RequestId, Timestamp, TxnWrite};

use crate::history::{Kind, Operated, Seen};
use crate::world::World;

type Check = Result<(), String>;
type Truth = BTreeMap<Bytes, Vec<Version>>;

/// Checks a world that has come to rest.
pub fn check(world: &mut World) -> Check {
    for shard in &mut world.shards {
        let [one, other] = &mut shard.replicas;
        if !one.same(other) {
            return Err("replicas: they differ".into());
        }
    }
    let truth = Facts::new(world)?;
    for (number, operated) in world.history.iter().enumerate() {
        truth.check_operation(operated).map_err(|error| format!("{error} (op{number})"))?;
    }
    truth.check_real_time(&world.history)?;
    check_cycle(&world.history, &truth)
}

/// What was really written.
struct Facts<'w> {
    truth: &'w Truth,
    /// When each id was committed, and the keys it wrote.
    commits: BTreeMap<RequestId, (Timestamp, BTreeSet<Bytes>)>,
}

impl<'w> Facts<'w> {
    /// Versions of a key rise, no id writes a key twice or at two timestamps, no timestamp belongs to two ids.
    fn new(world: &'w World) -> Result<Self, String> {
        let mut commits: BTreeMap<RequestId, (Timestamp, BTreeSet<Bytes>)> = BTreeMap::new();
        let mut owners: BTreeMap<Timestamp, RequestId> = BTreeMap::new();
        for (key, versions) in &world.truth {
            if let Some(pair) = versions.windows(2).find(|pair| pair[0].commit_ts >= pair[1].commit_ts) {
                return Err(format!("order: {key:?} got {:?} over {:?}", pair[1], pair[0]));
            }
            for version in versions {
                let (commit_ts, keys) =
                    commits.entry(version.id).or_insert((version.commit_ts, BTreeSet::new()));
                if !keys.insert(key.clone()) {
                    return Err(format!("twice: {} wrote {key:?} twice", version.id));
                }
                if *commit_ts != version.commit_ts {
                    return Err(format!("atomicity: {} is committed at two timestamps", version.id));
                }
                if *owners.entry(version.commit_ts).or_insert(version.id) != version.id {
                    return Err(format!("timestamp: two transactions bear {}", version.commit_ts));
                }
            }
        }
        Ok(Self { truth: &world.truth, commits })
    }

    fn committed_at(&self, operated: &Operated) -> Option<Timestamp> {
        operated.id.and_then(|id| self.commits.get(&id)).map(|(commit_ts, _)| *commit_ts)
    }

    /// The newest version of a key up to `ts`.
    fn at(&self, key: &Bytes, ts: Timestamp) -> Option<&Version> {
        self.truth.get(key)?.iter().rev().find(|version| version.commit_ts <= ts)
    }

    fn check_operation(&self, operated: &Operated) -> Check {
        let committed = self.committed_at(operated);
        if operated.kind != Kind::Latest {
            self.check_seen(operated, operated.at, "snapshot")?;
        }
        match operated.kind {
            Kind::Transaction => {
                if let Some(commit_ts) = committed {
                    self.check_seen(operated, commit_ts.before(), "serial")?;
                    self.check_writes(operated, commit_ts)?;
                }
                check_verdict(operated, committed)
            }
            Kind::Single => self.check_single(operated, committed),
            Kind::Snapshot | Kind::Latest => Ok(()),
        }
    }

    /// What was seen is what there was at a timestamp.
    fn check_seen(&self, operated: &Operated, ts: Timestamp, what: &str) -> Check {
        for seen in &operated.seen {
            match seen {
                Seen::Key { key, record } => {
                    let right = self.at(key, ts).and_then(Version::record);
                    if *record != right {
                        return Err(format!(
                            "{what}: {key:?} at {ts} was read as {record:?}, right is {right:?}"
                        ));
                    }
                }
                Seen::Range { range, rows } => {
                    let right = self.rows(range, ts);
                    if *rows != right {
                        return Err(format!(
                            "{what}: {range:?} at {ts} was read as {rows:?}, right is {right:?}"
                        ));
                    }
                }
            }
        }
        Ok(())
    }

    fn rows(&self, range: &KeyRange, ts: Timestamp) -> Vec<(Bytes, kvorum::types::Record)> {
        let keys = self.truth.keys().filter(|key| range.contains(key));
        keys.filter_map(|key| Some((key.clone(), self.at(key, ts)?.record()?))).collect()
    }

    /// All of it was written, and what was meant.
    fn check_writes(&self, operated: &Operated, commit_ts: Timestamp) -> Check {
        let written = operated.id.and_then(|id| self.commits.get(&id)).map(|(_, keys)| keys.clone());
        let meant: BTreeSet<Bytes> = operated.part.writes.iter().map(|write| write.key().clone()).collect();
        if written.as_ref() != Some(&meant) {
            return Err(format!("atomicity: of the writes to {meant:?} there are those to {written:?}"));
        }
        for write in &operated.part.writes {
            let before = self.at(write.key(), commit_ts.before()).and_then(|version| version.value.clone());
            let meant = match write {
                TxnWrite::Put { value, .. } => Some(value.clone()),
                TxnWrite::Delete { .. } => None,
                TxnWrite::Add { delta, .. } => Some((number(before.as_ref()) + delta).to_string().into()),
            };
            let there = self.at(write.key(), commit_ts).and_then(|version| version.value.clone());
            if there != meant {
                return Err(format!("value: {write:?} over {before:?} left {there:?}"));
            }
        }
        Ok(())
    }

    /// A command of one key did what it said, at the timestamp it said.
    fn check_single(&self, operated: &Operated, committed: Option<Timestamp>) -> Check {
        let Some(operation) = &operated.operation else { return Ok(()) };
        let key = operation.keys()[0];
        let before = |ts: Timestamp| self.at(key, ts.before()).and_then(Version::record);
        let said = match &operated.outcome {
            None => return Ok(()),
            Some(Outcome::NotMatched { commit_ts, current }) => {
                if *current != before(*commit_ts) {
                    return Err(format!("condition: found {current:?}, right is {:?}", before(*commit_ts)));
                }
                None
            }
            Some(Outcome::Deleted { existed: false, commit_ts }) => {
                if before(*commit_ts).is_some() {
                    return Err(format!("condition: {key:?} is said to be absent at {commit_ts}"));
                }
                None
            }
            Some(Outcome::Deleted { commit_ts, .. } | Outcome::Put { commit_ts, .. }) => Some(*commit_ts),
            Some(Outcome::Added { commit_ts, value }) => {
                let there = self.at(key, *commit_ts).and_then(|version| version.value.clone());
                if number(there.as_ref()) != *value {
                    return Err(format!("value: the sum is said to be {value}, it is {there:?}"));
                }
                Some(*commit_ts)
            }
            Some(other) => return Err(format!("outcome: {operation:?} gave {other:?}")),
        };
        if said != committed {
            return Err(format!(
                "outcome: {operation:?} is said to be committed at {said:?}, it is at {committed:?}"
            ));
        }
        match (operation, said) {
            (Operation::CompareAndSwap { expect, .. }, Some(commit_ts))
                if before(commit_ts).is_none() != (*expect == Expect::Absent) =>
            {
                Err(format!("condition: {operation:?} over {:?}", before(commit_ts)))
            }
            (Operation::Add { delta, .. }, Some(commit_ts)) => {
                let sum = number(before(commit_ts).map(|record| record.value).as_ref()) + delta;
                let there = self.at(key, commit_ts).and_then(|version| version.value.clone());
                if number(there.as_ref()) == sum {
                    Ok(())
                } else {
                    Err(format!("value: {sum} became {there:?}"))
                }
            }
            _ => Ok(()),
        }
    }

    /// Where an operation stands in the order of timestamps.
    fn place(&self, operated: &Operated) -> Option<Timestamp> {
        match operated.kind {
            Kind::Transaction => self.committed_at(operated),
            Kind::Snapshot => operated.done.map(|_| operated.at),
            Kind::Latest => None,
            Kind::Single => match &operated.outcome {
                Some(
                    Outcome::NotMatched { commit_ts, .. } | Outcome::Deleted { existed: false, commit_ts },
                ) => Some(*commit_ts),
                _ => self.committed_at(operated),
            },
        }
    }

    /// What was over before another began stands before it.
    fn check_real_time(&self, history: &[Operated]) -> Check {
        let placed: Vec<(usize, &Operated, Timestamp)> = history
            .iter()
            .enumerate()
            .filter_map(|(n, operated)| Some((n, operated, self.place(operated)?)))
            .collect();
        for (n, first, first_ts) in &placed {
            let Some(done) = first.done.filter(|_| told(first)) else { continue };
            for (m, second, second_ts) in &placed {
                if done < second.invoked && first_ts >= second_ts {
                    return Err(format!(
                        "real time: op{n} at {first_ts} was over before op{m} at {second_ts} began"
                    ));
                }
            }
        }
        Ok(())
    }
}

/// Whether the client was told what came of it.
fn told(operated: &Operated) -> bool {
    !matches!(operated.verdict, Some(Verdict::Undetermined))
}

fn number(value: Option<&Bytes>) -> i64 {
    value.map_or(0, |value| std::str::from_utf8(value).expect("a number").parse().expect("a number"))
}

fn check_verdict(operated: &Operated, committed: Option<Timestamp>) -> Check {
    match (&operated.verdict, committed) {
        (Some(Verdict::Committed { commit_ts }), None) => {
            Err(format!("lost: acknowledged at {commit_ts}, and not there"))
        }
        (Some(Verdict::Committed { commit_ts }), Some(there)) if *commit_ts != there => {
            Err(format!("timestamp: acknowledged at {commit_ts}, committed at {there}"))
        }
        (Some(Verdict::Aborted { reason }), Some(there)) => {
            Err(format!("zombie: said to be aborted ({reason:?}), committed at {there}"))
        }
        (Some(Verdict::Refused(refusal)), _) => Err(format!("refused: {refusal:?}")),
        _ => Ok(()),
    }
}

/// A version of a key: the place in its order, 0 being what there was before all.
type Place = usize;

/// Dependencies of operations on versions, and real time: no cycle.
fn check_cycle(history: &[Operated], facts: &Facts<'_>) -> Check {
    let writer: BTreeMap<RequestId, usize> =
        history.iter().enumerate().filter_map(|(n, operated)| Some((operated.id?, n))).collect();
    let effective: Vec<bool> = history
        .iter()
        .map(|operated| {
            facts.committed_at(operated).is_some() || operated.done.filter(|_| told(operated)).is_some()
        })
        .collect();
    let mut edges = vec![0u64; history.len()];
    for (n, first) in history.iter().enumerate().filter(|(n, _)| effective[*n]) {
        for (m, second) in history.iter().enumerate().filter(|(m, _)| effective[*m]) {
            if told(first) && first.done.is_some_and(|done| done < second.invoked) {
                edges[n] |= 1 << m;
            }
        }
        if first.kind == Kind::Transaction && facts.committed_at(first).is_none() {
            continue;
        }
        for (key, place) in first.seen.iter().filter_map(|seen| version_seen(seen, facts)) {
            let versions = facts.truth.get(&key).map_or(&[][..], Vec::as_slice);
            if let Some(version) = place.checked_sub(1).and_then(|at| versions.get(at)) {
                let by = writer[&version.id];
                edges[by] |= if by == n { 0 } else { 1 << n };
            }
            if let Some(next) = versions.get(place) {
                let by = writer[&next.id];
                edges[n] |= if by == n { 0 } else { 1 << by };
            }
        }
    }
    for versions in facts.truth.values() {
        for pair in versions.windows(2) {
            edges[writer[&pair[0].id]] |= 1 << writer[&pair[1].id];
        }
    }
    let direct = edges.clone();
    for middle in 0..history.len() {
        for from in 0..history.len() {
            if edges[from] >> middle & 1 == 1 {
                edges[from] |= edges[middle];
            }
        }
    }
    let on_cycle: Vec<usize> = (0..history.len()).filter(|n| edges[*n] >> n & 1 == 1).collect();
    if on_cycle.is_empty() {
        return Ok(());
    }
    let shown: Vec<(usize, Vec<usize>)> = on_cycle
        .iter()
        .map(|from| (*from, on_cycle.iter().copied().filter(|to| direct[*from] >> to & 1 == 1).collect()))
        .collect();
    Err(format!("cycle: {shown:?}"))
}

/// Which version was seen; `None` where that can't be told: of an absent key with several tombstones.
fn version_seen(seen: &Seen, facts: &Facts<'_>) -> Option<(Bytes, Place)> {
    let Seen::Key { key, record } = seen else { return None };
    let versions = facts.truth.get(key).map_or(&[][..], Vec::as_slice);
    match record {
        Some(record) => {
            let at = versions.iter().position(|version| version.commit_ts == record.commit_ts);
            // One that nobody wrote is older than all: it can't be, and shows as a cycle or in another check.
            Some((key.clone(), at.map_or(0, |at| at + 1)))
        }
        None if versions.iter().all(|version| version.value.is_some()) => Some((key.clone(), 0)),
        None => None,
    }
}
