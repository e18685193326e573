//! The gRPC services of a node: thin translations to what the node does.

mod changelog;
mod cluster;
mod index;
mod kv;
mod peer;
mod saga;
mod session;

pub use changelog::ChangelogService;
pub use cluster::{ClusterService, status_of};
pub use index::IndexService;
pub use kv::KvService;
pub use peer::PeerService;
pub use saga::SagaService;
