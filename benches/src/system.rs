//! The systems under measurement, behind one interface.

use std::sync::Arc;

use bytes::Bytes;
use etcd_client::{Compare, CompareOp, Txn, TxnOp};

use crate::Result;

/// Connections to etcd: with fewer, its client would be the limit before etcd is.
const ETCD_CONNECTIONS: usize = 4;

/// A system, as a client sees it. Cheap to clone.
#[derive(Clone)]
pub enum System {
    /// kvorum through its client library: one stream to each node.
    Kvorum(kvorum::Client),
    /// etcd through the etcd-client crate, connected to the leader, which serves cheapest.
    Etcd(Arc<Vec<etcd_client::KvClient>>),
    /// Calls of kvorum's session that do nothing: the most that its transport can carry.
    Ceiling(kvorum::Client),
}

impl System {
    /// Connects to kvorum.
    pub async fn kvorum(endpoints: &[String]) -> Result<Self> {
        Ok(Self::Kvorum(kvorum::Client::connect(endpoints.iter().cloned()).await?))
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
        for _ in 0..ETCD_CONNECTIONS {
            clients.push(etcd_client::Client::connect([leader], None).await?.kv_client());
        }
        Ok(Self::Etcd(Arc::new(clients)))
    }

    /// The ceiling of this system's transport; only kvorum has one to call.
    pub fn ceiling(&self) -> Self {
        match self {
            Self::Kvorum(client) | Self::Ceiling(client) => Self::Ceiling(client.clone()),
            Self::Etcd(_) => self.clone(),
        }
    }

    /// Its name in the results.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Kvorum(_) => "kvorum",
            Self::Etcd(_) => "etcd",
            Self::Ceiling(_) => "ceiling",
        }
    }

    /// Writes a value; acknowledged once a majority has synced it. `client` spreads over connections.
    pub async fn put(&self, client: usize, key: String, value: Bytes) -> Result<()> {
        match self {
            Self::Kvorum(kvorum) => {
                kvorum.put(key, value).await?;
            }
            Self::Etcd(clients) => {
                clients[client % clients.len()].clone().put(key, value, None).await?;
            }
            Self::Ceiling(kvorum) => kvorum.empty(value).await?,
        }
        Ok(())
    }

    /// Reads a value, linearizably. A key that is missing is an error: all were written before.
    pub async fn get(&self, client: usize, key: String) -> Result<()> {
        let found = match self {
            Self::Kvorum(kvorum) => kvorum.get(key).await?.is_some(),
            Self::Etcd(clients) => {
                !clients[client % clients.len()].clone().get(key, None).await?.kvs().is_empty()
            }
            Self::Ceiling(kvorum) => {
                kvorum.empty(key).await?;
                true
            }
        };
        if found { Ok(()) } else { Err("a key that was written is missing".into()) }
    }

    /// Writes a value under two keys, in one transaction. Answers how many attempts it took.
    pub async fn put_two(&self, client: usize, keys: [String; 2], value: Bytes) -> Result<u32> {
        match self {
            Self::Kvorum(kvorum) => {
                let put = |txn: kvorum::client::Txn| {
                    let puts = keys.iter().try_for_each(|key| txn.put(key, value.clone()));
                    std::future::ready(puts)
                };
                Ok(kvorum.transact(put).await?.attempts)
            }
            Self::Etcd(clients) => {
                let puts: Vec<TxnOp> =
                    keys.into_iter().map(|key| TxnOp::put(key, value.clone(), None)).collect();
                clients[client % clients.len()].clone().txn(Txn::new().and_then(puts)).await?;
                Ok(1)
            }
            Self::Ceiling(_) => Err("a transaction has no ceiling".into()),
        }
    }

    /// Reads a key and writes it, again until nobody wrote it in between: etcd by its revision, at once, as its own
    /// helpers do. Answers how many attempts it took.
    pub async fn read_modify_write(&self, client: usize, key: String, value: Bytes) -> Result<u32> {
        match self {
            Self::Kvorum(kvorum) => {
                let (key, value) = (&key, &value);
                let change = |txn: kvorum::client::Txn| async move {
                    txn.get(key).await?;
                    txn.put(key, value.clone())
                };
                Ok(kvorum.transact(change).await?.attempts)
            }
            Self::Etcd(clients) => {
                let mut etcd = clients[client % clients.len()].clone();
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
