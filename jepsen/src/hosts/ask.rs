//! What the cluster says about itself: forming it, whether it is well, who leads.

use std::time::{Duration, Instant};

use futures::future::join_all;
use kvorum::Client;
use kvorum::rpc::v1::{GetStatusReply, ReplicaStatus};

use super::tools::{Error, Result, run};
use super::{Cluster, LOOK_EVERY};

/// How long one question to one node may take.
const ANSWER_WITHIN: Duration = Duration::from_millis(1500);
/// The shard of the node registry, the shard map and the timestamps.
const SYSTEM_SHARD: u64 = 0;

impl Cluster {
    /// Makes a cluster of the nodes, which wait for it, and waits until it is well.
    ///
    /// # Errors
    /// Where that does not happen in time.
    pub async fn form(&self, within: Duration) -> Result<()> {
        let until = Instant::now() + within;
        let nodes = self.addresses().join(",");
        let mut words =
            vec!["cluster", "init", "--endpoints", &nodes, "--nodes", &nodes, "--deadline", "60s"];
        words.extend(self.settings.split_keys.iter().flat_map(|key| ["--split-key", key]));
        words.extend(["--output", "json"]);
        let words: Vec<String> = words.into_iter().map(str::to_owned).collect();
        while let Err(error) = self.init(words.clone()).await {
            // An init whose answer was lost may have done its work.
            if self.connect(ANSWER_WITHIN).await.is_ok() {
                break;
            }
            if Instant::now() > until {
                return Err(error);
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        let left = until.saturating_duration_since(Instant::now());
        let observer = self.connect(left).await?;
        self.observer.get_or_init(|| async { observer }).await;
        self.wait_well(left).await
    }

    async fn init(&self, words: Vec<String>) -> Result<()> {
        let server = self.settings.server.to_string_lossy().into_owned();
        let init = move || run(&server, &words.iter().map(String::as_str).collect::<Vec<_>>());
        let done = tokio::task::spawn_blocking(init).await;
        done.map_err(|error| Error::Other(format!("the init ended: {error}")))?.map(drop)
    }

    async fn connect(&self, within: Duration) -> Result<Client> {
        Ok(Client::builder().endpoints(self.addresses()).deadline(within).connect().await?)
    }

    /// A client of its own connections that asks the node of this index first. Its calls end by `deadline`.
    ///
    /// # Errors
    /// Where no node answers in time.
    pub async fn client(&self, first: usize, deadline: Duration) -> Result<Client, kvorum::Error> {
        let mut addresses = self.addresses();
        let count = addresses.len();
        addresses.rotate_left(first % count);
        Client::builder().endpoints(addresses).deadline(deadline).connect().await
    }

    /// What every node says about itself, in order; `None` where it does not answer.
    pub async fn statuses(&self) -> Vec<Option<GetStatusReply>> {
        let Some(observer) = self.observer.get() else { return vec![None; self.len()] };
        let observer = &observer.with_deadline(ANSWER_WITHIN);
        let asked = self.nodes.iter().map(|node| async move { observer.status(&node.address).await.ok() });
        join_all(asked).await
    }

    /// Why the cluster is not well: a node that does not answer or not serve, a replica that stopped or knows no
    /// leader. `None` where all is well.
    pub async fn complaint(&self) -> Option<String> {
        for (at, status) in self.statuses().await.into_iter().enumerate() {
            let node = at + 1;
            let Some(status) = status else { return Some(format!("node {node} does not answer")) };
            if status.state != "serving" {
                return Some(format!("node {node} is {}", status.state));
            }
            for replica in &status.replicas {
                let shard = replica.shard.as_ref().map_or(0, |shard| shard.id);
                if !replica.fault.is_empty() {
                    return Some(format!("node {node}: shard {shard} stopped: {}", replica.fault));
                }
                if replica.leader == 0 {
                    return Some(format!("node {node}: shard {shard} has no leader"));
                }
            }
        }
        None
    }

    /// Waits until the cluster is well.
    ///
    /// # Errors
    /// With the last complaint where that does not happen in time.
    pub async fn wait_well(&self, within: Duration) -> Result<()> {
        let until = Instant::now() + within;
        while let Some(complaint) = self.complaint().await {
            if Instant::now() > until {
                return Err(Error::Other(format!("the cluster is not well after {within:?}: {complaint}")));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        Ok(())
    }

    /// The node that leads the system shard, by what nodes that answer say; of two, the one of the later term.
    pub async fn system_leader(&self) -> Option<usize> {
        self.leader(|replica| replica.shard.as_ref().is_some_and(|shard| shard.id == SYSTEM_SHARD)).await
    }

    /// The node that leads the shard that holds a user's key, likewise.
    pub async fn leader_of(&self, key: &str) -> Option<usize> {
        let inner = kvorum::codec::keyspace::user_key(key.as_bytes());
        self.leader(|replica| {
            replica.shard.as_ref().is_some_and(|shard| {
                shard.start <= inner && shard.end.as_ref().is_none_or(|end| inner < *end)
            })
        })
        .await
    }

    async fn leader(&self, is_meant: impl Fn(&ReplicaStatus) -> bool) -> Option<usize> {
        let statuses = self.statuses().await;
        let leads = |status: &GetStatusReply| {
            let mut leading =
                status.replicas.iter().filter(|replica| replica.role == "leader" && is_meant(replica));
            leading.next().map(|replica| replica.term)
        };
        let found = statuses.iter().enumerate();
        let found = found.filter_map(|(at, status)| status.as_ref().and_then(leads).map(|term| (term, at)));
        found.max().map(|(_, at)| at)
    }

    /// Compares all replicas of each shard, once they have applied the same. Nothing may be writing.
    ///
    /// # Errors
    /// With what the `kvorum` command says, where they differ or can't be compared.
    pub async fn compare_replicas(&self) -> Result<()> {
        let server = self.settings.server.to_string_lossy().into_owned();
        let nodes = self.addresses().join(",");
        let words = ["checksum", "--wait", "60s", "--deadline", "60s", "--endpoints"].map(String::from);
        let compare = move || {
            let words: Vec<&str> = words.iter().map(String::as_str).chain([nodes.as_str()]).collect();
            run(&server, &words)
        };
        let done = tokio::task::spawn_blocking(compare).await;
        done.map_err(|error| Error::Other(format!("the comparison ended: {error}")))?.map(drop)
    }
}
