//! Floor 6: a node. Everything wired together: sequencer, oracle, reads, forming, services, shutdown.
//!
//! The machines below decide; this floor executes: it holds the clocks, the tasks and the sockets.

mod barrier;
mod calls;
mod cluster_map;
mod config;
mod connections;
mod consumer_lag;
mod consumers;
mod core;
mod cuts;
mod dispatch;
mod embedded;
mod failpoint;
mod forming;
mod gc;
mod handover;
mod identity;
mod index;
mod link;
mod lock_queue;
mod member;
mod oracle_client;
mod oracle_server;
mod peer_client;
mod pulse;
mod reads;
mod registrar;
mod replica;
mod rows;
mod saga;
mod sequencer;
mod server;
mod services;
mod system_records;
mod timestamps;
mod txn;

pub use config::{ChangelogRetention, NodeConfig};
pub use embedded::Embedded;
pub use server::Node;
