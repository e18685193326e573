//! The load: so many clients, each with one operation under way at a time.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use hdrhistogram::Histogram;
use rand::rngs::SmallRng;
use rand::{Rng, RngCore, SeedableRng};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::follow::Place;
use crate::indexes::{self, Beside};
use crate::system::{Level, Reads, System};
use crate::{KEYS, Result, VALUE_BYTES, follow, sagas};

/// Latencies are kept from 1 us to this, with three digits.
const MAX_LATENCY_US: u64 = 60 * 1_000_000;
/// Clients that write the keys before the measurement.
const LOADING_CLIENTS: u64 = 64;

/// A load: so many clients that do this.
#[derive(Clone, Debug)]
pub struct Load {
    /// What they do.
    pub operation: Operation,
    /// How many they are.
    pub clients: usize,
    /// The numbers of the keys that they draw from.
    pub keys: Range<u64>,
    /// Of consumers that catch up: where.
    pub from: Option<Place>,
}

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
    /// Linearizable reads of random keys of one shard.
    GetOneShard,
    /// Reads of random keys of one shard that may be a little old.
    BoundedGetOneShard,
    /// Linearizable reads of random keys of one shard, to compare with those beside a slow node.
    GetAllWell,
    /// Linearizable reads of random keys of one shard, one of whose followers is slow.
    GetOneSlow,
    /// So many consumers are told of writes to random keys while they are made.
    Follow(usize),
    /// So many consumers are told of many writes that were made before.
    CatchUp(usize),
    /// Beside query indexes.
    Indexes(Beside),
    /// Sagas of so many steps.
    Sagas(u32),
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
            Self::GetOneShard => "get, one shard",
            Self::BoundedGetOneShard => "bounded get, one shard",
            Self::GetAllWell => "get, one shard, all nodes well",
            Self::GetOneSlow => "get, one shard, one slow node",
            Self::Follow(1) => "follow puts, 1 consumer",
            Self::Follow(_) => "follow puts, 10 consumers",
            Self::CatchUp(1) => "catch up, 1 consumer",
            Self::CatchUp(_) => "catch up, 10 consumers",
            Self::Indexes(Beside::Puts(0)) => "put of JSON, no index",
            Self::Indexes(Beside::Puts(1)) => "put of JSON, 1 index",
            Self::Indexes(Beside::Puts(_)) => "put of JSON, 5 indexes",
            Self::Indexes(Beside::OwnWrites(1)) => "query own write at 80 % load, 1 index",
            Self::Indexes(Beside::OwnWrites(_)) => "query own write at 80 % load, 5 indexes",
            Self::Indexes(Beside::CatchUp) => "index catches up",
            Self::Sagas(1) => "saga of one step",
            Self::Sagas(_) => "saga of ten steps",
        }
    }

    /// Whether a call that does nothing tells how much of it the transport takes.
    pub fn has_ceiling(self) -> bool {
        matches!(self, Self::Put | Self::Get)
    }

    /// Whether it reads keys of one shard only.
    pub fn is_of_one_shard(self) -> bool {
        matches!(self, Self::GetOneShard | Self::BoundedGetOneShard | Self::GetAllWell | Self::GetOneSlow)
    }

    /// Whether it matters to it who answers reads.
    pub fn has_reads(self) -> bool {
        matches!(self, Self::Get | Self::ReadModifyWrite(_)) || self.is_of_one_shard()
    }
}

/// What one measurement gave.
pub struct Measured {
    /// Microseconds of each operation that succeeded.
    pub latencies: Histogram<u64>,
    /// Attempts at the operations that succeeded: more than them where conflicts were retried.
    pub attempts: u64,
    /// How many reads each node served, where the system tells.
    pub served: BTreeMap<u64, u64>,
    /// Operations that failed.
    pub errors: u64,
    /// How long it took.
    pub took: Duration,
}

/// An empty histogram of latencies.
pub fn histogram() -> Result<Histogram<u64>> {
    Ok(Histogram::new_with_bounds(1, MAX_LATENCY_US, 3)?)
}

/// The key of a number.
pub fn key(number: u64) -> String {
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

/// Clients write so many values, over all keys in turn. `value` makes the one of a number.
pub async fn write_in_turn(
    system: &System,
    clients: usize,
    count: u64,
    value: fn(u64, &mut SmallRng) -> Bytes,
) -> Result<()> {
    let next = Arc::new(AtomicU64::new(0));
    let mut writing: JoinSet<Result<()>> = JoinSet::new();
    for client in 0..clients {
        let (system, next) = (system.clone(), next.clone());
        writing.spawn(async move {
            let mut random = SmallRng::seed_from_u64(client as u64);
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= count {
                    return Ok(());
                }
                system.put(client, key(number % KEYS), value(number, &mut random)).await?;
            }
        });
    }
    while let Some(written) = writing.join_next().await {
        written??;
    }
    Ok(())
}

/// Runs the load's clients for `length`.
pub async fn measure(system: &System, load: &Load, length: Duration) -> Result<Measured> {
    match load.operation {
        Operation::Follow(consumers) => return follow::live(system, load, consumers, length).await,
        Operation::CatchUp(consumers) => return follow::catch_up(system, load, consumers).await,
        Operation::Indexes(beside) => return indexes::measure(system, load, beside, length).await,
        Operation::Sagas(steps) => return sagas::measure(system, load.clients, steps, length).await,
        _ => {}
    }
    let started = Instant::now();
    let until = started + length;
    let mut tasks = JoinSet::new();
    for client in 0..load.clients {
        tasks.spawn(one_client(system.clone(), load.clone(), client, until));
    }
    let mut measured = nothing()?;
    while let Some(joined) = tasks.join_next().await {
        let one = joined??;
        measured.latencies.add(one.latencies)?;
        measured.attempts += one.attempts;
        measured.errors += one.errors;
        for (node, reads) in one.served {
            *measured.served.entry(node).or_default() += reads;
        }
    }
    measured.took = started.elapsed();
    Ok(measured)
}

/// A measurement of nothing yet.
pub fn nothing() -> Result<Measured> {
    let (served, took) = (BTreeMap::new(), Duration::ZERO);
    Ok(Measured { latencies: histogram()?, attempts: 0, served, errors: 0, took })
}

async fn one_client(system: System, load: Load, client: usize, until: Instant) -> Result<Measured> {
    let mut random = SmallRng::seed_from_u64(client as u64);
    let mut measured = nothing()?;
    for turn in client.. {
        let began = Instant::now();
        if began >= until {
            break;
        }
        match one_operation(&system, &load, client, turn, &mut random).await {
            Ok(done) => {
                measured.attempts += u64::from(done.attempts);
                measured.latencies.saturating_record(began.elapsed().as_micros() as u64);
                if let Some(node) = done.served_by {
                    *measured.served.entry(node).or_default() += 1;
                }
            }
            Err(_) => {
                measured.errors += 1;
                // An error that comes at once would make the client spin.
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    }
    Ok(measured)
}

/// How an operation was done.
struct Done {
    attempts: u32,
    served_by: Option<u64>,
}

/// Does one operation, the `turn`th of all.
async fn one_operation(
    system: &System,
    load: &Load,
    client: usize,
    turn: usize,
    random: &mut SmallRng,
) -> Result<Done> {
    let number = random.random_range(load.keys.clone());
    let attempts = match load.operation {
        Operation::Put => system.put(client, key(number), value(random)).await.map(|()| 1)?,
        Operation::Get | Operation::GetOneShard | Operation::GetAllWell | Operation::GetOneSlow => {
            return get(system, client, turn, key(number), Level::Linearizable).await;
        }
        Operation::Follow(_) | Operation::CatchUp(_) | Operation::Indexes(_) | Operation::Sagas(_) => {
            return Err("what follows writes is measured elsewhere".into());
        }
        Operation::BoundedGetOneShard => {
            return get(system, client, turn, key(number), Level::Bounded).await;
        }
        // Shards are cut at every tenth key, so that an even key and the next one are of one shard.
        Operation::TxnOneShard => {
            let even = number / 2 * 2;
            system.put_two(client, [key(even), key(even + 1)], value(random)).await?
        }
        Operation::TxnTwoShards => {
            let other = (number + KEYS / 2) % KEYS;
            system.put_two(client, [key(number), key(other)], value(random)).await?
        }
        Operation::ReadModifyWrite(contention) => {
            // Spread over all shards.
            let number = random.random_range(0..contention.keys()) * (KEYS / contention.keys());
            system.read_modify_write(client, key(number), value(random)).await?
        }
    };
    Ok(Done { attempts, served_by: None })
}

/// Does one read: where the system's reads go round, the client's next one goes to the next node.
async fn get(system: &System, client: usize, turn: usize, key: String, level: Level) -> Result<Done> {
    let turn = if system.reads() == Some(Reads::InTurn) { turn } else { client };
    Ok(Done { attempts: 1, served_by: system.get(turn, key, level).await? })
}
