//! A snapshot being installed, cut off at every moment: the replica is the old one or the new one, whole.

use std::sync::Arc;

use openraft::storage::{RaftSnapshotBuilder, RaftStateMachine};

use super::cut_engine::{CutEngine, Event, acknowledged, rebuild};
use super::{apply, descriptor, put_entry, rows, shared};
use crate::engine::{
    Batch, DropRule, DropRules, Durability, Engine, Family, MemoryEngine, RocksEngine, RocksOptions, Row,
};
use crate::raft::{
    AppliedRecord, LogWriter, ReplicaMachine, SnapshotData, SnapshotPart, SnapshotReceiver,
    create_empty_replica, create_group, list_groups, recover,
};
use crate::types::{Direction, ErrorKind, KeyRange, ShardId};

type Rows = Vec<(Family, Vec<Row>)>;

fn open(engine: &Arc<dyn Engine>) -> ReplicaMachine {
    let writer = LogWriter::start(engine.clone()).expect("starts");
    ReplicaMachine::open(engine.clone(), writer, ShardId(1)).expect("opens")
}

/// A replica of group 1 that has applied entries 2 up to `last`.
async fn replica(engine: &Arc<dyn Engine>, last: u64) -> ReplicaMachine {
    create_group(engine.as_ref(), &descriptor(1, "a", "m")).expect("creates");
    let mut machine = open(engine);
    apply(&mut machine, (2..=last).map(entry).collect()).await;
    machine
}

fn entry(index: u64) -> crate::raft::Entry {
    put_entry(1, index, &format!("b{:03}", index * 7 % 50), &format!("value {index}"))
}

/// All parts of what a replica sends.
async fn parts(machine: &mut ReplicaMachine) -> Vec<SnapshotPart> {
    machine.get_snapshot_builder().await.build_snapshot().await.expect("builds");
    let snapshot = machine.get_current_snapshot().await.expect("reads").expect("was built");
    let SnapshotData::Source(source) = snapshot.snapshot else { panic!("a replica sends a source") };
    let mut parts = Vec::new();
    source
        .stream(None, |part| {
            parts.push(part);
            Ok(())
        })
        .expect("streams");
    parts
}

fn receive(
    engine: &Arc<dyn Engine>,
    parts: &[SnapshotPart],
) -> crate::types::Result<crate::raft::ReceivedSnapshot> {
    let [SnapshotPart::Head(head), middle @ .., SnapshotPart::End(checksum)] = parts else {
        panic!("a head comes first and an end last")
    };
    let mut receiver = SnapshotReceiver::begin(engine, ShardId(1), head)?;
    for part in middle {
        let SnapshotPart::Rows(rows) = part else { panic!("rows stand between") };
        receiver.rows(rows)?;
    }
    receiver.finish(*checksum)
}

async fn install(machine: &mut ReplicaMachine, engine: &Arc<dyn Engine>, parts: &[SnapshotPart]) {
    let received = receive(engine, parts).expect("receives");
    let meta = received.meta();
    machine.install_snapshot(&meta, SnapshotData::Received(received)).await.expect("installs");
}

fn picture(machine: &ReplicaMachine, engine: &dyn Engine) -> (AppliedRecord, Rows) {
    let applied = AppliedRecord::clone(&machine.replica().applied());
    let rows = rows(engine, &applied.state.descriptor);
    (applied, rows)
}

/// Replaces part of the rows, as an interrupted installing does.
fn install_partly(engine: &MemoryEngine, journal: &[Event], at: usize, with_rows: bool) {
    let Event::Install(_, replaced) = &journal[at] else { panic!("is an installing") };
    let mut batch = Batch::new();
    for (family, range) in replaced {
        batch.delete_range(*family, range.clone());
    }
    if with_rows {
        let staged = journal[..at].iter().rev().find_map(|event| match event {
            Event::Staged(rows) => Some(rows),
            _ => None,
        });
        let staged = staged.expect("was staged");
        for (family, key, value) in &staged[..staged.len() / 2] {
            batch.put(*family, key.clone(), value.clone());
        }
    }
    engine.write(batch, Durability::Buffered).expect("writes");
}

#[tokio::test]
async fn a_cut_installing_leaves_the_old_or_the_new_replica() {
    let source = shared(MemoryEngine::new());
    let mut sender = replica(&source, 60).await;
    let parts = parts(&mut sender).await;
    let engine = CutEngine::default();
    let target = shared(engine.clone());
    let mut machine = replica(&target, 20).await;
    let old = picture(&machine, target.as_ref());
    let before = engine.journal().len();
    install(&mut machine, &target, &parts).await;
    engine.acknowledge(1);
    let new = picture(&machine, target.as_ref());
    assert_eq!(new, picture(&sender, source.as_ref()), "the replica is like its source");
    assert_ne!(old.1, new.1);
    apply(&mut machine, vec![entry(61)]).await;
    let later = picture(&machine, target.as_ref());

    let journal = engine.journal();
    let mut seen = [false; 3];
    for kept in before..=journal.len() {
        let installing = matches!(journal.get(kept), Some(Event::Install(..)));
        for part in if installing { 0..3 } else { 0..1 } {
            let engine = rebuild(&journal, kept);
            if part > 0 {
                install_partly(&engine, &journal, kept, part == 2);
            }
            let engine = shared(engine);
            recover(engine.as_ref()).expect("recovers");
            let mut machine = open(&engine);
            let found = picture(&machine, engine.as_ref());
            let which = [&old, &new, &later].iter().position(|known| **known == found);
            let which =
                which.unwrap_or_else(|| panic!("cut after {kept} events: neither old nor new: {found:?}"));
            seen[which] = true;
            assert!(which > 0 || acknowledged(&journal, kept) == 0, "an acknowledged installing is lost");
            let snapshot = machine.get_current_snapshot().await.expect("reads");
            assert_eq!(snapshot.is_some(), which > 0, "an installed snapshot is the current one");
        }
    }
    assert_eq!(seen, [true; 3], "the cuts hit every stage");
}

#[tokio::test]
async fn an_empty_replica_on_disk_takes_a_snapshot_and_keeps_it() {
    let source = shared(MemoryEngine::new());
    let mut sender = replica(&source, 200).await;
    let parts = parts(&mut sender).await;
    let dir = tempfile::tempdir().expect("a directory");
    let open_disk =
        || shared(RocksEngine::open(&dir.path().join("db"), &RocksOptions::default()).expect("opens"));
    let target = open_disk();
    assert!(create_empty_replica(target.as_ref(), ShardId(1)).expect("creates"));
    assert!(!create_group(target.as_ref(), &descriptor(1, "a", "m")).expect("is there already"));
    let mut machine = open(&target);
    assert_eq!(machine.replica().applied().last_log_id, None);
    for _ in 0..2 {
        install(&mut machine, &target, &parts).await;
        assert_eq!(picture(&machine, target.as_ref()), picture(&sender, source.as_ref()));
    }
    let replica = machine.replica();
    assert_eq!(
        (replica.watch().borrow().index, replica.state().closed),
        (200, sender.replica().state().closed)
    );
    replica.wait_applied(200).await;
    drop((machine, replica));
    drop(target);
    // The writer's thread lets go of the engine once nobody can write any more.
    let target = loop {
        match RocksEngine::open(&dir.path().join("db"), &RocksOptions::default()) {
            Ok(engine) => break shared(engine),
            Err(error) if error.kind == ErrorKind::Unavailable => tokio::task::yield_now().await,
            Err(error) => panic!("{error}"),
        }
    };
    recover(target.as_ref()).expect("recovers");
    assert_eq!(list_groups(target.as_ref()).expect("lists"), [ShardId(1)]);
    assert_eq!(picture(&open(&target), target.as_ref()), picture(&sender, source.as_ref()));
}

#[tokio::test]
async fn a_damaged_snapshot_is_refused_before_anything_is_replaced() {
    let source = shared(MemoryEngine::new());
    let mut sender = replica(&source, 30).await;
    let parts = parts(&mut sender).await;
    let engine = shared(MemoryEngine::new());
    let mut damaged = parts.clone();
    let Some(SnapshotPart::End(checksum)) = damaged.last_mut() else { panic!("an end comes last") };
    *checksum ^= 1;
    assert_eq!(receive(&engine, &damaged).expect_err("wrong checksum").kind, ErrorKind::Corrupt);
    let mut cut = parts.clone();
    let Some(SnapshotPart::Rows(rows)) = cut.get_mut(1) else { panic!("rows come second") };
    rows.pop();
    assert_eq!(receive(&engine, &cut).expect_err("a row is missing").kind, ErrorKind::Corrupt);
    let mut outside = parts.clone();
    let Some(SnapshotPart::Rows(rows)) = outside.get_mut(1) else { panic!("rows come second") };
    rows[0].key = "zzz".into();
    let error = receive(&engine, &outside).expect_err("a row lies outside");
    assert!(error.message.contains("outside its range"), "{error}");
    let mut unknown = parts.clone();
    let Some(SnapshotPart::Rows(rows)) = unknown.get_mut(1) else { panic!("rows come second") };
    rows[0].family = 99;
    assert!(receive(&engine, &unknown).expect_err("no such family").message.contains("99"));
    let SnapshotPart::Head(head) = &parts[0] else { panic!("a head comes first") };
    assert!(SnapshotReceiver::begin(&engine, ShardId(2), head).is_err(), "another group's");
}

#[tokio::test]
async fn a_received_snapshot_that_nobody_installs_leaves_nothing() {
    let mut sender = replica(&shared(MemoryEngine::new()), 30).await;
    let parts = parts(&mut sender).await;
    let cut = CutEngine::default();
    let engine = shared(cut.clone());
    let mut machine = replica(&engine, 5).await;
    drop(receive(&engine, &parts).expect("receives"));
    let received = receive(&engine, &parts).expect("receives");
    let mut other = received.meta();
    other.last_log_id = None;
    machine.install_snapshot(&other, SnapshotData::Received(received)).await.expect_err("another meta");
    install(&mut machine, &engine, &parts).await;
    let journal = cut.journal();
    let staged = journal.iter().filter(|event| matches!(event, Event::Staged(_))).count();
    let discarded = journal.iter().filter(|event| matches!(event, Event::Discard(_))).count();
    assert_eq!((staged, discarded), (3, 3));
}

#[tokio::test]
async fn a_snapshot_is_not_sent_under_a_leader_older_than_what_it_holds() {
    let engine = shared(MemoryEngine::new());
    let mut machine = replica(&engine, 5).await;
    let snapshot = machine.get_snapshot_builder().await.build_snapshot().await.expect("builds");
    let SnapshotData::Source(source) = snapshot.snapshot else { panic!("a replica sends a source") };
    let (older, newer) = (super::log_id(1, 0).leader_id, super::log_id(2, 0).leader_id);
    source.stream(Some(older), |_| Ok(())).expect("the same leader");
    // The snapshot was asked for by one leader, and is read after the next one has begun.
    apply(&mut machine, vec![put_entry(2, 6, "b", "later")]).await;
    let mut parts = 0;
    let error = source.stream(Some(older), |_| {
        parts += 1;
        Ok(())
    });
    assert_eq!(error.expect_err("a later leader's entry").kind, ErrorKind::Unavailable);
    assert_eq!(parts, 0);
    source.stream(Some(newer), |_| Ok(())).expect("under its own leader");
}

/// Drops every row.
struct DropAll;

impl DropRules for DropAll {
    fn begin(&self, _family: Family) -> Option<DropRule> {
        Some(Box::new(|_, _| true))
    }
}

#[tokio::test]
async fn compaction_takes_nothing_from_a_snapshot_that_is_being_sent() {
    let dir = tempfile::tempdir().expect("makes a directory");
    let rocks = RocksEngine::open(dir.path(), &RocksOptions::default()).expect("opens");
    let engine = shared(rocks);
    let mut machine = replica(&engine, 30).await;
    let whole = parts(&mut machine).await;
    let snapshot = machine.get_current_snapshot().await.expect("reads").expect("was built");
    let SnapshotData::Source(source) = snapshot.snapshot else { panic!("a replica sends a source") };
    engine.set_drop_rules(Arc::new(DropAll));
    let mut sent = Vec::new();
    source
        .stream(None, |part| {
            sent.push(part);
            engine.compact_all()
        })
        .expect("streams");
    assert_eq!(sent, whole);
    // Sent, it keeps nothing: the rows go, which shows that the rule was in force.
    engine.compact_all().expect("compacts");
    assert!(engine.view().scan(Family::Current, &KeyRange::all(), Direction::Forward).next().is_none());
}
