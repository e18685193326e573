//! Where nodes run: network namespaces of their own, or loopback processes; their disks and clocks, and everything
//! that can be done to them.
//!
//! A [`Cluster`] undoes all of it when it is dropped: processes, namespaces, mounts. What a harness leaves that was
//! killed itself is removed by the next one.

mod ask;
mod clock;
mod compare;
mod disk;
mod leftovers;
mod network;
mod node;
pub mod power;
mod process;
mod record;
mod tools;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::OnceCell;

pub use compare::Comparison;
pub use disk::DiskKind;
pub use leftovers::remove_of_the_dead;
pub use network::Cut;
pub use node::Crash;
pub use tools::{Error, Means, Missing, Result};

use clock::Clock;
use disk::Disk;
use network::Network;
use node::Node;
use process::CommandLine;
use record::Record;
use tools::Context;

/// What every namespace and link of a harness begins with; its process id follows.
const PREFIX: &str = "kvj";
/// How often nodes are looked at, whether they still run.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// How long nodes have to stop after SIGTERM.
const STOP_WITHIN: Duration = Duration::from_secs(30);

/// What a cluster is made of.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The `kvorum` program that nodes run.
    pub server: PathBuf,
    /// What nodes have in their environment besides the harness's own.
    pub environment: Vec<(String, String)>,
    /// How many nodes.
    pub nodes: usize,
    /// Where logs (`nodes/`) and data (`data/`) go.
    pub directory: PathBuf,
    /// In network namespaces, or else on the loopback device.
    pub namespaces: bool,
    /// What data directories are.
    pub disk: DiskKind,
    /// The library that fakes wall clocks; nodes have the real one without it.
    pub clocks: Option<PathBuf>,
    /// Where the keyspace is cut into shards, rising.
    pub split_keys: Vec<String>,
}

/// The nodes of a run. All faults go through it; they add up, so that a node that two faults keep down comes back when
/// both are over. Its calls are short, but they block: call them where that is no harm.
pub struct Cluster {
    // Dropped in this order: processes, then their disks, then the network.
    nodes: Vec<Node>,
    network: Mutex<Network>,
    settings: Settings,
    observer: OnceCell<kvorum::Client>,
    /// The last to go: until then it tells what there is to remove.
    _record: Arc<Record>,
}

impl Cluster {
    /// Makes network, disks and clocks, and starts all nodes. They wait to be formed into a cluster.
    ///
    /// # Errors
    /// Where any of it fails; what was made is removed.
    pub fn start(settings: Settings) -> Result<Self> {
        let (logs, data) = (settings.directory.join("nodes"), settings.directory.join("data"));
        for directory in [&logs, &data] {
            fs::create_dir_all(directory).context(|| format!("make {}", directory.display()))?;
        }
        let record = Arc::new(Record::begin());
        let network = match settings.namespaces {
            true => Network::namespaces(settings.nodes)?,
            false => Network::loopback(settings.nodes)?,
        };
        let addresses: Vec<String> = (0..settings.nodes).map(|node| network.address(node)).collect();
        let mut nodes = Vec::new();
        for (at, address) in addresses.iter().enumerate() {
            let disk = Disk::make(settings.disk, &data, at + 1, &record)?;
            let clock =
                settings.clocks.clone().map(|library| Clock::new(library, &data, at + 1)).transpose()?;
            let mut words = network.launcher(at);
            words.push(settings.server.to_string_lossy().into_owned());
            words.extend(
                ["serve", "--listen", address, "--advertise", address, "--http", "none"].map(String::from),
            );
            words.extend(["--data".into(), disk.data().to_string_lossy().into_owned()]);
            words.extend(["--join".into(), addresses.join(","), "--stop-on-stdin-eof".into()]);
            let mut environment = settings.environment.clone();
            environment.extend(clock.iter().flat_map(Clock::environment));
            let log = logs.join(format!("{}.log", at + 1));
            let line = CommandLine { words, environment, log, record: Arc::clone(&record) };
            nodes.push(Node::start(at, address.clone(), line, disk, clock)?);
        }
        let network = Mutex::new(network);
        Ok(Self { nodes, network, settings, observer: OnceCell::new(), _record: record })
    }

    /// How many nodes there are. They are named by index here, and by index + 1 to people.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Whether there are no nodes, which never is so.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// The gRPC addresses of all nodes.
    pub fn addresses(&self) -> Vec<String> {
        self.nodes.iter().map(|node| node.address.clone()).collect()
    }

    /// Kills a node (SIGKILL) and keeps it down until [`revive`](Self::revive).
    ///
    /// # Errors
    /// Where the system refuses.
    pub fn kill(&self, node: usize) -> Result<()> {
        self.nodes[node].kill()
    }

    /// Ends one [`kill`](Self::kill): the node is started when none is left.
    ///
    /// # Errors
    /// Where it can't be started.
    pub fn revive(&self, node: usize) -> Result<()> {
        self.nodes[node].revive()
    }

    /// Cuts a node's power: what it has not synced is lost. It stays down until
    /// [`restore_power`](Self::restore_power).
    ///
    /// # Errors
    /// Where its disk is of another kind, or the system refuses.
    pub fn cut_power(&self, node: usize) -> Result<()> {
        self.nodes[node].cut_power()
    }

    /// Brings a node's power back, and starts it.
    ///
    /// # Errors
    /// Where its disk can't be mounted again or it can't be started.
    pub fn restore_power(&self, node: usize, seed: u64) -> Result<()> {
        self.nodes[node].restore_power(seed)
    }

    /// Stops a node's process where it is (SIGSTOP) until [`resume`](Self::resume).
    ///
    /// # Errors
    /// Where the node is down, or the system refuses.
    pub fn pause(&self, node: usize) -> Result<()> {
        self.nodes[node].pause()
    }

    /// Ends one [`pause`](Self::pause): the process goes on when none is left.
    ///
    /// # Errors
    /// Where the system refuses.
    pub fn resume(&self, node: usize) -> Result<()> {
        self.nodes[node].resume()
    }

    /// Drops packets between nodes until [`mend`](Self::mend) with the same id.
    ///
    /// # Errors
    /// Where filters can't be set.
    pub fn cut(&self, id: u64, cut: Cut) -> Result<()> {
        self.network.lock().cut(id, cut)
    }

    /// Ends a [`cut`](Self::cut).
    ///
    /// # Errors
    /// Where filters can't be set.
    pub fn mend(&self, id: u64) -> Result<()> {
        self.network.lock().mend(id)
    }

    /// Sets a node's wall clock so many milliseconds ahead of the real time.
    ///
    /// # Errors
    /// Without a library that fakes clocks.
    pub fn set_clock(&self, node: usize, offset_ms: i64) -> Result<()> {
        self.nodes[node].set_clock(offset_ms)
    }

    /// Fills a node's disk until [`free_disk`](Self::free_disk).
    ///
    /// # Errors
    /// Where its disk is a plain directory, or there is room left; then nothing is to be freed.
    pub fn fill_disk(&self, node: usize) -> Result<()> {
        self.nodes[node].fill_disk()
    }

    /// Gives a node's disk its room back.
    ///
    /// # Errors
    /// Where its disk is a plain directory.
    pub fn free_disk(&self, node: usize) -> Result<()> {
        self.nodes[node].free_disk()
    }

    /// Makes a node's writes and syncs wait until [`thaw_disk`](Self::thaw_disk).
    ///
    /// # Errors
    /// Where its disk is a plain directory.
    pub fn freeze_disk(&self, node: usize) -> Result<()> {
        self.nodes[node].disk.freeze()
    }

    /// Lets a node's writes go on.
    pub fn thaw_disk(&self, node: usize) {
        self.nodes[node].disk.thaw();
    }

    /// Ends every fault on every node.
    ///
    /// # Errors
    /// The first, after all was tried.
    pub fn heal(&self) -> Result<()> {
        let mended = self.network.lock().mend_all();
        let healed: Vec<_> = self.nodes.iter().map(Node::heal).collect();
        healed.into_iter().chain([mended]).collect()
    }

    /// Kills all nodes and starts them again, without a pause.
    ///
    /// # Errors
    /// The first, after all was tried.
    pub fn restart_all(&self) -> Result<()> {
        let restarted: Vec<_> = self.nodes.iter().map(|node| node.kill().and(node.revive())).collect();
        restarted.into_iter().collect()
    }

    /// Looks whether nodes have ended of their own accord, notes that, and starts them again. Returns only where a
    /// node can't be started.
    ///
    /// # Errors
    /// Then.
    pub async fn supervise(&self) -> Result<std::convert::Infallible> {
        loop {
            self.look_after()?;
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// One look of [`supervise`](Self::supervise).
    ///
    /// # Errors
    /// Where a node that has ended can't be started again.
    pub fn look_after(&self) -> Result<()> {
        self.nodes.iter().try_for_each(Node::look_after)
    }

    /// The nodes that ended of their own accord so far.
    pub fn crashes(&self) -> Vec<Crash> {
        let mut crashes: Vec<Crash> = self.nodes.iter().flat_map(Node::crashes).collect();
        crashes.sort_by_key(|crash| crash.at);
        crashes
    }

    /// Lines of each node's log that tell of a panic, with the node's index.
    pub fn alarms(&self) -> Vec<(usize, String)> {
        let of = |(at, node): (usize, &Node)| {
            process::alarms(&node.line.log).into_iter().map(move |line| (at, line)).collect::<Vec<_>>()
        };
        self.nodes.iter().enumerate().flat_map(of).collect()
    }

    /// Stops all nodes cleanly. Returns the indexes of those that did not stop in time, and were killed.
    pub async fn stop(&self) -> Vec<usize> {
        for node in &self.nodes {
            node.terminate();
        }
        let until = Instant::now() + STOP_WITHIN;
        while Instant::now() < until && self.nodes.iter().any(Node::runs) {
            tokio::time::sleep(LOOK_EVERY / 4).await;
        }
        let late = self.nodes.iter().enumerate().filter(|(_, node)| node.runs()).map(|(at, _)| at).collect();
        for node in &self.nodes {
            node.end();
        }
        late
    }

    /// Copies data out of disks that vanish with the cluster, into `data/` in its directory. Nodes must not run.
    ///
    /// # Errors
    /// Where it can't be copied.
    pub fn keep_data(&self) -> Result<()> {
        for (at, node) in self.nodes.iter().enumerate() {
            node.disk.keep(&self.data_directory().join((at + 1).to_string()))?;
        }
        Ok(())
    }

    /// Where data lies.
    pub fn data_directory(&self) -> PathBuf {
        self.settings.directory.join("data")
    }

    /// The program that nodes run.
    pub fn server(&self) -> &Path {
        &self.settings.server
    }
}

/// A test that can't run here. On the machine that is to run them all (`CI=true`, root) that is a failure: a test that is
/// never run finds nothing.
#[cfg(test)]
pub(crate) fn not_run(reason: &str) {
    let must = rustix::process::geteuid().is_root() && std::env::var("CI").is_ok_and(|value| value == "true");
    assert!(!must, "this test must run here: {reason}");
    eprintln!("not run: {reason}");
}
