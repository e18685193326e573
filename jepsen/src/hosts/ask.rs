//! What the cluster says about itself: forming it, whether it is well, who leads.

use std::collections::{BTreeMap, BTreeSet};
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

    /// Why the cluster is not well: a node that does not answer or not serve, a replica that stopped, knows no leader or
    /// is missing. `None` where all is well.
    pub async fn complaint(&self) -> Option<String> {
        complaint(&self.statuses().await, self.least_shards())
    }

    /// How many shards there are at least: the system's, and those that the cluster was formed with.
    pub(super) fn least_shards(&self) -> usize {
        self.settings.split_keys.len() + 2
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

    /// The node that leads the shard that holds a key, with the byte of its keyspace, likewise.
    pub async fn leader_of(&self, inner: &[u8]) -> Option<usize> {
        self.leader(|replica| {
            replica
                .shard
                .as_ref()
                .is_some_and(|shard| shard.start <= inner && shard.end.as_ref().is_none_or(|end| inner < end))
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
}

/// How many replicas each shard has among so many nodes.
pub(super) fn replicas_of_each(nodes: usize) -> usize {
    nodes.min(3)
}

/// What is wrong, by what each node says of itself.
fn complaint(statuses: &[Option<GetStatusReply>], least_shards: usize) -> Option<String> {
    for (at, status) in statuses.iter().enumerate() {
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
    missing_replica(statuses, least_shards)
}

/// A shard of which a replica is nowhere: one that lost its data must not be taken for well.
fn missing_replica(statuses: &[Option<GetStatusReply>], least_shards: usize) -> Option<String> {
    // Of each shard who holds it, and who is to by its newest state.
    let mut holders: BTreeMap<u64, BTreeSet<u64>> = BTreeMap::new();
    let mut members: BTreeMap<u64, (u64, &[u64])> = BTreeMap::new();
    for status in statuses.iter().flatten() {
        let node = status.node.as_ref().map_or(0, |node| node.id);
        for shard in status.replicas.iter().filter_map(|replica| replica.shard.as_ref()) {
            holders.entry(shard.id).or_default().insert(node);
            let newest = members.entry(shard.id).or_insert((shard.epoch, &shard.replicas));
            if newest.0 < shard.epoch {
                *newest = (shard.epoch, &shard.replicas);
            }
        }
    }
    for (shard, holders) in &holders {
        let of_shard = members.get(shard).map_or(&[][..], |(_, nodes)| nodes);
        if let Some(node) = of_shard.iter().find(|node| !holders.contains(node)) {
            return Some(format!("shard {shard}: the node of id {node} lacks its replica"));
        }
        let wanted = replicas_of_each(statuses.len());
        if holders.len() != wanted {
            return Some(format!("shard {shard} has {} replicas, and must have {wanted}", holders.len()));
        }
    }
    let count = holders.len();
    (count < least_shards)
        .then(|| format!("there are replicas of {count} shards, and must be of {least_shards}"))
}

#[cfg(test)]
mod tests {
    use kvorum::rpc::v1::{Node, Shard};

    use super::*;

    /// A node that serves, with replicas of these shards, which all have these members.
    fn serving(id: u64, shards: &[u64], members: &[u64]) -> Option<GetStatusReply> {
        let replica = |shard: &u64| ReplicaStatus {
            shard: Some(Shard { id: *shard, replicas: members.to_vec(), ..Shard::default() }),
            leader: 1,
            ..ReplicaStatus::default()
        };
        Some(GetStatusReply {
            node: Some(Node { id, ..Node::default() }),
            state: "serving".into(),
            replicas: shards.iter().map(replica).collect(),
            ..GetStatusReply::default()
        })
    }

    #[test]
    fn a_replica_that_is_nowhere_is_missed() {
        let all = [1, 2, 3];
        let well = all.map(|id| serving(id, &[0, 1], &all));
        assert_eq!(complaint(&well, 2), None);
        let mut lost = well.clone();
        lost[1] = serving(2, &[0], &all);
        assert!(complaint(&lost, 2).unwrap().contains("id 2 lacks"), "{:?}", complaint(&lost, 2));
        // Also where nobody says that it should be there.
        let forgotten = [serving(1, &[0, 1], &[]), serving(2, &[0], &[]), serving(3, &[0, 1], &[])];
        assert!(complaint(&forgotten, 2).unwrap().contains("2 replicas, and must have 3"));
        assert!(complaint(&well, 3).unwrap().contains("of 2 shards"));
    }

    #[test]
    fn of_five_nodes_three_hold_each_shard() {
        let held = |id: u64| if id <= 3 { [0, 1] } else { [2, 2] };
        let mut statuses: Vec<_> = (1..=5).map(|id| serving(id, &held(id)[..], &[])).collect();
        assert!(complaint(&statuses, 3).unwrap().contains("shard 2 has 2"));
        statuses[0] = serving(1, &[0, 1, 2], &[]);
        assert_eq!(complaint(&statuses, 3), None);
    }

    #[test]
    fn nodes_that_do_not_serve_and_replicas_without_a_leader_are_no_good() {
        let mut statuses = [serving(1, &[0], &[1]), None];
        assert!(complaint(&statuses, 1).unwrap().contains("node 2 does not answer"));
        statuses[1] =
            serving(2, &[0], &[1]).map(|status| GetStatusReply { state: "starting".into(), ..status });
        assert!(complaint(&statuses, 1).unwrap().contains("node 2 is starting"));
    }
}
