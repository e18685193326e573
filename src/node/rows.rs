//! The rows that the cluster keeps beside users' own, of indexes and of sagas: read on the replicas of this node, and
//! written by transactions like any others.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::dispatch::{Replicas, rest};
use super::reads::{Reads, WordBook};
use super::replica::Replica;
use super::timestamps::Timestamps;
use super::txn::{self, Router};
use crate::shard::{Page, PageRequest};
use crate::txn::TxnCommit;
use crate::types::{
    Direction, Error, KeyRange, Moved, ReadAt, Record, RequestId, Result, Timestamp, TxnPart, TxnWrite,
    limits,
};

/// Rows of a page, where all of a range are read.
const PAGE_ROWS: usize = 1_000;
/// Keys that are read together.
const KEYS_TOGETHER: usize = 2_000;

/// The rows of this node's replicas. Cheap to clone.
#[derive(Clone)]
pub struct Rows {
    replicas: Arc<Replicas>,
    timestamps: Timestamps,
    router: Router,
    words: Arc<WordBook>,
}

impl Rows {
    /// The rows that this node has replicas of.
    pub fn new(
        replicas: Arc<Replicas>,
        timestamps: Timestamps,
        router: Router,
        words: Arc<WordBook>,
    ) -> Self {
        Self { replicas, timestamps, router, words }
    }

    /// The replicas of shards with rows in a range.
    pub fn replicas_in(&self, range: &KeyRange) -> Vec<Arc<Replica>> {
        let has =
            |replica: &Arc<Replica>| replica.group().state().descriptor.range.intersect(range).is_some();
        self.replicas.all().into_iter().filter(has).collect()
    }

    /// Whether this node leads a shard with rows in a range.
    pub fn leads_any(&self, range: &KeyRange) -> bool {
        self.replicas_in(range).iter().any(|replica| replica.check_leads().is_ok())
    }

    /// Refuses what the leader of the shard that holds a key has to answer.
    ///
    /// # Errors
    ///
    /// `Moved` where this node is not that.
    pub fn check_leads(&self, key: &Bytes) -> Result<()> {
        self.holding(key)?.check_leads()
    }

    /// The replica that holds a key.
    ///
    /// # Errors
    ///
    /// `Moved` where this node has none.
    pub fn holding(&self, key: &[u8]) -> Result<Arc<Replica>> {
        self.replicas.holding(key).ok_or_else(|| {
            Error::moved(
                "this node has no replica of the shard that holds what was asked for: refresh the map",
                Moved::default(),
            )
        })
    }

    /// A timestamp above all that were handed out before.
    ///
    /// # Errors
    ///
    /// `Unavailable` where none can be had in time.
    pub async fn now(&self) -> Result<Timestamp> {
        self.timestamps.take(1).await
    }

    /// `ts`, or a fresh timestamp where it lies in the future.
    ///
    /// # Errors
    ///
    /// As for [`now`](Self::now).
    pub async fn at_most_now(&self, ts: Timestamp) -> Result<Timestamp> {
        match ts <= self.timestamps.newest_seen() {
            true => Ok(ts),
            false => Ok(ts.min(self.now().await?)),
        }
    }

    /// A timestamp that was handed out at most so long ago.
    ///
    /// # Errors
    ///
    /// As for [`now`](Self::now).
    pub async fn recent(&self, max_age: Duration) -> Result<Timestamp> {
        self.timestamps.recent(max_age).await
    }

    /// Keys at one timestamp, which is told.
    ///
    /// # Errors
    ///
    /// Those of a read.
    pub async fn read(
        &self,
        keys: &[Bytes],
        at: ReadAt,
        deadline: Instant,
    ) -> Result<(Timestamp, Vec<Option<Record>>)> {
        count_read();
        let mut at = at;
        let mut read_ts = Timestamp::ZERO;
        let mut records = Vec::with_capacity(keys.len());
        while let Some(first) = keys.get(records.len()) {
            let replica = self.holding(first)?;
            let range = replica.group().state().descriptor.range.clone();
            let left = keys.get(records.len()..).unwrap_or_default();
            let here = left.iter().take(KEYS_TOGETHER).take_while(|key| range.contains(key)).count();
            let together = left.get(..here.max(1)).unwrap_or_default();
            let answered = self.reads(&replica, deadline).many(together, at).await?;
            read_ts = answered.at;
            at = ReadAt::Snapshot(read_ts);
            records.extend(answered.value);
        }
        Ok((read_ts, records))
    }

    /// A page of rows of the shard that holds where the range begins. Its `next` also says where the next shard does.
    ///
    /// # Errors
    ///
    /// Those of a read; `Moved` where this node has no replica of that shard.
    pub async fn page(
        &self,
        range: KeyRange,
        direction: Direction,
        at: ReadAt,
        max_rows: usize,
        deadline: Instant,
    ) -> Result<Page> {
        count_read();
        let replica = match direction {
            Direction::Forward => self.holding(&range.start)?,
            Direction::Reverse => match self.replicas.holding_below(range.end.as_ref()) {
                Some(replica) => replica,
                None => self.holding(&range.start)?,
            },
        };
        let shard = replica.group().state().descriptor.range.clone();
        let Some(here) = shard.intersect(&range) else {
            return Err(replica.moved(None));
        };
        let request = PageRequest {
            range: here.clone(),
            direction,
            keys_only: false,
            at: Timestamp::ZERO,
            max_rows,
            max_bytes: limits::MAX_PAGE_BYTES,
        };
        let mut page = self.reads(&replica, deadline).page(request, at).await?.value;
        page.next = page.next.or_else(|| rest(&here, &range, direction));
        Ok(page)
    }

    /// The next page of the rows of a range that lies in one shard, from `from` on, which becomes where to go on; `None` once
    /// there is nothing to go on at. Each page may take so long.
    ///
    /// # Errors
    ///
    /// Those of a read.
    pub async fn next(
        &self,
        range: &KeyRange,
        from: &mut Option<Bytes>,
        at: ReadAt,
        within: Duration,
    ) -> Result<Option<Vec<(Bytes, Record)>>> {
        let Some(start) = from.take() else { return Ok(None) };
        let rest = KeyRange::new(start, range.end.clone());
        let page = self.page(rest, Direction::Forward, at, PAGE_ROWS, Instant::now() + within).await?;
        *from = page.next.filter(|next| range.contains(next));
        Ok(Some(page.rows))
    }

    /// All rows of a range that lies in one shard, and has few.
    ///
    /// # Errors
    ///
    /// Those of a read.
    pub async fn all(&self, range: &KeyRange, at: ReadAt, within: Duration) -> Result<Vec<(Bytes, Record)>> {
        let (mut rows, mut from) = (Vec::new(), Some(range.start.clone()));
        while let Some(page) = self.next(range, &mut from, at, within).await? {
            rows.extend(page);
        }
        Ok(rows)
    }

    fn reads<'a>(&'a self, replica: &'a Arc<Replica>, deadline: Instant) -> Reads<'a> {
        Reads { replica, router: &self.router, wide: self.words.node_wide(), deadline }
    }

    /// Commits a transaction that has read at `start`.
    ///
    /// # Errors
    ///
    /// `Conflict` where something that was read is another one now; `Undetermined` where it may have been committed;
    /// `Invalid` where it is over the limits of one.
    pub async fn commit(
        &self,
        start: Timestamp,
        reads: Vec<Bytes>,
        writes: Vec<TxnWrite>,
        deadline: Instant,
    ) -> Result<Timestamp> {
        let id = RequestId { seen: start, unique: rand::random() };
        let part = TxnPart { reads, ranges: Vec::new(), writes };
        let commit = TxnCommit { id, part }.normalise_own()?;
        txn::commit(&self.router, commit, deadline).await
    }
}

/// Counts a read, for metrics: what only waits makes none.
fn count_read() {
    static READS: LazyLock<metrics::Counter> = LazyLock::new(|| metrics::counter!("kvorum_own_reads_total"));
    READS.increment(1);
}
