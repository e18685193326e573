//! Reads at a shard's leader that may meet locks: what became of each holder is asked, then the keys are read
//! again in one view (rules R3 and R4).

use std::sync::Arc;

use bytes::Bytes;
use tokio::time::Instant;

use super::replica::{Replica, Seen};
use super::txn::{Router, resolve};
use crate::shard::{Fates, Page, PageRequest};
use crate::types::{Lock, Record, Result, Timestamp};

/// Reads one replica, and asks others about the locks that are met.
pub struct Reads<'a> {
    /// The replica.
    pub replica: &'a Arc<Replica>,
    /// The way to the primaries' leaders.
    pub router: &'a Router,
    /// Until when an answer is wanted.
    pub deadline: Instant,
}

impl Reads<'_> {
    /// The newest version of a key, linearizable. Where it is locked, the read goes on at a fresh timestamp:
    /// what is not committed at or below that may be left out (rule R3).
    ///
    /// # Errors
    ///
    /// Those of [`Replica`]'s reads; `Unavailable` where a holder's fate could not be learnt in time.
    pub async fn latest(&self, key: &Bytes) -> Result<Option<Record>> {
        match self.replica.get_latest(key, self.deadline).await? {
            Seen::Read(record) => Ok(record),
            Seen::Locked(_) => {
                let now = self.replica.read_timestamp(Timestamp::ZERO).await?;
                Ok(self.at(std::slice::from_ref(key), now).await?.pop().flatten())
            }
        }
    }

    /// Versions of keys as of `at`; see [`Replica::get_at`].
    ///
    /// # Errors
    ///
    /// As for [`latest`](Self::latest), and `TooOld` below the safe point.
    pub async fn at(&self, keys: &[Bytes], at: Timestamp) -> Result<Vec<Option<Record>>> {
        let mut fates = Fates::default();
        loop {
            match self.replica.get_at(keys, at, &fates, self.deadline).await? {
                Seen::Read(records) => return Ok(records),
                Seen::Locked(locks) => self.learn(&mut fates, locks, at).await?,
            }
        }
    }

    /// One page of rows as of `request.at`.
    ///
    /// # Errors
    ///
    /// As for [`at`](Self::at).
    pub async fn page(&self, request: &PageRequest) -> Result<Page> {
        let mut fates = Fates::default();
        loop {
            match self.replica.scan_page(request.clone(), &fates, self.deadline).await? {
                Seen::Read(page) => return Ok(page),
                Seen::Locked(locks) => self.learn(&mut fates, locks, request.at).await?,
            }
        }
    }

    /// Asks about each holder once. The answers hold for this timestamp only.
    async fn learn(&self, fates: &mut Fates, locks: Vec<Lock>, at: Timestamp) -> Result<()> {
        let mut holders: Vec<Lock> = Vec::new();
        for lock in locks {
            if !holders.iter().any(|known| known.txn == lock.txn) {
                holders.push(lock);
            }
        }
        let asked = holders.iter().map(|lock| resolve(self.router, lock, at, self.deadline));
        let answers = futures::future::try_join_all(asked).await?;
        fates.extend(holders.iter().map(|lock| lock.txn).zip(answers));
        Ok(())
    }
}
