//! The command line: what is run, and what is printed.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime};

use clap::{Parser, ValueEnum};
use comfy_table::{Table, presets};
use kvorum_jepsen::check::Valid;
use kvorum_jepsen::hosts::{self, Error, Means, Result};
use kvorum_jepsen::nemesis::{self, Nemesis};
use kvorum_jepsen::report::{Parameters, Results};
use kvorum_jepsen::run::bugs::{ATTEMPTS, CONTROLS, NO_BUG, ORDERS, Order};
use kvorum_jepsen::run::{self, Progress, Run};
use kvorum_jepsen::workload::{Kind, ReadLevel};
use tokio::signal::unix::{SignalKind, signal};

/// Clients work on a real cluster of kvorum while faults strike it; a checker says whether a strictly serializable
/// store could have answered so.
#[derive(Parser, Clone, Debug)]
#[command(name = "kvorum-jepsen", version, after_help = EXAMPLES, max_term_width = 100)]
struct Arguments {
    /// What clients do; see --list
    #[arg(long, value_name = "NAME")]
    workload: Option<Kind>,
    /// Kinds of faults and groups of them, comma-separated, `-NAME` for not that one; see --list [default: none; with --all: all]
    #[arg(long, value_name = "NAME,...", allow_hyphen_values = true)]
    nemesis: Option<String>,
    /// How long clients work while faults strike
    #[arg(long, value_name = "S", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    seconds: u64,
    /// How many nodes
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=9))]
    nodes: u64,
    /// Requests a second, of all clients together, at most
    #[arg(long, value_name = "R", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    rate: u32,
    /// How many clients work at a time
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=1_000))]
    clients: u64,
    /// Decides requests and faults [default: from the clock, and told]
    #[arg(long, value_name = "X")]
    seed: Option<u64>,
    /// Where everything goes: a new or empty directory [default: kvorum-jepsen/ with the time, here]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// How many shards keys are spread over
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=64))]
    shards: u32,
    /// How long a client's call may take, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 4_000, value_parser = clap::value_parser!(u64).range(100..=60_000))]
    deadline: u64,
    /// What reads promise, and who answers them: linearizable-leader, linearizable-balanced, snapshot, bounded
    #[arg(long = "reads", alias = "read-level", value_name = "LEVEL", default_value_t)]
    read_level: ReadLevel,
    /// The kvorum program that nodes run
    #[arg(long, value_name = "FILE", env = "KVORUM_BIN", default_value = "target/debug/kvorum")]
    server: PathBuf,
    /// More for the nodes' environment; may be given several times
    #[arg(long = "env", value_name = "NAME=VALUE", value_parser = pair)]
    environment: Vec<(String, String)>,
    /// Keep the nodes' data also where the run is valid
    #[arg(long)]
    keep_data: bool,
    /// Run every workload in turn, and show a table
    #[arg(long, conflicts_with_all = ["workload", "check", "list"])]
    all: bool,
    /// Run a server with known bugs, one after the other (or those named), and show that each is found, and that
    /// the same server without a bug is valid
    #[arg(long, value_name = "NAME,...", num_args = 0..=1, default_missing_value = "all",
        conflicts_with_all = ["workload", "nemesis", "all", "check", "list"])]
    bugs: Option<String>,
    /// The kvorum program with known bugs, built with the feature sim-bugs
    #[arg(long, value_name = "FILE", env = "KVORUM_BUGGY_BIN", default_value = "target/jepsen-bugs/kvorum")]
    buggy_server: PathBuf,
    /// List workloads and kinds of faults, and which of them this machine allows
    #[arg(long)]
    list: bool,
    /// Check the history of an earlier run again
    #[arg(long, value_name = "DIR", conflicts_with_all = ["workload", "list"])]
    check: Option<PathBuf>,
    /// How results are printed
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    output: Output,
}

const EXAMPLES: &str = "Examples:
  kvorum-jepsen --list
  kvorum-jepsen --workload register --nemesis kill --seconds 20
  kvorum-jepsen --workload append --nemesis partition,kill,pause --nodes 5 --rate 200 --seed 7 --out run-7
  kvorum-jepsen --all --seconds 60
  kvorum-jepsen --bugs
  kvorum-jepsen --check run-7

The directory has history.edn and history.jsonl (also for Elle, Knossos and porcupine), results.json, each
node's log in nodes/, and report.html: open that first.

Exit code: 0 valid, 1 invalid, 2 unknown (also where almost nothing succeeded, or the run could not be made).";

/// Names the bug that a server built with known bugs has.
const BUG_VARIABLE: &str = "KVORUM_BUG";

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Output {
    /// For people
    Text,
    /// One JSON object a run
    Json,
}

/// Runs the command.
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failed(&format!("no runtime: {error}")),
    };
    let done = runtime.block_on(until_signal(dispatch(&arguments)));
    // What a run that was broken off has made goes with its tasks.
    runtime.shutdown_timeout(Duration::from_secs(30));
    match done {
        Ok(code) => ExitCode::from(code),
        Err(error) => failed(&error.to_string()),
    }
}

fn failed(why: &str) -> ExitCode {
    eprintln!("error: {why}");
    ExitCode::from(2)
}

/// The work's result, or the code of a signal that came before.
async fn until_signal(work: impl Future<Output = Result<u8>>) -> Result<u8> {
    let watch = |kind| signal(kind).map_err(|source| Error::Io { what: "watch for signals".into(), source });
    let (mut terminate, mut interrupt) = (watch(SignalKind::terminate())?, watch(SignalKind::interrupt())?);
    tokio::select! {
        done = work => done,
        _ = terminate.recv() => Ok(143),
        _ = interrupt.recv() => Ok(130),
    }
}

async fn dispatch(arguments: &Arguments) -> Result<u8> {
    if arguments.list {
        print_list(&Means::of_this_machine(), arguments.nodes as usize);
        return Ok(0);
    }
    if let Some(directory) = &arguments.check {
        let results = run::check_again(directory)?;
        print(&results, directory, arguments.output);
        return Ok(run::exit_code(results.valid));
    }
    for what in hosts::remove_of_the_dead() {
        eprintln!("removed what a killed harness left: {what}");
    }
    let means = Means::of_this_machine();
    let seed = arguments.seed.unwrap_or_else(seed_of_now);
    if let Some(names) = &arguments.bugs {
        return bugs(arguments, &means, names, seed).await;
    }
    if arguments.all {
        return all(arguments, &means, seed).await;
    }
    let workload = arguments.workload.ok_or_else(|| {
        Error::Other(format!(
            "name a workload (--workload {}), or --all, or --list",
            Kind::ALL.map(Kind::name).join("|")
        ))
    })?;
    if !can_read_so(workload, arguments.read_level) {
        return Err(Error::Other(format!(
            "the workload {workload} reads at timestamps of its own: choose a linearizable level with --reads"
        )));
    }
    let run = plan(arguments, &means, workload, seed, directory(arguments, workload.name())?)?;
    let results = one(&run).await?;
    print(&results, &run.directory, arguments.output);
    Ok(run::exit_code(results.valid))
}

fn can_read_so(workload: Kind, level: ReadLevel) -> bool {
    level.is_linearizable() || workload.reads_alone()
}

/// Every workload in turn.
async fn all(arguments: &Arguments, means: &Means, seed: u64) -> Result<u8> {
    let home = directory(arguments, "all")?;
    let (mut done, mut codes) = (Vec::new(), Vec::new());
    let workloads = Kind::ALL.into_iter().filter(|workload| can_read_so(*workload, arguments.read_level));
    for (workload, more) in workloads.zip(0..) {
        // Each with another seed, so that together they meet every kind of fault.
        let run = plan(arguments, means, workload, seed.wrapping_add(more), home.join(workload.name()))?;
        match one(&run).await {
            Ok(results) => {
                print(&results, &run.directory, arguments.output);
                codes.push(run::exit_code(results.valid));
                done.push(results);
            }
            // It says nothing about the store, and takes nothing from what the others say.
            Err(error) => {
                eprintln!("{workload}: this run could not be made: {error}");
                codes.push(run::exit_code(Valid::Unknown));
            }
        }
    }
    if arguments.output == Output::Text {
        println!("\n{}\nseed {seed}; everything is in {}", table(&done), home.display());
    }
    Ok(worst(&codes))
}

/// The exit code of several runs: invalid is worse than unknown.
fn worst(codes: &[u8]) -> u8 {
    if codes.contains(&1) { 1 } else { codes.iter().copied().max().unwrap_or(0) }
}

/// Controls, then each bug until it is found or was looked for often enough. Success is that the controls are valid and
/// all bugs are found.
async fn bugs(arguments: &Arguments, means: &Means, names: &str, seed: u64) -> Result<u8> {
    let orders = ordered(names)?;
    let home = directory(arguments, "bugs")?;
    let mut table = Table::new();
    table.load_preset(presets::UTF8_HORIZONTAL_ONLY);
    table.set_header(["bug", "workload", "nemesis", "found", "after", "seed", "anomalies"]);
    let mut is_sound = true;
    for order in CONTROLS {
        is_sound &= control(arguments, means, order, seed, &home, &mut table).await?;
    }
    let mut missed = 0;
    for order in orders {
        let began = Instant::now();
        let row = hunt(arguments, means, order, seed, &home).await?;
        missed += usize::from(row.is_none());
        let (found, seed, anomalies) = match row {
            Some((seed, anomalies)) => ("yes", seed.to_string(), anomalies),
            None => ("NO", String::new(), String::new()),
        };
        let after = format!("{} s", began.elapsed().as_secs());
        table.add_row([order.bug, order.workload.name(), order.nemeses, found, &after, &seed, &anomalies]);
    }
    println!("\n{table}\nseed {seed}; everything is in {}", home.display());
    Ok(u8::from(missed > 0 || !is_sound))
}

/// Runs the server without any of its bugs: what is found afterwards is the bug's work only where that is valid.
async fn control(
    arguments: &Arguments,
    means: &Means,
    order: Order,
    seed: u64,
    home: &Path,
    table: &mut Table,
) -> Result<bool> {
    let workload = order.workload.name();
    let run = buggy_run(arguments, means, order, seed, home.join(format!("control-{workload}")))?;
    let began = Instant::now();
    let results = one(&run).await?;
    print(&results, &run.directory, Output::Text);
    let (after, verdict) = (format!("{} s", began.elapsed().as_secs()), word(results.valid));
    let anomalies = names_of_anomalies(&results);
    table.add_row([order.bug, workload, order.nemeses, verdict, &after, &seed.to_string(), &anomalies]);
    Ok(results.valid == Valid::Valid)
}

/// Looks for a bug. Returns the seed that showed it, and by which anomalies.
async fn hunt(
    arguments: &Arguments,
    means: &Means,
    order: Order,
    seed: u64,
    home: &Path,
) -> Result<Option<(u64, String)>> {
    for attempt in 0..ATTEMPTS {
        let seed = seed.wrapping_add(u64::from(attempt));
        let run = buggy_run(arguments, means, order, seed, home.join(format!("{}-{seed}", order.bug)))?;
        let results = match one(&run).await {
            Ok(results) => results,
            Err(error) => {
                eprintln!("{}: this run could not be made: {error}", order.bug);
                continue;
            }
        };
        print(&results, &run.directory, Output::Text);
        let found = order.found(&results);
        if !found.is_empty() {
            return Ok(Some((seed, found.into_iter().collect::<Vec<_>>().join(", "))));
        }
    }
    Ok(None)
}

/// The bugs that are named.
fn ordered(names: &str) -> Result<Vec<Order>> {
    if names == "all" {
        return Ok(ORDERS.to_vec());
    }
    let known = ORDERS.map(|order| order.bug).join(", ");
    let find = |name: &str| {
        let found = ORDERS.into_iter().find(|order| order.bug == name);
        found.ok_or_else(|| Error::Other(format!("there is no bug {name:?} on order; there are: {known}")))
    };
    names.split(',').map(find).collect()
}

fn buggy_run(
    arguments: &Arguments,
    means: &Means,
    order: Order,
    seed: u64,
    directory: PathBuf,
) -> Result<Run> {
    let mut arguments = arguments.clone();
    arguments.nemesis = Some(order.nemeses.to_owned());
    arguments.server = arguments.buggy_server.clone();
    // A bug that the user names in the environment would spoil the control.
    arguments.environment.retain(|(name, _)| name != BUG_VARIABLE);
    if order.bug != NO_BUG {
        arguments.environment.push((BUG_VARIABLE.into(), order.bug.into()));
    }
    arguments.environment.extend(order.environment.map(|(name, value)| (name.to_owned(), value.to_owned())));
    (arguments.seconds, arguments.rate, arguments.clients) = (order.seconds, order.rate, order.clients);
    (arguments.nodes, arguments.shards, arguments.deadline) = (order.nodes, order.shards, order.deadline_ms);
    plan(&arguments, means, order.workload, seed, directory)
}

fn names_of_anomalies(results: &Results) -> String {
    let names: std::collections::BTreeSet<&str> = results.anomalies().map(|one| one.name.as_str()).collect();
    names.into_iter().collect::<Vec<_>>().join(", ")
}

async fn one(run: &Run) -> Result<Results> {
    let progress = Progress::new(run.parameters.workload.name());
    let made = run.make(&progress).await;
    progress.done();
    made
}

fn plan(arguments: &Arguments, means: &Means, workload: Kind, seed: u64, directory: PathBuf) -> Result<Run> {
    let names = arguments.nemesis.as_deref().unwrap_or(if arguments.all { "all" } else { "none" });
    let server = std::fs::canonicalize(&arguments.server).map_err(|source| Error::Io {
        what: format!("the server {} (build it, or name it with --server)", arguments.server.display()),
        source,
    })?;
    let run = Run {
        parameters: Parameters {
            workload,
            nemeses: nemesis::parse(names).map_err(Error::Other)?,
            named: nemesis::named(names).map_err(Error::Other)?,
            seconds: arguments.seconds,
            nodes: arguments.nodes as usize,
            rate: arguments.rate,
            clients: arguments.clients as usize,
            seed,
            shards: arguments.shards,
            deadline_ms: arguments.deadline,
            read_level: arguments.read_level,
            server,
            environment: arguments.environment.clone(),
        },
        directory,
        means: means.clone(),
        keep_data: arguments.keep_data,
    };
    let missing = run.missing();
    for (kind, why) in &missing {
        eprintln!("{kind} is left out: {why}");
    }
    if !missing.is_empty() && missing.len() == run.parameters.nemeses.len() {
        return Err(Error::Other("this machine allows none of the faults that were asked for".into()));
    }
    if let Err(why) = &means.namespaces {
        eprintln!("nodes run on the loopback device, without partitions: {why}");
    }
    Ok(run)
}

/// The directory of a run: it is made, or empty.
fn directory(arguments: &Arguments, name: &str) -> Result<PathBuf> {
    let directory = arguments
        .out
        .clone()
        .unwrap_or_else(|| PathBuf::from(format!("kvorum-jepsen/{}-{name}", seed_of_now())));
    let io = |source| Error::Io { what: format!("the directory {}", directory.display()), source };
    std::fs::create_dir_all(&directory).map_err(io)?;
    if std::fs::read_dir(&directory).map_err(io)?.next().is_some() {
        return Err(Error::Other(format!("{} is not empty: name a new directory", directory.display())));
    }
    std::fs::canonicalize(&directory).map_err(io)
}

fn seed_of_now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

fn pair(text: &str) -> std::result::Result<(String, String), String> {
    let pair = text.split_once('=').filter(|(name, _)| !name.is_empty());
    pair.map(|(name, value)| (name.to_owned(), value.to_owned()))
        .ok_or_else(|| format!("{text:?} is not NAME=VALUE"))
}

fn print_list(means: &Means, nodes: usize) {
    println!("Workloads:");
    for kind in Kind::ALL {
        println!("  {:<12} {}", kind.name(), kind.about());
    }
    println!("\nNemeses:");
    for kind in Nemesis::ALL {
        println!("  {:<21} {}", kind.name(), kind.about());
        if let Some(why) = kind.missing(means, nodes) {
            println!("  {:<21} not here: {why}", "");
        }
    }
    println!("\nGroups of nemeses:");
    for (group, about) in nemesis::GROUPS {
        println!("  {group:<21} {about}");
    }
    println!("\nBugs on order (--bugs):");
    for order in ORDERS {
        println!("  {:<29} {} ({}, {})", order.bug, order.about, order.workload, order.nemeses);
    }
    println!("\nRead levels: {}", ReadLevel::ALL.map(ReadLevel::name).join(", "));
}

fn print(results: &Results, directory: &Path, output: Output) {
    if output == Output::Json {
        // It is in the file as well: nothing is lost where standard output is closed.
        let _ = serde_json::to_writer(std::io::stdout(), results);
        println!();
        return;
    }
    let parameters = &results.parameters;
    let total = results.total();
    println!(
        "{}: {} (seed {}, {} s, {} nodes): {} operations ok, {} failed, {} unknown; {}; {}",
        parameters.workload,
        word(results.valid),
        parameters.seed,
        parameters.seconds,
        parameters.nodes,
        total.ok,
        total.fail,
        total.info,
        results.count_faults(),
        directory.join("report.html").display()
    );
    for anomaly in results.anomalies().take(10) {
        println!("  {}: {}", anomaly.name, anomaly.explanation.replace('\n', "\n    "));
    }
    // What the checker worked with is of interest where it is not content.
    let checker = results.verdict.notes.iter().filter(|_| results.valid != Valid::Valid);
    for note in results.doubts.iter().chain(checker).chain(&results.notes) {
        println!("  note: {note}");
    }
}

fn word(valid: Valid) -> &'static str {
    match valid {
        Valid::Valid => "valid",
        Valid::Invalid => "INVALID",
        Valid::Unknown => "unknown",
    }
}

fn table(done: &[Results]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::UTF8_HORIZONTAL_ONLY);
    table.set_header(["workload", "verdict", "seed", "ok", "failed", "unknown", "faults", "anomalies"]);
    for results in done {
        let total = results.total();
        table.add_row([
            results.parameters.workload.name().to_owned(),
            word(results.valid).to_owned(),
            results.parameters.seed.to_string(),
            total.ok.to_string(),
            total.fail.to_string(),
            total.info.to_string(),
            results.count_faults(),
            names_of_anomalies(results),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_invalid_run_makes_all_invalid_whatever_the_others_came_to() {
        assert_eq!(worst(&[0, 0]), 0);
        assert_eq!(worst(&[0, 2, 0]), 2);
        assert_eq!(worst(&[1, 2, 0]), 1);
    }
}
