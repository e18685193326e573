//! `kvorum serve`: run a node until SIGTERM or Ctrl-C.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures::future::BoxFuture;
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use serde::Deserialize;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::context::{Context, check_address};
use super::failure::{Done, Failure, file_error};
use crate::gateway::{self, StatusSource};
use crate::node::{ChangelogRetention, Node, NodeConfig};
use crate::rpc::v1::GetStatusReply;
use crate::{Error, Result};

const DEFAULT_DATA: &str = "./kvorum-data";
const DEFAULT_LISTEN: &str = "127.0.0.1:7400";
const DEFAULT_HTTP: &str = "127.0.0.1:7480";
/// The shortest time that the changelog may be kept for.
const MIN_RETENTION: Duration = Duration::from_secs(1);
/// How often the metrics recorder tidies its histograms.
const METRICS_UPKEEP: Duration = Duration::from_secs(5);

const EXAMPLES: &str = "\
Examples:
  kvorum serve                                      a complete single-node store in ./kvorum-data
  kvorum serve --data /var/lib/kvorum --config /etc/kvorum.toml
  kvorum serve --listen 10.0.0.1:7400 --join 10.0.0.1:7400,10.0.0.2:7400,10.0.0.3:7400
                                                    one of three; then run `kvorum cluster init` once

A flag beats the environment (KVORUM_DATA, KVORUM_LISTEN, …), which beats the configuration file, which beats
the default. The file is TOML with the flags' names as keys, with _ for -: data, listen, advertise, http, join, zone,
changelog_retention, changelog_mib.

SIGTERM and Ctrl-C stop the node cleanly. A node whose disk refuses a write (it is full, say) ends with exit code 3:
make room and start it again, or let a supervisor do so.";

#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Where the node keeps everything. [default: ./kvorum-data]
    #[arg(long, env = "KVORUM_DATA", value_name = "DIR")]
    data: Option<PathBuf>,
    /// The gRPC address to listen on; port 0 takes a free one. [default: 127.0.0.1:7400]
    #[arg(long, env = "KVORUM_LISTEN", value_name = "HOST:PORT")]
    listen: Option<String>,
    /// The gRPC address that others reach this node at, where it is not the one it listens on.
    #[arg(long, env = "KVORUM_ADVERTISE", value_name = "HOST:PORT")]
    advertise: Option<String>,
    /// The HTTP address for health, metrics and status; `none` for none. [default: 127.0.0.1:7480]
    #[arg(long, env = "KVORUM_HTTP", value_name = "HOST:PORT")]
    http: Option<String>,
    /// The gRPC addresses of all nodes of a cluster to be formed. Without it, a new node is a cluster of its own.
    #[arg(long, env = "KVORUM_JOIN", value_name = "HOST:PORT,...", value_delimiter = ',')]
    join: Option<Vec<String>>,
    /// The failure domain the node is in.
    #[arg(long, env = "KVORUM_ZONE", value_name = "NAME")]
    zone: Option<String>,
    /// How long changes can be followed, and old versions read; what transactions may need, ten minutes, is kept in any
    /// case. [default: 1h]
    #[arg(long, env = "KVORUM_CHANGELOG_RETENTION", value_name = "TIME", value_parser = humantime::parse_duration)]
    changelog_retention: Option<Duration>,
    /// How many MiB of changes a shard keeps to be followed, at most. [default: 1024]
    #[arg(long, env = "KVORUM_CHANGELOG_MIB", value_name = "MIB")]
    changelog_mib: Option<u64>,
    /// Read settings from a TOML file.
    #[arg(long, env = "KVORUM_CONFIG", value_name = "FILE.toml")]
    config: Option<PathBuf>,
    /// Stop cleanly when standard input ends: so that a supervisor that dies takes its nodes with it.
    #[arg(long, hide = true)]
    stop_on_stdin_eof: bool,
}

/// The configuration file. A key that is not known is refused, since a misspelt one would be ignored for ever.
#[derive(Deserialize, Default, Debug)]
#[serde(deny_unknown_fields)]
struct File {
    data: Option<PathBuf>,
    listen: Option<String>,
    advertise: Option<String>,
    http: Option<String>,
    join: Option<Vec<String>>,
    zone: Option<String>,
    #[serde(default, deserialize_with = "duration")]
    changelog_retention: Option<Duration>,
    changelog_mib: Option<u64>,
}

/// The settings after flags, environment, file and defaults.
#[derive(PartialEq, Eq, Debug)]
struct Settings {
    data: PathBuf,
    listen: String,
    advertise: Option<String>,
    http: Option<String>,
    join: Vec<String>,
    zone: String,
    changelog: ChangelogRetention,
}

impl Settings {
    fn new(args: &Args, file: File) -> Result<Self> {
        let either = |flag: &Option<String>, file: Option<String>| flag.clone().or(file);
        let http = either(&args.http, file.http).unwrap_or_else(|| DEFAULT_HTTP.to_owned());
        let default = ChangelogRetention::default();
        let mib = args.changelog_mib.or(file.changelog_mib);
        let settings = Self {
            data: args.data.clone().or(file.data).unwrap_or_else(|| DEFAULT_DATA.into()),
            listen: either(&args.listen, file.listen).unwrap_or_else(|| DEFAULT_LISTEN.to_owned()),
            advertise: either(&args.advertise, file.advertise),
            http: (http != "none" && !http.is_empty()).then_some(http),
            join: args.join.clone().or(file.join).unwrap_or_default(),
            zone: either(&args.zone, file.zone).unwrap_or_default(),
            changelog: ChangelogRetention {
                time: args.changelog_retention.or(file.changelog_retention).unwrap_or(default.time),
                size_bytes: mib.map_or(default.size_bytes, |mib| mib.saturating_mul(1024 * 1024)),
            },
        };
        settings.check()?;
        Ok(settings)
    }

    fn check(&self) -> Result<()> {
        check_address(&self.listen, "--listen")?;
        self.advertise.iter().try_for_each(|address| check_address(address, "--advertise"))?;
        check_retention(self.changelog)?;
        self.http.iter().try_for_each(|address| check_address(address, "--http"))?;
        self.join.iter().try_for_each(|address| check_address(address, "--join"))
    }

    fn node_config(self, http_addr: String) -> NodeConfig {
        NodeConfig {
            listen: self.listen,
            advertise: self.advertise,
            http_addr,
            join: self.join,
            zone: self.zone,
            changelog: self.changelog,
            ..NodeConfig::new(self.data)
        }
    }
}

fn check_retention(changelog: ChangelogRetention) -> Result<()> {
    if changelog.time < MIN_RETENTION {
        return Err(Error::invalid(format!(
            "the changelog's retention is {}, under the least of {}: nobody could follow it",
            humantime::format_duration(changelog.time),
            humantime::format_duration(MIN_RETENTION)
        )));
    }
    if changelog.size_bytes == 0 {
        return Err(Error::invalid(
            "the changelog may keep 0 MiB, so that nobody could follow it: give at least 1",
        ));
    }
    Ok(())
}

/// A time as people write it, such as `90m`.
fn duration<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<Duration>, D::Error> {
    let text = String::deserialize(from)?;
    humantime::parse_duration(&text).map(Some).map_err(serde::de::Error::custom)
}

fn read_file(path: &Path) -> Result<File, Failure> {
    let text = std::fs::read_to_string(path).map_err(|error| file_error(path, "read", &error))?;
    let file = toml::from_str(&text).map_err(|error| {
        Error::invalid(format!(
            "{} is not a valid configuration: {}",
            path.display(),
            error.to_string().trim_end()
        ))
    })?;
    Ok(file)
}

pub async fn run(_: &Context, args: Args) -> Result<Done, Failure> {
    let file = args.config.as_deref().map(read_file).transpose()?.unwrap_or_default();
    let settings = Settings::new(&args, file)?;
    order_bug()?;
    let stop = CancellationToken::new();
    stop_on_signals(&stop)?;
    if args.stop_on_stdin_eof {
        stop_on_stdin_eof(stop.clone())?;
    }
    let late = Arc::new(LateNode::default());
    let (http_addr, gateway) = start_gateway(settings.http.as_deref(), late.clone(), stop.clone()).await?;
    let data = settings.data.clone();
    let node = Node::start(settings.node_config(http_addr.clone())).await?;
    tracing::info!(grpc = %node.grpc_addr(), http = %http_addr, "the node has started");
    // Set once, here.
    let _ = late.0.set(Box::new(node.status_source()));
    let failed = tokio::select! {
        () = stop.cancelled() => None,
        error = node.failed() => Some(error),
    };
    match &failed {
        None => tracing::info!("stopping"),
        Some(error) => tracing::error!(%error, "the node can't go on and stops"),
    }
    stop.cancel();
    let stopped = node.shutdown().await;
    if let Some(gateway) = gateway {
        match gateway.await {
            Ok(served) => served?,
            Err(error) => tracing::warn!(%error, "the HTTP task failed"),
        }
    }
    if let Some(error) = failed {
        return Err(disk_error(&data, &error).into());
    }
    stopped?;
    tracing::info!("stopped");
    Ok(Done::Ok)
}

/// How a node ends whose disk has refused a write.
fn disk_error(data: &Path, error: &Error) -> Error {
    Error::unavailable(format!(
        "the disk of the data directory {} refused a write: {}; the node has stopped, and nothing that it acknowledged is \
         lost; see that the disk has room and is well, and start the node again",
        data.display(),
        error.message
    ))
}

/// Switches on the bug that `KVORUM_BUG` names: in a build that has them, for tests that must find it.
#[cfg(feature = "sim-bugs")]
fn order_bug() -> Result<()> {
    use crate::bugs::{self, Bug};
    let Some(name) = std::env::var("KVORUM_BUG").ok().filter(|name| !name.is_empty()) else { return Ok(()) };
    let bug = Bug::named(&name).ok_or_else(|| {
        Error::invalid(format!(
            "KVORUM_BUG={name}: there is no such bug; there are {:?} and {:?}",
            Bug::IN_MACHINES,
            Bug::IN_EDGES
        ))
    })?;
    tracing::warn!(?bug, "this node has a bug, as a test asked for: it must keep nobody's data");
    bugs::set_for_process(bug);
    Ok(())
}

/// Refuses a bug that this build does not have: a test that believes it is switched on would prove nothing.
#[cfg(not(feature = "sim-bugs"))]
fn order_bug() -> Result<()> {
    match std::env::var("KVORUM_BUG") {
        Ok(name) if !name.is_empty() => Err(Error::invalid(format!(
            "KVORUM_BUG={name}: this build has no bugs to switch on; build it with --features sim-bugs"
        ))),
        _ => Ok(()),
    }
}

/// The node's status for the gateway, which answers before the node has started: `/healthz` is about the process.
#[derive(Default)]
struct LateNode(OnceLock<Box<dyn Fn() -> GetStatusReply + Send + Sync>>);

impl StatusSource for LateNode {
    fn status(&self) -> BoxFuture<'_, Result<GetStatusReply>> {
        Box::pin(async {
            match self.0.get() {
                Some(status) => Ok(status()),
                None => Err(Error::unavailable("the node is starting")),
            }
        })
    }
}

type GatewayTask = tokio::task::JoinHandle<Result<()>>;

/// Starts HTTP, and returns the address it listens on; empty and no task where there is to be none.
async fn start_gateway(
    address: Option<&str>,
    source: Arc<LateNode>,
    stop: CancellationToken,
) -> Result<(String, Option<GatewayTask>), Failure> {
    let metrics = install_metrics()?;
    let Some(address) = address else { return Ok((String::new(), None)) };
    let cannot = |error| {
        Error::unavailable(format!("HTTP can't listen on {address}: {error}; choose another with --http"))
    };
    let listener = TcpListener::bind(address).await.map_err(cannot)?;
    let bound = listener.local_addr().map_err(cannot)?.to_string();
    let task = tokio::spawn(gateway::serve(listener, source, metrics, stop.cancelled_owned()));
    Ok((bound, Some(task)))
}

fn install_metrics() -> Result<PrometheusHandle> {
    let handle = PrometheusBuilder::new()
        .install_recorder()
        .map_err(|error| Error::unavailable(format!("metrics can't be recorded: {error}")))?;
    let upkeep = handle.clone();
    tokio::spawn(async move {
        let mut every = tokio::time::interval(METRICS_UPKEEP);
        loop {
            every.tick().await;
            upkeep.run_upkeep();
        }
    });
    Ok(handle)
}

/// Cancels `stop` at the first SIGTERM or SIGINT.
pub fn stop_on_signals(stop: &CancellationToken) -> Result<()> {
    let cannot = |error| Error::unavailable(format!("signals can't be received: {error}"));
    let mut terminate = signal(SignalKind::terminate()).map_err(cannot)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(cannot)?;
    let stop = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        stop.cancel();
    });
    Ok(())
}

/// On a thread of its own: one of the runtime that waits for input would hold up its end.
fn stop_on_stdin_eof(stop: CancellationToken) -> Result<()> {
    let wait = move || {
        let mut ignored = [0_u8; 64];
        while matches!(std::io::stdin().read(&mut ignored), Ok(read) if read > 0) {}
        stop.cancel();
    };
    let thread = std::thread::Builder::new().name("stdin".to_string()).spawn(wait);
    thread
        .map(|_| ())
        .map_err(|error| Error::unavailable(format!("standard input can't be watched: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args() -> Args {
        Args {
            data: None,
            listen: None,
            advertise: None,
            http: None,
            join: None,
            zone: None,
            changelog_retention: None,
            changelog_mib: None,
            config: None,
            stop_on_stdin_eof: false,
        }
    }

    #[test]
    fn flags_beat_the_file_and_the_file_beats_the_defaults() {
        let file: File = toml::from_str("listen = \"a:1\"\nzone = \"z\"\nhttp = \"none\"").expect("valid");
        let flags = Args { listen: Some("b:2".to_owned()), ..args() };
        let settings = Settings::new(&flags, file).expect("valid");
        assert_eq!((settings.listen.as_str(), settings.zone.as_str(), settings.http), ("b:2", "z", None));
        assert_eq!(settings.data, Path::new(DEFAULT_DATA));
    }

    #[test]
    fn unknown_keys_and_wrong_addresses_are_refused() {
        toml::from_str::<File>("lisen = \"a:1\"").expect_err("misspelt");
        toml::from_str::<File>("changelog_retention = \"soon\"").expect_err("no time");
        for (file, wrong) in
            [("changelog_retention = \"10ms\"", "under the least"), ("changelog_mib = 0", "0 MiB")]
        {
            let file = toml::from_str(file).expect("valid");
            assert!(Settings::new(&args(), file).expect_err("refused").message.contains(wrong));
        }
        let flags = Args { join: Some(vec!["nowhere".to_owned()]), ..args() };
        assert!(Settings::new(&flags, File::default()).expect_err("no port").message.contains("--join"));
    }
}
