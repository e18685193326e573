//! Reads at a timestamp of the caller's choice.

use super::{Client, Record, Scan, ScanOptions, Timestamp};
use crate::types::{Error, Result};

/// All of the store as it was at one timestamp: reads see one instant over all shards, however often and however
/// late they come. Made by [`Client::snapshot`]; cheap to clone.
///
/// Versions are kept for as long as the changelog, an hour unless the nodes are told otherwise, and never less than ten
/// minutes. After that reads are refused as `TooOld`.
#[derive(Clone, Debug)]
pub struct Snapshot {
    client: Client,
    at: Timestamp,
}

impl Client {
    /// The store as it was at `at`: a timestamp that a reply gave, or [`timestamp`](Client::timestamp) for now.
    ///
    /// ```no_run
    /// # async fn example(client: kvorum::Client) -> kvorum::Result<()> {
    /// let before = client.snapshot(client.timestamp().await?);
    /// client.put("colour", "red").await?;
    /// println!("it was {:?}", before.get("colour").await?);
    /// # Ok(())
    /// # }
    /// ```
    pub fn snapshot(&self, at: Timestamp) -> Snapshot {
        Snapshot { client: self.clone(), at }
    }
}

impl Snapshot {
    /// The timestamp that is read at.
    pub fn at(&self) -> Timestamp {
        self.at
    }

    /// Reads a value.
    ///
    /// # Errors
    /// Of every read: `TooOld` where the timestamp's versions are gone; `Invalid` where it is 0 or was not handed out
    /// yet, and for an empty or overlong key; `Unavailable` where no node could serve it by the client's deadline.
    pub async fn get(&self, key: impl AsRef<[u8]>) -> Result<Option<Record>> {
        self.client.get_at(key, self.at).await
    }

    /// Reads several keys, in their order. Limits are those of [`Client::get_many`].
    pub async fn get_many<K: AsRef<[u8]>>(
        &self,
        keys: impl IntoIterator<Item = K>,
    ) -> Result<Vec<Option<Record>>> {
        Ok(self.client.get_many_at(keys, self.at).await?.records)
    }

    /// Reads the rows of a range in order. Wrong options are the stream's first item, as an error; another
    /// timestamp among them is wrong.
    pub fn scan(&self, options: ScanOptions) -> Scan {
        match options.at {
            Some(other) if other != self.at => Scan::failed(Error::invalid(format!(
                "the scan asks for timestamp {other} in a snapshot at {}: leave `at` out",
                self.at
            ))),
            _ => self.client.scan(options.at(self.at)),
        }
    }
}
