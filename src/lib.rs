//! kvorum: a Raft-replicated, sharded, strictly serializable key-value store.
//!
//! Three ways in:
//!
//! - [`Client`] talks to a cluster (feature `client`; no RocksDB, no openraft).
//! - [`Embedded`] is a complete store inside your own process, behind the same client.
//! - the `kvorum` command starts nodes, forms clusters and reads and writes data from a shell.
//!
//! The modules stand on floors and import downward only; `docs/ARCHITECTURE.md` has the table, and
//! `tests/layers.rs` keeps it.

#[doc(hidden)]
pub mod bugs;
pub mod codec;
pub mod rpc;
pub mod types;

#[cfg(feature = "client")]
pub mod changelog;
#[cfg(feature = "server")]
pub mod cli;
#[cfg(feature = "client")]
pub mod client;
#[cfg(feature = "server")]
pub mod engine;
#[cfg(feature = "server")]
pub mod gateway;
#[cfg(feature = "index")]
pub mod index;
#[cfg(feature = "server")]
pub mod mvcc;
#[cfg(feature = "server")]
pub mod node;
#[cfg(feature = "server")]
pub mod oracle;
#[cfg(feature = "server")]
pub mod raft;
#[cfg(feature = "client")]
pub mod saga;
#[cfg(feature = "server")]
pub mod shard;
#[cfg(feature = "server")]
pub mod testing;
#[cfg(feature = "server")]
pub mod txn;

#[cfg(feature = "client")]
pub use client::Client;
#[cfg(feature = "server")]
pub use node::Embedded;
pub use types::{Error, ErrorKind, Result};
