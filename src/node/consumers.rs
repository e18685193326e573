//! Named consumers of the changelog: whose cursors the cluster keeps.
//!
//! A consumer is a record in the system keyspace (see `system_records`). Each
//! opening raises its epoch, and an acknowledgement under an older one is refused: two processes that consume under one
//! name can't move the cursor by turns. It never moves back: what was acknowledged is a prefix of the changelog.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::system_records::SystemRecords;
use crate::changelog::{Cursor, CursorState};
use crate::codec::keyspace;
use crate::rpc::v1::consumer_request::What;
use crate::rpc::{convert, v1, validate};
use crate::types::{ClusterId, Error, ErrorKind, KeyRange, Result, Timestamp};

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
    /// Where they are kept.
    pub records: SystemRecords<'a>,
}

impl Consumers<'_> {
    /// Serves one request.
    ///
    /// # Errors
    ///
    /// `Moved` where this node does not lead the system shard; `Denied` where another process has taken the consumer
    /// over; `Invalid` where there is no such consumer, or the cursor is none or lies before the last one.
    pub async fn serve(&self, what: What) -> Result<v1::ConsumerReply> {
        self.records.check_leads()?;
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
        validate::name("a consumer", &name)?;
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
            start.check(self.cluster, &validate::followed(&ranges)?)?;
            check_past(&start, self.records.now().await?)?;
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
        validate::name("a consumer", &name)?;
        let cursor = Cursor::decode(&bytes)?;
        let change = |old: Option<Consumer>, now| {
            let consumer = old.ok_or_else(|| {
                Error::invalid(format!("there is no consumer {name}: open it before acknowledging"))
            })?;
            cursor.check(self.cluster, &validate::followed(&consumer.ranges)?)?;
            check_past(&cursor, now)?;
            consumer.acknowledge(&name, epoch, (&cursor, bytes.clone()), now)
        };
        self.change(&name, change).await
    }

    async fn drop(&self, name: &str) -> Result<Option<v1::ConsumerRecord>> {
        validate::name("a consumer", name)?;
        let drop = |_: Option<Consumer>, _| Ok(None);
        let (dropped, _) = self.records.change(&keyspace::consumer(name), &record_of(name), drop).await?;
        dropped.map(|consumer| consumer.to_proto(name)).transpose()
    }

    async fn change(
        &self,
        name: &str,
        change: impl Fn(Option<Consumer>, Timestamp) -> Result<Consumer>,
    ) -> Result<v1::ConsumerRecord> {
        let change = |old, now| change(old, now).map(Some);
        let (_, consumer) = self.records.change(&keyspace::consumer(name), &record_of(name), change).await?;
        let consumer = consumer.ok_or_else(|| Error::corrupt("a consumer was written and is not there"))?;
        consumer.to_proto(name)
    }

    async fn find(&self, name: &str) -> Result<Option<Consumer>> {
        self.records.find(&keyspace::consumer(name), &record_of(name)).await
    }

    async fn list(&self) -> Result<Vec<v1::ConsumerRecord>> {
        let consumers =
            self.records.list::<Consumer>(&keyspace::consumers(), "the record of a consumer").await?;
        let named = |(name, consumer): (Bytes, Consumer)| consumer.to_proto(&String::from_utf8_lossy(&name));
        consumers.into_iter().map(named).collect()
    }
}

fn record_of(name: &str) -> String {
    format!("the record of consumer {name}")
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
