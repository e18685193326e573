//! The load: so many clients, each with one operation under way at a time.

use std::time::Duration;

use bytes::Bytes;
use hdrhistogram::Histogram;
use rand::rngs::SmallRng;
use rand::{Rng, RngCore, SeedableRng};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::system::System;
use crate::{KEYS, Result, VALUE_BYTES};

/// Latencies are kept from 1 us to this, with three digits.
const MAX_LATENCY_US: u64 = 60 * 1_000_000;
/// Clients that write the keys before the measurement.
const LOADING_CLIENTS: u64 = 64;

/// What the clients do.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Operation {
    /// Writes to random keys.
    Put,
    /// Linearizable reads of random keys.
    Get,
    /// Transactions that write two neighbouring keys: of one shard.
    TxnOneShard,
    /// Transactions that write two keys half of all keys apart: of two shards.
    TxnTwoShards,
    /// Transactions that read a key and write it, until nobody was in between.
    ReadModifyWrite(Contention),
}

/// Over how many keys read-modify-writes are spread.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Contention {
    /// All: two clients hardly ever meet.
    Low,
    /// As many as there are clients.
    Medium,
    /// One.
    High,
}

impl Contention {
    fn keys(self) -> u64 {
        match self {
            Self::Low => KEYS,
            Self::Medium => 64,
            Self::High => 1,
        }
    }
}

impl Operation {
    /// Its name in the results.
    pub fn name(self) -> &'static str {
        match self {
            Self::Put => "put",
            Self::Get => "get",
            Self::TxnOneShard => "txn of 2 puts, 1 shard",
            Self::TxnTwoShards => "txn of 2 puts, 2 shards",
            Self::ReadModifyWrite(Contention::Low) => "rmw, 10000 keys",
            Self::ReadModifyWrite(Contention::Medium) => "rmw, 64 keys",
            Self::ReadModifyWrite(Contention::High) => "rmw, 1 key",
        }
    }

    /// Whether a call that does nothing tells how much of it the transport takes.
    pub fn has_ceiling(self) -> bool {
        matches!(self, Self::Put | Self::Get)
    }
}

/// What one measurement gave.
pub struct Measured {
    /// Microseconds of each operation that succeeded.
    pub latencies: Histogram<u64>,
    /// Attempts at the operations that succeeded: more than them where conflicts were retried.
    pub attempts: u64,
    /// Operations that failed.
    pub errors: u64,
    /// How long it took.
    pub took: Duration,
}

/// An empty histogram of latencies.
pub fn histogram() -> Result<Histogram<u64>> {
    Ok(Histogram::new_with_bounds(1, MAX_LATENCY_US, 3)?)
}

fn key(number: u64) -> String {
    format!("bench/{number:012}")
}

/// Keys like those that are used, one a line, to cut shards by.
pub fn sample_keys() -> String {
    (0..KEYS).step_by(10).map(|number| key(number) + "\n").collect()
}

fn value(random: &mut SmallRng) -> Bytes {
    let mut value = vec![0; VALUE_BYTES];
    random.fill_bytes(&mut value);
    value.into()
}

/// Writes every key once.
pub async fn write_all_keys(system: &System) -> Result<()> {
    let mut clients: JoinSet<Result<()>> = JoinSet::new();
    for client in 0..LOADING_CLIENTS {
        let system = system.clone();
        clients.spawn(async move {
            let mut random = SmallRng::seed_from_u64(client);
            for number in (client..KEYS).step_by(LOADING_CLIENTS as usize) {
                system.put(client as usize, key(number), value(&mut random)).await?;
            }
            Ok(())
        });
    }
    while let Some(joined) = clients.join_next().await {
        joined??;
    }
    Ok(())
}

/// Runs `clients` clients for `length`.
pub async fn measure(
    system: &System,
    operation: Operation,
    clients: usize,
    length: Duration,
) -> Result<Measured> {
    let started = Instant::now();
    let until = started + length;
    let mut tasks = JoinSet::new();
    for client in 0..clients {
        tasks.spawn(one_client(system.clone(), operation, client, until));
    }
    let mut measured = nothing()?;
    while let Some(joined) = tasks.join_next().await {
        let one = joined??;
        measured.latencies.add(one.latencies)?;
        measured.attempts += one.attempts;
        measured.errors += one.errors;
    }
    measured.took = started.elapsed();
    Ok(measured)
}

fn nothing() -> Result<Measured> {
    Ok(Measured { latencies: histogram()?, attempts: 0, errors: 0, took: Duration::ZERO })
}

async fn one_client(system: System, operation: Operation, client: usize, until: Instant) -> Result<Measured> {
    let mut random = SmallRng::seed_from_u64(client as u64);
    let mut measured = nothing()?;
    loop {
        let began = Instant::now();
        if began >= until {
            return Ok(measured);
        }
        match one_operation(&system, operation, client, &mut random).await {
            Ok(attempts) => {
                measured.attempts += u64::from(attempts);
                measured.latencies.saturating_record(began.elapsed().as_micros() as u64);
            }
            Err(_) => {
                measured.errors += 1;
                // An error that comes at once would make the client spin.
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    }
}

/// Does one operation; answers how many attempts it took.
async fn one_operation(
    system: &System,
    operation: Operation,
    client: usize,
    random: &mut SmallRng,
) -> Result<u32> {
    let number = random.random_range(0..KEYS);
    match operation {
        Operation::Put => system.put(client, key(number), value(random)).await.map(|()| 1),
        Operation::Get => system.get(client, key(number)).await.map(|()| 1),
        // Shards are cut at every tenth key, so that an even key and the next one are of one shard.
        Operation::TxnOneShard => {
            let even = number / 2 * 2;
            system.put_two(client, [key(even), key(even + 1)], value(random)).await
        }
        Operation::TxnTwoShards => {
            let other = (number + KEYS / 2) % KEYS;
            system.put_two(client, [key(number), key(other)], value(random)).await
        }
        Operation::ReadModifyWrite(contention) => {
            // Spread over all shards.
            let number = random.random_range(0..contention.keys()) * (KEYS / contention.keys());
            system.read_modify_write(client, key(number), value(random)).await
        }
    }
}
