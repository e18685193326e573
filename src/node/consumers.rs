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
/// The most bytes in the ends of a consumer's ranges: all consumers are told of in one reply.
const MAX_RANGE_BYTES: usize = 8 * 1024;
/// The most bytes in the name of an opening.
const MAX_OPENING_BYTES: usize = 16;

/// A consumer as it is stored.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct Consumer {
    epoch: u64,
    /// Encoded; empty where nothing was acknowledged.
    cursor: Bytes,
    created: Timestamp,
    acknowledged: Timestamp,
    /// Users' keys; none is all of them.
    ranges: Vec<KeyRange>,
    /// Names the last opening: repeated it changes nothing.
    opening: Bytes,
}

impl Consumer {
    /// Opens a consumer, or makes it.
    fn open(old: Option<Self>, open: &Opening, now: Timestamp) -> Self {
        let fresh = || Self {
            epoch: 0,
            cursor: Bytes::new(),
            created: now,
            acknowledged: Timestamp::ZERO,
            ranges: Vec::new(),
            opening: Bytes::new(),
        };
        let mut consumer = old.unwrap_or_else(fresh);
        if !open.name.is_empty() && consumer.opening == open.name {
            return consumer;
        }
        // By time: one that was dropped and made again must not have the epochs of before.
        consumer.epoch = (consumer.epoch + 1).max(now.0);
        consumer.ranges.clone_from(&open.ranges);
        consumer.opening.clone_from(&open.name);
        if open.reset || consumer.cursor.is_empty() {
            consumer.cursor.clone_from(&open.start);
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
                ErrorKind::Denied,
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

/// One opening of a consumer.
#[derive(Default)]
struct Opening {
    /// Names it; empty where it has no name.
    name: Bytes,
    ranges: Vec<KeyRange>,
    reset: bool,
    /// Where to begin if no cursor is kept, encoded; may be empty.
    start: Bytes,
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
    /// `Moved` where this node does not lead the system shard; `Denied` where another process has taken the consumer
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
        let v1::OpenConsumer { name, ranges, reset, start, opening } = open;
        convert::check_name("a consumer", &name)?;
        let ranges = match ranges.is_empty() {
            true => Vec::new(),
            false => convert::followed(ranges, Vec::new())?,
        };
        let size_bytes = |range: &KeyRange| range.start.len() + range.end.as_ref().map_or(0, Bytes::len);
        let range_bytes: usize = ranges.iter().map(size_bytes).sum();
        if range_bytes > MAX_RANGE_BYTES || opening.len() > MAX_OPENING_BYTES {
            return Err(Error::invalid(format!(
                "the ranges of consumer {name} come to {range_bytes} bytes and the name of the opening to {}, over the \
                 limits of {MAX_RANGE_BYTES} and {MAX_OPENING_BYTES}: follow fewer, wider ranges, and leave out what is not \
                 wanted",
                opening.len()
            )));
        }
        if !start.is_empty() {
            let start = Cursor::decode(&start)?;
            start.check(self.cluster, &or_all(&ranges))?;
            check_past(&start, self.system.read_timestamp(Timestamp::ZERO).await?)?;
        }
        let opening = Opening { name: opening, ranges, reset, start };
        if self.find(&name).await?.is_none() && self.list().await?.len() >= MAX_CONSUMERS {
            return Err(Error::invalid(format!(
                "the cluster has {MAX_CONSUMERS} consumers, the most it keeps: drop one that is not needed any more \
                 (`kvorum consumer drop`)"
            )));
        }
        self.change(&name, |old, now| Ok(Consumer::open(old, &opening, now))).await
    }

    async fn acknowledge(&self, acknowledge: v1::Acknowledge) -> Result<v1::ConsumerRecord> {
        let v1::Acknowledge { name, epoch, cursor: bytes } = acknowledge;
        convert::check_name("a consumer", &name)?;
        let cursor = Cursor::decode(&bytes)?;
        let change = |old: Option<Consumer>, now| {
            let consumer = old.ok_or_else(|| {
                Error::invalid(format!("there is no consumer {name}: open it before acknowledging"))
            })?;
            cursor.check(self.cluster, &or_all(&consumer.ranges))?;
            check_past(&cursor, now)?;
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
        let mut request = PageRequest {
            range: range.clone(),
            direction: Direction::Forward,
            keys_only: false,
            at: Timestamp::ZERO,
            max_rows: limits::MAX_PAGE_ROWS,
            max_bytes: limits::MAX_PAGE_BYTES,
        };
        let mut at = ReadAt::Latest;
        let mut consumers = Vec::new();
        loop {
            let answered = self.reads.page(request.clone(), at).await?;
            at = ReadAt::Snapshot(answered.at);
            for (key, record) in answered.value.rows {
                let name = String::from_utf8_lossy(&key[range.start.len()..]).into_owned();
                consumers.push(decode(&name, &record.value)?.to_proto(&name)?);
            }
            match answered.value.next {
                Some(next) => request.range.start = next,
                None => return Ok(consumers),
            }
        }
    }
}

/// Refuses a cursor that no stream of this cluster can have told: anybody can make one.
fn check_past(cursor: &Cursor, now: Timestamp) -> Result<()> {
    let (ts, _, _) = place(cursor.state());
    match ts <= now {
        true => Ok(()),
        false => Err(Error::invalid(format!(
            "the cursor stands at {ts}, in the future: the newest timestamp is {now}; give one that a stream told"
        ))),
    }
}

/// The ranges that are followed: none named are all keys.
fn or_all(ranges: &[KeyRange]) -> Vec<KeyRange> {
    if ranges.is_empty() { vec![KeyRange::all()] } else { ranges.to_vec() }
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
        let opened = Consumer::open(None, &Opening::default(), Timestamp(5));
        assert_eq!((opened.epoch, opened.created, opened.done()), (5, Timestamp(5), Ok(Timestamp::ZERO)));
        let steps = [scanning(10, b""), scanning(10, b"k"), following(10), following(11), scanning(20, b"a")];
        let mut consumer = opened;
        for (position, cursor) in steps.iter().enumerate() {
            consumer = acknowledge(&consumer, 5, cursor).expect("forward");
            consumer = acknowledge(&consumer, 5, cursor).expect("again is no step back");
            for earlier in &steps[..position] {
                assert_eq!(acknowledge(&consumer, 5, earlier).expect_err("back").kind, ErrorKind::Invalid);
            }
        }
        assert_eq!((consumer.done(), consumer.acknowledged), (Ok(Timestamp::ZERO), Timestamp(99)));
    }

    #[test]
    fn who_opens_last_is_alone() {
        let first = Consumer::open(None, &Opening::default(), Timestamp(5));
        let first = acknowledge(&first, 5, &following(10)).expect("its own");
        let named = |name: &'static [u8], start: &Cursor| Opening {
            name: Bytes::from_static(name),
            start: start.encode(),
            ..Opening::default()
        };
        let second = Consumer::open(Some(first), &named(b"second", &following(3)), Timestamp(6));
        assert_eq!(
            Consumer::open(Some(second.clone()), &named(b"second", &following(3)), Timestamp(7)),
            second
        );
        assert_eq!((second.epoch, second.created, second.done()), (6, Timestamp(5), Ok(Timestamp(10))));
        assert_eq!(acknowledge(&second, 5, &following(11)).expect_err("taken over").kind, ErrorKind::Denied);
        acknowledge(&second, 6, &following(11)).expect("its own");
        let anew = Opening { reset: true, ..named(b"third", &following(4)) };
        let reset = Consumer::open(Some(second), &anew, Timestamp(6));
        assert_eq!((reset.epoch, reset.done()), (7, Ok(Timestamp(4))), "what it begins with counts as done");
        acknowledge(&reset, 7, &following(5)).expect("anew");
        let again = Consumer::open(None, &named(b"fourth", &following(1)), Timestamp(8));
        assert_eq!(again.epoch, 8, "one that was dropped and made again has epochs of its own");
    }
}
