//! Calls to one named node, and to every node of the cluster at once.

use std::time::Duration;

use futures::future::join_all;
use tonic::transport::{Channel, Endpoint};

use super::context::Context;
use crate::rpc::convert;
use crate::rpc::v1::cluster_client::ClusterClient;
use crate::rpc::v1::{GetMapReply, GetMapRequest, GetStatusReply, GetStatusRequest, Node};
use crate::types::limits::MAX_MESSAGE_BYTES;
use crate::{Error, Result};

/// A connection to the cluster service of the node at `address`.
pub async fn connect(address: &str, deadline: Duration) -> Result<ClusterClient<Channel>> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .map_err(|error| Error::invalid(format!("{address:?} is not an address: {error}")))?
        .connect_timeout(deadline.min(Duration::from_secs(5)))
        .timeout(deadline);
    let channel = endpoint.connect().await.map_err(|error| {
        Error::unavailable(format!("no node answers at {address}: {}", innermost(&error)))
    })?;
    Ok(ClusterClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES))
}

/// The last cause of an error: the one that says what happened.
fn innermost(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}

/// The map, from the first endpoint that answers; checked against `--cluster-id`.
pub async fn get_map(context: &Context) -> Result<GetMapReply> {
    let mut last = Error::invalid("--endpoints names no node: give at least one host:port");
    for endpoint in &context.endpoints {
        match map_of(endpoint, context.deadline).await {
            Ok(map) => {
                check_cluster(context, &map.cluster_id, endpoint)?;
                return Ok(map);
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// The map as the node at `address` knows it.
pub async fn map_of(address: &str, deadline: Duration) -> Result<GetMapReply> {
    let reply = connect(address, deadline).await?.get_map(GetMapRequest {}).await;
    Ok(reply.map_err(|status| convert::error_from_status(&status))?.into_inner())
}

fn check_cluster(context: &Context, found: &str, endpoint: &str) -> Result<()> {
    match context.cluster_id {
        Some(wanted) if found != wanted.to_string() => Err(Error::denied(format!(
            "the node at {endpoint} belongs to cluster {found:?}, not to {wanted}: correct --endpoints or --cluster-id"
        ))),
        _ => Ok(()),
    }
}

/// What the node at `address` says about itself.
pub async fn status_of(address: &str, deadline: Duration) -> Result<GetStatusReply> {
    let reply = connect(address, deadline).await?.get_status(GetStatusRequest {}).await;
    Ok(reply.map_err(|status| convert::error_from_status(&status))?.into_inner())
}

/// What every node of the map says about itself, all asked at once.
pub async fn status_of_all(nodes: &[Node], deadline: Duration) -> Vec<Result<GetStatusReply>> {
    join_all(nodes.iter().map(|node| status_of(&node.grpc_addr, deadline))).await
}
