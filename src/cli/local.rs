//! `kvorum cluster local`: a development cluster of real processes on this machine.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::context::Context;
use super::failure::{Done, Failure, file_error};
use super::output::{self, Format, print_line};
use super::supervise::{Child, Supervisor};
use super::{admin, init, serve};
use crate::rpc::v1::InitRequest;
use crate::types::limits::MAX_SHARDS;
use crate::{Error, Result};

const EXAMPLES: &str = "\
Examples:
  kvorum cluster local --nodes 3 --dir dev
  kvorum cluster local --nodes 3 --dir dev --shards 16
  export KVORUM_ENDPOINTS=$(jq -r '[.nodes[].grpc] | join(\",\")' dev/cluster.json)

dev/cluster.json lists each node's id, process id, gRPC and HTTP address, data directory and log file; it is
there once the cluster serves, and is written anew when a process id changes. A node that dies is started
again. Ctrl-C or SIGTERM stops all nodes cleanly; the same command on the same directory goes on from there.";

/// How long nodes may take to come up.
const START_PATIENCE: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(50);

#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// How many nodes; an existing directory keeps its number.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=32))]
    nodes: u32,
    /// Where the nodes keep their data, logs and addresses. Made if it is not there.
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// How many shards a new cluster is cut into.
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=MAX_SHARDS as i64))]
    shards: u32,
    /// A file of keys like those that will be stored, one a line: a new cluster is cut where they are even.
    #[arg(long, value_name = "FILE")]
    sample_keys: Option<PathBuf>,
    /// Leave a node that dies as it is.
    #[arg(long)]
    no_restart: bool,
}

/// `cluster.json`.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug, Default)]
pub struct ClusterFile {
    /// The cluster's id.
    pub cluster_id: String,
    /// The nodes, in the order of their directories.
    pub nodes: Vec<NodeEntry>,
}

/// A node in `cluster.json`.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
pub struct NodeEntry {
    /// The id that the cluster gave it.
    pub id: u64,
    /// Its process; of the last one where it runs no more.
    pub pid: u32,
    /// Its gRPC address.
    pub grpc: String,
    /// Its HTTP address.
    pub http: String,
    /// Its data directory.
    pub data: PathBuf,
    /// Its log file.
    pub log: PathBuf,
}

impl ClusterFile {
    fn read(path: &Path) -> Result<Option<Self>, Failure> {
        let text = match std::fs::read(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(file_error(path, "read", &error)),
        };
        let file = serde_json::from_slice(&text).map_err(|error| {
            Error::corrupt(format!("{} is not what this command wrote: {error}", path.display()))
        })?;
        Ok(Some(file))
    }

    /// Writes the file whole or not at all, so that a reader never sees half of it.
    pub fn write(&self, path: &Path) -> Result<(), Failure> {
        let next = path.with_extension("json.next");
        let text = serde_json::to_vec_pretty(self)
            .map_err(|error| Error::invalid(format!("the cluster file can't be written as JSON: {error}")))?;
        std::fs::write(&next, text).map_err(|error| file_error(&next, "written", &error))?;
        std::fs::rename(&next, path).map_err(|error| file_error(path, "written", &error))
    }
}

pub async fn run(context: &Context, args: Args) -> Result<Done, Failure> {
    std::fs::create_dir_all(&args.dir).map_err(|error| file_error(&args.dir, "made", &error))?;
    let dir = args.dir.canonicalize().map_err(|error| file_error(&args.dir, "found", &error))?;
    let _lock = lock(&dir)?;
    let path = dir.join("cluster.json");
    let known = ClusterFile::read(&path)?;
    let stop = CancellationToken::new();
    serve::stop_on_signals(&stop)?;
    let children = plan(&dir, &args, known.as_ref()).await?;
    let mut supervisor = Supervisor::start(children, !args.no_restart).await?;
    let formed = tokio::select! {
        formed = form(context, &args, &mut supervisor) => formed,
        () = stop.cancelled() => Err(Error::unavailable("stopped before the cluster was ready").into()),
    };
    let cluster_id = match formed {
        Ok(cluster_id) => cluster_id,
        Err(failure) => {
            supervisor.stop().await;
            return Err(failure);
        }
    };
    let write = |supervisor: &Supervisor| supervisor.cluster_file(&cluster_id).write(&path);
    let run = async {
        write(&supervisor)?;
        announce(context, &supervisor.cluster_file(&cluster_id), &path)?;
        while supervisor.watch(&stop).await {
            write(&supervisor)?;
        }
        Ok(Done::Ok)
    };
    let done = run.await;
    supervisor.stop().await;
    done
}

/// Two supervisors of one directory would start every node twice.
fn lock(dir: &Path) -> Result<File, Failure> {
    let path = dir.join("supervisor.lock");
    let file = File::create(&path).map_err(|error| file_error(&path, "made", &error))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => {
            Err(Error::denied(format!("another `kvorum cluster local` runs on {}", dir.display())).into())
        }
        Err(std::fs::TryLockError::Error(error)) => Err(file_error(&path, "locked", &error)),
    }
}

/// The nodes to start: those of before with their addresses where these are free, or new ones.
async fn plan(dir: &Path, args: &Args, known: Option<&ClusterFile>) -> Result<Vec<Child>, Failure> {
    let count = known.map_or(args.nodes as usize, |known| known.nodes.len());
    let mut ports = Vec::new();
    for at in 0..count {
        let before = known.and_then(|known| known.nodes.get(at));
        let grpc = free_address(before.map(|node| node.grpc.as_str())).await?;
        let http = free_address(before.map(|node| node.http.as_str())).await?;
        ports.push((grpc, http));
    }
    // The listeners are held until all ports are chosen, so that none is chosen twice.
    let addresses = ports
        .into_iter()
        .map(|(grpc, http)| Ok((grpc.local_addr()?.to_string(), http.local_addr()?.to_string())))
        .collect::<std::io::Result<Vec<_>>>()
        .map_err(|error| Error::unavailable(format!("a free port has no address: {error}")))?;
    let join: Vec<String> = addresses.iter().map(|(grpc, _)| grpc.clone()).collect();
    Ok(addresses
        .into_iter()
        .enumerate()
        .map(|(at, (grpc, http))| Child {
            entry: NodeEntry {
                id: known.and_then(|known| known.nodes.get(at)).map_or(0, |node| node.id),
                pid: 0,
                grpc,
                http,
                data: dir.join(format!("node-{}", at + 1)),
                log: dir.join(format!("node-{}.log", at + 1)),
            },
            join: join.clone(),
        })
        .collect())
}

async fn free_address(before: Option<&str>) -> Result<tokio::net::TcpListener> {
    if let Some(before) = before
        && let Ok(listener) = tokio::net::TcpListener::bind(before).await
    {
        return Ok(listener);
    }
    tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .map_err(|error| Error::unavailable(format!("there is no free port on 127.0.0.1: {error}")))
}

/// Waits for all nodes, forms the cluster where they have none, waits until all serve; returns its id.
async fn form(context: &Context, args: &Args, supervisor: &mut Supervisor) -> Result<String, Failure> {
    let give_up_at = Instant::now() + START_PATIENCE;
    let mut statuses = Vec::new();
    for child in supervisor.children().to_vec() {
        statuses.push(supervisor.wait_for(&child.entry, give_up_at, |_| true).await?);
    }
    if statuses.iter().all(|status| status.cluster_id.is_empty()) {
        let sample_keys = args.sample_keys.clone().map(init::sample_keys).transpose()?.unwrap_or_default();
        let nodes = supervisor.children().iter().map(|child| child.entry.grpc.clone()).collect();
        let request = InitRequest { nodes, shards: args.shards, sample_keys, ..InitRequest::default() };
        init::init(request, context.deadline.max(Duration::from_secs(60))).await?;
    }
    let mut cluster_id = String::new();
    for at in 0..supervisor.children().len() {
        let entry = supervisor.children()[at].entry.clone();
        let ready = |status: &_| crate::gateway::not_ready_reasons(status).is_empty();
        let status = supervisor.wait_for(&entry, give_up_at, ready).await?;
        supervisor.set_id(at, status.node.as_ref().map_or(0, |node| node.id));
        cluster_id = status.cluster_id;
    }
    wait_for_leaders(&supervisor.children()[0].entry.grpc, give_up_at).await?;
    Ok(cluster_id)
}

/// Waits until the map names a leader for every shard.
async fn wait_for_leaders(address: &str, give_up_at: Instant) -> Result<()> {
    loop {
        let map = admin::map_of(address, Duration::from_secs(5)).await;
        if matches!(&map, Ok(map) if map.shards.iter().all(|placement| placement.leader != 0)) {
            return Ok(());
        }
        if Instant::now() >= give_up_at {
            return Err(Error::unavailable(match map {
                Err(error) => format!("the cluster does not serve: {error}"),
                Ok(_) => "a shard has no leader; see the log files of the nodes".to_owned(),
            }));
        }
        tokio::time::sleep(POLL).await;
    }
}

fn announce(context: &Context, cluster: &ClusterFile, path: &Path) -> Result<(), Failure> {
    let endpoints: Vec<&str> = cluster.nodes.iter().map(|node| node.grpc.as_str()).collect();
    let endpoints = endpoints.join(",");
    if context.output == Format::Json {
        return print_line(json!({ "event": "ready", "cluster": cluster, "endpoints": endpoints }));
    }
    let mut table = output::table(&["NODE", "PID", "GRPC", "HTTP", "LOG"]);
    for node in &cluster.nodes {
        table.add_row([
            node.id.to_string(),
            node.pid.to_string(),
            node.grpc.clone(),
            format!("http://{}/status", node.http),
            node.log.display().to_string(),
        ]);
    }
    print_line(format!(
        "cluster {} serves; {} says the same\n\n{table}\n\nIn another terminal:\n  export KVORUM_ENDPOINTS={endpoints}\n  kvorum status\n\nCtrl-C stops all nodes.",
        cluster.cluster_id,
        path.display()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cluster_file_comes_back_as_it_was_written() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("cluster.json");
        assert_eq!(ClusterFile::read(&path).expect("absent"), None);
        let node = NodeEntry {
            id: 1,
            pid: 2,
            grpc: "a:1".into(),
            http: "a:2".into(),
            data: "d".into(),
            log: "l".into(),
        };
        let file = ClusterFile { cluster_id: "c".to_owned(), nodes: vec![node] };
        file.write(&path).expect("written");
        assert_eq!(ClusterFile::read(&path).expect("read"), Some(file));
        std::fs::write(&path, "{").expect("written");
        assert!(ClusterFile::read(&path).is_err());
    }

    #[test]
    fn a_directory_has_one_supervisor() {
        let dir = tempfile::tempdir().expect("a directory");
        let first = lock(dir.path()).expect("free");
        assert!(lock(dir.path()).is_err());
        drop(first);
        lock(dir.path()).expect("free again");
    }

    #[tokio::test]
    async fn an_address_in_use_is_replaced() {
        let taken = free_address(None).await.expect("free");
        let address = taken.local_addr().expect("an address").to_string();
        let other = free_address(Some(&address)).await.expect("another");
        assert_ne!(other.local_addr().expect("an address").to_string(), address);
        drop(taken);
        let again = free_address(Some(&address)).await.expect("the same");
        assert_eq!(again.local_addr().expect("an address").to_string(), address);
    }
}
