//! `kvorum bench`: operations a second and latencies, as the clients of a running cluster see them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use clap::ValueEnum;
use futures::{StreamExt, TryStreamExt};
use hdrhistogram::Histogram;
use rand::rngs::SmallRng;
use rand::{Rng, RngCore, SeedableRng};
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::context::Context;
use super::failure::{Done, Failure};
use super::output::{self, Format, print_line};
use super::reads::ReadArgs;
use crate::client::{Client, ScanOptions};
use crate::types::limits::MAX_VALUE_BYTES;
use crate::types::{NodeId, ReadAt, Served};
use crate::{Error, Result};

/// Latencies are kept from 1 us to this, with three digits.
const MAX_LATENCY_US: u64 = 10 * 60 * 1_000_000;
/// Keys written at once before a measurement that reads.
const LOAD_IN_FLIGHT: usize = 256;

const EXAMPLES: &str = "\
Examples:
  kvorum bench put --clients 64 --value-bytes 256 --seconds 10
  kvorum --output json bench get --clients 256 --keys 100000
  kvorum bench get --level bounded --policy nearest --zone eu-1
  kvorum bench empty --clients 64                 the transport alone: no store, no consensus

get, scan and mixed first write the keys. JSON: ops, ops_per_s, p50_us, p95_us, p99_us, errors, and served_by: how many
reads each node answered, by its id.
Each client has one operation under way at a time. Latencies are of the operations that succeeded.";

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Load {
    /// Write values.
    Put,
    /// Reads of single keys.
    Get,
    /// Read --rows rows in key order.
    Scan,
    /// Half puts, half gets.
    Mixed,
    /// Calls that do nothing: the ceiling.
    Empty,
}

#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// What to do.
    load: Load,
    /// Clients at once.
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    clients: u32,
    /// Bytes of a value.
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u32).range(0..=MAX_VALUE_BYTES as i64))]
    value_bytes: u32,
    /// How many different keys there are.
    #[arg(long, value_name = "N", default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..))]
    keys: u64,
    /// How long to measure.
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    seconds: u64,
    /// Rows of a scan.
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..))]
    rows: u64,
    /// Put in front of every key.
    #[arg(long, value_name = "PREFIX", default_value = "bench/")]
    prefix: String,
    /// Read without writing the keys first: an earlier run did.
    #[arg(long)]
    no_load: bool,
    #[command(flatten)]
    reads: ReadArgs,
}

/// What all clients of a run share.
struct Run {
    client: Client,
    load: Load,
    keys: u64,
    rows: u64,
    prefix: String,
    value_bytes: usize,
    at: ReadAt,
    errors: AtomicU64,
}

/// What one client has seen, or all of them.
struct Measured {
    latencies: Histogram<u64>,
    /// Reads by the node that answered.
    served_by: BTreeMap<NodeId, u64>,
}

impl Measured {
    fn new() -> Result<Self> {
        Ok(Self { latencies: histogram()?, served_by: BTreeMap::new() })
    }

    fn add(&mut self, other: Self) -> Result<()> {
        self.latencies
            .add(other.latencies)
            .map_err(|error| Error::invalid(format!("latencies can't be added up: {error}")))?;
        for (node, reads) in other.served_by {
            *self.served_by.entry(node).or_default() += reads;
        }
        Ok(())
    }
}

pub async fn run(context: &Context, args: Args) -> Result<Done, Failure> {
    let run = Arc::new(Run {
        client: args.reads.client(context).await?,
        load: args.load,
        keys: args.keys,
        rows: args.rows,
        prefix: args.prefix.clone(),
        value_bytes: args.value_bytes as usize,
        at: args.reads.read_at(None)?,
        errors: AtomicU64::new(0),
    });
    if matches!(args.load, Load::Get | Load::Scan | Load::Mixed) && !args.no_load {
        run.write_all_keys().await?;
    }
    let (measured, took) = measure(&run, &args).await?;
    report(context, &measured, took, run.errors.load(Ordering::Relaxed))?;
    Ok(Done::Ok)
}

/// Runs all clients until the time is over; returns what they saw, and how long it took.
async fn measure(run: &Arc<Run>, args: &Args) -> Result<(Measured, Duration)> {
    let started = Instant::now();
    let until = started + Duration::from_secs(args.seconds);
    let mut clients = JoinSet::new();
    for seed in 0..u64::from(args.clients) {
        let run = run.clone();
        clients.spawn(async move { run.one_client(seed, until).await });
    }
    let mut all = Measured::new()?;
    while let Some(joined) = clients.join_next().await {
        let one =
            joined.map_err(|error| Error::unavailable(format!("a client's task failed: {error}")))??;
        all.add(one)?;
    }
    Ok((all, started.elapsed()))
}

fn histogram() -> Result<Histogram<u64>> {
    Histogram::new_with_bounds(1, MAX_LATENCY_US, 3)
        .map_err(|error| Error::invalid(format!("a histogram can't be made: {error}")))
}

impl Run {
    fn key(&self, number: u64) -> String {
        format!("{}{number:012}", self.prefix)
    }

    fn value(&self, random: &mut SmallRng) -> Bytes {
        let mut value = vec![0; self.value_bytes];
        random.fill_bytes(&mut value);
        value.into()
    }

    async fn write_all_keys(&self) -> Result<()> {
        let puts = (0..self.keys).map(|number| async move {
            let value = self.value(&mut SmallRng::seed_from_u64(number));
            self.client.put(self.key(number), value).await.map(|_| ())
        });
        futures::stream::iter(puts).buffer_unordered(LOAD_IN_FLIGHT).try_collect().await
    }

    async fn one_client(&self, seed: u64, until: Instant) -> Result<Measured> {
        let mut random = SmallRng::seed_from_u64(seed);
        let mut measured = Measured::new()?;
        loop {
            let began = Instant::now();
            if began >= until {
                return Ok(measured);
            }
            match self.one(&mut random).await {
                Ok(served) => {
                    let us = u64::try_from(began.elapsed().as_micros()).unwrap_or(MAX_LATENCY_US);
                    measured.latencies.saturating_record(us);
                    if let Some(served) = served {
                        *measured.served_by.entry(served.node).or_default() += 1;
                    }
                }
                Err(error) => {
                    self.errors.fetch_add(1, Ordering::Relaxed);
                    tracing::debug!(%error, kind = %error.kind, "an operation failed");
                    // An error that comes at once would make the clients spin.
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            }
        }
    }

    /// One operation. Tells who answered, of a read.
    async fn one(&self, random: &mut SmallRng) -> Result<Option<Served>> {
        let key = self.key(random.random_range(0..self.keys));
        let puts = match self.load {
            Load::Put => true,
            Load::Mixed => random.random(),
            Load::Get | Load::Scan | Load::Empty => false,
        };
        match self.load {
            Load::Empty => self.client.empty(self.value(random)).await.map(|()| None),
            Load::Scan => self.scan(key).await,
            _ if puts => self.client.put(key, self.value(random)).await.map(|_| None),
            _ => Ok(self.client.read(key, self.at).await?.served),
        }
    }

    async fn scan(&self, start: String) -> Result<Option<Served>> {
        let options = ScanOptions { prefix: self.prefix.clone().into(), ..ScanOptions::from(start) };
        let options = options.limit_rows(self.rows);
        let mut rows = match self.at {
            ReadAt::Latest | ReadAt::Snapshot(_) => self.client.scan(options),
            ReadAt::Bounded { max_staleness_ms } => {
                self.client.bounded(Duration::from_millis(max_staleness_ms)).scan(options)
            }
        };
        while let Some(row) = rows.next().await {
            row?;
        }
        Ok(rows.served())
    }
}

fn report(context: &Context, measured: &Measured, took: Duration, errors: u64) -> Result<(), Failure> {
    let latencies = &measured.latencies;
    let ops = latencies.len();
    #[allow(clippy::cast_precision_loss, reason = "a rate")]
    let ops_per_s = ops as f64 / took.as_secs_f64();
    let quantile = |share| latencies.value_at_quantile(share);
    let (p50, p95, p99) = (quantile(0.5), quantile(0.95), quantile(0.99));
    print_line(match context.output {
        Format::Json => json!({
            "ops": ops, "ops_per_s": ops_per_s, "p50_us": p50, "p95_us": p95, "p99_us": p99, "errors": errors,
            "served_by": served_by(measured),
        })
        .to_string(),
        Format::Text => {
            let mut table = output::table(&["OPS", "OPS/S", "P50 US", "P95 US", "P99 US", "ERRORS"]);
            table.add_row([
                ops.to_string(),
                format!("{ops_per_s:.0}"),
                p50.to_string(),
                p95.to_string(),
                p99.to_string(),
                errors.to_string(),
            ]);
            let shares = measured.served_by.iter().map(|(node, reads)| format!("node {node}: {reads}"));
            match measured.served_by.is_empty() {
                true => table.to_string(),
                false => format!("{table}\nreads answered by {}", shares.collect::<Vec<_>>().join(", ")),
            }
        }
    })
}

fn served_by(measured: &Measured) -> serde_json::Map<String, serde_json::Value> {
    measured.served_by.iter().map(|(node, reads)| (node.to_string(), (*reads).into())).collect()
}
