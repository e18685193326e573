//! The load of those who follow: consumers that are told of every write, while clients write, or of many writes that
//! were made before.
//!
//! A value begins with a number, under which its writer notes when the write was acknowledged; a consumer's latency is
//! from then until it is told. One that is told before its writer knows has waited for nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use kvorum::client::{ChangeStream, Event, FollowOptions, Since, Timestamp};
use rand::rngs::SmallRng;
use rand::{Rng, RngCore, SeedableRng};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::load::{self, Load, Measured};
use crate::system::System;
use crate::{KEYS, Result, VALUE_BYTES};

/// What every key begins with.
const PREFIX: &str = "bench/";
/// The most writes of one measurement whose times are noted.
const MOST_WRITES: usize = 1 << 20;
/// Writes that consumers catch up with.
const BACKLOG: u64 = 30_000;
/// How long consumers may take to be told of the last write.
const PATIENCE: Duration = Duration::from_secs(60);

/// Where to begin to follow.
#[derive(Clone, Copy, Debug)]
pub enum Place {
    /// Behind this of kvorum's timestamps.
    Timestamp(u64),
    /// At this of etcd's revisions.
    Revision(i64),
}

/// Values written, one after the other.
enum Stream {
    Kvorum(ChangeStream),
    Etcd(etcd_client::WatchStream),
}

impl Stream {
    async fn begin(system: &System, consumer: usize, from: Option<Place>) -> Result<Self> {
        match system {
            System::Kvorum(clients, _) => {
                let since = match from {
                    Some(Place::Timestamp(ts)) => Since::Timestamp(Timestamp(ts)),
                    _ => Since::Now,
                };
                Ok(Self::Kvorum(clients[0].changes(FollowOptions::prefix(PREFIX).since(since))?))
            }
            System::Etcd(clients, _) => {
                let mut options = etcd_client::WatchOptions::new().with_prefix();
                if let Some(Place::Revision(revision)) = from {
                    options = options.with_start_revision(revision);
                }
                let mut client = clients[consumer % clients.len()].clone();
                Ok(Self::Etcd(client.watch(PREFIX, Some(options)).await?))
            }
            System::Ceiling(_) => Err("following has no ceiling".into()),
        }
    }

    /// Waits until it is told something, and has `each` see the values. Answers how many there were.
    async fn next(&mut self, mut each: impl FnMut(&[u8])) -> Result<u64> {
        let mut count = 0;
        match self {
            Self::Kvorum(stream) => {
                if let Event::Changes(changes) = stream.next().await?.event {
                    for value in changes.changes.iter().filter_map(|change| change.value.as_ref()) {
                        each(value);
                        count += 1;
                    }
                }
            }
            Self::Etcd(stream) => {
                let told = stream.message().await?.ok_or("etcd has ended a watch")?;
                for kv in told.events().iter().filter_map(etcd_client::Event::kv) {
                    each(kv.value());
                    count += 1;
                }
            }
        }
        Ok(count)
    }
}

/// When each write was acknowledged, in microseconds since the beginning; 0 while it is under way.
struct Times {
    began: Instant,
    acknowledged_us: Vec<AtomicU64>,
    next: AtomicU64,
}

impl Times {
    fn now_us(&self) -> u64 {
        self.began.elapsed().as_micros() as u64
    }
}

/// `consumers` follow while the load's clients write for `length`. The operations counted are what the consumers were told.
pub async fn live(system: &System, load: &Load, consumers: usize, length: Duration) -> Result<Measured> {
    let began = Instant::now();
    let acknowledged_us = (0..MOST_WRITES).map(|_| AtomicU64::new(0)).collect();
    let times = Arc::new(Times { began, acknowledged_us, next: AtomicU64::new(0) });
    let done = Arc::new(AtomicBool::new(false));
    let mut following = JoinSet::new();
    for consumer in 0..consumers {
        let stream = Stream::begin(system, consumer, None).await?;
        following.spawn(one_consumer(stream, times.clone(), done.clone()));
    }
    // Until all of them follow, what is written may be told to some only.
    tokio::time::sleep(Duration::from_millis(200)).await;
    let mut writing = JoinSet::new();
    let until = Instant::now() + length;
    for client in 0..load.clients {
        writing.spawn(one_writer(system.clone(), client, times.clone(), until));
    }
    while let Some(written) = writing.join_next().await {
        written??;
    }
    done.store(true, Ordering::Relaxed);
    // One more, which ends them.
    system.put(0, load::key(0), value(u64::MAX, &mut SmallRng::seed_from_u64(0))).await?;
    let mut measured = load::nothing()?;
    while let Some(one) = following.join_next().await {
        let latencies = one??;
        measured.attempts += latencies.len();
        measured.latencies.add(latencies)?;
    }
    measured.took = length;
    Ok(measured)
}

async fn one_writer(system: System, client: usize, times: Arc<Times>, until: Instant) -> Result<()> {
    let mut random = SmallRng::seed_from_u64(client as u64);
    while Instant::now() < until {
        let number = times.next.fetch_add(1, Ordering::Relaxed);
        let key = load::key(random.random_range(0..KEYS));
        system.put(client, key, value(number, &mut random)).await?;
        if let Some(acknowledged) = times.acknowledged_us.get(number as usize) {
            acknowledged.store(times.now_us(), Ordering::Relaxed);
        }
    }
    Ok(())
}

fn value(number: u64, random: &mut SmallRng) -> Bytes {
    let mut value = vec![0; VALUE_BYTES];
    random.fill_bytes(&mut value);
    value[..8].copy_from_slice(&number.to_be_bytes());
    value.into()
}

async fn one_consumer(
    mut stream: Stream,
    times: Arc<Times>,
    done: Arc<AtomicBool>,
) -> Result<hdrhistogram::Histogram<u64>> {
    let mut latencies = load::histogram()?;
    let mut ended = false;
    while !ended {
        let told = stream.next(|value| {
            let number = value.first_chunk().map_or(u64::MAX, |number| u64::from_be_bytes(*number));
            ended |= number == u64::MAX && done.load(Ordering::Relaxed);
            if let Some(acknowledged) = times.acknowledged_us.get(number as usize) {
                let waited_us = match acknowledged.load(Ordering::Relaxed) {
                    0 => 0,
                    acknowledged_us => times.now_us().saturating_sub(acknowledged_us),
                };
                latencies.saturating_record(waited_us.max(1));
            }
        });
        tokio::time::timeout(PATIENCE, told).await.map_err(|_| "a consumer is told nothing")??;
    }
    Ok(latencies)
}

/// Writes what consumers catch up with, and answers where that begins.
pub async fn write_backlog(system: &System, clients: usize) -> Result<Place> {
    let place = system.place().await?;
    load::write_in_turn(system, clients, BACKLOG, value).await?;
    Ok(place)
}

/// `consumers` are told as fast as they can be of what the load's clients have written before. Latencies say nothing here:
/// a measurement is one of all.
pub async fn catch_up(system: &System, load: &Load, consumers: usize) -> Result<Measured> {
    let from = load.from.ok_or("nothing was written to catch up with")?;
    let began = Instant::now();
    let mut following: JoinSet<Result<u64>> = JoinSet::new();
    for consumer in 0..consumers {
        let system = system.clone();
        following.spawn(async move {
            let mut stream = Stream::begin(&system, consumer, Some(from)).await?;
            let mut told = 0;
            while told < BACKLOG {
                let next = tokio::time::timeout(PATIENCE, stream.next(|_| ())).await;
                told += next.map_err(|_| "a consumer is told nothing")??;
            }
            Ok(told)
        });
    }
    let mut measured = load::nothing()?;
    while let Some(told) = following.join_next().await {
        measured.attempts += told??;
    }
    measured.took = began.elapsed();
    // All took so long: an event's share.
    let each_us = (measured.took.as_micros() as u64 * consumers as u64 / measured.attempts.max(1)).max(1);
    measured.latencies.record_n(each_us, measured.attempts)?;
    Ok(measured)
}
