//! The first message of a connection, in both directions: who speaks, and who is meant.

use tonic::Status;

use super::super::PeerBook;
use crate::rpc::internal::v1::Hello;
use crate::types::{ClusterId, Error, ErrorKind, NodeId, NodeRecord, Result, StoreId};

/// The version of the protocol between nodes. Others are refused.
pub const PROTOCOL_VERSION: u32 = 1;

/// Who this node is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Identity {
    /// Its cluster.
    pub cluster: ClusterId,
    /// Itself.
    pub node: NodeRecord,
    /// The length of the lease by which it leads, and of the promise that it makes as a follower.
    pub election_max_ms: u64,
}

impl Identity {
    /// What this node says to another.
    pub fn hello(&self, to: NodeId) -> Hello {
        Hello {
            protocol_version: PROTOCOL_VERSION,
            cluster_id: self.cluster.to_string(),
            from_node: self.node.id.0,
            from_store: self.node.store.to_string(),
            to_node: to.0,
            grpc_addr: self.node.grpc_addr.clone(),
            http_addr: self.node.http_addr.clone(),
            zone: self.node.zone.clone(),
            version: self.node.version.clone(),
            election_max_ms: self.election_max_ms,
        }
    }

    /// Checks what another node says, takes its addresses into the book, and answers its id.
    ///
    /// # Errors
    ///
    /// `Invalid` for another protocol version, another length of the lease, a malformed id, or where another
    /// node is meant; `Denied` for another cluster or a wiped node.
    pub fn check(&self, hello: &Hello, peers: &PeerBook) -> Result<NodeId> {
        if hello.protocol_version != PROTOCOL_VERSION {
            return Err(Error::invalid(format!(
                "node {} speaks protocol version {}, but node {} speaks version {PROTOCOL_VERSION}: run \
                 builds that agree",
                hello.from_node, hello.protocol_version, self.node.id
            )));
        }
        let cluster: ClusterId = hello.cluster_id.parse()?;
        if cluster != self.cluster {
            return Err(Error::denied(format!(
                "node {} belongs to cluster {cluster}, but node {} to cluster {}: check the addresses; nodes \
                 of two clusters never mix",
                hello.from_node, self.node.id, self.cluster
            )));
        }
        if hello.to_node != self.node.id.0 {
            return Err(Error::invalid(format!(
                "node {} means node {}, but this is node {}: the address has changed hands",
                hello.from_node, hello.to_node, self.node.id
            )));
        }
        if hello.election_max_ms != self.election_max_ms {
            return Err(Error::invalid(format!(
                "node {} uses an election_max of {} ms, but node {} one of {} ms: a leader's lease is as long \
                 as its followers' promise only where all nodes use the same. Start them with the same timing",
                hello.from_node, hello.election_max_ms, self.node.id, self.election_max_ms
            )));
        }
        let store: StoreId = hello.from_store.parse()?;
        let from = NodeId(hello.from_node);
        if from == self.node.id && store == self.node.store {
            return Err(Error::invalid(format!("node {from} has connected to itself")));
        }
        peers.learn(&NodeRecord {
            id: from,
            store,
            grpc_addr: hello.grpc_addr.clone(),
            http_addr: hello.http_addr.clone(),
            zone: hello.zone.clone(),
            version: hello.version.clone(),
        })?;
        Ok(from)
    }
}

/// The gRPC status of a refusal.
pub fn refusal(error: &Error) -> Status {
    match error.kind {
        ErrorKind::Denied => Status::permission_denied(&error.message),
        ErrorKind::Invalid => Status::failed_precondition(&error.message),
        ErrorKind::Corrupt => Status::data_loss(&error.message),
        _ => Status::unavailable(&error.message),
    }
}
