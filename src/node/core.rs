//! What a node is from its start to its end: it waits for a cluster, or is a member of one.

use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use tokio::sync::{OnceCell, OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

use super::forming::{self, Part, Plan};
use super::identity::{self, Identity, Membership};
use super::link::NodeDialer;
use super::member::Member;
use super::{NodeConfig, cluster_map, index, peer_client, saga};
use crate::client::Client;
use crate::codec::keyspace;
use crate::engine::{Batch, Durability, Family, SharedEngine};
use crate::raft;
use crate::rpc::{internal::v1 as internal, v1};
use crate::types::{
    ClusterId, Error, ErrorKind, Expect, KeyRange, NodeId, NodeRecord, Operation, Outcome, RequestId, Result,
    ShardId, StoreId,
};

/// How long `init` waits for the new shards to elect their leaders.
const ELECTION_PATIENCE: Duration = Duration::from_secs(30);
/// Kibibytes of messages of all sessions whose requests are under way.
const SESSIONS_KIB: usize = 256 * 1024;
/// The pause between two rounds over the nodes to join.
const JOIN_PAUSE: Duration = Duration::from_millis(500);

/// How long `close` waits for the last task to let go of the store, and how often it looks.
const CLOSE_PATIENCE: Duration = Duration::from_secs(30);
const CLOSE_POLL: Duration = Duration::from_millis(2);

/// The parts that every service of a node shares.
pub struct Core {
    config: NodeConfig,
    engine: SharedEngine,
    /// Gone once the store is closed.
    store_open: Weak<()>,
    identity: Mutex<Identity>,
    /// This node's own record; its id is 0 until the cluster gives one.
    own: NodeRecord,
    member: watch::Sender<Option<Arc<Member>>>,
    client: OnceCell<Client>,
    forming: tokio::sync::Mutex<()>,
    /// Kibibytes of session messages whose requests may be under way on this node.
    session_kib: Arc<Semaphore>,
    started: Instant,
    stopping: CancellationToken,
}

impl Core {
    /// A core on an open store. Nothing runs yet.
    pub fn new(
        config: NodeConfig,
        engine: SharedEngine,
        store_open: Weak<()>,
        identity: Identity,
        own: NodeRecord,
    ) -> Arc<Self> {
        Arc::new(Self {
            config,
            engine,
            store_open,
            identity: Mutex::new(identity),
            own,
            member: watch::Sender::new(None),
            client: OnceCell::new(),
            forming: tokio::sync::Mutex::new(()),
            session_kib: Arc::new(Semaphore::new(SESSIONS_KIB)),
            started: Instant::now(),
            stopping: CancellationToken::new(),
        })
    }

    /// Starts what the node is: a member goes on, a node that is to join waits and asks, any other becomes
    /// a cluster of its own.
    ///
    /// # Errors
    ///
    /// `Corrupt` where what is stored can't be read.
    pub async fn start(self: &Arc<Self>) -> Result<()> {
        tokio::spawn(index::run(Arc::downgrade(self), self.stopping.clone()));
        tokio::spawn(saga::run(Arc::downgrade(self), self.stopping.clone()));
        let membership = self.identity.lock().membership;
        match membership {
            Some(membership) => self.run(membership, Vec::new()).await,
            None if self.config.join.is_empty() => {
                let plan = Plan::single(self.own.clone());
                let own = plan.nodes.first().ok_or_else(|| Error::corrupt("the plan names no node"))?;
                let part = forming::check_part(self.own.store, plan.part_of(own))?;
                self.adopt(part).await
            }
            None => {
                tracing::info!(
                    "waiting for a cluster: run `kvorum cluster init` once on any node, or wait until one of {:?} is a \
                     member",
                    self.config.join
                );
                tokio::spawn(self.clone().join_when_possible());
                Ok(())
            }
        }
    }

    /// The member, once this node belongs to a cluster.
    ///
    /// # Errors
    ///
    /// `Unavailable` while it waits for one, or stops.
    pub fn member(&self) -> Result<Arc<Member>> {
        if self.stopping.is_cancelled() {
            return Err(Error::unavailable("the node is stopping: ask another node"));
        }
        self.member.borrow().clone().ok_or_else(|| {
            Error::unavailable(format!(
                "the node at {} belongs to no cluster yet: run `kvorum cluster init` once on any node",
                self.own.grpc_addr
            ))
        })
    }

    /// A client whose requests start at this node: what passes on requests for shards that others lead.
    pub async fn client(self: &Arc<Self>) -> Result<Client> {
        let own = self.member()?.record().clone();
        let client = self.client.get_or_try_init(|| async {
            let dialer = Arc::new(NodeDialer::new(Arc::downgrade(self), self.own.grpc_addr.clone()));
            let builder = Client::builder().dialer(dialer).endpoints([self.own.grpc_addr.clone()]);
            builder.prefer_node(own.id).zone(own.zone).connect().await
        });
        client.await.cloned()
    }

    /// This node's record; its id is 0 while it waits for a cluster.
    pub fn record(&self) -> NodeRecord {
        match &*self.member.borrow() {
            Some(member) => member.record().clone(),
            None => self.own.clone(),
        }
    }

    /// The node's store.
    pub fn engine(&self) -> &SharedEngine {
        &self.engine
    }

    /// Waits for room for a session's message of `kib` kibibytes; `None` once the node is gone.
    pub async fn session_room(&self, kib: usize) -> Option<OwnedSemaphorePermit> {
        self.session_kib.clone().acquire_many_owned(kib.min(SESSIONS_KIB) as u32).await.ok()
    }

    /// When the process started this node.
    pub fn started(&self) -> Instant {
        self.started
    }

    /// Cancelled when the node begins to stop.
    pub fn stopping(&self) -> &CancellationToken {
        &self.stopping
    }

    /// Who this node is, for other nodes that ask.
    pub fn probe(&self) -> internal::ProbeReply {
        let record = self.record();
        let membership = self.identity.lock().membership;
        internal::ProbeReply {
            cluster_id: membership.map(|membership| membership.cluster_id.to_string()).unwrap_or_default(),
            node_id: membership.map_or(0, |membership| membership.node_id.0),
            store_id: record.store.to_string(),
            version: record.version,
            grpc_addr: record.grpc_addr,
            http_addr: record.http_addr,
            zone: record.zone,
        }
    }

    /// Forms a cluster of the nodes that the request names, and waits until all shards have leaders.
    ///
    /// # Errors
    ///
    /// `Denied` where this or another node belongs to a cluster already, `Invalid` for a bad request,
    /// `Unavailable` where a node can't be reached or no leader is elected in time: repeat it then.
    pub async fn init(self: &Arc<Self>, request: v1::InitRequest) -> Result<Plan> {
        let plan = {
            let _one_at_a_time = self.forming.lock().await;
            if let Some(membership) = self.identity.lock().membership {
                return Err(Error::denied(format!(
                    "this node belongs to cluster {} already, as node {}: a cluster is formed once; nodes join it with \
                     `kvorum serve --join`",
                    membership.cluster_id, membership.node_id
                )));
            }
            let plan = forming::plan(&self.config.data_dir, &self.own, &request).await?;
            forming::have_others_adopt(&plan, self.own.store).await?;
            plan
        };
        let own = plan.nodes.iter().find(|node| node.store == self.own.store);
        let own = own.ok_or_else(|| Error::corrupt("the stored plan does not name this node"))?;
        self.adopt(forming::check_part(self.own.store, plan.part_of(own))?).await?;
        self.wait_for_leaders().await?;
        Ok(plan)
    }

    async fn wait_for_leaders(&self) -> Result<()> {
        let member = self.member()?;
        let deadline = Instant::now() + ELECTION_PATIENCE;
        for group in member.host().groups() {
            let mut leadership = group.watch_leadership();
            let led = leadership.wait_for(|now| now.token().is_some() || now.leader_elsewhere().is_some());
            if !matches!(tokio::time::timeout_at(deadline, led).await, Ok(Ok(_))) {
                return Err(Error::unavailable(format!(
                    "the cluster is formed, but shard {} has no leader after {} s: see `kvorum status`",
                    group.id(),
                    ELECTION_PATIENCE.as_secs()
                )));
            }
        }
        Ok(())
    }

    /// Becomes a member with the given part. Can be repeated.
    ///
    /// # Errors
    ///
    /// `Denied` where this node belongs to another cluster or bears another id.
    pub async fn adopt(self: &Arc<Self>, part: Part) -> Result<()> {
        // Not waited for: two nodes that form clusters of each other must not wait for each other.
        let _one_at_a_time = self.forming.try_lock().map_err(|_| {
            Error::unavailable(format!(
                "the node at {} is forming or joining a cluster itself: repeat this when it has ended",
                self.own.grpc_addr
            ))
        })?;
        let wanted = Membership { cluster_id: part.cluster, node_id: part.node };
        let present = self.identity.lock().membership;
        match present {
            Some(membership) if membership != wanted => {
                return Err(Error::denied(format!(
                    "this node belongs to cluster {} as node {}, so it can't become node {} of cluster {}",
                    membership.cluster_id, membership.node_id, wanted.node_id, wanted.cluster_id
                )));
            }
            Some(_) if self.member.borrow().is_some() => return Ok(()),
            // Adopted before, but what runs a member did not start: try again.
            Some(_) => {}
            None => {
                self.seed(&part)?;
                let identity = Identity { store_id: self.own.store, membership: Some(wanted) };
                identity::write(&self.config.data_dir, &identity)?;
                *self.identity.lock() = identity;
            }
        }
        self.run(wanted, part.peers).await
    }

    /// Puts the replicas on disk. What an adoption that was broken off left there never ran, and is removed.
    fn seed(&self, part: &Part) -> Result<()> {
        let mut clean = Batch::new();
        for family in Family::ALL {
            clean.delete_range(family, KeyRange::all());
        }
        self.engine.write(clean, Durability::Synced)?;
        for shard in &part.shards {
            raft::create_group(&*self.engine, shard)?;
        }
        // Before the identity: a member that knows nobody could not find its way back.
        let others: Vec<NodeRecord> =
            part.peers.iter().filter(|peer| peer.id != part.node).cloned().collect();
        raft::PeerBook::open(self.engine.clone(), part.node, &others)?;
        self.engine.write(Batch::new(), Durability::Synced)
    }

    async fn run(self: &Arc<Self>, membership: Membership, peers: Vec<NodeRecord>) -> Result<()> {
        let record = NodeRecord { id: membership.node_id, ..self.own.clone() };
        let peers = peers.into_iter().filter(|peer| peer.id != record.id).collect();
        let member =
            Member::start(self.engine.clone(), membership.cluster_id, record, peers, &self.config).await?;
        tracing::info!(cluster = %membership.cluster_id, node = %membership.node_id, "serving as a member");
        self.member.send_replace(Some(member));
        Ok(())
    }

    /// Asks the nodes to join, round after round, until one of them is a member and takes this node in, or
    /// until an `init` has made this node a member.
    async fn join_when_possible(self: Arc<Self>) {
        loop {
            for addr in &self.config.join {
                if self.stopping.is_cancelled() || self.member.borrow().is_some() {
                    return;
                }
                match self.join_through(addr).await {
                    Ok(true) => return,
                    Ok(false) => {}
                    Err(error) if error.kind == ErrorKind::Denied => {
                        tracing::error!(through = addr, %error, "the cluster refuses this node");
                    }
                    Err(error) => tracing::debug!(through = addr, %error, "could not join yet"),
                }
            }
            tokio::select! {
                () = self.stopping.cancelled() => return,
                () = tokio::time::sleep(JOIN_PAUSE) => {}
            }
        }
    }

    async fn join_through(self: &Arc<Self>, addr: &str) -> Result<bool> {
        let probed = peer_client::probe(addr).await?;
        let Some(cluster) = forming::parse_optional::<ClusterId>(&probed.cluster_id)? else {
            return Ok(false);
        };
        if probed.store_id == self.own.store.to_string() {
            return Ok(false);
        }
        let reply = peer_client::join(addr, forming::peer_to_proto(&self.own)).await?;
        let peers = reply.peers.into_iter().map(forming::peer_from_proto).collect::<Result<Vec<_>>>()?;
        let part = Part { cluster, node: NodeId(reply.node_id), peers, shards: Vec::new() };
        self.adopt(part).await?;
        Ok(true)
    }

    /// Takes a new node into the cluster: gives it an id, or the one it was given before.
    ///
    /// # Errors
    ///
    /// `Denied` where its address belongs to a node with another data directory.
    pub async fn take_in(&self, joining: NodeRecord) -> Result<internal::JoinReply> {
        let member = self.member()?;
        let mut peers = member.host().peers().all();
        peers.push(member.record().clone());
        if let Some(wiped) =
            peers.iter().find(|peer| peer.grpc_addr == joining.grpc_addr && peer.store != joining.store)
        {
            return Err(Error::denied(format!(
                "address {} belongs to node {}, whose data directory was another one ({}, now {}): a wiped node \
                 can't go on under its old id, and two nodes can't have one address; start it on another address",
                joining.grpc_addr, wiped.id, wiped.store, joining.store
            )));
        }
        let known = peers.iter().find(|peer| peer.store == joining.store).map(|peer| peer.id);
        let given = match self.registered(&member, joining.store)?.or(known) {
            Some(id) => self.known_id(&member, id)?,
            None => self.new_node_id(&member, &peers, joining.store).await?,
        };
        let record = NodeRecord { id: given, ..joining };
        let put =
            Operation::Put { key: keyspace::node_record(given), value: crate::codec::encode(&record).into() };
        self.system(&member, put).await?;
        // After the registry: a node that is known but not registered would never be let in.
        member.host().peers().learn(&record)?;
        Ok(internal::JoinReply {
            cluster_id: member.cluster().to_string(),
            node_id: given.0,
            peers: peers.iter().map(forming::peer_to_proto).collect(),
        })
    }

    /// The id under which the registry, as this node has it, knows a store. Only a member with a replica of
    /// the system shard has the registry, and only such a one takes nodes in.
    fn registered(&self, member: &Member, store: StoreId) -> Result<Option<NodeId>> {
        let system = member.host().group(ShardId::SYSTEM).ok_or_else(|| {
            Error::unavailable(
                "this node has no replica of the system shard, which knows all nodes: join through another one",
            )
        })?;
        let records = cluster_map::registry(&system)?;
        Ok(records.into_iter().find(|record| record.store == store).map(|record| record.id))
    }

    /// The id of a node that the cluster knows. One that an `init` has planned but that has not adopted its
    /// part yet must wait for that: it would come without its replicas.
    fn known_id(&self, member: &Member, id: NodeId) -> Result<NodeId> {
        let registered = match member.host().group(ShardId::SYSTEM) {
            Some(system) => cluster_map::registry(&system)?.iter().any(|record| record.id == id),
            None => false,
        };
        if registered {
            return Ok(id);
        }
        Err(Error::unavailable(format!(
            "node {id} is part of a cluster that is being formed: repeat `kvorum cluster init` where it was begun"
        )))
    }

    /// A new id, bound to the store: one that asks several members at once gets the same id from each.
    async fn new_node_id(
        &self,
        member: &Arc<Member>,
        known: &[NodeRecord],
        store: StoreId,
    ) -> Result<NodeId> {
        let id = self.next_node_id(member, known).await?;
        let bind = Operation::CompareAndSwap {
            key: keyspace::store_record(store),
            expect: Expect::Absent,
            value: Some(crate::codec::encode(&id).into()),
        };
        match self.system(member, bind).await? {
            Outcome::Put { .. } => Ok(id),
            Outcome::NotMatched { current: Some(bound), .. } => {
                crate::codec::decode(&bound.value, "the node id of a store")
            }
            other => Err(Error::corrupt(format!("binding a node id to a store answered {other:?}"))),
        }
    }

    async fn next_node_id(&self, member: &Arc<Member>, known: &[NodeRecord]) -> Result<NodeId> {
        let highest = known.iter().map(|node| node.id.0).max().unwrap_or(0);
        loop {
            // The nodes of the init were given the first ids without counting them here.
            let count = Operation::Add { key: forming::last_node_id_key(), delta: 1 };
            match self.system(member, count).await? {
                Outcome::Added { value, .. } if value as u64 > highest => return Ok(NodeId(value as u64)),
                Outcome::Added { .. } => {}
                other => return Err(Error::corrupt(format!("counting node ids answered {other:?}"))),
            }
        }
    }

    async fn system(&self, member: &Arc<Member>, operation: Operation) -> Result<Outcome> {
        let id = RequestId { seen: member.timestamps().take(1).await?, unique: rand::random() };
        member.execute_system(id, operation).await
    }

    /// Waits until the disk has refused a write, and says why. For ever where the node ends without that.
    pub async fn disk_failed(&self) -> Error {
        let mut member = self.member.subscribe();
        match member.wait_for(Option::is_some).await.map(|member| member.clone()) {
            Ok(Some(member)) => member.host().disk_failed().await,
            _ => std::future::pending().await,
        }
    }

    /// Has everything stop in the background: for who is dropped without being stopped. Without it, the
    /// groups would run on and hold the store for as long as the runtime lives.
    pub fn stop_in_background(self: &Arc<Self>) {
        if self.stopping.is_cancelled() {
            return;
        }
        self.stopping.cancel();
        // Outside a runtime, or in one that ends, the tasks end with it.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let core = self.clone();
            runtime.spawn(async move {
                if let Err(error) = core.shutdown().await {
                    tracing::error!(%error, "a store that was dropped did not stop well");
                }
            });
        }
    }

    /// Stops everything, and waits until the store is closed, so that it can be opened again.
    pub async fn close(self: Arc<Self>) -> Result<()> {
        let stopped = self.shutdown().await;
        let open = self.store_open.clone();
        drop(self);
        let give_up_at = Instant::now() + CLOSE_PATIENCE;
        // The tasks that used it end one after the other, and nothing tells when the last has.
        while open.strong_count() > 0 {
            if Instant::now() >= give_up_at {
                return Err(Error::unavailable(format!(
                    "the store has stopped, but is still in use after {} s",
                    CLOSE_PATIENCE.as_secs()
                )));
            }
            tokio::time::sleep(CLOSE_POLL).await;
        }
        stopped
    }

    /// Stops everything, and writes what is buffered to disk.
    pub async fn shutdown(&self) -> Result<()> {
        self.stopping.cancel();
        let member = self.member.borrow().clone();
        match member {
            Some(member) => member.shutdown().await,
            None => self.engine.flush(),
        }
    }
}
