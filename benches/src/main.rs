//! kvorum, etcd, and the transport's ceiling, measured side by side in one run.
//!
//! Three nodes of each system run on this machine. The systems take turns in short rounds, so that a disturbance
//! of the machine hits all of them. Run it through `scripts/bench`.

mod chart;
mod follow;
mod hot;
mod indexes;
mod load;
mod pauses;
mod report;
mod run;
mod sagas;
mod servers;
mod system;

use std::error::Error;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};

use report::Results;
use run::Extent;
use servers::Servers;

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
    /// One round of two seconds each instead of three of four: less than three minutes in all.
    #[arg(long)]
    quick: bool,
    /// Only rows whose names have this text in them, such as `saga`; nothing with a slow node.
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
}

#[tokio::main]
async fn main() -> Result<()> {
    let args = Args::parse();
    std::fs::create_dir_all(&args.out)?;
    let extent = extent(args.quick);
    let dir = tempfile::Builder::new().prefix("kvorum-bench-").tempdir()?;
    eprintln!("starting three nodes of kvorum and of etcd in {}", dir.path().display());
    let kvorum = Servers::kvorum(&args.kvorum, &dir.path().join("kvorum")).await?;
    let etcd = Servers::etcd(&args.etcd, &dir.path().join("etcd")).await?;
    let measured = tokio::select! {
        measured = run::all(&kvorum, &etcd, extent, args.only.as_deref()) => measured,
        stopped = interrupted() => Err(stopped),
    };
    // Also after an error, which is told first.
    let (kvorum, etcd) = (kvorum.stop().await, etcd.stop().await);
    let results = measured?;
    kvorum?;
    etcd?;
    write(&results, &args.out)
}

fn extent(quick: bool) -> Extent {
    if quick {
        Extent { rounds: 1, slow_rounds: 1, length: Duration::from_secs(2), with_most_clients: false }
    } else {
        Extent { rounds: 3, slow_rounds: 2, length: Duration::from_secs(4), with_most_clients: true }
    }
}

/// Ends when somebody wants the run to end, so that no node is left paused and no server left behind.
async fn interrupted() -> Box<dyn Error + Send + Sync> {
    let heard = async {
        let (mut interrupt, mut terminate) =
            (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        std::io::Result::Ok(())
    };
    match heard.await {
        Ok(()) => "stopped by a signal".into(),
        Err(error) => error.into(),
    }
}

fn write(results: &Results, out: &Path) -> Result<()> {
    println!("{}", results.table());
    let json = out.join("results.json");
    std::fs::write(&json, serde_json::to_vec_pretty(&results.json())?)?;
    let svg = out.join("chart.svg");
    std::fs::write(&svg, chart::svg(results))?;
    println!("written: {} and {}", json.display(), svg.display());
    Ok(())
}
