//! Server processes: started, waited for, measured, stopped.

use std::fs::{self, File};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::TcpListener;
use tokio::process::{Child, Command};

use crate::{Result, load};

const START_PATIENCE: Duration = Duration::from_secs(60);

/// Three servers of one system.
pub struct Servers {
    /// Where clients connect.
    pub endpoints: Vec<String>,
    /// The nodes' ids, in the order of the endpoints; none of etcd's.
    pub ids: Vec<u64>,
    /// What the system says of its version.
    pub version: String,
    /// The processes that serve, in the same order.
    pids: Vec<u32>,
    /// The processes that were started here: the servers, or their supervisor.
    started: Vec<Child>,
}

impl Servers {
    /// Starts kvorum's nodes through `kvorum cluster local`.
    pub async fn kvorum(program: &Path, dir: &Path) -> Result<Self> {
        fs::create_dir_all(dir)?;
        let sample = dir.join("sample-keys");
        fs::write(&sample, load::sample_keys())?;
        let mut supervisor = Command::new(program)
            .args(["--output", "json", "cluster", "local", "--nodes", "3", "--shards", "8", "--no-restart"])
            .arg("--dir")
            .arg(dir.join("nodes"))
            .arg("--sample-keys")
            .arg(&sample)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| format!("{} can't be started: {error}", program.display()))?;
        let stdout = supervisor.stdout.take().ok_or("standard output is not piped")?;
        let mut lines = BufReader::new(stdout).lines();
        let ready = tokio::time::timeout(START_PATIENCE, lines.next_line()).await??;
        let ready: serde_json::Value = serde_json::from_str(&ready.ok_or("kvorum's cluster ended at once")?)?;
        let nodes = ready["cluster"]["nodes"].as_array().ok_or("the ready event names no nodes")?;
        let endpoints = nodes.iter().filter_map(|node| node["grpc"].as_str()).map(str::to_owned).collect();
        let ids = nodes.iter().filter_map(|node| node["id"].as_u64()).collect();
        let pids = nodes.iter().filter_map(|node| node["pid"].as_u64()).map(|pid| pid as u32).collect();
        let version = env!("CARGO_PKG_VERSION").to_owned();
        Ok(Self { endpoints, ids, version, pids, started: vec![supervisor] })
    }

    /// Starts etcd's members.
    pub async fn etcd(program: &Path, dir: &Path) -> Result<Self> {
        let version = Command::new(program)
            .arg("--version")
            .output()
            .await
            .map_err(|error| format!("{} can't be started: {error}", program.display()))?;
        let version = String::from_utf8_lossy(&version.stdout).lines().next().unwrap_or("etcd").to_owned();
        fs::create_dir_all(dir)?;
        let mut listeners = Vec::new();
        for _ in 0..6 {
            listeners.push(TcpListener::bind("127.0.0.1:0").await?);
        }
        let urls: Vec<String> = listeners
            .iter()
            .map(|listener| Ok(format!("http://{}", listener.local_addr()?)))
            .collect::<std::io::Result<_>>()?;
        drop(listeners);
        let (clients, peers) = urls.split_at(3);
        let cluster: Vec<String> =
            peers.iter().enumerate().map(|(at, peer)| format!("e{at}={peer}")).collect();
        let mut started = Vec::new();
        for at in 0..3 {
            let log = File::create(dir.join(format!("e{at}.log")))?;
            let child = Command::new(program)
                .args(["--name", &format!("e{at}"), "--data-dir"])
                .arg(dir.join(format!("e{at}")))
                .args(["--listen-client-urls", &clients[at], "--advertise-client-urls", &clients[at]])
                .args(["--listen-peer-urls", &peers[at], "--initial-advertise-peer-urls", &peers[at]])
                .args(["--initial-cluster", &cluster.join(","), "--initial-cluster-state", "new"])
                .stdin(Stdio::null())
                .stdout(log.try_clone()?)
                .stderr(log)
                .kill_on_drop(true)
                .spawn()?;
            started.push(child);
        }
        let pids = started.iter().filter_map(Child::id).collect();
        tokio::time::timeout(START_PATIENCE, wait_for_leader(clients))
            .await
            .map_err(|_| format!("etcd has no leader after {START_PATIENCE:?}; see {}", dir.display()))?;
        Ok(Self { endpoints: clients.to_vec(), ids: Vec::new(), version, pids, started })
    }

    /// The process of a node.
    pub fn pid_of(&self, node: u64) -> Option<u32> {
        self.ids.iter().zip(&self.pids).find(|(id, _)| **id == node).map(|(_, pid)| *pid)
    }

    /// User and system time of all servers together, so far.
    pub fn cpu_time(&self) -> Result<Duration> {
        let ticks_per_second = rustix::param::clock_ticks_per_second();
        let mut ticks = 0;
        for pid in &self.pids {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat"))
                .map_err(|error| format!("a server's process {pid} is gone: {error}"))?;
            // The second field is the name in parentheses, which may hold blanks; utime and stime are the
            // 14th and 15th field.
            let after_name = stat.rsplit_once(')').ok_or("/proc/PID/stat has no name")?.1;
            let fields: Vec<&str> = after_name.split_whitespace().collect();
            for field in [11, 12] {
                ticks += fields.get(field).ok_or("/proc/PID/stat is too short")?.parse::<u64>()?;
            }
        }
        Ok(Duration::from_secs_f64(ticks as f64 / ticks_per_second as f64))
    }

    /// The most memory that any of the servers had resident, in KiB.
    pub fn peak_memory_kib(&self) -> Result<u64> {
        let mut most = 0;
        for pid in &self.pids {
            let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
            let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).ok_or("no VmHWM")?;
            let kib: u64 = line.trim().trim_end_matches("kB").trim().parse()?;
            most = most.max(kib);
        }
        Ok(most)
    }

    /// Stops what was started here, with SIGTERM.
    pub async fn stop(mut self) -> Result<()> {
        for child in &self.started {
            let pid =
                child.id().and_then(|pid| i32::try_from(pid).ok()).and_then(rustix::process::Pid::from_raw);
            if let Some(pid) = pid {
                rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
            }
        }
        for child in &mut self.started {
            tokio::time::timeout(Duration::from_secs(30), child.wait()).await??;
        }
        Ok(())
    }
}

async fn wait_for_leader(clients: &[String]) {
    loop {
        if all_have_a_leader(clients).await.unwrap_or(false) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn all_have_a_leader(clients: &[String]) -> Result<bool> {
    for client in clients {
        let mut client = etcd_client::Client::connect([client], None).await?;
        if client.status().await?.leader() == 0 {
            return Ok(false);
        }
    }
    Ok(true)
}
