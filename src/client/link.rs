//! How a client reaches nodes: over gRPC, or inside the same process.

use std::sync::Arc;

use futures::future::BoxFuture;
use tokio::time::Instant;

use crate::rpc::v1;
use crate::types::Result;

/// Why a call has no reply. What matters to the caller is whether the request may have taken effect.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum LinkError {
    /// The request certainly never reached the node: it can be sent again as if nothing had happened.
    #[error("not sent: {0}")]
    NotSent(String),
    /// The request may have reached the node: it may or may not have taken effect.
    #[error("no reply: {0}")]
    Unknown(String),
}

/// A way to one node, on which many calls are under way at once.
pub trait Link: Send + Sync + 'static {
    /// Sends a request and waits for its reply, no longer than `deadline`. A reply that is an error is
    /// `Ok(Reply::Error(..))`. Where there is none, [`LinkError`] says whether the request was sent; in doubt it
    /// was. The request's own header says who asks and how long the node may take.
    ///
    /// The future may be dropped at any time; the request may take effect nevertheless.
    fn call(
        &self,
        request: v1::session_request::Request,
        deadline: Instant,
    ) -> BoxFuture<'static, Result<v1::session_reply::Reply, LinkError>>;
}

/// Makes links, and asks nodes about the cluster. The default one speaks gRPC; a program that embeds the
/// store has one that stays in the process.
pub trait Dialer: Send + Sync + 'static {
    /// A link to the node at `addr` (`host:port`). Does not wait: the link connects when it is called, and
    /// again after it broke. The client keeps links and asks for each address once.
    fn link(&self, addr: &str) -> Arc<dyn Link>;

    /// Asks the node at `addr` for its shard map. May be dropped at any time.
    fn map(&self, addr: &str) -> BoxFuture<'static, Result<v1::GetMapReply>>;

    /// Asks the node at `addr` for its status. May be dropped at any time.
    fn status(&self, addr: &str) -> BoxFuture<'static, Result<v1::GetStatusReply>>;
}
