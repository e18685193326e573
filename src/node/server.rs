//! A running node: its store, its core, its gRPC port.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tonic::transport::Server;
use tonic_health::ServingStatus;

use super::NodeConfig;
use super::connections::{self, FileBudget};
use super::consumer_lag;
use super::core::Core;
use super::identity;
use super::services::{
    ChangelogService, ClusterService, IndexService, KvService, PeerService, SagaService, status_of,
};
use crate::client::Client;
use crate::engine::{RocksEngine, RocksOptions, SharedEngine};
use crate::rpc::internal::v1::node_server::NodeServer;
use crate::rpc::v1::changelog_server::{self, ChangelogServer};
use crate::rpc::v1::cluster_server::ClusterServer;
use crate::rpc::v1::index_server::{self, IndexServer};
use crate::rpc::v1::kv_server::{self, KvServer};
use crate::rpc::v1::saga_server::{self, SagaServer};
use crate::rpc::{DESCRIPTORS, v1};
use crate::types::{Error, NodeId, NodeRecord, Result, limits};

/// The largest message between nodes: a frame with a full batch, and room for more.
const MAX_PEER_MESSAGE_BYTES: usize = 64 * 1024 * 1024;
/// How long open calls may go on once the node stops.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);
/// How often the health service looks at the node.
const HEALTH_INTERVAL: Duration = Duration::from_millis(500);
/// HTTP/2 streams of one connection at once.
const MAX_STREAMS: u32 = 1024;

/// A running node. Dropped without [`shutdown`](Node::shutdown), it stops in the background, and calls are
/// cut off; nothing acknowledged is lost.
pub struct Node {
    core: Arc<Core>,
    addr: SocketAddr,
    server: Option<JoinHandle<Result<()>>>,
}

impl Node {
    /// Opens the data directory, listens, and starts what the node is: a member of its cluster, a node that
    /// waits for one (with `join` addresses), or a cluster of its own.
    ///
    /// # Errors
    ///
    /// `Corrupt` where the data directory is damaged, half removed or of an unknown format; `Invalid` for a
    /// bad address; `Unavailable` where another process has the directory open or the port is taken.
    pub async fn start(config: NodeConfig) -> Result<Self> {
        let listener =
            TcpListener::bind(&config.listen).await.map_err(|error| listen_error(&config.listen, &error))?;
        let addr = listener.local_addr().map_err(|error| listen_error(&config.listen, &error))?;
        let advertised = advertised(config.advertise.as_deref(), addr)?;
        let files = FileBudget::take();
        let core = open(config, advertised, files).await?;
        core.start().await?;
        let server = tokio::spawn(serve(core.clone(), listener, files.connections));
        Ok(Self { core, addr, server: Some(server) })
    }

    /// The gRPC address it listens on.
    pub fn grpc_addr(&self) -> SocketAddr {
        self.addr
    }

    /// The gRPC address that others reach it at, as `host:port`.
    pub fn advertised_addr(&self) -> String {
        self.core.record().grpc_addr
    }

    /// The node's id; `None` while it waits for a cluster.
    pub fn id(&self) -> Option<NodeId> {
        self.core.member().ok().map(|member| member.record().id)
    }

    /// What it is and does.
    pub fn status(&self) -> v1::GetStatusReply {
        status_of(&self.core)
    }

    /// A handle that tells what the node is and does, for as long as it runs.
    pub fn status_source(&self) -> impl Fn() -> v1::GetStatusReply + Send + Sync + 'static {
        let core = self.core.clone();
        move || status_of(&core)
    }

    /// A client inside the process.
    ///
    /// # Errors
    ///
    /// `Unavailable` while the node waits for a cluster.
    pub async fn client(&self) -> Result<Client> {
        self.core.client().await
    }

    /// Waits until the node can't go on, and says why: its disk has refused a write, for instance because it is full.
    /// What it holds in memory may be more than what the disk holds then, so it takes part in nothing any more.
    /// [Shut it down](Self::shutdown), and start it again on the same data directory: nothing acknowledged is lost.
    ///
    /// Waits for ever while the disk takes what is written.
    pub async fn failed(&self) -> Error {
        self.core.disk_failed().await
    }

    /// Stops taking requests, lets open ones end for a few seconds, stops the groups, and writes what is
    /// buffered to disk.
    ///
    /// # Errors
    ///
    /// What the store says while it is flushed. Nothing acknowledged is lost then either.
    pub async fn shutdown(mut self) -> Result<()> {
        let stopped = self.core.shutdown().await;
        if let Some(server) = self.server.take() {
            match tokio::time::timeout(DRAIN_TIMEOUT, server).await {
                Ok(Ok(served)) => served?,
                Ok(Err(error)) => tracing::error!(%error, "the gRPC server did not end well"),
                Err(_) => tracing::warn!("open calls were cut off at shutdown"),
            }
        }
        stopped
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.core.stop_in_background();
        if let Some(server) = &self.server {
            server.abort();
        }
    }
}

/// Opens the data directory of a node that others reach at `grpc_addr`.
pub(super) async fn open(config: NodeConfig, grpc_addr: String, files: FileBudget) -> Result<Arc<Core>> {
    let identity = identity::open(&config.data_dir)?;
    let store_dir = identity::store_dir(&config.data_dir);
    let options = RocksOptions {
        block_cache_bytes: config.block_cache_bytes,
        max_open_files: files.store_files,
        ..RocksOptions::default()
    };
    let engine = tokio::task::spawn_blocking(move || RocksEngine::open(&store_dir, &options))
        .await
        .map_err(|error| Error::corrupt(format!("opening the store was broken off: {error}")))??;
    let store_open = engine.open_mark();
    let engine: SharedEngine = Arc::new(engine);
    let own = NodeRecord {
        id: NodeId(0),
        store: identity.store_id,
        grpc_addr,
        http_addr: config.http_addr.clone(),
        zone: config.zone.clone(),
        version: env!("CARGO_PKG_VERSION").to_string(),
    };
    Ok(Core::new(config, engine, store_open, identity, own))
}

async fn serve(core: Arc<Core>, listener: TcpListener, most_connections: usize) -> Result<()> {
    let (health, health_service) = tonic_health::server::health_reporter();
    tokio::spawn(report_health(core.clone(), health));
    tokio::spawn(consumer_lag::run(Arc::downgrade(&core), core.stopping().clone()));
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()
        .map_err(|error| Error::corrupt(format!("the compiled-in protos can't be served: {error}")))?;
    let kv = KvServer::new(KvService(core.clone()))
        .max_decoding_message_size(limits::MAX_MESSAGE_BYTES)
        .max_encoding_message_size(limits::MAX_MESSAGE_BYTES);
    let changelog = ChangelogServer::new(ChangelogService::new(core.clone()))
        .max_decoding_message_size(limits::MAX_MESSAGE_BYTES)
        .max_encoding_message_size(limits::MAX_MESSAGE_BYTES);
    let index = IndexServer::new(IndexService(core.clone()))
        .max_decoding_message_size(limits::MAX_MESSAGE_BYTES)
        .max_encoding_message_size(limits::MAX_MESSAGE_BYTES);
    let saga = SagaServer::new(SagaService(core.clone()))
        .max_decoding_message_size(limits::MAX_MESSAGE_BYTES)
        .max_encoding_message_size(limits::MAX_MESSAGE_BYTES);
    let cluster =
        ClusterServer::new(ClusterService(core.clone())).max_decoding_message_size(limits::MAX_MESSAGE_BYTES);
    let peer = NodeServer::new(PeerService(core.clone()))
        .max_decoding_message_size(MAX_PEER_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_PEER_MESSAGE_BYTES);
    let incoming = connections::incoming(listener, most_connections);
    let stopping = core.stopping().clone();
    Server::builder()
        .max_concurrent_streams(MAX_STREAMS)
        .http2_keepalive_interval(Some(Duration::from_secs(10)))
        .http2_keepalive_timeout(Some(Duration::from_secs(10)))
        .initial_stream_window_size(1024 * 1024)
        .initial_connection_window_size(4 * 1024 * 1024)
        .add_service(health_service)
        .add_service(reflection)
        .add_service(kv)
        .add_service(changelog)
        .add_service(index)
        .add_service(saga)
        .add_service(cluster)
        .add_service(peer)
        .serve_with_incoming_shutdown(incoming, async move { stopping.cancelled().await })
        .await
        .map_err(|error| Error::unavailable(format!("the gRPC server ended: {error}")))
}

/// Serving once every local group knows its leader.
async fn report_health(core: Arc<Core>, health: tonic_health::server::HealthReporter) {
    let mut tick = tokio::time::interval(HEALTH_INTERVAL);
    loop {
        tokio::select! {
            () = core.stopping().cancelled() => break,
            _ = tick.tick() => {}
        }
        let serving = status_of(&core).state == "serving";
        let status = if serving { ServingStatus::Serving } else { ServingStatus::NotServing };
        health.set_service_status("", status).await;
        health.set_service_status(kv_server::SERVICE_NAME, status).await;
        health.set_service_status(changelog_server::SERVICE_NAME, status).await;
        health.set_service_status(index_server::SERVICE_NAME, status).await;
        health.set_service_status(saga_server::SERVICE_NAME, status).await;
    }
    health.set_service_status("", ServingStatus::NotServing).await;
}

fn listen_error(listen: &str, error: &std::io::Error) -> Error {
    match error.kind() {
        std::io::ErrorKind::InvalidInput => {
            Error::invalid(format!("{listen:?} is not an address to listen on: give host:port ({error})"))
        }
        _ => Error::unavailable(format!(
            "can't listen on {listen}: {error}; choose another address with --listen, or end what uses it"
        )),
    }
}

/// What others are told to reach this node at.
fn advertised(wanted: Option<&str>, listening: SocketAddr) -> Result<String> {
    match wanted {
        Some(addr) => match addr.rsplit_once(':') {
            // Port 0 stands for the port that listening took.
            Some((host, "0")) if !host.is_empty() => Ok(format!("{host}:{}", listening.port())),
            Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok() => Ok(addr.to_string()),
            _ => Err(Error::invalid(format!("{addr:?} is not an address to advertise: give host:port"))),
        },
        None if listening.ip().is_unspecified() => Err(Error::invalid(format!(
            "listening on {listening}, which is every address: say with --advertise at which one others reach this \
             node"
        ))),
        None => Ok(listening.to_string()),
    }
}
