//! Apply against a plain serial model, with retries of earlier commands mixed in.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::engine::{Durability, Engine, MemoryEngine, Overlay};
use crate::shard::{self, Counts, Fates, PageLook, PageRequest, RowsChecksum};
use crate::types::{BatchResult, Condition, Direction, Expect, Outcome, Record, Refusal, Step};

/// What the keys hold.
type Keys = BTreeMap<Bytes, Record>;

/// The plainest store that could do this: a map, and every outcome by its id.
#[derive(Default)]
struct Model {
    keys: Keys,
    outcomes: HashMap<RequestId, Outcome>,
    /// What the keys held at every timestamp that was applied.
    past: BTreeMap<Timestamp, Keys>,
}

impl Model {
    fn apply(&mut self, command: &Command) -> Outcome {
        let outcome = match self.outcomes.get(&command.id) {
            Some(first) => first.clone(),
            None => {
                let mut keys = self.keys.clone();
                let outcome = match run(&mut keys, command.timestamp, &command.operation) {
                    Ok(outcome) => {
                        self.keys = keys;
                        outcome
                    }
                    Err(refusal) => Outcome::Refused(refusal),
                };
                if !only_reads(&command.operation) {
                    self.outcomes.insert(command.id, outcome.clone());
                }
                outcome
            }
        };
        self.past.insert(command.timestamp, self.keys.clone());
        outcome
    }
}

/// Whether retries look again: nothing could happen twice.
fn only_reads(operation: &Operation) -> bool {
    match operation {
        Operation::Batch { then, otherwise, .. } => {
            then.iter().chain(otherwise).all(|step| matches!(step, Step::Get { .. }))
        }
        _ => false,
    }
}

fn run(keys: &mut Keys, commit_ts: Timestamp, operation: &Operation) -> Result<Outcome, Refusal> {
    Ok(match operation {
        Operation::Txn(_) | Operation::AdvanceSafePoint { .. } => {
            unreachable!("the model's operations are of one shard: {operation:?}")
        }
        Operation::Put { key, value } => {
            let (version, create_ts) = put(keys, commit_ts, key, value);
            Outcome::Put { commit_ts, version, create_ts }
        }
        Operation::Delete { key } => Outcome::Deleted { commit_ts, existed: keys.remove(key).is_some() },
        Operation::CompareAndSwap { key, expect, value } => {
            if !met(keys, key, expect) {
                return Ok(Outcome::NotMatched { commit_ts, current: keys.get(key).cloned() });
            }
            return match value {
                Some(value) => {
                    run(keys, commit_ts, &Operation::Put { key: key.clone(), value: value.clone() })
                }
                None => run(keys, commit_ts, &Operation::Delete { key: key.clone() }),
            };
        }
        Operation::Add { key, delta } => {
            Outcome::Added { commit_ts, value: add(keys, commit_ts, key, *delta)? }
        }
        Operation::Batch { conditions, then, otherwise } => {
            let succeeded = conditions.iter().all(|condition| met(keys, &condition.key, &condition.expect));
            let steps = if succeeded { then } else { otherwise };
            let results =
                steps.iter().map(|step| take(keys, commit_ts, step)).collect::<Result<_, Refusal>>()?;
            Outcome::Batch { commit_ts, succeeded, results }
        }
    })
}

fn take(keys: &mut Keys, commit_ts: Timestamp, step: &Step) -> Result<BatchResult, Refusal> {
    Ok(match step {
        Step::Put { key, value } => {
            let (version, create_ts) = put(keys, commit_ts, key, value);
            BatchResult::Put { version, create_ts }
        }
        Step::Delete { key } => BatchResult::Deleted { existed: keys.remove(key).is_some() },
        Step::Add { key, delta } => BatchResult::Added { value: add(keys, commit_ts, key, *delta)? },
        Step::Get { key } => BatchResult::Got { record: keys.get(key).cloned() },
    })
}

fn put(keys: &mut Keys, commit_ts: Timestamp, key: &Bytes, value: &Bytes) -> (u64, Timestamp) {
    let (version, create_ts) = match keys.get(key) {
        Some(held) if held.commit_ts == commit_ts => (held.version, held.create_ts),
        Some(held) => (held.version + 1, held.create_ts),
        None => (1, commit_ts),
    };
    keys.insert(key.clone(), Record { value: value.clone(), commit_ts, create_ts, version });
    (version, create_ts)
}

fn add(keys: &mut Keys, commit_ts: Timestamp, key: &Bytes, delta: i64) -> Result<i64, Refusal> {
    let value = match keys.get(key) {
        None => 0,
        Some(held) => String::from_utf8(held.value.to_vec())
            .ok()
            .and_then(|text| text.parse::<i64>().ok())
            .ok_or(Refusal::NotACounter { key: key.clone() })?,
    };
    let sum = value.checked_add(delta).ok_or(Refusal::CounterOverflow { key: key.clone(), value, delta })?;
    put(keys, commit_ts, key, &Bytes::from(sum.to_string()));
    Ok(sum)
}

fn met(keys: &Keys, key: &Bytes, expect: &Expect) -> bool {
    let held = keys.get(key);
    match expect {
        Expect::Absent => held.is_none(),
        Expect::Present => held.is_some(),
        Expect::Version(version) => held.map(|held| held.version) == Some(*version),
        Expect::CommitTs(ts) => held.map(|held| held.commit_ts) == Some(*ts),
        Expect::Value(value) => held.map(|held| &held.value) == Some(value),
    }
}

fn key() -> impl Strategy<Value = Bytes> {
    prop_oneof![Just(""), Just("\0"), Just("a"), Just("a\0"), Just("b")].prop_map(Bytes::from)
}

fn value() -> impl Strategy<Value = Bytes> {
    prop_oneof![Just(""), Just("1"), Just("-7"), Just("9223372036854775807"), Just("x")].prop_map(Bytes::from)
}

fn delta() -> impl Strategy<Value = i64> {
    prop_oneof![-2..3i64, Just(i64::MIN), Just(i64::MAX)]
}

fn expect() -> impl Strategy<Value = Expect> {
    prop_oneof![
        Just(Expect::Absent),
        Just(Expect::Present),
        (0..4u64).prop_map(Expect::Version),
        (100..150u64).prop_map(|ts| Expect::CommitTs(Timestamp(ts))),
        value().prop_map(Expect::Value),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (key(), value()).prop_map(|(key, value)| Step::Put { key, value }),
        key().prop_map(|key| Step::Delete { key }),
        (key(), delta()).prop_map(|(key, delta)| Step::Add { key, delta }),
        key().prop_map(|key| Step::Get { key }),
    ]
}

fn operation() -> impl Strategy<Value = Operation> {
    let condition = (key(), expect()).prop_map(|(key, expect)| Condition { key, expect });
    let steps = || proptest::collection::vec(step(), 1..5);
    prop_oneof![
        (key(), value()).prop_map(|(key, value)| Operation::Put { key, value }),
        key().prop_map(|key| Operation::Delete { key }),
        (key(), expect(), proptest::option::weighted(0.8, value()))
            .prop_map(|(key, expect, value)| Operation::CompareAndSwap { key, expect, value }),
        (key(), delta()).prop_map(|(key, delta)| Operation::Add { key, delta }),
        (proptest::collection::vec(condition, 0..3), steps(), steps())
            .prop_map(|(conditions, then, otherwise)| Operation::Batch { conditions, then, otherwise }),
    ]
}

#[derive(Clone, Debug)]
enum Act {
    /// A new command, whose client has missed the last `behind` timestamps.
    New { operation: Operation, behind: u64 },
    /// An earlier command again.
    Retry(prop::sample::Index),
}

/// Acts, each with: how far the timestamp rises, whether its entry ends, whether its engine batch ends.
fn acts() -> impl Strategy<Value = Vec<(Act, u64, bool, bool)>> {
    let act = prop_oneof![
        3 => (operation(), 0..30u64).prop_map(|(operation, behind)| Act::New { operation, behind }),
        2 => any::<prop::sample::Index>().prop_map(Act::Retry),
    ];
    proptest::collection::vec((act, 1..4u64, any::<bool>(), any::<bool>()), 1..50)
}

/// Entries, each with whether its engine batch ends.
fn entries(acts: &[(Act, u64, bool, bool)]) -> Vec<(Vec<Command>, bool)> {
    let mut earlier: Vec<Command> = Vec::new();
    let mut entries = vec![(Vec::new(), false)];
    let mut timestamp = Timestamp(100);
    for (act, rise, ends_entry, ends_batch) in acts {
        let before = timestamp;
        timestamp = timestamp.plus(*rise);
        let new = |operation: Operation, behind: u64| Command {
            id: RequestId { seen: Timestamp(before.0 - behind), unique: u128::from(timestamp.0) },
            timestamp,
            operation,
        };
        let command = match act {
            Act::New { operation, behind } => new(operation.clone(), *behind),
            Act::Retry(_) if earlier.is_empty() => new(Operation::Delete { key: "a".into() }, 0),
            Act::Retry(which) => Command { timestamp, ..which.get(&earlier).clone() },
        };
        earlier.push(command.clone());
        if let Some((commands, _)) = entries.last_mut() {
            commands.push(command);
        }
        if *ends_entry {
            if let Some((_, ends)) = entries.last_mut() {
                *ends = *ends_batch;
            }
            entries.push((Vec::new(), false));
        }
    }
    entries
}

/// Applies entries, with engine batches ended where `ends` says so; the state, the engine, the outcomes.
fn apply_all(
    entries: &[(Vec<Command>, bool)],
    ends: impl Fn(bool) -> bool,
) -> (State, MemoryEngine, Vec<Outcome>) {
    let engine = MemoryEngine::new();
    let (mut state, mut outcomes) = (new_state(), Vec::new());
    let mut rest = entries;
    while !rest.is_empty() {
        let many = rest.iter().position(|(_, end)| ends(*end)).map_or(rest.len(), |place| place + 1);
        let view = engine.view();
        let mut overlay = Overlay::new(view.as_ref());
        for (commands, _) in &rest[..many] {
            let entry = Entry::Commands(commands.clone());
            outcomes.extend(shard::apply(&mut state, &mut overlay, &entry).expect("applies"));
        }
        let batch = overlay.into_batch();
        drop(view);
        engine.write(batch, Durability::Buffered).expect("writes");
        rest = &rest[many..];
    }
    (state, engine, outcomes)
}

fn rows(engine: &MemoryEngine) -> RowsChecksum {
    shard::checksum_rows(engine.view().as_ref(), &super::new_state()).expect("reads")
}

/// Every row at a timestamp, by pages of `max_rows`.
fn scan_all(
    engine: &MemoryEngine,
    at: Timestamp,
    direction: Direction,
    max_rows: usize,
) -> Vec<(Bytes, Record)> {
    let view = engine.view();
    let mut request = PageRequest {
        range: KeyRange::all(),
        direction,
        keys_only: false,
        at,
        max_rows,
        max_bytes: usize::MAX,
    };
    let mut rows = Vec::new();
    loop {
        let look = shard::scan_page(view.as_ref(), Counts::default(), &request, &Fates::new());
        let page = look.and_then(PageLook::unlocked).expect("reads");
        assert!(page.rows.len() <= max_rows, "a page keeps its bound");
        rows.extend(page.rows);
        match page.next {
            Some(next) => request = request.rest(next),
            None => return rows,
        }
    }
}

proptest! {
    #[test]
    fn apply_is_like_a_plain_store_and_retries_get_the_first_outcome(acts in acts(), max_rows in 1..4usize) {
        let entries = entries(&acts);
        let (state, engine, outcomes) = apply_all(&entries, |ends| ends);
        let mut model = Model::default();
        let commands = entries.iter().flat_map(|(commands, _)| commands);
        for (command, outcome) in commands.zip(&outcomes) {
            prop_assert_eq!(&model.apply(command), outcome, "{:?}", command);
            prop_assert_eq!(state.closed.max(command.timestamp), state.closed);
        }
        prop_assert_eq!(outcomes.len(), model.past.len());
        for (ts, keys) in &model.past {
            let expected: Vec<_> = keys.clone().into_iter().collect();
            prop_assert_eq!(&scan_all(&engine, *ts, Direction::Forward, max_rows), &expected);
            let mut reversed = scan_all(&engine, *ts, Direction::Reverse, max_rows);
            reversed.reverse();
            prop_assert_eq!(reversed, expected);
        }
    }

    #[test]
    fn grouping_into_engine_batches_changes_nothing(acts in acts()) {
        let entries = entries(&acts);
        let (state, engine, outcomes) = apply_all(&entries, |ends| ends);
        for ends in [true, false] {
            let (again, engine_again, outcomes_again) = apply_all(&entries, |_| ends);
            prop_assert_eq!(&state, &again);
            prop_assert_eq!(&outcomes, &outcomes_again);
            prop_assert_eq!(rows(&engine), rows(&engine_again));
        }
    }

    #[test]
    fn retries_write_nothing(acts in acts()) {
        let entries = entries(&acts);
        let (mut state, engine, outcomes) = apply_all(&entries, |ends| ends);
        let before = rows(&engine);
        let view = engine.view();
        let mut overlay = Overlay::new(view.as_ref());
        let first = entries.iter().flat_map(|(commands, _)| commands);
        for (command, outcome) in first.zip(outcomes) {
            let again = Command { timestamp: state.closed.plus(1), ..command.clone() };
            let entry = Entry::Commands(vec![again]);
            let answered = shard::apply(&mut state, &mut overlay, &entry).expect("applies");
            if !only_reads(&command.operation) {
                prop_assert_eq!(answered, vec![outcome]);
            }
        }
        prop_assert!(overlay.batch().is_empty());
        prop_assert_eq!(rows(&engine), before);
    }
}
