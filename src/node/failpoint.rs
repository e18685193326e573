//! Places where a test can have a node die: `KVORUM_FAILPOINT=NAME` or `NAME:N` (at the N-th time); or have a coordinator
//! stand still: `KVORUM_DELAY=NAME:MS:PERCENT`. Only in builds with assertions.

#[cfg(debug_assertions)]
use std::sync::OnceLock;
#[cfg(debug_assertions)]
use std::sync::atomic::{AtomicU64, Ordering};

use crate::txn::Action;
use crate::types::TxnCommand;

/// Called before an action of a coordinator or a recovery is carried out.
pub fn before(action: &Action) {
    let name = match action {
        Action::Send { command, .. } => match command {
            TxnCommand::Commit { .. } => "commit",
            TxnCommand::Prepare { .. } => "prepare",
            TxnCommand::Decide { .. } => "decide",
            TxnCommand::Abort { .. } => "abort",
            TxnCommand::Mark { .. } => "mark",
            TxnCommand::Finish { .. } => "finish",
            TxnCommand::Forget { .. } => "forget",
        },
        Action::Acknowledge(_) => "acknowledge",
        Action::Ended => "ended",
        Action::Ask { .. } | Action::Look { .. } => return,
    };
    reached(name);
}

#[cfg(debug_assertions)]
fn reached(name: &str) {
    static WANTED: OnceLock<Option<(String, u64)>> = OnceLock::new();
    static TIMES: AtomicU64 = AtomicU64::new(0);
    let wanted = WANTED.get_or_init(|| {
        let text = std::env::var("KVORUM_FAILPOINT").ok()?;
        let (name, times) = text.split_once(':').unwrap_or((&text, "1"));
        Some((name.to_string(), times.parse().ok()?))
    });
    if let Some((wanted, times)) = wanted
        && wanted == name
        && TIMES.fetch_add(1, Ordering::Relaxed) + 1 == *times
    {
        // As if the machine had lost its power: nothing is written, closed or answered.
        tracing::warn!(failpoint = name, "dying, as a test asked for");
        std::process::abort();
    }
}

#[cfg(not(debug_assertions))]
fn reached(_: &str) {}

/// How long a test wants this action to be held up, as by a process that is paused between two messages. Only the prepare
/// at the primary can be: `KVORUM_DELAY=primary-prepare:4500:5` holds up five in a hundred for four and a half seconds.
#[cfg(debug_assertions)]
pub fn delay(action: &Action) -> Option<std::time::Duration> {
    static WANTED: OnceLock<Option<(std::time::Duration, f64)>> = OnceLock::new();
    let Action::Send { command: TxnCommand::Prepare { listed: Some(_), .. }, .. } = action else {
        return None;
    };
    let wanted = WANTED.get_or_init(|| {
        let text = std::env::var("KVORUM_DELAY").ok()?;
        let (ms, percent) = text.strip_prefix("primary-prepare:")?.split_once(':')?;
        let share = f64::from(percent.parse::<u8>().ok()?.min(100)) / 100.0;
        Some((std::time::Duration::from_millis(ms.parse().ok()?), share))
    });
    wanted.and_then(|(delay, share)| rand::random_bool(share).then_some(delay))
}

#[cfg(not(debug_assertions))]
pub fn delay(_: &Action) -> Option<std::time::Duration> {
    None
}
