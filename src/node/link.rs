//! A client's way to this very node, without a socket, and to the others over gRPC.

use std::sync::{Arc, Weak};

use futures::future::BoxFuture;
use tokio::time::Instant;

use super::core::Core;
use super::services;
use crate::client::{Dialer, GrpcDialer, Link, LinkError};
use crate::rpc::v1;
use crate::types::{Error, Result};

/// Dials the node itself in the process, and any other address over gRPC.
pub struct NodeDialer {
    core: Weak<Core>,
    own_addr: String,
    others: GrpcDialer,
}

impl NodeDialer {
    /// A dialer on a node that the cluster knows under `own_addr`.
    pub fn new(core: Weak<Core>, own_addr: String) -> Self {
        Self { core, own_addr, others: GrpcDialer::default() }
    }
}

fn stopped() -> Error {
    Error::unavailable("the node has stopped")
}

impl Dialer for NodeDialer {
    fn link(&self, addr: &str) -> Arc<dyn Link> {
        if addr == self.own_addr {
            Arc::new(LocalLink { core: self.core.clone() })
        } else {
            self.others.link(addr)
        }
    }

    fn map(&self, addr: &str) -> BoxFuture<'static, Result<v1::GetMapReply>> {
        if addr != self.own_addr {
            return self.others.map(addr);
        }
        let core = self.core.clone();
        Box::pin(async move { core.upgrade().ok_or_else(stopped)?.member()?.map().await })
    }

    fn status(&self, addr: &str) -> BoxFuture<'static, Result<v1::GetStatusReply>> {
        if addr != self.own_addr {
            return self.others.status(addr);
        }
        let core = self.core.clone();
        Box::pin(async move { Ok(services::status_of(&*core.upgrade().ok_or_else(stopped)?)) })
    }
}

struct LocalLink {
    core: Weak<Core>,
}

impl Link for LocalLink {
    fn call(
        &self,
        request: v1::session_request::Request,
        _deadline: Instant,
    ) -> BoxFuture<'static, Result<v1::session_reply::Reply, LinkError>> {
        let core = self.core.clone();
        Box::pin(async move {
            let not_sent = |error: Error| LinkError::NotSent(error.message);
            let member =
                core.upgrade().ok_or_else(stopped).and_then(|core| core.member()).map_err(not_sent)?;
            Ok(member.dispatcher().call(request).await)
        })
    }
}
