//! The records that a group keeps besides its log and its rows.

use std::sync::Arc;

use openraft::impls::EmptyNode;
use serde::{Deserialize, Serialize};

use super::entry::{LeaderId, LogId};
use super::keys::{self, Item};
use crate::codec;
use crate::engine::{Batch, Engine, Family, StagedName, View};
use crate::shard::State;
use crate::types::{Epoch, Error, KeyRange, NodeId, Result, ShardDescriptor, ShardId};

/// The members of a group and the entry that made them so.
pub type StoredMembership = openraft::StoredMembership<LeaderId, NodeId, EmptyNode>;
/// A vote.
pub type Vote = openraft::Vote<LeaderId>;
/// What a snapshot holds, as openraft knows it.
pub type SnapshotMeta = openraft::SnapshotMeta<LeaderId, NodeId, EmptyNode>;

/// What a replica has applied. Written in the same batch as the rows of each entry.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct AppliedRecord {
    /// The last entry applied.
    pub last_log_id: Option<LogId>,
    /// The members, and the entry that made them so.
    pub membership: StoredMembership,
    /// The shard's state.
    pub state: Arc<State>,
}

impl AppliedRecord {
    /// What an empty replica has applied: nothing. Its range is empty until a snapshot brings one.
    pub fn empty(group: ShardId) -> Self {
        let range = KeyRange::new("", Some("".into()));
        let descriptor = ShardDescriptor { id: group, range, epoch: Epoch(0), replicas: Vec::new() };
        Self {
            last_log_id: None,
            membership: StoredMembership::default(),
            state: Arc::new(State::new(descriptor)),
        }
    }

    /// The index of the last entry applied; 0 where there is none.
    pub fn index(&self) -> u64 {
        self.last_log_id.map_or(0, |id| id.index)
    }

    /// The meta of a snapshot taken now.
    pub fn snapshot_meta(&self) -> SnapshotMeta {
        SnapshotMeta { last_log_id: self.last_log_id, last_membership: self.membership.clone() }
    }

    /// Puts the record into a batch.
    pub(super) fn put(&self, batch: &mut Batch) {
        let group = self.state.descriptor.id;
        batch.put(Family::Group, keys::item(group, Item::Applied), codec::encode(self));
    }

    /// The record of a group, if it has applied anything.
    pub fn read(view: &dyn View, group: ShardId) -> Result<Option<Self>> {
        let Some(bytes) = view.get(Family::Group, &keys::item(group, Item::Applied))? else {
            return Ok(None);
        };
        let record: Self = codec::decode(&bytes, "the applied record of a group")?;
        if record.state.descriptor.id != group {
            return Err(Error::corrupt(format!(
                "the applied record of group {group} is that of group {}",
                record.state.descriptor.id
            )));
        }
        Ok(Some(record))
    }
}

/// A received snapshot on its way in. As long as it stands, the replica's rows may be half replaced.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct InstallingRecord {
    /// Where its rows are.
    pub(super) staged: StagedName,
    /// What the replica will have applied.
    pub(super) applied: AppliedRecord,
}

/// Reads and decodes a record of a group.
pub(super) fn read<T: serde::de::DeserializeOwned>(
    engine: &dyn Engine,
    group: ShardId,
    item: Item,
) -> Result<Option<T>> {
    match engine.get(Family::Group, &keys::item(group, item))? {
        Some(bytes) => codec::decode(&bytes, &format!("record {item:?} of group {group}")).map(Some),
        None => Ok(None),
    }
}
