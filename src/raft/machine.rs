//! The state machine of a group for openraft: entries go through the shard's pure machine into one batch
//! with what was applied, and readers learn how far it is.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use futures::{FutureExt, Stream, StreamExt};
use openraft::OptionalSend;
use openraft::impls::{EmptyNode, EntryPayload};
use openraft::storage::{EntryResponder, RaftSnapshotBuilder, RaftStateMachine, Snapshot};
use parking_lot::{Mutex, RwLock};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::entry::{Entry, LeaderId, LogId, counted_bytes};
use super::keys::{self, Item};
use super::log_writer::LogWriter;
use super::records::{self, AppliedRecord, SnapshotMeta, StoredMembership};
use super::snapshot::{self, SnapshotData, SnapshotSource};
use super::{Applied, TypeConfig};
use crate::codec;
use crate::engine::{Batch, BatchEntry, Durability, Family, Overlay, SharedEngine, View};
use crate::mvcc;
use crate::shard::{self, State};
use crate::types::{Epoch, Error, NodeId, Outcome, Result, ShardId, Timestamp};

/// The most entries that are applied in one batch.
const CHUNK_ENTRIES: usize = 256;
/// A batch of entries to apply ends after the one that takes it past so many bytes.
const CHUNK_BYTES: u64 = 4 * 1024 * 1024;

/// A snapshot of a group, as openraft hands it about.
pub type GroupSnapshot = openraft::Snapshot<LeaderId, NodeId, EmptyNode, SnapshotData>;

/// How far a replica is. Both only rise.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Progress {
    /// The index of the last entry applied.
    pub index: u64,
    /// The shard's closed timestamp.
    pub closed: Timestamp,
}

/// Whoever wants to know of values as they are written.
struct Listener {
    wants: fn(&[u8]) -> bool,
    /// Without a bound: applying waits for nobody. Whoever listens takes at once what there is.
    heard: mpsc::UnboundedSender<Heard>,
}

/// A key that was written.
#[derive(Clone, Debug)]
pub struct Heard {
    /// Which.
    pub key: Bytes,
    /// It was removed.
    pub is_removed: bool,
}

/// What others see of a replica: its state, its rows, and how far it is. Outlives the group's Raft.
pub struct Replica {
    group: ShardId,
    engine: SharedEngine,
    applied: RwLock<Arc<AppliedRecord>>,
    progress: watch::Sender<Progress>,
    /// Counts the beginnings and the ends of installing snapshots: odd while rows are being replaced.
    installs: AtomicU64,
    has_snapshot: AtomicBool,
    listeners: Mutex<Vec<Listener>>,
}

impl Replica {
    fn open(engine: SharedEngine, group: ShardId) -> Result<Arc<Self>> {
        let applied = AppliedRecord::read(engine.view().as_ref(), group)?;
        let applied = Arc::new(applied.unwrap_or_else(|| AppliedRecord::empty(group)));
        let snapshot: Option<Option<LogId>> = records::read(engine.as_ref(), group, Item::Snapshot)?;
        let (progress, _) = watch::channel(progress_of(&applied));
        Ok(Arc::new(Self {
            group,
            engine,
            applied: RwLock::new(applied),
            progress,
            installs: AtomicU64::new(0),
            has_snapshot: AtomicBool::new(snapshot.is_some()),
            listeners: Mutex::default(),
        }))
    }

    /// The group.
    pub fn group(&self) -> ShardId {
        self.group
    }

    /// What was applied last. The rows may be further on already.
    pub fn applied(&self) -> Arc<AppliedRecord> {
        self.applied.read().clone()
    }

    /// The shard's state as of what was applied last. The rows may be further on already.
    pub fn state(&self) -> Arc<State> {
        self.applied.read().state.clone()
    }

    /// The rows, standing still, at or after what [`applied`](Self::applied) answered before.
    ///
    /// # Errors
    ///
    /// `Unavailable` while a snapshot replaces them.
    pub fn view(&self) -> Result<Box<dyn View + '_>> {
        let before = self.installs.load(Ordering::Acquire);
        let view = self.engine.view();
        if before.is_multiple_of(2) && self.installs.load(Ordering::Acquire) == before {
            return Ok(view);
        }
        Err(Error::unavailable(format!(
            "this replica of shard {} is receiving a snapshot: read from another one, or retry",
            self.group
        )))
    }

    /// How far the replica is, now and as it goes on.
    pub fn watch(&self) -> watch::Receiver<Progress> {
        self.progress.subscribe()
    }

    /// Returns once the entry at `index` is applied. Bound it by a deadline: a group that stopped never
    /// gets there.
    pub async fn wait_applied(&self, index: u64) {
        let mut progress = self.progress.subscribe();
        // The sender lives as long as `self`, so that the wait can't fail.
        let _ = progress.wait_for(|progress| progress.index >= index).await;
    }

    /// The keys whose values are written from now on, once they can be read, of those that `wants` says. What a snapshot
    /// brings is not told.
    pub fn listen(&self, wants: fn(&[u8]) -> bool) -> mpsc::UnboundedReceiver<Heard> {
        let (heard, hears) = mpsc::unbounded_channel();
        self.listeners.lock().push(Listener { wants, heard });
        hears
    }

    /// The keys in a batch that each listener wants to know of; nothing where nobody listens.
    fn heard_of(&self, batch: &Batch) -> Vec<(mpsc::UnboundedSender<Heard>, Vec<Heard>)> {
        let mut listeners = self.listeners.lock();
        listeners.retain(|listener| !listener.heard.is_closed());
        let written = |listener: &Listener| {
            let keys = batch.entries().iter().filter_map(|entry| match entry {
                BatchEntry::Put(Family::Current, key, row) if (listener.wants)(key) => {
                    // A row that can't be read is found by whoever reads it.
                    let is_removed = mvcc::is_tombstone(row).unwrap_or(false);
                    Some(Heard { key: key.clone(), is_removed })
                }
                _ => None,
            });
            (listener.heard.clone(), keys.collect())
        };
        listeners.iter().map(written).collect()
    }

    fn publish(&self, applied: AppliedRecord) {
        let progress = progress_of(&applied);
        *self.applied.write() = Arc::new(applied);
        self.progress.send_replace(progress);
    }

    fn snapshot(self: &Arc<Self>) -> GroupSnapshot {
        let source = SnapshotSource::new(self.group, self.engine.clone());
        Snapshot { meta: self.applied().snapshot_meta(), snapshot: SnapshotData::Source(source) }
    }
}

fn progress_of(applied: &AppliedRecord) -> Progress {
    Progress { index: applied.index(), closed: applied.state.closed }
}

/// The state machine of one group.
pub struct ReplicaMachine {
    replica: Arc<Replica>,
    writer: Arc<LogWriter>,
    /// Whether an entry must follow the one before it without a gap.
    without_gaps: bool,
    /// Tells that the machine is gone, and with it the only writer of the replica's rows.
    gone: CancellationToken,
    _gone_when_dropped: DropGuard,
}

impl ReplicaMachine {
    /// Opens the replica of a group; one that has no records here is empty. A snapshot whose installing a
    /// crash cut short is installed first. Open it before the group's log store, which compares the two.
    ///
    /// # Errors
    ///
    /// `Corrupt` where its records can't be read; the engine's.
    pub fn open(engine: SharedEngine, writer: Arc<LogWriter>, group: ShardId) -> Result<Self> {
        snapshot::finish_install(engine.as_ref(), group)?;
        let gone = CancellationToken::new();
        Ok(Self {
            replica: Replica::open(engine, group)?,
            writer,
            without_gaps: true,
            _gone_when_dropped: gone.clone().drop_guard(),
            gone,
        })
    }

    /// Takes entries with gaps between them, as openraft's suite gives them.
    #[cfg(test)]
    pub(super) fn allow_gaps(mut self) -> Self {
        self.without_gaps = false;
        self
    }

    /// What others see of it.
    pub fn replica(&self) -> Arc<Replica> {
        self.replica.clone()
    }

    /// Is cancelled when the machine is dropped. Raft's core ends before its machine does, so whoever
    /// opens the replica again waits for this first.
    pub(super) fn gone(&self) -> CancellationToken {
        self.gone.clone()
    }

    /// Applies entries in one batch, then answers whoever waits for them.
    fn apply_chunk(&self, entries: Vec<EntryResponder<TypeConfig>>) -> Result<()> {
        let current = self.replica.applied();
        let mut applied = AppliedRecord::clone(&current);
        let mut state = State::clone(&current.state);
        let mut answers = Vec::with_capacity(entries.len());
        let view = self.replica.engine.view();
        let mut overlay = Overlay::new(view.as_ref());
        for (entry, responder) in entries {
            let outcomes = self.apply_entry(&mut applied, &mut state, &mut overlay, entry)?;
            if let Some(responder) = responder {
                answers.push((responder, Applied(outcomes)));
            }
        }
        applied.state = Arc::new(state);
        let mut batch = overlay.into_batch();
        applied.put(&mut batch);
        let heard = self.replica.heard_of(&batch);
        drop(view);
        // Not synced: the log is, and both share one log on disk, so that a crash leaves a prefix of both.
        self.replica.engine.write(batch, Durability::Buffered)?;
        self.replica.publish(applied);
        for (listener, keys) in heard {
            for key in keys {
                // Whoever listened may have gone meanwhile.
                let _ = listener.send(key);
            }
        }
        for (responder, outcomes) in answers {
            responder.send(outcomes);
        }
        Ok(())
    }

    fn apply_entry(
        &self,
        applied: &mut AppliedRecord,
        state: &mut State,
        overlay: &mut Overlay<'_>,
        entry: Entry,
    ) -> Result<Vec<Outcome>> {
        if let Some(last) = applied.last_log_id
            && entry.log_id.index != last.index + 1
            && self.without_gaps
        {
            return Err(Error::corrupt(format!(
                "group {} was given entry {} to apply after {last}",
                self.replica.group, entry.log_id
            )));
        }
        applied.last_log_id = Some(entry.log_id);
        match entry.payload {
            EntryPayload::Blank => Ok(Vec::new()),
            EntryPayload::Normal(payload) => {
                // What can't be decoded must stop the replica: skipping it would make it differ.
                let what = format!("entry {} of group {}", entry.log_id, self.replica.group);
                let decoded: shard::Entry = codec::decode(&payload.0, &what)?;
                shard::apply(state, overlay, &decoded)
            }
            EntryPayload::Membership(membership) => {
                let replicas: Vec<NodeId> = membership.nodes().map(|(node, _)| *node).collect();
                if state.descriptor.replicas != replicas {
                    state.descriptor.replicas = replicas;
                    state.descriptor.epoch = Epoch(state.descriptor.epoch.0 + 1);
                }
                applied.membership = StoredMembership::new(Some(entry.log_id), membership);
                Ok(Vec::new())
            }
        }
    }

    /// Takes the place of everything in the replica.
    async fn install(&self, meta: &SnapshotMeta, data: SnapshotData) -> Result<()> {
        let replica = self.replica.clone();
        let received = match data {
            SnapshotData::Received(received) => received,
            SnapshotData::Source(source) => {
                let engine = replica.engine.clone();
                blocking(move || source.copy_to(&engine)).await?
            }
        };
        received.check(self.replica.group, meta)?;
        let record = received
            .into_record()
            .ok_or_else(|| Error::corrupt("a snapshot was to be installed for the second time"))?;
        let staged = record.staged.clone();
        let mut batch = Batch::new();
        batch.put(Family::Group, keys::item(replica.group, Item::Installing), codec::encode(&record));
        // Behind what openraft has queued before (it may have truncated the log), and on disk before the
        // first row is replaced.
        self.writer.write_synced(batch).await?;
        blocking(move || {
            replica.installs.fetch_add(1, Ordering::AcqRel);
            snapshot::finish_install(replica.engine.as_ref(), replica.group)?;
            replica.has_snapshot.store(true, Ordering::Release);
            replica.publish(record.applied);
            replica.installs.fetch_add(1, Ordering::AcqRel);
            replica.engine.discard_staged(&staged)
        })
        .await
    }
}

/// Runs what reads or writes much on a thread that may block.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(Error::unavailable(format!("installing a snapshot was cut short: {error}"))),
    }
}

impl RaftStateMachine<TypeConfig> for ReplicaMachine {
    type SnapshotData = SnapshotData;
    type SnapshotBuilder = SnapshotBuilder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        let applied = self.replica.applied();
        Ok((applied.last_log_id, applied.membership.clone()))
    }

    async fn apply<S>(&mut self, mut entries: S) -> Result<(), io::Error>
    where
        S: Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + OptionalSend,
    {
        while let Some(first) = entries.next().await {
            let first = first?;
            let mut bytes = counted_bytes(&first.0);
            let mut chunk = vec![first];
            let mut failed = None;
            // What is there already goes along.
            while chunk.len() < CHUNK_ENTRIES && bytes < CHUNK_BYTES {
                match entries.next().now_or_never() {
                    Some(Some(Ok(next))) => {
                        bytes += counted_bytes(&next.0);
                        chunk.push(next);
                    }
                    Some(Some(Err(error))) => {
                        failed = Some(error);
                        break;
                    }
                    Some(None) | None => break,
                }
            }
            self.apply_chunk(chunk).map_err(io::Error::other)?;
            if let Some(error) = failed {
                return Err(error);
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> SnapshotBuilder {
        SnapshotBuilder(self.replica.clone())
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: SnapshotData,
    ) -> Result<(), io::Error> {
        self.install(meta, snapshot).await.map_err(io::Error::other)
    }

    /// A handle on the replica as it is: what is sent is read when it is sent, at or after this meta.
    async fn get_current_snapshot(&mut self) -> Result<Option<GroupSnapshot>, io::Error> {
        Ok(self.replica.has_snapshot.load(Ordering::Acquire).then(|| self.replica.snapshot()))
    }
}

/// Records that a snapshot is there; what was applied is on disk anyway, and is the snapshot.
pub struct SnapshotBuilder(Arc<Replica>);

impl RaftSnapshotBuilder<TypeConfig> for SnapshotBuilder {
    type SnapshotData = SnapshotData;

    async fn build_snapshot(&mut self) -> Result<GroupSnapshot, io::Error> {
        let snapshot = self.0.snapshot();
        let mut batch = Batch::new();
        let key = keys::item(self.0.group, Item::Snapshot);
        batch.put(Family::Group, key, codec::encode(&snapshot.meta.last_log_id));
        self.0.engine.write(batch, Durability::Buffered).map_err(io::Error::other)?;
        self.0.has_snapshot.store(true, Ordering::Release);
        Ok(snapshot)
    }
}
