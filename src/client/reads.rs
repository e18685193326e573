//! Reads of single keys and of several, at every level.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use futures::stream::{self, StreamExt};
use tokio::time::Instant;

use super::request::{Asked, Reading, mismatched};
use super::router::{Place, Target};
use super::{Client, Shared};
use crate::rpc::v1::session_reply::Reply;
use crate::rpc::v1::session_request::Request;
use crate::rpc::{convert, v1, validate};
use crate::types::{Error, NodeId, ReadAt, Record, Result, Served, ShardId, Timestamp};

/// How many shards a `get_many` reads at once.
const SHARDS_AT_A_TIME: usize = 16;

/// A key's value, and how it was come by.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Got {
    /// What the key held.
    pub record: Option<Record>,
    /// Who answered, and how; `None` where the node did not say.
    pub served: Option<Served>,
    /// Which nodes were asked, and why, a line for each step.
    pub route: Vec<String>,
}

/// Several keys' values at one timestamp.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Values {
    /// The timestamp that was read at, over all shards.
    pub at_ts: Timestamp,
    /// What each key held, in the order in which they were named.
    pub records: Vec<Option<Record>>,
    /// Who answered, and how: one for each answer of a shard.
    pub served: Vec<Served>,
}

impl Client {
    /// Reads a value: it sees every write that was acknowledged before the call began.
    ///
    /// # Errors
    /// Of every read: `Unavailable` where no node could serve it by the deadline, `Invalid` for an empty or
    /// overlong key.
    pub async fn get(&self, key: impl AsRef<[u8]>) -> Result<Option<Record>> {
        Ok(self.get_as_of(key.as_ref(), ReadAt::Latest, None).await?.record)
    }

    /// Reads the value that the key held at a timestamp.
    ///
    /// # Errors
    /// Besides those of every read: `TooOld` where that time's versions are gone, `Invalid` where the timestamp
    /// was not handed out yet.
    pub async fn get_at(&self, key: impl AsRef<[u8]>, at: Timestamp) -> Result<Option<Record>> {
        Ok(self.get_as_of(key.as_ref(), explicit(at)?, None).await?.record)
    }

    /// Reads a value at any level, and tells who answered.
    ///
    /// # Errors
    /// Those of the level.
    pub async fn read(&self, key: impl AsRef<[u8]>, at: ReadAt) -> Result<Got> {
        self.get_as_of(key.as_ref(), checked(at)?, None).await
    }

    /// Reads a value at any level, and tells who answered and why that node was asked.
    ///
    /// # Errors
    /// Those of the level.
    pub async fn get_explained(&self, key: impl AsRef<[u8]>, at: ReadAt) -> Result<Got> {
        let route = parking_lot::Mutex::new(Vec::new());
        let mut got = self.get_as_of(key.as_ref(), checked(at)?, Some(&route)).await?;
        got.route = route.into_inner();
        Ok(got)
    }

    pub(super) async fn get_as_of(
        &self,
        key: &[u8],
        at: ReadAt,
        route: Option<&parking_lot::Mutex<Vec<String>>>,
    ) -> Result<Got> {
        validate::key(key)?;
        let key = Bytes::copy_from_slice(key);
        let (at_ts, max_staleness_ms) = on_the_wire(at);
        let build = |header, _: &Target| {
            let key = key.clone();
            Ok(Request::Get(v1::GetRequest { header: Some(header), key, at_ts, max_staleness_ms }))
        };
        let read = Some(Reading { policy: self.policy, prefer: None, route, waits: false });
        match self.ask(Asked { place: Place::Key(&key), build: &build, fresh: false, read }).await? {
            Reply::Get(reply) => Ok(Got {
                record: reply.record.map(convert::record_from_proto),
                served: reply.served.as_ref().and_then(convert::served_from_proto),
                route: Vec::new(),
            }),
            other => Err(mismatched(&other)),
        }
    }

    /// Reads several keys at one timestamp, over any number of shards, taken after the call began.
    ///
    /// # Errors
    /// `Invalid` for more than [`limits::MAX_GET_KEYS`](crate::types::limits::MAX_GET_KEYS) keys, or where they come
    /// to more than [`limits::MAX_GET_BYTES`](crate::types::limits::MAX_GET_BYTES) with their values, however the
    /// shards are cut: read them in several calls, by [`get_many_at`](Self::get_many_at) at the first one's timestamp.
    pub async fn get_many<K: AsRef<[u8]>>(&self, keys: impl IntoIterator<Item = K>) -> Result<Values> {
        self.get_many_as_of(keys, ReadAt::Latest).await
    }

    /// Reads several keys as of a timestamp. Limits and errors are those of [`get_many`](Self::get_many).
    pub async fn get_many_at<K: AsRef<[u8]>>(
        &self,
        keys: impl IntoIterator<Item = K>,
        at: Timestamp,
    ) -> Result<Values> {
        let at = explicit(at)?;
        self.get_many_as_of(keys, at).await
    }

    /// Reads several keys at any level. Limits and errors are those of [`get_many`](Self::get_many).
    pub(super) async fn get_many_as_of<K: AsRef<[u8]>>(
        &self,
        keys: impl IntoIterator<Item = K>,
        at: ReadAt,
    ) -> Result<Values> {
        let until = self.deadline.until()?;
        let keys: Vec<_> = keys.into_iter().map(|key| Bytes::copy_from_slice(key.as_ref())).collect();
        validate::keys(&keys)?;
        let mut reading = ManyKeys {
            client: self,
            keys: &keys,
            until,
            at,
            found: vec![None; keys.len()],
            read_bytes: 0,
            served: Vec::new(),
        };
        let mut left: Vec<usize> = (0..keys.len()).collect();
        // What is left was split into several shards while it was asked for, was too large for one reply, or was read at
        // another timestamp than the rest.
        while !left.is_empty() {
            left = reading.round(left).await?;
            if left.is_empty() {
                left = reading.settle_timestamp();
            }
        }
        Ok(reading.into_values())
    }
}

/// What was found at a key.
#[derive(Clone)]
struct Found {
    record: Option<Record>,
    /// The timestamp that it was read at.
    at: Timestamp,
    /// Who answered: asked again where the timestamp has to be another.
    by: Option<NodeId>,
}

/// The reading of several keys.
struct ManyKeys<'a> {
    client: &'a Client,
    keys: &'a [Bytes],
    until: Instant,
    at: ReadAt,
    found: Vec<Option<Found>>,
    read_bytes: usize,
    served: Vec<Served>,
}

impl ManyKeys<'_> {
    /// Asks for the keys that are left, a few shards at a time: the answer as a whole is limited, so what is read must
    /// be too. Answers which are left.
    async fn round(&mut self, left: Vec<usize>) -> Result<Vec<usize>> {
        let shared = &self.client.shared;
        let groups = shared.by_shard(self.keys, &left);
        // A latest read of several shards is a read at one timestamp, taken now (rule R2).
        if groups.len() > 1 && self.at == ReadAt::Latest {
            self.at = ReadAt::Snapshot(Timestamp(shared.timestamp(self.until).await?));
        }
        let (at, keys, until) = (self.at, self.keys, self.until);
        let (policy, found) = (self.client.policy, &self.found);
        // A node knows a timestamp that is closed in all of its shards: asked for all, it answers at one instant.
        let one_node = match at {
            ReadAt::Bounded { .. } if groups.len() > 1 => {
                let reading = Reading { policy, prefer: None, route: None, waits: false };
                let place = Place::Key(&keys[groups[0][0]]);
                shared.choose_replica(place, &reading, &[]).map(|chosen| chosen.target.node)
            }
            _ => None,
        };
        let mut answers = stream::iter(groups)
            .map(|group| async move {
                let prefer = found[group[0]].as_ref().and_then(|found| found.by).or(one_node);
                let reading = Reading { policy, prefer, route: None, waits: false };
                let answer = shared.get_group(keys, &group, at, reading, until).await;
                (group, answer)
            })
            .buffer_unordered(SHARDS_AT_A_TIME);
        let (mut replies, mut left) = (Vec::new(), Vec::new());
        while let Some((group, answer)) = answers.next().await {
            match answer? {
                Some(reply) => {
                    // Records that would be too large together come in several replies.
                    left.extend(&group[reply.records.len()..]);
                    replies.push((group, reply));
                }
                None => left.extend(group),
            }
        }
        drop(answers);
        for (group, reply) in replies {
            self.take(&group, reply)?;
        }
        Ok(left)
    }

    fn take(&mut self, group: &[usize], reply: v1::GetManyReply) -> Result<()> {
        let at = Timestamp(reply.at_ts);
        // The rest of a latest read of one shard is read at the timestamp that the shard took.
        if self.at == ReadAt::Latest {
            self.at = ReadAt::Snapshot(at);
        }
        let served = reply.served.iter().filter_map(convert::served_from_proto);
        let before = self.served.len();
        self.served.extend(served);
        let by = self.served.get(before).map(|served| served.node);
        for (index, record) in group.iter().zip(reply.records) {
            let record = record.record.map(convert::record_from_proto);
            let value_bytes =
                |record: &Option<Record>| record.as_ref().map_or(0, |record| record.value.len());
            // A key that is read again counts once.
            match &self.found[*index] {
                Some(old) => self.read_bytes -= value_bytes(&old.record),
                None => self.read_bytes += self.keys[*index].len(),
            }
            self.read_bytes += value_bytes(&record);
            self.found[*index] = Some(Found { record, at, by });
        }
        validate::read_bytes(self.read_bytes)
    }

    /// After a bounded read whose shards chose several timestamps: which keys are to be read again, at the smallest,
    /// which all of them have.
    fn settle_timestamp(&mut self) -> Vec<usize> {
        let least = self.found.iter().flatten().map(|found| found.at).min().unwrap_or_default();
        let differs = |found: &Option<Found>| found.as_ref().is_some_and(|found| found.at != least);
        self.at = ReadAt::Snapshot(least);
        (0..self.found.len()).filter(|index| differs(&self.found[*index])).collect()
    }

    fn into_values(self) -> Values {
        let at_ts = self.found.iter().flatten().map(|found| found.at).min().unwrap_or_default();
        let records = self.found.into_iter().map(|found| found.and_then(|found| found.record)).collect();
        Values { at_ts, records, served: self.served }
    }
}

impl Shared {
    /// Groups the keys that are left by the shard that holds them; keys in a hole of the map go alone.
    fn by_shard(&self, keys: &[Bytes], left: &[usize]) -> Vec<Vec<usize>> {
        let router = self.map.router();
        let mut groups: BTreeMap<ShardId, Vec<usize>> = BTreeMap::new();
        let mut alone = Vec::new();
        for index in left {
            match router.shard_of(&keys[*index]) {
                Some((shard, _)) => groups.entry(shard).or_default().push(*index),
                None => alone.push(vec![*index]),
            }
        }
        groups.into_values().chain(alone).collect()
    }

    /// Reads the keys of one shard. `None` where the map changed so that they no longer are of one shard.
    async fn get_group(
        self: &Arc<Self>,
        keys: &[Bytes],
        group: &[usize],
        at: ReadAt,
        reading: Reading<'_>,
        until: Instant,
    ) -> Result<Option<v1::GetManyReply>> {
        let split = AtomicBool::new(false);
        let (at_ts, max_staleness_ms) = on_the_wire(at);
        let build = |header, target: &Target| {
            let inside = |index: &usize| match &target.shard {
                Some((_, range)) => range.contains(&crate::codec::keyspace::user_key(&keys[*index])),
                None => true,
            };
            if !group.iter().all(inside) {
                split.store(true, Ordering::Relaxed);
                return Err(Error::moved("the keys are no longer of one shard", Default::default()));
            }
            let keys = group.iter().map(|index| keys[*index].clone()).collect();
            Ok(Request::GetMany(v1::GetManyRequest { header: Some(header), keys, at_ts, max_staleness_ms }))
        };
        let asked = Asked {
            place: Place::Key(&keys[group[0]]),
            build: &build,
            fresh: at == ReadAt::Latest,
            read: Some(reading),
        };
        match self.execute(asked, None, until).await {
            Ok(Reply::GetMany(reply)) if (1..=group.len()).contains(&reply.records.len()) => Ok(Some(reply)),
            Ok(Reply::GetMany(reply)) => Err(Error::corrupt(format!(
                "a node answered {} keys with {} records",
                group.len(),
                reply.records.len()
            ))),
            Ok(other) => Err(mismatched(&other)),
            Err(_) if split.load(Ordering::Relaxed) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// A timestamp to read at that the caller names; 0 would mean the newest.
pub(super) fn explicit(at: Timestamp) -> Result<ReadAt> {
    if at == Timestamp::ZERO {
        return Err(Error::invalid(
            "the timestamp to read at is 0, before every commit: pass one that a reply gave",
        ));
    }
    validate::timestamp("at_ts", at.0).map(ReadAt::Snapshot)
}

/// A level that the caller names, checked.
pub(super) fn checked(at: ReadAt) -> Result<ReadAt> {
    match at {
        ReadAt::Latest => Ok(at),
        ReadAt::Snapshot(at) => explicit(at),
        ReadAt::Bounded { max_staleness_ms } => validate::staleness(max_staleness_ms).map(|_| at),
    }
}

/// A level as requests say it: timestamp, and staleness in milliseconds.
pub(super) fn on_the_wire(at: ReadAt) -> (u64, Option<u32>) {
    match at {
        ReadAt::Latest => (0, None),
        ReadAt::Snapshot(at) => (at.0, None),
        ReadAt::Bounded { max_staleness_ms } => {
            (0, Some(u32::try_from(max_staleness_ms).unwrap_or(u32::MAX)))
        }
    }
}
