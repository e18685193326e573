//! Floor 7: the `kvorum` command. One file a command; what they share is in `context`, `input`, `output`
//! and `failure`.

mod add;
mod admin;
mod bench;
mod cas;
mod checksum;
mod cluster;
mod completion;
mod consumer;
mod context;
mod delete;
mod export;
mod failure;
mod get;
mod import;
mod index;
mod init;
mod input;
mod local;
mod logging;
mod output;
mod put;
mod query;
mod reads;
mod records;
mod saga;
mod scan;
mod serve;
mod status;
mod supervise;
mod timestamp;
mod txn;
mod verify;
mod watch;

use std::process::ExitCode;
use std::time::Duration;

use clap::error::ErrorKind as UsageKind;
use clap::{CommandFactory, Parser, Subcommand};

use crate::Error;
use context::{Context, GlobalArgs};
use failure::{Done, Failure};
use output::Format;

/// How long a node that has stopped may take to close its store.
const CLOSE_PATIENCE: Duration = Duration::from_secs(10);

const EXAMPLES: &str = "\
Examples:
  kvorum serve                                     a complete single-node store in ./kvorum-data
  kvorum cluster local --nodes 3 --dir dev         a cluster of three processes on this machine
  kvorum put user/1 '{\"name\":\"Ada\"}'
  kvorum get user/1
  kvorum scan --prefix user/ --limit 10
  printf 'add a -5\nadd b 5\n' | kvorum txn -       over any shards, as a whole or not at all
  kvorum watch --prefix user/ --since scan           what is there, then every change
  kvorum index create by_team --prefix user/ --kind value --on '$.team'
  kvorum query by_team --where 'team = \"blue\"'
  kvorum saga start trip trip-17 --input '{\"to\":\"Rome\"}' --wait
  kvorum --endpoints 10.0.0.1:7400,10.0.0.2:7400 status

Exit codes:
  0 done   1 no such key, or a condition not met   2 invalid   3 unavailable   4 conflict
  5 undetermined   6 too old   7 denied   8 corrupt   9 moved";

/// A Raft-replicated, sharded, strictly serializable key-value store.
#[derive(Parser, Debug)]
#[command(name = "kvorum", version, about, after_help = EXAMPLES, max_term_width = 110)]
struct Cli {
    #[command(flatten)]
    global: GlobalArgs,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Run a node.
    Serve(serve::Args),
    /// Form a cluster, or run one on this machine.
    Cluster(cluster::Args),
    /// Show the nodes, the shards, and who leads them.
    Status(status::Args),
    /// Write a value.
    Put(put::Args),
    /// Read a value; its bytes go to standard output as they are.
    Get(get::Args),
    /// Remove a key.
    Delete(delete::Args),
    /// Read the rows of a range in key order.
    Scan(scan::Args),
    /// Compare and swap: write where the key holds what is expected.
    Cas(cas::Args),
    /// Add to a counter.
    Add(add::Args),
    /// Follow what is committed: every transaction, whole and in order.
    Watch(watch::Args),
    /// The named consumers of the changelog, and how far behind each is.
    Consumer(consumer::Args),
    /// Query indexes: make them, see how far they are, build them anew.
    Index(index::Args),
    /// Ask an index: rows by their fields, groups and their counts.
    Query(query::Args),
    /// Sagas: define, start and steer them, see where they are.
    Saga(saga::Args),
    /// Run a small script as one transaction, over any keys and shards.
    Txn(txn::Args),
    /// Print a fresh timestamp, to read several things as of one instant.
    Timestamp(timestamp::Args),
    /// Write the records of a file.
    Import(import::Args),
    /// Write all rows, or those under a prefix, to standard output.
    Export(export::Args),
    /// Measure operations a second and latencies.
    Bench(bench::Args),
    /// Compare the checksums of all replicas.
    Checksum(checksum::Args),
    /// Compare a file that was imported with what every single replica holds.
    Verify(verify::Args),
    /// Print a completion script for a shell.
    Completion(completion::Args),
}

/// Runs the command that the process's arguments name, and returns its exit code.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage_error(&error),
    };
    logging::init(&cli.global);
    let context = match Context::new(&cli.global) {
        Ok(context) => context,
        Err(error) => return Failure::from(error).report(cli.global.output),
    };
    let serves = matches!(cli.command, Command::Serve(_));
    let runtime = match build_runtime(serves) {
        Ok(runtime) => runtime,
        Err(error) => {
            let error = Error::unavailable(format!("the threads of the runtime can't be started: {error}"));
            return Failure::from(error).report(cli.global.output);
        }
    };
    let done = runtime.block_on(run(cli.command, &context));
    if serves {
        // The store is closed by the last task that used it, which must be before the process ends: RocksDB
        // aborts where it is closed while the program's static objects are already being destroyed.
        runtime.shutdown_timeout(CLOSE_PATIENCE);
    } else {
        // A thread that waits for standard input must not hold the process.
        runtime.shutdown_background();
    }
    match done {
        Ok(done) => done.into(),
        Err(failure) => failure.report(cli.global.output),
    }
}

/// The runtime of the process. A node leaves one core to the log writer and to RocksDB's own threads, whose
/// work every write waits for; TOKIO_WORKER_THREADS says otherwise.
fn build_runtime(serves: bool) -> std::io::Result<tokio::runtime::Runtime> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    if serves && std::env::var_os("TOKIO_WORKER_THREADS").is_none() {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        builder.worker_threads(cores.saturating_sub(1).max(1));
    }
    builder.enable_all().build()
}

async fn run(command: Command, context: &Context) -> Result<Done, Failure> {
    match command {
        Command::Serve(args) => serve::run(context, args).await,
        Command::Cluster(args) => cluster::run(context, args).await,
        Command::Status(args) => status::run(context, args).await,
        Command::Put(args) => put::run(context, args).await,
        Command::Get(args) => get::run(context, args).await,
        Command::Delete(args) => delete::run(context, args).await,
        Command::Scan(args) => scan::run(context, args).await,
        Command::Cas(args) => cas::run(context, args).await,
        Command::Add(args) => add::run(context, args).await,
        Command::Watch(args) => watch::run(context, args).await,
        Command::Consumer(args) => consumer::run(context, args).await,
        Command::Index(args) => index::run(context, args).await,
        Command::Query(args) => query::run(context, args).await,
        Command::Saga(args) => saga::run(context, args).await,
        Command::Txn(args) => txn::run(context, args).await,
        Command::Timestamp(args) => timestamp::run(context, args).await,
        Command::Import(args) => import::run(context, args).await,
        Command::Export(args) => export::run(context, args).await,
        Command::Bench(args) => bench::run(context, args).await,
        Command::Checksum(args) => checksum::run(context, args).await,
        Command::Verify(args) => verify::run(context, args).await,
        Command::Completion(args) => completion::run(&mut Cli::command(), &args),
    }
}

/// Help and version go to standard output; a wrong usage is an `invalid` error, in JSON where that was asked for.
fn usage_error(error: &clap::Error) -> ExitCode {
    let is_help = matches!(error.kind(), UsageKind::DisplayHelp | UsageKind::DisplayVersion);
    let arguments: Vec<_> = std::env::args_os().collect();
    let wants_json = arguments.windows(2).any(|pair| pair[0] == "--output" && pair[1] == "json")
        || arguments.iter().any(|argument| argument == "--output=json");
    if wants_json && !is_help {
        let text = error.render().to_string();
        let message = text.lines().next().unwrap_or_default().trim_start_matches("error: ");
        return Failure::from(Error::invalid(message)).report(Format::Json);
    }
    // Nothing is left to do where the terminal itself is gone.
    let _ = error.print();
    ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_arguments_are_well_formed() {
        Cli::command().debug_assert();
    }
}
