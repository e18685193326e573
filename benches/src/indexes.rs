//! The load beside query indexes: what they cost writers, how far behind they are, and how fast they catch up.
//!
//! Only kvorum has them. They are made before a measurement and dropped after it. The values are JSON here, so that there
//! is something to index.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use kvorum::Client;
use kvorum::client::IndexSpec;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::load::{self, Load, Measured};
use crate::system::System;
use crate::{KEYS, Result, VALUE_BYTES};

/// Writes that an index catches up with.
const BACKLOG: u64 = 30_000;
/// How long anything may take that is waited for.
const PATIENCE: Duration = Duration::from_secs(60);
/// The key of the row that a halted index stands before.
const BAD_KEY: &str = "bench/~bad";

/// What is measured.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Beside {
    /// Writes to random keys, with so many indexes over them.
    Puts(usize),
    /// Rows that are written and then queried at their own timestamps, while others write four fifths of what they can.
    OwnWrites(usize),
    /// One index takes in many changes that have waited for it.
    CatchUp,
}

fn client(system: &System) -> Result<&Client> {
    match system {
        System::Kvorum(clients, _) => Ok(clients.first().ok_or("no client")?),
        System::Etcd(..) | System::Ceiling(_) => Err("only kvorum has indexes".into()),
    }
}

/// The indexes that are kept up, in this order.
fn specs() -> Vec<IndexSpec> {
    let index =
        |name: &str, kind: &str| IndexSpec::new(name, kind).prefix("bench/").on("$.team").on_error("skip");
    vec![
        index("bench_value", "value").on("$.number"),
        index("bench_count", "count"),
        index("bench_sum", "sum").measure("$.score"),
        index("bench_min", "min").measure("$.score"),
        index("bench_unique", "unique").on("$.number"),
    ]
}

/// A row of one of a hundred teams.
fn row(number: u64, random: &mut SmallRng) -> Bytes {
    let (team, score) = (random.random_range(0..100), random.random_range(0..10_000));
    let mut row = format!("{{\"number\":{number},\"team\":\"team {team}\",\"score\":{score},\"more\":\"");
    let filled = VALUE_BYTES.saturating_sub(row.len() + 2);
    row.extend((0..filled).map(|_| char::from(random.random_range(b'a'..=b'z'))));
    row.push_str("\"}");
    row.into()
}

async fn until<T>(what: &str, mut look: impl AsyncFnMut() -> Result<Option<T>>) -> Result<T> {
    let give_up_at = Instant::now() + PATIENCE;
    while Instant::now() < give_up_at {
        if let Some(found) = look().await? {
            return Ok(found);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Err(format!("waited too long until {what}").into())
}

async fn make(client: &Client, specs: &[IndexSpec]) -> Result<()> {
    for spec in specs {
        client.create_index(spec.clone()).await?;
    }
    for spec in specs {
        until("an index is built", async || {
            let record = client.index(&spec.name).await?.and_then(|status| status.record);
            Ok(record.filter(|record| record.active.is_some()))
        })
        .await?;
    }
    Ok(())
}

async fn drop_all(client: &Client, specs: &[IndexSpec]) -> Result<()> {
    for spec in specs {
        client.drop_index(&spec.name).await?;
    }
    for spec in specs {
        until("an index is cleared away", async || {
            Ok(client.index(&spec.name).await?.is_none().then_some(()))
        })
        .await?;
    }
    Ok(())
}

/// Measures; the indexes are there meanwhile.
pub async fn measure(system: &System, load: &Load, beside: Beside, length: Duration) -> Result<Measured> {
    let client = client(system)?;
    let count = match beside {
        Beside::Puts(count) | Beside::OwnWrites(count) => count,
        Beside::CatchUp => return catch_up(system, load).await,
    };
    let specs: Vec<IndexSpec> = specs().into_iter().take(count).collect();
    make(client, &specs).await?;
    let measured = match beside {
        Beside::OwnWrites(_) => own_writes(system, load, length).await?,
        Beside::Puts(_) | Beside::CatchUp => puts(system, load.clients, None, length).await?,
    };
    drop_all(client, &specs).await?;
    Ok(measured)
}

/// So many clients write rows, each at most so often.
async fn puts(
    system: &System,
    clients: usize,
    pause: Option<Duration>,
    length: Duration,
) -> Result<Measured> {
    let (began, next) = (Instant::now(), Arc::new(AtomicU64::new(0)));
    let mut writing: JoinSet<Result<Measured>> = JoinSet::new();
    for client in 0..clients {
        let (system, next) = (system.clone(), next.clone());
        writing.spawn(async move {
            let mut random = SmallRng::seed_from_u64(client as u64);
            let mut measured = load::nothing()?;
            let mut due = Instant::now();
            while began.elapsed() < length {
                if let Some(pause) = pause {
                    // What was late is not made up for all at once.
                    due = (due + pause).max(Instant::now() - pause);
                    tokio::time::sleep_until(due).await;
                }
                let number = next.fetch_add(1, Ordering::Relaxed);
                let (key, value) = (load::key(random.random_range(0..KEYS)), row(number, &mut random));
                let from = Instant::now();
                system.put(client, key, value).await?;
                measured.attempts += 1;
                measured.latencies.saturating_record(from.elapsed().as_micros() as u64);
            }
            Ok(measured)
        });
    }
    let mut measured = load::nothing()?;
    while let Some(one) = writing.join_next().await {
        let one = one??;
        measured.attempts += one.attempts;
        measured.latencies.add(one.latencies)?;
    }
    measured.took = began.elapsed();
    Ok(measured)
}

/// One client writes rows and queries each at its own timestamp, while the load's clients write four fifths of what they
/// can with these indexes. A latency is from the acknowledgement to the answer.
async fn own_writes(system: &System, load: &Load, length: Duration) -> Result<Measured> {
    let free = puts(system, load.clients, None, length / 2).await?;
    let each = free.took.mul_f64(load.clients as f64 / free.attempts.max(1) as f64 / 0.8);
    let writing = {
        let (system, clients) = (system.clone(), load.clients);
        tokio::spawn(async move { puts(&system, clients, Some(each), length).await })
    };
    let client = client(system)?;
    let mut measured = load::nothing()?;
    let mut random = SmallRng::seed_from_u64(u64::MAX);
    let began = Instant::now();
    for number in 0.. {
        if began.elapsed() >= length {
            break;
        }
        let written = client.put(load::key(number % KEYS), row((1 << 40) + number, &mut random)).await?;
        let from = Instant::now();
        let page = client.query("bench_value").limit(1).at_least(written.commit_ts).page().await?;
        if page.watermark < written.commit_ts {
            return Err("an index answered too early".into());
        }
        measured.attempts += 1;
        measured.latencies.saturating_record(from.elapsed().as_micros() as u64);
    }
    measured.took = began.elapsed();
    writing.await??;
    Ok(measured)
}

/// An index halts before a bad row, many rows are written behind that, and the index goes on without it. A measurement is
/// one of all changes: latencies say nothing.
async fn catch_up(system: &System, load: &Load) -> Result<Measured> {
    let client = client(system)?;
    let spec = IndexSpec::new("bench_late", "value").prefix("bench/").on("$.team").on("$.number");
    // What the other loads have left is no JSON, and would halt it too early.
    load::write_in_turn(system, load.clients, KEYS, row).await?;
    make(client, std::slice::from_ref(&spec)).await?;
    client.put(BAD_KEY, "no JSON").await?;
    until("the index has halted", async || {
        let status = client.index(&spec.name).await?;
        let halted =
            |status: &kvorum::client::IndexStatus| status.progress.iter().any(|one| one.state == "halted");
        Ok(status.filter(halted).map(|_| ()))
    })
    .await?;
    load::write_in_turn(system, load.clients, BACKLOG, row).await?;
    let end = client.timestamp().await?;
    let began = Instant::now();
    client.resume_index(&spec.name, true).await?;
    client.with_deadline(PATIENCE).query(&spec.name).limit(1).at_least(end).page().await?;
    let mut measured = load::nothing()?;
    measured.took = began.elapsed();
    measured.attempts = BACKLOG;
    let each_us = (measured.took.as_micros() as u64 / measured.attempts.max(1)).max(1);
    measured.latencies.record_n(each_us, measured.attempts)?;
    drop_all(client, std::slice::from_ref(&spec)).await?;
    client.delete(BAD_KEY).await?;
    Ok(measured)
}
