//! Small records in the system keyspace that are read and changed at the leader of the system shard, by compare-and-swap:
//! named consumers of the changelog, and whatever else the cluster keeps by name.

use std::sync::Arc;

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::time::Instant;

use super::reads::Reads;
use super::replica::Replica;
use crate::codec;
use crate::rpc::convert;
use crate::shard::PageRequest;
use crate::types::{
    Direction, Error, ErrorKind, Expect, KeyRange, Operation, Outcome, ReadAt, RequestId, Result, Timestamp,
    limits,
};

/// The system shard's records, for one request.
pub struct SystemRecords<'a> {
    /// The system shard's replica of this node.
    pub system: &'a Arc<Replica>,
    /// Reads of it.
    pub reads: Reads<'a>,
    /// Until when an answer is wanted.
    pub deadline: Instant,
}

impl SystemRecords<'_> {
    /// Refuses what another node has to answer.
    ///
    /// # Errors
    ///
    /// `Moved` where this node does not lead the system shard.
    pub fn check_leads(&self) -> Result<()> {
        self.system.check_leads()
    }

    /// A fresh timestamp.
    ///
    /// # Errors
    ///
    /// `Unavailable` where none can be had in time.
    pub async fn now(&self) -> Result<Timestamp> {
        self.system.read_timestamp(Timestamp::ZERO).await
    }

    /// The record under a key, as of now. `what` is how errors call it.
    ///
    /// # Errors
    ///
    /// Those of a read; `Corrupt` where it can't be read.
    pub async fn find<T: DeserializeOwned>(&self, key: &Bytes, what: &str) -> Result<Option<T>> {
        Ok(self.find_version(key, what).await?.map(|(_, record)| record))
    }

    async fn find_version<T: DeserializeOwned>(
        &self,
        key: &Bytes,
        what: &str,
    ) -> Result<Option<(Timestamp, T)>> {
        let found = self.reads.one(key, ReadAt::Latest).await?.value;
        found.map(|record| Ok((record.commit_ts, codec::decode(&record.value, what)?))).transpose()
    }

    /// All records of a range at one instant, in the order of their keys: what follows the range's start in each key, and
    /// the record.
    ///
    /// # Errors
    ///
    /// As for [`find`](Self::find).
    pub async fn list<T: DeserializeOwned>(&self, range: &KeyRange, what: &str) -> Result<Vec<(Bytes, T)>> {
        let mut request = PageRequest {
            range: range.clone(),
            direction: Direction::Forward,
            keys_only: false,
            at: Timestamp::ZERO,
            max_rows: limits::MAX_PAGE_ROWS,
            max_bytes: limits::MAX_PAGE_BYTES,
        };
        let mut at = ReadAt::Latest;
        let mut records = Vec::new();
        loop {
            let answered = self.reads.page(request.clone(), at).await?;
            at = ReadAt::Snapshot(answered.at);
            for (key, record) in answered.value.rows {
                records.push((key.slice(range.start.len()..), codec::decode(&record.value, what)?));
            }
            match answered.value.next {
                Some(next) => request.range.start = next,
                None => return Ok(records),
            }
        }
    }

    /// Changes the record under a key, again until nobody else has changed it meanwhile: `change` gets what is there, and a
    /// fresh timestamp, and says what shall be; `None` removes it. Answers what was there and what is.
    ///
    /// # Errors
    ///
    /// Those of `change`, after which nothing is changed; `Conflict` where others change it all the time.
    pub async fn change<T: Serialize + DeserializeOwned + Clone>(
        &self,
        key: &Bytes,
        what: &str,
        change: impl Fn(Option<T>, Timestamp) -> Result<Option<T>>,
    ) -> Result<(Option<T>, Option<T>)> {
        loop {
            let found = self.find_version(key, what).await?;
            let (expect, old) = match found {
                Some((commit_ts, record)) => (Expect::CommitTs(commit_ts), Some(record)),
                None => (Expect::Absent, None),
            };
            let new = change(old.clone(), self.now().await?)?;
            if old.is_none() && new.is_none() {
                return Ok((None, None));
            }
            let value = new.as_ref().map(|new| Bytes::from(codec::encode(new)));
            if self.swap(key, expect, value).await? {
                return Ok((old, new));
            }
            if Instant::now() >= self.deadline {
                return Err(Error::new(
                    ErrorKind::Conflict,
                    format!("{what} was changed by others meanwhile: nothing was done; try again"),
                ));
            }
        }
    }

    /// Writes a record where nobody has meanwhile.
    async fn swap(&self, key: &Bytes, expect: Expect, value: Option<Bytes>) -> Result<bool> {
        let id = RequestId { seen: self.now().await?, unique: rand::random() };
        let operation = Operation::CompareAndSwap { key: key.clone(), expect, value };
        match self.system.execute(id, operation, self.deadline).await? {
            Outcome::Put { .. } | Outcome::Deleted { .. } => Ok(true),
            Outcome::NotMatched { .. } => Ok(false),
            Outcome::Refused(refusal) => Err(convert::refusal_to_error(&refusal)),
            other => Err(Error::corrupt(format!("a compare-and-swap came to {other:?}"))),
        }
    }
}
