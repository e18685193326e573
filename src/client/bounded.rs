//! Reads that may be a little old, and go on without the shards' leaders.

use std::time::Duration;

use super::{Client, Record, Scan, ScanOptions, Values};
use crate::types::{Error, ReadAt, Result};

/// All of the store, at most so old: each call sees one instant over all its keys and shards, which may lie so far back.
/// Any replica answers by itself, also where its shard has lost its majority. Made by [`Client::bounded`]; cheap to
/// clone.
///
/// Two calls may see two instants, and the later call the earlier one. Where that matters, read on at the first one's
/// timestamp with [`Client::snapshot`].
#[derive(Clone, Debug)]
pub struct Bounded {
    client: Client,
    at: ReadAt,
}

impl Client {
    /// The store, at most `max_staleness` old: 1 ms to ten minutes, in whole milliseconds.
    ///
    /// ```no_run
    /// # async fn example(client: kvorum::Client) -> kvorum::Result<()> {
    /// let recent = client.bounded(std::time::Duration::from_secs(5));
    /// println!("some seconds ago at most it was {:?}", recent.get("colour").await?);
    /// # Ok(())
    /// # }
    /// ```
    pub fn bounded(&self, max_staleness: Duration) -> Bounded {
        let max_staleness_ms = u64::try_from(max_staleness.as_millis()).unwrap_or(u64::MAX);
        Bounded { client: self.clone(), at: ReadAt::Bounded { max_staleness_ms } }
    }
}

impl Bounded {
    /// Reads a value.
    ///
    /// # Errors
    /// Of every read: `Unavailable` where no replica had anything as fresh as that by the client's deadline; `Invalid`
    /// for a staleness out of range, and for an empty or overlong key.
    pub async fn get(&self, key: impl AsRef<[u8]>) -> Result<Option<Record>> {
        let at = super::reads::checked(self.at)?;
        Ok(self.client.get_as_of(key.as_ref(), at, None).await?.record)
    }

    /// Reads several keys, all at one instant. Limits are those of [`Client::get_many`].
    pub async fn get_many<K: AsRef<[u8]>>(&self, keys: impl IntoIterator<Item = K>) -> Result<Values> {
        let at = super::reads::checked(self.at)?;
        self.client.get_many_as_of(keys, at).await
    }

    /// Reads the rows of a range in order, all at one instant: the first page chooses it. Wrong options are the stream's
    /// first item, as an error; a timestamp among them is wrong.
    pub fn scan(&self, options: ScanOptions) -> Scan {
        match options.at {
            Some(other) => Scan::failed(Error::invalid(format!(
                "the scan asks for timestamp {other} and for a bounded read: leave the one or the other out"
            ))),
            None => self.client.scan_as_of(options, self.at),
        }
    }
}
