//! Keeping logs short: by bytes, by entries and by age.

use std::collections::HashMap;
use std::sync::Arc;

use tokio::time::Instant;

use super::core::Env;
use super::inbound::Registry;
use super::{Group, Timing};
use crate::types::ShardId;

/// What was applied when a group's log was last looked at for its age.
struct Mark {
    at: Instant,
    applied: u64,
}

/// Looks at all logs again and again, until the node shuts down.
pub(super) async fn keep_house(registry: Arc<Registry>, env: Arc<Env>) {
    let timing = &env.timing;
    let mut marks: HashMap<ShardId, Mark> = HashMap::new();
    loop {
        tokio::select! {
            () = tokio::time::sleep(timing.housekeeping) => {}
            () = env.closing.cancelled() => return,
        }
        // Often enough that the two clocks don't drift apart between two looks.
        env.wakefulness.look(Instant::now(), std::time::SystemTime::now());
        for group in registry.groups() {
            let Some(index) = cut_point(&group, timing, &mut marks) else { continue };
            tracing::debug!(shard = %group.id(), index, "cuts the log");
            if let Err(error) = group.trim_log(index).await {
                tracing::warn!(shard = %group.id(), error = %error.message, "the log was not cut");
            }
        }
    }
}

/// Up to where a group's log is to be cut; `None` where it is short and young enough. Half of what may be
/// kept stays, so that the next cut is not due at once.
fn cut_point(group: &Group, timing: &Timing, marks: &mut HashMap<ShardId, Mark>) -> Option<u64> {
    let core = group.core();
    let applied = core.replica.applied().index();
    let (first, _) = core.log.bounds()?;
    let mut cut = None;
    if applied.saturating_sub(first) >= timing.log_keep_entries {
        cut = cut.max(Some(applied - timing.log_keep_entries / 2));
    }
    if core.log.size_bytes() > timing.log_keep_bytes {
        match core.log.purge_point(timing.log_keep_bytes / 2) {
            Ok(index) => cut = cut.max(index),
            Err(error) => {
                tracing::error!(shard = %group.id(), error = %error.message, "the log can't be measured");
            }
        }
    }
    let mark = marks.entry(group.id()).or_insert_with(|| Mark { at: Instant::now(), applied });
    if mark.at.elapsed() >= timing.log_keep_age {
        cut = cut.max(Some(mark.applied));
        *mark = Mark { at: Instant::now(), applied };
    }
    cut.map(|index| index.min(applied)).filter(|index| *index >= first)
}
