//! Making replicas of groups, and finding those that are there.
//!
//! A new group's replica looks like a node that was restarted with a compacted log: the same log id was
//! purged and applied on each, and the members are stored. So nothing is initialised: whichever replica
//! stands for election first leads. A replica that is not there from the beginning can only catch up by
//! a snapshot, never by replaying entries over rows that it doesn't have.

use std::collections::BTreeSet;
use std::sync::Arc;

use openraft::Membership;

use super::entry::{LeaderId, LogId};
use super::keys::{self, Item, NODE_GROUP};
use super::records::{AppliedRecord, StoredMembership};
use super::snapshot::finish_install;
use crate::codec;
use crate::engine::{Batch, Durability, Engine, Family};
use crate::shard::State;
use crate::types::{Direction, Error, KeyRange, NodeId, Result, ShardDescriptor, ShardId};

/// Makes the replica of a new group, which holds nothing: its range must be empty. The members are the
/// descriptor's replicas, the same on every node. Synced; a replica that is there already stays as it is
/// (its vote above all). Answers whether it was made.
///
/// # Errors
///
/// `Invalid` where the descriptor names no replicas; the engine's.
pub fn create_group(engine: &dyn Engine, descriptor: &ShardDescriptor) -> Result<bool> {
    if descriptor.replicas.is_empty() || descriptor.id == NODE_GROUP {
        return Err(Error::invalid(format!(
            "shard {} can't be created with {} replicas: name a shard below {NODE_GROUP} and at least one node",
            descriptor.id,
            descriptor.replicas.len()
        )));
    }
    if exists(engine, descriptor.id)? {
        return Ok(false);
    }
    let mut batch = Batch::new();
    put_group(&mut batch, descriptor);
    engine.write(batch, Durability::Synced)?;
    Ok(true)
}

/// Puts a new group's records into a batch.
fn put_group(batch: &mut Batch, descriptor: &ShardDescriptor) {
    // The lowest leader there can be, so that no later one is behind it; and no vote.
    let leader = LeaderId { term: 0, node_id: NodeId(0) };
    let seed = LogId::new(leader, 1);
    let voters: BTreeSet<NodeId> = descriptor.replicas.iter().copied().collect();
    let applied = AppliedRecord {
        last_log_id: Some(seed),
        membership: StoredMembership::new(Some(seed), Membership::new_with_defaults(vec![voters], [])),
        state: Arc::new(State::new(descriptor.clone())),
    };
    let group = descriptor.id;
    batch.put(Family::Group, keys::item(group, Item::Replica), codec::encode(&()));
    batch.put(Family::Group, keys::item(group, Item::Purged), codec::encode(&seed));
    applied.put(batch);
}

/// Makes an empty replica of a group that lives elsewhere: it waits for a snapshot. Synced; one that is
/// there already stays as it is. Answers whether it was made.
pub fn create_empty_replica(engine: &dyn Engine, group: ShardId) -> Result<bool> {
    if exists(engine, group)? {
        return Ok(false);
    }
    let mut batch = Batch::new();
    batch.put(Family::Group, keys::item(group, Item::Replica), codec::encode(&()));
    engine.write(batch, Durability::Synced)?;
    Ok(true)
}

/// Whether there is a replica of a group here.
pub fn exists(engine: &dyn Engine, group: ShardId) -> Result<bool> {
    Ok(engine.get(Family::Group, &keys::item(group, Item::Replica))?.is_some())
}

/// The groups that have a replica here, in order.
pub fn list_groups(engine: &dyn Engine) -> Result<Vec<ShardId>> {
    let view = engine.view();
    let mut groups = Vec::new();
    for row in view.scan(Family::Group, &KeyRange::all(), Direction::Forward) {
        let (key, _) = row?;
        match keys::parse_item(&key) {
            Some((NODE_GROUP, _)) => {}
            Some((group, item)) if item == Item::Replica as u8 => groups.push(group),
            Some(_) => {}
            None => {
                return Err(Error::corrupt(format!(
                    "family {} has a key that is no group's: {}",
                    Family::Group.name(),
                    hex::encode(&key)
                )));
            }
        }
    }
    Ok(groups)
}

/// Finishes what a crash cut short, for all groups, and forgets what was staged. Before any group is
/// opened.
pub fn recover(engine: &dyn Engine) -> Result<()> {
    let view = engine.view();
    let mut installing = Vec::new();
    for row in view.scan(Family::Group, &KeyRange::all(), Direction::Forward) {
        if let Some((group, item)) = keys::parse_item(&row?.0)
            && group != NODE_GROUP
            && item == Item::Installing as u8
        {
            installing.push(group);
        }
    }
    drop(view);
    for group in installing {
        finish_install(engine, group)?;
    }
    engine.discard_staged_except(&[])
}
