//! Snapshots: read lazily from a view while they are sent, staged as they are received, installed so
//! that a crash at any point leaves either the old replica or the new one.
//!
//! The sender's handle holds nothing. When it is sent, one view gives both the record of what was applied
//! and the rows, so that they belong together; they are at or after the meta that openraft saw. The
//! receiver stages the rows beside its database, checks them against a chained checksum, and records
//! (synced) what it is about to install before it replaces the first row. Whoever opens the group and
//! finds that record does the rest again.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use xxhash_rust::xxh3::Xxh3;

use super::entry::LeaderId;
use super::keys::{self, Item};
use super::records::{self, AppliedRecord, InstallingRecord, SnapshotMeta};
use crate::codec;
use crate::engine::{Batch, Durability, Engine, Family, SharedEngine, StagedName, Staging, View};
use crate::mvcc;
use crate::types::{Direction, Error, KeyRange, Result, ShardId};

/// Rows are handed over in chunks of about so many bytes.
const CHUNK_BYTES: usize = 256 * 1024;

/// A row on its way. Families are numbered on the wire.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SnapshotRow {
    /// The family's number (see [`family_number`]).
    pub family: u32,
    /// The key.
    pub key: Bytes,
    /// The value.
    pub value: Bytes,
}

/// A part of a snapshot, in the order in which they are sent.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SnapshotPart {
    /// First: the encoded record of what was applied, for [`SnapshotReceiver::begin`].
    Head(Bytes),
    /// Then: rows, any number of times.
    Rows(Vec<SnapshotRow>),
    /// Last: the checksum over all rows.
    End(u64),
}

/// A family's number on the wire. Never change one.
pub const fn family_number(family: Family) -> Option<u32> {
    match family {
        Family::Current => Some(1),
        Family::History => Some(2),
        Family::Lock => Some(3),
        Family::Txn => Some(4),
        Family::Changelog => Some(5),
        Family::Log | Family::Group => None,
    }
}

/// The family of a number.
fn family_of(number: u32) -> Result<Family> {
    Family::SHARD_DATA.into_iter().find(|family| family_number(*family) == Some(number)).ok_or_else(|| {
        Error::corrupt(format!(
            "a snapshot has rows of family number {number}, which this build doesn't know"
        ))
    })
}

/// The families of a shard and its rows in each.
fn ranges(shard: ShardId, range: &KeyRange) -> Vec<(Family, KeyRange)> {
    Family::SHARD_DATA.into_iter().map(|family| (family, mvcc::shard_rows(family, shard, range))).collect()
}

/// Chains rows into one number.
struct RowChain(Xxh3);

impl RowChain {
    fn new() -> Self {
        Self(Xxh3::new())
    }

    fn add(&mut self, family: u32, key: &[u8], value: &[u8]) {
        self.0.update(&family.to_be_bytes());
        self.0.update(&(key.len() as u64).to_be_bytes());
        self.0.update(key);
        self.0.update(&(value.len() as u64).to_be_bytes());
        self.0.update(value);
    }

    fn end(&self) -> u64 {
        self.0.digest()
    }
}

/// What openraft hands about as a snapshot's data.
#[derive(Debug)]
pub enum SnapshotData {
    /// To be sent: nothing is read yet.
    Source(SnapshotSource),
    /// Received: the rows are staged.
    Received(ReceivedSnapshot),
}

/// A snapshot that can be sent.
#[derive(Clone)]
pub struct SnapshotSource {
    group: ShardId,
    engine: SharedEngine,
}

impl fmt::Debug for SnapshotSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SnapshotSource(group {})", self.group)
    }
}

impl SnapshotSource {
    pub(super) fn new(group: ShardId, engine: SharedEngine) -> Self {
        Self { group, engine }
    }

    /// Reads the snapshot as it is now and hands it over part by part. Blocks on the disk and on `send`:
    /// call it on a thread that may. An error of `send` ends it.
    ///
    /// # Errors
    ///
    /// `Unavailable` where the replica is receiving a snapshot itself, or has applied entries of a leader
    /// newer than `under`, whose vote it would be sent with: such a receiver would hold what that vote does
    /// not vouch for. The engine's; those of `send`.
    pub fn stream(
        &self,
        under: Option<LeaderId>,
        mut send: impl FnMut(SnapshotPart) -> Result<()>,
    ) -> Result<()> {
        // Compaction passes over views. A row that it drops by a safe point above the one in the head would be
        // missing where the snapshot arrives.
        let _kept = self.engine.keep_rows();
        let view = self.engine.view();
        if view.get(Family::Group, &keys::item(self.group, Item::Installing))?.is_some() {
            return Err(Error::unavailable(format!(
                "group {} is receiving a snapshot itself and can't send one",
                self.group
            )));
        }
        let applied = AppliedRecord::read(view.as_ref(), self.group)?
            .ok_or_else(|| Error::unavailable(format!("group {} has nothing to send yet", self.group)))?;
        if let (Some(under), Some(last)) = (under, applied.last_log_id)
            && last.leader_id > under
        {
            return Err(Error::unavailable(format!(
                "a snapshot of group {} was to be sent under the leadership {under}, but {last} of a later one \
                 is applied here: it must be sent under that",
                self.group
            )));
        }
        send(SnapshotPart::Head(codec::encode(&applied).into()))?;
        let mut chain = RowChain::new();
        for (family, range) in ranges(applied.state.descriptor.id, &applied.state.descriptor.range) {
            stream_family(view.as_ref(), family, &range, &mut chain, &mut send)?;
        }
        send(SnapshotPart::End(chain.end()))
    }

    /// Receives the snapshot right here: for a replica on the same node.
    pub(super) fn copy_to(&self, engine: &SharedEngine) -> Result<ReceivedSnapshot> {
        let mut receiver = None;
        let mut received = None;
        self.stream(None, |part| {
            match (part, receiver.as_mut()) {
                (SnapshotPart::Head(head), _) => {
                    receiver = Some(SnapshotReceiver::begin(engine, self.group, &head)?)
                }
                (SnapshotPart::Rows(rows), Some(receiver)) => receiver.rows(&rows)?,
                (SnapshotPart::End(checksum), Some(_)) => {
                    received = receiver.take().map(|receiver| receiver.finish(checksum)).transpose()?;
                }
                _ => {}
            }
            Ok(())
        })?;
        received.ok_or_else(|| Error::corrupt("a snapshot ended before its end"))
    }
}

fn stream_family(
    view: &dyn View,
    family: Family,
    range: &KeyRange,
    chain: &mut RowChain,
    send: &mut impl FnMut(SnapshotPart) -> Result<()>,
) -> Result<()> {
    let Some(number) = family_number(family) else { return Ok(()) };
    let mut rows = Vec::new();
    let mut bytes = 0;
    for row in view.scan(family, range, Direction::Forward) {
        let (key, value) = row?;
        chain.add(number, &key, &value);
        bytes += key.len() + value.len();
        rows.push(SnapshotRow { family: number, key, value });
        if bytes >= CHUNK_BYTES {
            send(SnapshotPart::Rows(std::mem::take(&mut rows)))?;
            bytes = 0;
        }
    }
    if rows.is_empty() { Ok(()) } else { send(SnapshotPart::Rows(rows)) }
}

/// Staged rows that nobody else knows of yet. Dropped, it discards them: openraft passes over a snapshot
/// that it does not need without a word.
struct Staged {
    engine: SharedEngine,
    name: Option<StagedName>,
}

impl fmt::Debug for Staged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Staged({:?})", self.name)
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        if let Some(name) = self.name.take()
            && let Err(error) = self.engine.discard_staged(&name)
        {
            tracing::warn!(%name, error = %error.message, "staged rows stay until the next start");
        }
    }
}

/// A snapshot whose rows are staged and checked. Dropped, it leaves nothing.
#[derive(Debug)]
pub struct ReceivedSnapshot {
    staged: Staged,
    applied: AppliedRecord,
}

impl ReceivedSnapshot {
    /// The meta of what was received, for openraft.
    pub fn meta(&self) -> SnapshotMeta {
        self.applied.snapshot_meta()
    }

    /// What is to be recorded before it is installed. From now on the rows stay until they are discarded.
    pub(super) fn into_record(mut self) -> Option<InstallingRecord> {
        Some(InstallingRecord { staged: self.staged.name.take()?, applied: self.applied })
    }

    /// Checks that it is for this group and what openraft takes it for.
    pub(super) fn check(&self, group: ShardId, meta: &SnapshotMeta) -> Result<()> {
        if self.applied.state.descriptor.id != group {
            return Err(Error::corrupt(format!(
                "group {group} was given a snapshot of group {}",
                self.applied.state.descriptor.id
            )));
        }
        if self.meta() != *meta {
            return Err(Error::corrupt(format!(
                "a snapshot of group {group} is {}, but it was announced as {meta}",
                self.meta()
            )));
        }
        Ok(())
    }
}

/// Takes a snapshot in. Dropped before its end, it leaves nothing.
pub struct SnapshotReceiver {
    applied: AppliedRecord,
    ranges: Vec<(Family, KeyRange)>,
    engine: SharedEngine,
    staging: Box<dyn Staging>,
    chain: RowChain,
}

impl SnapshotReceiver {
    /// Begins with the head.
    ///
    /// # Errors
    ///
    /// `Corrupt` where the head can't be read or is another group's; the engine's.
    pub fn begin(engine: &SharedEngine, group: ShardId, head: &[u8]) -> Result<Self> {
        let applied: AppliedRecord = codec::decode(head, "the head of a snapshot")?;
        if applied.state.descriptor.id != group {
            return Err(Error::corrupt(format!(
                "group {group} is sent a snapshot of group {}",
                applied.state.descriptor.id
            )));
        }
        let ranges = ranges(applied.state.descriptor.id, &applied.state.descriptor.range);
        let staging = engine.stage()?;
        Ok(Self { applied, ranges, engine: Arc::clone(engine), staging, chain: RowChain::new() })
    }

    /// Takes rows.
    ///
    /// # Errors
    ///
    /// `Corrupt` where a row is out of order, outside the shard's range or of an unknown family; the
    /// engine's.
    pub fn rows(&mut self, rows: &[SnapshotRow]) -> Result<()> {
        for row in rows {
            let family = family_of(row.family)?;
            if !self.ranges.iter().any(|(known, range)| *known == family && range.contains(&row.key)) {
                return Err(Error::corrupt(format!(
                    "a snapshot of group {} has a row outside its range: {} in family {}",
                    self.applied.state.descriptor.id,
                    hex::encode(&row.key),
                    family.name()
                )));
            }
            self.chain.add(row.family, &row.key, &row.value);
            self.staging.put(family, &row.key, &row.value)?;
        }
        Ok(())
    }

    /// Ends with the sender's checksum.
    ///
    /// # Errors
    ///
    /// `Corrupt` where the rows are not those that were sent; the engine's.
    pub fn finish(self, checksum: u64) -> Result<ReceivedSnapshot> {
        let found = self.chain.end();
        if found != checksum {
            return Err(Error::corrupt(format!(
                "a snapshot of group {} has checksum {found:016x}, but its sender counted {checksum:016x}",
                self.applied.state.descriptor.id
            )));
        }
        let name = Some(self.staging.finish()?);
        Ok(ReceivedSnapshot { staged: Staged { engine: self.engine, name }, applied: self.applied })
    }
}

/// Installs the snapshot that a group's record names, if there is one: now, or again after a crash.
pub(super) fn finish_install(engine: &dyn Engine, group: ShardId) -> Result<()> {
    let Some(record) = records::read::<InstallingRecord>(engine, group, Item::Installing)? else {
        return Ok(());
    };
    tracing::info!(%group, last_log_id = ?record.applied.last_log_id, "installs a snapshot");
    let descriptor = &record.applied.state.descriptor;
    engine.install(&record.staged, &ranges(descriptor.id, &descriptor.range))?;
    let mut batch = Batch::new();
    record.applied.put(&mut batch);
    batch.put(Family::Group, keys::item(group, Item::Replica), codec::encode(&()));
    batch.put(Family::Group, keys::item(group, Item::Snapshot), codec::encode(&record.applied.last_log_id));
    batch.delete(Family::Group, keys::item(group, Item::Installing));
    engine.write(batch, Durability::Synced)
}
