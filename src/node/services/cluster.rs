//! The public service about the cluster itself.

use std::pin::Pin;
use std::sync::Arc;

use futures::Stream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use crate::engine::View;
use crate::node::core::Core;
use crate::node::replica::Replica;
use crate::raft::{AppliedRecord, Group, Role};
use crate::rpc::v1::cluster_server::Cluster;
use crate::rpc::{convert, v1};
use crate::shard::{self, Counts, Fates, PageRequest};
use crate::types::{Direction, Error, KeyRange, Result, ShardId, Timestamp, limits};

/// The public service about the cluster itself.
pub struct ClusterService(pub Arc<Core>);

type RowStream = Pin<Box<dyn Stream<Item = Result<v1::ReplicaScanReply, Status>> + Send>>;

#[tonic::async_trait]
impl Cluster for ClusterService {
    async fn init(&self, request: Request<v1::InitRequest>) -> Result<Response<v1::InitReply>, Status> {
        // Goes on where the caller gives up: half an init is repeated from its stored plan.
        let core = self.0.clone();
        let formed = tokio::spawn(async move { core.init(request.into_inner()).await }).await;
        let plan = formed
            .map_err(|error| Status::internal(format!("the init was broken off: {error}")))?
            .map_err(|error| convert::error_to_status(&error))?;
        Ok(Response::new(v1::InitReply {
            cluster_id: plan.cluster.to_string(),
            nodes: plan.nodes.iter().map(convert::node_to_proto).collect(),
            shards: plan.shards.iter().map(convert::descriptor_to_proto).collect(),
        }))
    }

    async fn get_map(
        &self,
        _request: Request<v1::GetMapRequest>,
    ) -> Result<Response<v1::GetMapReply>, Status> {
        let map = async { self.0.member()?.map().await };
        map.await.map(Response::new).map_err(|error| convert::error_to_status(&error))
    }

    async fn get_status(
        &self,
        _request: Request<v1::GetStatusRequest>,
    ) -> Result<Response<v1::GetStatusReply>, Status> {
        Ok(Response::new(status_of(&self.0)))
    }

    async fn checksum(
        &self,
        request: Request<v1::ChecksumRequest>,
    ) -> Result<Response<v1::ChecksumReply>, Status> {
        let wanted = request.into_inner().shard.map(ShardId);
        let computed = async {
            let mut replicas = Vec::new();
            for group in groups(&self.0, wanted)? {
                let summed = tokio::task::spawn_blocking(move || checksum(&group)).await;
                replicas.push(summed.map_err(|error| Error::unavailable(format!("broken off: {error}")))??);
            }
            Ok(v1::ChecksumReply { replicas })
        };
        computed.await.map(Response::new).map_err(|error: Error| convert::error_to_status(&error))
    }

    type ReplicaScanStream = RowStream;

    async fn replica_scan(
        &self,
        request: Request<v1::ReplicaScanRequest>,
    ) -> Result<Response<RowStream>, Status> {
        let shard = ShardId(request.into_inner().shard);
        let group = groups(&self.0, Some(shard))
            .and_then(|mut groups| groups.pop().ok_or_else(|| Error::invalid("no such replica")))
            .map_err(|error| convert::error_to_status(&error))?;
        // Two messages ahead of the reader at most: a slow one holds back the scan, not memory.
        let (rows, stream) = mpsc::channel(2);
        tokio::task::spawn_blocking(move || scan_replica(&group, &rows));
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }
}

fn groups(core: &Core, wanted: Option<ShardId>) -> Result<Vec<Arc<Group>>> {
    let member = core.member()?;
    match wanted {
        None => Ok(member.host().groups()),
        Some(shard) => match member.host().group(shard) {
            Some(group) => Ok(vec![group]),
            None => Err(Error::invalid(format!(
                "node {} has no replica of shard {shard}: see `kvorum status` for who has",
                member.record().id
            ))),
        },
    }
}

fn checksum(group: &Group) -> Result<v1::ReplicaChecksum> {
    let replica = group.replica();
    let view = replica.view()?;
    let applied = applied_in(&*view, group.id())?;
    let state = &applied.state;
    let sum = shard::checksum_rows(&*view, state)?;
    Ok(v1::ReplicaChecksum {
        shard: group.id().0,
        applied_index: applied.index(),
        running: applied.state.checksum,
        rows_checksum: sum.hash,
        rows: sum.rows,
    })
}

/// What a replica had applied when the view was taken: the same write carries both.
fn applied_in(view: &dyn View, shard: ShardId) -> Result<AppliedRecord> {
    AppliedRecord::read(view, shard)?.ok_or_else(|| {
        Error::unavailable(format!("the replica of shard {shard} is empty yet: it waits for a snapshot"))
    })
}

fn scan_replica(group: &Group, rows: &mpsc::Sender<Result<v1::ReplicaScanReply, Status>>) {
    let send = |message| rows.blocking_send(message).is_ok();
    let replica = group.replica();
    let scanned = || -> Result<()> {
        let view = replica.view()?;
        let applied = applied_in(&*view, group.id())?;
        let mut request = PageRequest {
            range: users_part(&applied.state.descriptor.range),
            direction: Direction::Forward,
            keys_only: false,
            at: Timestamp::MAX,
            max_rows: limits::MAX_PAGE_ROWS,
            max_bytes: limits::MAX_PAGE_BYTES,
        };
        loop {
            // Rows as they are: what locks stage is not a version yet.
            let page = shard::scan_page(&*view, Counts::default(), &request, &Fates::new())?.unlocked()?;
            let rows = page.rows.into_iter().map(|(key, record)| convert::row_to_proto(&key, record));
            let reply =
                v1::ReplicaScanReply { rows: rows.collect::<Result<_>>()?, applied_index: applied.index() };
            // Nobody listens any more: nothing is left to do.
            if !send(Ok(reply)) {
                return Ok(());
            }
            match page.next {
                Some(next) => request = request.rest(next),
                None => return Ok(()),
            }
        }
    };
    if let Err(error) = scanned() {
        send(Err(convert::error_to_status(&error)));
    }
}

/// The part of a shard's range that holds users' keys.
fn users_part(range: &KeyRange) -> KeyRange {
    let users = crate::codec::keyspace::user_range(&KeyRange::all());
    range.intersect(&users).unwrap_or_else(|| KeyRange::new(users.start.clone(), Some(users.start)))
}

/// What a node is and does.
pub fn status_of(core: &Core) -> v1::GetStatusReply {
    let record = core.record();
    let mut reply = v1::GetStatusReply {
        node: Some(convert::node_to_proto(&record)),
        state: if core.stopping().is_cancelled() { "stopping" } else { "waiting" }.to_string(),
        uptime_s: core.started().elapsed().as_secs(),
        store_bytes: core.engine().stats().size_bytes,
        ..Default::default()
    };
    let Ok(member) = core.member() else { return reply };
    reply.cluster_id = member.cluster().to_string();
    reply.replicas = member
        .host()
        .groups()
        .iter()
        .map(|group| replica_status(group, member.replicas().of(group.id()).as_deref()))
        .collect();
    let led = reply.replicas.iter().all(|replica| replica.leader != 0);
    reply.state = if led { "serving" } else { "starting" }.to_string();
    reply
}

fn replica_status(group: &Group, reads: Option<&Replica>) -> v1::ReplicaStatus {
    let status = group.status();
    let state = group.state();
    let closed = reads.map_or(state.closed, Replica::closed);
    let leads = group.leadership().token().is_some();
    v1::ReplicaStatus {
        shard: Some(convert::descriptor_to_proto(&state.descriptor)),
        // A leader that has not applied an entry of its own term does not serve yet.
        role: if status.role == Role::Leader && !leads { Role::Candidate } else { status.role }
            .name()
            .to_string(),
        term: status.term,
        leader: status.leader.map_or(0, |leader| leader.0),
        last_log_index: status.last_log_index,
        applied_index: status.applied_index,
        first_log_index: status.first_log_index,
        closed_ts: closed.0,
        closed_age_ms: reads.and_then(|reads| reads.age_ms(closed)),
        locks: state.counts.locks,
        safe_point_ts: state.safe_point.0,
        checksum: state.checksum,
        fault: status.fault,
    }
}
