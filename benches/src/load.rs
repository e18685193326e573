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
}

impl Operation {
    /// Its name in the results.
    pub fn name(self) -> &'static str {
        match self {
            Self::Put => "put",
            Self::Get => "get",
        }
    }
}

/// What one measurement gave.
pub struct Measured {
    /// Microseconds of each operation that succeeded.
    pub latencies: Histogram<u64>,
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
    let mut measured = Measured { latencies: histogram()?, errors: 0, took: Duration::ZERO };
    while let Some(joined) = tasks.join_next().await {
        let (latencies, errors) = joined??;
        measured.latencies.add(latencies)?;
        measured.errors += errors;
    }
    measured.took = started.elapsed();
    Ok(measured)
}

async fn one_client(
    system: System,
    operation: Operation,
    client: usize,
    until: Instant,
) -> Result<(Histogram<u64>, u64)> {
    let mut random = SmallRng::seed_from_u64(client as u64);
    let mut latencies = histogram()?;
    let mut errors = 0;
    loop {
        let began = Instant::now();
        if began >= until {
            return Ok((latencies, errors));
        }
        let key = key(random.random_range(0..KEYS));
        let done = match operation {
            Operation::Put => system.put(client, key, value(&mut random)).await,
            Operation::Get => system.get(client, key).await,
        };
        match done {
            Ok(()) => latencies.saturating_record(began.elapsed().as_micros() as u64),
            Err(_) => {
                errors += 1;
                // An error that comes at once would make the client spin.
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    }
}
