//! What openraft is told about our types.

use std::fmt;

use bytes::Bytes;
use openraft::impls::EmptyNode;
use serde::{Deserialize, Serialize};

use crate::types::{NodeId, Outcome};

/// The body of a Raft entry: a `shard::Entry` encoded once, at the leader, and cloned by reference count
/// from then on (openraft reads each entry three times on a leader of three).
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Payload(pub Bytes);

impl fmt::Display for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

impl fmt::Debug for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Payload({self})")
    }
}

/// What applying an entry answers: an outcome for each command of its batch.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Applied(pub Vec<Outcome>);

impl fmt::Display for Applied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} outcomes", self.0.len())
    }
}

openraft::declare_raft_types!(
    /// One configuration for all groups of a node. Addresses are not part of the membership: they come
    /// from the peer book, so that a node may change its address.
    pub TypeConfig:
        D = Payload,
        R = Applied,
        NodeId = NodeId,
        Node = EmptyNode,
);
