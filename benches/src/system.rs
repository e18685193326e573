//! The systems under measurement, behind one interface.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use etcd_client::{Compare, CompareOp, GetOptions, Txn, TxnOp};
use kvorum::client::{Policy, ReadAt};
use kvorum::types::NodeId;

use crate::Result;
use crate::follow::Place;

/// Connections to etcd's leader: with fewer, its client would be the limit before etcd is.
const LEADER_CONNECTIONS: usize = 4;
/// Connections to each member where reads are spread: a member has a third of them to serve. More would cost etcd
/// the packing of several requests into one packet.
const MEMBER_CONNECTIONS: usize = 2;

/// How old a bounded read's answer may be.
const BOUND: Duration = Duration::from_secs(5);

/// A system, as a client sees it. Cheap to clone.
#[derive(Clone)]
pub enum System {
    /// kvorum through its client library: one stream to each node. Reads by `InTurn` have a client for each node.
    Kvorum(Arc<Vec<kvorum::Client>>, Reads),
    /// etcd through the etcd-client crate, connected to the leader, which serves cheapest, or to all members.
    Etcd(Arc<Vec<etcd_client::Client>>, Reads),
    /// Calls of kvorum's session that do nothing: the most that its transport can carry.
    Ceiling(kvorum::Client),
}

/// Who answers reads.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Reads {
    /// The leader.
    Leader,
    /// All replicas, as kvorum's client chooses.
    Balanced,
    /// All replicas, one after the other, however they are.
    InTurn,
}

impl fmt::Display for Reads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Leader => "leader",
            Self::Balanced => "balanced",
            Self::InTurn => "in turn",
        })
    }
}

/// What a read promises.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Level {
    /// It sees every write that was acknowledged before it began.
    Linearizable,
    /// Its answer is at most so old; etcd's serializable reads, which stand beside it, may be of any age.
    Bounded,
}

impl System {
    /// Connects to kvorum. By default its client balances: what is wanted is always said here.
    pub async fn kvorum(endpoints: &[String], policy: Policy) -> Result<Self> {
        let reads = match policy {
            Policy::Leader => Reads::Leader,
            Policy::Balanced | Policy::Nearest => Reads::Balanced,
        };
        let client = kvorum::Client::builder()
            .endpoints(endpoints.iter().cloned())
            .read_policy(policy)
            .connect()
            .await?;
        Ok(Self::Kvorum(Arc::new(vec![client]), reads))
    }

    /// Connects to kvorum with a client for each of these nodes, to use in turn: reads go evenly to all nodes,
    /// also to one that a balancing client would spare.
    pub async fn kvorum_in_turn(endpoints: &[String], nodes: &[u64]) -> Result<Self> {
        let mut clients = Vec::new();
        for node in nodes {
            let builder = kvorum::Client::builder().endpoints(endpoints.iter().cloned());
            clients.push(builder.prefer_node(NodeId(*node)).connect().await?);
        }
        Ok(Self::Kvorum(Arc::new(clients), Reads::InTurn))
    }

    /// Connects to etcd's leader.
    pub async fn etcd(endpoints: &[String]) -> Result<Self> {
        let mut leader = None;
        for endpoint in endpoints {
            let mut client = etcd_client::Client::connect([endpoint], None).await?;
            let status = client.status().await?;
            let own_id = status.header().map(|header| header.member_id());
            if own_id == Some(status.leader()) {
                leader = Some(endpoint);
            }
        }
        let leader = leader.ok_or("etcd has no leader")?;
        let mut clients = Vec::new();
        for _ in 0..LEADER_CONNECTIONS {
            clients.push(etcd_client::Client::connect([leader], None).await?);
        }
        Ok(Self::Etcd(Arc::new(clients), Reads::Leader))
    }

    /// Connects to all of etcd's members, to use in turn.
    pub async fn etcd_in_turn(endpoints: &[String]) -> Result<Self> {
        let mut clients = Vec::new();
        for _ in 0..MEMBER_CONNECTIONS {
            for endpoint in endpoints {
                clients.push(etcd_client::Client::connect([endpoint], None).await?);
            }
        }
        Ok(Self::Etcd(Arc::new(clients), Reads::InTurn))
    }

    /// The ceiling of this system's transport; only kvorum has one to call.
    pub fn ceiling(&self) -> Self {
        match self {
            Self::Kvorum(clients, _) => Self::Ceiling(clients[0].clone()),
            Self::Etcd(..) | Self::Ceiling(_) => self.clone(),
        }
    }

    /// Its name in the results.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Kvorum(..) => "kvorum",
            Self::Etcd(..) => "etcd",
            Self::Ceiling(_) => "ceiling",
        }
    }

    /// Who answers its reads.
    pub fn reads(&self) -> Option<Reads> {
        match self {
            Self::Kvorum(_, reads) | Self::Etcd(_, reads) => Some(*reads),
            Self::Ceiling(_) => None,
        }
    }

    /// Writes a value; acknowledged once a majority has synced it. `client` spreads over connections.
    pub async fn put(&self, client: usize, key: String, value: Bytes) -> Result<()> {
        match self {
            Self::Kvorum(clients, _) => {
                clients[0].put(key, value).await?;
            }
            Self::Etcd(clients, _) => {
                clients[client % clients.len()].kv_client().put(key, value, None).await?;
            }
            Self::Ceiling(kvorum) => kvorum.empty(value).await?,
        }
        Ok(())
    }

    /// Reads a value; answers which of kvorum's nodes served it. `turn` says which of the
    /// connections is used. A key that is missing is an error: all were written before.
    pub async fn get(&self, turn: usize, key: String, level: Level) -> Result<Option<u64>> {
        let (found, node) = match self {
            Self::Kvorum(clients, _) => {
                let at = match level {
                    Level::Linearizable => ReadAt::Latest,
                    Level::Bounded => ReadAt::Bounded { max_staleness_ms: BOUND.as_millis() as u64 },
                };
                let got = clients[turn % clients.len()].read(key, at).await?;
                (got.record.is_some(), got.served.map(|served| served.node.0))
            }
            Self::Etcd(clients, _) => {
                let options = match level {
                    Level::Linearizable => None,
                    Level::Bounded => Some(GetOptions::new().with_serializable()),
                };
                let got = clients[turn % clients.len()].kv_client().get(key, options).await?;
                (!got.kvs().is_empty(), None)
            }
            Self::Ceiling(kvorum) => {
                kvorum.empty(key).await?;
                (true, None)
            }
        };
        if found { Ok(node) } else { Err("a key that was written is missing".into()) }
    }

    /// Where to follow from to be told of what is written from now on.
    pub async fn place(&self) -> Result<Place> {
        match self {
            Self::Kvorum(clients, _) => Ok(Place::Timestamp(clients[0].timestamp().await?.0)),
            Self::Etcd(clients, _) => {
                let status = clients[0].maintenance_client().status().await?;
                let revision = status.header().map(etcd_client::ResponseHeader::revision);
                Ok(Place::Revision(revision.ok_or("etcd does not tell its revision")? + 1))
            }
            Self::Ceiling(_) => Err("following has no ceiling".into()),
        }
    }

    /// Writes a value under two keys, in one transaction. Answers how many attempts it took.
    pub async fn put_two(&self, client: usize, keys: [String; 2], value: Bytes) -> Result<u32> {
        match self {
            Self::Kvorum(clients, _) => {
                let put = |txn: kvorum::client::Txn| {
                    let puts = keys.iter().try_for_each(|key| txn.put(key, value.clone()));
                    std::future::ready(puts)
                };
                Ok(clients[0].transact(put).await?.attempts)
            }
            Self::Etcd(clients, _) => {
                let puts: Vec<TxnOp> =
                    keys.into_iter().map(|key| TxnOp::put(key, value.clone(), None)).collect();
                clients[client % clients.len()].kv_client().txn(Txn::new().and_then(puts)).await?;
                Ok(1)
            }
            Self::Ceiling(_) => Err("a transaction has no ceiling".into()),
        }
    }

    /// Reads a key and writes it, again until nobody wrote it in between: etcd by its revision, at once, as its own
    /// helpers do. Answers how many attempts it took.
    pub async fn read_modify_write(&self, client: usize, key: String, value: Bytes) -> Result<u32> {
        match self {
            Self::Kvorum(clients, _) => {
                let (key, value) = (&key, &value);
                let change = |txn: kvorum::client::Txn| async move {
                    txn.get(key).await?;
                    txn.put(key, value.clone())
                };
                Ok(clients[0].transact(change).await?.attempts)
            }
            Self::Etcd(clients, _) => {
                let mut etcd = clients[client % clients.len()].kv_client();
                let mut attempts = 0;
                loop {
                    attempts += 1;
                    let held = etcd.get(key.as_str(), None).await?;
                    let revision = held.kvs().first().map_or(0, |kv| kv.mod_revision());
                    let unchanged = Compare::mod_revision(key.as_str(), CompareOp::Equal, revision);
                    let put = TxnOp::put(key.as_str(), value.clone(), None);
                    if etcd.txn(Txn::new().when([unchanged]).and_then([put])).await?.succeeded() {
                        return Ok(attempts);
                    }
                }
            }
            Self::Ceiling(_) => Err("a transaction has no ceiling".into()),
        }
    }
}
