//! Values of a program's own types inside a transaction, stored as JSON.

use std::marker::PhantomData;

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::Txn;
use crate::client::typed::{decode, encode};
use crate::client::{Row, TypedRecord};
use crate::types::Result;

/// A view of a transaction in which every value is a `T`, stored as JSON. Made by [`Txn::typed`].
pub struct TypedTxn<T> {
    txn: Txn,
    value: PhantomData<fn() -> T>,
}

impl<T> Clone for TypedTxn<T> {
    fn clone(&self) -> Self {
        Self { txn: self.txn.clone(), value: PhantomData }
    }
}

impl<T: Serialize + DeserializeOwned> TypedTxn<T> {
    pub(super) fn new(txn: Txn) -> Self {
        Self { txn, value: PhantomData }
    }

    /// Reads a value; `Corrupt` where it is not a `T` in JSON.
    pub async fn get(&self, key: impl AsRef<[u8]>) -> Result<Option<TypedRecord<T>>> {
        let key = key.as_ref();
        self.txn.get(key).await?.map(|record| decode(key, record)).transpose()
    }

    /// Writes a value.
    pub fn put(&self, key: impl AsRef<[u8]>, value: &T) -> Result<()> {
        let key = key.as_ref();
        self.txn.put(key, encode(key, value)?)
    }

    /// Reads a value, changes it and writes it back. `change` gets `None` for an absent key.
    pub async fn update(&self, key: impl AsRef<[u8]>, change: impl FnOnce(Option<T>) -> T) -> Result<()> {
        let key = key.as_ref();
        let held = self.get(key).await?;
        self.put(key, &change(held.map(|record| record.value)))
    }

    /// A row of a scan as the key and its value.
    pub fn row(&self, row: Row) -> Result<(Bytes, TypedRecord<T>)> {
        let record = decode(&row.key, row.record)?;
        Ok((row.key, record))
    }
}
