//! Load that a node must not hold in memory: scans of everything, readers that do not read, connections
//! that do nothing. Others are served meanwhile, and nothing is lost.

use std::collections::HashSet;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{self, StreamExt};
use kvorum::rpc::v1::session_reply::Reply;
use kvorum::rpc::v1::session_request::Request;
use kvorum::rpc::{convert, v1};
use kvorum::types::limits::MAX_VALUE_BYTES;
use kvorum::{Client, ErrorKind};
use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit, setrlimit};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::raw::{self, Memory, Session, check, check_growth, forget_peak};
use crate::support::{Cluster, PATIENCE, Process, eventually};

/// Values of 1 MiB that are stored; more than the node may ever hold in memory for one reader.
const VALUES: u32 = 200;
/// What memory may rise by: pages and messages under way, and what the allocator keeps.
const MOST_MIB: u64 = 100;

fn key(n: u32) -> String {
    format!("{:02x}/{n:05}", n * 256 / VALUES)
}

/// Writes the values, over all shards. They do not compress.
async fn fill(client: &Client) {
    let written = stream::iter(0..VALUES).map(|n| async move {
        let mut value = vec![0; MAX_VALUE_BYTES];
        rand::Rng::fill(&mut rand::rng(), &mut value[..]);
        client.put(key(n), value).await.expect("written");
    });
    written.buffer_unordered(4).collect::<()>().await;
}

/// Small reads and writes of somebody else, all of which succeed.
async fn others_are_served(client: &Client, name: &str) {
    let client = client.with_deadline(Duration::from_secs(60));
    for n in 0..100 {
        let key = format!("others/{name}/{n}");
        client.put(key.clone(), "v").await.expect("put");
        assert_eq!(client.get(key).await.expect("got").expect("held").value, "v");
    }
}

/// The keys and bytes of a scan of everything.
async fn scan_all(node: &Process) -> (u32, usize) {
    let mut pages =
        raw::kv(&node.grpc).await.scan(v1::ScanRequest::default()).await.expect("begun").into_inner();
    let (mut rows, mut bytes) = (0, 0);
    while let Some(page) = pages.message().await.expect("a page") {
        for row in page.rows.iter().filter(|row| !row.key.starts_with(b"others/")) {
            rows += 1;
            bytes += row.record.as_ref().expect("a record").value.len();
        }
    }
    (rows, bytes)
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_of_200_mib_that_do_not_read_cost_no_memory() {
    let cluster = Cluster::start(1, 8).await;
    let node = &cluster.nodes[0];
    let client = cluster.client().await;
    fill(&client).await;
    let all = (VALUES, VALUES as usize * MAX_VALUE_BYTES);
    // Fills the node's cache of blocks, which has its own bound.
    assert_eq!(scan_all(node).await, all);

    let before = Memory::of(node);
    forget_peak(node);
    assert_eq!(scan_all(node).await, all);
    check_growth("a scan of 200 MiB, read at once", node, before, MOST_MIB);

    slow_scans(node, &client).await;
    slow_sessions(node, &client).await;
    many_keys_at_once(node, &client).await;
}

/// Eight scans of everything, each of which has read one message.
async fn slow_scans(node: &Process, client: &Client) {
    let before = Memory::of(node);
    forget_peak(node);
    let mut scans = Vec::new();
    for _ in 0..8 {
        let mut kv = raw::kv(&node.grpc).await;
        let mut pages = kv.scan(v1::ScanRequest::default()).await.expect("begun").into_inner();
        let first = pages.message().await.expect("no error").expect("a page");
        scans.push((pages, first.rows.len() as u32));
    }
    others_are_served(client, "scans").await;
    check_growth("8 scans of 200 MiB that nobody reads", node, before, MOST_MIB);
    // They were held back, not lost: one of them goes on to its end, the others are dropped.
    let (mut pages, mut rows) = scans.pop().expect("eight");
    while let Some(page) = pages.message().await.expect("a page") {
        rows += page.rows.iter().filter(|row| !row.key.starts_with(b"others/")).count() as u32;
    }
    assert_eq!(rows, VALUES);
}

/// Sessions that ask for far more than they read, in pages and in single large values.
async fn slow_sessions(node: &Process, client: &Client) {
    let page = Request::ScanPage(v1::ScanPageRequest { scan: Some(v1::ScanRequest::default()) });
    let value = Request::Get(v1::GetRequest { key: key(7).into(), ..Default::default() });
    let step = v1::Step { step: Some(v1::step::Step::Get(key(7).into())) };
    let batch = Request::Batch(v1::BatchRequest { then: vec![step; 15], ..Default::default() });
    // What a batch reads is stored for its retries, so that buffers of writes fill besides.
    for (what, request, count, most_mib) in [
        ("scan pages", page, 1000, MOST_MIB),
        ("values", value, 600, MOST_MIB),
        ("batches", batch, 25, 3 * MOST_MIB),
    ] {
        let before = Memory::of(node);
        forget_peak(node);
        let mut session = Session::open(&node.grpc).await;
        let mut open = HashSet::new();
        for _ in 0..count {
            open.insert(session.send(request.clone()).await);
        }
        others_are_served(client, what).await;
        check_growth(&format!("a session with {count} {what} unread"), node, before, most_mib);
        // What was asked for comes once it is read.
        let wanted = open.len().saturating_sub(100);
        while open.len() > wanted {
            for reply in session.message().await.expect("no error").expect("replies").replies {
                assert!(!matches!(reply.reply, Some(Reply::Error(_)) | None), "{what}: {reply:?}");
                assert!(open.remove(&reply.call), "{what}: call {} was answered twice", reply.call);
            }
        }
    }
}

/// One large value named 10,000 times comes to 10 GiB: refused, and not put together first.
async fn many_keys_at_once(node: &Process, client: &Client) {
    let before = Memory::of(node);
    forget_peak(node);
    let request = v1::GetManyRequest { keys: vec![Bytes::from(key(7)); 10_000], ..Default::default() };
    let words = ["16777216", "fewer"];
    let refused = raw::kv(&node.grpc).await.get_many(request.clone()).await;
    raw::refused("10 GiB of reads", refused, ErrorKind::Invalid, &words);
    let mut session = Session::open(&node.grpc).await;
    // A session answers as many as go into one message, for the caller to go on from there.
    let Reply::GetMany(part) = session.ask(Request::GetMany(request)).await else { panic!("no records") };
    assert!((1..=16).contains(&part.records.len()), "{} values of 1 MiB in one message", part.records.len());
    let error = client.get_many(vec![key(7); 10_000]).await.expect_err("refused");
    check("10 GiB of reads", &error, ErrorKind::Invalid, &words);
    // The same over several shards, each of which is below the limit.
    let keys: Vec<Bytes> = (0..VALUES / 4).map(|n| key(n * 4).into()).collect();
    let request = v1::GetManyRequest { keys, ..Default::default() };
    let refused = raw::kv(&node.grpc).await.get_many(request).await;
    raw::refused("50 MiB of reads", refused, ErrorKind::Invalid, &words);
    check_growth("reads of many keys", node, before, MOST_MIB);
    let few: Vec<String> = (0..10).map(|n| key(n * 20)).collect();
    let got = client.get_many(&few).await.expect("10 MiB are within the limit");
    assert!(
        got.records
            .iter()
            .all(|record| record.as_ref().is_some_and(|one| one.value.len() == MAX_VALUE_BYTES))
    );
}

/// Writes that come faster than the disk takes them wait at their sender, not in the node.
#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_large_writes_waits_at_its_sender() {
    let cluster = Cluster::start(1, 8).await;
    let node = &cluster.nodes[0];
    let client = cluster.client().await;
    let put = |n: u32| v1::Step {
        step: Some(v1::step::Step::Put(v1::PutStep {
            key: key(n).into(),
            value: vec![n as u8; MAX_VALUE_BYTES - 64].into(),
        })),
    };
    // 15 MiB each, whose condition is not met: they travel and are logged, and store nothing.
    let condition = v1::Condition {
        key: key(0).into(),
        expect: Some(v1::Expect { expect: Some(v1::expect::Expect::Version(77)) }),
    };
    let then = vec![put(0); 15];
    let batch = v1::BatchRequest { conditions: vec![condition], then, ..Default::default() };
    let before = Memory::of(node);
    forget_peak(node);
    let mut session = Session::open(&node.grpc).await;
    let send = async {
        for _ in 0..40 {
            session.send(Request::Batch(batch.clone())).await;
        }
    };
    tokio::join!(send, others_are_served(&client, "flood"));
    let mut answered = 0;
    while answered < 40 {
        for reply in session.message().await.expect("no error").expect("replies").replies {
            match reply.reply {
                Some(Reply::Batch(batch)) => assert!(!batch.succeeded),
                Some(Reply::Error(error)) => {
                    let error = convert::error_from_proto(error);
                    assert_eq!(error.kind, ErrorKind::Unavailable, "{error}");
                }
                other => panic!("{other:?}"),
            }
            answered += 1;
        }
    }
    check_growth("600 MiB of writes in one session", node, before, 500);
}

/// 10,000 connections, open at once, half of which have said nothing and half of which speak HTTP/2 and ask
/// for nothing. The node goes on serving old and new callers, and its own disk still gets its files.
#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_connections() {
    const WANTED: usize = 10_000;
    // Ours, and the node's, which inherits it.
    let limit = getrlimit(Resource::Nofile);
    let most = limit.maximum.unwrap_or(u64::MAX);
    let raised = Rlimit { current: Some(most.min(65_536)), maximum: limit.maximum };
    setrlimit(Resource::Nofile, raised).expect("up to the hard limit is allowed");
    let room = usize::try_from(most).unwrap_or(usize::MAX).saturating_sub(4000);
    let count = WANTED.min(room);
    if count < WANTED {
        println!("the hard limit of open files is {most}: only {count} connections are opened");
    }
    let cluster = Cluster::start(3, 8).await;
    let node = &cluster.nodes[0];
    let client = cluster.client().await;
    others_are_served(&client, "before").await;
    let before = Memory::of(node);
    forget_peak(node);
    let mut silent = TcpStream::connect(&node.grpc).await.expect("connected");
    let open = stream::iter(0..count).map(|at| async move {
        let mut socket = TcpStream::connect(&node.grpc).await.expect("connected");
        if at % 2 == 1 {
            // The preface and empty SETTINGS; the node answers with its own.
            let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00";
            socket.write_all(preface).await.expect("written");
            let mut head = [0; 9];
            socket.read_exact(&mut head).await.expect("the node speaks HTTP/2");
        }
        socket
    });
    let sockets: Vec<TcpStream> = open.buffer_unordered(64).collect().await;
    println!("{} connections are open", sockets.len());
    others_are_served(&client, "with all open").await;
    raw::serves(node, "a new caller").await;
    check_growth(&format!("{} connections", sockets.len()), node, before, 400);
    drop(sockets);
    let mut said = Vec::new();
    let ended = tokio::time::timeout(PATIENCE, silent.read_to_end(&mut said)).await;
    ended.expect("a silent connection is ended").ok();
    println!("a connection that said nothing was ended after {} bytes of the node's", said.len());
    others_are_served(&client, "after").await;
    eventually("the node has closed them", async || {
        let files = open_files(node);
        if files < 1000 { Ok(()) } else { Err(format!("{files} files are open")) }
    })
    .await;
}

/// A node whose process may open no more files goes on for those who are connected, and takes new callers as
/// soon as it can.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_out_of_files_serves_on() {
    let cluster = Cluster::start(1, 8).await;
    let node = &cluster.nodes[0];
    let client = cluster.client().await;
    others_are_served(&client, "before").await;
    let pid = Pid::from_raw(i32::try_from(node.pid()).expect("a process id"));
    let limit = getrlimit(Resource::Nofile);
    let few = Rlimit { current: Some(open_files(node) as u64 + 20), maximum: limit.maximum };
    let before = prlimit(pid, Resource::Nofile, few).expect("our own child");
    let mut sockets = Vec::new();
    for _ in 0..100 {
        sockets.push(TcpStream::connect(&node.grpc).await.expect("the system queues it"));
    }
    eventually("the node has no files left", async || match open_files(node) as u64 + 1 {
        open if Some(open) >= few.current => Ok(()),
        open => Err(format!("{open} files are open")),
    })
    .await;
    others_are_served(&client, "without files").await;
    drop(sockets);
    raw::serves(node, "a new caller").await;
    let log = node.log();
    assert!(log.contains("connections are turned away"), "the log does not say what is wrong:\n{log}");
    prlimit(pid, Resource::Nofile, before).expect("our own child");
}

fn open_files(node: &Process) -> usize {
    std::fs::read_dir(format!("/proc/{}/fd", node.pid())).expect("our own child").count()
}
