//! Requests in, replies out: what a session, a unary call and the embedded client all go through.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::RwLock;
use tokio::time::Instant;

use super::consumers::Consumers;
use super::index;
use super::pulse::Pulse;
use super::reads::{Answered, Reads, WordBook};
use super::replica::{Replica, read_timestamp};
use super::rows::Rows;
use super::saga;
use super::system_records::SystemRecords;
use super::timestamps::Timestamps;
use super::txn::{self, Router};
use crate::rpc::convert::{self, Call, ChangesAsk, SagaPart, Scan, WriteKind};
use crate::rpc::v1;
use crate::rpc::v1::session_reply::Reply;
use crate::rpc::v1::session_request::Request;
use crate::shard::PageRequest;
use crate::txn::TxnCommit;
use crate::types::{
    ClusterId, Direction, Error, KeyRange, Moved, NodeId, Operation, ReadAt, RequestId, Result, ShardId,
    Timestamp, TxnId, TxnPart, limits,
};

/// A request that comes without an id gets one whose timestamp is at most so old (rule R8).
const MAX_SEEN_AGE: Duration = Duration::from_secs(10);

/// Reads under way on a node, at most.
const MAX_READS: u32 = 8192;

/// Waits for changes under way on a node, at most.
const MAX_WAITS: u32 = 8192;

/// A read, or a wait, under way, until it is dropped.
struct Reading<'a>(&'a AtomicU32);

impl Reading<'_> {
    /// How many reads are under way, with this one.
    fn load(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// This node's replicas, by the start of their ranges and by shard.
#[derive(Default)]
pub struct Replicas(RwLock<BTreeMap<Bytes, Arc<Replica>>>, RwLock<HashMap<ShardId, Arc<Replica>>>);

impl Replicas {
    /// Adds a replica.
    pub fn add(&self, replica: Arc<Replica>) {
        let start = replica.group().state().descriptor.range.start.clone();
        self.1.write().insert(replica.group().id(), replica.clone());
        self.0.write().insert(start, replica);
    }

    /// All of them.
    pub fn all(&self) -> Vec<Arc<Replica>> {
        self.0.read().values().cloned().collect()
    }

    /// The replica of a shard.
    pub fn of(&self, shard: ShardId) -> Option<Arc<Replica>> {
        self.1.read().get(&shard).cloned()
    }

    /// The replica whose range holds the key.
    pub fn holding(&self, key: &[u8]) -> Option<Arc<Replica>> {
        let replicas = self.0.read();
        let (_, replica) = replicas
            .range::<[u8], _>((std::ops::Bound::Unbounded, std::ops::Bound::Included(key)))
            .next_back()?;
        replica.group().state().descriptor.range.contains(key).then(|| replica.clone())
    }

    /// The replica that holds the largest keys below `end` (of all keys, for `None`).
    pub fn holding_below(&self, end: Option<&Bytes>) -> Option<Arc<Replica>> {
        use std::ops::Bound::{Excluded, Unbounded};
        let replicas = self.0.read();
        let upper = end.map_or(Unbounded, |end| Excluded(end.as_ref()));
        let (_, replica) = replicas.range::<[u8], _>((Unbounded, upper)).next_back()?;
        let range = replica.group().state().descriptor.range.clone();
        let reaches = match (&range.end, end) {
            (None, _) => true,
            (Some(mine), Some(end)) => end <= mine,
            (Some(_), None) => false,
        };
        reaches.then(|| replica.clone())
    }
}

/// Serves requests on the replicas of this node.
pub struct Dispatcher {
    cluster: ClusterId,
    node: NodeId,
    replicas: Arc<Replicas>,
    timestamps: Timestamps,
    router: Router,
    words: Arc<WordBook>,
    pulse: Arc<Pulse>,
    indexes: index::Store,
    projectors: Arc<index::Projectors>,
    sagas: Arc<saga::Engines>,
    reading: AtomicU32,
    waiting: AtomicU32,
}

impl Dispatcher {
    /// A dispatcher over the replicas of a node. With `skips_waits` sagas' clock is put forward over what they wait for.
    #[expect(clippy::too_many_arguments)]
    pub fn new(
        cluster: ClusterId,
        node: NodeId,
        replicas: Arc<Replicas>,
        timestamps: Timestamps,
        router: Router,
        words: Arc<WordBook>,
        pulse: Arc<Pulse>,
        skips_waits: bool,
    ) -> Self {
        let (reading, waiting) = (AtomicU32::new(0), AtomicU32::new(0));
        let rows = Rows::new(replicas.clone(), timestamps.clone(), router.clone(), words.clone());
        let sagas = Arc::new(saga::Engines::new(rows.clone(), skips_waits));
        let indexes = index::Store::new(rows);
        Self {
            cluster,
            node,
            replicas,
            timestamps,
            router,
            words,
            pulse,
            indexes,
            projectors: Arc::default(),
            sagas,
            reading,
            waiting,
        }
    }

    /// The rows of indexes on this node.
    pub fn indexes(&self) -> &index::Store {
        &self.indexes
    }

    /// What keeps indexes up on this node.
    pub fn projectors(&self) -> &Arc<index::Projectors> {
        &self.projectors
    }

    /// What looks after sagas on this node.
    pub fn sagas(&self) -> &Arc<saga::Engines> {
        &self.sagas
    }

    /// Serves one request. Every failure is a reply too.
    pub async fn call(&self, request: Request) -> Reply {
        match self.serve(request).await {
            Ok(reply) => reply,
            Err(error) => Reply::Error(convert::error_to_proto(&error)),
        }
    }

    async fn serve(&self, request: Request) -> Result<Reply> {
        let came = Instant::now();
        let header = convert::header_of(&request)?;
        header.check_cluster(self.cluster)?;
        let deadline = came + header.deadline;
        match convert::call_from_proto(request)? {
            Call::Write { kind, operation } => self.write(kind, operation, header.id, deadline).await,
            Call::Get { key, at } => self.get(key, at, deadline).await,
            Call::GetMany { keys, at } => self.get_many(keys, at, deadline).await,
            Call::ScanPage(scan) => self.scan_page(scan, deadline).await,
            Call::Commit { id_unique, start_ts, mut part, sagas } => {
                if !sagas.is_empty() {
                    self.add_sagas(sagas, start_ts, &mut part, deadline).await?;
                }
                self.commit(RequestId { seen: start_ts, unique: id_unique }, part, deadline).await
            }
            Call::ChangesPage(ask) => self.changes_page(ask, deadline).await,
            Call::Consumer(what) => self.consumer(what, deadline).await,
            Call::IndexCatalogue(what) => self.index_catalogue(what, deadline).await,
            Call::IndexVersion { version, what } => self.index_version(version, what, deadline).await,
            Call::SagaCatalogue(what) => self.saga_catalogue(what, deadline).await,
            Call::Saga { place, what } => {
                // Some wait long for something to happen, and take nothing meanwhile.
                let _waiting = self.begin_wait()?;
                Ok(Reply::Saga(Box::new(saga::serve(&self.sagas, place, what, deadline).await?)))
            }
            Call::Timestamp => {
                let ts = self.timestamps.take(1).await?;
                Ok(Reply::Timestamp(v1::TimestampReply { ts: ts.0 }))
            }
            Call::Empty => Ok(Reply::Empty(v1::EmptyReply {})),
        }
    }

    async fn write(
        &self,
        kind: WriteKind,
        operation: Operation,
        id: Option<RequestId>,
        deadline: Instant,
    ) -> Result<Reply> {
        let replica = self.replica_for(&operation.keys())?;
        let id = match id {
            Some(id) => id,
            None => {
                let seen = self.timestamps.recent(MAX_SEEN_AGE).await?;
                RequestId { seen, unique: rand::random() }
            }
        };
        let outcome = replica.execute(id, operation, deadline).await?;
        convert::write_reply(kind, outcome)
    }

    /// Commits a transaction whose primary key, the smallest written one, is in a shard that this node leads.
    async fn commit(&self, id: TxnId, part: TxnPart, deadline: Instant) -> Result<Reply> {
        if id.seen == Timestamp::ZERO {
            return Err(Error::invalid(
                "start_ts is 0: begin with a timestamp from the store and read at it, then commit with it",
            ));
        }
        let commit = TxnCommit { id, part }.normalise()?;
        if let Some(primary) = commit.primary() {
            self.holding(primary)?.check_leads()?;
        }
        // Not in the future: apply would refuse it too, but only after it was locked elsewhere.
        read_timestamp(&self.timestamps, id.seen).await?;
        let commit_ts = txn::commit(&self.router, commit, deadline).await?;
        Ok(Reply::Commit(v1::CommitReply { commit_ts: commit_ts.0 }))
    }

    /// Adds to a transaction what it does to sagas.
    async fn add_sagas(
        &self,
        sagas: SagaPart,
        start_ts: Timestamp,
        part: &mut TxnPart,
        deadline: Instant,
    ) -> Result<()> {
        // Not in the future: what is there then can't be read.
        read_timestamp(&self.timestamps, start_ts).await?;
        let client = self.sagas.client()?.with_deadline_at(deadline.into_std());
        let (definitions, clock) = (self.sagas.definitions(), self.sagas.clock());
        saga::add_to_commit(&client, definitions, clock, sagas, start_ts, part).await
    }

    async fn get(&self, key: Bytes, at: ReadAt, deadline: Instant) -> Result<Reply> {
        let replica = self.holding(&key)?;
        let reading = self.begin_read()?;
        let answered = self.reads(&replica, deadline).one(&key, at).await?;
        let served = self.told(&answered, &reading);
        Ok(Reply::Get(convert::get_reply(answered.value, served)))
    }

    async fn get_many(&self, keys: Vec<Bytes>, at: ReadAt, deadline: Instant) -> Result<Reply> {
        let first =
            keys.first().ok_or_else(|| Error::invalid("the request names no key: name at least one"))?;
        let replica = self.holding(first)?;
        let descriptor = replica.group().state().descriptor.clone();
        if let Some(elsewhere) = keys.iter().find(|key| !descriptor.range.contains(key)) {
            // The caller's map put them together: a newer one may not.
            return Err(Error::moved(
                format!("shard {} does not hold {}", descriptor.id, convert::printable_internal(elsewhere)),
                Moved { shard: Some(descriptor), leader: None },
            ));
        }
        let reading = self.begin_read()?;
        let answered = self.reads(&replica, deadline).many(&keys, at).await?;
        let served = self.told(&answered, &reading);
        Ok(Reply::GetMany(convert::get_many_reply(answered.value, answered.at, vec![served])))
    }

    async fn scan_page(&self, scan: Scan, deadline: Instant) -> Result<Reply> {
        if scan.range.is_empty() {
            let at_ts = match scan.at {
                ReadAt::Snapshot(at) => at.0,
                ReadAt::Latest | ReadAt::Bounded { .. } => 0,
            };
            return Ok(Reply::ScanPage(v1::ScanPageReply { at_ts, ..Default::default() }));
        }
        let replica = match scan.direction {
            Direction::Forward => self.replicas.holding(&scan.range.start),
            Direction::Reverse => self.replicas.holding_below(scan.range.end.as_ref()),
        };
        let replica = replica.ok_or_else(|| not_here(&scan.range.start))?;
        let Some(here) = replica.group().state().descriptor.range.intersect(&scan.range) else {
            return Err(not_here(&scan.range.start));
        };
        let limit = |limit: Option<u64>, most: usize| {
            limit.map_or(most, |limit| usize::try_from(limit).unwrap_or(most).min(most))
        };
        let request = PageRequest {
            range: here.clone(),
            direction: scan.direction,
            keys_only: scan.keys_only,
            at: Timestamp::ZERO,
            max_rows: limit(scan.limit_rows, limits::MAX_PAGE_ROWS),
            max_bytes: limit(scan.limit_bytes, limits::MAX_PAGE_BYTES),
        };
        let reading = self.begin_read()?;
        let answered = self.reads(&replica, deadline).page(request, scan.at).await?;
        let (at, served) = (answered.at, Some(self.told(&answered, &reading)));
        let page = answered.value;
        let size_bytes: usize =
            page.rows.iter().map(|(key, record)| key.len() - 1 + record.value.len()).sum();
        let limited = scan.limit_rows.is_some_and(|limit| page.rows.len() as u64 >= limit)
            || (page.next.is_some()
                && scan.limit_bytes.is_some_and(|limit| {
                    limit <= limits::MAX_PAGE_BYTES as u64 || size_bytes as u64 >= limit
                }));
        let next = page.next.or_else(|| rest(&here, &scan.range, scan.direction));
        let rows = page
            .rows
            .into_iter()
            .map(|(key, record)| convert::row_to_proto(&key, record))
            .collect::<Result<_>>()?;
        let next = next.map(|key| user_bound(&key));
        Ok(Reply::ScanPage(v1::ScanPageReply { rows, at_ts: at.0, next, limited, served }))
    }

    /// A page of the changes of the shard that holds the first of the keys, or a wait for them.
    async fn changes_page(&self, ask: ChangesAsk, deadline: Instant) -> Result<Reply> {
        let replica = self.holding(&ask.range.start)?;
        let descriptor = replica.group().state().descriptor.clone();
        let Some(range) = descriptor.range.intersect(&ask.range) else {
            return Err(not_here(&ask.range.start));
        };
        let mut reply = v1::ChangesPageReply {
            range: Some(convert::range_to_proto(convert::user_part(&range))),
            epoch: descriptor.epoch.0,
            through_ts: ask.after.0,
            ..v1::ChangesPageReply::default()
        };
        if ask.count_only {
            let _reading = self.begin_read()?;
            reply.behind = replica.count_changes(ask.after).await?;
            return Ok(Reply::ChangesPage(Box::new(reply)));
        }
        let Some(up_to) = ask.up_to else {
            let _waiting = self.begin_wait()?;
            let left = deadline.saturating_duration_since(Instant::now());
            let most = Duration::from_millis(ask.wait_ms).min(left);
            let waited = replica.wait_for_changes(&range, ask.after, most).await?;
            reply.through_ts = waited.through.0;
            reply.news_ts = waited.news.unwrap_or_default().0;
            return Ok(Reply::ChangesPage(Box::new(reply)));
        };
        let reading = self.begin_read()?;
        let (page, ready) = replica.changes(&range, (ask.after, up_to), ask.before_images, deadline).await?;
        reply.through_ts = page.through.0;
        let transactions = page.transactions.into_iter();
        reply.transactions = transactions
            .map(|changes| convert::user_changes(changes).map(convert::changes_to_proto))
            .collect::<Result<_>>()?;
        reply.served = Some(self.told(&Answered::of_snapshot((), up_to, ready), &reading));
        Ok(Reply::ChangesPage(Box::new(reply)))
    }

    /// A request about named consumers, for the leader of the system shard.
    async fn consumer(&self, what: v1::consumer_request::What, deadline: Instant) -> Result<Reply> {
        let system = self.system()?;
        let consumers = Consumers { cluster: self.cluster, records: self.records(&system, deadline) };
        consumers.serve(what).await.map(Reply::Consumer)
    }

    /// A request about the indexes that there are, for the leader of the system shard.
    async fn index_catalogue(
        &self,
        what: v1::index_catalogue_request::What,
        deadline: Instant,
    ) -> Result<Reply> {
        let system = self.system()?;
        let catalogue = index::Catalogue(self.records(&system, deadline));
        catalogue.serve(what).await.map(Reply::IndexCatalogue)
    }

    /// A request about one version of an index: a query for any replica, others for the leader.
    async fn index_version(
        &self,
        version: (u64, u32),
        what: v1::index_version_request::What,
        deadline: Instant,
    ) -> Result<Reply> {
        use v1::index_version_request::What;
        let what = match what {
            What::Query(asked) => {
                let reading = self.begin_read()?;
                let mut page = index::query(&self.indexes, version, asked, deadline).await?;
                page.load = reading.load();
                page.slow_nodes = self.pulse.slow().to_vec();
                v1::index_version_reply::What::Page(page)
            }
            What::Dump(from) => {
                let _reading = self.begin_read()?;
                v1::index_version_reply::What::Dump(
                    index::dump(&self.indexes, version, from, deadline).await?,
                )
            }
            what => {
                let _waiting = self.begin_wait()?;
                index::serve_version(&self.indexes, &self.projectors, version, what, deadline).await?
            }
        };
        Ok(Reply::IndexVersion(v1::IndexVersionReply { what: Some(what) }))
    }

    /// A request about the definitions of sagas, for the leader of the system shard.
    async fn saga_catalogue(
        &self,
        what: v1::saga_catalogue_request::What,
        deadline: Instant,
    ) -> Result<Reply> {
        let system = self.system()?;
        let catalogue = saga::Catalogue(self.records(&system, deadline));
        catalogue.serve(what).await.map(Reply::SagaCatalogue)
    }

    fn system(&self) -> Result<Arc<Replica>> {
        self.replicas.of(ShardId::SYSTEM).ok_or_else(|| {
            Error::moved("this node has no replica of the system shard: refresh the map", Moved::default())
        })
    }

    fn records<'a>(&'a self, system: &'a Arc<Replica>, deadline: Instant) -> SystemRecords<'a> {
        SystemRecords { system, reads: self.reads(system, deadline), deadline }
    }

    fn reads<'a>(&'a self, replica: &'a Arc<Replica>, deadline: Instant) -> Reads<'a> {
        Reads { replica, router: &self.router, wide: self.words.node_wide(), deadline }
    }

    /// What an answer says about itself, and about whom to spare.
    fn told<T>(&self, answered: &Answered<T>, reading: &Reading<'_>) -> v1::Served {
        let served = convert::served_to_proto(answered.served(self.node, reading.load()));
        v1::Served { slow_nodes: self.pulse.slow().to_vec(), ..served }
    }

    /// Counts a read as under way.
    ///
    /// # Errors
    ///
    /// `Unavailable` where too many are: another replica may have less to do.
    fn begin_read(&self) -> Result<Reading<'_>> {
        self.begin(&self.reading, MAX_READS, "reads are under way")
    }

    /// Counts a wait for changes as under way.
    fn begin_wait(&self) -> Result<Reading<'_>> {
        self.begin(&self.waiting, MAX_WAITS, "waits for changes are under way")
    }

    fn begin<'a>(&self, count: &'a AtomicU32, most: u32, what: &str) -> Result<Reading<'a>> {
        let before = count.fetch_add(1, Ordering::Relaxed);
        let reading = Reading(count);
        if before >= most {
            return Err(Error::overloaded(format!(
                "node {} is overloaded: {most} {what} on it; ask another replica, or try again later",
                self.node
            )));
        }
        Ok(reading)
    }

    fn holding(&self, key: &Bytes) -> Result<Arc<Replica>> {
        self.replicas.holding(key).ok_or_else(|| not_here(key))
    }

    /// The replica that holds all of the keys.
    fn replica_for(&self, keys: &[&Bytes]) -> Result<Arc<Replica>> {
        let first =
            keys.first().ok_or_else(|| Error::invalid("the request names no key: name at least one"))?;
        let replica = self.holding(first)?;
        let state = replica.group().state();
        match keys.iter().find(|key| !state.descriptor.range.contains(key)) {
            None => Ok(replica),
            Some(other) => Err(Error::invalid(format!(
                "keys {} and {} are in different shards: this request must keep to one shard; see the shard map \
                 for where shards begin",
                convert::printable_internal(first),
                convert::printable_internal(other)
            ))),
        }
    }
}

/// Where a scan goes on once the part of its range in this shard is done; `None` where all is done.
pub fn rest(here: &KeyRange, whole: &KeyRange, direction: Direction) -> Option<Bytes> {
    match direction {
        Direction::Forward if here.end != whole.end => here.end.clone(),
        Direction::Reverse if here.start != whole.start => Some(here.start.clone()),
        _ => None,
    }
}

/// A bound of a scan as the user sees it: without the keyspace byte.
fn user_bound(internal: &Bytes) -> Bytes {
    internal.slice(internal.len().min(1)..)
}

fn not_here(key: &Bytes) -> Error {
    Error::moved(
        format!(
            "this node has no replica of the shard that holds {}: refresh the map",
            convert::printable_internal(key)
        ),
        Moved::default(),
    )
}
