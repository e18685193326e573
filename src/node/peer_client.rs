//! One-off calls to other nodes, before there is a connection between members.

use std::time::Duration;

use tonic::transport::{Channel, Endpoint};

use crate::rpc::convert;
use crate::rpc::internal::v1::node_client::NodeClient;
use crate::rpc::internal::v1::{AdoptRequest, JoinReply, JoinRequest, Peer, ProbeReply, ProbeRequest};
use crate::types::{Error, Result};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
const PROBE_TIMEOUT: Duration = Duration::from_secs(3);
const JOIN_TIMEOUT: Duration = Duration::from_secs(10);

async fn connect(addr: &str, timeout: Duration) -> Result<NodeClient<Channel>> {
    let endpoint = Endpoint::from_shared(format!("http://{addr}"))
        .map_err(|error| Error::invalid(format!("{addr:?} is not an address: give host:port ({error})")))?
        .connect_timeout(CONNECT_TIMEOUT)
        .timeout(timeout);
    let channel = endpoint.connect().await.map_err(|error| {
        Error::unavailable(format!(
            "the node at {addr} can't be reached ({}): is it running, and is the address right?",
            root_cause(&error)
        ))
    })?;
    Ok(NodeClient::new(channel))
}

fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    cause.to_string()
}

/// Asks who a node is.
pub async fn probe(addr: &str) -> Result<ProbeReply> {
    let mut client = connect(addr, PROBE_TIMEOUT).await?;
    let reply = client.probe(ProbeRequest {}).await;
    reply.map(tonic::Response::into_inner).map_err(|status| convert::error_from_status(&status))
}

/// Has a waiting node adopt its part of a new cluster.
pub async fn adopt(addr: &str, part: AdoptRequest, timeout: Duration) -> Result<()> {
    let mut client = connect(addr, timeout).await?;
    client.adopt(part).await.map(|_| ()).map_err(|status| convert::error_from_status(&status))
}

/// Asks a member for an id.
pub async fn join(addr: &str, node: Peer) -> Result<JoinReply> {
    let mut client = connect(addr, JOIN_TIMEOUT).await?;
    let reply = client.join(JoinRequest { node: Some(node) }).await;
    reply.map(tonic::Response::into_inner).map_err(|status| convert::error_from_status(&status))
}
