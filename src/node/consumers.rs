//! Named consumers of the changelog: whose cursors the cluster keeps.
//!
//! A consumer is a key of the system keyspace, changed by compare-and-swap at the leader of the system shard. Each
//! opening raises its epoch, and an acknowledgement under an older one is refused: two processes that consume under one
//! name can't move the cursor by turns. It never moves back: what was acknowledged is a prefix of the changelog.

use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::reads::Reads;
use super::replica::Replica;
use crate::changelog::{Cursor, CursorState};
use crate::codec::{self, keyspace};
use crate::rpc::v1::consumer_request::What;
use crate::rpc::{convert, v1};
use crate::shard::PageRequest;
use crate::types::{
    ClusterId, Direction, Error, ErrorKind, Expect, KeyRange, Operation, Outcome, ReadAt, Record, RequestId,
    Result, Timestamp, limits,
};

/// The most consumers of a cluster.
const MAX_CONSUMERS: usize = 1000;

/// A consumer as it is stored.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct Consumer {
    epoch: u64,
    /// Encoded; empty where nothing was acknowledged.
    cursor: Bytes,
    created: Timestamp,
    acknowledged: Timestamp,
    /// Users' keys.
    ranges: Vec<KeyRange>,
}

impl Consumer {
    /// Opens a consumer, or makes it.
    fn open(old: Option<Self>, ranges: Vec<KeyRange>, reset: bool, now: Timestamp) -> Self {
        let fresh = || Self {
            epoch: 0,
            cursor: Bytes::new(),
            created: now,
            acknowledged: Timestamp::ZERO,
            ranges: Vec::new(),
        };
        let mut consumer = old.unwrap_or_else(fresh);
        consumer.epoch += 1;
        consumer.ranges = ranges;
        if reset {
            consumer.cursor = Bytes::new();
            consumer.acknowledged = Timestamp::ZERO;
        }
        consumer
    }

    /// Moves the cursor.
    fn acknowledge(
        mut self,
        name: &str,
        epoch: u64,
        cursor: (&Cursor, Bytes),
        now: Timestamp,
    ) -> Result<Self> {
        if epoch != self.epoch {
            return Err(Error::new(
                ErrorKind::Conflict,
                format!(
                    "consumer {name} was opened again, under epoch {}, and this acknowledgement bears epoch {epoch}: \
                     another process has taken it over; stop, or open it again",
                    self.epoch
                ),
            ));
        }
        let (cursor, bytes) = cursor;
        if !self.cursor.is_empty() {
            let kept = Cursor::decode(&self.cursor)?;
            if place(cursor.state()) < place(kept.state()) {
                return Err(Error::invalid(format!(
                    "the cursor that is acknowledged lies before the one that consumer {name} has acknowledged already: \
                     acknowledge in order, or open it with `reset` to begin anew"
                )));
            }
        }
        self.cursor = bytes;
        self.acknowledged = now;
        Ok(self)
    }

    fn done(&self) -> Result<Timestamp> {
        if self.cursor.is_empty() {
            return Ok(Timestamp::ZERO);
        }
        Ok(match Cursor::decode(&self.cursor)?.state() {
            CursorState::Following { after } => *after,
            CursorState::Scanning { .. } => Timestamp::ZERO,
        })
    }

    fn to_proto(&self, name: &str) -> Result<v1::ConsumerRecord> {
        Ok(v1::ConsumerRecord {
            name: name.to_owned(),
            epoch: self.epoch,
            cursor: self.cursor.clone(),
            done_ts: self.done()?.0,
            created_ts: self.created.0,
            acknowledged_ts: self.acknowledged.0,
            ranges: self.ranges.iter().cloned().map(convert::range_to_proto).collect(),
        })
    }
}

/// The order of places: by timestamp; at one, the scan comes before what follows it.
fn place(state: &CursorState) -> (Timestamp, bool, &[u8]) {
    match state {
        CursorState::Scanning { at, next } => (*at, false, next),
        CursorState::Following { after } => (*after, true, &[]),
    }
}

/// Serves requests about consumers at the system shard.
pub struct Consumers<'a> {
    /// The cluster, which cursors must belong to.
    pub cluster: ClusterId,
    /// The system shard's replica of this node.
    pub system: &'a Arc<Replica>,
    /// Reads of it.
    pub reads: Reads<'a>,
    /// Until when an answer is wanted.
    pub deadline: Instant,
}

impl Consumers<'_> {
    /// Serves one request.
    ///
    /// # Errors
    ///
    /// `Moved` where this node does not lead the system shard; `Conflict` where another process has taken the consumer
    /// over; `Invalid` where there is no such consumer, or the cursor is none or lies before the last one.
    pub async fn serve(&self, what: What) -> Result<v1::ConsumerReply> {
        self.system.check_leads()?;
        let consumers = match what {
            What::List(_) => self.list().await?,
            What::Open(open) => vec![self.open(open).await?],
            What::Acknowledge(acknowledge) => vec![self.acknowledge(acknowledge).await?],
            What::Drop(name) => self.drop(&name).await?.into_iter().collect(),
        };
        Ok(v1::ConsumerReply { consumers })
    }

    async fn open(&self, open: v1::OpenConsumer) -> Result<v1::ConsumerRecord> {
        convert::check_name("a consumer", &open.name)?;
        let ranges = match open.ranges.is_empty() {
            true => Vec::new(),
            false => convert::followed(open.ranges, Vec::new())?,
        };
        let change = |old: Option<Consumer>, now| Ok(Consumer::open(old, ranges.clone(), open.reset, now));
        if self.find(&open.name).await?.is_none() && self.list().await?.len() >= MAX_CONSUMERS {
            return Err(Error::invalid(format!(
                "the cluster has {MAX_CONSUMERS} consumers, the most it keeps: drop one that is not needed any more \
                 (`kvorum consumer drop`)"
            )));
        }
        self.change(&open.name, change).await
    }

    async fn acknowledge(&self, acknowledge: v1::Acknowledge) -> Result<v1::ConsumerRecord> {
        let v1::Acknowledge { name, epoch, cursor: bytes } = acknowledge;
        convert::check_name("a consumer", &name)?;
        let cursor = Cursor::decode(&bytes)?;
        let change = |old: Option<Consumer>, now| {
            let consumer = old.ok_or_else(|| {
                Error::invalid(format!("there is no consumer {name}: open it before acknowledging"))
            })?;
            // Whichever ranges it has: they are the consumer's own business.
            cursor.check(self.cluster, &consumer.ranges).or_else(|error| match cursor.state() {
                CursorState::Scanning { .. } => Ok(()),
                CursorState::Following { .. } => Err(error),
            })?;
            consumer.acknowledge(&name, epoch, (&cursor, bytes.clone()), now)
        };
        self.change(&name, change).await
    }

    async fn drop(&self, name: &str) -> Result<Option<v1::ConsumerRecord>> {
        convert::check_name("a consumer", name)?;
        let Some((record, consumer)) = self.find(name).await? else { return Ok(None) };
        match self.swap(name, Expect::CommitTs(record.commit_ts), None).await? {
            true => consumer.to_proto(name).map(Some),
            false => Err(self.raced(name)),
        }
    }

    async fn change(
        &self,
        name: &str,
        change: impl Fn(Option<Consumer>, Timestamp) -> Result<Consumer>,
    ) -> Result<v1::ConsumerRecord> {
        loop {
            let found = self.find(name).await?;
            let (expect, old) = match found {
                Some((record, consumer)) => (Expect::CommitTs(record.commit_ts), Some(consumer)),
                None => (Expect::Absent, None),
            };
            let now = self.system.read_timestamp(Timestamp::ZERO).await?;
            let new = change(old, now)?;
            if self.swap(name, expect, Some(codec::encode(&new).into())).await? {
                return new.to_proto(name);
            }
            if Instant::now() >= self.deadline {
                return Err(self.raced(name));
            }
        }
    }

    fn raced(&self, name: &str) -> Error {
        Error::new(
            ErrorKind::Conflict,
            format!("consumer {name} was changed by others meanwhile: nothing was done; try again"),
        )
    }

    /// Writes a consumer where nobody has meanwhile.
    async fn swap(&self, name: &str, expect: Expect, value: Option<Bytes>) -> Result<bool> {
        let seen = self.system.read_timestamp(Timestamp::ZERO).await?;
        let id = RequestId { seen, unique: rand::random() };
        let operation = Operation::CompareAndSwap { key: keyspace::consumer(name), expect, value };
        match self.system.execute(id, operation, self.deadline).await? {
            Outcome::Put { .. } | Outcome::Deleted { .. } => Ok(true),
            Outcome::NotMatched { .. } => Ok(false),
            Outcome::Refused(refusal) => Err(convert::refusal_to_error(&refusal)),
            other => Err(Error::corrupt(format!("a compare-and-swap came to {other:?}"))),
        }
    }

    async fn find(&self, name: &str) -> Result<Option<(Record, Consumer)>> {
        let found = self.reads.one(&keyspace::consumer(name), ReadAt::Latest).await?.value;
        found.map(|record| Ok((record.clone(), decode(name, &record.value)?))).transpose()
    }

    async fn list(&self) -> Result<Vec<v1::ConsumerRecord>> {
        let range = keyspace::consumers();
        let request = PageRequest {
            range: range.clone(),
            direction: Direction::Forward,
            keys_only: false,
            at: Timestamp::ZERO,
            max_rows: limits::MAX_PAGE_ROWS,
            max_bytes: limits::MAX_BATCH_BYTES,
        };
        let page = self.reads.page(request, ReadAt::Latest).await?.value;
        let consumer = |(key, record): (Bytes, Record)| {
            let name = String::from_utf8_lossy(&key[range.start.len()..]).into_owned();
            decode(&name, &record.value)?.to_proto(&name)
        };
        page.rows.into_iter().map(consumer).collect()
    }
}

fn decode(name: &str, value: &[u8]) -> Result<Consumer> {
    codec::decode(value, &format!("the record of consumer {name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLUSTER: ClusterId = ClusterId(7);

    fn following(after: u64) -> Cursor {
        Cursor::new(CLUSTER, &[], CursorState::Following { after: Timestamp(after) })
    }

    fn scanning(at: u64, next: &'static [u8]) -> Cursor {
        let next = Bytes::from_static(next);
        Cursor::new(CLUSTER, &[], CursorState::Scanning { at: Timestamp(at), next })
    }

    fn acknowledge(consumer: &Consumer, epoch: u64, cursor: &Cursor) -> Result<Consumer> {
        consumer.clone().acknowledge("c", epoch, (cursor, cursor.encode()), Timestamp(99))
    }

    #[test]
    fn a_cursor_only_moves_forward() {
        let opened = Consumer::open(None, Vec::new(), false, Timestamp(5));
        assert_eq!((opened.epoch, opened.created, opened.done()), (1, Timestamp(5), Ok(Timestamp::ZERO)));
        let steps = [scanning(10, b""), scanning(10, b"k"), following(10), following(11), scanning(20, b"a")];
        let mut consumer = opened;
        for (position, cursor) in steps.iter().enumerate() {
            consumer = acknowledge(&consumer, 1, cursor).expect("forward");
            consumer = acknowledge(&consumer, 1, cursor).expect("again is no step back");
            for earlier in &steps[..position] {
                assert_eq!(acknowledge(&consumer, 1, earlier).expect_err("back").kind, ErrorKind::Invalid);
            }
        }
        assert_eq!((consumer.done(), consumer.acknowledged), (Ok(Timestamp::ZERO), Timestamp(99)));
    }

    #[test]
    fn who_opens_last_is_alone() {
        let first = Consumer::open(None, Vec::new(), false, Timestamp(5));
        let first = acknowledge(&first, 1, &following(10)).expect("its own");
        let second = Consumer::open(Some(first), vec![KeyRange::all()], false, Timestamp(6));
        assert_eq!((second.epoch, second.created, second.done()), (2, Timestamp(5), Ok(Timestamp(10))));
        assert_eq!(
            acknowledge(&second, 1, &following(11)).expect_err("taken over").kind,
            ErrorKind::Conflict
        );
        acknowledge(&second, 2, &following(11)).expect("its own");
        let reset = Consumer::open(Some(second), Vec::new(), true, Timestamp(7));
        assert_eq!((reset.epoch, reset.cursor.is_empty()), (3, true));
        acknowledge(&reset, 3, &following(1)).expect("anew");
    }
}
