//! Versions against the plainest thing that could hold them: for each key a list of what it held when.

use std::collections::BTreeMap;

use bytes::Bytes;
use proptest::prelude::*;

use crate::engine::{Durability, Engine, Family, MemoryEngine, Overlay, View};
use crate::mvcc::family::history_key;
use crate::mvcc::{self, Version, family_range};
use crate::types::{Direction, KeyRange, Record, RequestId, Timestamp};

/// For each key its versions, rising; a removal holds nothing.
type Model = BTreeMap<Bytes, Vec<(Timestamp, RequestId, Option<Record>)>>;

#[derive(Clone, Debug)]
struct Write {
    key: Bytes,
    value: Option<Bytes>,
    ahead: u64,
    /// End the overlay here: the write and those before it go to the engine.
    flush: bool,
}

/// Few keys, and such as an encoding could get wrong.
fn keys() -> impl Strategy<Value = Bytes> {
    proptest::collection::vec(prop_oneof![Just(0u8), Just(1), Just(b'a'), Just(255)], 0..4)
        .prop_map(Bytes::from)
}

fn writes() -> impl Strategy<Value = Vec<Write>> {
    let value = proptest::option::weighted(0.7, proptest::collection::vec(any::<u8>(), 0..4));
    let write = (keys(), value, 1..4u64, any::<bool>()).prop_map(|(key, value, ahead, flush)| Write {
        key,
        value: value.map(Bytes::from),
        ahead,
        flush,
    });
    proptest::collection::vec(write, 0..40)
}

fn id(ts: Timestamp) -> RequestId {
    RequestId { seen: Timestamp(ts.0 / 2), unique: u128::from(ts.0) }
}

fn write_to_model(model: &mut Model, write: &Write, ts: Timestamp) {
    let versions = model.entry(write.key.clone()).or_default();
    let held = versions.last().and_then(|(_, _, record)| record.as_ref());
    let record = write.value.clone().map(|value| Record {
        value,
        commit_ts: ts,
        create_ts: held.map_or(ts, |record| record.create_ts),
        version: held.map_or(1, |record| record.version + 1),
    });
    versions.push((ts, id(ts), record));
}

fn write_to_overlay(overlay: &mut Overlay<'_>, write: &Write, ts: Timestamp) {
    let previous = mvcc::current(overlay, &write.key, Timestamp::ZERO).expect("reads");
    let version = match &write.value {
        Some(value) => Version::put(previous.as_ref(), ts, id(ts), value.clone()),
        None => Version::tombstone(ts, id(ts)),
    };
    mvcc::write(overlay, &write.key, previous, &version).expect("writes");
}

fn model_at(model: &Model, key: &[u8], ts: Timestamp) -> Option<Record> {
    let versions = model.get(key)?;
    versions.iter().rev().find(|(commit_ts, ..)| *commit_ts <= ts)?.2.clone()
}

fn model_scan(model: &Model, range: &KeyRange, direction: Direction, ts: Timestamp) -> Vec<(Bytes, Record)> {
    let mut rows: Vec<_> = model
        .keys()
        .filter(|key| range.contains(key))
        .filter_map(|key| Some((key.clone(), model_at(model, key, ts)?)))
        .collect();
    if direction == Direction::Reverse {
        rows.reverse();
    }
    rows
}

/// Compares what can be read with the model, at each of some timestamps.
fn agree(view: &dyn View, model: &Model, at: impl Iterator<Item = u64>, range: &KeyRange) {
    for (key, versions) in model {
        let newest = mvcc::current(view, key, Timestamp::ZERO).expect("reads");
        let latest = mvcc::latest(view, key).expect("reads").and_then(|row| row.version.record());
        assert_eq!(latest, versions.last().and_then(|version| version.2.clone()));
        for (commit_ts, id, record) in versions {
            let written = mvcc::written_by(view, key, newest.as_ref(), *id, Timestamp::ZERO)
                .expect("reads")
                .expect("was written");
            assert_eq!((written.version.commit_ts, &written.version.record()), (*commit_ts, record));
        }
        let nobody = RequestId { seen: Timestamp::ZERO, unique: 0 };
        assert_eq!(
            mvcc::written_by(view, key, newest.as_ref(), nobody, Timestamp::ZERO).expect("reads"),
            None
        );
    }
    for ts in at.map(Timestamp) {
        for key in model.keys() {
            let read = mvcc::at(view, key, ts).expect("reads").and_then(|row| row.version.record());
            assert_eq!(read, model_at(model, key, ts), "{key:?} at {ts}");
        }
        for direction in [Direction::Forward, Direction::Reverse] {
            let rows: Vec<_> = mvcc::scan(view, range, direction, ts)
                .map(|found| found.expect("reads"))
                .filter_map(|found| Some((found.key, found.row?.version.record()?)))
                .collect();
            assert_eq!(rows, model_scan(model, range, direction, ts), "{direction:?} at {ts}");
        }
    }
}

proptest! {
    #[test]
    fn every_version_is_found_at_every_timestamp(
        writes in writes(), start in keys(), end in proptest::option::of(keys()),
    ) {
        let engine = MemoryEngine::new();
        let mut model = Model::new();
        let mut ts = Timestamp(10);
        let range = KeyRange { start, end };
        let mut rest = &writes[..];
        while !rest.is_empty() {
            let view = engine.view();
            let mut overlay = Overlay::new(view.as_ref());
            let flush = rest.iter().position(|write| write.flush).map_or(rest.len(), |place| place + 1);
            for write in &rest[..flush] {
                ts = ts.plus(write.ahead);
                write_to_model(&mut model, write, ts);
                write_to_overlay(&mut overlay, write, ts);
            }
            agree(&overlay, &model, [ts.0 / 2 + 5, ts.0 - 1, ts.0].into_iter(), &range);
            let batch = overlay.into_batch();
            drop(view);
            engine.write(batch, Durability::Buffered).expect("writes");
            rest = &rest[flush..];
        }
        agree(engine.view().as_ref(), &model, 0..=ts.0 + 1, &range);
    }

    #[test]
    fn the_rows_of_a_key_lie_in_the_range_where_the_key_does(
        key in keys(), start in keys(), end in proptest::option::of(keys()), ts in any::<u64>(),
    ) {
        let range = KeyRange { start, end };
        let row = history_key(&key, Timestamp(ts));
        for family in [Family::History, Family::Lock, Family::Txn] {
            prop_assert_eq!(family_range(family, &range).contains(&row), range.contains(&key));
        }
        prop_assert!(family_range(Family::Changelog, &range).is_empty());
    }
}
