//! Keeps the system keyspace's picture of this node true: its registry record, and the catalogue entries
//! of the shards it leads.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use tokio_util::sync::CancellationToken;

use super::cluster_map;
use super::member::Member;
use crate::codec::{self, keyspace};
use crate::types::{Operation, RequestId, Result, ShardDescriptor, ShardId};

const INTERVAL: Duration = Duration::from_secs(1);

/// Runs until the node stops.
pub async fn run(member: Weak<Member>, stopping: CancellationToken) {
    let mut registered = false;
    let mut published = HashMap::new();
    let mut tick = tokio::time::interval(INTERVAL);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stopping.cancelled() => return,
            _ = tick.tick() => {}
        }
        let Some(member) = member.upgrade() else { return };
        if !registered {
            match register(&member).await {
                Ok(()) => registered = true,
                Err(error) => tracing::debug!(%error, "this node is not in the registry yet"),
            }
        }
        if let Err(error) = publish_led(&member, &mut published).await {
            tracing::debug!(%error, "the shard catalogue was not brought up to date; trying again");
        }
    }
}

async fn register(member: &Arc<Member>) -> Result<()> {
    let record = member.record();
    put(member, keyspace::node_record(record.id), codec::encode(record)).await
}

/// Publishes the descriptors of led shards that the catalogue does not have as they are.
///
/// `published` is what this node knows to be there: a node without the catalogue remembers what it wrote.
async fn publish_led(member: &Arc<Member>, published: &mut HashMap<ShardId, ShardDescriptor>) -> Result<()> {
    if let Some(system) = member.host().group(ShardId::SYSTEM) {
        *published = cluster_map::catalogue(&system)?.into_iter().map(|shard| (shard.id, shard)).collect();
    }
    for group in member.host().groups() {
        let descriptor = group.state().descriptor.clone();
        let leads = group.leadership().token().is_some();
        if leads && published.get(&descriptor.id) != Some(&descriptor) {
            let key = keyspace::shard_record(&descriptor.range.start);
            put(member, key, codec::encode(&descriptor)).await?;
            published.insert(descriptor.id, descriptor);
        }
    }
    Ok(())
}

async fn put(member: &Arc<Member>, key: Bytes, value: Vec<u8>) -> Result<()> {
    let seen = member.timestamps().take(1).await?;
    let id = RequestId { seen, unique: rand::random() };
    let operation = Operation::Put { key, value: Bytes::from(value) };
    member.execute_system(id, operation).await.map(|_| ())
}
