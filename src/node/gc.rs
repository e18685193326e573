//! Garbage collection on a node: leaders raise the safe points of their shards, and every node lets its engine
//! drop what lies below them once they are durable here.

use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::member::Member;
use super::replica::Replica;
use crate::engine::{Batch, Durability, SharedEngine};
use crate::mvcc::Floors;
use crate::types::{Error, Operation, RequestId, Result, Timestamp, limits};

/// How often the safe points are looked at.
const INTERVAL: Duration = Duration::from_secs(30);
/// A safe point is raised only where the shard has moved so far since: an idle shard's log stays as it is.
const MIN_STEP_MS: u64 = 30_000;
/// How long raising one may take.
const RAISE_TIMEOUT: Duration = Duration::from_secs(5);

/// Collects on a member until it stops.
pub async fn run(
    member: Weak<Member>,
    engine: SharedEngine,
    floors: Arc<Floors>,
    stopping: CancellationToken,
) {
    let mut every = tokio::time::interval(INTERVAL);
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stopping.cancelled() => return,
            _ = every.tick() => {}
        }
        let Some(member) = member.upgrade() else { return };
        if let Err(error) = raise_all(&member).await {
            tracing::debug!(%error, "a safe point could not be raised; trying again");
        }
        if let Err(error) = publish_all(&member, &engine, &floors).await {
            tracing::warn!(%error, "the safe points could not be synced: nothing is dropped meanwhile");
        }
    }
}

async fn raise_all(member: &Member) -> Result<()> {
    let behind = |replica: &Arc<Replica>| {
        let state = replica.group().state();
        state.closed.ms() > state.safe_point.ms() + limits::RETENTION_MS + MIN_STEP_MS
    };
    let led = member.replicas().all().into_iter().filter(|replica| replica.check_leads().is_ok());
    for replica in led.filter(behind) {
        let now = member.timestamps().take(1).await?;
        let safe_point = Timestamp::from_ms(now.ms().saturating_sub(limits::RETENTION_MS));
        let id = RequestId { seen: now, unique: rand::random() };
        let raise = Operation::AdvanceSafePoint { safe_point };
        // One shard without a majority must not keep the others from it.
        if let Err(error) = replica.execute(id, raise, Instant::now() + RAISE_TIMEOUT).await {
            tracing::debug!(shard = %replica.group().id(), %error, "the safe point was not raised; trying again");
        }
    }
    Ok(())
}

/// Syncs what was applied so far, then lets the engine drop what the safe points that were applied before that allow.
async fn publish_all(member: &Member, engine: &SharedEngine, floors: &Floors) -> Result<()> {
    let applied: Vec<_> =
        member.host().groups().into_iter().map(|group| (group.id(), group.state())).collect();
    let engine = engine.clone();
    // An empty batch is behind all that was applied; synced, it makes that durable too.
    tokio::task::spawn_blocking(move || engine.write(Batch::new(), Durability::Synced))
        .await
        .map_err(|error| Error::unavailable(format!("the sync was cut short: {error}")))??;
    for (shard, state) in applied {
        floors.publish(shard, state.descriptor.range.clone(), state.safe_point);
    }
    Ok(())
}
