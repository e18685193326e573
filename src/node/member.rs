//! A node that belongs to a cluster: its groups, its replicas, its way to the oracle.

use std::sync::Arc;

use bytes::Bytes;
use futures::future::BoxFuture;
use prost::Message;
use tokio::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

use super::calls::{self, SystemOperation};
use super::dispatch::{Dispatcher, Replicas};
use super::oracle_client::OracleClient;
use super::oracle_server::OracleServer;
use super::pulse::{self, Pulse};
use super::reads::{self, ReadIndexes, WordBook};
use super::replica::{Replica, Resolve, Shared};
use super::sequencer::Admission;
use super::timestamps::Timestamps;
use super::txn::{self, Router};
use super::{NodeConfig, cluster_map, gc, handover, index, registrar, saga};
use crate::engine::SharedEngine;
use crate::mvcc::Floors;
use crate::raft::{Group, Host, HostConfig};
use crate::rpc::v1;
use crate::shard;
use crate::types::{
    ClusterId, Error, LeaderHint, NodeId, NodeRecord, Operation, Outcome, RequestId, Result, ShardId,
};

/// How long another node waits for timestamps, and so how long they are sought for it.
const CUT_TIMEOUT: Duration = Duration::from_secs(1);
/// How long an operation on the system keyspace may take.
const SYSTEM_OPERATION_TIMEOUT: Duration = Duration::from_secs(5);

/// Everything a member runs.
pub struct Member {
    cluster: ClusterId,
    record: NodeRecord,
    host: Arc<Host>,
    oracle: Arc<OracleClient>,
    timestamps: Timestamps,
    admission: Admission,
    replicas: Arc<Replicas>,
    floors: Arc<Floors>,
    read_indexes: Arc<ReadIndexes>,
    words: Arc<WordBook>,
    pulse: Arc<Pulse>,
    dispatcher: Arc<Dispatcher>,
    stopping: CancellationToken,
}

impl Member {
    /// Starts every replica that is on disk.
    ///
    /// # Errors
    ///
    /// `Corrupt` where what is stored can't be read.
    pub async fn start(
        engine: SharedEngine,
        cluster: ClusterId,
        record: NodeRecord,
        peers: Vec<NodeRecord>,
        config: &NodeConfig,
    ) -> Result<Arc<Self>> {
        let node = record.id;
        let floors = Floors::new(shard::may_drop);
        engine.set_drop_rules(floors.clone());
        let host = Host::start(HostConfig {
            engine: engine.clone(),
            cluster,
            node: record.clone(),
            peers,
            timing: config.timing.clone(),
        })
        .await?;
        let oracle = Arc::new(OracleClient::new(&host, node));
        let timestamps = Timestamps::start(oracle.clone());
        let replicas = Arc::new(Replicas::default());
        let read_indexes = Arc::new(ReadIndexes::new(&host));
        let words = Arc::new(WordBook::default());
        let pulse = Arc::new(Pulse::new(node));
        let stopping = CancellationToken::new();
        let member = Arc::new_cyclic(|member| {
            let router = Router::new(member.clone(), stopping.clone());
            let dispatcher = Dispatcher::new(
                cluster,
                node,
                replicas.clone(),
                timestamps.clone(),
                router,
                words.clone(),
                pulse.clone(),
                config.skips_saga_waits,
            );
            Self {
                cluster,
                record,
                host,
                oracle,
                timestamps,
                admission: Admission::new(config.admission_bytes),
                replicas,
                floors: floors.clone(),
                read_indexes,
                words,
                pulse: pulse.clone(),
                dispatcher: Arc::new(dispatcher),
                stopping: stopping.clone(),
            }
        });
        member.answer_calls();
        for group in member.host.open_groups().await? {
            member.add_replica(group);
        }
        member.stand_where_sensible().await;
        tokio::spawn(registrar::run(Arc::downgrade(&member), stopping.clone()));
        tokio::spawn(gc::run(Arc::downgrade(&member), engine, floors, config.changelog, stopping.clone()));
        tokio::spawn(pulse::run(pulse, stopping.clone()));
        tokio::spawn(reads::run_words(Arc::downgrade(&member), stopping.clone()));
        tokio::spawn(txn::run_recovery(
            Arc::downgrade(&member),
            Router::new(Arc::downgrade(&member), stopping),
        ));
        Ok(member)
    }

    /// A replica that nobody else votes on stands at once, and so does the first replica of a new shard:
    /// nobody can hold a lease there.
    async fn stand_where_sensible(&self) {
        for group in self.host.groups() {
            let status = group.status();
            let alone = status.voters.len() == 1;
            let first = group.state().descriptor.replicas.first() == Some(&self.record.id);
            if alone || (first && status.term == 0) {
                // Without this it stands a little later, at its election timeout.
                if let Err(error) = group.elect().await {
                    tracing::debug!(shard = %group.id(), %error, "not standing for election yet");
                }
            }
        }
    }

    fn add_replica(&self, group: Arc<Group>) {
        if group.id() == ShardId::SYSTEM {
            self.oracle.set_local(OracleServer::start(group.clone()));
        }
        let shared = Shared {
            timestamps: self.timestamps.clone(),
            admission: self.admission.clone(),
            floors: self.floors.clone(),
            read_indexes: self.read_indexes.clone(),
            book: self.words.clone(),
            resolve: self.resolver(),
        };
        let replica = Replica::start(group, shared);
        self.replicas.add(Arc::new(replica));
    }

    fn resolver(&self) -> Resolve {
        let peers = self.host.peers().clone();
        let own = self.record.clone();
        Arc::new(move |node: NodeId| {
            let grpc_addr = if node == own.id { own.grpc_addr.clone() } else { peers.get(node)?.grpc_addr };
            Some(LeaderHint { node, grpc_addr })
        })
    }

    fn answer_calls(self: &Arc<Self>) {
        let member = Arc::downgrade(self);
        self.host.on_call(Arc::new(move |_from, kind, body| -> BoxFuture<'static, Result<Bytes>> {
            let member = member.clone();
            Box::pin(async move {
                let member = member.upgrade().ok_or_else(|| Error::unavailable("the node is stopping"))?;
                member.answer(kind, &body).await
            })
        }));
    }

    async fn answer(self: &Arc<Self>, kind: u32, body: &[u8]) -> Result<Bytes> {
        match kind {
            calls::CUT_TIMESTAMPS => {
                let oracle = self
                    .oracle
                    .local()
                    .ok_or_else(|| Error::unavailable("this node has no replica of the system shard"))?;
                // The other side has given up by then: without a majority a cut would wait for ever.
                let cut = tokio::time::timeout(CUT_TIMEOUT, oracle.cut(calls::decode_count(body)?)).await;
                cut.map_err(|_| Error::unavailable("the timestamp ceiling could not be raised in time"))?
                    .map(calls::encode_timestamp)
            }
            calls::GET_MAP => Ok(Bytes::from(cluster_map::read(self).await?.encode_to_vec())),
            calls::SYSTEM_OPERATION => {
                let SystemOperation { id, operation } =
                    crate::codec::decode(body, "an operation on the system keyspace")?;
                let outcome = self.execute_here(id, operation).await?;
                Ok(calls::encode_outcome(&outcome))
            }
            txn::CALL => txn::answer(&self.replicas, body).await,
            reads::READ_INDEX_CALL => reads::answer_read_indexes(&self.replicas, body).await,
            reads::WORDS_CALL => reads::answer_words(self, body).await,
            unknown => Err(Error::invalid(format!(
                "this node (version {}) does not know call {unknown}: is the other one newer? Finish the upgrade",
                self.record.version
            ))),
        }
    }

    async fn execute_here(&self, id: RequestId, operation: Operation) -> Result<Outcome> {
        let keys = operation.keys();
        let replica = keys
            .first()
            .and_then(|key| self.replicas.holding(key))
            .filter(|replica| replica.group().id() == ShardId::SYSTEM)
            .ok_or_else(|| Error::unavailable("this node has no replica of the system shard"))?;
        replica.execute(id, operation, Instant::now() + SYSTEM_OPERATION_TIMEOUT).await
    }

    /// Executes an operation on the system keyspace, here or at the leader of the system shard.
    pub async fn execute_system(&self, id: RequestId, operation: Operation) -> Result<Outcome> {
        let leader = self.host.group(ShardId::SYSTEM).map(|group| group.leadership());
        let candidates: Vec<NodeId> = match leader {
            Some(leadership) if leadership.token().is_some() => {
                return self.execute_here(id, operation).await;
            }
            Some(leadership) => leadership.leader_elsewhere().into_iter().collect(),
            None => self.host.peers().all().into_iter().map(|peer| peer.id).collect(),
        };
        let body = Bytes::from(crate::codec::encode(&SystemOperation { id, operation }));
        let mut last_error = Error::unavailable("no leader of the system shard is known: retry");
        for node in candidates {
            match self.host.call(node, calls::SYSTEM_OPERATION, body.clone(), SYSTEM_OPERATION_TIMEOUT).await
            {
                Ok(body) => return calls::decode_outcome(&body),
                Err(error) => last_error = error,
            }
        }
        Err(last_error)
    }

    /// The cluster.
    pub fn cluster(&self) -> ClusterId {
        self.cluster
    }

    /// This node, as the registry records it.
    pub fn record(&self) -> &NodeRecord {
        &self.record
    }

    /// The Raft host.
    pub fn host(&self) -> &Arc<Host> {
        &self.host
    }

    /// The node's way to timestamps.
    pub fn timestamps(&self) -> &Timestamps {
        &self.timestamps
    }

    /// This node's replicas.
    pub fn replicas(&self) -> &Arc<Replicas> {
        &self.replicas
    }

    /// How this node and the others are.
    pub fn pulse(&self) -> &Pulse {
        &self.pulse
    }

    /// The rows of indexes on this node.
    pub fn index_store(&self) -> &index::Store {
        self.dispatcher.indexes()
    }

    /// What keeps indexes up on this node.
    pub fn projectors(&self) -> &Arc<index::Projectors> {
        self.dispatcher.projectors()
    }

    /// What looks after sagas on this node.
    pub fn sagas(&self) -> &Arc<saga::Engines> {
        self.dispatcher.sagas()
    }

    /// What is known of closed timestamps.
    pub fn words(&self) -> &WordBook {
        &self.words
    }

    /// Serves requests.
    pub fn dispatcher(&self) -> &Arc<Dispatcher> {
        &self.dispatcher
    }

    /// Where everything is, as far as this node knows.
    pub async fn map(&self) -> Result<v1::GetMapReply> {
        cluster_map::read(self).await
    }

    /// Hands over what this node leads, stops the groups, and writes everything to disk.
    pub async fn shutdown(&self) -> Result<()> {
        handover::hand_over_all(&self.host, self.record.id).await;
        self.stopping.cancel();
        self.host.shutdown().await
    }
}
