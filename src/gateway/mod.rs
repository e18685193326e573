//! Floor 7: HTTP: is the process alive, can it serve, its metrics, its state.
//!
//! | path | answer |
//! | --- | --- |
//! | `/healthz` | 200 while the process is alive |
//! | `/readyz` | 200 where this node can serve: it is a member, and every shard here knows a leader; else 503 and the reasons |
//! | `/metrics` | Prometheus text |
//! | `/status` | what this node is and does, as JSON |

mod gauges;
mod status;

use std::future::Future;
use std::sync::Arc;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use futures::future::BoxFuture;
use metrics_exporter_prometheus::PrometheusHandle;
use serde_json::json;
use tokio::net::TcpListener;

use crate::rpc::v1::GetStatusReply;
use crate::{Error, Result};

pub use status::{not_ready_reasons, status_json};

/// Where the gateway learns about its node. The command line wires it to the node, which knows nothing of HTTP.
pub trait StatusSource: Send + Sync + 'static {
    /// What the node is and does now; `Unavailable` while it starts.
    fn status(&self) -> BoxFuture<'_, Result<GetStatusReply>>;
}

#[derive(Clone)]
struct Gateway {
    source: Arc<dyn StatusSource>,
    metrics: PrometheusHandle,
}

/// Serves HTTP on `listener` until `shutdown` is done, and then until the requests under way are answered.
///
/// # Errors
/// `Unavailable` where the listener fails.
pub async fn serve(
    listener: TcpListener,
    source: Arc<dyn StatusSource>,
    metrics: PrometheusHandle,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> Result<()> {
    axum::serve(listener, router(source, metrics))
        .with_graceful_shutdown(shutdown)
        .await
        .map_err(|error| Error::unavailable(format!("the HTTP listener failed: {error}")))
}

fn router(source: Arc<dyn StatusSource>, metrics: PrometheusHandle) -> Router {
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics_text))
        .route("/status", get(status_page))
        .with_state(Gateway { source, metrics })
}

async fn readyz(State(gateway): State<Gateway>) -> Response {
    let reasons = match gateway.source.status().await {
        Ok(status) => not_ready_reasons(&status),
        Err(error) => vec![error.message],
    };
    if reasons.is_empty() {
        return (StatusCode::OK, Json(json!({ "ready": true }))).into_response();
    }
    (StatusCode::SERVICE_UNAVAILABLE, Json(json!({ "ready": false, "reasons": reasons }))).into_response()
}

async fn metrics_text(State(gateway): State<Gateway>) -> Response {
    // While the node starts there is no status, and the other metrics stand alone.
    if let Ok(status) = gateway.source.status().await {
        gauges::set(&status);
    }
    let content_type = [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
    (content_type, gateway.metrics.render()).into_response()
}

async fn status_page(State(gateway): State<Gateway>) -> Response {
    match gateway.source.status().await {
        Ok(status) => Json(status_json(&status)).into_response(),
        Err(error) => {
            let body = json!({ "error": { "kind": error.kind.name(), "message": error.message } });
            (StatusCode::SERVICE_UNAVAILABLE, Json(body)).into_response()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rpc::v1::ReplicaStatus;
    use metrics_exporter_prometheus::PrometheusBuilder;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    struct Fixed(Result<GetStatusReply>);

    impl StatusSource for Fixed {
        fn status(&self) -> BoxFuture<'_, Result<GetStatusReply>> {
            Box::pin(async { self.0.clone() })
        }
    }

    /// One request over a real socket: the status line, and the body.
    async fn ask(source: Fixed, path: &str) -> (String, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("an address");
        let metrics = PrometheusBuilder::new().build_recorder().handle();
        let server = tokio::spawn(serve(listener, Arc::new(source), metrics, std::future::pending()));
        let mut socket = tokio::net::TcpStream::connect(address).await.expect("connected");
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        socket.write_all(request.as_bytes()).await.expect("written");
        let mut reply = String::new();
        socket.read_to_string(&mut reply).await.expect("read");
        server.abort();
        let (head, body) = reply.split_once("\r\n\r\n").expect("a head and a body");
        (head.lines().next().unwrap_or_default().to_owned(), body.to_owned())
    }

    fn serving(leader: u64) -> GetStatusReply {
        let replica = ReplicaStatus { role: "follower".to_owned(), leader, ..ReplicaStatus::default() };
        GetStatusReply { state: "serving".to_owned(), replicas: vec![replica], ..GetStatusReply::default() }
    }

    #[tokio::test]
    async fn ready_only_where_every_shard_knows_a_leader() {
        assert!(ask(Fixed(Ok(serving(1))), "/readyz").await.0.contains("200"));
        let (head, body) = ask(Fixed(Ok(serving(0))), "/readyz").await;
        assert!(head.contains("503") && body.contains("no leader"), "{head} {body}");
        let starting = Fixed(Err(Error::unavailable("it starts")));
        let (head, body) = ask(starting, "/readyz").await;
        assert!(head.contains("503") && body.contains("it starts"), "{head} {body}");
    }

    #[tokio::test]
    async fn health_metrics_and_status_answer() {
        assert!(ask(Fixed(Ok(serving(0))), "/healthz").await.0.contains("200"));
        assert!(ask(Fixed(Ok(serving(0))), "/metrics").await.0.contains("200"));
        let (_, body) = ask(Fixed(Ok(serving(3))), "/status").await;
        assert!(body.contains("\"state\":\"serving\"") && body.contains("\"leader\":3"), "{body}");
        assert!(ask(Fixed(Ok(serving(3))), "/nothing").await.0.contains("404"));
    }
}
