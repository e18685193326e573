//! What goes on and what does not while nodes are down or paused.

use std::time::Duration;

use kvorum::rpc::v1;
use kvorum::rpc::v1::kv_client::KvClient;
use kvorum::rpc::v1::session_reply::Reply;
use kvorum::rpc::v1::session_request::Request;
use kvorum::{Client, ErrorKind};
use rustix::process::Signal;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use crate::support::{Cluster, PATIENCE, eventually, kvorum};

/// One key in each of the four shards that these tests make.
const KEYS: [&str; 4] = ["1", "a", "j", "z"];
const SHARDS: u32 = 4;
/// How long a call may take that can't succeed.
const SHORT: Duration = Duration::from_secs(2);

/// The kind of the error that a call ends with, which it must do by itself.
async fn kind_of<T: std::fmt::Debug>(call: impl Future<Output = kvorum::Result<T>>) -> ErrorKind {
    timeout(PATIENCE, call)
        .await
        .expect("the call ends by its deadline")
        .expect_err("no quorum is there")
        .kind
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_quorum_calls_are_refused_and_with_it_all_goes_on() {
    let mut cluster = Cluster::start(3, SHARDS).await;
    let client = cluster.client().await;
    for key in KEYS {
        client.put(key, "before").await.expect("written");
    }
    // The one that is left is a leader, which has to find out that it is alone.
    let left = cluster.leader_of(KEYS[1].as_bytes()).await;
    let down: Vec<usize> = (0..3).filter(|node| *node != left).collect();
    for node in &down {
        cluster.kill(*node);
    }
    let short = client.with_deadline(SHORT);

    // A leader may put writes into its log until its lease has run out: what becomes of those is open.
    let mut open = Vec::new();
    eventually("writes are refused", async || {
        let value = format!("open {}", open.len());
        match kind_of(short.put(KEYS[1], value.clone())).await {
            ErrorKind::Unavailable => Ok(()),
            ErrorKind::Undetermined => {
                open.push(value);
                Err("it was written to the log".to_owned())
            }
            kind => panic!("a write without a quorum failed as {kind}"),
        }
    })
    .await;
    for key in KEYS {
        assert_eq!(kind_of(short.get(key)).await, ErrorKind::Unavailable, "get {key}");
        assert_eq!(kind_of(short.put(key, "refused")).await, ErrorKind::Unavailable, "put {key}");
        assert_eq!(kind_of(short.delete(key)).await, ErrorKind::Unavailable, "delete {key}");
    }
    assert_eq!(kind_of(short.get_many(KEYS)).await, ErrorKind::Unavailable, "get of several shards");
    assert_eq!(kind_of(short.timestamp()).await, ErrorKind::Unavailable, "timestamp");
    assert_command_is_unavailable(&cluster.nodes[left].grpc);

    // The next one comes back: the same client and the same process go on.
    cluster.restart(down[0]);
    for key in KEYS {
        let value = client.get(key).await.expect("served").expect("there").value;
        let known = value == "before" || (key == KEYS[1] && open.iter().any(|open| value == *open));
        assert!(known, "{key} holds {value:?}");
        client.put(key, "after").await.expect("written");
    }
    cluster.restart(down[1]);
    cluster.wait_serving().await;
    cluster.wait_equal().await;
    for at in 0..3 {
        let rows = cluster.replica_rows(at).await;
        assert!(rows.len() == KEYS.len() && rows.values().all(|value| value == "after"), "{rows:?}");
    }
}

/// The command of the shell says so too, by its exit code.
fn assert_command_is_unavailable(endpoint: &str) {
    let get = kvorum().args(["--endpoints", endpoint, "--deadline", "2s", "get", KEYS[0]]).output();
    let output = get.expect("the command runs");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(i32::from(ErrorKind::Unavailable.exit_code())), "{errors}");
}

/// Leaders that are killed under load, one after the other.
const LEADERS_KILLED: usize = 5;

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_leader_is_replaced() {
    let mut cluster = Cluster::start(3, SHARDS).await;
    let client = cluster.client().await;
    let mut load = JoinSet::new();
    for n in 0..16 {
        load.spawn(put_on(client.clone(), format!("{}/load/{n}", KEYS[n % KEYS.len()])));
    }
    let mut times = Vec::new();
    for round in 0..LEADERS_KILLED {
        let key = format!("{}/probe", KEYS[round % KEYS.len()]);
        client.put(&key, "before").await.expect("written");
        let leader = cluster.leader_of(key.as_bytes()).await;
        cluster.kill(leader);
        let since = Instant::now();
        client.put(&key, round.to_string()).await.expect("written on another node");
        times.push(since.elapsed());
        let next = cluster.leader_of(key.as_bytes()).await;
        assert_ne!(next, leader, "the leader was killed");
        cluster.restart(leader);
        cluster.wait_serving().await;
        assert_eq!(client.get(&key).await.expect("read").expect("there").value, round.to_string());
    }
    load.shutdown().await;
    times.sort_unstable();
    println!("a leader killed under load: first success on another node after {times:.2?}");
    cluster.wait_equal().await;
}

/// Puts rising numbers, until it is aborted.
async fn put_on(client: Client, key: String) {
    for n in 0_u64.. {
        client.put(&key, n.to_string()).await.expect("written in the end");
    }
}

/// Leaders that are paused and go on, one after the other.
const LEADERS_PAUSED: u64 = 4;
/// Reads that wait at a paused leader.
const READS_WAITING: u64 = 100;

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_slept_returns_nothing_old() {
    let cluster = Cluster::start(3, SHARDS).await;
    let client = cluster.client().await;
    let key = KEYS[2];
    client.put(key, "0").await.expect("written");
    let (mut current, mut refused) = (0, 0);
    for round in 1..=LEADERS_PAUSED {
        let leader = cluster.leader_of(key.as_bytes()).await;
        let mut session = Session::open(&cluster.nodes[leader].grpc, &client.cluster_id()).await;
        let before = session.get(0, key).await.expect("the leader answers");
        assert_eq!(before, (round - 1).to_string());

        cluster.nodes[leader].signal(Signal::STOP);
        client.put(key, round.to_string()).await.expect("written on another node");
        for call in 1..=READS_WAITING {
            session.send(call, key).await;
        }
        cluster.nodes[leader].signal(Signal::CONT);
        // All of these reads began after the write was acknowledged.
        for _ in 1..=READS_WAITING {
            match session.reply().await {
                Ok(value) => {
                    assert_eq!(value, round.to_string(), "an old value from the node that slept");
                    current += 1;
                }
                Err(error) => {
                    let kind = error.kind.as_str();
                    assert!(matches!(kind, "moved" | "unavailable"), "{error:?}");
                    refused += 1;
                }
            }
        }
        cluster.wait_serving().await;
    }
    println!("reads at leaders that slept: {current} answered with the current value, {refused} refused");
    cluster.wait_equal().await;
}

/// A session with one node, which follows no hints.
struct Session {
    requests: mpsc::Sender<v1::SessionRequests>,
    replies: Streaming<v1::SessionReplies>,
    come: Vec<v1::SessionReply>,
    cluster: String,
}

impl Session {
    async fn open(addr: &str, cluster: &str) -> Self {
        let mut client = KvClient::connect(format!("http://{addr}")).await.expect("connected");
        let (requests, waiting) = mpsc::channel(READS_WAITING as usize + 1);
        let replies = client.session(ReceiverStream::new(waiting)).await.expect("a session").into_inner();
        Self { requests, replies, come: Vec::new(), cluster: cluster.to_owned() }
    }

    async fn send(&self, call: u64, key: &str) {
        let header = v1::Header { cluster_id: self.cluster.clone(), ..v1::Header::default() };
        let get = v1::GetRequest { header: Some(header), key: key.to_owned().into(), ..Default::default() };
        let request = v1::SessionRequest { call, request: Some(Request::Get(get)) };
        self.requests
            .send(v1::SessionRequests { requests: vec![request] })
            .await
            .expect("the session is open");
    }

    /// The value of the next reply.
    async fn reply(&mut self) -> Result<String, v1::Error> {
        while self.come.is_empty() {
            let message = timeout(PATIENCE, self.replies.message()).await.expect("the node answers");
            self.come = message.expect("the session is open").expect("the session goes on").replies;
        }
        match self.come.remove(0).reply.expect("a known reply") {
            Reply::Get(reply) => {
                let value = reply.record.expect("the key is there").value;
                Ok(String::from_utf8(value.to_vec()).expect("text"))
            }
            Reply::Error(error) => Err(error),
            other => panic!("a get was answered with {other:?}"),
        }
    }

    async fn get(&mut self, call: u64, key: &str) -> Result<String, v1::Error> {
        self.send(call, key).await;
        self.reply().await
    }
}
