//! The handle of one attempt at a transaction: reads at its start timestamp, writes kept until the end.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::OnceCell;
use tokio::time::Instant;

use super::buffer::{self, Buffer, Write};
use super::scan::TxnScan;
use super::typed::TypedTxn;
use crate::client::{Client, ScanOptions};
use crate::rpc::validate;
use crate::types::{Error, KeyRange, Record, RequestId, Result, Timestamp};

/// A transaction under way: what the closure of [`Client::transact`](super::super::Client::transact) works with.
///
/// All reads see one instant, the start timestamp, and over it what the transaction itself wrote. Writes are kept
/// here until the closure returns; nothing is sent before, and nothing is locked. Cheap to clone; clones are the
/// same transaction, and calls may run side by side. Once the closure has returned all calls are refused.
#[derive(Clone)]
pub struct Txn {
    pub(super) inner: Arc<Inner>,
}

pub(super) struct Inner {
    pub(super) client: Client,
    /// Taken by the first read.
    start: OnceCell<Timestamp>,
    pub(super) buffer: Mutex<Buffer>,
}

impl Txn {
    /// A transaction of this client, whose deadline is the transaction's.
    pub(super) fn new(client: Client) -> Self {
        Self { inner: Arc::new(Inner { client, start: OnceCell::new(), buffer: Mutex::default() }) }
    }

    /// The timestamp that all reads are of: above all that were handed out before the first of them.
    ///
    /// # Errors
    /// `Unavailable` where none could be had by the deadline.
    pub async fn start_ts(&self) -> Result<Timestamp> {
        self.inner.buffer.lock().check_open()?;
        self.inner.start_ts().await
    }

    /// Reads a value. A value that the transaction itself wrote has no timestamps and no version number yet: they
    /// are 0.
    ///
    /// # Errors
    /// Of every read: `Unavailable` where no node could serve it by the deadline; `TooOld` where the start
    /// timestamp's versions are gone; `Invalid` for an empty or overlong key, for a key that the transaction adds to
    /// and that is no counter, and once the transaction has ended.
    pub async fn get(&self, key: impl AsRef<[u8]>) -> Result<Option<Record>> {
        Ok(self.get_many([key]).await?.pop().flatten())
    }

    /// Reads several keys, over any number of shards, in their order. Limits are those of
    /// [`Client::get_many`](super::super::Client::get_many).
    pub async fn get_many<K: AsRef<[u8]>>(
        &self,
        keys: impl IntoIterator<Item = K>,
    ) -> Result<Vec<Option<Record>>> {
        let keys: Vec<_> = keys.into_iter().map(|key| Bytes::copy_from_slice(key.as_ref())).collect();
        validate::keys(&keys)?;
        let own = self.inner.buffer.lock().own(&keys)?;
        let is_open = |own: &Option<Write>| own.as_ref().is_none_or(Write::needs_base);
        let asked: Vec<Bytes> =
            keys.iter().zip(&own).filter(|(_, own)| is_open(own)).map(|(key, _)| key.clone()).collect();
        let mut found = match asked.is_empty() {
            true => Vec::new(),
            false => self.inner.read(&asked).await?,
        }
        .into_iter();
        self.inner.buffer.lock().note_reads(&asked)?;
        let show = |(key, own): (&Bytes, &Option<Write>)| {
            let base = if is_open(own) { found.next().flatten() } else { None };
            buffer::seen(key, own.as_ref(), base)
        };
        keys.iter().zip(&own).map(show).collect()
    }

    /// Reads the rows of a range in order, both ways, with what the transaction had written when the scan began.
    /// What of the range was handed out is watched: a key that appears in it, changes or vanishes by the time of the
    /// commit is a conflict. What was not looked at does not matter. Wrong options are the stream's first item, as an
    /// error; a timestamp among them is wrong, since the transaction has its own.
    pub fn scan(&self, options: ScanOptions) -> TxnScan {
        TxnScan::new(Arc::clone(&self.inner), options)
    }

    /// Writes a value.
    ///
    /// # Errors
    /// Of every write: `Invalid` for an empty or overlong key or value, over the limits of a transaction, in a
    /// read-only one, and once it has ended.
    pub fn put(&self, key: impl AsRef<[u8]>, value: impl Into<Bytes>) -> Result<()> {
        self.inner.buffer.lock().write(key.as_ref(), Write::Put(value.into()))
    }

    /// Removes a key. Removing an absent key is no error.
    pub fn delete(&self, key: impl AsRef<[u8]>) -> Result<()> {
        self.inner.buffer.lock().write(key.as_ref(), Write::Delete)
    }

    /// Adds to a counter (a decimal number as text; an absent key counts as 0) without reading it: transactions that
    /// only add to a key do not change what each other read.
    ///
    /// # Errors
    /// Besides those of every write: `Invalid` where the transaction itself wrote what is no counter. Where the
    /// stored value is none, or the sum does not fit in 64 bits, the commit is refused as `Invalid`.
    pub fn add(&self, key: impl AsRef<[u8]>, delta: i64) -> Result<()> {
        self.inner.buffer.lock().write(key.as_ref(), Write::Add(delta))
    }

    /// Starts a saga: it is started if, and at the moment when, the transaction is committed.
    ///
    /// # Errors
    /// As for [`put`](Self::put). Where the id is another saga's, the commit is refused as `Invalid`.
    pub fn start_saga(&self, start: crate::client::SagaStart) -> Result<()> {
        self.inner.buffer.lock().start_saga(start)
    }

    /// The transaction is the step of a saga, and comes to this.
    pub(in crate::client) fn set_step(&self, step: crate::rpc::v1::SagaStepDone) {
        self.inner.buffer.lock().set_step(step);
    }

    /// Makes the transaction read-only: its reads are not watched, there is no commit that could be refused, and
    /// writes are refused from here on.
    ///
    /// # Errors
    /// `Invalid` where it has written already.
    pub fn read_only(&self) -> Result<()> {
        self.inner.buffer.lock().read_only()
    }

    /// This transaction, for values of type `T`, stored as JSON.
    pub fn typed<T: serde::Serialize + serde::de::DeserializeOwned>(&self) -> TypedTxn<T> {
        TypedTxn::new(self.clone())
    }

    /// Whether it could be committed as it stands, with one write at least: `Invalid` over the limits of a transaction.
    pub(in crate::client) fn check_limits(&self) -> Result<()> {
        self.inner.buffer.lock().check_commit()
    }

    /// The first key in a range that it writes.
    pub(in crate::client) fn written_within(&self, range: &KeyRange) -> Option<Bytes> {
        self.inner.buffer.lock().own_within(range).into_iter().next().map(|(key, _)| key)
    }

    /// Ends it without a trace.
    pub(super) fn abandon(&self) {
        self.inner.buffer.lock().end();
    }

    /// Ends it: commits what was written. Answers where it stands in the order of all transactions: at its commit
    /// timestamp, or, without writes, at the timestamp that it read at (0 without reads too).
    pub(super) async fn commit(&self, until: Instant) -> Result<Timestamp> {
        let started = self.inner.start.get().copied();
        let commit = self.inner.buffer.lock().end();
        let Some(mut commit) = commit else { return Ok(started.unwrap_or_default()) };
        let shared = &self.inner.client.shared;
        let id = match started {
            Some(seen) => RequestId { seen, unique: rand::random() },
            // What read nothing has nothing that must be unchanged since: any timestamp is early enough.
            None => shared.new_id(until).await?,
        };
        commit.start_ts = id.seen.0;
        validate::commit(&commit)?;
        shared.commit(commit, id, until).await
    }
}

impl fmt::Debug for Txn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Txn").field("start_ts", &self.inner.start.get()).finish_non_exhaustive()
    }
}

impl Inner {
    pub(super) async fn start_ts(&self) -> Result<Timestamp> {
        self.start.get_or_try_init(|| self.client.timestamp()).await.copied()
    }

    /// Reads keys at the start timestamp. The first read takes it: where its keys are of one shard, the shard's
    /// leader does, which saves a round.
    async fn read(&self, keys: &[Bytes]) -> Result<Vec<Option<Record>>> {
        let mut first = None;
        let slot = &mut first;
        let begin = || async move {
            let values = self.client.get_many(keys).await?;
            *slot = Some(values.records);
            Ok::<_, Error>(values.at_ts)
        };
        let start = *self.start.get_or_try_init(begin).await?;
        match first {
            Some(records) => Ok(records),
            None => Ok(self.client.get_many_at(keys, start).await?.records),
        }
    }
}
