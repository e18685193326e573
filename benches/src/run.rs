//! A run: every load on every system, in turns.

use std::ops::Range;
use std::time::Duration;

use kvorum::client::Policy;

use crate::hot::{HotShard, Leaders};
use crate::indexes::Beside;
use crate::load::{self, Contention, Load, Operation};
use crate::report::{Results, Round, Row};
use crate::servers::Servers;
use crate::system::System;
use crate::{KEYS, Result, follow, pauses};

/// Numbers of clients to measure with.
const CLIENTS: [usize; 3] = [1, 64, 256];
/// Numbers of clients of transactions over two keys.
const TXN_CLIENTS: [usize; 2] = [1, 64];
/// Number of clients where only one number is measured.
const MANY_CLIENTS: usize = 64;
/// The number that reads of one shard are measured with besides.
const MOST_CLIENTS: usize = 256;

/// How long the pauses go on before anything is measured: until then a client may find out that the node is slow.
const FIND_OUT: Duration = Duration::from_secs(5);
/// How long after the pauses the nodes are all well again for each other: what they know of a slow one lasts so long.
const FORGET: Duration = Duration::from_secs(6);
/// How long clients that are new read before they are measured.
const WARM_UP: Duration = Duration::from_millis(500);

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub struct Extent {
    /// Rounds of all loads but those with a slow node.
    pub rounds: u32,
    /// Rounds with a slow node.
    pub slow_rounds: u32,
    /// How long one measurement takes.
    pub length: Duration,
    /// Whether reads of one shard are also measured with the most clients.
    pub with_most_clients: bool,
}

/// The systems under measurement, and what came of it.
struct Run<'a> {
    kvorum_servers: &'a Servers,
    etcd_servers: &'a Servers,
    leader: System,
    balanced: System,
    ceiling: System,
    etcd: System,
    etcd_in_turn: System,
    /// Asks who leads what: one that reads nothing.
    asking: kvorum::Client,
    hot: HotShard,
    length: Duration,
    results: Results,
}

/// Measures all, or `only` what has a name with this text in it.
pub async fn all(kvorum: &Servers, etcd: &Servers, extent: Extent, only: Option<&str>) -> Result<Results> {
    let mut loads = loads(extent.with_most_clients);
    loads.retain(|(operation, _)| only.is_none_or(|only| operation.name().contains(only)));
    let slow_rounds = if only.is_some() { 0 } else { extent.slow_rounds };
    if loads.is_empty() {
        return Err(format!("no row has {:?} in its name", only.unwrap_or_default()).into());
    }
    let mut run = Run::begin(kvorum, etcd, extent).await?;
    for round in 1..=extent.rounds {
        for &(operation, clients) in &loads {
            eprintln!("round {round} of {}: {}, {clients} clients", extent.rounds, operation.name());
            run.one_load(operation, clients).await?;
        }
    }
    // Behind all others: a slow node may lose what it leads, and they would be measured with fewer leaders.
    for round in 1..=slow_rounds {
        eprintln!("round {round} of {slow_rounds}: one slow node, {MANY_CLIENTS} clients");
        if round > 1 {
            tokio::time::sleep(FORGET).await;
        }
        run.slow_node().await?;
    }
    run.results.peak_memory("kvorum", kvorum.peak_memory_kib()?);
    run.results.peak_memory("etcd", etcd.peak_memory_kib()?);
    Ok(run.results)
}

/// What is measured in the usual rounds, with how many clients.
fn loads(with_most_clients: bool) -> Vec<(Operation, usize)> {
    let mut loads = Vec::new();
    for operation in [Operation::Put, Operation::Get] {
        loads.extend(CLIENTS.map(|clients| (operation, clients)));
    }
    for operation in [Operation::TxnOneShard, Operation::TxnTwoShards] {
        loads.extend(TXN_CLIENTS.map(|clients| (operation, clients)));
    }
    for contention in [Contention::Low, Contention::Medium, Contention::High] {
        loads.push((Operation::ReadModifyWrite(contention), MANY_CLIENTS));
    }
    loads.push((Operation::Follow(1), 1));
    for consumers in [1, 10] {
        loads.push((Operation::Follow(consumers), MANY_CLIENTS));
        loads.push((Operation::CatchUp(consumers), MANY_CLIENTS));
    }
    loads.extend([0, 1, 5].map(|indexes| (Operation::Indexes(Beside::Puts(indexes)), MANY_CLIENTS)));
    loads.extend([1, 5].map(|indexes| (Operation::Indexes(Beside::OwnWrites(indexes)), MANY_CLIENTS)));
    loads.push((Operation::Indexes(Beside::CatchUp), MANY_CLIENTS));
    for steps in [1, 10] {
        loads.extend([1, MANY_CLIENTS].map(|clients| (Operation::Sagas(steps), clients)));
    }
    loads.push((Operation::GetOneShard, MANY_CLIENTS));
    if with_most_clients {
        loads.push((Operation::GetOneShard, MOST_CLIENTS));
    }
    loads.push((Operation::BoundedGetOneShard, MANY_CLIENTS));
    loads
}

impl<'a> Run<'a> {
    /// Connects to both systems and writes all keys.
    async fn begin(kvorum: &'a Servers, etcd: &'a Servers, extent: Extent) -> Result<Self> {
        let leader = System::kvorum(&kvorum.endpoints, Policy::Leader).await?;
        let asking = kvorum::Client::connect(kvorum.endpoints.iter().cloned()).await?;
        let hot = HotShard::choose(&asking).await?;
        let run = Self {
            kvorum_servers: kvorum,
            etcd_servers: etcd,
            ceiling: leader.ceiling(),
            leader,
            balanced: System::kvorum(&kvorum.endpoints, Policy::Balanced).await?,
            etcd: System::etcd(&etcd.endpoints).await?,
            etcd_in_turn: System::etcd_in_turn(&etcd.endpoints).await?,
            asking,
            results: Results::new(&etcd.version, extent, &hot),
            hot,
            length: extent.length,
        };
        for system in [&run.leader, &run.etcd] {
            load::write_all_keys(system).await?;
        }
        Ok(run)
    }

    /// Measures one load on all systems that have to do with it.
    async fn one_load(&mut self, operation: Operation, clients: usize) -> Result<()> {
        let systems = match operation {
            Operation::GetOneShard => vec![&self.leader, &self.balanced, &self.etcd, &self.etcd_in_turn],
            Operation::BoundedGetOneShard => vec![&self.balanced, &self.etcd_in_turn],
            Operation::Indexes(_) | Operation::Sagas(_) => vec![&self.leader],
            _ if operation.has_ceiling() => vec![&self.leader, &self.etcd, &self.ceiling],
            _ => vec![&self.leader, &self.etcd],
        };
        let systems: Vec<System> = systems.into_iter().cloned().collect();
        for system in systems {
            self.measure(&system, self.load(operation, clients), None).await?;
        }
        Ok(())
    }

    /// Measures reads of the hot shard with all nodes well, and with a follower that is paused again and again.
    async fn slow_node(&mut self) -> Result<()> {
        // New ones, which know nothing yet of the last round's slow node.
        let servers = self.kvorum_servers;
        let balanced = System::kvorum(&servers.endpoints, Policy::Balanced).await?;
        let in_turn = System::kvorum_in_turn(&servers.endpoints, &servers.ids).await?;
        let (well, slow) = (Operation::GetAllWell, Operation::GetOneSlow);
        for system in [&balanced, &in_turn] {
            load::measure(system, &self.load(well, MANY_CLIENTS), WARM_UP).await?;
            self.measure(system, self.load(well, MANY_CLIENTS), None).await?;
        }
        let node = self.leaders().await?.a_follower(&servers.ids)?;
        let pid = servers.pid_of(node).ok_or("a node of the map has no process")?;
        let measured = async {
            load::measure(&balanced, &self.load(slow, MANY_CLIENTS), FIND_OUT).await?;
            for system in [&balanced, &in_turn] {
                self.measure(system, self.load(slow, MANY_CLIENTS), Some(node)).await?;
            }
            Ok(())
        };
        tokio::select! {
            measured = measured => measured,
            failed = pauses::again_and_again(pid) => Err(format!("pausing node {node} failed: {failed:?}").into()),
        }
    }

    /// Measures one load on one system; `slow` is the node that is slow meanwhile.
    async fn measure(&mut self, system: &System, mut load: Load, slow: Option<u64>) -> Result<()> {
        if let Operation::CatchUp(_) = load.operation {
            load.from = Some(follow::write_backlog(system, load.clients).await?);
        }
        let servers = match system {
            System::Kvorum(..) | System::Ceiling(_) => self.kvorum_servers,
            System::Etcd(..) => self.etcd_servers,
        };
        let has_leader = load.operation.is_of_one_shard() && matches!(system, System::Kvorum(..));
        let mut leaders = Vec::new();
        if has_leader {
            leaders.push(self.leaders().await?.hot);
        }
        let cpu_before = servers.cpu_time()?;
        let measured = load::measure(system, &load, self.length).await?;
        let cpu = servers.cpu_time()?.saturating_sub(cpu_before);
        // Asked again: who leads may have changed, and then the results say so.
        if has_leader {
            leaders.push(self.leaders().await?.hot);
        }
        self.results.add(Row::new(&load, system), Round { measured, cpu, leaders, slow })
    }

    async fn leaders(&self) -> Result<Leaders> {
        self.hot.leaders(&self.asking).await
    }

    fn load(&self, operation: Operation, clients: usize) -> Load {
        let all: Range<u64> = 0..KEYS;
        let keys = if operation.is_of_one_shard() { self.hot.keys.clone() } else { all };
        Load { operation, clients, keys, from: None }
    }
}
