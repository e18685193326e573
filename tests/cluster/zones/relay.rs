//! The way between zones: a relay in user space that delays what it carries, and counts it.
//!
//! A connection's bytes wait in a queue for each direction, each chunk until its own time: the delay adds to how long
//! a message takes, and not to how many can be under way. Opening a connection is not delayed.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

/// Bytes that are read at once, at most.
const CHUNK: usize = 16 * 1024;
/// Chunks that are under way in one direction of one connection, at most: a peer that reads nothing holds up its
/// sender, and not this process's memory.
const QUEUE: usize = 1024;
/// Round trips that are measured at a time.
const TRIPS: usize = 15;

/// Who connects from one zone to another.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Whose {
    /// The zone's node.
    Nodes,
    /// Clients in the zone.
    Clients,
}

/// The way of one zone's nodes or clients to the node of another zone.
pub struct Lane {
    /// The zone of those who connect.
    pub from: usize,
    /// The zone that they connect to.
    pub to: usize,
    /// Who connects.
    pub whose: Whose,
    /// Where the relay listens for them.
    pub listens: SocketAddr,
    carried: Arc<Carried>,
}

/// Bytes of the connections' content, without the headers of packets: what was written is counted, and not how.
#[derive(Default)]
struct Carried {
    there: AtomicU64,
    back: AtomicU64,
}

impl Lane {
    /// Bytes that it has carried from the first zone to the second, and back.
    pub fn carried(&self) -> (u64, u64) {
        (self.carried.there.load(Ordering::SeqCst), self.carried.back.load(Ordering::SeqCst))
    }
}

/// All lanes between zones. Dropped, it carries nothing more.
pub struct Relay {
    /// Two for each zone and each other one.
    pub lanes: Vec<Lane>,
    /// A lane that leads to whoever sends back what comes, to measure the way itself.
    echo: SocketAddr,
    _tasks: JoinSet<()>,
}

impl Relay {
    /// Carries between the nodes at `nodes`, one for each zone; it listens on ports of `on`. Each direction takes
    /// `delay`.
    pub async fn start(on: IpAddr, nodes: &[SocketAddr], delay: Duration) -> Self {
        let mut tasks = JoinSet::new();
        let mut lanes = Vec::new();
        for from in 0..nodes.len() {
            for to in (0..nodes.len()).filter(|to| *to != from) {
                for whose in [Whose::Nodes, Whose::Clients] {
                    let carried = Arc::new(Carried::default());
                    let listens = open(&mut tasks, on, nodes[to], delay, carried.clone()).await;
                    lanes.push(Lane { from, to, whose, listens, carried });
                }
            }
        }
        let listener = TcpListener::bind((on, 0)).await.expect("a free port");
        let echoes = listener.local_addr().expect("bound");
        tasks.spawn(send_back(listener));
        let echo = open(&mut tasks, on, echoes, delay, Arc::default()).await;
        Self { lanes, echo, _tasks: tasks }
    }

    /// How long a message takes to another zone and back: the median of some, measured now, since a machine that has
    /// much to do adds to the delay.
    pub async fn round_trip(&self) -> Duration {
        let mut socket = TcpStream::connect(self.echo).await.expect("connected");
        socket.set_nodelay(true).expect("set");
        let mut trips = Vec::new();
        for _ in 0..TRIPS {
            let sent = Instant::now();
            socket.write_all(b"?").await.expect("written");
            socket.read_exact(&mut [0]).await.expect("it comes back");
            trips.push(sent.elapsed());
        }
        trips.sort_unstable();
        trips[TRIPS / 2]
    }
}

/// Opens a lane to `target`; answers where it listens.
async fn open(
    tasks: &mut JoinSet<()>,
    on: IpAddr,
    target: SocketAddr,
    delay: Duration,
    carried: Arc<Carried>,
) -> SocketAddr {
    let listener = TcpListener::bind((on, 0)).await.expect("a free port");
    let listens = listener.local_addr().expect("bound");
    tasks.spawn(async move {
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                accepted = listener.accept() => {
                    let (near, _) = accepted.expect("the listener stays open");
                    // An error is the end of a connection whose node or client has ended.
                    connections.spawn(carry(near, target, delay, carried.clone()));
                }
                Some(_) = connections.join_next() => {}
            }
        }
    });
    listens
}

/// Carries one connection until both sides have closed it, or one side has failed.
async fn carry(
    near: TcpStream,
    target: SocketAddr,
    delay: Duration,
    carried: Arc<Carried>,
) -> io::Result<()> {
    let far = TcpStream::connect(target).await?;
    near.set_nodelay(true)?;
    far.set_nodelay(true)?;
    let (from_near, to_near) = near.into_split();
    let (from_far, to_far) = far.into_split();
    tokio::try_join!(
        pump(from_near, to_far, delay, &carried.there),
        pump(from_far, to_near, delay, &carried.back),
    )?;
    Ok(())
}

/// One direction.
async fn pump(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    delay: Duration,
    carried: &AtomicU64,
) -> io::Result<()> {
    let (queue, mut due) = mpsc::channel::<(Instant, Bytes)>(QUEUE);
    let take = async move {
        loop {
            let mut chunk = BytesMut::with_capacity(CHUNK);
            let read = from.read_buf(&mut chunk).await?;
            carried.fetch_add(read as u64, Ordering::SeqCst);
            // An error of `send` is the other half's, which tells of it.
            if read == 0 || queue.send((Instant::now() + delay, chunk.freeze())).await.is_err() {
                return Ok(());
            }
        }
    };
    let give = async move {
        while let Some((at, chunk)) = due.recv().await {
            sleep_until(at).await;
            to.write_all(&chunk).await?;
        }
        to.shutdown().await
    };
    tokio::try_join!(take, give).map(|_| ())
}

async fn send_back(listener: TcpListener) {
    let mut connections = JoinSet::new();
    loop {
        let (mut socket, _) = listener.accept().await.expect("the listener stays open");
        socket.set_nodelay(true).expect("set");
        connections.spawn(async move {
            let (mut from, mut to) = socket.split();
            // An error is its end.
            let _ = tokio::io::copy(&mut from, &mut to).await;
        });
    }
}

/// The relay delays each message, and yet carries many at a time, of which it counts every byte.
#[tokio::test(flavor = "multi_thread")]
async fn the_relay_delays_and_counts_and_does_not_throttle() {
    const BYTES: usize = 16 * 1024 * 1024;
    // One of the tests that need the machine for themselves would slow it down.
    let _turn = crate::support::turn().await;
    let delay = Duration::from_millis(20);
    let local = IpAddr::from([127, 0, 0, 1]);
    let listener = TcpListener::bind((local, 0)).await.expect("a free port");
    let node = listener.local_addr().expect("bound");
    let mut echoes = JoinSet::new();
    echoes.spawn(send_back(listener));
    let relay = Relay::start(local, &[node, node], delay).await;
    let trip = relay.round_trip().await;
    assert!(trip >= 2 * delay, "a round trip took {trip:?}, and each way {delay:?}");

    let lane =
        relay.lanes.iter().find(|lane| lane.from == 1 && lane.whose == Whose::Clients).expect("it is there");
    let (mut from, mut to) = TcpStream::connect(lane.listens).await.expect("connected").into_split();
    let began = Instant::now();
    let sent: Vec<u8> = (0..BYTES).map(|at| (at / 7) as u8).collect();
    let write = async {
        to.write_all(&sent).await.expect("written");
        to.shutdown().await.expect("ended");
    };
    let mut came = Vec::new();
    let (read, ()) = tokio::join!(from.read_to_end(&mut came), write);
    read.expect("read");
    let took = began.elapsed();
    assert!(came == sent, "{} bytes came of {BYTES}, or others", came.len());
    assert_eq!(lane.carried(), (BYTES as u64, BYTES as u64));
    assert!(relay.lanes.iter().all(|other| other.listens == lane.listens || other.carried() == (0, 0)));
    // One chunk for each delay would take more than a thousand delays.
    assert!(took < delay * (BYTES / CHUNK / 4) as u32, "16 MiB there and back took {took:?}");
}
