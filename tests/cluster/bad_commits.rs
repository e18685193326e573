//! Commits that are wrong, as any gRPC language could send them, in a unary call and in a session: a clear error
//! each, nothing written, nothing locked, and the node serves on.

use bytes::Bytes;
use kvorum::ErrorKind::Invalid;
use kvorum::rpc::v1;
use kvorum::rpc::v1::session_request::Request;
use kvorum::rpc::v1::write::Write;
use kvorum::types::limits::{MAX_KEY_BYTES, MAX_TXN_BYTES, MAX_TXN_KEYS, MAX_TXN_RANGES, MAX_VALUE_BYTES};

use crate::raw::{self, Session, refused};
use crate::support::Cluster;

fn put(key: impl Into<Bytes>, value: impl Into<Bytes>) -> v1::Write {
    v1::Write { write: Some(Write::Put(v1::PutStep { key: key.into(), value: value.into() })) }
}

fn delete(key: impl Into<Bytes>) -> v1::Write {
    v1::Write { write: Some(Write::Delete(key.into())) }
}

fn names(count: usize) -> Vec<Bytes> {
    (0..count).map(|n| Bytes::from(format!("k{n:05}"))).collect()
}

/// What is wrong, how, and what the error must say.
fn cases(start_ts: u64) -> Vec<(&'static str, v1::CommitRequest, Vec<&'static str>)> {
    let of = |writes: Vec<v1::Write>| v1::CommitRequest { start_ts, writes, ..Default::default() };
    let one = || of(vec![put("k", "v")]);
    let range = |start: &'static str, end: &'static str| v1::CommitRequest {
        read_ranges: vec![v1::KeyRange { start: start.into(), end: Some(end.into()) }],
        ..one()
    };
    let id = |seen_ts, unique: &[u8]| {
        let request_id = Some(v1::RequestId { seen_ts, unique: Bytes::copy_from_slice(unique) });
        v1::CommitRequest { header: Some(v1::Header { request_id, ..Default::default() }), ..one() }
    };
    let many_ranges =
        names(MAX_TXN_RANGES + 1).into_iter().map(|start| v1::KeyRange { start, end: None }).collect();
    let value = Bytes::from(vec![0; MAX_VALUE_BYTES]);
    let large =
        names(MAX_TXN_BYTES / MAX_VALUE_BYTES).into_iter().map(|key| put(key, value.clone())).collect();
    vec![
        ("no writes", of(vec![]), vec!["no writes"]),
        ("an empty write", of(vec![v1::Write { write: None }]), vec!["empty"]),
        ("no start", v1::CommitRequest { start_ts: 0, ..one() }, vec!["start_ts is 0"]),
        ("a start that is no timestamp", v1::CommitRequest { start_ts: u64::MAX, ..one() }, vec!["start_ts"]),
        ("a key written twice", of(vec![put("k", "v"), delete("k")]), vec!["\"k\"", "twice"]),
        (
            "a key read twice",
            v1::CommitRequest { read_keys: vec!["r".into(), "r".into()], ..one() },
            vec!["\"r\"", "twice"],
        ),
        ("an empty key", of(vec![delete("")]), vec!["empty"]),
        ("a long key", of(vec![delete(vec![0; MAX_KEY_BYTES + 1])]), vec!["4097", "4096"]),
        (
            "a long key that was read",
            v1::CommitRequest { read_keys: vec![vec![0; MAX_KEY_BYTES + 1].into()], ..one() },
            vec!["4097", "4096"],
        ),
        ("a large value", of(vec![put("k", vec![0; MAX_VALUE_BYTES + 1])]), vec!["1048577", "1048576"]),
        ("a reversed range", range("b", "a"), vec!["reversed"]),
        ("an empty range", range("a", "a"), vec!["empty"]),
        (
            "many keys",
            v1::CommitRequest { read_keys: names(MAX_TXN_KEYS), ..one() },
            vec!["10000", "writes 1"],
        ),
        ("many ranges", v1::CommitRequest { read_ranges: many_ranges, ..one() }, vec!["1001", "1000"]),
        ("many bytes", of(large), vec!["16777216", "split"]),
        ("an id of another start", id(start_ts - 1, &[7; 16]), vec!["request_id.seen_ts", "start_ts"]),
        ("a short id", id(start_ts, &[7; 15]), vec!["15", "16"]),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn commits_that_make_no_sense_are_refused() {
    let cluster = Cluster::start(1, 8).await;
    let addr = &cluster.nodes[0].grpc;
    let (mut kv, mut session) = (raw::kv(addr).await, Session::open(addr).await);
    let start_ts = kv.timestamp(v1::TimestampRequest::default()).await.expect("begun").into_inner().ts;
    for (what, commit, words) in cases(start_ts) {
        refused(what, kv.commit(commit.clone()).await, Invalid, &words);
        session.refused(what, Request::Commit(commit), Invalid, &words).await;
    }
    let client = cluster.client().await;
    let rows = client.scan(kvorum::client::ScanOptions::all()).collect_rows().await.expect("scanned");
    assert!(rows.is_empty(), "a refused commit wrote {rows:?}");
    client.put("k", "v").await.expect("nothing is locked");
    let later = kv.timestamp(v1::TimestampRequest::default()).await.expect("begun").into_inner().ts;
    assert!(later > start_ts);
}
