//! Projections: read models that are kept in the store itself, each event applied once.
//!
//! `checkpoint` is what is kept beside the read model, `writer` the transactions that change both together, `run` the task
//! that follows the changelog, `handle` what the program holds of it.
//!
//! Why an event takes effect once: each transaction reads the checkpoint, goes on only where that is what this run
//! believes, and moves it together with what the events do. So of all transactions that start at one place a single one is
//! committed, whoever sends them, and however late one arrives whose answer was lost.

mod checkpoint;
mod handle;
mod run;
mod writer;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

pub use handle::{ProjectionStatus, RunningProjection};

use super::changes::{Event, FollowOptions};
use super::{Client, ScanOptions, Txn};
use crate::rpc::{convert, validate};
use crate::types::{Error, ErrorKind, Result, Timestamp};
use checkpoint::{Checkpoint, Place};
use handle::Shared;
use run::{Pace, Run};
use writer::Writer;

/// Events in one transaction, unless the builder says otherwise.
const BATCH_EVENTS: usize = 256;
/// And their bytes of keys and values. One event may be larger.
const BATCH_BYTES: usize = 1024 * 1024;
/// How often the place is kept while nothing happens.
const IDLE: Duration = Duration::from_secs(30);
/// How long one transaction may take, with all its attempts.
const DEADLINE: Duration = Duration::from_secs(10);
/// How often a projection is opened where whether it was can't be known.
const OPENINGS: u32 = 3;
/// Keys that [`clear_prefix`] removes at a time.
const CLEARED_TOGETHER: u64 = 1000;

/// A read model of a program's own, kept in the store: what it is made of, and how. [`Client::project`] runs it.
///
/// ```no_run
/// use kvorum::client::{Before, Event, FollowOptions, Projection, Since, Txn, clear_prefix};
///
/// /// How many keys below `order/` there are.
/// struct Orders;
///
/// impl Projection for Orders {
///     fn follows(&self) -> FollowOptions {
///         FollowOptions::prefix("order/").since(Since::Scan).before_images()
///     }
///
///     async fn apply(&self, event: &Event, txn: &Txn) -> kvorum::Result<()> {
///         match event {
///             Event::Row(_) => txn.add("view/orders", 1)?,
///             Event::Changes(changes) => {
///                 for change in &changes.changes {
///                     let (was, is) = (change.before != Before::Absent, change.value.is_some());
///                     txn.add("view/orders", i64::from(is) - i64::from(was))?;
///                 }
///             }
///             Event::Progress(_) => {}
///         }
///         Ok(())
///     }
///
///     async fn clear(&self, txn: &Txn) -> kvorum::Result<bool> {
///         clear_prefix(txn, "view/").await
///     }
/// }
///
/// # async fn example(client: kvorum::Client) -> kvorum::Result<()> {
/// let orders = client.project("orders", Orders).start().await?;
/// let written = client.put("order/7", "pear").await?;
/// orders.wait_for(written.commit_ts, std::time::Duration::from_secs(5)).await?;
/// println!("{:?} orders", client.get("view/orders").await?);
/// # Ok(())
/// # }
/// ```
pub trait Projection: Send + Sync + 'static {
    /// What it follows, and where it begins when nothing of it is kept yet. Asked once at each start. With `Since::Scan` it
    /// is made of everything that is there.
    fn follows(&self) -> FollowOptions;

    /// Applies an event: a row of the scan at the beginning, a transaction, or progress (with nothing to do, as a rule).
    /// It reads and writes the read model through `txn`, in which events before this one may have been applied already.
    /// The transaction is committed with the place behind its last event; where others are in the way it is made again, with
    /// `apply` called again for the same events. So it must do nothing outside of `txn`, and keep nothing in `self` that a
    /// second call must not find. It writes outside of what it follows.
    ///
    /// # Errors
    ///
    /// `Conflict`, `Unavailable`, `Moved` and `Undetermined`, as reads of the transaction give them: the events are applied
    /// again, until it goes well. Any other ends the projection with that error: nothing of the transaction is committed,
    /// nothing is skipped, and the next start begins with the same event.
    fn apply(&self, event: &Event, txn: &Txn) -> impl Future<Output = Result<()>> + Send;

    /// Removes some of the read model, and answers whether there may be more of it: it is called until it says `false`, in a
    /// transaction each time, before the projection begins anew ([`Project::restart`]). One whose model lies under a prefix
    /// calls [`clear_prefix`]. Without it a projection can't be restarted.
    ///
    /// # Errors
    ///
    /// As for [`apply`](Self::apply).
    fn clear(&self, txn: &Txn) -> impl Future<Output = Result<bool>> + Send {
        let _unused = txn;
        async {
            Err(Error::invalid(
                "this projection can't be restarted, since it does not say how to remove what it has made: write its \
                 `clear`, or remove that by hand and run it under another name",
            ))
        }
    }
}

/// Removes up to 1,000 of the keys that begin with `prefix`; answers whether there may be more.
///
/// # Errors
///
/// Those of reads and writes of the transaction.
pub async fn clear_prefix(txn: &Txn, prefix: impl AsRef<[u8]>) -> Result<bool> {
    let options = ScanOptions::prefix(prefix).keys_only().limit_rows(CLEARED_TOGETHER);
    let rows = txn.scan(options).collect_rows().await?;
    rows.iter().try_for_each(|row| txn.delete(&row.key))?;
    Ok(rows.len() as u64 == CLEARED_TOGETHER)
}

/// Options of a projection, made by [`Client::project`], and its start.
#[must_use]
pub struct Project<P> {
    client: Client,
    name: String,
    projection: P,
    checkpoint: Bytes,
    pace: Pace,
    restart: bool,
}

impl Client {
    /// A projection that this process will run. The name, 1 to 64 of `a-z`, `0-9`, `_` and `-`, is what its place is kept
    /// under: at the key `projection/NAME`, unless [`Project::checkpoint`] says otherwise.
    pub fn project<P: Projection>(&self, name: &str, projection: P) -> Project<P> {
        Project {
            client: self.clone(),
            name: name.to_owned(),
            projection,
            checkpoint: format!("projection/{name}").into(),
            pace: Pace { events: BATCH_EVENTS, bytes: BATCH_BYTES, idle: IDLE },
            restart: false,
        }
    }
}

impl<P: Projection> Project<P> {
    /// The key where the place is kept, outside of what is followed.
    pub fn checkpoint(mut self, key: impl AsRef<[u8]>) -> Self {
        self.checkpoint = Bytes::copy_from_slice(key.as_ref());
        self
    }

    /// The most events in one transaction; 256 without it, at least 1. Fewer are taken while a transaction gets too
    /// large, meets conflicts, or is not done within ten seconds.
    pub fn batch_events(mut self, events: usize) -> Self {
        self.pace.events = events.max(1);
        self
    }

    /// A transaction takes no more events once they have so many bytes of keys and values; 1 MiB without it.
    pub fn batch_bytes(mut self, bytes: usize) -> Self {
        self.pace.bytes = bytes;
        self
    }

    /// How often the place is kept while nothing happens; 30 s without it. Well below the time that changes are kept,
    /// else a projection that was idle for long can't go on after a stop.
    pub fn idle_checkpoint(mut self, every: Duration) -> Self {
        self.pace.idle = every;
        self
    }

    /// Begins anew, whatever is kept: the read model is removed with [`Projection::clear`], then the projection begins where
    /// it says that it [`follows`](Projection::follows). So one starts over whose place was cut off
    /// ([`ErrorKind::TooOld`]). A start that was stopped while it cleared is taken up by the next one, with or without
    /// this. Until it has caught up, readers see a read model that lacks what is not applied yet.
    pub fn restart(mut self) -> Self {
        self.restart = true;
        self
    }

    /// Takes the projection over, from the place that is kept, or begins it; then follows in a task of its own. Where it begins is
    /// kept at once, also for `Since::Now`.
    ///
    /// **The last one to start it owns it**, as with [named consumers](Client::consumer): another process that ran it applies
    /// nothing more, and learns so with its next transaction, as the end of its run with [`ErrorKind::Denied`].
    ///
    /// # Errors
    ///
    /// `Invalid` for a name that is none, for a checkpoint inside of what is followed or that holds something else, and where
    /// other keys were followed until now. `Unavailable` and `Undetermined` where the store does not answer: start again,
    /// that is harmless.
    ///
    /// What ends it later is told by [`RunningProjection::ended`]: an error of [`Projection::apply`]; `TooOld` with
    /// [`oldest`](Error::oldest) where changes were cut off that it had not applied: [`restart`](Self::restart) it;
    /// `Denied` where another process has started it, or removed its checkpoint; `Invalid` where it writes into what it
    /// follows, or one event alone is more than a transaction can hold. While shards can't be reached it goes on trying.
    pub async fn start(self) -> Result<RunningProjection> {
        let (mut writer, restart, pace) = self.writer(DEADLINE)?;
        for opening in 1.. {
            match writer.open(restart).await {
                Ok(()) => break,
                // Opened or not: the next attempt finds out.
                Err(error) if error.kind == ErrorKind::Undetermined && opening < OPENINGS => {}
                Err(error) => return Err(error),
            }
        }
        let (client, name) = (writer.client.clone(), writer.name.clone());
        let shared = Arc::new(Shared::default());
        let (watermark, told) = watch::channel(Timestamp::ZERO);
        let (wanted, wants) = watch::channel(Timestamp::ZERO);
        let run = Run::new(writer, pace, Arc::clone(&shared), watermark, wants);
        let task = AbortOnDropHandle::new(tokio::spawn(run.run()));
        Ok(RunningProjection { client, name, shared, watermark: told, wanted, task })
    }

    /// What works, once the options are checked: a run of its own, which believes nothing yet.
    fn writer(self, deadline: Duration) -> Result<(Writer<P>, bool, Pace)> {
        validate::name("a projection", &self.name)?;
        validate::key(&self.checkpoint)?;
        let options = self.projection.follows();
        let followed = options.followed()?;
        if followed.iter().any(|range| range.contains(&self.checkpoint)) {
            return Err(Error::invalid(format!(
                "the projection {:?} keeps its place at the key {}, which lies in what it follows, so it would follow \
                 itself without end: follow less, or choose a key outside with `checkpoint`",
                self.name,
                convert::printable(&self.checkpoint)
            )));
        }
        let writer = Writer {
            cluster: self.client.cluster()?,
            client: self.client,
            projection: self.projection,
            name: self.name,
            key: self.checkpoint,
            options,
            followed,
            believed: Checkpoint { run: rand::random(), place: Place::Clearing },
            deadline,
        };
        Ok((writer, self.restart, self.pace))
    }
}

#[cfg(test)]
mod tests;
