//! The same checks on every engine: a plain model, views that stand still, staging, and what a second
//! process or an older build meets.

use std::collections::BTreeMap;

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::types::ErrorKind;

/// Runs a check on a fresh engine of each kind.
fn on_each_engine(check: impl Fn(&dyn Engine)) {
    check(&MemoryEngine::new());
    let dir = tempfile::tempdir().expect("a directory");
    check(&RocksEngine::open(&dir.path().join("db"), &RocksOptions::default()).expect("opens"));
}

fn rows(view: &dyn View, family: Family, range: &KeyRange, direction: Direction) -> Vec<Row> {
    view.scan(family, range, direction).collect::<Result<_>>().expect("reads")
}

fn all(view: &dyn View, family: Family) -> Vec<Row> {
    rows(view, family, &KeyRange::all(), Direction::Forward)
}

fn row(key: &'static str, value: &'static str) -> Row {
    (Bytes::from(key), Bytes::from(value))
}

fn range(start: &'static str, end: &'static str) -> KeyRange {
    KeyRange::new(start, Some(end.into()))
}

fn put(engine: &dyn Engine, family: Family, key: &'static str, value: &'static str) {
    let mut batch = Batch::new();
    batch.put(family, key, value);
    engine.write(batch, Durability::Buffered).expect("writes");
}

#[test]
fn families_are_apart_and_views_stand_still() {
    on_each_engine(|engine| {
        for family in Family::ALL {
            put(engine, family, "k", family.name());
        }
        let before = engine.view();
        let mut batch = Batch::new();
        batch.put(Family::Lock, "k", "new");
        batch.delete(Family::Txn, "k");
        batch.delete_range(Family::Log, KeyRange::all());
        engine.write(batch, Durability::Synced).expect("writes");
        for family in Family::ALL {
            assert_eq!(before.get(family, b"k").expect("reads"), Some(Bytes::from(family.name())));
            assert_eq!(all(before.as_ref(), family), [row("k", family.name())]);
        }
        assert_eq!(engine.get(Family::Lock, b"k").expect("reads"), Some(Bytes::from("new")));
        assert_eq!(engine.get(Family::Txn, b"k").expect("reads"), None);
        assert!(all(engine.view().as_ref(), Family::Log).is_empty());
        assert_eq!(engine.stats().syncs, 1);
    });
}

#[test]
fn a_range_without_an_end_takes_what_the_same_batch_put_before() {
    on_each_engine(|engine| {
        let high = Bytes::from_static(&[0xff; 40]);
        let mut batch = Batch::new();
        batch.put(Family::Current, high.clone(), "gone");
        batch.delete_range(Family::Current, KeyRange::all());
        batch.put(Family::Current, high.clone(), "stays");
        engine.write(batch, Durability::Buffered).expect("writes");
        assert_eq!(all(engine.view().as_ref(), Family::Current), [(high.clone(), Bytes::from("stays"))]);
        let mut batch = Batch::new();
        batch.delete_range(Family::Current, KeyRange::all());
        engine.write(batch, Durability::Buffered).expect("writes");
        assert!(all(engine.view().as_ref(), Family::Current).is_empty());
    });
}

#[test]
fn staged_rows_take_the_place_of_a_range_and_can_do_so_again() {
    on_each_engine(|engine| {
        for (key, value) in [("a", "old"), ("b", "old"), ("m", "old"), ("z", "old")] {
            put(engine, Family::Current, key, value);
        }
        put(engine, Family::History, "h", "old");
        let mut staging = engine.stage().expect("stages");
        staging.put(Family::Current, b"b", b"new").expect("stages");
        staging.put(Family::Txn, b"t", b"").expect("stages");
        staging.put(Family::Current, b"c", b"new").expect("stages");
        let error = staging.put(Family::Current, b"c", b"again").expect_err("out of order");
        assert_eq!(error.kind, ErrorKind::Corrupt);
        let name = staging.finish().expect("finishes");
        let replaced = [(Family::Current, range("a", "n")), (Family::History, KeyRange::all())];
        for _ in 0..2 {
            engine.install(&name, &replaced).expect("installs");
            let view = engine.view();
            assert_eq!(
                all(view.as_ref(), Family::Current),
                [row("b", "new"), row("c", "new"), row("z", "old")]
            );
            assert!(all(view.as_ref(), Family::History).is_empty());
            assert_eq!(all(view.as_ref(), Family::Txn), [row("t", "")]);
            // A later write to the range must not survive the repeated call.
            drop(view);
            put(engine, Family::Current, "d", "later");
            put(engine, Family::Current, "b", "later");
        }
        engine.discard_staged(&name).expect("discards");
        engine.discard_staged(&name).expect("twice is no error");
        assert_eq!(engine.install(&name, &replaced).expect_err("is gone").kind, ErrorKind::Corrupt);
    });
}

/// Drops rows of one family whose value is "old".
struct DropOld(Family);

impl DropRules for DropOld {
    fn begin(&self, family: Family) -> Option<DropRule> {
        (family == self.0).then(|| Box::new(|_: &[u8], value: &[u8]| value == b"old") as DropRule)
    }
}

#[test]
fn compaction_drops_what_the_rules_say_and_nothing_before_there_are_any() {
    on_each_engine(|engine| {
        for family in Family::SHARD_DATA {
            for (key, value) in [("a", "old"), ("b", "new"), ("c", "old")] {
                put(engine, family, key, value);
            }
        }
        let everything = [row("a", "old"), row("b", "new"), row("c", "old")];
        engine.compact_all().expect("compacts");
        assert_eq!(all(engine.view().as_ref(), Family::History), everything);
        engine.set_drop_rules(Arc::new(DropOld(Family::History)));
        let before = engine.view();
        assert_eq!(all(before.as_ref(), Family::History), everything);
        drop(before);
        // A row that was rewritten is judged by what it is now, also where its old self is in another file.
        put(engine, Family::History, "c", "new");
        engine.compact_all().expect("compacts");
        assert_eq!(all(engine.view().as_ref(), Family::History), [row("b", "new"), row("c", "new")]);
        for family in [Family::Current, Family::Lock, Family::Txn] {
            assert_eq!(all(engine.view().as_ref(), family), everything, "{family:?}");
        }
        // Staged rows are rows like any.
        let mut staging = engine.stage().expect("stages");
        staging.put(Family::History, b"d", b"old").expect("stages");
        staging.put(Family::History, b"e", b"new").expect("stages");
        let name = staging.finish().expect("finishes");
        engine.install(&name, &[(Family::History, KeyRange::all())]).expect("installs");
        engine.compact_all().expect("compacts");
        assert_eq!(all(engine.view().as_ref(), Family::History), [row("e", "new")]);
    });
}

#[test]
fn whole_files_of_a_range_are_dropped_and_nothing_outside_of_it() {
    on_each_engine(|engine| {
        let everything = [row("a", "1"), row("b", "2"), row("c", "3")];
        for (key, value) in [("a", "1"), ("b", "2"), ("c", "3")] {
            put(engine, Family::Changelog, key, value);
            put(engine, Family::Current, key, value);
        }
        engine.compact_all().expect("compacts");
        let kept = engine.keep_rows();
        engine.drop_files(Family::Changelog, &range("a", "z")).expect("drops nothing");
        assert_eq!(all(engine.view().as_ref(), Family::Changelog), everything, "somebody keeps rows");
        drop(kept);
        engine.drop_files(Family::Changelog, &range("a", "b")).expect("drops");
        let left = rows(engine.view().as_ref(), Family::Changelog, &range("b", "z"), Direction::Forward);
        assert_eq!(left, everything[1..], "a file that reaches out of the range stays");
        engine.drop_files(Family::Changelog, &range("a", "z")).expect("drops");
        assert!(all(engine.view().as_ref(), Family::Changelog).is_empty());
        assert_eq!(
            all(engine.view().as_ref(), Family::Current),
            everything,
            "other families are not concerned"
        );
    });
}

#[test]
fn an_empty_staging_only_clears() {
    on_each_engine(|engine| {
        put(engine, Family::Current, "a", "old");
        let name = engine.stage().expect("stages").finish().expect("finishes");
        engine.install(&name, &[(Family::Current, KeyRange::all())]).expect("installs");
        assert!(all(engine.view().as_ref(), Family::Current).is_empty());
        engine.discard_staged_except(&[]).expect("discards");
        assert!(engine.install(&name, &[]).is_err());
    });
}

mod on_disk {
    use super::*;

    fn open(dir: &std::path::Path) -> Result<RocksEngine> {
        RocksEngine::open(&dir.join("db"), &RocksOptions::default())
    }

    #[test]
    fn what_was_written_and_staged_is_there_after_a_restart() {
        let dir = tempfile::tempdir().expect("a directory");
        let engine = open(dir.path()).expect("opens");
        put(&engine, Family::Current, "a", "1");
        put(&engine, Family::Log, "b", "2");
        let mut staging = engine.stage().expect("stages");
        staging.put(Family::Current, b"s", b"3").expect("stages");
        let kept = staging.finish().expect("finishes");
        let discarded = engine.stage().expect("stages").finish().expect("finishes");
        drop(engine.stage().expect("stages"));
        drop(engine);
        let engine = open(dir.path()).expect("opens again");
        assert_eq!(all(engine.view().as_ref(), Family::Current), [row("a", "1")]);
        assert_eq!(all(engine.view().as_ref(), Family::Log), [row("b", "2")]);
        let next = engine.stage().expect("stages").finish().expect("finishes");
        assert!(next != kept && next != discarded, "names are not used twice");
        engine.discard_staged_except(std::slice::from_ref(&kept)).expect("discards");
        engine.install(&kept, &[(Family::Current, KeyRange::all())]).expect("installs");
        assert_eq!(all(engine.view().as_ref(), Family::Current), [row("s", "3")]);
        assert!(engine.install(&discarded, &[]).is_err());
        engine.flush().expect("flushes");
        assert!(engine.stats().size_bytes > 0);
    }

    /// Copies a database that is still open, as a crash would leave it, with its log cut short.
    fn crash(from: &std::path::Path, to: &std::path::Path, log_bytes: u64) {
        std::fs::create_dir_all(to).expect("a directory");
        for file in std::fs::read_dir(from).expect("lists") {
            let file = file.expect("lists");
            let copy = to.join(file.file_name());
            std::fs::copy(file.path(), &copy).expect("copies");
            if copy.extension().is_some_and(|extension| extension == "log") {
                let copy = std::fs::OpenOptions::new().write(true).open(&copy).expect("opens");
                let kept = copy.metadata().expect("reads").len().min(log_bytes);
                copy.set_len(kept).expect("cuts");
            }
        }
    }

    #[test]
    fn a_log_cut_anywhere_leaves_a_prefix_of_the_batches_in_all_families() {
        let dir = tempfile::tempdir().expect("a directory");
        let engine = open(dir.path()).expect("opens");
        let names: Vec<Bytes> = (0..40u8).map(|number| Bytes::copy_from_slice(&[number])).collect();
        for name in &names {
            let mut batch = Batch::new();
            for family in Family::ALL {
                batch.put(family, name.clone(), vec![0; 50]);
            }
            engine.write(batch, Durability::Buffered).expect("writes");
        }
        let mut lengths = std::collections::BTreeSet::new();
        for cut in (0..=20).map(|part| part * 1_000).chain([u64::MAX]) {
            let crashed = dir.path().join(format!("crashed-{cut}"));
            crash(&dir.path().join("db"), &crashed.join("db"), cut);
            let engine = open(&crashed).expect("opens after the crash");
            let view = engine.view();
            let keys_of = |family| -> Vec<Bytes> {
                all(view.as_ref(), family).into_iter().map(|(key, _)| key).collect()
            };
            let kept = keys_of(Family::Log);
            assert_eq!(kept, names[..kept.len()], "cut at {cut}");
            for family in Family::ALL {
                assert_eq!(keys_of(family), kept, "cut at {cut}: {family:?}");
            }
            lengths.insert(kept.len());
        }
        assert!(lengths.len() > 10 && lengths.last() == Some(&names.len()), "{lengths:?}");
    }

    #[test]
    fn a_second_opening_is_refused_and_says_what_to_do() {
        let dir = tempfile::tempdir().expect("a directory");
        let first = open(dir.path()).expect("opens");
        let error = open(dir.path()).err().expect("is locked");
        assert_eq!(error.kind, ErrorKind::Unavailable);
        assert!(error.message.contains("in use by another process"), "{error}");
        assert!(error.message.contains(&dir.path().display().to_string()), "{error}");
        drop(first);
        open(dir.path()).expect("opens once the first is gone");
    }

    #[test]
    fn families_of_a_newer_build_are_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        drop(open(dir.path()).expect("opens"));
        super::super::rocks::add_family(&dir.path().join("db"), "from_the_future");
        let error = open(dir.path()).err().expect("is refused");
        assert_eq!(error.kind, ErrorKind::Corrupt);
        assert!(error.message.contains("from_the_future"), "{error}");
    }
}

/// One step of a random script.
#[derive(Clone, Debug)]
enum Step {
    Put(u8, u8),
    Delete(u8),
    DeleteRange(u8, Option<u8>),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..24u8, any::<u8>()).prop_map(|(key, value)| Step::Put(key, value)),
        2 => (0..24u8).prop_map(Step::Delete),
        1 => (0..24u8, proptest::option::of(0..24u8)).prop_map(|(start, end)| Step::DeleteRange(start, end)),
    ]
}

fn key(number: u8) -> Bytes {
    // Keys of different lengths, some a prefix of others, some high.
    match number % 3 {
        0 => Bytes::copy_from_slice(&[number / 3]),
        1 => Bytes::copy_from_slice(&[number / 3, 0]),
        _ => Bytes::copy_from_slice(&[0xff, number / 3]),
    }
}

fn key_range(start: u8, end: Option<u8>) -> KeyRange {
    KeyRange::new(key(start), end.map(key))
}

fn apply_to_model(model: &mut BTreeMap<Bytes, Bytes>, step: &Step) {
    match step {
        Step::Put(number, value) => {
            model.insert(key(*number), Bytes::copy_from_slice(&[*value]));
        }
        Step::Delete(number) => {
            model.remove(&key(*number));
        }
        Step::DeleteRange(start, end) => {
            let range = key_range(*start, *end);
            model.retain(|key, _| !range.contains(key));
        }
    }
}

fn batch_of(steps: &[Step]) -> Batch {
    let mut batch = Batch::new();
    for step in steps {
        match step {
            Step::Put(number, value) => batch.put(Family::Current, key(*number), vec![*value]),
            Step::Delete(number) => batch.delete(Family::Current, key(*number)),
            Step::DeleteRange(start, end) => batch.delete_range(Family::Current, key_range(*start, *end)),
        }
    }
    batch
}

fn model_rows(model: &BTreeMap<Bytes, Bytes>, range: &KeyRange, direction: Direction) -> Vec<Row> {
    let mut rows: Vec<Row> = model
        .iter()
        .filter(|(key, _)| range.contains(key))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    if direction == Direction::Reverse {
        rows.reverse();
    }
    rows
}

/// Every way to read a view gives what the model holds.
fn agree(view: &dyn View, model: &BTreeMap<Bytes, Bytes>, ranges: &[(u8, Option<u8>)]) {
    for number in 0..24 {
        assert_eq!(view.get(Family::Current, &key(number)).expect("reads").as_ref(), model.get(&key(number)));
    }
    let ranges = ranges.iter().map(|(start, end)| key_range(*start, *end)).chain([KeyRange::all()]);
    for range in ranges {
        for direction in [Direction::Forward, Direction::Reverse] {
            let found = rows(view, Family::Current, &range, direction);
            assert_eq!(found, model_rows(model, &range, direction), "{range:?} {direction:?}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn every_engine_is_like_a_map(
        batches in proptest::collection::vec(proptest::collection::vec(step(), 0..6), 1..12),
        over in proptest::collection::vec(
            prop_oneof![(0..24u8, any::<u8>()).prop_map(|(k, v)| (k, Some(v))), (0..24u8).prop_map(|k| (k, None))],
            0..8,
        ),
        ranges in proptest::collection::vec((0..24u8, proptest::option::of(0..24u8)), 3),
    ) {
        on_each_engine(|engine| {
            let mut model = BTreeMap::new();
            let mut older: Vec<(Box<dyn View + '_>, BTreeMap<Bytes, Bytes>)> = Vec::new();
            for (position, batch) in batches.iter().enumerate() {
                older.push((engine.view(), model.clone()));
                let durability = if position % 3 == 0 { Durability::Synced } else { Durability::Buffered };
                engine.write(batch_of(batch), durability).expect("writes");
                for step in batch {
                    apply_to_model(&mut model, step);
                }
                agree(engine.view().as_ref(), &model, &ranges);
            }
            for (view, model) in &older {
                agree(view.as_ref(), model, &ranges);
            }
            let view = engine.view();
            let mut overlay = Overlay::new(view.as_ref());
            for (number, value) in &over {
                match value {
                    Some(value) => overlay.put(Family::Current, key(*number), vec![*value]),
                    None => overlay.delete(Family::Current, key(*number)),
                }
                match value {
                    Some(value) => apply_to_model(&mut model, &Step::Put(*number, *value)),
                    None => apply_to_model(&mut model, &Step::Delete(*number)),
                }
            }
            agree(&overlay, &model, &ranges);
            engine.write(overlay.into_batch(), Durability::Synced).expect("writes");
            agree(engine.view().as_ref(), &model, &ranges);
        });
    }
}
