//! Garbage collection on a node: leaders raise the safe points of their shards, and every node lets its engine
//! drop what lies below them once they are durable here.

use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::config::ChangelogRetention;
use super::member::Member;
use super::replica::Replica;
use crate::engine::{Batch, Durability, Family, SharedEngine};
use crate::mvcc::Floors;
use crate::shard;
use crate::types::{Error, Operation, RequestId, Result, Timestamp, limits};

/// How often the safe points are looked at, at the least; oftener where the changelog is kept for a short time only. And
/// how far a shard must have moved since for one to be raised: an idle shard's log stays as it is.
const STEP: Duration = Duration::from_secs(30);
/// The least of it.
const LEAST_STEP: Duration = Duration::from_millis(250);
/// How long raising one may take.
const RAISE_TIMEOUT: Duration = Duration::from_secs(5);

/// Collects on a member until it stops.
pub async fn run(
    member: Weak<Member>,
    engine: SharedEngine,
    floors: Arc<Floors>,
    changelog: ChangelogRetention,
    stopping: CancellationToken,
) {
    let mut every = tokio::time::interval(step(changelog));
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stopping.cancelled() => return,
            _ = every.tick() => {}
        }
        let Some(member) = member.upgrade() else { return };
        if let Err(error) = raise_all(&member, changelog).await {
            tracing::debug!(%error, "a safe point could not be raised; trying again");
        }
        if let Err(error) = publish_all(&member, &engine, &floors).await {
            tracing::warn!(%error, "the safe points could not be synced: nothing is dropped meanwhile");
        }
    }
}

async fn raise_all(member: &Member, changelog: ChangelogRetention) -> Result<()> {
    let led = member.replicas().all().into_iter().filter(|replica| replica.check_leads().is_ok());
    for replica in led {
        let shard = replica.group().id();
        let (safe_point, truncated) = match wanted(&replica, changelog).await {
            Ok(Some(wanted)) => wanted,
            Ok(None) => continue,
            // One shard whose rows can't be read must not keep the others from it.
            Err(error) => {
                tracing::warn!(%shard, %error, "how far its changelog reaches can't be learnt; trying again");
                continue;
            }
        };
        let now = member.timestamps().take(1).await?;
        let id = RequestId { seen: now, unique: rand::random() };
        let raise = Operation::AdvanceSafePoint { safe_point, truncated };
        // One shard without a majority must not keep the others from it.
        if let Err(error) = replica.execute(id, raise, Instant::now() + RAISE_TIMEOUT).await {
            tracing::debug!(%shard, %error, "the safe point was not raised; trying again");
        }
    }
    Ok(())
}

/// Up to where a shard's versions may be dropped and its changelog cut, where that has moved enough to be written down.
/// Times are counted from what the shard has closed, so that one that rests keeps what it has.
async fn wanted(replica: &Replica, changelog: ChangelogRetention) -> Result<Option<(Timestamp, Timestamp)>> {
    let rows = replica.group().replica();
    let state = rows.state();
    let before = |ms: u64| Timestamp::from_ms(state.closed.ms().saturating_sub(ms));
    let retention_ms = as_ms(changelog.time);
    let by_size = {
        let state = state.clone();
        let most = changelog.size_bytes;
        let cut = move || shard::cut_to_size(&*rows.view()?, &state, most);
        tokio::task::spawn_blocking(cut).await.map_err(|error| {
            Error::unavailable(format!("the size of the changelog was not learnt: {error}"))
        })??
    };
    let truncated = before(retention_ms).max(by_size.unwrap_or_default());
    // The changelog's rows point at versions: those are kept as long.
    let safe_point = before(limits::RETENTION_MS).min(truncated.max(state.truncated));
    let step_ms = as_ms(step(changelog));
    let moved = |now: Timestamp, then: Timestamp| now.ms() > then.ms() + step_ms;
    let moves = moved(safe_point, state.safe_point) || moved(truncated, state.truncated) || by_size.is_some();
    Ok(moves.then_some((safe_point, truncated)))
}

fn step(changelog: ChangelogRetention) -> Duration {
    STEP.min(changelog.time / 4).max(LEAST_STEP)
}

fn as_ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// Syncs what was applied so far, then lets the engine drop what the safe points that were applied before that allow.
async fn publish_all(member: &Member, engine: &SharedEngine, floors: &Floors) -> Result<()> {
    let applied: Vec<_> =
        member.host().groups().into_iter().map(|group| (group.id(), group.state())).collect();
    let synced = engine.clone();
    // An empty batch is behind all that was applied; synced, it makes that durable too.
    tokio::task::spawn_blocking(move || synced.write(Batch::new(), Durability::Synced))
        .await
        .map_err(|error| Error::unavailable(format!("the sync was cut short: {error}")))??;
    for (shard, state) in applied {
        floors.publish(shard, state.descriptor.range.clone(), state.floor());
    }
    // The changelog is written in order and never again: most of it would be rewritten late or never.
    let (engine, cut) = (engine.clone(), floors.truncated());
    let drop_all = move || cut.iter().try_for_each(|range| engine.drop_files(Family::Changelog, range));
    match tokio::task::spawn_blocking(drop_all).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!(%error, "files of the changelog could not be dropped; trying again"),
        Err(error) => tracing::debug!(%error, "dropping files of the changelog was cut short"),
    }
    Ok(())
}
