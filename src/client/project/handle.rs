//! The handle of a projection that runs: how far it is, and waiting for it.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use crate::client::Client;
use crate::types::{Error, Result, Timestamp};

/// How a projection is doing.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ProjectionStatus {
    /// Everything that was committed up to here is in the read model; zero before the scan at the beginning is over.
    pub watermark: Timestamp,
    /// How many events this run has applied; those that only tell of progress count where a place was kept for them.
    pub events: u64,
    /// In how many transactions.
    pub commits: u64,
    /// What keeps it from going on, while it tries again.
    pub trying: Option<Error>,
    /// Why it has ended.
    pub ended: Option<Error>,
}

/// What the task and its handle share.
#[derive(Default)]
pub(super) struct Shared {
    status: Mutex<ProjectionStatus>,
}

impl Shared {
    pub(super) fn kept(&self, events: usize) {
        let mut status = self.status.lock();
        status.events += u64::try_from(events).unwrap_or(u64::MAX);
        status.commits += 1;
        status.trying = None;
    }

    pub(super) fn trying(&self, error: Error) {
        self.status.lock().trying = Some(error);
    }

    pub(super) fn end(&self, error: Error) {
        let mut status = self.status.lock();
        status.trying = None;
        status.ended = Some(error);
    }
}

/// A projection that runs, in a task of its own. Dropped, it stops: at whatever point, since the next start goes on behind
/// what was committed.
pub struct RunningProjection {
    pub(super) client: Client,
    pub(super) name: String,
    pub(super) shared: Arc<Shared>,
    pub(super) watermark: watch::Receiver<Timestamp>,
    pub(super) wanted: watch::Sender<Timestamp>,
    pub(super) task: AbortOnDropHandle<()>,
}

impl RunningProjection {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The watermark as it rises: everything that was committed up to it, of the keys that are followed, is in the read
    /// model. Zero before the scan at the beginning is over. The sender is gone once the projection has ended.
    pub fn watermark(&self) -> watch::Receiver<Timestamp> {
        self.watermark.clone()
    }

    /// How it is doing.
    pub fn status(&self) -> ProjectionStatus {
        let watermark = *self.watermark.borrow();
        ProjectionStatus { watermark, ..self.shared.status.lock().clone() }
    }

    /// How far the read model is behind the store, by the store's clock. `None` before the scan at the beginning is over.
    /// Up to about half a second is no more than the rhythm in which progress is told.
    ///
    /// # Errors
    ///
    /// `Unavailable` where the store gives no timestamp by the client's deadline.
    pub async fn lag(&self) -> Result<Option<Duration>> {
        let now = self.client.timestamp().await?;
        let watermark = *self.watermark.borrow();
        let behind = Duration::from_millis(now.ms().saturating_sub(watermark.ms()));
        Ok((watermark > Timestamp::ZERO).then_some(behind))
    }

    /// Waits until everything that was committed up to `ts` is in the read model: with the `commit_ts` of a write, whoever
    /// reads the model afterwards finds the write in it. It has progress told at once, also where nothing else
    /// happens. Answers the watermark. Read with a timestamp of the store taken afterwards, or simply without one.
    ///
    /// # Errors
    ///
    /// `Unavailable` where that takes longer than `deadline`; why the projection has ended, where it has.
    pub async fn wait_for(&self, ts: Timestamp, deadline: Duration) -> Result<Timestamp> {
        self.wanted.send_if_modified(|wanted| {
            let is_later = ts > *wanted;
            *wanted = ts.max(*wanted);
            is_later
        });
        let mut watermark = self.watermark.clone();
        let reached = tokio::time::timeout(deadline, watermark.wait_for(|reached| *reached >= ts)).await;
        match reached {
            Ok(Ok(reached)) => Ok(*reached),
            Ok(Err(_)) => Err(self.why()),
            Err(_) => {
                let status = self.status();
                let why = match status.trying {
                    Some(error) => format!("it tries again after: {}", error.message),
                    None => "it has more to apply, or a shard holds it back".to_owned(),
                };
                Err(Error::unavailable(format!(
                    "the projection {:?} is at {}, not yet at {ts}, after {deadline:?} ({why}): wait longer, or read the \
                     store itself",
                    self.name, status.watermark
                )))
            }
        }
    }

    /// Waits until it ends, which it does only where something is wrong, and tells what.
    pub async fn ended(&self) -> Error {
        let mut watermark = self.watermark.clone();
        while watermark.changed().await.is_ok() {}
        self.why()
    }

    /// Stops it, and waits until its task is gone. A commit that was under way may still take effect.
    pub async fn stop(self) {
        self.task.abort();
        // It was aborted, or had ended: both are what is wanted.
        let _ended = self.task.await;
    }

    fn why(&self) -> Error {
        let ended = self.shared.status.lock().ended.clone();
        ended.unwrap_or_else(|| {
            Error::unavailable(format!(
                "the task of the projection {:?} is gone without a reason: `apply` or `clear` has panicked, or the runtime \
                 has ended; see the program's log",
                self.name
            ))
        })
    }
}
