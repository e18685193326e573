//! Connections: calls, and what is refused.

use std::time::Duration;

use futures::{FutureExt, StreamExt};
use openraft::RaftNetworkFactory;
use openraft::errors::RPCError;
use openraft::impls::EmptyNode;
use openraft::network::{NetStreamAppend, RPCOption};
use openraft::raft::AppendEntriesRequest;

use super::*;
use crate::raft::network::NetworkFactory;
use crate::rpc::internal::v1::node_client::NodeClient;
use crate::rpc::internal::v1::{Frame, Frames, Hello, SnapshotChunk, SnapshotHead};
use crate::types::{Error, ErrorKind, Result as KvResult};

const ECHO: u32 = 1;
const REFUSE: u32 = 2;
const NEVER: u32 = 3;

pub(super) async fn answer_call(from: NodeId, kind: u32, body: Bytes) -> KvResult<Bytes> {
    match kind {
        ECHO => Ok([format!("{from} said ").as_bytes(), &body].concat().into()),
        REFUSE => Err(Error::new(ErrorKind::Conflict, "refused")),
        _ => std::future::pending().await,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_reach_other_nodes_and_oneself() {
    let mut cluster = Cluster::start(2, Timing::fast()).await;
    let limit = Duration::from_secs(20);
    let host = Arc::clone(cluster.host(node(1)));
    eventually("a connection", async || host.is_connected(node(2))).await;
    for to in [node(1), node(2)] {
        let answer = host.call(to, ECHO, Bytes::from_static(b"hi"), limit).await.expect("answers");
        assert_eq!(answer, "1 said hi");
        let refused = host.call(to, REFUSE, Bytes::new(), limit).await.expect_err("refused");
        assert_eq!((refused.kind, refused.message.as_str()), (ErrorKind::Conflict, "refused"));
        let late =
            host.call(to, NEVER, Bytes::new(), Duration::from_millis(50)).await.expect_err("no answer");
        assert_eq!(late.kind, ErrorKind::Unavailable, "{late}");
    }
    let large = Bytes::from(vec![7; 5 * 1024 * 1024]);
    let answer = host.call(node(2), ECHO, large.clone(), limit).await.expect("answers");
    assert_eq!(answer.len(), large.len() + "1 said ".len());
    let nobody = host.call(node(9), ECHO, Bytes::new(), limit).await.expect_err("unknown");
    assert_eq!(nobody.kind, ErrorKind::Unavailable);
    assert!(nobody.message.contains("no address is known"), "{nobody}");
    cluster.stop_node(node(2)).await;
    eventually("the connection to be lost", async || !host.is_connected(node(2))).await;
    let gone = host.call(node(2), ECHO, Bytes::new(), limit).await.expect_err("gone");
    assert_eq!(gone.kind, ErrorKind::Unavailable, "{gone}");
    cluster.start_node(node(2)).await;
    eventually("a connection again", async || host.is_connected(node(2))).await;
    host.call(node(2), ECHO, Bytes::new(), limit).await.expect("answers again");
    cluster.stop().await;
}

/// openraft waits between its attempts in the stream of its requests, so none may fail before that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_down_is_tried_only_once_a_request_is_asked_for() {
    let cluster = Cluster::start(1, Timing::fast()).await;
    cluster.create_group().await;
    let (group, _) = cluster.leader(None).await;
    let env = group.env();
    let (transport, courier) = (Arc::clone(&env.transport), Arc::clone(&env.courier));
    let nobody = node(9);
    let mut factory = NetworkFactory { transport, courier, group: SHARD, own: node(1) };
    let mut sender = factory.new_client(nobody, &EmptyNode {}).await;
    let (requests, input) = tokio::sync::mpsc::unbounded_channel();
    let input = tokio_stream::wrappers::UnboundedReceiverStream::new(input);
    let option = RPCOption::new(Duration::from_secs(1));
    let mut answers = sender.stream_append(input, option).await.expect("nothing was asked for yet");
    assert!(answers.next().now_or_never().is_none(), "an answer to nothing");
    let vote = group.core().metrics().vote;
    let request = AppendEntriesRequest { vote, prev_log_id: None, entries: Vec::new(), leader_commit: None };
    assert!(requests.send(request).is_ok(), "the stream is there");
    let answer = answers.next().await.expect("an answer");
    assert!(matches!(answer, Err(RPCError::Unreachable(_))), "{answer:?}");
    assert!(answers.next().await.is_none(), "the stream ends with the first error");
    drop(answers);
    cluster.stop().await;
}

async fn client(cluster: &Cluster, to: NodeId) -> NodeClient<tonic::transport::Channel> {
    let address = format!("http://{}", cluster.nodes[&to].record.grpc_addr);
    NodeClient::connect(address).await.expect("connects")
}

fn hello() -> Hello {
    Hello {
        protocol_version: 1,
        cluster_id: CLUSTER.to_string(),
        from_node: 2,
        from_store: record(node(2), "").store.to_string(),
        to_node: 1,
        grpc_addr: "127.0.0.1:1".to_string(),
        election_max_ms: Timing::fast().election_max.as_millis() as u64,
        ..Hello::default()
    }
}

/// Sends messages, and returns what is answered up to the error that ends the connection.
async fn talk(cluster: &Cluster, messages: Vec<Frames>) -> (Vec<Frames>, Status) {
    let mut client = client(cluster, node(1)).await;
    // Stays open: it is the other side that ends it.
    let messages = futures::stream::iter(messages);
    let open = futures::StreamExt::chain(messages, futures::stream::pending());
    let mut answers = match client.channel(open).await {
        Ok(answers) => answers.into_inner(),
        Err(status) => return (Vec::new(), status),
    };
    let mut answered = Vec::new();
    loop {
        match tokio::time::timeout(Duration::from_secs(20), answers.message()).await.expect("answers") {
            Ok(Some(message)) => answered.push(message),
            Ok(None) => panic!("ended without an error after {answered:?}"),
            Err(status) => return (answered, status),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_are_refused_with_a_clear_error() {
    let cluster = Cluster::start(2, Timing::fast()).await;
    eventually("node 2 to be known", async || cluster.host(node(1)).peers().get(node(2)).is_some()).await;
    let other_cluster = ClusterId(78).to_string();
    let cases = [
        (Hello { cluster_id: other_cluster, ..hello() }, tonic::Code::PermissionDenied, "belongs to cluster"),
        (Hello { cluster_id: "x".into(), ..hello() }, tonic::Code::FailedPrecondition, "not a cluster id"),
        (
            Hello { from_store: StoreId(9).to_string(), ..hello() },
            tonic::Code::PermissionDenied,
            "it was wiped",
        ),
        (Hello { from_node: 1, ..hello() }, tonic::Code::PermissionDenied, "this node's own"),
        (Hello { protocol_version: 9, ..hello() }, tonic::Code::FailedPrecondition, "protocol version 9"),
        (Hello { to_node: 5, ..hello() }, tonic::Code::FailedPrecondition, "means node 5"),
        (
            Hello { election_max_ms: 999, ..hello() },
            tonic::Code::FailedPrecondition,
            "election_max of 999 ms",
        ),
    ];
    let known = cluster.host(node(1)).peers().get(node(2));
    for (hello, code, text) in cases {
        let (answered, status) = talk(&cluster, vec![Frames { hello: Some(hello), frames: vec![] }]).await;
        assert_eq!((answered.len(), status.code()), (0, code), "{status:?}");
        assert!(status.message().contains(text), "{status:?}");
    }
    let (_, status) = talk(&cluster, vec![Frames::default()]).await;
    assert_eq!(status.code(), tonic::Code::InvalidArgument, "{status:?}");
    assert_eq!(cluster.host(node(1)).peers().get(node(2)), known, "a stranger changes nothing");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn malformed_frames_end_the_connection_and_nothing_else() {
    let cluster = Cluster::start(1, Timing::fast()).await;
    cluster.create_group().await;
    let (group, token) = cluster.leader(None).await;
    let frame = |kind, body: &'static [u8]| Frame {
        call: 7,
        kind,
        group: SHARD.0,
        body: Bytes::from_static(body),
        error: None,
    };
    // A body that claims 2^63 - 1 bytes: nothing may be allocated for it.
    let huge: &[u8] = &[1, 253, 255, 255, 255, 255, 255, 255, 255, 127];
    let cases: Vec<(Vec<Frame>, &str)> = vec![
        (vec![frame(99, b"")], "kind 99"),
        (vec![frame(1, b"")], "is empty"),
        (vec![frame(1, b"\x01garbage")], "append request"),
        (vec![frame(6, b"\x09")], "format version 9"),
        (vec![frame(7, huge)], "vote request"),
        (vec![frame(8, b"\x01")], "transfer request"),
        (vec![frame(2, b""), frame(2, b"")], "opened twice"),
        (vec![frame(2, b""), frame(3, b"\x01")], "append request"),
        (vec![frame(4, b"")], "asking side"),
        (vec![frame(10, b"")], "asking side"),
        (vec![Frame { group: u64::MAX, ..frame(9, b"") }], "no kind of a call"),
    ];
    for (frames, text) in cases {
        let hello = Frames { hello: Some(hello()), frames: vec![] };
        let (answered, status) = talk(&cluster, vec![hello, Frames { hello: None, frames }]).await;
        assert!(answered.first().is_some_and(|first| first.hello.is_some()), "{answered:?}");
        assert_eq!(status.code(), tonic::Code::InvalidArgument, "{text}: {status:?}");
        assert!(status.message().contains(text), "{text}: {status:?}");
    }
    submit_all(&group, token, 1..11).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frames_for_a_group_that_is_not_here_are_refused_and_the_connection_stays() {
    let cluster = Cluster::start(2, Timing::fast()).await;
    let host = cluster.host(node(1));
    eventually("a connection", async || host.is_connected(node(2))).await;
    let (asked, waiting) = tokio::sync::mpsc::channel(8);
    asked.send(Frames { hello: Some(hello()), frames: vec![] }).await.expect("open");
    let mut client = client(&cluster, node(1)).await;
    let requests = tokio_stream::wrappers::ReceiverStream::new(waiting);
    let mut replies = client.channel(requests).await.expect("accepted").into_inner();
    replies.message().await.expect("lives").expect("Hello");
    for call in [3, 4] {
        let open = Frame { call, kind: 2, group: 999, ..Frame::default() };
        asked.send(Frames { hello: None, frames: vec![open] }).await.expect("open");
        let reply = replies.message().await.expect("lives").expect("a reply");
        assert_eq!((reply.frames[0].call, reply.frames[0].kind), (call, 4));
        let error = reply.frames[0].error.clone().expect("refused");
        assert!(error.message.contains("no replica of shard 999"), "{error:?}");
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_that_is_not_whole_is_refused() {
    let cluster = Cluster::start(1, Timing::fast()).await;
    cluster.create_group().await;
    let (group, token) = cluster.leader(None).await;
    submit_all(&group, token, 1..11).await;
    let vote =
        openraft::Vote::<openraft::type_config::alias::LeaderIdOf<crate::raft::TypeConfig>>::new(1, node(2));
    let meta = codec::encode(group.replica().applied().as_ref());
    let head = SnapshotHead {
        cluster_id: CLUSTER.to_string(),
        from_node: 2,
        to_node: 1,
        group: SHARD.0,
        vote: codec::encode(&vote).into(),
        meta: meta.into(),
    };
    let with_head = |head: SnapshotHead| SnapshotChunk { head: Some(head), ..SnapshotChunk::default() };
    let end = SnapshotChunk { end_checksum: Some(1), ..SnapshotChunk::default() };
    let cases = [
        (vec![SnapshotChunk::default()], "must carry its head"),
        (
            vec![with_head(SnapshotHead { cluster_id: ClusterId(1).to_string(), ..head.clone() })],
            "of cluster",
        ),
        (vec![with_head(SnapshotHead { to_node: 2, ..head.clone() })], "is for node 2"),
        (vec![with_head(SnapshotHead { group: 999, ..head.clone() })], "no replica of shard 999"),
        (vec![with_head(SnapshotHead { vote: Bytes::new(), ..head.clone() })], "vote of a snapshot"),
        (vec![with_head(SnapshotHead { meta: Bytes::from_static(b"\x01x"), ..head.clone() })], "head of a"),
        (vec![with_head(head.clone())], "ended before its end"),
        (vec![with_head(head.clone()), end], "checksum"),
    ];
    let mut client = client(&cluster, node(1)).await;
    for (chunks, text) in cases {
        let status = client.snapshot(futures::stream::iter(chunks)).await.expect_err(text);
        assert!(status.message().contains(text), "{text}: {status:?}");
    }
    assert_eq!(group.state().closed, Timestamp(10));
    submit_all(&group, token, 11..21).await;
    cluster.stop().await;
}
