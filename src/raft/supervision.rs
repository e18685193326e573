//! Keeping a group's Raft core running, and telling who leads.
//!
//! openraft stops a core for good on any error of its storage, and on a panic. The task here notices,
//! says so, and starts the core again from disk after a pause that grows.

use std::sync::Arc;
use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver;
use tokio::time::Instant;

use super::core::Core;
use super::{Group, Leadership};

/// The longest pause before a core is started again.
const RESTART_MAX: Duration = Duration::from_secs(60);
/// A core that ran for so long has earned a short pause again.
const RAN_WELL: Duration = Duration::from_secs(60);

/// Runs until the node shuts down.
pub(super) async fn supervise(group: Arc<Group>) {
    let env = Arc::clone(group.env());
    let mut pause = env.timing.restart_min;
    loop {
        let core = group.core();
        let started = Instant::now();
        let fault = tokio::select! {
            fault = follow(&group, &core) => fault,
            () = env.closing.cancelled() => break,
        };
        group.publish(Leadership::Stopped { fault: fault.clone() });
        if env.closing.is_cancelled() {
            break;
        }
        tracing::error!(shard = %group.id(), %fault, "a replica has stopped and is started again");
        metrics::counter!("kvorum_replica_faults_total", "shard" => group.id().to_string()).increment(1);
        core.stop(&env.writer).await;
        drop(core);
        if started.elapsed() >= RAN_WELL {
            pause = env.timing.restart_min;
        }
        if !restart(&group, &mut pause).await {
            break;
        }
    }
    group.publish(Leadership::Stopped { fault: "the node is shutting down".to_string() });
    group.core().stop(&env.writer).await;
}

/// Starts the core again, as often as it takes; `false` where the node shuts down first.
async fn restart(group: &Arc<Group>, pause: &mut Duration) -> bool {
    let env = group.env();
    loop {
        let jittered = pause.mul_f64(rand::random_range(0.75..1.25));
        *pause = (*pause * 2).min(RESTART_MAX);
        tokio::select! {
            () = tokio::time::sleep(jittered) => {}
            () = env.closing.cancelled() => return false,
        }
        match Core::start(env, group.id()).await {
            Ok(core) => {
                tracing::info!(shard = %group.id(), "a replica runs again");
                group.restarted(Arc::new(core));
                return true;
            }
            Err(error) => {
                tracing::error!(shard = %group.id(), error = %error.message, "a replica can't be started");
                group.publish(Leadership::Stopped { fault: error.message });
            }
        }
    }
}

/// Publishes who leads until the core stops; says why it did.
async fn follow(group: &Group, core: &Core) -> String {
    let mut metrics = core.metrics.clone();
    loop {
        let leadership = Leadership::of(&metrics.borrow_and_update());
        if let Leadership::Stopped { fault } = leadership {
            return fault;
        }
        group.publish(leadership);
        if metrics.changed().await.is_err() {
            return "the Raft core has ended without a reason: it panicked".to_string();
        }
    }
}
