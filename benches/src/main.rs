//! kvorum, etcd, and the transport's ceiling, measured side by side in one run.
//!
//! Three nodes of each system run on this machine. The systems take turns in short rounds, so that a disturbance
//! of the machine hits all of them. Run it through `scripts/bench`.

mod chart;
mod load;
mod report;
mod servers;
mod system;

use std::error::Error;
use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;

use load::{Contention, Operation};
use report::Results;
use servers::Servers;
use system::System;

/// Numbers of clients to measure with.
const CLIENTS: [usize; 3] = [1, 64, 256];

/// Numbers of clients of transactions over two keys.
const TXN_CLIENTS: [usize; 2] = [1, 64];

/// Number of clients of read-modify-writes, at each level of contention.
const RMW_CLIENTS: usize = 64;

/// Bytes of a value.
pub const VALUE_BYTES: usize = 256;
/// How many different keys there are.
pub const KEYS: u64 = 10_000;

/// Any error ends the run.
pub type Result<T, E = Box<dyn Error + Send + Sync>> = std::result::Result<T, E>;

/// kvorum, etcd and the transport's ceiling, measured side by side.
#[derive(Parser, Debug)]
#[command(version, about)]
struct Args {
    /// The kvorum binary.
    #[arg(long, env = "KVORUM", value_name = "FILE")]
    kvorum: PathBuf,
    /// The etcd binary; Debian's etcd-server installs it as `etcd`.
    #[arg(long, env = "ETCD", default_value = "etcd", value_name = "FILE")]
    etcd: PathBuf,
    /// Where results.json and chart.svg go.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// One round of two seconds each instead of three of four: about two minutes in all.
    #[arg(long)]
    quick: bool,
}

#[tokio::main]
async fn main() -> Result<()> {
    let args = Args::parse();
    std::fs::create_dir_all(&args.out)?;
    let (rounds, length) = if args.quick { (1, Duration::from_secs(2)) } else { (3, Duration::from_secs(4)) };
    let dir = tempfile::Builder::new().prefix("kvorum-bench-").tempdir()?;
    eprintln!("starting three nodes of kvorum and of etcd in {}", dir.path().display());
    let kvorum_servers = Servers::kvorum(&args.kvorum, &dir.path().join("kvorum")).await?;
    let etcd_servers = Servers::etcd(&args.etcd, &dir.path().join("etcd")).await?;
    let kvorum = System::kvorum(&kvorum_servers.endpoints).await?;
    let etcd = System::etcd(&etcd_servers.endpoints).await?;
    let ceiling = kvorum.ceiling();

    let mut results = Results::new(&etcd_servers.version, rounds, length);
    for system in [&kvorum, &etcd] {
        load::write_all_keys(system).await?;
    }
    for round in 1..=rounds {
        for (operation, clients) in loads() {
            eprintln!("round {round} of {rounds}: {}, {clients} clients", operation.name());
            let systems = [(&kvorum, &kvorum_servers), (&etcd, &etcd_servers), (&ceiling, &kvorum_servers)];
            let count = if operation.has_ceiling() { systems.len() } else { systems.len() - 1 };
            for (system, servers) in &systems[..count] {
                let cpu_before = servers.cpu_time()?;
                let measured = load::measure(system, operation, clients, length).await?;
                let cpu = servers.cpu_time()?.saturating_sub(cpu_before);
                results.add(system.name(), operation, clients, &measured, cpu)?;
            }
        }
    }
    results.peak_memory("kvorum", kvorum_servers.peak_memory_kib()?);
    results.peak_memory("etcd", etcd_servers.peak_memory_kib()?);
    kvorum_servers.stop().await?;
    etcd_servers.stop().await?;

    println!("{}", results.table());
    let json = args.out.join("results.json");
    std::fs::write(&json, serde_json::to_vec_pretty(&results.json())?)?;
    let svg = args.out.join("chart.svg");
    std::fs::write(&svg, chart::svg(&results))?;
    println!("written: {} and {}", json.display(), svg.display());
    Ok(())
}

/// What is measured, with how many clients.
fn loads() -> Vec<(Operation, usize)> {
    let mut loads = Vec::new();
    for operation in [Operation::Put, Operation::Get] {
        loads.extend(CLIENTS.map(|clients| (operation, clients)));
    }
    for operation in [Operation::TxnOneShard, Operation::TxnTwoShards] {
        loads.extend(TXN_CLIENTS.map(|clients| (operation, clients)));
    }
    for contention in [Contention::Low, Contention::Medium, Contention::High] {
        loads.push((Operation::ReadModifyWrite(contention), RMW_CLIENTS));
    }
    loads
}
