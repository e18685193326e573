//! Floor 5: the public client library.
//!
//! A [`Client`] keeps the shard map, sends every request to the node that leads its key's shard over one
//! stream a node, and retries what failed until the call's deadline, so that a write takes effect once
//! (rule R8). It never claims more than it knows: where the fate of a write can't be learnt, the error's kind
//! is [`Undetermined`](crate::ErrorKind::Undetermined).
//!
//! ```no_run
//! # async fn example() -> kvorum::Result<()> {
//! use kvorum::Client;
//! use kvorum::client::Expect;
//!
//! let client = Client::connect(["127.0.0.1:7400"]).await?;
//! client.put("colour", "blue").await?;
//! let record = client.get("colour").await?.expect("just written");
//! assert_eq!(record.value, "blue");
//! client.compare_and_swap("colour", Expect::Version(record.version), Some("red".into())).await?;
//!
//! // Over any keys and shards: as a whole or not at all, and again where others were in the way.
//! let moved = client.transact(|txn| async move {
//!     let colour = txn.get("colour").await?;
//!     txn.delete("colour")?;
//!     txn.put("old colour", colour.map_or_else(Default::default, |record| record.value))
//! });
//! println!("committed at {}", moved.await?.commit_ts);
//! # Ok(())
//! # }
//! ```

mod balance;
mod batch;
mod bounded;
mod builder;
mod calls;
mod changes;
mod forward;
mod index;
mod link;
mod map;
mod project;
mod reads;
mod replicas;
mod request;
mod retry;
mod router;
mod saga;
mod scan;
mod seen;
mod session;
mod snapshot;
mod transact;
mod typed;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

pub use crate::changelog::{Cursor, CursorState};
pub use crate::types::{
    BatchResult, Before, Change, Changes, Conflict, ConflictReason, Expect, ReadAt, ReadLevel, Record,
    ReplicaRole, Served, Timestamp,
};
pub use balance::Policy;
pub use batch::{Batch, BatchOutcome};
pub use bounded::Bounded;
pub use builder::Builder;
pub use calls::{Added, Deleted, Swap, Written};
pub use changes::{ChangeStream, Consumer, ConsumerStatus, Event, FollowOptions, Followed, Since};
pub use index::{
    DeadLetter, IndexProgress, IndexQuery, IndexRows, IndexSpec, IndexStatus, QueryItem, QueryPage,
};
pub use link::{Dialer, Link, LinkError};
pub use project::{Project, Projection, ProjectionStatus, RunningProjection, clear_prefix};
pub use reads::{Got, Values};
pub use replicas::HedgeAfter;
pub use saga::measures;
pub use saga::{
    SagaDefinition, SagaFilter, SagaList, SagaQueue, SagaRecord, SagaSchedule, SagaStart, SagaStarted,
    SagaTask, SagaTasks, SagaView, SagaWorker, Task, WorkerStats,
};
pub use scan::{Row, Scan, ScanOptions};
pub use session::GrpcDialer;
pub use snapshot::Snapshot;
pub use transact::{Committed, Priority, Transaction, Txn, TxnScan, TypedTxn};
pub use typed::{Typed, TypedRecord};

use crate::rpc::v1;
use crate::types::{Error, NodeId, Result, limits};
use map::MapCache;
use replicas::Replicas;
use seen::Seen;

/// A client of one cluster. Cheap to clone; all clones share the map, the connections and what was seen.
///
/// Every call ends by its deadline: 10 s after it began, unless [`with_deadline`](Client::with_deadline) or
/// the builder says otherwise. Needs a tokio runtime.
#[derive(Clone)]
pub struct Client {
    shared: Arc<Shared>,
    deadline: Deadline,
    policy: Policy,
}

/// What all clones of a client share.
struct Shared {
    map: MapCache,
    seen: Seen,
    /// What is known of the replicas that are read at.
    replicas: Replicas,
    /// Which version of each index answers.
    indexes: index::Known,
    /// The zone that the client is in; empty where it did not say.
    zone: String,
    /// The node that is asked first, whatever the policy.
    prefer: Option<NodeId>,
}

/// When a call has to have ended.
#[derive(Clone, Copy, Debug)]
enum Deadline {
    After(Duration),
    At(Instant),
}

impl Deadline {
    /// The moment for a call that begins now; `Unavailable` where it is past.
    fn until(self) -> Result<Instant> {
        let now = Instant::now();
        let longest = now + Duration::from_millis(limits::MAX_DEADLINE_MS);
        let until = match self {
            Self::After(wait) => now.checked_add(wait).unwrap_or(longest),
            Self::At(moment) => moment,
        };
        if until <= now {
            return Err(Error::unavailable(
                "the deadline was past before the call began: nothing was sent; give the call more time",
            ));
        }
        Ok(until.min(longest))
    }
}

impl Client {
    /// Connects to the cluster that the nodes at `endpoints` (`host:port`) belong to. One that answers is
    /// enough; the others come from the map. Tries until the default deadline.
    ///
    /// # Errors
    /// `Invalid` for a malformed endpoint, `Unavailable` where no node answers or the nodes belong to no
    /// cluster yet.
    pub async fn connect<E: Into<String>>(endpoints: impl IntoIterator<Item = E>) -> Result<Self> {
        Self::builder().endpoints(endpoints).connect().await
    }

    /// A client with options.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// A client over another transport than gRPC, as the embedded store uses. `addr` is what the dialer
    /// understands as the address of a first node.
    pub async fn with_dialer(dialer: Arc<dyn Dialer>, addr: impl Into<String>) -> Result<Self> {
        Self::builder().dialer(dialer).endpoints([addr]).connect().await
    }

    /// The same client, whose calls end `deadline` after they began. More than five minutes is cut to that; a
    /// zero deadline fails every call before anything is sent.
    pub fn with_deadline(&self, deadline: Duration) -> Self {
        Self { deadline: Deadline::After(deadline), ..self.clone() }
    }

    /// The same client, whose calls all end at `moment`. One that is past fails every call before anything
    /// is sent.
    pub fn with_deadline_at(&self, moment: std::time::Instant) -> Self {
        Self { deadline: Deadline::At(moment.into()), ..self.clone() }
    }

    /// The same client, whose reads go to the replicas that this policy chooses. What a read promises does not depend
    /// on it.
    pub fn with_read_policy(&self, policy: Policy) -> Self {
        Self { policy, ..self.clone() }
    }

    /// The cluster's id, 32 hexadecimal digits.
    pub fn cluster_id(&self) -> String {
        self.shared.map.cluster_id()
    }

    /// Asks the nodes for the shard map now, and routes by it from here on.
    pub async fn map(&self) -> Result<v1::GetMapReply> {
        let until = self.deadline.until()?;
        let map = self.shared.map.fetch(until).await?;
        self.shared.seen.note(map.seen_ts);
        Ok(map)
    }

    /// Asks the node at `addr` what it is and does.
    pub async fn status(&self, addr: &str) -> Result<v1::GetStatusReply> {
        let until = self.deadline.until()?;
        match tokio::time::timeout_at(until, self.shared.map.dialer().status(addr)).await {
            Ok(reply) => reply,
            Err(_) => {
                Err(Error::unavailable(format!("the node at {addr} did not answer within the deadline")))
            }
        }
    }

    /// Asks every node of the map what it is and does: the node as the map has it, and its answer. A node
    /// that can't be reached is an error in its place, not of the call.
    pub async fn statuses(&self) -> Result<Vec<(v1::Node, Result<v1::GetStatusReply>)>> {
        let nodes = self.map().await?.nodes;
        let asked = nodes.into_iter().map(|node| async move {
            let status = self.status(&node.grpc_addr).await;
            (node, status)
        });
        Ok(futures::future::join_all(asked).await)
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("cluster", &self.cluster_id())
            .field("deadline", &self.deadline)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod fake;
#[cfg(test)]
mod replica_tests;
#[cfg(test)]
mod tests;
