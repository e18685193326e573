//! What tests use to speak to a node below the client library: the generated clients, raw bytes in a call,
//! a session by hand, HTTP, and the memory of its process.

use std::fs;
use std::pin::Pin;

use kvorum::rpc::v1::kv_client::KvClient;
use kvorum::rpc::v1::session_reply::Reply;
use kvorum::rpc::v1::{SessionReplies, SessionRequest, SessionRequests, session_request};
use kvorum::rpc::{convert, v1};
use kvorum::types::limits::MAX_MESSAGE_BYTES;
use kvorum::{Error, ErrorKind};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::codegen::{Body, Bytes, Service, http};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status, Streaming};

use crate::support::{PATIENCE, Process};

/// A connection to the node at `addr`.
pub async fn channel(addr: &str) -> Channel {
    let endpoint = Endpoint::from_shared(format!("http://{addr}")).expect("an address");
    endpoint.connect_timeout(PATIENCE).timeout(PATIENCE).connect().await.expect("connected")
}

/// The key-value service of the node at `addr`, as any gRPC language has it. It sends what it is given.
pub async fn kv(addr: &str) -> KvClient<Channel> {
    KvClient::new(channel(addr).await)
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(usize::MAX)
}

/// Checks that a call was refused, as the kind that is meant and with all the words in its message.
pub fn refused<T>(what: &str, result: Result<T, Status>, kind: ErrorKind, words: &[&str]) {
    match result {
        Ok(_) => panic!("{what}: it was accepted"),
        Err(status) => check(what, &convert::error_from_status(&status), kind, words),
    }
}

/// Checks an error's kind and the words in its message.
pub fn check(what: &str, error: &Error, kind: ErrorKind, words: &[&str]) {
    assert_eq!(error.kind, kind, "{what}: {error}");
    for word in words {
        assert!(error.message.contains(word), "{what}: {word:?} is not in {:?}", error.message);
    }
}

/// A session by hand: requests go out as they are, replies come when they are asked for.
pub struct Session {
    requests: mpsc::Sender<SessionRequests>,
    replies: Streaming<SessionReplies>,
    next_call: u64,
}

impl Session {
    /// Opens a session with the node at `addr`, on a connection of its own.
    pub async fn open(addr: &str) -> Self {
        let (requests, stream) = mpsc::channel(1);
        let replies = kv(addr).await.session(ReceiverStream::new(stream)).await.expect("a session");
        Self { requests, replies: replies.into_inner(), next_call: 0 }
    }

    /// Sends a request in a message of its own; answers the call's number.
    pub async fn send(&mut self, request: session_request::Request) -> u64 {
        self.next_call += 1;
        let request = SessionRequest { call: self.next_call, request: Some(request) };
        self.send_message(SessionRequests { requests: vec![request] }).await.expect("the session is open");
        self.next_call
    }

    /// Sends a message; an error where the session has ended.
    pub async fn send_message(&self, message: SessionRequests) -> Result<(), ()> {
        self.requests.send(message).await.map_err(|_| ())
    }

    /// The next replies.
    pub async fn message(&mut self) -> Result<Option<SessionReplies>, Status> {
        self.replies.message().await
    }

    /// Sends one request and waits for its reply. Nothing else may be under way.
    pub async fn ask(&mut self, request: session_request::Request) -> Reply {
        let call = self.send(request).await;
        let message = self.message().await.expect("no error").expect("the session goes on");
        let [reply] = <[_; 1]>::try_from(message.replies).expect("one reply");
        assert_eq!(reply.call, call);
        reply.reply.expect("a reply of a known kind")
    }

    /// As [`ask`](Self::ask), for a request that must be refused.
    pub async fn refused(
        &mut self,
        what: &str,
        request: session_request::Request,
        kind: ErrorKind,
        words: &[&str],
    ) {
        match self.ask(request).await {
            Reply::Error(error) => check(what, &convert::error_from_proto(error), kind, words),
            // Without what it read, which may be large.
            other => panic!("{what}: the session answered {:?}", std::mem::discriminant(&other)),
        }
    }
}

/// One call whose request body is these bytes, framed or not, well formed or not: its status.
pub async fn call_with_body(addr: &str, path: &str, body: Bytes) -> Result<Bytes, Status> {
    let mut channel = channel(addr).await;
    std::future::poll_fn(|context| channel.poll_ready(context)).await.expect("a connection");
    let request = http::Request::builder()
        .method("POST")
        .uri(format!("http://{addr}{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(tonic::body::Body::new(axum::body::Body::from(body)))
        .expect("a request");
    let response = channel.call(request).await.map_err(|error| Status::unknown(error.to_string()))?;
    if let Some(status) = Status::from_header_map(response.headers()) {
        return done(status);
    }
    let mut body = response.into_body();
    let mut data = Vec::new();
    loop {
        let frame = std::future::poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await;
        let Some(frame) = frame else { return Err(Status::unknown("the reply has no status")) };
        let frame = frame?;
        if let Some(trailers) = frame.trailers_ref() {
            let status = Status::from_header_map(trailers).expect("trailers carry a status");
            return done(status).map(|_| data.into());
        }
        data.extend_from_slice(frame.data_ref().expect("data or trailers"));
    }
}

fn done(status: Status) -> Result<Bytes, Status> {
    if status.code() == Code::Ok { Ok(Bytes::new()) } else { Err(status) }
}

/// A message as gRPC frames it: no compression, its length, its bytes.
pub fn framed(message: &[u8]) -> Bytes {
    let length = u32::try_from(message.len()).expect("a short message");
    [&[0], &length.to_be_bytes()[..], message].concat().into()
}

/// Writes bytes to a fresh connection and reads what comes back until the node closes it or `enough` bytes
/// are there.
pub async fn exchange(addr: &str, bytes: &[u8], enough: usize) -> Vec<u8> {
    let mut socket = TcpStream::connect(addr).await.expect("connected");
    // The node may hang up before all is written.
    let _ = socket.write_all(bytes).await;
    let mut answer = Vec::new();
    let read = async {
        while answer.len() < enough && matches!(socket.read_buf(&mut answer).await, Ok(read) if read > 0) {}
    };
    tokio::time::timeout(PATIENCE, read).await.expect("the node answers or hangs up");
    answer
}

/// One HTTP request: the status code and the body.
pub async fn http_get(addr: &str, path: &str) -> (u16, String) {
    let request = format!("GET {path} HTTP/1.1\r\nHost: {addr}\r\nConnection: close\r\n\r\n");
    let answer = exchange(addr, request.as_bytes(), usize::MAX).await;
    let text = String::from_utf8(answer).expect("text");
    let (head, body) = text.split_once("\r\n\r\n").expect("a head and a body");
    let code = head.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status code");
    (code, body.to_owned())
}

/// Checks that the node takes a write and reads it back, through a fresh connection.
pub async fn serves(node: &Process, key: &str) {
    let mut kv = kv(&node.grpc).await;
    let put = v1::PutRequest { key: key.to_owned().into(), value: "served".into(), ..Default::default() };
    kv.put(put).await.expect("put");
    let got = kv.get(v1::GetRequest { key: key.to_owned().into(), ..Default::default() }).await.expect("got");
    assert_eq!(got.into_inner().record.expect("held").value, "served");
}

/// Bytes of memory of a process now, and the most since [`forget_peak`].
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    pub now_mib: u64,
    pub peak_mib: u64,
}

impl Memory {
    /// Of a running node.
    pub fn of(node: &Process) -> Self {
        let path = format!("/proc/{}/status", node.pid());
        let text = fs::read_to_string(&path).expect("the process runs");
        let field = |name: &str| {
            let line = text.lines().find(|line| line.starts_with(name)).expect("a field of Linux");
            let kib = line.split_whitespace().nth(1).expect("a number");
            kib.parse::<u64>().expect("a number") / 1024
        };
        Self { now_mib: field("VmRSS:"), peak_mib: field("VmHWM:") }
    }
}

/// Starts the peak of a node's memory anew: it is what it uses now.
pub fn forget_peak(node: &Process) {
    fs::write(format!("/proc/{}/clear_refs", node.pid()), "5").expect("our own child");
}

/// Checks that a node's memory has not risen by more than `most_mib` over `before` at any time since then,
/// and says what it was.
pub fn check_growth(what: &str, node: &Process, before: Memory, most_mib: u64) {
    let after = Memory::of(node);
    let grown = after.peak_mib.saturating_sub(before.now_mib);
    println!(
        "{what}: {} MiB before, {} MiB at most, {} MiB after",
        before.now_mib, after.peak_mib, after.now_mib
    );
    assert!(grown <= most_mib, "{what}: memory rose by {grown} MiB, over {most_mib}: {before:?}, {after:?}");
}
