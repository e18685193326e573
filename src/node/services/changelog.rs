//! The public changelog service, for callers in any language: a client that starts at this node does the work.

use std::pin::Pin;
use std::sync::Arc;

use futures::Stream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::{Request, Response, Status};

use crate::client::{ChangeStream, Client, Cursor, Event, FollowOptions, Followed, Since};
use crate::node::core::Core;
use crate::rpc::v1::changelog_server::Changelog;
use crate::rpc::v1::consumer_request::What;
use crate::rpc::v1::follow_request::From;
use crate::rpc::{convert, v1, validate};
use crate::types::{Before, Changes, Error, Result, limits};

/// Events that travel together, at most.
const MAX_EVENTS_TOGETHER: usize = 512;
/// A message is sent once its events come to so many bytes.
const MAX_EVENT_BYTES: usize = 256 * 1024;

/// Streams of one node at once.
const MAX_FOLLOWERS: usize = 1024;

/// The public changelog service.
pub struct ChangelogService {
    core: Arc<Core>,
    followers: Arc<Semaphore>,
}

impl ChangelogService {
    /// The service of a node.
    pub fn new(core: Arc<Core>) -> Self {
        Self { core, followers: Arc::new(Semaphore::new(MAX_FOLLOWERS)) }
    }

    /// A client with the caller's deadline, once the header is checked.
    async fn client(&self, header: Option<&v1::Header>) -> Result<Client> {
        let header = validate::header(header)?;
        header.check_cluster(self.core.member()?.cluster())?;
        Ok(self.core.client().await?.with_deadline(header.deadline))
    }

    async fn about(&self, header: Option<&v1::Header>, what: What) -> Result<Vec<v1::ConsumerRecord>> {
        self.client(header).await?.about_consumers(what).await
    }

    async fn open(&self, request: v1::OpenConsumerRequest) -> Result<v1::ConsumerRecord> {
        let open = request.open.ok_or_else(|| Error::invalid("the request opens nothing: set `open`"))?;
        let records = self.about(request.header.as_ref(), What::Open(open)).await?;
        records.into_iter().next().ok_or_else(|| Error::corrupt("the consumer was opened and is not there"))
    }

    async fn acknowledge(&self, request: v1::AcknowledgeRequest) -> Result<v1::AcknowledgeReply> {
        let acknowledge = request
            .acknowledge
            .ok_or_else(|| Error::invalid("the request acknowledges nothing: set `acknowledge`"))?;
        self.about(request.header.as_ref(), What::Acknowledge(acknowledge)).await?;
        Ok(v1::AcknowledgeReply {})
    }

    async fn list(&self, request: v1::ListConsumersRequest) -> Result<v1::ListConsumersReply> {
        let consumers = self.client(request.header.as_ref()).await?.consumers().await?;
        let consumers = consumers.into_iter().map(|status| v1::Consumer {
            record: Some(status.record),
            lag_ms: status.lag_ms,
            lag_entries: status.lag_entries,
            truncated: status.truncated,
        });
        Ok(v1::ListConsumersReply { consumers: consumers.collect() })
    }

    async fn drop(&self, request: v1::DropConsumerRequest) -> Result<v1::DropConsumerReply> {
        let existed = self.client(request.header.as_ref()).await?.drop_consumer(&request.name).await?;
        Ok(v1::DropConsumerReply { existed })
    }

    async fn begin(&self, request: v1::FollowRequest) -> Result<ChangeStream> {
        let since = match request.from {
            Some(From::Cursor(cursor)) => Since::Cursor(Cursor::decode(&cursor)?),
            Some(From::AfterTs(ts)) => Since::Timestamp(validate::timestamp("after_ts", ts)?),
            Some(From::Scan(true)) => Since::Scan,
            Some(From::Oldest(true)) => Since::Oldest,
            Some(From::Now(true)) | None => Since::Now,
            Some(From::Scan(false) | From::Oldest(false) | From::Now(false)) => {
                return Err(Error::invalid(
                    "where to begin is set to false: set one of scan, oldest and now to true, or cursor, or after_ts",
                ));
            }
        };
        let ranges = convert::followed(request.ranges, request.prefixes)?;
        let client = self.client(request.header.as_ref()).await?;
        client.changes(FollowOptions { ranges, since, before_images: request.before_images })
    }
}

fn status(error: Error) -> Status {
    convert::error_to_status(&error)
}

type EventStream = Pin<Box<dyn Stream<Item = Result<v1::FollowReply, Status>> + Send>>;

#[tonic::async_trait]
impl Changelog for ChangelogService {
    type FollowStream = EventStream;

    async fn follow(&self, request: Request<v1::FollowRequest>) -> Result<Response<EventStream>, Status> {
        let place = self.followers.clone().try_acquire_owned().map_err(|_| {
            status(Error::overloaded(format!(
                "{MAX_FOLLOWERS} streams of changes are open at this node, the most it has: follow at another one"
            )))
        })?;
        let changes = self.begin(request.into_inner()).await.map_err(status)?;
        Ok(Response::new(Box::pin(messages(changes, place, self.core.stopping().clone()))))
    }

    async fn open_consumer(
        &self,
        request: Request<v1::OpenConsumerRequest>,
    ) -> Result<Response<v1::ConsumerRecord>, Status> {
        self.open(request.into_inner()).await.map(Response::new).map_err(status)
    }

    async fn acknowledge(
        &self,
        request: Request<v1::AcknowledgeRequest>,
    ) -> Result<Response<v1::AcknowledgeReply>, Status> {
        self.acknowledge(request.into_inner()).await.map(Response::new).map_err(status)
    }

    async fn list_consumers(
        &self,
        request: Request<v1::ListConsumersRequest>,
    ) -> Result<Response<v1::ListConsumersReply>, Status> {
        self.list(request.into_inner()).await.map(Response::new).map_err(status)
    }

    async fn drop_consumer(
        &self,
        request: Request<v1::DropConsumerRequest>,
    ) -> Result<Response<v1::DropConsumerReply>, Status> {
        self.drop(request.into_inner()).await.map(Response::new).map_err(status)
    }
}

/// The events, several to a message. One message is made at a time: a slow reader holds back its own stream, not the
/// node's memory.
fn messages(
    mut changes: ChangeStream,
    place: OwnedSemaphorePermit,
    stopping: tokio_util::sync::CancellationToken,
) -> impl Stream<Item = Result<v1::FollowReply, Status>> + Send {
    async_stream::stream! {
        let _place = place;
        let mut events = Vec::new();
        let mut size_bytes = 0;
        loop {
            let next = match events.is_empty() {
                true => tokio::select! {
                    next = changes.next() => Some(next),
                    () = stopping.cancelled() => {
                        yield Err(status(Error::unavailable("the node is stopping: follow at another one")));
                        return;
                    }
                },
                // What is there already goes along.
                false => changes.try_next(),
            };
            match next {
                Some(Ok(mut followed)) => {
                    if let Event::Changes(changes) = &mut followed.event {
                        fit(changes);
                    }
                    size_bytes += bytes_of(&followed.event);
                    events.push(event_to_proto(followed));
                    if events.len() < MAX_EVENTS_TOGETHER && size_bytes < MAX_EVENT_BYTES {
                        continue;
                    }
                }
                Some(Err(error)) => {
                    // What came before it was told.
                    if !events.is_empty() {
                        yield Ok(v1::FollowReply { events });
                    }
                    yield Err(status(error));
                    return;
                }
                None => {}
            }
            size_bytes = 0;
            yield Ok(v1::FollowReply { events: std::mem::take(&mut events) });
        }
    }
}

/// Leaves values from before out of a transaction over many shards, so that a message can carry it: each shard told as
/// much as one message may.
fn fit(changes: &mut Changes) {
    let mut left = limits::MAX_BEFORE_BYTES;
    for change in &mut changes.changes {
        if let Before::Value(value) = &change.before {
            match left.checked_sub(value.len()) {
                Some(rest) => left = rest,
                None => change.before = Before::TooLarge,
            }
        }
    }
}

fn bytes_of(event: &Event) -> usize {
    match event {
        Event::Row(row) => row.key.len() + row.record.value.len(),
        Event::Changes(changes) => changes.size_bytes(),
        Event::Progress(_) => 0,
    }
}

fn event_to_proto(followed: Followed) -> v1::Event {
    use v1::event::Event as Proto;
    let cursor = followed.cursor().encode();
    let event = match followed.event {
        Event::Row(row) => {
            Proto::Row(v1::Row { key: row.key, record: Some(convert::record_to_proto(row.record)) })
        }
        Event::Changes(changes) => Proto::Changes(convert::changes_to_proto(changes)),
        Event::Progress(ts) => Proto::ProgressTs(ts.0),
    };
    v1::Event { event: Some(event), cursor }
}
