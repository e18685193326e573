//! Named consumers: whose cursors the cluster keeps.

use std::collections::HashSet;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

use super::{ChangeStream, FollowOptions, Since};
use crate::changelog::Cursor;
use crate::client::Client;
use crate::client::request::{Asked, mismatched};
use crate::client::router::{Place, Target};
use crate::rpc::v1::consumer_request::What;
use crate::rpc::v1::session_reply::Reply;
use crate::rpc::v1::session_request::Request;
use crate::rpc::{convert, v1};
use crate::types::{Error, ErrorKind, KeyRange, Result, Timestamp};

/// A named consumer that this process has opened. Cheap to clone: clones share what was acknowledged.
#[derive(Clone, Debug)]
pub struct Consumer {
    client: Client,
    name: String,
    epoch: u64,
    options: FollowOptions,
    /// What was acknowledged last, here or before.
    cursor: Arc<Mutex<Cursor>>,
}

/// A named consumer, as the cluster knows it.
#[derive(Clone, PartialEq, Debug)]
pub struct ConsumerStatus {
    /// What is kept of it.
    pub record: v1::ConsumerRecord,
    /// How many milliseconds it is behind; `None` where it acknowledged nothing yet.
    pub lag_ms: Option<u64>,
    /// How many changes lie before it, nearly, in the shards that hold its keys; `None` where a shard does not tell.
    pub lag_entries: Option<u64>,
    /// Changes that it has not seen were cut off: it must start over with a scan.
    pub truncated: bool,
}

impl Client {
    /// Opens a named consumer, or makes it: it goes on behind what it acknowledged last, and if that is nothing it begins
    /// where `options` say, which is kept at once: what is committed from then on is told, whenever it follows. Whoever had
    /// it open can acknowledge no more.
    ///
    /// # Errors
    ///
    /// `Invalid` for a name that is none, for ranges that hold no key or are too many, for a place to begin in the future,
    /// and where the cluster has too many consumers.
    pub async fn consumer(&self, name: &str, options: FollowOptions) -> Result<Consumer> {
        self.open_consumer(name, options, false).await
    }

    /// The same, but what it acknowledged is forgotten: it begins where `options` say. So one starts over that was
    /// [too slow](Error::oldest), with [`Since::Scan`].
    ///
    /// # Errors
    ///
    /// As for [`consumer`](Self::consumer).
    pub async fn reset_consumer(&self, name: &str, options: FollowOptions) -> Result<Consumer> {
        self.open_consumer(name, options, true).await
    }

    async fn open_consumer(&self, name: &str, options: FollowOptions, reset: bool) -> Result<Consumer> {
        let followed = options.followed()?;
        let start = self.place(&followed, &options.since).await?;
        let start = Cursor::new(self.cluster()?, &followed, start).encode();
        let ranges = match options.ranges.is_empty() {
            true => Vec::new(),
            false => followed.into_iter().map(convert::range_to_proto).collect(),
        };
        let opening = Bytes::copy_from_slice(&rand::random::<u128>().to_be_bytes());
        let open = v1::OpenConsumer { name: name.to_owned(), ranges, reset, start, opening };
        let record = one(self.about_consumers(What::Open(open)).await?)?;
        let cursor = Arc::new(Mutex::new(Cursor::decode(&record.cursor)?));
        Ok(Consumer { client: self.clone(), name: record.name, epoch: record.epoch, options, cursor })
    }

    /// All named consumers, in the order of their names, and how far behind each is.
    ///
    /// # Errors
    ///
    /// `Unavailable` where the cluster does not answer by the client's deadline.
    pub async fn consumers(&self) -> Result<Vec<ConsumerStatus>> {
        let records = self.about_consumers(What::List(true)).await?;
        let now = self.timestamp().await?;
        let mut consumers = Vec::with_capacity(records.len());
        for record in records {
            consumers.push(self.lag_of(record, now).await?);
        }
        Ok(consumers)
    }

    /// Forgets a named consumer. Answers whether there was one.
    ///
    /// # Errors
    ///
    /// `Conflict` where it is used at this moment.
    pub async fn drop_consumer(&self, name: &str) -> Result<bool> {
        Ok(!self.about_consumers(What::Drop(name.to_owned())).await?.is_empty())
    }

    /// How many changes of the keys' shards were committed after a timestamp, nearly: those of other keys of a shard count
    /// too.
    ///
    /// # Errors
    ///
    /// `TooOld` with [`oldest`](Error::oldest) where the changelog was cut past the timestamp.
    pub async fn changes_after(&self, ranges: &[KeyRange], after: Timestamp) -> Result<u64> {
        let router = self.shared.map.router();
        let mut entries = 0;
        // A shard counts all of its changes: several of its ranges are asked about once.
        let mut asked = HashSet::new();
        for range in ranges.iter().flat_map(|range| router.pieces(range)) {
            let shard = router.shard_of(&range.start).map(|(shard, _)| shard);
            if shard.is_none_or(|shard| asked.insert(shard)) {
                entries += self.count_changes(&range, after).await?;
            }
        }
        Ok(entries)
    }

    async fn lag_of(&self, record: v1::ConsumerRecord, now: Timestamp) -> Result<ConsumerStatus> {
        let done = Timestamp(record.done_ts);
        if done == Timestamp::ZERO {
            return Ok(ConsumerStatus { record, lag_ms: None, lag_entries: None, truncated: false });
        }
        let ranges = convert::followed(record.ranges.clone(), Vec::new())?;
        let lag_ms = Some(now.ms().saturating_sub(done.ms()));
        let (lag_entries, truncated) = match self.changes_after(&ranges, done).await {
            Ok(entries) => (Some(entries), false),
            Err(error) if error.kind == ErrorKind::TooOld => (None, true),
            // What is known of the others is worth telling.
            Err(error) if error.kind == ErrorKind::Unavailable => (None, false),
            Err(error) => return Err(error),
        };
        Ok(ConsumerStatus { record, lag_ms, lag_entries, truncated })
    }

    /// Sends a request about consumers to the leader of the system shard. All of them may be repeated; the answer to one
    /// that changes something may be lost for good, and then that is said.
    pub(crate) async fn about_consumers(&self, what: What) -> Result<Vec<v1::ConsumerRecord>> {
        let build = |header, _: &Target| {
            Ok(Request::Consumer(v1::ConsumerRequest { header: Some(header), what: Some(what.clone()) }))
        };
        let place = Place::System;
        let reply = match what {
            What::List(_) => self.ask(Asked { place, build: &build, fresh: false, read: None }).await?,
            What::Open(_) | What::Acknowledge(_) | What::Drop(_) => self.write(place, &build).await?,
        };
        match reply {
            Reply::Consumer(reply) => Ok(reply.consumers),
            other => Err(mismatched(&other)),
        }
    }
}

fn one(records: Vec<v1::ConsumerRecord>) -> Result<v1::ConsumerRecord> {
    records
        .into_iter()
        .next()
        .ok_or_else(|| Error::corrupt("a node answered with no consumer to a request about one"))
}

impl Consumer {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it has acknowledged last, here or before it was opened; if that is nothing, where it began.
    pub fn cursor(&self) -> Cursor {
        self.cursor.lock().clone()
    }

    /// Follows from behind what was acknowledged last.
    ///
    /// # Errors
    ///
    /// As for [`Client::changes`].
    pub fn follow(&self) -> Result<ChangeStream> {
        self.client.changes(self.options.clone().since(Since::Cursor(self.cursor())))
    }

    /// Keeps a cursor: everything up to it is done with. Returns once that is durable.
    ///
    /// # Errors
    ///
    /// `Denied` where another process has opened the consumer meanwhile: stop. `Invalid` for a cursor before the last one.
    /// `Undetermined` where whether it is kept can't be known: a later one may be acknowledged nevertheless.
    pub async fn acknowledge(&self, cursor: &Cursor) -> Result<()> {
        let acknowledge =
            v1::Acknowledge { name: self.name.clone(), epoch: self.epoch, cursor: cursor.encode() };
        one(self.client.about_consumers(What::Acknowledge(acknowledge)).await?)?;
        *self.cursor.lock() = cursor.clone();
        Ok(())
    }
}
