//! The time that sagas go by: that of the store's timestamps, read from this node's clock in between.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::time::{Duration, Instant};

use crate::types::Timestamp;

/// A clock that may be put forward. Cheap to clone; clones are the same clock.
#[derive(Clone)]
pub struct Clock(Arc<Inner>);

struct Inner {
    /// When it was started here.
    started: Instant,
    /// What it showed at least then, in milliseconds since 1970: raised by what the store's timestamps say later.
    base_ms: AtomicU64,
    /// Whether waits are skipped while nothing else is to be done.
    skips: bool,
}

impl Clock {
    /// A clock that shows nothing of use yet: it is set by the first timestamp that it sees.
    pub fn new(skips: bool) -> Self {
        Self(Arc::new(Inner { started: Instant::now(), base_ms: AtomicU64::new(0), skips }))
    }

    /// The time, in milliseconds since 1970. Never goes back.
    pub fn now_ms(&self) -> u64 {
        self.0.base_ms.load(Ordering::Relaxed) + self.elapsed_ms()
    }

    fn elapsed_ms(&self) -> u64 {
        u64::try_from(self.0.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Notes a timestamp that was handed out by now: the clock shows no less from here on.
    pub fn note(&self, ts: Timestamp) {
        self.advance_to(ts.unix_ms());
    }

    /// Puts the clock forward.
    pub fn advance_to(&self, at_ms: u64) {
        self.0.base_ms.fetch_max(at_ms.saturating_sub(self.elapsed_ms()), Ordering::Relaxed);
    }

    /// Whether waits are skipped.
    pub fn skips(&self) -> bool {
        self.0.skips
    }

    /// How long it is until a time.
    pub fn until(&self, at_ms: u64) -> Duration {
        Duration::from_millis(at_ms.saturating_sub(self.now_ms()))
    }
}
