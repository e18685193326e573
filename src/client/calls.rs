//! The calls on single keys, on several keys, and on the cluster itself.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use futures::stream::{self, StreamExt};
use tokio::time::Instant;

use super::batch::{Batch, BatchOutcome};
use super::request::{Asked, mismatched};
use super::router::{Place, Target};
use super::{Client, Shared};
use crate::rpc::v1::session_reply::Reply;
use crate::rpc::v1::session_request::Request;
use crate::rpc::{convert, v1, validate};
use crate::types::{Error, Expect, Outcome, Record, Result, ShardId, Timestamp};

/// How many shards a `get_many` reads at once.
const SHARDS_AT_A_TIME: usize = 16;

/// What came of a put.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Written {
    /// When it was committed.
    pub commit_ts: Timestamp,
    /// The new version's number; 1 where the key was absent.
    pub version: u64,
    /// When the key was created.
    pub create_ts: Timestamp,
}

/// What came of a delete.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Deleted {
    /// When it was committed.
    pub commit_ts: Timestamp,
    /// Whether the key held something.
    pub existed: bool,
}

/// What came of an add.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Added {
    /// When it was committed.
    pub commit_ts: Timestamp,
    /// The counter's new value.
    pub value: i64,
}

/// What came of a compare-and-swap.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Swap {
    /// The key held what was expected; the new value was written.
    Written(Written),
    /// The key held what was expected; it was removed.
    Removed {
        /// When it was committed.
        commit_ts: Timestamp,
    },
    /// The key held something else. Nothing was written.
    Differs {
        /// When it looked.
        commit_ts: Timestamp,
        /// What the key held.
        current: Option<Record>,
    },
}

impl Swap {
    /// Whether the key held what was expected, so that the change was made.
    pub fn swapped(&self) -> bool {
        !matches!(self, Self::Differs { .. })
    }
}

/// Several keys' values at one timestamp.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Values {
    /// The timestamp that was read at, over all shards.
    pub at_ts: Timestamp,
    /// What each key held, in the order in which they were named.
    pub records: Vec<Option<Record>>,
}

impl Client {
    /// Writes a value.
    ///
    /// # Errors
    /// Of every write: `Unavailable` where it certainly was not made by the deadline, `Undetermined` where that
    /// can't be known, `Invalid` for an empty or overlong key or value.
    pub async fn put(&self, key: impl AsRef<[u8]>, value: impl Into<Bytes>) -> Result<Written> {
        let (key, value) = (Bytes::copy_from_slice(key.as_ref()), value.into());
        validate::key(&key)?;
        validate::value(&key, &value)?;
        let build = |header, _: &Target| {
            Ok(Request::Put(v1::PutRequest { header: Some(header), key: key.clone(), value: value.clone() }))
        };
        match self.outcome(&key, &build).await? {
            Outcome::Put { commit_ts, version, create_ts } => Ok(Written { commit_ts, version, create_ts }),
            other => Err(unexpected(&other)),
        }
    }

    /// Reads a value: it sees every write that was acknowledged before the call began.
    ///
    /// # Errors
    /// Of every read: `Unavailable` where no node could serve it by the deadline, `Invalid` for an empty or
    /// overlong key.
    pub async fn get(&self, key: impl AsRef<[u8]>) -> Result<Option<Record>> {
        self.get_as_of(key.as_ref(), 0).await
    }

    /// Reads the value that the key held at a timestamp.
    ///
    /// # Errors
    /// Besides those of every read: `TooOld` where that time's versions are gone, `Invalid` where the timestamp
    /// was not handed out yet.
    pub async fn get_at(&self, key: impl AsRef<[u8]>, at: Timestamp) -> Result<Option<Record>> {
        self.get_as_of(key.as_ref(), explicit(at)?).await
    }

    async fn get_as_of(&self, key: &[u8], at_ts: u64) -> Result<Option<Record>> {
        validate::key(key)?;
        let key = Bytes::copy_from_slice(key);
        let build = |header, _: &Target| {
            Ok(Request::Get(v1::GetRequest { header: Some(header), key: key.clone(), at_ts }))
        };
        match self.read(Asked { place: Place::Key(&key), build: &build, fresh: false }).await? {
            Reply::Get(reply) => Ok(reply.record.map(convert::record_from_proto)),
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
        self.get_many_as_of(keys, None).await
    }

    /// Reads several keys as of a timestamp. Limits and errors are those of [`get_many`](Self::get_many).
    pub async fn get_many_at<K: AsRef<[u8]>>(
        &self,
        keys: impl IntoIterator<Item = K>,
        at: Timestamp,
    ) -> Result<Values> {
        let at = explicit(at)?;
        self.get_many_as_of(keys, Some(at)).await
    }

    async fn get_many_as_of<K: AsRef<[u8]>>(
        &self,
        keys: impl IntoIterator<Item = K>,
        mut at: Option<u64>,
    ) -> Result<Values> {
        let until = self.deadline.until()?;
        let keys: Vec<_> = keys.into_iter().map(|key| Bytes::copy_from_slice(key.as_ref())).collect();
        validate::keys(&keys)?;
        let mut records = vec![None; keys.len()];
        let mut read_bytes = 0;
        let mut left: Vec<usize> = (0..keys.len()).collect();
        // What is left was split into several shards while it was asked for, or was too large for one reply.
        while !left.is_empty() {
            let groups = self.shared.by_shard(&keys, &left);
            // A latest read of several shards is a read at one timestamp, taken now (rule R2).
            if groups.len() > 1 && at.is_none() {
                at = Some(self.shared.timestamp(until).await?);
            }
            let at_ts = at.unwrap_or(0);
            // A few shards at a time: the answer as a whole is limited, so what is read must be too.
            let (shared, keys) = (&self.shared, &keys[..]);
            let mut answers = stream::iter(groups)
                .map(|group| async move {
                    let answer = shared.get_group(keys, &group, at_ts, until).await;
                    (group, answer)
                })
                .buffer_unordered(SHARDS_AT_A_TIME);
            left.clear();
            while let Some((group, answer)) = answers.next().await {
                let Some(reply) = answer? else {
                    left.extend(group);
                    continue;
                };
                at = Some(reply.at_ts);
                // Records that would be too large together come in several replies, all at one timestamp.
                left.extend(&group[reply.records.len()..]);
                for (index, record) in group.iter().zip(reply.records) {
                    records[*index] = record.record.map(convert::record_from_proto);
                    read_bytes += keys[*index].len();
                    read_bytes += records[*index].as_ref().map_or(0, |record: &Record| record.value.len());
                }
                validate::read_bytes(read_bytes)?;
            }
        }
        Ok(Values { at_ts: Timestamp(at.unwrap_or(0)), records })
    }

    /// Removes a key. Removing an absent key is no error.
    pub async fn delete(&self, key: impl AsRef<[u8]>) -> Result<Deleted> {
        let key = Bytes::copy_from_slice(key.as_ref());
        validate::key(&key)?;
        let build = |header, _: &Target| {
            Ok(Request::Delete(v1::DeleteRequest { header: Some(header), key: key.clone() }))
        };
        match self.outcome(&key, &build).await? {
            Outcome::Deleted { commit_ts, existed } => Ok(Deleted { commit_ts, existed }),
            other => Err(unexpected(&other)),
        }
    }

    /// Writes `value` (or, with `None`, removes the key) where the key holds what is expected.
    pub async fn compare_and_swap(
        &self,
        key: impl AsRef<[u8]>,
        expect: Expect,
        value: Option<Bytes>,
    ) -> Result<Swap> {
        let key = Bytes::copy_from_slice(key.as_ref());
        validate::key(&key)?;
        if let Some(value) = &value {
            validate::value(&key, value)?;
        }
        let expect = Some(convert::expect_to_proto(expect));
        validate::expect_bytes(&key, expect.as_ref())?;
        let build = |header, _: &Target| {
            Ok(Request::CompareAndSwap(v1::CompareAndSwapRequest {
                header: Some(header),
                key: key.clone(),
                expect: expect.clone(),
                value: value.clone(),
            }))
        };
        match self.outcome(&key, &build).await? {
            Outcome::Put { commit_ts, version, create_ts } => {
                Ok(Swap::Written(Written { commit_ts, version, create_ts }))
            }
            Outcome::Deleted { commit_ts, .. } => Ok(Swap::Removed { commit_ts }),
            Outcome::NotMatched { commit_ts, current } => Ok(Swap::Differs { commit_ts, current }),
            other => Err(unexpected(&other)),
        }
    }

    /// Adds to a counter: a decimal number as text. An absent key counts as 0.
    ///
    /// # Errors
    /// Besides those of every write: `Invalid` where the value is no counter or the sum does not fit in 64
    /// bits.
    pub async fn add(&self, key: impl AsRef<[u8]>, delta: i64) -> Result<Added> {
        let key = Bytes::copy_from_slice(key.as_ref());
        validate::key(&key)?;
        let build = |header, _: &Target| {
            Ok(Request::Add(v1::AddRequest { header: Some(header), key: key.clone(), delta }))
        };
        match self.outcome(&key, &build).await? {
            Outcome::Added { commit_ts, value } => Ok(Added { commit_ts, value }),
            other => Err(unexpected(&other)),
        }
    }

    /// Takes a batch's `then` steps where its conditions are met, else its `otherwise` steps, atomically.
    ///
    /// # Errors
    /// Besides those of every write: `Invalid` for a batch without steps, over a limit, or whose keys lie in
    /// several shards.
    pub async fn batch(&self, batch: Batch) -> Result<BatchOutcome> {
        validate::batch(&batch.request)?;
        let Some(first) = batch.keys().next().cloned() else {
            return Err(Error::invalid("the batch names no key"));
        };
        if self.shared.check_one_shard(&batch).is_err() {
            // The map may be an old one.
            self.map().await?;
            self.shared.check_one_shard(&batch)?;
        }
        let build = |header, _: &Target| {
            self.shared.check_one_shard(&batch)?;
            Ok(Request::Batch(v1::BatchRequest { header: Some(header), ..batch.request.clone() }))
        };
        match self.outcome(&first, &build).await? {
            Outcome::Batch { commit_ts, succeeded, results } => {
                Ok(BatchOutcome { succeeded, commit_ts, results })
            }
            other => Err(unexpected(&other)),
        }
    }

    /// A timestamp above all that were handed out before the call: to read several things at one instant.
    pub async fn timestamp(&self) -> Result<Timestamp> {
        self.shared.timestamp(self.deadline.until()?).await.map(Timestamp)
    }

    /// Has a node answer without doing anything: the cost of the transport alone.
    pub async fn empty(&self, payload: impl Into<Bytes>) -> Result<()> {
        let payload = payload.into();
        let build = |_, _: &Target| Ok(Request::Empty(v1::EmptyRequest { payload: payload.clone() }));
        match self.read(Asked { place: Place::Any, build: &build, fresh: false }).await? {
            Reply::Empty(_) => Ok(()),
            other => Err(mismatched(&other)),
        }
    }

    async fn outcome(&self, key: &[u8], build: super::request::Build<'_>) -> Result<Outcome> {
        convert::outcome_from_reply(self.write(Place::Key(key), build).await?)
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
        at_ts: u64,
        until: Instant,
    ) -> Result<Option<v1::GetManyReply>> {
        let split = std::sync::atomic::AtomicBool::new(false);
        let build = |header, target: &Target| {
            let inside = |index: &usize| match &target.shard {
                Some((_, range)) => range.contains(&crate::codec::keyspace::user_key(&keys[*index])),
                None => true,
            };
            if !group.iter().all(inside) {
                split.store(true, std::sync::atomic::Ordering::Relaxed);
                return Err(Error::moved("the keys are no longer of one shard", Default::default()));
            }
            let keys = group.iter().map(|index| keys[*index].clone()).collect();
            Ok(Request::GetMany(v1::GetManyRequest { header: Some(header), keys, at_ts }))
        };
        let asked = Asked { place: Place::Key(&keys[group[0]]), build: &build, fresh: at_ts == 0 };
        match self.execute(asked, None, until).await {
            Ok(Reply::GetMany(reply)) if (1..=group.len()).contains(&reply.records.len()) => Ok(Some(reply)),
            Ok(Reply::GetMany(reply)) => Err(Error::corrupt(format!(
                "a node answered {} keys with {} records",
                group.len(),
                reply.records.len()
            ))),
            Ok(other) => Err(mismatched(&other)),
            Err(_) if split.load(std::sync::atomic::Ordering::Relaxed) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// `Invalid` where a batch's keys lie in several shards, as far as the map knows.
    fn check_one_shard(&self, batch: &Batch) -> Result<()> {
        let router = self.map.router();
        let mut first: Option<(&Bytes, ShardId)> = None;
        for key in batch.keys() {
            let Some((shard, _)) = router.shard_of(key) else { continue };
            match first {
                Some((other, theirs)) if theirs != shard => {
                    return Err(Error::invalid(format!(
                        "the batch's keys lie in several shards: {} in shard {theirs}, {} in shard {shard}; a batch \
                         is atomic within one shard, so split it",
                        convert::printable(other),
                        convert::printable(key)
                    )));
                }
                _ => first = Some((key, shard)),
            }
        }
        Ok(())
    }
}

/// A timestamp to read at that the caller names; 0 would mean the newest.
pub(super) fn explicit(at: Timestamp) -> Result<u64> {
    if at == Timestamp::ZERO {
        return Err(Error::invalid(
            "the timestamp to read at is 0, before every commit: pass one that a reply gave",
        ));
    }
    validate::timestamp("at_ts", at.0).map(|at| at.0)
}

fn unexpected(outcome: &Outcome) -> Error {
    Error::undetermined(format!("the node answered with {outcome:?}, which does not fit the request"))
}
