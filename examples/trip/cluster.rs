//! A cluster of three nodes of the run's own: since it kills them, it may not be anybody else's.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use kvorum::Client;
use kvorum::codec::keyspace;
use tokio::process::Command;
use tokio::time::{Instant, sleep, timeout};

use crate::Result;
use crate::crew::{Member, free_addresses};

const NODES: usize = 3;
const SHARDS: u32 = 4;
const PATIENCE: Duration = Duration::from_secs(90);

/// The nodes, with their gRPC addresses.
pub struct Cluster {
    nodes: Vec<(Member, String)>,
}

impl Cluster {
    /// Starts nodes, and makes a cluster of them.
    pub async fn start(kvorum: &Path, dir: &Path) -> Result<Self> {
        let addresses = free_addresses(NODES);
        let join = addresses.join(",");
        let mut nodes = Vec::new();
        for (at, address) in addresses.into_iter().enumerate() {
            let name = format!("node-{}", at + 1);
            let data = dir.join(&name).display().to_string();
            let mut args =
                vec!["serve", "--data", &data, "--listen", &address, "--http", "none", "--join", &join];
            args.push("--stop-on-stdin-eof");
            let mut node = Member::new(&name, kvorum, dir, args.into_iter().map(str::to_owned).collect());
            node.start(&[])?;
            nodes.push((node, address));
        }
        let mut cluster = Self { nodes };
        for (node, address) in &mut cluster.nodes {
            node.listens(address).await?;
        }
        cluster.form(kvorum, &join).await?;
        Ok(cluster)
    }

    /// `kvorum cluster init` may be repeated until it succeeds; once there is a cluster it is refused.
    async fn form(&self, kvorum: &Path, nodes: &str) -> Result<()> {
        let give_up_at = Instant::now() + PATIENCE;
        loop {
            let mut init = Command::new(kvorum);
            init.args(["cluster", "init", "--nodes", nodes, "--shards", &SHARDS.to_string()]);
            let told = init.stdin(Stdio::null()).kill_on_drop(true).output().await?;
            let probe =
                Client::builder().endpoints(self.endpoints()).deadline(Duration::from_secs(2)).connect();
            if told.status.success() || probe.await.is_ok() {
                return Ok(());
            }
            if Instant::now() >= give_up_at {
                return Err(format!("no cluster: {}", String::from_utf8_lossy(&told.stderr)).into());
            }
            sleep(Duration::from_millis(500)).await;
        }
    }

    /// The gRPC addresses.
    pub fn endpoints(&self) -> Vec<String> {
        self.nodes.iter().map(|(_, address)| address.clone()).collect()
    }

    /// Kills the node that leads most shards with sagas, and starts it again after a moment. Does nothing, and answers
    /// false, while another one has not come back yet: two of three must be there.
    pub async fn kill_a_leader(&mut self, client: &Client) -> Result<bool> {
        let client = client.with_deadline(Duration::from_secs(2));
        for (node, address) in &mut self.nodes {
            node.check()?;
            match client.status(address).await {
                Ok(status) if status.state == "serving" => {}
                _ => return Ok(false),
            }
        }
        let Ok(map) = client.map().await else { return Ok(false) };
        let sagas = keyspace::saga_range();
        let leads = |address: &str| {
            let node = map.nodes.iter().find(|node| node.grpc_addr == address).map_or(0, |node| node.id);
            let holds_sagas = |shard: &kvorum::rpc::v1::Shard| {
                let begins_before = sagas.end.as_ref().is_none_or(|end| shard.start < *end);
                begins_before && shard.end.as_ref().is_none_or(|end| *end > sagas.start)
            };
            let led = map
                .shards
                .iter()
                .filter(|one| one.leader == node && one.shard.as_ref().is_some_and(holds_sagas));
            led.count()
        };
        let Some((node, _)) = self.nodes.iter_mut().max_by_key(|(_, address)| leads(address)) else {
            return Ok(false);
        };
        node.kill().await?;
        sleep(Duration::from_millis(500)).await;
        node.start(&[])?;
        Ok(true)
    }

    /// Stops all nodes, in whatever order.
    pub async fn stop(&mut self) -> Result<()> {
        for (node, _) in &mut self.nodes {
            node.stop().await?;
        }
        Ok(())
    }
}

/// The program: as said, or beside this one, or somewhere on the path.
pub async fn find_kvorum(said: Option<String>) -> Result<PathBuf> {
    if let Some(said) = said {
        return Ok(said.into());
    }
    // Examples are in target/debug/examples.
    let own = std::env::current_exe()?;
    let beside = own.parent().and_then(Path::parent).map(|dir| dir.join("kvorum"));
    if let Some(beside) = beside.filter(|path| path.exists()) {
        return Ok(beside);
    }
    let on_path = Command::new("kvorum").arg("--version").stdin(Stdio::null()).output();
    match timeout(Duration::from_secs(10), on_path).await {
        Ok(Ok(_)) => Ok("kvorum".into()),
        _ => Err("there is no `kvorum` beside this program, nor on the path: say --kvorum PATH".into()),
    }
}
