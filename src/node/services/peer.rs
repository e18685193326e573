//! Between nodes: forming, joining, and the connection that carries Raft.

use std::pin::Pin;
use std::sync::Arc;

use futures::Stream;
use tonic::{Request, Response, Status, Streaming};

use crate::node::core::Core;
use crate::node::forming;
use crate::rpc::convert;
use crate::rpc::internal::v1::node_server::Node;
use crate::rpc::internal::v1::{
    AdoptReply, AdoptRequest, Frames, JoinReply, JoinRequest, ProbeReply, ProbeRequest, SnapshotChunk,
    SnapshotReply,
};
use crate::types::Error;

/// The service that only other nodes use.
pub struct PeerService(pub Arc<Core>);

#[tonic::async_trait]
impl Node for PeerService {
    async fn probe(&self, _request: Request<ProbeRequest>) -> Result<Response<ProbeReply>, Status> {
        Ok(Response::new(self.0.probe()))
    }

    async fn adopt(&self, request: Request<AdoptRequest>) -> Result<Response<AdoptReply>, Status> {
        let core = self.0.clone();
        // Goes on where the caller gives up: half an adoption would leave a node that is nothing.
        let adopting = tokio::spawn(async move {
            core.adopt(forming::check_part(core.record().store, request.into_inner())?).await
        });
        let adopted = adopting
            .await
            .map_err(|error| Status::internal(format!("the adoption was broken off: {error}")))?;
        adopted.map(|()| Response::new(AdoptReply {})).map_err(|error| convert::error_to_status(&error))
    }

    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<JoinReply>, Status> {
        let joining = request
            .into_inner()
            .node
            .ok_or_else(|| Error::invalid("the request to join does not say who joins"))
            .and_then(forming::peer_from_proto)
            .map_err(|error| convert::error_to_status(&error))?;
        let reply = self.0.take_in(joining).await;
        reply.map(Response::new).map_err(|error| convert::error_to_status(&error))
    }

    type ChannelStream = Pin<Box<dyn Stream<Item = Result<Frames, Status>> + Send>>;

    async fn channel(
        &self,
        request: Request<Streaming<Frames>>,
    ) -> Result<Response<Self::ChannelStream>, Status> {
        let member = self.0.member().map_err(|error| convert::error_to_status(&error))?;
        let frames = member.host().accept_channel(request.into_inner()).await?;
        Ok(Response::new(Box::pin(frames)))
    }

    async fn snapshot(
        &self,
        request: Request<Streaming<SnapshotChunk>>,
    ) -> Result<Response<SnapshotReply>, Status> {
        let member = self.0.member().map_err(|error| convert::error_to_status(&error))?;
        member.host().accept_snapshot(request.into_inner()).await.map(Response::new)
    }
}
