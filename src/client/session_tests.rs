//! The queue and the calls under way, without a network: the test plays the stream.

use bytes::Bytes;
use futures::{StreamExt, poll};

use super::*;

type Outgoing = std::pin::Pin<Box<dyn Stream<Item = v1::SessionRequests> + Send>>;

fn connection() -> (Arc<Connection>, Outgoing) {
    let (queue, waiting) = mpsc::channel(QUEUE_CALLS);
    let calls = Arc::new(Calls { taken: Mutex::new(Some(HashMap::new())), next: AtomicU64::new(1) });
    let outgoing = Box::pin(messages(waiting, Arc::clone(&calls)));
    (Arc::new(Connection { queue, calls }), outgoing)
}

fn request(bytes: usize) -> Request {
    Request::Empty(v1::EmptyRequest { payload: Bytes::from(vec![0; bytes]) })
}

fn far() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

/// A call, polled without tokio's budget for one turn of a task, which many polls in a row use up.
fn begin(
    connection: &Connection,
    bytes: usize,
) -> std::pin::Pin<Box<impl Future<Output = Result<Reply, LinkError>>>> {
    Box::pin(tokio::task::unconstrained(connection.call(request(bytes), far())))
}

fn under_way(connection: &Connection) -> usize {
    connection.calls.taken.lock().as_ref().map_or(0, HashMap::len)
}

fn break_stream(connection: &Connection) {
    drop(Reader { core: Weak::new(), calls: Arc::clone(&connection.calls), why: "it broke".into() });
}

#[tokio::test]
async fn what_waits_travels_together_within_bounds() {
    let (connection, mut outgoing) = connection();
    let mut small: Vec<_> = (0..300).map(|_| begin(&connection, 1)).collect();
    for call in &mut small {
        assert!(poll!(call).is_pending());
    }
    let sizes =
        [outgoing.next().await, outgoing.next().await].map(|message| message.expect("open").requests.len());
    assert_eq!(sizes, [MESSAGE_CALLS, 300 - MESSAGE_CALLS]);
    let mut large: Vec<_> = (0..6).map(|_| begin(&connection, 100 * 1024)).collect();
    for call in &mut large {
        assert!(poll!(call).is_pending());
    }
    let sizes =
        [outgoing.next().await, outgoing.next().await].map(|message| message.expect("open").requests.len());
    assert_eq!(sizes, [3, 3], "a message is closed once it is past its bytes");
}

#[tokio::test]
async fn callers_wait_while_the_queue_is_full() {
    let (connection, mut outgoing) = connection();
    let mut calls: Vec<_> = (0..=QUEUE_CALLS).map(|_| begin(&connection, 1)).collect();
    for call in &mut calls {
        assert!(poll!(call).is_pending());
    }
    assert_eq!(connection.queue.capacity(), 0);
    let late = connection.call(request(1), Instant::now()).await.expect_err("no room");
    assert!(matches!(late, LinkError::NotSent(_)), "{late}");
    let mut sent = 0;
    while sent < QUEUE_CALLS {
        sent += outgoing.next().await.expect("open").requests.len();
    }
    for call in &mut calls {
        assert!(poll!(call).is_pending());
    }
    let last = outgoing.next().await.expect("open").requests.len();
    assert_eq!(sent + last, QUEUE_CALLS + 1, "the last one got its place");
}

#[tokio::test]
async fn a_call_that_was_given_up_in_the_queue_is_never_sent() {
    let (connection, mut outgoing) = connection();
    let late = connection.call(request(1), Instant::now()).await.expect_err("nobody took it");
    assert!(matches!(late, LinkError::NotSent(_)), "{late}");
    let mut dropped = begin(&connection, 2);
    assert!(poll!(&mut dropped).is_pending());
    drop(dropped);
    let mut kept = begin(&connection, 3);
    assert!(poll!(&mut kept).is_pending());
    let message = outgoing.next().await.expect("open");
    assert_eq!(
        message.requests.iter().map(|sent| sent.request.clone()).collect::<Vec<_>>(),
        [Some(request(3))]
    );
    assert_eq!(under_way(&connection), 1);
}

#[tokio::test]
async fn a_call_that_was_given_up_under_way_leaves_nothing_behind() {
    let (connection, mut outgoing) = connection();
    let mut dropped = begin(&connection, 1);
    assert!(poll!(&mut dropped).is_pending());
    let call = outgoing.next().await.expect("open").requests[0].call;
    assert_eq!(under_way(&connection), 1);
    drop(dropped);
    assert_eq!(under_way(&connection), 0);
    // Its reply finds no one.
    connection.calls.answer(call, Some(Reply::Empty(v1::EmptyReply {})));
}

#[tokio::test]
async fn a_call_that_was_sent_is_of_unknown_fate_at_its_deadline() {
    let (connection, mut outgoing) = connection();
    let call = connection.call(request(1), Instant::now() + Duration::from_millis(50));
    let (result, _message) = tokio::join!(call, outgoing.next());
    assert!(matches!(result, Err(LinkError::Unknown(_))), "{result:?}");
    assert_eq!(under_way(&connection), 0);
}

#[tokio::test]
async fn when_the_stream_breaks_what_was_sent_is_unknown_and_what_was_not_is_not() {
    let (connection, mut outgoing) = connection();
    let mut sent = begin(&connection, 1);
    assert!(poll!(&mut sent).is_pending());
    outgoing.next().await.expect("open");
    let mut queued = begin(&connection, 1);
    assert!(poll!(&mut queued).is_pending());
    break_stream(&connection);
    // The stream takes it only now: it is not sent any more.
    assert!(poll!(outgoing.next()).is_pending());
    assert!(matches!(sent.await, Err(LinkError::Unknown(_))));
    assert!(matches!(queued.await, Err(LinkError::NotSent(_))));
    drop(outgoing);
    assert!(matches!(connection.call(request(1), far()).await, Err(LinkError::NotSent(_))));
}

#[tokio::test]
async fn replies_find_their_call_in_any_order() {
    let (connection, mut outgoing) = connection();
    let mut calls: Vec<_> = (0..3).map(|_| begin(&connection, 1)).collect();
    for call in &mut calls {
        assert!(poll!(call).is_pending());
    }
    let sent = outgoing.next().await.expect("open").requests;
    for request in sent.iter().rev() {
        let ts = v1::TimestampReply { ts: request.call };
        connection.calls.answer(request.call, Some(Reply::Timestamp(ts)));
    }
    for (call, request) in calls.into_iter().zip(sent) {
        assert_eq!(call.await, Ok(Reply::Timestamp(v1::TimestampReply { ts: request.call })));
    }
}

#[tokio::test]
async fn a_reply_of_an_unknown_kind_leaves_the_fate_unknown() {
    let (connection, mut outgoing) = connection();
    let mut call = begin(&connection, 1);
    assert!(poll!(&mut call).is_pending());
    let sent = outgoing.next().await.expect("open").requests[0].call;
    connection.calls.answer(sent, None);
    assert!(matches!(call.await, Err(LinkError::Unknown(_))));
}

#[tokio::test]
async fn a_node_that_is_gone_is_not_dialled_for_every_call() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let addr = listener.local_addr().expect("bound").to_string();
    drop(listener);
    let core = Arc::new(Core { addr, state: Mutex::default() });
    let link = SessionLink { core: Arc::clone(&core) };
    let first = link.call(request(1), far()).await.expect_err("gone");
    assert!(matches!(&first, LinkError::NotSent(why) if why.contains("refused")), "{first}");
    core.state.lock().now = Now::Down { until: far(), why: "remembered".into() };
    let second = link.call(request(1), far()).await.expect_err("gone");
    assert_eq!(second, LinkError::NotSent("remembered".into()));
    assert!(core.state.lock().pause >= FIRST_PAUSE);
}
