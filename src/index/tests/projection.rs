//! A projector that scans, follows, is killed at any step and begins again from its checkpoint comes to the index that a
//! scan of all rows makes, and to the dead letters that the rows deserve.

use std::collections::BTreeMap;

use bytes::Bytes;
use proptest::prelude::*;

use super::histories::{definition, row_key, row_value};
use crate::codec::keyspace::INDEX_DEAD_LETTER;
use crate::index::{
    Checkpoint, DeadLetter, Definition, OnError, Spec, State, Step, checkpoint_key, dead_letters, delta,
    from_scan,
};
use crate::types::{Before, Change, Changes, Error, Result, Timestamp, TxnWrite};

type Rows = BTreeMap<Bytes, Bytes>;
/// What a transaction writes: each key once.
type Writes = BTreeMap<Bytes, Option<Bytes>>;

/// An event as the changelog tells it, and what is read at its end.
#[derive(Clone, Debug)]
enum Told {
    Row(Bytes, Bytes),
    Changes(Changes),
    Progress(Timestamp),
}

/// When the rows of the beginning are read.
const SCANNED_AT: Timestamp = Timestamp(100);

/// All events of a history: the rows of the beginning, then its transactions. A cursor is the number of an event.
fn told(first: &Rows, history: &[Writes]) -> (Vec<Told>, Rows) {
    let mut events: Vec<Told> =
        first.iter().map(|(key, value)| Told::Row(key.clone(), value.clone())).collect();
    events.push(Told::Progress(SCANNED_AT));
    let mut rows = first.clone();
    for (number, writes) in history.iter().enumerate() {
        let commit_ts = Timestamp(200 + 10 * number as u64);
        let change = |(key, value): (&Bytes, &Option<Bytes>)| {
            let before = match value {
                Some(value) => rows.insert(key.clone(), value.clone()),
                None => rows.remove(key),
            };
            let before = before.map_or(Before::Absent, Before::Value);
            Change { key: key.clone(), value: value.clone(), create_ts: Timestamp::ZERO, version: 0, before }
        };
        events.push(Told::Changes(Changes { commit_ts, changes: writes.iter().map(change).collect() }));
        if number % 3 == 0 {
            events.push(Told::Progress(commit_ts.plus(5)));
        }
    }
    (events, rows)
}

fn cursor(number: usize) -> Bytes {
    Bytes::copy_from_slice(&(number as u64).to_be_bytes())
}

/// The index's rows, and the projector over them.
struct World {
    definition: Definition,
    stored: Rows,
}

impl World {
    fn checkpoint(&self) -> Checkpoint {
        let stored = self.stored.get(&checkpoint_key(self.definition.id(), self.definition.version()));
        stored.map_or_else(Checkpoint::new, |stored| Checkpoint::decode(stored).expect("a checkpoint"))
    }

    /// From the checkpoint on, steps of so many events each; one that is not written is lost, as with a crash before its
    /// commit. Answers once all is told, or it halts.
    fn run(&mut self, events: &[Told], steps: &[(usize, bool)]) -> Result<()> {
        let mut steps = steps.iter().copied().chain(std::iter::repeat((3, true)));
        loop {
            let checkpoint = self.checkpoint();
            let begin = checkpoint.cursor[..].try_into().map_or(0, u64::from_be_bytes) as usize;
            if begin == events.len() || matches!(checkpoint.state, State::Halted { .. }) {
                return Ok(());
            }
            let (count, is_written) = steps.next().expect("endless");
            let mut step = Step::new(self.definition.clone(), checkpoint);
            for (place, event) in events.iter().enumerate().skip(begin).take(count) {
                match event {
                    Told::Row(key, value) => step.row(key, value, SCANNED_AT, cursor(place + 1))?,
                    Told::Changes(changes) => step.changes(changes, cursor(place + 1))?,
                    Told::Progress(ts) => step.progress(*ts, cursor(place + 1)),
                }
            }
            if is_written {
                self.write(step)?;
            }
        }
    }

    fn write(&mut self, step: Step) -> Result<()> {
        let most = step.len();
        let known = step.groups().filter_map(|key| Some((key.clone(), self.stored.get(key)?.clone())));
        let known = known.collect();
        let (writes, next) = step.writes(&known)?;
        assert_eq!(writes.len(), most);
        for write in writes {
            match write {
                TxnWrite::Put { key, value } => self.stored.insert(key, value),
                TxnWrite::Delete { key } => self.stored.remove(&key),
                TxnWrite::Add { .. } => panic!("a projector does not add"),
            };
        }
        assert_eq!(self.checkpoint(), next);
        Ok(())
    }

    /// The rows without what the projector keeps for itself, and the dead letters by the user's key.
    fn split(mut self) -> (Rows, BTreeMap<Bytes, DeadLetter>) {
        self.stored.remove(&checkpoint_key(self.definition.id(), self.definition.version()));
        let range = dead_letters(self.definition.id(), self.definition.version());
        let (dead, rows): (Rows, Rows) = self.stored.into_iter().partition(|(key, _)| range.contains(key));
        let dead = dead.into_iter().map(|(key, value)| {
            assert_eq!(key[range.start.len() - 1], INDEX_DEAD_LETTER);
            (key.slice(range.start.len()..), DeadLetter::decode(&value).expect("a letter"))
        });
        (rows, dead.collect())
    }
}

/// Rows that can't be indexed, by a look at each.
fn wrong(definition: &Definition, rows: &Rows) -> Vec<Bytes> {
    let is_wrong = |(key, value): &(&Bytes, &Bytes)| match delta(definition, key, None, Some(value)) {
        Ok(delta) => delta.rejected.is_some(),
        Err(_) => true,
    };
    rows.iter().filter(is_wrong).map(|(key, _)| key.clone()).collect()
}

fn scanned(definition: &Definition, rows: &Rows) -> Result<Rows> {
    from_scan(definition, rows.iter().map(|(key, value)| (&key[..], &value[..])))
}

fn with(definition: &Definition, on_error: OnError) -> Definition {
    let spec = Spec { on_error, ..definition.spec().clone() };
    Definition::new(definition.id(), definition.version(), spec).expect("a definition")
}

fn histories() -> impl Strategy<Value = (Rows, Vec<Writes>)> {
    let value = || proptest::option::weighted(0.75, row_value());
    (
        proptest::collection::btree_map(row_key(), row_value(), 0..8),
        proptest::collection::vec(proptest::collection::btree_map(row_key(), value(), 1..4), 0..25),
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn a_projector_comes_to_what_a_scan_makes(
        definition in definition(),
        (first, history) in histories(),
        steps in proptest::collection::vec((1..8_usize, proptest::bool::weighted(0.7)), 0..30),
        skips in any::<bool>(),
    ) {
        let on_error = if skips { OnError::Skip } else { OnError::DeadLetter };
        let definition = with(&definition, on_error);
        let (events, rows) = told(&first, &history);
        let mut world = World { definition: definition.clone(), stored: Rows::new() };
        world.run(&events, &steps).expect("runs");
        let checkpoint = world.checkpoint();
        prop_assert_eq!(&checkpoint.state, &State::Ready);
        prop_assert_eq!(checkpoint.scanned_rows, first.len() as u64);
        prop_assert_eq!(checkpoint.changed_rows, history.iter().map(|writes| writes.len() as u64).sum::<u64>());
        let (index, dead) = world.split();
        prop_assert_eq!(index, scanned(&definition, &rows).expect("scans"));
        let wrong = if skips { Vec::new() } else { wrong(&definition, &rows) };
        prop_assert_eq!(dead.keys().cloned().collect::<Vec<_>>(), wrong);
        prop_assert_eq!(checkpoint.dead_letters, dead.len() as u64);
    }

    #[test]
    fn one_that_halts_stops_right_before_the_event(
        definition in definition(),
        (first, history) in histories(),
        steps in proptest::collection::vec((1..8_usize, proptest::bool::weighted(0.7)), 0..30),
    ) {
        let definition = with(&definition, OnError::Halt);
        let (events, _) = told(&first, &history);
        let mut world = World { definition: definition.clone(), stored: Rows::new() };
        world.run(&events, &steps).expect("runs");
        // The first event with a row that can't be indexed, and the rows before it.
        let mut rows = Rows::new();
        let mut stops_at = None;
        for (place, event) in events.iter().enumerate() {
            let mut after = rows.clone();
            match event {
                Told::Row(key, value) => drop(after.insert(key.clone(), value.clone())),
                Told::Changes(changes) => changes.changes.iter().for_each(|change| match &change.value {
                    Some(value) => drop(after.insert(change.key.clone(), value.clone())),
                    None => drop(after.remove(&change.key)),
                }),
                Told::Progress(_) => {}
            }
            if let Some(key) = wrong(&definition, &after).first() {
                stops_at = Some((place, key.clone()));
                break;
            }
            rows = after;
        }
        let checkpoint = world.checkpoint();
        match (stops_at, &checkpoint.state) {
            (Some((place, _)), State::Halted { key, .. }) => {
                prop_assert_eq!(checkpoint.cursor.clone(), if place == 0 { Bytes::new() } else { cursor(place) });
                prop_assert!(events_name(&events[place], key));
                let mut resumed = checkpoint.clone();
                assert!(resumed.resume(false));
                prop_assert!(matches!(resumed.state, State::Building | State::Ready));
            }
            (None, State::Ready) => {}
            (stops_at, state) => prop_assert!(false, "{stops_at:?} and {state:?}"),
        }
        let (index, dead) = world.split();
        prop_assert!(dead.is_empty());
        prop_assert_eq!(index, scanned(&definition, &rows).expect("scans"));
    }
}

fn events_name(event: &Told, name: &Bytes) -> bool {
    match event {
        Told::Row(key, _) => key == name,
        Told::Changes(changes) => changes.changes.iter().any(|change| change.key == *name),
        Told::Progress(_) => false,
    }
}

#[test]
fn values_from_before_must_be_told() {
    let spec = Spec {
        name: "x".into(),
        prefix: Bytes::new(),
        kind: crate::index::Kind::Count,
        on: vec!["$.a".parse().expect("a field")],
        measure: None,
        covering: Vec::new(),
        missing: Default::default(),
        on_error: OnError::Skip,
    };
    let mut step = Step::new(Definition::new(1, 1, spec).expect("a definition"), Checkpoint::new());
    for before in [Before::Unasked, Before::TooLarge] {
        let change = Change { key: "k".into(), value: None, create_ts: Timestamp::ZERO, version: 0, before };
        let changes = Changes { commit_ts: Timestamp(5), changes: vec![change] };
        let error: Error = step.changes(&changes, cursor(1)).expect_err("not told");
        assert!(error.message.contains("before"), "{error}");
        assert!(step.is_empty() && step.next().cursor.is_empty(), "nothing of it was taken in");
    }
}

#[test]
fn an_index_goes_on_without_each_bad_row_of_a_transaction() {
    let spec = Spec {
        name: "x".into(),
        prefix: Bytes::new(),
        kind: crate::index::Kind::Value,
        on: vec!["$.a:string".parse().expect("a field")],
        measure: None,
        covering: Vec::new(),
        missing: Default::default(),
        on_error: OnError::Halt,
    };
    let definition = Definition::new(1, 1, spec).expect("a definition");
    let change = |key: &'static str, value: &'static str| Change {
        key: key.into(),
        value: Some(value.into()),
        create_ts: Timestamp::ZERO,
        version: 0,
        before: Before::Absent,
    };
    let bad = r#"{"a":1}"#;
    let whole = vec![change("k1", bad), change("k2", r#"{"a":"x"}"#), change("k3", bad), change("k4", bad)];
    let changes = Changes { commit_ts: Timestamp(5), changes: whole };
    let mut checkpoint = Checkpoint { state: State::Ready, watermark: Timestamp(1), ..Checkpoint::new() };
    for stands_before in ["k1", "k3", "k4"] {
        let mut step = Step::new(definition.clone(), checkpoint);
        step.changes(&changes, cursor(1)).expect("told");
        let (_, halted) = step.writes(&BTreeMap::new()).expect("the checkpoint only");
        assert!(matches!(&halted.state, State::Halted { key, .. } if key == stands_before), "{halted:?}");
        checkpoint = halted;
        assert!(checkpoint.resume(true));
    }
    let mut step = Step::new(definition, checkpoint);
    step.changes(&changes, cursor(1)).expect("told");
    let (writes, done) = step.writes(&BTreeMap::new()).expect("all of it");
    assert_eq!(
        (writes.len(), done.dead_letters, done.watermark),
        (5, 3, Timestamp(5)),
        "one entry, three letters"
    );
    assert!(done.state == State::Ready && done.without.is_empty());
}
