//! Values of a program's own types, stored as JSON.

use std::marker::PhantomData;

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Client, Expect, Row, Swap, Written};
use crate::rpc::convert;
use crate::types::{Error, Record, Result, Timestamp};

/// A view of a client in which every value is a `T`, stored as JSON. Made by [`Client::typed`].
pub struct Typed<T> {
    client: Client,
    value: PhantomData<fn() -> T>,
}

impl<T> Clone for Typed<T> {
    fn clone(&self) -> Self {
        Self { client: self.client.clone(), value: PhantomData }
    }
}

/// A value of a program's own type, and where it came from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TypedRecord<T> {
    /// The value.
    pub value: T,
    /// When this version was committed.
    pub commit_ts: Timestamp,
    /// When the key was created.
    pub create_ts: Timestamp,
    /// Counts the versions since the key was created; the first is 1.
    pub version: u64,
}

impl Client {
    /// This client, for values of type `T`.
    pub fn typed<T: Serialize + DeserializeOwned>(&self) -> Typed<T> {
        Typed { client: self.clone(), value: PhantomData }
    }
}

impl<T: Serialize + DeserializeOwned> Typed<T> {
    /// The client behind it.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Reads a value; `Corrupt` where it is not a `T` in JSON.
    pub async fn get(&self, key: impl AsRef<[u8]>) -> Result<Option<TypedRecord<T>>> {
        let key = key.as_ref();
        self.client.get(key).await?.map(|record| decode(key, record)).transpose()
    }

    /// Writes a value.
    pub async fn put(&self, key: impl AsRef<[u8]>, value: &T) -> Result<Written> {
        let key = key.as_ref();
        let encoded = encode(key, value)?;
        self.client.put(key, encoded).await
    }

    /// Writes a value where the key holds what is expected.
    pub async fn compare_and_swap(&self, key: impl AsRef<[u8]>, expect: Expect, value: &T) -> Result<Swap> {
        let key = key.as_ref();
        let encoded = encode(key, value)?;
        self.client.compare_and_swap(key, expect, Some(encoded)).await
    }

    /// Reads a value, changes it, and writes it where the key still holds what was read; again until it does
    /// or the deadline of one of the calls ends. `change` gets `None` for an absent key, and may run several
    /// times.
    pub async fn update(
        &self,
        key: impl AsRef<[u8]>,
        mut change: impl FnMut(Option<T>) -> T,
    ) -> Result<TypedRecord<T>> {
        let key = key.as_ref();
        let until = self.client.deadline.until()?;
        let client = self.client.with_deadline_at(until.into_std());
        let mut held = client.get(key).await?;
        loop {
            let expect = held.as_ref().map_or(Expect::Absent, |record| Expect::CommitTs(record.commit_ts));
            let old = held.map(|record| decode::<T>(key, record)).transpose()?;
            let value = change(old.map(|record| record.value));
            match client.compare_and_swap(key, expect, Some(encode(key, &value)?)).await? {
                Swap::Differs { current, .. } => held = current,
                Swap::Written(Written { commit_ts, version, create_ts }) => {
                    return Ok(TypedRecord { value, commit_ts, create_ts, version });
                }
                Swap::Removed { .. } => {
                    return Err(Error::undetermined("a node answered a write with a removal"));
                }
            }
        }
    }

    /// A row of a scan as the key and its value.
    pub fn row(&self, row: Row) -> Result<(Bytes, TypedRecord<T>)> {
        let record = decode(&row.key, row.record)?;
        Ok((row.key, record))
    }
}

pub(super) fn encode<T: Serialize>(key: &[u8], value: &T) -> Result<Bytes> {
    serde_json::to_vec(value).map(Bytes::from).map_err(|error| {
        Error::invalid(format!(
            "the value for key {} can't be written as JSON: {error}",
            convert::printable(key)
        ))
    })
}

pub(super) fn decode<T: DeserializeOwned>(key: &[u8], record: Record) -> Result<TypedRecord<T>> {
    let value = serde_json::from_slice(&record.value).map_err(|error| {
        Error::corrupt(format!(
            "the value of key {} is not the JSON of a {}: {error}; read it with the untyped client",
            convert::printable(key),
            std::any::type_name::<T>()
        ))
    })?;
    let Record { commit_ts, create_ts, version, .. } = record;
    Ok(TypedRecord { value, commit_ts, create_ts, version })
}
