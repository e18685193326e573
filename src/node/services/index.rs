//! The public index service, for callers in any language: a client that starts at this node does the work.

use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use futures::Stream;
use tonic::{Request, Response, Status};

use crate::client::{Client, QueryItem};
use crate::node::core::Core;
use crate::rpc::v1::index_server::Index;
use crate::rpc::{convert, v1, validate};
use crate::types::{Error, Result, Timestamp, limits};

/// The public index service.
pub struct IndexService(pub Arc<Core>);

impl IndexService {
    /// A client with the caller's deadline, once the header is checked.
    async fn client(&self, header: Option<&v1::Header>) -> Result<Client> {
        let header = validate::header(header)?;
        header.check_cluster(self.0.member()?.cluster())?;
        Ok(self.0.client().await?.with_deadline(header.deadline))
    }

    async fn query(&self, request: v1::QueryRequest) -> Result<v1::IndexPage> {
        let client = self.client(request.header.as_ref()).await?;
        let asked = request.query.ok_or_else(|| {
            Error::invalid("the request has no query: set `query`, empty for all that the index has")
        })?;
        let at_least = Timestamp(request.at_least_ts);
        let page = client.query_as(request.name, asked, at_least).page().await?;
        let value_bytes: usize =
            page.items.iter().filter_map(|item| item.value.as_ref()).map(Bytes::len).sum();
        if value_bytes > limits::MAX_BATCH_BYTES {
            return Err(Error::invalid(format!(
                "the rows of this page come to {value_bytes} bytes, over the limit of {} for one answer: ask for fewer with \
                 `limit`, or leave the rows out",
                limits::MAX_BATCH_BYTES
            )));
        }
        Ok(v1::IndexPage {
            items: page.items.into_iter().map(item_to_proto).collect(),
            watermark: page.watermark.0,
            read_ts: page.read_ts.0,
            page_token: page.next.unwrap_or_default(),
            explain: page.explain,
            version: page.version,
            halted: page.halted.unwrap_or_default(),
            ..Default::default()
        })
    }
}

fn item_to_proto(item: QueryItem) -> v1::IndexItem {
    v1::IndexItem { key: item.key, json: serde_json::Value::Object(item.json).to_string(), value: item.value }
}

/// The answer, or the error as a status.
fn respond<T>(done: Result<T>) -> Result<Response<T>, Status> {
    done.map(Response::new).map_err(|error| convert::error_to_status(&error))
}

fn no_index(name: &str) -> Error {
    Error::invalid(format!("there is no index {name:?}: ListIndexes tells which there are"))
}

type LetterStream = Pin<Box<dyn Stream<Item = Result<v1::DeadLetter, Status>> + Send>>;

#[tonic::async_trait]
impl Index for IndexService {
    async fn create_index(
        &self,
        request: Request<v1::CreateIndexRequest>,
    ) -> Result<Response<v1::IndexRecord>, Status> {
        let request = request.into_inner();
        respond(
            async {
                let spec = request
                    .spec
                    .ok_or_else(|| Error::invalid("the request has no definition: set `spec`"))?;
                self.client(request.header.as_ref()).await?.create_index(spec).await
            }
            .await,
        )
    }

    async fn list_indexes(
        &self,
        request: Request<v1::ListIndexesRequest>,
    ) -> Result<Response<v1::ListIndexesReply>, Status> {
        let listed = async {
            let indexes = self.client(request.into_inner().header.as_ref()).await?.indexes().await?;
            Ok(v1::ListIndexesReply { indexes })
        };
        respond(listed.await)
    }

    async fn get_index(
        &self,
        request: Request<v1::GetIndexRequest>,
    ) -> Result<Response<v1::IndexStatus>, Status> {
        let request = request.into_inner();
        let found = async {
            let found = self.client(request.header.as_ref()).await?.index(&request.name).await?;
            found.ok_or_else(|| no_index(&request.name))
        };
        respond(found.await)
    }

    async fn drop_index(
        &self,
        request: Request<v1::DropIndexRequest>,
    ) -> Result<Response<v1::DropIndexReply>, Status> {
        let request = request.into_inner();
        let dropped = async {
            let existed = self.client(request.header.as_ref()).await?.drop_index(&request.name).await?;
            Ok(v1::DropIndexReply { existed })
        };
        respond(dropped.await)
    }

    async fn rebuild_index(
        &self,
        request: Request<v1::RebuildIndexRequest>,
    ) -> Result<Response<v1::IndexRecord>, Status> {
        let request = request.into_inner();
        let rebuilt = async {
            let v1::RebuildIndex { name, spec, hold, .. } = request.rebuild.ok_or_else(|| {
                Error::invalid("the request does not say what to build anew: set `rebuild`")
            })?;
            self.client(request.header.as_ref()).await?.rebuild_index(&name, spec, hold).await
        };
        respond(rebuilt.await)
    }

    async fn swap_index(
        &self,
        request: Request<v1::SwapIndexRequest>,
    ) -> Result<Response<v1::IndexRecord>, Status> {
        let request = request.into_inner();
        respond(async { self.client(request.header.as_ref()).await?.swap_index(&request.name).await }.await)
    }

    async fn cancel_index_build(
        &self,
        request: Request<v1::CancelIndexBuildRequest>,
    ) -> Result<Response<v1::IndexRecord>, Status> {
        let request = request.into_inner();
        let cancelled =
            async { self.client(request.header.as_ref()).await?.cancel_index_build(&request.name).await };
        respond(cancelled.await)
    }

    async fn resume_index(
        &self,
        request: Request<v1::ResumeIndexRequest>,
    ) -> Result<Response<v1::IndexProgress>, Status> {
        let v1::ResumeIndexRequest { header, name, without } = request.into_inner();
        respond(async { self.client(header.as_ref()).await?.resume_index(&name, without).await }.await)
    }

    type ListDeadLettersStream = LetterStream;

    async fn list_dead_letters(
        &self,
        request: Request<v1::ListDeadLettersRequest>,
    ) -> Result<Response<LetterStream>, Status> {
        let v1::ListDeadLettersRequest { header, name } = request.into_inner();
        let client = self.client(header.as_ref()).await.map_err(|error| convert::error_to_status(&error))?;
        let letters = async_stream::stream! {
            let mut next_from = Some(Bytes::new());
            while let Some(from) = next_from.take() {
                match client.dead_letters(&name, from).await {
                    Ok((letters, next)) => {
                        for letter in letters {
                            yield Ok(letter);
                        }
                        next_from = next;
                    }
                    Err(error) => yield Err(convert::error_to_status(&error)),
                }
            }
        };
        Ok(Response::new(Box::pin(letters)))
    }

    async fn replay_dead_letters(
        &self,
        request: Request<v1::ReplayDeadLettersRequest>,
    ) -> Result<Response<v1::IndexProgress>, Status> {
        let v1::ReplayDeadLettersRequest { header, name } = request.into_inner();
        respond(async { self.client(header.as_ref()).await?.replay_dead_letters(&name).await }.await)
    }

    async fn query(&self, request: Request<v1::QueryRequest>) -> Result<Response<v1::IndexPage>, Status> {
        respond(IndexService::query(self, request.into_inner()).await)
    }
}
