//! The writer's order and failure, and the log's sizes and limits.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use futures::{FutureExt, TryStreamExt};
use openraft::storage::{IOFlushed, RaftLogReader, RaftLogStorage};
use openraft::type_config::TypeConfigExt;

use super::{log_id, put_entry, shared};
use crate::engine::{
    Batch, DropRules, Durability, Engine, EngineStats, Family, KeepRows, MemoryEngine, StagedName, Staging,
    View,
};
use crate::raft::entry::counted_bytes;
use crate::raft::{Entry, LogStore, LogWriter, TypeConfig, Vote, create_group};
use crate::types::{Error, ErrorKind, KeyRange, NodeId, Result, ShardId};

/// An engine whose writes can be made to fail.
#[derive(Default)]
struct FailingEngine {
    inner: MemoryEngine,
    fails: AtomicBool,
}

impl Engine for FailingEngine {
    fn view(&self) -> Box<dyn View + '_> {
        self.inner.view()
    }

    fn write(&self, batch: Batch, durability: Durability) -> Result<()> {
        if self.fails.load(Ordering::SeqCst) {
            return Err(Error::unavailable("the disk is full"));
        }
        self.inner.write(batch, durability)
    }

    fn get(&self, family: Family, key: &[u8]) -> Result<Option<Bytes>> {
        self.inner.get(family, key)
    }

    fn stage(&self) -> Result<Box<dyn Staging>> {
        self.inner.stage()
    }

    fn install(&self, staged: &str, replaced: &[(Family, KeyRange)]) -> Result<()> {
        self.inner.install(staged, replaced)
    }

    fn discard_staged(&self, staged: &str) -> Result<()> {
        self.inner.discard_staged(staged)
    }

    fn discard_staged_except(&self, keep: &[StagedName]) -> Result<()> {
        self.inner.discard_staged_except(keep)
    }

    fn set_drop_rules(&self, rules: Arc<dyn DropRules>) {
        self.inner.set_drop_rules(rules);
    }

    fn keep_rows(&self) -> KeepRows {
        self.inner.keep_rows()
    }

    fn drop_files(&self, family: Family, range: &KeyRange) -> Result<()> {
        self.inner.drop_files(family, range)
    }

    fn compact_all(&self) -> Result<()> {
        self.inner.compact_all()
    }

    fn stats(&self) -> EngineStats {
        self.inner.stats()
    }

    fn flush(&self) -> Result<()> {
        self.inner.flush()
    }
}

fn entries(indexes: std::ops::Range<u64>, value_bytes: usize) -> Vec<Entry> {
    indexes.map(|index| put_entry(1, index, "k", &"v".repeat(value_bytes))).collect()
}

fn counted(entries: &[Entry]) -> u64 {
    entries.iter().map(counted_bytes).sum()
}

async fn append(store: &mut LogStore, entries: Vec<Entry>) -> std::result::Result<(), std::io::Error> {
    let (sender, receiver) = TypeConfig::oneshot();
    store.append(entries, IOFlushed::signal(sender)).await?;
    receiver.await.expect("completes")
}

fn open(engine: &Arc<dyn Engine>, group: u64, cache_bytes: u64) -> LogStore {
    let writer = LogWriter::start(engine.clone()).expect("starts");
    LogStore::open(engine.clone(), writer, ShardId(group), cache_bytes).expect("opens")
}

#[tokio::test]
async fn a_failed_write_fails_all_that_wait_and_stops_the_writer() {
    let failing = Arc::new(FailingEngine::default());
    let engine: Arc<dyn Engine> = failing.clone();
    let writer = LogWriter::start(engine.clone()).expect("starts");
    let mut store = LogStore::open(engine.clone(), writer.clone(), ShardId(1), 0).expect("opens");
    let mut other = LogStore::open(engine.clone(), writer.clone(), ShardId(2), 0).expect("opens");
    append(&mut store, entries(0..2, 1)).await.expect("is flushed");
    failing.fails.store(true, Ordering::SeqCst);
    let error = append(&mut store, entries(2..4, 1)).await.expect_err("fails");
    assert!(error.to_string().contains("the disk is full"), "{error}");
    assert!(writer.failed().await.message.contains("the disk is full"), "whoever waits for it is told");
    failing.fails.store(false, Ordering::SeqCst);
    let error = append(&mut other, entries(0..1, 1)).await.expect_err("the writer takes nothing more");
    assert!(error.to_string().contains("the disk is full"), "{error}");
    let vote = Vote::new(1, NodeId(1));
    assert!(other.save_vote(&vote).await.is_err());
    let read = other.get_log_reader().await.read_vote().await.expect("reads");
    assert_eq!(read, None, "a vote that was not saved does not count");
    assert_eq!(engine.view().scan(Family::Log, &KeyRange::all(), Default::default()).count(), 2);
}

#[tokio::test]
async fn a_stopped_writer_writes_what_it_has_and_refuses_the_rest() {
    let engine = shared(MemoryEngine::new());
    let writer = LogWriter::start(engine.clone()).expect("starts");
    let mut store = LogStore::open(engine.clone(), writer.clone(), ShardId(1), 0).expect("opens");
    store.append(entries(0..3, 1), IOFlushed::noop()).await.expect("appends");
    writer.stop();
    writer.stop();
    assert_eq!(engine.view().scan(Family::Log, &KeyRange::all(), Default::default()).count(), 3);
    assert!(append(&mut store, entries(3..4, 1)).await.is_err());
    let error = writer.write_synced(Batch::new()).await.expect_err("is stopped");
    assert_eq!(error.kind, ErrorKind::Unavailable);
    assert!(writer.failed().now_or_never().is_none(), "to be stopped is no failure");
    let stats = writer.stats();
    assert_eq!(stats.entries.load(Ordering::Relaxed), 3);
    assert_eq!((stats.batches.load(Ordering::Relaxed), stats.syncs.load(Ordering::Relaxed)), (1, 1));
}

#[tokio::test]
async fn all_groups_share_a_sync_and_later_writes_see_earlier_ones() {
    let cut = super::cut_engine::CutEngine::default();
    let engine = shared(cut.clone());
    let writer = LogWriter::start(engine.clone()).expect("starts");
    let mut stores: Vec<LogStore> = (1..=20)
        .map(|group| LogStore::open(engine.clone(), writer.clone(), ShardId(group), 0).expect("opens"))
        .collect();
    let held = cut.hold_syncs();
    let mut flushed = Vec::new();
    for store in &mut stores {
        let (sender, receiver) = TypeConfig::oneshot();
        store.append(entries(0..5, 10), IOFlushed::signal(sender)).await.expect("appends");
        flushed.push(receiver);
    }
    drop(held);
    for receiver in flushed {
        receiver.await.expect("completes").expect("is flushed");
    }
    let stats = writer.stats();
    assert_eq!(stats.entries.load(Ordering::Relaxed), 100);
    // The first may have been under way already when the others came.
    assert!(stats.syncs.load(Ordering::Relaxed) <= 2, "{stats:?}");
}

#[tokio::test]
async fn reads_for_replication_are_bounded_and_streams_go_on() {
    for cache_bytes in [0, u64::MAX] {
        let engine = shared(MemoryEngine::new());
        let mut store = open(&engine, 1, cache_bytes);
        let all = entries(0..30, 300_000);
        append(&mut store, all.clone()).await.expect("is flushed");
        let mut reader = store.get_log_reader().await;
        let some = reader.limited_get_log_entries(3, 30).await.expect("reads");
        assert_eq!(some, all[3..10], "seven of 300,000 bytes pass 2 MiB");
        let one = reader.limited_get_log_entries(29, 30).await.expect("reads");
        assert_eq!(one, all[29..]);
        let whole = reader.try_get_log_entries(2..).await.expect("reads");
        assert_eq!(whole, all[2..]);
        let streamed: Vec<Entry> = reader.entries_stream(1..28).await.try_collect().await.expect("reads");
        assert_eq!(streamed, all[1..28]);
        append(&mut store, entries(30..31, 3_000_000)).await.expect("is flushed");
        let large = reader.limited_get_log_entries(30, 31).await.expect("reads");
        assert_eq!(large.len(), 1, "at least one, however large");
    }
}

#[tokio::test]
async fn the_log_knows_its_size_through_truncations_purges_and_restarts() {
    let engine = shared(MemoryEngine::new());
    let mut store = open(&engine, 1, 0);
    let log = store.log();
    assert_eq!((log.size_bytes(), log.bounds(), log.purge_point(0).expect("reads")), (0, None, None));
    let all = entries(0..10, 1000);
    append(&mut store, all.clone()).await.expect("is flushed");
    let ten = log.size_bytes();
    assert_eq!(ten, counted(&all));
    assert!((10_000..12_000).contains(&ten), "{ten}");
    assert_eq!(log.purge_point(ten).expect("reads"), None);
    assert_eq!(log.purge_point(counted(&all[5..])).expect("reads"), Some(4));
    assert_eq!(log.purge_point(counted(&all[5..]) - 1).expect("reads"), Some(4), "what is kept is not less");
    assert_eq!(log.purge_point(counted(&all[5..]) + 1).expect("reads"), Some(3));
    assert_eq!(log.purge_point(0).expect("reads"), Some(9));
    store.purge(log_id(1, 4)).await.expect("purges");
    assert_eq!((log.size_bytes(), log.bounds()), (counted(&all[5..]), Some((5, 9))));
    store.purge(log_id(1, 3)).await.expect("is gone already");
    store.truncate_after(Some(log_id(1, 7))).await.expect("truncates");
    let three = log.size_bytes();
    assert_eq!((three, log.bounds()), (counted(&all[5..8]), Some((5, 7))));
    store.save_vote(&Vote::new(2, NodeId(1))).await.expect("saves");
    let again = open(&engine, 1, 0).log();
    assert_eq!((again.size_bytes(), again.bounds()), (three, Some((5, 7))));
    store.truncate_after(Some(log_id(1, 4))).await.expect("truncates all");
    assert_eq!((log.size_bytes(), log.bounds()), (0, None));
    append(&mut store, entries(5..6, 1000)).await.expect("the next follows the purged");
    assert_eq!((log.size_bytes(), log.bounds()), (counted(&all[5..6]), Some((5, 5))));
}

#[tokio::test]
async fn holes_and_damage_are_refused() {
    let engine = shared(MemoryEngine::new());
    let mut store = open(&engine, 1, 0);
    append(&mut store, entries(0..6, 10)).await.expect("is flushed");
    let error = append(&mut store, entries(8..9, 10)).await.expect_err("leaves a hole");
    assert!(error.to_string().contains("the next index is 6"), "{error}");
    let mut batch = Batch::new();
    batch.delete(Family::Log, crate::raft::keys::log(ShardId(1), 3));
    engine.write(batch, Durability::Synced).expect("writes");
    let mut reader = store.get_log_reader().await;
    let error = reader.try_get_log_entries(0..6).await.expect_err("has a hole");
    assert!(error.to_string().contains("has no entry 3"), "{error}");
    let mut batch = Batch::new();
    batch.put(Family::Log, crate::raft::keys::log(ShardId(1), 5), &b"\x01nonsense"[..]);
    engine.write(batch, Durability::Synced).expect("writes");
    let writer = LogWriter::start(engine.clone()).expect("starts");
    let error = LogStore::open(engine, writer, ShardId(1), 0).err().expect("is damaged");
    assert_eq!(error.kind, ErrorKind::Corrupt);
}

#[tokio::test]
async fn a_new_group_begins_behind_its_seed() {
    let engine = shared(MemoryEngine::new());
    assert!(create_group(engine.as_ref(), &super::descriptor(4, "a", "m")).expect("creates"));
    let mut store = open(&engine, 4, 0);
    let state = store.get_log_state().await.expect("reads");
    assert_eq!(state.last_purged_log_id, state.last_log_id);
    assert_eq!(state.last_log_id.map(|id| (id.index, id.leader_id.term)), Some((1, 0)));
    assert_eq!(store.get_log_reader().await.read_vote().await.expect("reads"), None, "no vote is written");
    let vote = Vote::new(3, NodeId(2));
    store.save_vote(&vote).await.expect("saves");
    assert!(!create_group(engine.as_ref(), &super::descriptor(4, "a", "z")).expect("is there already"));
    assert_eq!(open(&engine, 4, 0).get_log_reader().await.read_vote().await.expect("reads"), Some(vote));
    let mut nobody = super::descriptor(5, "a", "m");
    nobody.replicas.clear();
    assert_eq!(create_group(engine.as_ref(), &nobody).expect_err("no replicas").kind, ErrorKind::Invalid);
}

#[tokio::test]
async fn the_only_voter_is_alone_in_every_membership_that_may_be_in_force() {
    use std::collections::BTreeSet;

    use openraft::Membership;
    use openraft::impls::EntryPayload;

    use crate::raft::core::is_only_voter;
    use crate::raft::{AppliedRecord, StoredMembership};

    let members = |voters: &[u64]| {
        let voters: BTreeSet<NodeId> = voters.iter().copied().map(NodeId).collect();
        Membership::new_with_defaults(vec![voters], [])
    };
    // What is applied, what the log holds behind it, and whether node 1 is alone.
    let cases = [
        (&[1][..], &[][..], true),
        (&[1, 2, 3], &[], false),
        (&[2], &[], false),
        // The log's is in force, whether committed or not...
        (&[1], &[1, 2, 3], false),
        // ...but a truncation brings the applied one back.
        (&[1, 2, 3], &[1], false),
        (&[1], &[1], true),
    ];
    for (applied, in_log, alone) in cases {
        let engine = shared(MemoryEngine::new());
        let writer = LogWriter::start(engine.clone()).expect("starts");
        let mut store = LogStore::open(engine, writer, ShardId(1), 1 << 20).expect("opens");
        let mut entries = entries(1..40, 10);
        if !in_log.is_empty() {
            entries[30].payload = EntryPayload::Membership(members(in_log));
        }
        append(&mut store, entries).await.expect("appends");
        let mut record = AppliedRecord::empty(ShardId(1));
        record.last_log_id = Some(log_id(1, 5));
        record.membership = StoredMembership::new(Some(log_id(1, 1)), members(applied));
        let found = is_only_voter(NodeId(1), &record, &store.log()).expect("reads");
        assert_eq!(found, alone, "{applied:?}, {in_log:?}");
    }
}
