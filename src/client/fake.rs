//! A cluster for the client's tests: nodes that speak the real protocol on real sockets, over one map of
//! versions in memory, with faults on order.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use futures::Stream;
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status, Streaming};

use crate::codec::keyspace::{strip_user, user_key};
use crate::rpc::convert::{self, Call, Scan, WriteKind};
use crate::rpc::v1::cluster_server::{Cluster, ClusterServer};
use crate::rpc::v1::kv_server::{Kv, KvServer};
use crate::rpc::v1::session_reply::Reply;
use crate::rpc::v1::{self, session_request};
use crate::types::{
    BatchResult, Direction, Error, ErrorKind, Expect, KeyRange, LeaderHint, Moved, NodeId, Operation,
    Outcome, ReadAt, ReadLevel, Record, ReplicaRole, RequestId, Result, ShardDescriptor, Step, Timestamp,
    limits,
};

mod commit;
mod services;

/// The timestamp to read at; `now` makes one for a read that names none.
fn at_or(at: ReadAt, now: impl FnOnce() -> Timestamp) -> Timestamp {
    match at {
        ReadAt::Snapshot(at) => at,
        ReadAt::Latest | ReadAt::Bounded { .. } => now(),
    }
}

fn served(node: NodeId, at_ts: Timestamp) -> v1::Served {
    convert::served_to_proto(crate::types::Served {
        node,
        role: ReplicaRole::Leader,
        level: ReadLevel::Linearizable,
        at_ts,
        staleness_ms: 0,
        asked_leader: false,
        load: 1,
    })
}

pub(super) const CLUSTER: &str = "0123456789abcdef0123456789abcdef";

/// What a node does with the next request instead of serving it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// Does it, then breaks the stream without an answer.
    ApplyThenCut,
    /// Breaks the stream without doing it.
    Cut,
    /// Neither does it nor answers.
    Swallow,
    /// Does it, but answers that it can't tell.
    ApplyThenUndetermined,
    /// Answers with an error of this kind.
    Answer(ErrorKind),
    /// Answers a commit that a lock is in the way, without keeping that.
    Locked,
}

/// Where a shard is.
#[derive(Clone, Debug)]
pub(super) struct FakeShard {
    pub(super) descriptor: ShardDescriptor,
    pub(super) leader: NodeId,
}

/// What all nodes share.
pub(super) struct World {
    pub(super) addrs: BTreeMap<NodeId, String>,
    pub(super) shards: Vec<FakeShard>,
    /// What `GetMap` says instead of the truth.
    pub(super) stale_map: Option<Vec<FakeShard>>,
    /// Whether `Moved` names the leader.
    pub(super) hints: bool,
    rows: BTreeMap<Bytes, Vec<(Timestamp, Option<Record>)>>,
    clock: u64,
    outcomes: HashMap<RequestId, Outcome>,
    /// The commits that came, also repeated ones.
    pub(super) commits: Vec<commit::Came>,
    /// Faults of each node, taken in order.
    pub(super) faults: HashMap<NodeId, VecDeque<Fault>>,
    /// A fault for every request that has none of its own.
    pub(super) always: HashMap<NodeId, Fault>,
    /// The ids of all writes that came, also repeated ones.
    pub(super) ids: Vec<RequestId>,
    /// How many requests each node got.
    pub(super) requests: HashMap<NodeId, usize>,
    /// How many writes took effect.
    pub(super) effects: usize,
    pub(super) pages: usize,
    pub(super) timestamps: usize,
    pub(super) sessions: usize,
    pub(super) messages: usize,
    pub(super) maps: usize,
    /// Rows of a page.
    pub(super) page_rows: usize,
}

/// What comes of a request.
enum Served {
    Reply(Reply),
    Nothing,
    Cut,
}

impl World {
    fn next_ts(&mut self) -> Timestamp {
        self.clock += 1;
        Timestamp(self.clock)
    }

    fn led(&self, node: NodeId, key: &Bytes) -> Result<&FakeShard> {
        let shard = self.shards.iter().find(|shard| shard.descriptor.range.contains(key));
        let shard = shard.ok_or_else(|| Error::unavailable("no such shard"))?;
        if shard.leader == node {
            return Ok(shard);
        }
        let leader = self.hints.then(|| LeaderHint {
            node: shard.leader,
            grpc_addr: self.addrs.get(&shard.leader).cloned().unwrap_or_default(),
        });
        let hint = self.hints.then(|| shard.descriptor.clone());
        Err(Error::moved("not the leader", Moved { shard: hint, leader }))
    }

    /// As [`led`](Self::led), for reads: every replica serves them.
    fn held(&self, node: NodeId, key: &Bytes) -> Result<&FakeShard> {
        match self.shards.iter().find(|shard| shard.descriptor.range.contains(key)) {
            Some(shard) if shard.descriptor.replicas.contains(&node) => Ok(shard),
            _ => self.led(node, key),
        }
    }

    fn serve(&mut self, node: NodeId, request: session_request::Request) -> Served {
        *self.requests.entry(node).or_default() += 1;
        let fault = self
            .faults
            .get_mut(&node)
            .and_then(VecDeque::pop_front)
            .or_else(|| self.always.get(&node).copied());
        match fault {
            Some(Fault::Cut) => return Served::Cut,
            Some(Fault::Swallow) => return Served::Nothing,
            Some(Fault::Answer(kind)) => {
                if let Ok(header) = convert::header_of(&request) {
                    self.ids.extend(header.id);
                }
                return Served::Reply(Reply::Error(convert::error_to_proto(&Error::new(kind, "as ordered"))));
            }
            Some(Fault::Locked) => {
                return Served::Reply(Reply::Error(convert::error_to_proto(&commit::locked())));
            }
            _ => {}
        }
        let reply = self.answer(node, request);
        match fault {
            Some(Fault::ApplyThenCut) => Served::Cut,
            Some(Fault::ApplyThenUndetermined) => {
                Served::Reply(Reply::Error(convert::error_to_proto(&Error::undetermined("as ordered"))))
            }
            _ => Served::Reply(reply.unwrap_or_else(|error| Reply::Error(convert::error_to_proto(&error)))),
        }
    }

    fn answer(&mut self, node: NodeId, request: session_request::Request) -> Result<Reply> {
        let header = convert::header_of(&request)?;
        header.check_cluster(CLUSTER.parse()?)?;
        Ok(match convert::call_from_proto(request)? {
            Call::Write { kind, operation } => {
                for key in operation.keys() {
                    self.led(node, key)?;
                }
                return self.write(kind, header.id, &operation);
            }
            Call::Get { key, at } => {
                self.held(node, &key)?;
                let at = at_or(at, || Timestamp::MAX);
                Reply::Get(convert::get_reply(self.read(&key, at), served(node, at)))
            }
            Call::GetMany { keys, at } => {
                for key in &keys {
                    self.held(node, key)?;
                }
                let at = at_or(at, || self.next_ts());
                let mut bytes = 0;
                let fits = |record: &Option<Record>| {
                    let first = bytes == 0;
                    bytes += record.as_ref().map_or(0, |record| record.value.len());
                    first || bytes <= limits::MAX_BATCH_RESULT_BYTES
                };
                let records = keys.iter().map(|key| self.read(key, at)).take_while(fits).collect();
                Reply::GetMany(convert::get_many_reply(records, at, vec![served(node, at)]))
            }
            Call::ScanPage(scan) => self.page(node, scan)?,
            Call::Commit { id_unique, start_ts, part, .. } => {
                self.led(node, part.writes[0].key())?;
                self.commit(RequestId { seen: start_ts, unique: id_unique }, &part)?
            }
            Call::Timestamp => {
                self.timestamps += 1;
                Reply::Timestamp(v1::TimestampReply { ts: self.next_ts().0 })
            }
            Call::ChangesPage(_) | Call::Consumer(_) => {
                return Err(Error::invalid("this cluster keeps no changelog"));
            }
            Call::IndexCatalogue(_) | Call::IndexVersion { .. } => {
                return Err(Error::invalid("this cluster keeps no indexes"));
            }
            Call::SagaCatalogue(_) | Call::Saga { .. } => {
                return Err(Error::invalid("this cluster keeps no sagas"));
            }
            Call::Empty => Reply::Empty(v1::EmptyReply {}),
        })
    }

    fn read(&self, key: &Bytes, at: Timestamp) -> Option<Record> {
        let versions = self.rows.get(key)?;
        versions.iter().rev().find(|(ts, _)| *ts <= at).and_then(|(_, record)| record.clone())
    }

    fn write(&mut self, kind: WriteKind, id: Option<RequestId>, operation: &Operation) -> Result<Reply> {
        let id = id.ok_or_else(|| Error::invalid("a client's write has an id"))?;
        self.ids.push(id);
        if let Some(outcome) = self.outcomes.get(&id) {
            return convert::write_reply(kind, outcome.clone());
        }
        let ts = self.next_ts();
        assert!(id.seen < ts, "an id holds a timestamp that was handed out before");
        let outcome = self.apply(ts, operation);
        self.effects += 1;
        self.outcomes.insert(id, outcome.clone());
        convert::write_reply(kind, outcome)
    }

    fn set(&mut self, ts: Timestamp, key: &Bytes, value: Option<Bytes>) -> (u64, Timestamp) {
        let old = self.read(key, Timestamp::MAX);
        let (version, create_ts) = old.map_or((1, ts), |old| (old.version + 1, old.create_ts));
        let record = value.map(|value| Record { value, commit_ts: ts, create_ts, version });
        self.rows.entry(key.clone()).or_default().push((ts, record));
        (version, create_ts)
    }

    fn apply(&mut self, ts: Timestamp, operation: &Operation) -> Outcome {
        match operation {
            Operation::Put { key, value } => {
                let (version, create_ts) = self.set(ts, key, Some(value.clone()));
                Outcome::Put { commit_ts: ts, version, create_ts }
            }
            Operation::Delete { key } => {
                let existed = self.read(key, ts).is_some();
                self.set(ts, key, None);
                Outcome::Deleted { commit_ts: ts, existed }
            }
            Operation::CompareAndSwap { key, expect, value } => {
                let current = self.read(key, ts);
                if !holds(expect, current.as_ref()) {
                    return Outcome::NotMatched { commit_ts: ts, current };
                }
                let (version, create_ts) = self.set(ts, key, value.clone());
                match value {
                    Some(_) => Outcome::Put { commit_ts: ts, version, create_ts },
                    None => Outcome::Deleted { commit_ts: ts, existed: current.is_some() },
                }
            }
            Operation::Add { key, delta } => match self.added(ts, key, *delta) {
                Some(value) => Outcome::Added { commit_ts: ts, value },
                None => Outcome::Refused(crate::types::Refusal::NotACounter { key: key.clone() }),
            },
            Operation::Batch { conditions, then, otherwise } => {
                let succeeded = conditions.iter().all(|c| holds(&c.expect, self.read(&c.key, ts).as_ref()));
                let steps = if succeeded { then } else { otherwise };
                let results = steps.iter().map(|step| self.step(ts, step)).collect();
                Outcome::Batch { commit_ts: ts, succeeded, results }
            }
            Operation::Txn(_) | Operation::AdvanceSafePoint { .. } => {
                unreachable!("a client sends no such command: {operation:?}")
            }
        }
    }

    fn added(&mut self, ts: Timestamp, key: &Bytes, delta: i64) -> Option<i64> {
        let old = match self.read(key, ts) {
            Some(record) => std::str::from_utf8(&record.value).ok()?.parse::<i64>().ok()?,
            None => 0,
        };
        self.set(ts, key, Some((old + delta).to_string().into()));
        Some(old + delta)
    }

    fn step(&mut self, ts: Timestamp, step: &Step) -> BatchResult {
        match step {
            Step::Put { key, value } => {
                let (version, create_ts) = self.set(ts, key, Some(value.clone()));
                BatchResult::Put { version, create_ts }
            }
            Step::Delete { key } => {
                let existed = self.read(key, ts).is_some();
                self.set(ts, key, None);
                BatchResult::Deleted { existed }
            }
            Step::Add { key, delta } => {
                BatchResult::Added { value: self.added(ts, key, *delta).unwrap_or(0) }
            }
            Step::Get { key } => BatchResult::Got { record: self.read(key, ts) },
        }
    }

    fn page(&mut self, node: NodeId, scan: Scan) -> Result<Reply> {
        let reverse = scan.direction == Direction::Reverse;
        let end = scan.range.end.clone().unwrap_or_else(|| Bytes::from_static(&[2]));
        let shard = if reverse {
            let shard = self.shards.iter().rev().find(|shard| shard.descriptor.range.start < end);
            let shard = shard.ok_or_else(|| Error::unavailable("no such shard"))?.clone();
            let first = shard.descriptor.range.start.clone();
            self.held(node, &first)?;
            shard
        } else {
            self.held(node, &scan.range.start)?.clone()
        };
        self.pages += 1;
        let at = at_or(scan.at, || self.next_ts());
        let range = scan.range.intersect(&shard.descriptor.range).expect("the shard holds some of it");
        let keys: Vec<Bytes> = self.rows.keys().filter(|key| range.contains(key)).cloned().collect();
        let keys: Box<dyn Iterator<Item = Bytes>> =
            if reverse { Box::new(keys.into_iter().rev()) } else { Box::new(keys.into_iter()) };
        let mut reply = v1::ScanPageReply { at_ts: at.0, ..Default::default() };
        let mut bytes = 0;
        for key in keys {
            let Some(mut record) = self.read(&key, at) else { continue };
            if scan.keys_only {
                record.value = Bytes::new();
            }
            bytes += (key.len() - 1 + record.value.len()) as u64;
            let count = reply.rows.len() as u64;
            reply.limited = scan.limit_rows.is_some_and(|limit| count >= limit)
                || scan.limit_bytes.is_some_and(|limit| bytes > limit && count > 0);
            if reply.limited || reply.rows.len() == self.page_rows {
                // Forward the page goes on at this key; in reverse it ends just past it.
                let mut next = strip_user(&key).expect("a user's").to_vec();
                if reverse {
                    next.push(0);
                }
                reply.next = Some(next.into());
                return Ok(Reply::ScanPage(reply));
            }
            reply.rows.push(convert::row_to_proto(&key, record)?);
        }
        reply.next = if reverse {
            (range.start > scan.range.start).then(|| strip_user(&range.start).expect("a user's"))
        } else {
            range.end.filter(|mine| *mine < end).and_then(|mine| strip_user(&mine))
        };
        Ok(Reply::ScanPage(reply))
    }

    fn map(&mut self) -> v1::GetMapReply {
        self.maps += 1;
        let node = |(id, addr): (&NodeId, &String)| v1::Node {
            id: id.0,
            grpc_addr: addr.clone(),
            ..Default::default()
        };
        let shards = self.stale_map.as_ref().unwrap_or(&self.shards);
        let placement = |shard: &FakeShard| v1::Placement {
            shard: Some(convert::descriptor_to_proto(&shard.descriptor)),
            leader: shard.leader.0,
        };
        v1::GetMapReply {
            cluster_id: CLUSTER.into(),
            nodes: self.addrs.iter().map(node).collect(),
            shards: shards.iter().map(placement).collect(),
            seen_ts: self.clock,
        }
    }
}

fn holds(expect: &Expect, record: Option<&Record>) -> bool {
    match expect {
        Expect::Absent => record.is_none(),
        Expect::Present => record.is_some(),
        Expect::Version(version) => record.is_some_and(|record| record.version == *version),
        Expect::CommitTs(ts) => record.is_some_and(|record| record.commit_ts == *ts),
        Expect::Value(value) => record.is_some_and(|record| record.value == *value),
    }
}

/// A shard of the users' keys from `start` to `end`.
pub(super) fn shard(id: u64, start: Option<&str>, end: Option<&str>, leader: u64) -> FakeShard {
    let bound = |text: &str| user_key(text.as_bytes());
    let start = start.map_or_else(|| Bytes::from_static(&[1]), bound);
    let end = end.map_or_else(|| Bytes::from_static(&[2]), bound);
    let descriptor = ShardDescriptor {
        id: crate::types::ShardId(id),
        range: KeyRange::new(start, Some(end)),
        epoch: crate::types::Epoch(1),
        replicas: vec![NodeId(1), NodeId(2), NodeId(3)],
    };
    FakeShard { descriptor, leader: NodeId(leader) }
}

/// Three nodes; shards cut before "h" and "p", led by nodes 1, 2 and 3.
pub(super) struct FakeCluster {
    pub(super) world: Arc<Mutex<World>>,
    servers: Vec<tokio::task::JoinHandle<()>>,
}

impl Drop for FakeCluster {
    fn drop(&mut self) {
        self.servers.iter().for_each(tokio::task::JoinHandle::abort);
    }
}

impl FakeCluster {
    pub(super) async fn start() -> Self {
        let world = Arc::new(Mutex::new(world()));
        let mut servers = Vec::new();
        for id in 1..=3 {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
            let addr = listener.local_addr().expect("bound").to_string();
            world.lock().addrs.insert(NodeId(id), addr);
            let node = FakeNode { id: NodeId(id), world: Arc::clone(&world) };
            let server = tonic::transport::Server::builder()
                .add_service(KvServer::new(node.clone()).max_decoding_message_size(32 << 20))
                .add_service(ClusterServer::new(node))
                .serve_with_incoming(TcpListenerStream::new(listener));
            servers.push(tokio::spawn(async move { server.await.expect("the fake serves") }));
        }
        Self { world, servers }
    }

    pub(super) fn addr(&self, node: u64) -> String {
        self.world.lock().addrs[&NodeId(node)].clone()
    }

    pub(super) async fn client(&self) -> super::Client {
        super::Client::connect([self.addr(1)]).await.expect("the fake answers")
    }

    pub(super) fn order(&self, node: u64, faults: impl IntoIterator<Item = Fault>) {
        self.world.lock().faults.entry(NodeId(node)).or_default().extend(faults);
    }

    pub(super) fn always(&self, fault: Fault) {
        let mut world = self.world.lock();
        for node in 1..=3 {
            world.always.insert(NodeId(node), fault);
        }
    }
}

/// A world of three shards and no nodes.
pub(super) fn world() -> World {
    let mut system = shard(0, None, None, 1);
    system.descriptor.range = crate::codec::keyspace::system_range();
    World {
        addrs: BTreeMap::new(),
        shards: vec![
            system,
            shard(1, None, Some("h"), 1),
            shard(2, Some("h"), Some("p"), 2),
            shard(3, Some("p"), None, 3),
        ],
        stale_map: None,
        hints: true,
        rows: BTreeMap::new(),
        clock: 100,
        outcomes: HashMap::new(),
        commits: Vec::new(),
        faults: HashMap::new(),
        always: HashMap::new(),
        ids: Vec::new(),
        requests: HashMap::new(),
        effects: 0,
        pages: 0,
        timestamps: 0,
        sessions: 0,
        messages: 0,
        maps: 0,
        page_rows: 3,
    }
}

/// The same world without sockets.
pub(super) struct LocalDialer(pub(super) Arc<Mutex<World>>);

struct LocalLink(Arc<Mutex<World>>, NodeId);

impl super::Link for LocalLink {
    fn call(
        &self,
        request: session_request::Request,
        _deadline: tokio::time::Instant,
    ) -> futures::future::BoxFuture<'static, Result<Reply, super::LinkError>> {
        let (world, node) = (Arc::clone(&self.0), self.1);
        Box::pin(async move {
            match world.lock().serve(node, request) {
                Served::Reply(reply) => Ok(reply),
                Served::Nothing | Served::Cut => Err(super::LinkError::Unknown("cut".into())),
            }
        })
    }
}

impl super::Dialer for LocalDialer {
    fn link(&self, addr: &str) -> Arc<dyn super::Link> {
        let world = self.0.lock();
        let node = world.addrs.iter().find(|(_, known)| *known == addr).map_or(NodeId(0), |(node, _)| *node);
        Arc::new(LocalLink(Arc::clone(&self.0), node))
    }

    fn map(&self, _addr: &str) -> futures::future::BoxFuture<'static, Result<v1::GetMapReply>> {
        let map = self.0.lock().map();
        Box::pin(async move { Ok(map) })
    }

    fn status(&self, _addr: &str) -> futures::future::BoxFuture<'static, Result<v1::GetStatusReply>> {
        Box::pin(async { Ok(v1::GetStatusReply { cluster_id: CLUSTER.into(), ..Default::default() }) })
    }
}

#[derive(Clone)]
struct FakeNode {
    id: NodeId,
    world: Arc<Mutex<World>>,
}

type Replies<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl FakeNode {
    async fn run(
        self,
        mut incoming: Streaming<v1::SessionRequests>,
        replies: mpsc::Sender<Result<v1::SessionReplies, Status>>,
    ) {
        while let Ok(Some(message)) = incoming.message().await {
            self.world.lock().messages += 1;
            let mut served = Vec::new();
            let mut cut = false;
            for v1::SessionRequest { call, request } in message.requests {
                match self.world.lock().serve(self.id, request.expect("a request")) {
                    Served::Reply(reply) => served.push(v1::SessionReply { call, reply: Some(reply) }),
                    Served::Nothing => {}
                    Served::Cut => {
                        cut = true;
                        break;
                    }
                }
            }
            // Replies to one message may be too large for one message.
            while !served.is_empty() {
                let rest = served.split_off(served.len().min(8));
                let together = std::mem::replace(&mut served, rest);
                if replies.send(Ok(v1::SessionReplies { replies: together })).await.is_err() {
                    return;
                }
            }
            if cut {
                // The receiver may be gone, which is a cut too.
                let _gone = replies.send(Err(Status::aborted("cut, as ordered"))).await;
                return;
            }
        }
    }
}

fn only_sessions<T>() -> Result<T, Status> {
    Err(Status::unimplemented("the fake serves sessions only"))
}
