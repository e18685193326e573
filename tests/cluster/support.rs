//! Clusters of real processes of the built program, and what tests ask them.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use kvorum::rpc::convert;
use kvorum::rpc::v1::cluster_client::ClusterClient;
use kvorum::rpc::v1::{
    ChecksumRequest, GetStatusReply, GetStatusRequest, InitRequest, ReplicaChecksum, ReplicaScanRequest,
};
use kvorum::types::limits::MAX_MESSAGE_BYTES;
use kvorum::{Client, Error, Result};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::Instant;
use tonic::transport::{Channel, Endpoint};

/// How long a test waits for a condition before it fails. Generous: a loaded machine is no failure.
pub const PATIENCE: Duration = Duration::from_secs(120);
/// The pause between two looks at a condition.
const POLL: Duration = Duration::from_millis(50);
/// How long one question to one node may take.
const CALL_WITHIN: Duration = Duration::from_secs(10);
/// Lines of each node's log that a failing test shows.
const TAIL_LINES: usize = 40;
/// Below this port the system takes no ports for outgoing connections by default. A node's port must not be
/// taken while the node is down, least of all by a connection from the port to itself.
const FIRST_PORT: u16 = 10_000;
const PORTS: u16 = 20_000;

/// So many replicas a shard has, where there are so many nodes.
const REPLICAS: usize = 3;

static TURN: Semaphore = Semaphore::const_new(1);

/// Waits until no other test of this program runs a cluster.
pub async fn turn() -> SemaphorePermit<'static> {
    TURN.acquire().await.expect("never closed")
}

/// Looks again and again until `look` succeeds, and fails the test with its last reason after [`PATIENCE`].
pub async fn eventually<T>(what: &str, mut look: impl AsyncFnMut() -> Result<T, String>) -> T {
    let give_up_at = Instant::now() + PATIENCE;
    loop {
        let why = match tokio::time::timeout_at(give_up_at, look()).await {
            Ok(Ok(found)) => return found,
            Ok(Err(why)) => why,
            Err(_) => "the last look did not end".to_owned(),
        };
        assert!(Instant::now() < give_up_at, "{what}: not within {PATIENCE:?}: {why}");
        tokio::time::sleep(POLL).await;
    }
}

/// Addresses on which nothing listens now, each another one. They stay the node's over its restarts.
fn free_addresses(count: usize) -> Vec<String> {
    // Held until all are chosen, so that none is chosen twice.
    let mut held = Vec::new();
    while held.len() < count {
        let port = FIRST_PORT + rand::random::<u16>() % PORTS;
        held.extend(TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], port))));
    }
    held.iter().map(|listener| listener.local_addr().expect("bound").to_string()).collect()
}

/// The program, without settings from the environment.
pub fn kvorum() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kvorum"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("KVORUM_") && name != "KVORUM_LOG")
    {
        command.env_remove(name);
    }
    command.stdin(Stdio::null());
    command
}

/// One node: its settings, and its process while it runs. Dropped, the process is killed.
pub struct Process {
    /// Its data directory.
    pub data: PathBuf,
    /// The gRPC address it listens on.
    pub grpc: String,
    /// Its HTTP address.
    pub http: String,
    /// What `--join` says; empty leaves it out.
    pub join: Vec<String>,
    log: PathBuf,
    child: Option<Child>,
}

impl Process {
    /// A node named `name` in `dir`, on free ports, not started.
    pub fn new(dir: &Path, name: &str) -> Self {
        let mut addresses = free_addresses(2).into_iter();
        let mut next = || addresses.next().expect("two addresses");
        Self {
            data: dir.join(name),
            grpc: next(),
            http: next(),
            join: Vec::new(),
            log: dir.join(format!("{name}.log")),
            child: None,
        }
    }

    /// Starts the process. Its output goes to the end of its log.
    pub fn start(&mut self) {
        self.start_with(&[]);
    }

    /// Starts the process with more in its environment.
    pub fn start_with(&mut self, environment: &[(&str, &str)]) {
        let mut command = kvorum();
        command.envs(environment.iter().copied());
        self.start_as(command);
    }

    /// Starts the process with a command that runs the program with the arguments that are added here.
    pub fn start_as(&mut self, mut command: Command) {
        assert!(self.child.is_none(), "the node at {} runs already", self.grpc);
        let log = OpenOptions::new().create(true).append(true).open(&self.log).expect("a log file");
        command.arg("serve").arg("--data").arg(&self.data);
        command.args(["--listen", &self.grpc, "--http", &self.http]);
        if !self.join.is_empty() {
            command.arg("--join").arg(self.join.join(","));
        }
        // Our end of its standard input closes when the test ends, in whatever way; then the node stops too.
        command.arg("--stop-on-stdin-eof").stdin(Stdio::piped());
        command.stdout(log.try_clone().expect("a handle")).stderr(log);
        self.child = Some(command.spawn().expect("the program starts"));
    }

    /// SIGKILL, and the end of the process. Nothing where it does not run.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("killed");
            child.wait().expect("ended");
        }
    }

    /// SIGTERM, and the end of the process: how it exited.
    pub async fn terminate(&mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        self.exit().await
    }

    /// Waits for the process to end of its own accord.
    pub async fn exit(&mut self) -> ExitStatus {
        let child = self.child.as_mut().expect("the node runs");
        let look = async || child.try_wait().expect("waited for").ok_or_else(|| "it runs".to_owned());
        let status = eventually("the process ends", look).await;
        self.child = None;
        status
    }

    /// Whether the process has ended by itself; it is waited for then.
    pub fn has_exited(&mut self) -> bool {
        let has = self.child.as_mut().is_none_or(|child| child.try_wait().expect("waited for").is_some());
        if has {
            self.child = None;
        }
        has
    }

    /// Sends a signal to the process, which must run.
    pub fn signal(&self, signal: Signal) {
        let child = self.child.as_ref().expect("the node runs");
        let pid = Pid::from_raw(i32::try_from(child.id()).expect("a process id")).expect("not 0");
        kill_process(pid, signal).expect("signalled");
    }

    /// The id of the process, which must run.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("the node runs").id()
    }

    /// Whether it was started, and neither killed nor waited for since.
    pub fn runs(&self) -> bool {
        self.child.is_some()
    }

    /// Everything it has written to its log.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// The cluster service of the node.
    pub async fn service(&self) -> Result<ClusterClient<Channel>> {
        service(&self.grpc).await
    }

    /// What the node says about itself.
    pub async fn status(&self) -> Result<GetStatusReply> {
        let reply = self.service().await?.get_status(GetStatusRequest {}).await;
        reply.map(tonic::Response::into_inner).map_err(|status| convert::error_from_status(&status))
    }

    /// Waits until the node says that it is in this state: `waiting`, `starting` or `serving`.
    pub async fn wait_state(&self, wanted: &str) {
        eventually(&format!("the node at {} is {wanted}", self.grpc), async || {
            let status = self.status().await.map_err(|error| error.to_string())?;
            if status.state == wanted { Ok(()) } else { Err(format!("it is {}", status.state)) }
        })
        .await;
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            let tail = &lines[lines.len().saturating_sub(TAIL_LINES)..];
            eprintln!("---- the end of {} ({}):\n{}", self.log.display(), self.grpc, tail.join("\n"));
        }
        if let Some(mut child) = self.child.take() {
            // An error means that it has ended already.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// The cluster service of the node at `addr`.
pub async fn service(addr: &str) -> Result<ClusterClient<Channel>> {
    let endpoint = Endpoint::from_shared(format!("http://{addr}")).expect("an address");
    let channel = endpoint.connect_timeout(CALL_WITHIN).timeout(CALL_WITHIN).connect().await;
    let channel =
        channel.map_err(|error| Error::unavailable(format!("no node answers at {addr}: {error}")))?;
    Ok(ClusterClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES))
}

/// A client that first asks `endpoints`.
pub async fn client_of<E: Into<String>>(endpoints: impl IntoIterator<Item = E>) -> Client {
    Client::builder().endpoints(endpoints).deadline(PATIENCE).connect().await.expect("connected")
}

/// The replicas of each shard, each with the id of its node.
pub type Checksums = BTreeMap<u64, Vec<(u64, ReplicaChecksum)>>;

/// A formed cluster. Only one exists at a time.
pub struct Cluster {
    /// Its nodes, in the order of their ids, which start at 1.
    pub nodes: Vec<Process>,
    /// Its directory: data and logs.
    pub dir: TempDir,
    _turn: SemaphorePermit<'static>,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.dir.disable_cleanup(true);
            eprintln!("---- data and logs stay in {}", self.dir.path().display());
        }
    }
}

impl Cluster {
    /// Starts `nodes` processes, makes a cluster of `shards` shards of them, and waits until it serves.
    pub async fn start(nodes: usize, shards: u32) -> Self {
        Self::start_with(nodes, shards, &[]).await
    }

    /// The same, with more in the environment of the processes.
    pub async fn start_with(nodes: usize, shards: u32, environment: &[(&str, &str)]) -> Self {
        let cluster = Self::waiting_with(nodes, environment).await;
        cluster.init(shards).await;
        cluster.wait_serving().await;
        cluster
    }

    /// Starts `nodes` processes that wait for an `init`.
    async fn waiting_with(nodes: usize, environment: &[(&str, &str)]) -> Self {
        let turn = turn().await;
        let dir = tempfile::tempdir().expect("a directory");
        let names = (1..=nodes).map(|id| format!("node-{id}"));
        let mut nodes: Vec<Process> = names.map(|name| Process::new(dir.path(), &name)).collect();
        let join: Vec<String> = nodes.iter().map(|node| node.grpc.clone()).collect();
        for node in &mut nodes {
            node.join.clone_from(&join);
            node.start_with(environment);
        }
        let cluster = Self { nodes, dir, _turn: turn };
        cluster.wait_waiting().await;
        cluster
    }

    /// Makes a cluster of processes that were started elsewhere than here, and waits until it serves.
    pub async fn form(
        nodes: Vec<Process>,
        dir: TempDir,
        turn: SemaphorePermit<'static>,
        shards: u32,
    ) -> Self {
        let cluster = Self { nodes, dir, _turn: turn };
        cluster.wait_waiting().await;
        cluster.init(shards).await;
        cluster.wait_serving().await;
        cluster
    }

    async fn wait_waiting(&self) {
        for node in &self.nodes {
            node.wait_state("waiting").await;
        }
    }

    /// Has the first node form the cluster.
    async fn init(&self, shards: u32) {
        let request = InitRequest { nodes: self.endpoints(), shards, ..InitRequest::default() };
        eventually("the cluster is formed", async || {
            let mut service = self.nodes[0].service().await.map_err(|error| error.to_string())?;
            // It waits for the first leaders, which may take longer than other questions do.
            let mut request = tonic::Request::new(request.clone());
            request.set_timeout(PATIENCE);
            match service.init(request).await {
                Ok(_) => Ok(()),
                // An init that timed out may have done its work.
                Err(status) => match self.nodes[0].status().await {
                    Ok(status) if !status.cluster_id.is_empty() => Ok(()),
                    _ => Err(status.to_string()),
                },
            }
        })
        .await;
    }

    /// The gRPC addresses of all nodes.
    pub fn endpoints(&self) -> Vec<String> {
        self.nodes.iter().map(|node| node.grpc.clone()).collect()
    }

    /// A client of the whole cluster. Its calls may take up to [`PATIENCE`]; see `Client::with_deadline`.
    pub async fn client(&self) -> Client {
        client_of(self.endpoints()).await
    }

    /// SIGKILL.
    pub fn kill(&mut self, at: usize) {
        self.nodes[at].kill();
    }

    /// SIGTERM; how the process exited.
    pub async fn terminate(&mut self, at: usize) -> ExitStatus {
        self.nodes[at].terminate().await
    }

    /// Starts a node that does not run, on its data and addresses.
    pub fn restart(&mut self, at: usize) {
        self.nodes[at].start();
    }

    /// Waits until every node that runs knows a leader of each of its shards.
    pub async fn wait_serving(&self) {
        for node in self.nodes.iter().filter(|node| node.runs()) {
            node.wait_state("serving").await;
        }
    }

    /// What every node says about itself, in order.
    pub async fn statuses(&self) -> Vec<Result<GetStatusReply>> {
        join_all(self.nodes.iter().map(Process::status)).await
    }

    /// Which node (an index into `nodes`) leads the shard that holds `key`, as the nodes that run say.
    pub async fn leader_of(&self, key: &[u8]) -> usize {
        self.leader_of_internal(&kvorum::codec::keyspace::user_key(key)).await
    }

    /// The same for a key with its keyspace byte.
    pub async fn leader_of_internal(&self, inner: &[u8]) -> usize {
        eventually("the key's shard has a leader", async || {
            let mut reasons = Vec::new();
            for (at, node) in self.nodes.iter().enumerate().filter(|(_, node)| node.runs()) {
                match node.status().await {
                    Ok(status) => {
                        let leads = status.replicas.iter().any(|replica| {
                            let shard = replica.shard.as_ref().expect("a replica names its shard");
                            let holds = shard.start[..] <= *inner
                                && shard.end.as_ref().is_none_or(|end| *inner < end[..]);
                            holds && replica.role == "leader"
                        });
                        if leads {
                            return Ok(at);
                        }
                        reasons.push(format!("{} leads it not", node.grpc));
                    }
                    Err(error) => reasons.push(error.to_string()),
                }
            }
            Err(reasons.join("; "))
        })
        .await
    }

    /// Which node leads the system shard, and with it the oracle.
    pub async fn system_leader(&self) -> usize {
        eventually("the system shard has a leader", async || {
            for (at, status) in self.statuses().await.into_iter().enumerate() {
                let replicas = status.map(|status| status.replicas).unwrap_or_default();
                let is_system = |shard: &kvorum::rpc::v1::Shard| shard.id == 0;
                if replicas
                    .iter()
                    .any(|one| one.role == "leader" && one.shard.as_ref().is_some_and(is_system))
                {
                    return Ok(at);
                }
            }
            Err("no node leads it".to_owned())
        })
        .await
    }

    /// The checksums of all replicas, each over every row read from disk. All nodes must answer.
    pub async fn checksums(&self) -> Result<Checksums> {
        let mut shards = Checksums::new();
        for (at, node) in self.nodes.iter().enumerate() {
            let mut request = tonic::Request::new(ChecksumRequest { shard: None });
            request.set_timeout(PATIENCE);
            let reply = node.service().await?.checksum(request).await;
            let reply = reply.map_err(|status| convert::error_from_status(&status))?.into_inner();
            for replica in reply.replicas {
                shards.entry(replica.shard).or_default().push((at as u64 + 1, replica));
            }
        }
        Ok(shards)
    }

    /// Waits until all replicas of each shard have applied the same log index, and checks that they then hold
    /// the same. Nothing may be writing.
    pub async fn wait_equal(&self) -> Checksums {
        let shards = eventually("all replicas have applied the same", async || {
            let shards = self.checksums().await.map_err(|error| error.to_string())?;
            for (shard, replicas) in &shards {
                let indexes: Vec<u64> = replicas.iter().map(|(_, replica)| replica.applied_index).collect();
                if indexes.windows(2).any(|pair| pair[0] != pair[1]) {
                    return Err(format!("shard {shard}: applied indexes {indexes:?}"));
                }
            }
            Ok(shards)
        })
        .await;
        for (shard, replicas) in &shards {
            assert_eq!(
                replicas.len(),
                self.nodes.len().min(REPLICAS),
                "replicas of shard {shard}: {replicas:?}"
            );
            let content = |(_, one): &(u64, ReplicaChecksum)| (one.running, one.rows_checksum, one.rows);
            assert!(
                replicas.iter().all(|one| content(one) == content(&replicas[0])),
                "the replicas of shard {shard} differ: {replicas:#?}"
            );
        }
        shards
    }

    /// Every row of the users' shards that the replicas on one node hold, leader or not.
    pub async fn replica_rows(&self, at: usize) -> BTreeMap<Bytes, Bytes> {
        let read = async {
            let mut service = self.nodes[at].service().await?;
            let mut found = BTreeMap::new();
            for shard in self.nodes[at].status().await?.replicas.into_iter().filter_map(|one| one.shard) {
                let mut request = tonic::Request::new(ReplicaScanRequest { shard: shard.id });
                request.set_timeout(PATIENCE);
                let reply = service.replica_scan(request).await;
                let told = |status: tonic::Status| convert::error_from_status(&status);
                let mut pages = reply.map_err(told)?.into_inner();
                while let Some(page) = pages.message().await.map_err(told)? {
                    let rows = page.rows.into_iter();
                    found.extend(rows.map(|row| (row.key, row.record.unwrap_or_default().value)));
                }
            }
            Ok::<_, Error>(found)
        };
        read.await.unwrap_or_else(|error| panic!("node {} does not list its rows: {error}", at + 1))
    }
}
