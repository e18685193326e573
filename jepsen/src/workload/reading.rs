//! Read levels: what reads promise, and which replica answers them.

use std::collections::VecDeque;
use std::fmt;
use std::str::FromStr;
use std::time::{Duration, Instant};

use kvorum::client::{Policy, ReadAt, Record, ScanOptions, Timestamp, Values};
use kvorum::{Client, Error};
use parking_lot::Mutex;
use rand::seq::IteratorRandom;
use serde::{Deserialize, Serialize};

use super::Request;

/// How old bounded reads may be.
const STALENESS_MS: u64 = 1_500;
/// How old snapshots are at most when they are read at, and how old the reads may be for the checkers: a bit more.
const PAST_MS: u64 = 2_000;
const PAST_ALLOWED_MS: u64 = 2_500;
/// Timestamps that are kept to be read at.
const MOST_PAST: usize = 1_000;

/// What reads promise, and which replica answers them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ReadLevel {
    /// Every read sees every write that was acknowledged before it began; the leader of its shard answers.
    #[serde(alias = "linearizable")]
    LinearizableLeader,
    /// The same promise; all replicas answer.
    #[default]
    LinearizableBalanced,
    /// Reads outside transactions are at timestamps that were taken up to two seconds before; all replicas answer.
    Snapshot,
    /// Reads outside transactions see one instant at most 1.5 seconds ago; all replicas answer.
    Bounded,
}

impl ReadLevel {
    /// Every level.
    pub const ALL: [Self; 4] =
        [Self::LinearizableLeader, Self::LinearizableBalanced, Self::Snapshot, Self::Bounded];

    /// Its name on the command line and in results.
    pub const fn name(self) -> &'static str {
        match self {
            Self::LinearizableLeader => "linearizable-leader",
            Self::LinearizableBalanced => "linearizable-balanced",
            Self::Snapshot => "snapshot",
            Self::Bounded => "bounded",
        }
    }

    /// Whether reads see everything that was acknowledged before.
    pub const fn is_linearizable(self) -> bool {
        matches!(self, Self::LinearizableLeader | Self::LinearizableBalanced)
    }

    /// Which replicas a client's reads go to.
    pub const fn policy(self) -> Policy {
        match self {
            Self::LinearizableLeader => Policy::Leader,
            Self::LinearizableBalanced | Self::Snapshot | Self::Bounded => Policy::Balanced,
        }
    }

    /// How old a read may be that this request makes.
    pub fn staleness_ms(self, request: &Request) -> Option<u64> {
        let staleness_ms = match self {
            Self::LinearizableLeader | Self::LinearizableBalanced => return None,
            Self::Snapshot => PAST_ALLOWED_MS,
            Self::Bounded => STALENESS_MS,
        };
        request.only_reads().then_some(staleness_ms)
    }

    /// What a read outside transactions shall see.
    ///
    /// # Errors
    /// The store's, where a timestamp is needed.
    pub async fn read_at(self, client: &Client) -> Result<ReadAt, Error> {
        match self {
            Self::LinearizableLeader | Self::LinearizableBalanced => Ok(ReadAt::Latest),
            Self::Snapshot => PAST.take(client).await.map(ReadAt::Snapshot),
            Self::Bounded => Ok(ReadAt::Bounded { max_staleness_ms: STALENESS_MS }),
        }
    }
}

/// Timestamps that clients have taken lately.
static PAST: Past = Past(Mutex::new(VecDeque::new()));

struct Past(Mutex<VecDeque<(Instant, Timestamp)>>);

impl Past {
    /// One of some time ago. A new one is taken for those who come later.
    async fn take(&self, client: &Client) -> Result<Timestamp, Error> {
        let began = Instant::now();
        let new = client.timestamp().await?;
        let mut past = self.0.lock();
        past.push_back((began, new));
        let is_old = |(taken, _): &(Instant, Timestamp)| taken.elapsed() > Duration::from_millis(PAST_MS);
        while past.len() > MOST_PAST || past.front().is_some_and(is_old) {
            past.pop_front();
        }
        Ok(past.iter().choose(&mut rand::rng()).map_or(new, |(_, old)| *old))
    }
}

/// Several keys at one instant.
///
/// # Errors
/// The store's.
pub async fn get_many(client: &Client, keys: &[String], at: ReadAt) -> Result<Values, Error> {
    match at {
        ReadAt::Latest => client.get_many(keys).await,
        ReadAt::Snapshot(at) => client.get_many_at(keys, at).await,
        ReadAt::Bounded { max_staleness_ms } => {
            client.bounded(Duration::from_millis(max_staleness_ms)).get_many(keys).await
        }
    }
}

/// Everything there is, by one scan: keys, records, and the timestamp.
///
/// # Errors
/// The store's.
pub async fn scan_all(
    client: &Client,
    at: ReadAt,
) -> Result<(Vec<(String, Record)>, Option<Timestamp>), Error> {
    let mut rows = match at {
        ReadAt::Latest => client.scan(ScanOptions::all()),
        ReadAt::Snapshot(at) => client.scan(ScanOptions::all().at(at)),
        ReadAt::Bounded { max_staleness_ms } => {
            client.bounded(Duration::from_millis(max_staleness_ms)).scan(ScanOptions::all())
        }
    };
    let mut found = Vec::new();
    while let Some(row) = rows.next().await {
        let row = row?;
        found.push((String::from_utf8_lossy(&row.key).into_owned(), row.record));
    }
    Ok((found, rows.at_ts()))
}

impl fmt::Display for ReadLevel {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.name())
    }
}

impl FromStr for ReadLevel {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let known = Self::ALL.map(Self::name).join(", ");
        let found = Self::ALL.into_iter().find(|level| level.name() == name);
        found.ok_or_else(|| format!("there is no read level {name:?}; there are: {known}"))
    }
}
