//! One thread that writes for all groups of a node: everything waiting becomes one batch and one sync.
//!
//! Appends, votes, truncations and purges of all groups go through one queue, so that they reach the
//! disk in the order in which Raft decided them: a vote that overtook an append would lose committed
//! data. Callbacks are called in the same order, after the sync. The first failed write ends the writer:
//! nobody can know what a disk that failed a sync still holds. What is on it is known again when the store
//! is opened anew, so a node ends where its writer has [`failed`](LogWriter::failed).

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;

use openraft::storage::IOFlushed;
use parking_lot::Mutex;
use tokio::sync::{oneshot, watch};

use super::TypeConfig;
use super::log_reader::Log;
use crate::bugs::{self, Bug};
use crate::engine::{Batch, Durability, SharedEngine};
use crate::types::{Error, Result};

/// The writer takes no more into one batch once it has so many bytes.
const BATCH_BYTES: usize = 8 * 1024 * 1024;

/// What a write ends with.
pub(super) enum Done {
    /// Entries of a group: mark them as flushed in its cache, then tell openraft.
    Appended { log: Arc<Log>, sequence: u64, callback: IOFlushed<TypeConfig> },
    /// Somebody waits.
    Reply(oneshot::Sender<Result<()>>),
    /// Nobody waits: only the order counts.
    Nothing,
}

/// One write in the queue.
struct Item {
    batch: Batch,
    entries: u64,
    sync: bool,
    done: Done,
}

enum Message {
    Write(Item),
    Stop,
}

/// Counts of what the writer did, for metrics.
#[derive(Default, Debug)]
pub struct LogWriterStats {
    /// Batches written.
    pub batches: AtomicU64,
    /// Log entries in them.
    pub entries: AtomicU64,
    /// Bytes of keys and values in them.
    pub bytes: AtomicU64,
    /// Batches that were synced.
    pub syncs: AtomicU64,
}

/// The node's log writer. Shared by the log stores of all its groups.
pub struct LogWriter {
    queue: mpsc::Sender<Message>,
    stats: Arc<LogWriterStats>,
    failure: watch::Receiver<Option<Error>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl LogWriter {
    /// Starts the thread.
    ///
    /// # Errors
    ///
    /// `Unavailable` where the system gives no thread.
    pub fn start(engine: SharedEngine) -> Result<Arc<Self>> {
        let (queue, waiting) = mpsc::channel();
        let stats = Arc::new(LogWriterStats::default());
        let (failed, failure) = watch::channel(None);
        let mut worker = Worker { engine, waiting, stats: stats.clone(), failed };
        let thread =
            std::thread::Builder::new().name("log-writer".to_string()).spawn(move || worker.run()).map_err(
                |error| Error::unavailable(format!("can't start the log writer's thread: {error}")),
            )?;
        Ok(Arc::new(Self { queue, stats, failure, thread: Mutex::new(Some(thread)) }))
    }

    /// What it did so far.
    pub fn stats(&self) -> &LogWriterStats {
        &self.stats
    }

    /// Waits until a write fails, and says why. Never returns where the writer is stopped without that.
    pub async fn failed(&self) -> Error {
        let mut failure = self.failure.clone();
        match failure.wait_for(Option::is_some).await.map(|failed| failed.clone()) {
            Ok(Some(error)) => error,
            _ => std::future::pending().await,
        }
    }

    /// Writes a batch behind everything queued so far, and returns once it is on disk.
    ///
    /// # Errors
    ///
    /// The engine's, or `Unavailable` where the writer stopped.
    pub async fn write_synced(&self, batch: Batch) -> Result<()> {
        let (reply, replied) = oneshot::channel();
        self.push(batch, 0, true, Done::Reply(reply));
        replied.await.unwrap_or_else(|_| Err(stopped()))
    }

    /// Queues a batch that needs its place in the order, but that nobody waits for.
    pub(super) fn write_ordered(&self, batch: Batch) {
        self.push(batch, 0, false, Done::Nothing);
    }

    /// Queues a batch; `entries` of it are log entries.
    pub(super) fn push(&self, batch: Batch, entries: u64, sync: bool, done: Done) {
        let item = Item { batch, entries, sync, done };
        if let Err(mpsc::SendError(Message::Write(item))) = self.queue.send(Message::Write(item)) {
            item.done.complete(&Err(stopped()));
        }
    }

    /// Writes what is queued, then ends the thread. Later writes are refused. Blocks until it is done.
    pub fn stop(&self) {
        // An error means that the thread has ended already.
        let _ = self.queue.send(Message::Stop);
        if let Some(thread) = self.thread.lock().take()
            && thread.join().is_err()
        {
            tracing::error!("the log writer's thread panicked");
        }
    }
}

/// The thread holds the engine: whoever drops the writer last must find the engine closed once that returns.
/// RocksDB aborts the process where it is closed by a thread that is left over while the program ends.
impl Drop for LogWriter {
    fn drop(&mut self) {
        let own = self
            .thread
            .get_mut()
            .as_ref()
            .is_some_and(|thread| thread.thread().id() == std::thread::current().id());
        if !own {
            self.stop();
        }
    }
}

fn stopped() -> Error {
    Error::unavailable("the log writer has stopped: the node is shutting down or its disk failed")
}

impl Done {
    fn complete(self, result: &Result<()>) {
        match self {
            Self::Appended { log, sequence, callback } => {
                if result.is_ok() {
                    log.flushed(sequence);
                }
                callback.io_completed(result.clone().map_err(std::io::Error::other));
            }
            // A waiter that has gone needs no answer.
            Self::Reply(reply) => drop(reply.send(result.clone())),
            Self::Nothing => {}
        }
    }
}

struct Worker {
    engine: SharedEngine,
    waiting: mpsc::Receiver<Message>,
    stats: Arc<LogWriterStats>,
    failed: watch::Sender<Option<Error>>,
}

impl Worker {
    fn run(&mut self) {
        while let Ok(message) = self.waiting.recv() {
            let (items, stop) = self.gather(message);
            self.write(items);
            if stop {
                return;
            }
        }
    }

    /// Takes everything that waits, up to the bound.
    fn gather(&mut self, first: Message) -> (Vec<Item>, bool) {
        let mut items = Vec::new();
        let mut bytes = 0;
        let mut next = Some(first);
        while let Some(message) = next {
            match message {
                Message::Stop => return (items, true),
                Message::Write(item) => {
                    bytes += item.batch.size_bytes();
                    items.push(item);
                }
            }
            next = if bytes < BATCH_BYTES { self.waiting.try_recv().ok() } else { None };
        }
        (items, false)
    }

    fn write(&mut self, items: Vec<Item>) {
        if items.is_empty() {
            return;
        }
        let mut batch = Batch::new();
        let (mut sync, mut entries) = (false, 0);
        let mut done = Vec::with_capacity(items.len());
        for item in items {
            batch.append(item.batch);
            sync |= item.sync;
            entries += item.entries;
            done.push(item.done);
        }
        let before = self.failed.borrow().clone();
        let result = match before {
            Some(error) => Err(error),
            None => self.write_batch(batch, sync, entries).inspect_err(|error| {
                tracing::error!(%error, "the log writer failed and takes no more writes");
                self.failed.send_replace(Some(error.clone()));
            }),
        };
        for done in done {
            done.complete(&result);
        }
    }

    fn write_batch(&self, batch: Batch, sync: bool, entries: u64) -> Result<()> {
        let bytes = batch.size_bytes() as u64;
        let sync = sync && !bugs::on(Bug::AcknowledgeBeforeSync);
        let durability = if sync { Durability::Synced } else { Durability::Buffered };
        self.engine.write(batch, durability)?;
        self.stats.batches.fetch_add(1, Ordering::Relaxed);
        self.stats.entries.fetch_add(entries, Ordering::Relaxed);
        self.stats.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.stats.syncs.fetch_add(u64::from(sync), Ordering::Relaxed);
        Ok(())
    }
}
