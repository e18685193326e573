//! The calls that write, and those on the cluster itself.

use bytes::Bytes;

use super::batch::{Batch, BatchOutcome};
use super::request::{Asked, mismatched};
use super::router::{Place, Target};
use super::{Client, Shared};
use crate::rpc::v1::session_reply::Reply;
use crate::rpc::v1::session_request::Request;
use crate::rpc::{convert, v1, validate};
use crate::types::{Error, Expect, Outcome, Record, Result, ShardId, Timestamp};

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
        match self.ask(Asked { place: Place::Any, build: &build, fresh: false, read: None }).await? {
            Reply::Empty(_) => Ok(()),
            other => Err(mismatched(&other)),
        }
    }

    async fn outcome(&self, key: &[u8], build: super::request::Build<'_>) -> Result<Outcome> {
        convert::outcome_from_reply(self.write(Place::Key(key), build).await?)
    }
}

impl Shared {
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

fn unexpected(outcome: &Outcome) -> Error {
    Error::undetermined(format!("the node answered with {outcome:?}, which does not fit the request"))
}
