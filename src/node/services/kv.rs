//! The public key-value service. Unary calls go through a client that starts at this node, so any node
//! serves any key; sessions are served by this node's own replicas.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::Stream;
use tonic::{Request, Response, Status, Streaming};

use super::session;
use crate::client::{Client, ScanOptions};
use crate::node::core::Core;
use crate::rpc::v1::kv_server::Kv;
use crate::rpc::v1::session_reply::Reply;
use crate::rpc::v1::session_request::Request as Call;
use crate::rpc::{convert, v1, validate};
use crate::types::{Error, ReadAt, Result, Timestamp};

/// Rows that travel together in a scan, at most.
const MAX_ROWS_TOGETHER: usize = 1000;
/// A scan's message is sent once its rows come to so many bytes.
const MAX_ROWS_BYTES: usize = 256 * 1024;

/// The public key-value service.
pub struct KvService(pub Arc<Core>);

impl KvService {
    /// A client with the caller's deadline, once the header is checked.
    async fn client(&self, header: Option<&v1::Header>) -> Result<Client> {
        let header = validate::header(header)?;
        header.check_cluster(self.0.member()?.cluster())?;
        Ok(self.0.client().await?.with_deadline(header.deadline))
    }

    async fn pass_on(&self, call: Call) -> Result<Reply, Status> {
        let passed = async {
            let header = convert::header_of(&call)?;
            header.check_cluster(self.0.member()?.cluster())?;
            let client = self.0.client().await?.with_deadline(header.deadline);
            client.pass_on(call, header.id).await
        };
        passed.await.map_err(|error| convert::error_to_status(&error))
    }
}

/// The reply of the kind that the call has; anything else is a defect of the node that answered.
macro_rules! expect_reply {
    ($reply:expr, $kind:ident) => {
        match $reply {
            Reply::$kind(reply) => Ok(Response::new(reply)),
            other => {
                Err(Status::internal(format!("the leader answered with another kind of reply: {other:?}")))
            }
        }
    };
}

type RowStream = Pin<Box<dyn Stream<Item = Result<v1::ScanReply, Status>> + Send>>;

#[tonic::async_trait]
impl Kv for KvService {
    async fn put(&self, request: Request<v1::PutRequest>) -> Result<Response<v1::PutReply>, Status> {
        expect_reply!(self.pass_on(Call::Put(request.into_inner())).await?, Put)
    }

    async fn get(&self, request: Request<v1::GetRequest>) -> Result<Response<v1::GetReply>, Status> {
        expect_reply!(self.pass_on(Call::Get(request.into_inner())).await?, Get)
    }

    async fn get_many(
        &self,
        request: Request<v1::GetManyRequest>,
    ) -> Result<Response<v1::GetManyReply>, Status> {
        let request = request.into_inner();
        let read = async {
            validate::keys(&request.keys)?;
            let at = validate::read_at(request.at_ts, request.max_staleness_ms)?;
            let client = self.client(request.header.as_ref()).await?;
            let values = match at {
                ReadAt::Latest => client.get_many(&request.keys).await?,
                ReadAt::Snapshot(at) => client.get_many_at(&request.keys, at).await?,
                ReadAt::Bounded { max_staleness_ms } => {
                    client.bounded(Duration::from_millis(max_staleness_ms)).get_many(&request.keys).await?
                }
            };
            let served = values.served.into_iter().map(convert::served_to_proto).collect();
            Ok(convert::get_many_reply(values.records, values.at_ts, served))
        };
        read.await.map(Response::new).map_err(|error: Error| convert::error_to_status(&error))
    }

    async fn delete(&self, request: Request<v1::DeleteRequest>) -> Result<Response<v1::DeleteReply>, Status> {
        expect_reply!(self.pass_on(Call::Delete(request.into_inner())).await?, Delete)
    }

    async fn compare_and_swap(
        &self,
        request: Request<v1::CompareAndSwapRequest>,
    ) -> Result<Response<v1::CompareAndSwapReply>, Status> {
        expect_reply!(self.pass_on(Call::CompareAndSwap(request.into_inner())).await?, CompareAndSwap)
    }

    async fn add(&self, request: Request<v1::AddRequest>) -> Result<Response<v1::AddReply>, Status> {
        expect_reply!(self.pass_on(Call::Add(request.into_inner())).await?, Add)
    }

    async fn batch(&self, request: Request<v1::BatchRequest>) -> Result<Response<v1::BatchReply>, Status> {
        expect_reply!(self.pass_on(Call::Batch(request.into_inner())).await?, Batch)
    }

    async fn timestamp(
        &self,
        request: Request<v1::TimestampRequest>,
    ) -> Result<Response<v1::TimestampReply>, Status> {
        let asked = async { self.client(request.into_inner().header.as_ref()).await?.timestamp().await };
        let ts = asked.await.map_err(|error: Error| convert::error_to_status(&error))?;
        Ok(Response::new(v1::TimestampReply { ts: ts.0 }))
    }

    async fn commit(&self, request: Request<v1::CommitRequest>) -> Result<Response<v1::CommitReply>, Status> {
        expect_reply!(self.pass_on(Call::Commit(request.into_inner())).await?, Commit)
    }

    type ScanStream = RowStream;

    async fn scan(&self, request: Request<v1::ScanRequest>) -> Result<Response<RowStream>, Status> {
        let request = request.into_inner();
        let opened = async {
            validate::scan(&request)?;
            let client = self.client(request.header.as_ref()).await?;
            let options = ScanOptions {
                start: request.start,
                end: request.end,
                prefix: request.prefix,
                reverse: request.reverse,
                keys_only: request.keys_only,
                limit_rows: request.limit_rows,
                limit_bytes: request.limit_bytes,
                at: (request.at_ts != 0).then_some(Timestamp(request.at_ts)),
            };
            Ok(match request.max_staleness_ms {
                None => client.scan(options),
                Some(most) => client.bounded(Duration::from_millis(most.into())).scan(options),
            })
        };
        let scan = opened.await.map_err(|error: Error| convert::error_to_status(&error))?;
        Ok(Response::new(Box::pin(messages(scan))))
    }

    type SessionStream = Pin<Box<dyn Stream<Item = Result<v1::SessionReplies, Status>> + Send>>;

    async fn session(
        &self,
        request: Request<Streaming<v1::SessionRequests>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        Ok(Response::new(Box::pin(session::serve(self.0.clone(), request.into_inner()))))
    }
}

/// The rows of a scan, several to a message. One message is made at a time: a slow reader holds back the
/// scan, not the node's memory.
fn messages(mut scan: crate::client::Scan) -> impl Stream<Item = Result<v1::ScanReply, Status>> + Send {
    async_stream::stream! {
        let mut rows = Vec::new();
        let mut size_bytes = 0;
        while let Some(row) = scan.next().await {
            match row {
                Ok(row) => {
                    size_bytes += row.key.len() + row.record.value.len();
                    rows.push(v1::Row { key: row.key, record: Some(convert::record_to_proto(row.record)) });
                }
                Err(error) => {
                    yield Err(convert::error_to_status(&error));
                    return;
                }
            }
            if rows.len() >= MAX_ROWS_TOGETHER || size_bytes >= MAX_ROWS_BYTES {
                size_bytes = 0;
                let at_ts = scan.at_ts().unwrap_or_default().0;
                let served = scan.served().map(convert::served_to_proto);
                yield Ok(v1::ScanReply { rows: std::mem::take(&mut rows), at_ts, more: false, served });
            }
        }
        let at_ts = scan.at_ts().unwrap_or_default().0;
        let served = scan.served().map(convert::served_to_proto);
        yield Ok(v1::ScanReply { rows, at_ts, more: scan.more(), served });
    }
}
