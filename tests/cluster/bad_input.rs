//! What comes from outside and is wrong: refused with a clear error, nothing lost, and the node serves on.
//! Each thing is sent as any gRPC language could send it, in a unary call and in a session; what the client
//! library refuses before it sends anything is looked at too.

use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::future::join_all;
use kvorum::client::{Batch, Expect, ScanOptions, Timestamp};
use kvorum::rpc::internal::v1::node_client::NodeClient;
use kvorum::rpc::internal::v1::{Frame, Frames, Hello, SnapshotChunk, SnapshotHead};
use kvorum::rpc::v1;
use kvorum::rpc::v1::session_request::Request;
use kvorum::rpc::v1::step::Step as StepKind;
use kvorum::types::limits::{
    MAX_BATCH_STEPS, MAX_GET_KEYS, MAX_KEY_BYTES, MAX_MESSAGE_BYTES, MAX_VALUE_BYTES,
};
use kvorum::{Client, ErrorKind};
use prost::Message;
use tonic::Code;

use crate::raw::{self, Session, check, refused};
use crate::support::{Cluster, client_of};

const MIB: usize = 1024 * 1024;
/// A timestamp that no oracle has reached.
const FUTURE: u64 = Timestamp::MAX.0 - 1;

fn zeros(length: usize) -> Bytes {
    Bytes::from(vec![b'0'; length])
}

fn put(key: impl Into<Bytes>, value: impl Into<Bytes>) -> v1::PutRequest {
    v1::PutRequest { header: None, key: key.into(), value: value.into() }
}

fn get(key: impl Into<Bytes>) -> v1::GetRequest {
    v1::GetRequest { key: key.into(), ..Default::default() }
}

fn put_step(key: impl Into<Bytes>, value: impl Into<Bytes>) -> v1::Step {
    v1::Step { step: Some(StepKind::Put(v1::PutStep { key: key.into(), value: value.into() })) }
}

fn batch(then: Vec<v1::Step>) -> v1::BatchRequest {
    v1::BatchRequest { then, ..Default::default() }
}

/// How many rows there are, and a checksum over them: to see that nothing has changed.
async fn everything(client: &Client) -> Vec<(Bytes, usize)> {
    let rows = client.scan(ScanOptions::all()).collect_rows().await.expect("scanned");
    rows.into_iter().map(|row| (row.key, row.record.value.len())).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_and_values_past_their_limits_are_refused() {
    use ErrorKind::Invalid;
    let cluster = Cluster::start(1, 8).await;
    let addr = &cluster.nodes[0].grpc;
    let (mut kv, mut session, client) =
        (raw::kv(addr).await, Session::open(addr).await, cluster.client().await);
    let long = zeros(MAX_KEY_BYTES + 1);
    for (what, key, words) in
        [("no key", Bytes::new(), ["empty", "4096"]), ("a long key", long, ["4097", "4096"])]
    {
        refused(what, kv.put(put(key.clone(), "v")).await, Invalid, &words);
        refused(what, kv.get(get(key.clone())).await, Invalid, &words);
        let delete = v1::DeleteRequest { header: None, key: key.clone() };
        refused(what, kv.delete(delete.clone()).await, Invalid, &words);
        let add = v1::AddRequest { header: None, key: key.clone(), delta: 1 };
        refused(what, kv.add(add.clone()).await, Invalid, &words);
        let absent = v1::Expect { expect: Some(v1::expect::Expect::Absent(true)) };
        let cas = v1::CompareAndSwapRequest {
            key: key.clone(),
            expect: Some(absent),
            value: Some("v".into()),
            ..Default::default()
        };
        refused(what, kv.compare_and_swap(cas.clone()).await, Invalid, &words);
        let many = v1::GetManyRequest { keys: vec!["good".into(), key.clone()], ..Default::default() };
        refused(what, kv.get_many(many.clone()).await, Invalid, &words);
        refused(what, kv.batch(batch(vec![put_step(key.clone(), "v")])).await, Invalid, &words);
        for request in [
            Request::Put(put(key.clone(), "v")),
            Request::Get(get(key.clone())),
            Request::Delete(delete),
            Request::Add(add),
            Request::CompareAndSwap(cas),
            Request::GetMany(many),
            Request::Batch(batch(vec![put_step(key.clone(), "v")])),
        ] {
            session.refused(what, request, Invalid, &words).await;
        }
        check(what, &client.put(key, "v").await.expect_err("refused"), Invalid, &words);
    }

    let big = zeros(MAX_VALUE_BYTES + 1);
    let words = ["\"k\"", "1048577", "1048576"];
    refused("a large value", kv.put(put("k", big.clone())).await, Invalid, &words);
    session.refused("a large value", Request::Put(put("k", big.clone())), Invalid, &words).await;
    refused("a large value", kv.batch(batch(vec![put_step("k", big.clone())])).await, Invalid, &words);
    check("a large value", &client.put("k", big).await.expect_err("refused"), Invalid, &words);
    let many = v1::GetManyRequest { keys: vec!["k".into(); MAX_GET_KEYS + 1], ..Default::default() };
    refused("many keys", kv.get_many(many).await, Invalid, &["10001", "10000"]);
    refused("no keys", kv.get_many(v1::GetManyRequest::default()).await, Invalid, &["no keys"]);
    assert_eq!(everything(&client).await, [], "a refused request wrote something");

    // Exactly at the limits.
    let (longest, largest) = (zeros(MAX_KEY_BYTES), zeros(MAX_VALUE_BYTES));
    kv.put(put(longest.clone(), largest.clone())).await.expect("at the limits");
    let got = kv.get(get(longest.clone())).await.expect("got").into_inner().record.expect("held");
    assert_eq!(got.value, largest);
    assert_eq!(everything(&client).await, [(longest, MAX_VALUE_BYTES)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn batches_past_their_limits_are_refused() {
    use ErrorKind::Invalid;
    let cluster = Cluster::start(1, 8).await;
    let addr = &cluster.nodes[0].grpc;
    let (mut kv, mut session, client) =
        (raw::kv(addr).await, Session::open(addr).await, cluster.client().await);
    let steps = |count: usize, bytes: usize| {
        let value = zeros(bytes);
        (0..count).map(|n| put_step(format!("a{n:05}"), value.clone())).collect::<Vec<_>>()
    };
    let too_large = steps(16, MIB);
    let far_apart = vec![put_step("a", "1"), put_step(&b"\xf0"[..], "2")];
    let cases = [
        ("a batch over 16 MiB", batch(too_large), vec!["16777216", "split"]),
        ("a batch of nothing", batch(vec![]), vec!["no steps"]),
        ("10,001 steps", batch(steps(MAX_BATCH_STEPS + 1, 1)), vec!["10001", "10000"]),
        ("a batch over several shards", batch(far_apart), vec!["different shards"]),
        ("an empty step", batch(vec![v1::Step { step: None }]), vec!["step"]),
    ];
    for (what, request, words) in cases {
        refused(what, kv.batch(request.clone()).await, Invalid, &words);
        session.refused(what, Request::Batch(request), Invalid, &words).await;
    }
    let apart = Batch::new().then_put("a", "1").then_put([0xf0], "2");
    check("over shards", &client.batch(apart).await.expect_err("refused"), Invalid, &["shard"]);
    let mut large = Batch::new();
    for n in 0..17 {
        large = large.then_put(format!("a{n}"), zeros(MIB));
    }
    check("over 16 MiB", &client.batch(large).await.expect_err("refused"), Invalid, &["16777216"]);
    assert_eq!(everything(&client).await, [], "a refused batch wrote something");

    // Just below the limits: 16 MiB with the keys, and 10,000 steps.
    let full = (16 * MIB - 16 * 6) / 16;
    let reply = kv.batch(batch(steps(16, full))).await.expect("a full batch").into_inner();
    assert_eq!((reply.succeeded, reply.results.len()), (true, 16));
    kv.batch(batch(steps(MAX_BATCH_STEPS, 1))).await.expect("10,000 steps");
    assert_eq!(everything(&client).await.len(), MAX_BATCH_STEPS);
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_that_ask_for_nonsense_are_refused() {
    use ErrorKind::Invalid;
    let cluster = Cluster::start(1, 8).await;
    let addr = &cluster.nodes[0].grpc;
    let (mut kv, mut session, client) =
        (raw::kv(addr).await, Session::open(addr).await, cluster.client().await);
    client.put("b", "1").await.expect("put");
    let scan = v1::ScanRequest::default;
    let cases = [
        ("limit_rows 0", v1::ScanRequest { limit_rows: Some(0), ..scan() }, vec!["limit_rows is 0"]),
        ("limit_bytes 0", v1::ScanRequest { limit_bytes: Some(0), ..scan() }, vec!["limit_bytes is 0"]),
        (
            "a reversed range",
            v1::ScanRequest { start: "c".into(), end: Some("a".into()), ..scan() },
            vec!["reversed", "\"c\"", "\"a\""],
        ),
        ("a long bound", v1::ScanRequest { start: zeros(MAX_KEY_BYTES + 2), ..scan() }, vec!["4098", "4097"]),
        ("no timestamp", v1::ScanRequest { at_ts: u64::MAX, ..scan() }, vec!["at_ts"]),
        ("the future", v1::ScanRequest { at_ts: FUTURE, ..scan() }, vec!["at"]),
    ];
    for (what, request, words) in cases {
        // A unary scan may be refused by its first message only.
        let answer = match kv.scan(request.clone()).await {
            Ok(mut pages) => pages.get_mut().message().await,
            Err(status) => Err(status),
        };
        refused(what, answer, Invalid, &words);
        let page = v1::ScanPageRequest { scan: Some(request) };
        session.refused(what, Request::ScanPage(page), Invalid, &words).await;
    }
    let future = v1::GetRequest { at_ts: FUTURE, ..get("b") };
    refused("the future", kv.get(future.clone()).await, Invalid, &["future"]);
    session.refused("the future", Request::Get(future), Invalid, &["future"]).await;
    let refused_by_client = |options: ScanOptions| {
        let client = client.clone();
        async move { client.scan(options).next().await.expect("an item").expect_err("refused") }
    };
    check("limit 0", &refused_by_client(ScanOptions::all().limit_rows(0)).await, Invalid, &["limit_rows"]);
    check("reversed", &refused_by_client(ScanOptions::range("c", "a")).await, Invalid, &["reversed"]);
    // An empty range is no error.
    let empty = client.scan(ScanOptions::range("b", "b")).collect_rows().await.expect("scanned");
    assert_eq!(empty, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_are_checked() {
    use ErrorKind::{Denied, Invalid};
    let cluster = Cluster::start(1, 8).await;
    let addr = &cluster.nodes[0].grpc;
    let (mut kv, mut session, client) =
        (raw::kv(addr).await, Session::open(addr).await, cluster.client().await);
    let other = "0123456789abcdef0123456789abcdef";
    let id = |seen_ts, unique: &[u8]| Some(v1::RequestId { seen_ts, unique: Bytes::copy_from_slice(unique) });
    let header = |request_id| v1::Header { request_id, ..Default::default() };
    let cluster_id = |id: &str| v1::Header { cluster_id: id.to_owned(), ..Default::default() };
    let own = client.cluster_id();
    let cases = [
        ("another cluster", cluster_id(other), Denied, vec![other, own.as_str()]),
        ("no cluster id", cluster_id("mine"), Invalid, vec!["mine", "32"]),
        ("a short request id", header(id(1, &[7; 15])), Invalid, vec!["15 bytes", "16"]),
        ("an id of the future", header(id(FUTURE, &[7; 16])), Invalid, vec!["request id"]),
        ("an id of no time", header(id(u64::MAX, &[7; 16])), Invalid, vec!["seen_ts"]),
        ("an id of long ago", header(id(1, &[7; 16])), ErrorKind::TooOld, vec!["600000"]),
    ];
    for (what, header, kind, words) in cases {
        let put = v1::PutRequest { header: Some(header.clone()), ..put("k", "v") };
        refused(what, kv.put(put.clone()).await, kind, &words);
        session.refused(what, Request::Put(put), kind, &words).await;
    }
    let elsewhere = Some(cluster_id(other));
    let scan = v1::ScanRequest { header: elsewhere.clone(), ..Default::default() };
    refused("a scan of another cluster", kv.scan(scan).await, Denied, &[other]);
    let many = v1::GetManyRequest { header: elsewhere, keys: vec!["k".into()], ..Default::default() };
    refused("reads of another cluster", kv.get_many(many).await, Denied, &[other]);
    let builder = Client::builder().endpoints([addr.clone()]).cluster_id(other.parse().expect("an id"));
    let error = builder.connect().await.expect_err("refused");
    check("a client of another cluster", &error, Denied, &[other, own.as_str()]);
    let output = crate::support::kvorum()
        .args(["--endpoints", addr, "--cluster-id", other, "get", "k"])
        .output()
        .expect("the command runs");
    assert_eq!(output.status.code(), Some(7), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(everything(&client).await, [], "a refused request wrote something");
}

/// Deadlines that are past or about to be: every answer is true. What was acknowledged is there, and what
/// was `Unavailable` was not done.
#[tokio::test(flavor = "multi_thread")]
async fn deadlines_that_are_past_or_tiny_get_true_answers() {
    let cluster = Cluster::start(3, 8).await;
    let client = client_of(cluster.endpoints()).await;
    let past = client.with_deadline_at(Instant::now());
    let none = client.with_deadline(Duration::ZERO);
    for client in [&past, &none] {
        let words = ["deadline was past", "nothing was sent"];
        check("a put", &client.put("past", "v").await.expect_err("late"), ErrorKind::Unavailable, &words);
        check("a get", &client.get("past").await.expect_err("late"), ErrorKind::Unavailable, &words);
        let scanned = client.scan(ScanOptions::all()).next().await.expect("an item");
        check("a scan", &scanned.expect_err("late"), ErrorKind::Unavailable, &words);
    }
    // gRPC's own deadline, already over when it is sent: the call ends, with whatever status, and soon.
    let mut kv = raw::kv(&cluster.nodes[0].grpc).await;
    let mut over = tonic::Request::new(put("past", "v"));
    over.metadata_mut().insert("grpc-timeout", "1n".parse().expect("a timeout"));
    let status = kv.put(over).await.expect_err("late");
    assert!(matches!(status.code(), Code::Cancelled | Code::DeadlineExceeded), "{status:?}");

    let mut puts = Vec::new();
    for n in 0..300_u32 {
        let key = Bytes::copy_from_slice(&[n.to_be_bytes()[3], n.to_be_bytes()[2]]);
        let mut kv = kv.clone();
        let header = v1::Header { deadline_ms: 1 + n, ..Default::default() };
        let put = v1::PutRequest { header: Some(header), ..put(key.clone(), "tiny") };
        puts.push(async move { (key, kv.put(put).await) });
    }
    let mut counts = [0_usize; 3];
    for (key, answer) in join_all(puts).await {
        // A later write of the same shard and key comes after whatever is still under way.
        let held = client.compare_and_swap(key.clone(), Expect::Absent, Some("late".into())).await;
        let written = !held.expect("looked").swapped();
        let answer = answer.map_err(|status| kvorum::rpc::convert::error_from_status(&status).kind);
        match answer {
            Ok(_) => assert!(written, "{key:?} was acknowledged and is not there"),
            Err(ErrorKind::Unavailable) => assert!(!written, "{key:?} was not done, and is there"),
            Err(ErrorKind::Undetermined) => {}
            Err(kind) => panic!("{key:?}: {kind}"),
        }
        counts[answer.map_or_else(|kind| 1 + usize::from(kind == ErrorKind::Undetermined), |_| 0)] += 1;
    }
    println!("300 puts within 1 to 300 ms: acknowledged, unavailable, undetermined: {counts:?}");
}

/// Bytes that are not gRPC, gRPC that is not protobuf, protobuf that is not ours.
#[tokio::test(flavor = "multi_thread")]
async fn malformed_frames_are_refused_and_the_node_serves_on() {
    let cluster = Cluster::start(1, 8).await;
    let node = &cluster.nodes[0];
    let addr = &node.grpc;

    // No HTTP/2 at all: the node hangs up.
    let garbage: Vec<u8> = (0..64 * 1024).map(|_| rand::random()).collect();
    raw::exchange(addr, &garbage, usize::MAX).await;
    raw::exchange(addr, b"GET / HTTP/1.1\r\nHost: kvorum\r\n\r\n", usize::MAX).await;
    // HTTP/2 up to a frame that is none: a length of 16 MiB, an unknown kind, then nothing.
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00";
    raw::exchange(addr, &[&preface[..], &[0xff; 4096]].concat(), usize::MAX).await;

    let put_bytes = put("k", "v").encode_to_vec();
    let path = "/kvorum.v1.Kv/Put";
    for (what, body) in [
        ("protobuf cut short", raw::framed(&put_bytes[..put_bytes.len() - 1])),
        ("a field of the wrong kind", raw::framed(&[0x10, 0x05])),
        ("no protobuf", raw::framed(&[0xff; 100])),
        ("a frame cut short", raw::framed(&put_bytes).slice(..7)),
        ("less than a frame's head", Bytes::from_static(&[0, 0])),
        ("an unknown compression", Bytes::from_static(&[9, 0, 0, 0, 1, 0])),
        ("nothing", Bytes::new()),
    ] {
        let status = raw::call_with_body(addr, path, body).await.expect_err(what);
        assert!(!status.message().is_empty(), "{what}: {status:?}");
        assert_ne!(status.code(), Code::Ok, "{what}");
    }
    // A frame that claims to be larger than any message may be is refused by its head alone.
    let huge = Bytes::from_static(&[0, 0xff, 0xff, 0xff, 0xff, 1, 2, 3]);
    let status = raw::call_with_body(addr, path, huge).await.expect_err("too large");
    assert!(status.message().contains(&MAX_MESSAGE_BYTES.to_string()), "{status:?}");
    let status =
        raw::call_with_body(addr, "/kvorum.v1.Kv/Nothing", raw::framed(&[])).await.expect_err("none");
    assert_eq!(status.code(), Code::Unimplemented);
    let mut kv = raw::kv(addr).await;
    let status = kv.put(put("k", zeros(MAX_MESSAGE_BYTES + 1))).await.expect_err("too large");
    assert_eq!(status.code(), Code::OutOfRange, "{status:?}");
    assert!(status.message().contains(&MAX_MESSAGE_BYTES.to_string()), "{status:?}");

    // Fields of a newer version are ignored: numbers 1000 (bytes) and 1001 (a varint).
    let mut newer = put("newer", "v").encode_to_vec();
    prost::encoding::bytes::encode(1000, &Bytes::from_static(b"what is this"), &mut newer);
    prost::encoding::uint64::encode(1001, &7, &mut newer);
    raw::call_with_body(addr, path, raw::framed(&newer)).await.expect("unknown fields are no error");
    let got = kv.get(get("newer")).await.expect("got").into_inner();
    assert_eq!(got.record.expect("held").value, "v");
    assert!(kv.get(get("k")).await.expect("got").into_inner().record.is_none(), "a malformed put was done");
    raw::serves(node, "after").await;
}

/// A session tells what was wrong, per request where it can, and else in the status it ends with.
#[tokio::test(flavor = "multi_thread")]
async fn a_session_says_what_was_wrong() {
    let cluster = Cluster::start(1, 8).await;
    let node = &cluster.nodes[0];
    let mut session = Session::open(&node.grpc).await;
    let unknown = v1::SessionRequests { requests: vec![v1::SessionRequest { call: 9, request: None }] };
    session.send_message(unknown).await.expect("sent");
    let reply = session.message().await.expect("no error").expect("a reply").replies.remove(0);
    assert_eq!(reply.call, 9);
    let Some(v1::session_reply::Reply::Error(error)) = reply.reply else { panic!("{reply:?}") };
    let error = kvorum::rpc::convert::error_from_proto(error);
    check("an unknown request", &error, ErrorKind::Invalid, &["newer node"]);
    // Many requests of one message, more than there are places, all get their replies.
    let many = (0..3000).map(|call| v1::SessionRequest { call, request: Some(Request::Put(put("s", "v"))) });
    session.send_message(v1::SessionRequests { requests: many.collect() }).await.expect("sent");
    let mut answered = 0;
    while answered < 3000 {
        let message = session.message().await.expect("no error").expect("replies");
        for reply in &message.replies {
            assert!(matches!(reply.reply, Some(v1::session_reply::Reply::Put(_))), "{reply:?}");
        }
        answered += message.replies.len();
    }
    // A message past the limit ends the session, and the status says why.
    session.send(Request::Put(put("k", zeros(MAX_MESSAGE_BYTES + 1)))).await;
    let ended = loop {
        match session.message().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("the session ended without saying why"),
            Err(status) => break status,
        }
    };
    assert!(ended.message().contains(&MAX_MESSAGE_BYTES.to_string()), "{ended:?}");
    raw::serves(node, "after").await;
}

/// Who is no node of the cluster gets no channel, and garbage in one ends it.
#[tokio::test(flavor = "multi_thread")]
async fn the_channel_between_nodes_refuses_strangers() {
    let cluster = Cluster::start(3, 8).await;
    let client = cluster.client().await;
    client.put("k", "v").await.expect("put");
    let node = &cluster.nodes[0];
    let own = node.status().await.expect("answered");
    let stranger = Hello {
        protocol_version: 1,
        cluster_id: own.cluster_id.clone(),
        from_node: 2,
        from_store: "00000000000000000000000000000007".to_owned(),
        to_node: 1,
        election_max_ms: 1000,
        ..Default::default()
    };
    let cases = [
        ("no Hello", None, Code::InvalidArgument, "Hello"),
        (
            "another protocol",
            Some(Hello { protocol_version: 99, ..stranger.clone() }),
            Code::FailedPrecondition,
            "99",
        ),
        (
            "another cluster",
            Some(Hello { cluster_id: "ff".repeat(16), ..stranger.clone() }),
            Code::PermissionDenied,
            "cluster",
        ),
        (
            "no cluster",
            Some(Hello { cluster_id: "x".to_owned(), ..stranger.clone() }),
            Code::FailedPrecondition,
            "32",
        ),
        (
            "another node is meant",
            Some(Hello { to_node: 3, ..stranger.clone() }),
            Code::FailedPrecondition,
            "node 3",
        ),
        (
            "another timing",
            Some(Hello { election_max_ms: 7, ..stranger.clone() }),
            Code::FailedPrecondition,
            "election_max",
        ),
        ("a wiped node", Some(stranger.clone()), Code::PermissionDenied, "wiped"),
        (
            "the node's own id",
            Some(Hello { from_node: 1, ..stranger.clone() }),
            Code::PermissionDenied,
            "own",
        ),
    ];
    let internal = NodeClient::new(raw::channel(&node.grpc).await);
    for (what, hello, code, word) in cases {
        let first = Frames { hello, frames: vec![Frame { kind: 77, ..Default::default() }] };
        let status = internal.clone().channel(tokio_stream::iter([first])).await.expect_err(what);
        assert_eq!(status.code(), code, "{what}: {status:?}");
        assert!(status.message().contains(word), "{what}: {status:?}");
    }
    for path in ["/kvorum.internal.v1.Node/Channel", "/kvorum.internal.v1.Node/Snapshot"] {
        let status = raw::call_with_body(&node.grpc, path, raw::framed(&[0xff; 64])).await.expect_err(path);
        assert!(!status.message().is_empty(), "{path}: {status:?}");
    }
    let head =
        SnapshotHead { cluster_id: own.cluster_id, from_node: 2, to_node: 1, group: 1, ..Default::default() };
    let chunk = SnapshotChunk { head: Some(head), ..Default::default() };
    let status =
        internal.clone().snapshot(tokio_stream::iter([chunk])).await.expect_err("a snapshot of nothing");
    assert!(!status.message().is_empty(), "{status:?}");
    let answer = client.get("k").await.expect("got").expect("held");
    assert_eq!(answer.value, "v");
    client.put("k", "w").await.expect("the cluster goes on");
    cluster.wait_equal().await;
}
