//! Metrics of the changelog's named consumers, told by the node that leads the system shard.

use std::collections::HashSet;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::core::Core;
use crate::client::ConsumerStatus;
use crate::types::{Result, ShardId};

/// How often they are measured.
const INTERVAL: Duration = Duration::from_secs(5);

/// Measures until the node stops.
pub async fn run(core: Weak<Core>, stopping: CancellationToken) {
    let mut every = tokio::time::interval(INTERVAL);
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // What was told before, so that it can be taken back: another node tells of it now, or nobody.
    let mut told = HashSet::new();
    loop {
        tokio::select! {
            () = stopping.cancelled() => return,
            _ = every.tick() => {}
        }
        let Some(core) = core.upgrade() else { return };
        let consumers = match consumers(&core).await {
            Ok(consumers) => consumers,
            Err(error) => {
                tracing::debug!(%error, "how far behind consumers are is not known now");
                Vec::new()
            }
        };
        let names: HashSet<String> = consumers.iter().map(|consumer| consumer.record.name.clone()).collect();
        consumers.iter().for_each(tell);
        told.difference(&names).for_each(|name| set(name, f64::NAN, f64::NAN));
        told = names;
    }
}

/// All consumers, where this node leads the system shard.
async fn consumers(core: &Arc<Core>) -> Result<Vec<ConsumerStatus>> {
    let leads = core.member().is_ok_and(|member| {
        member.replicas().of(ShardId::SYSTEM).is_some_and(|system| system.check_leads().is_ok())
    });
    match leads {
        true => core.client().await?.consumers().await,
        false => Ok(Vec::new()),
    }
}

fn tell(consumer: &ConsumerStatus) {
    let seconds = consumer.lag_ms.map_or(f64::NAN, |ms| ms as f64 / 1000.0);
    let entries = match consumer.truncated {
        // More than is kept.
        true => f64::INFINITY,
        false => consumer.lag_entries.map_or(f64::NAN, |entries| entries as f64),
    };
    set(&consumer.record.name, seconds, entries);
}

fn set(name: &str, seconds: f64, entries: f64) {
    metrics::gauge!("kvorum_consumer_lag_seconds", "consumer" => name.to_owned()).set(seconds);
    metrics::gauge!("kvorum_consumer_lag_entries", "consumer" => name.to_owned()).set(entries);
}
