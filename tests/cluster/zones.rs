//! Three zones with some way between them: which reads go that way, and how often.
//!
//! Each zone is a network namespace with a node in it; clients are the real command line, in the namespace of one zone.
//! Whatever goes from zone to zone goes through a relay in this process, which delays it and counts it.
//!
//! Bytes are counted twice, since each count misses something. The relay counts what clients and nodes write to other
//! zones, each apart, so that a client that reads elsewhere is told from a node that asks the leader for each read; it
//! would miss what found a way past it. The kernel counts all packets on the cable of the client's zone, the only way out
//! of it, but can't tell whose they are. Raft and the closed timestamps are always on their way, so that what a run of
//! reads moves is the difference to as long a time without them.

mod network;
mod relay;

use std::collections::BTreeMap;
use std::ops::Sub;
use std::process::Output;
use std::time::Duration;

use network::{Network, ZONES, zone_name};
use relay::{Relay, Whose};
use rustix::process::{Signal, geteuid};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

use crate::support::{Cluster, PATIENCE, Process, eventually, turn};

/// How long each direction between two zones takes.
const DELAY: Duration = Duration::from_millis(20);
/// Bytes of a value.
const VALUE_BYTES: u64 = 256;
/// Bytes of a key, all of which begin with [`PREFIX`].
const KEY_BYTES: u64 = 18;
const PREFIX: &[u8] = b"bench/";
const KEYS: &str = "1000";

/// What a read in the own zone may move between zones: it moves nothing, but the background is not the same all the time.
const STRAY_BYTES_A_READ: u64 = 4;
/// What a run of reads may move, however many they are: asking for the map, and more background.
const STRAY_BYTES: u64 = 32 * 1024;
/// A read that costs one way there and back takes this many measured round trips, in hundredths. Two would be 200.
const ONE_TRIP: std::ops::Range<u64> = 80..185;

/// How often something is measured before the test fails.
const MEASUREMENTS: usize = 5;

/// A cluster of a node in each zone, and the ways between them. Dropped in this order.
struct Zones {
    cluster: Cluster,
    relay: Relay,
    network: Network,
}

/// What `kvorum bench` said.
#[derive(Debug)]
struct Run {
    ops: u64,
    errors: u64,
    p50: Duration,
    /// How many reads the node of each zone answered.
    served_by: BTreeMap<usize, u64>,
}

impl Run {
    /// What the reads move at least, wherever: their keys and values.
    fn least_bytes(&self) -> u64 {
        self.ops * (KEY_BYTES + VALUE_BYTES)
    }
}

/// Bytes between a zone and the others since the beginning, in both directions.
#[derive(Clone, Copy, Debug)]
struct Traffic {
    /// What the zone's clients wrote to other zones, and were answered.
    clients: u64,
    /// What the zone's node and the other nodes wrote to each other.
    nodes: u64,
    /// All packets on the zone's cable.
    cable: u64,
    /// What stayed on the zone's loopback device.
    inner: u64,
}

impl Sub for Traffic {
    type Output = Self;

    fn sub(self, before: Self) -> Self {
        Self {
            clients: self.clients - before.clients,
            nodes: self.nodes - before.nodes,
            cable: self.cable - before.cable,
            inner: self.inner - before.inner,
        }
    }
}

impl Zones {
    /// A cluster of one shard, with some keys in it. `None`, and words about it, where this machine does not let us; under
    /// CI only where we are not root.
    async fn start() -> Option<Self> {
        if !geteuid().is_root() {
            println!("left out: network namespaces need root");
            return None;
        }
        let turn = turn().await;
        let (network, relay) = match Self::ways().await {
            Ok(ways) => ways,
            Err(why) if std::env::var_os("CI").is_some() => panic!("zones can't be made: {why}"),
            Err(why) => {
                println!("left out: zones can't be made here: {why}");
                return None;
            }
        };
        let dir = tempfile::tempdir().expect("a directory");
        let mut nodes = Vec::new();
        for zone in 0..ZONES {
            let mut node = Process::new(dir.path(), &format!("node-{}", zone + 1));
            node.grpc = network.grpc(zone).to_string();
            node.http = network.http(zone).to_string();
            node.join = (0..ZONES).map(|zone| network.grpc(zone).to_string()).collect();
            node.start_as(network.node(zone));
            nodes.push(node);
        }
        let cluster = Cluster::form(nodes, dir, turn, 1).await;
        let zones = Self { cluster, relay, network };
        let loaded = zones.kvorum(0, &["bench", "get", "--keys", KEYS, "--seconds", "1"]).await;
        assert!(loaded.status.success(), "{loaded:?}");
        zones.cluster.wait_equal().await;
        Some(zones)
    }

    /// The zones, and the ways between them: also root may be without the means in a container.
    async fn ways() -> Result<(Network, Relay), String> {
        let network = Network::make()?;
        let nodes: Vec<_> = (0..ZONES).map(|zone| network.grpc(zone)).collect();
        let relay = Relay::start(network.gateway(), &nodes, DELAY).await;
        network.lead_through(&relay.lanes)?;
        Ok((network, relay))
    }

    /// A zone whose node leads nothing, and the one whose node leads the shard.
    async fn home_and_leader(&self) -> (usize, usize) {
        let leader = self.cluster.leader_of(PREFIX).await;
        let system = self.cluster.system_leader().await;
        let home = (0..ZONES).find(|zone| *zone != leader && *zone != system).expect("one of three");
        (home, leader)
    }

    /// Runs the real command line in a zone. It knows all nodes, and asks its own zone's first.
    async fn kvorum(&self, home: usize, arguments: &[&str]) -> Output {
        let endpoints: Vec<_> =
            (0..ZONES).map(|step| self.network.grpc((home + step) % ZONES).to_string()).collect();
        self.kvorum_at(home, &endpoints.join(","), arguments).await
    }

    async fn kvorum_at(&self, home: usize, endpoints: &str, arguments: &[&str]) -> Output {
        let mut command = self.network.client(home);
        command.args(["--endpoints", endpoints, "--output", "json"]).args(arguments);
        let mut command = tokio::process::Command::from(command);
        let run = command.kill_on_drop(true).output();
        timeout(PATIENCE, run).await.expect("the command ends").expect("the command starts")
    }

    /// `kvorum bench get` from a zone, of keys that are there.
    async fn bench(&self, home: usize, seconds: u32, clients: u32, flags: &[&str]) -> Run {
        let (seconds, clients) = (seconds.to_string(), clients.to_string());
        let mut arguments = vec!["bench", "get", "--no-load", "--keys", KEYS];
        arguments.extend(["--seconds", &seconds, "--clients", &clients]);
        arguments.extend(flags);
        let output = self.kvorum(home, &arguments).await;
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        let said: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let number = |name: &str| said[name].as_u64().unwrap_or_else(|| panic!("no {name} in {said}"));
        let served_by = said["served_by"].as_object().expect("it says who answered").iter();
        let zone_of = |node: &str| node.parse::<usize>().expect("a node's id") - 1;
        Run {
            ops: number("ops"),
            errors: number("errors"),
            p50: Duration::from_micros(number("p50_us")),
            served_by: served_by
                .map(|(node, reads)| (zone_of(node), reads.as_u64().expect("reads")))
                .collect(),
        }
    }

    /// Who answers one read, as `kvorum get --explain` tells: the zone, its role, and whether it asked the leader.
    async fn explained(&self, home: usize, flags: &[&str]) -> (usize, String, bool) {
        let mut arguments = vec!["get", "bench/000000000007", "--explain"];
        arguments.extend(flags);
        let output = self.kvorum(home, &arguments).await;
        let said: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"));
        let served = &said["served"];
        let node = served["node"].as_u64().expect("a node's id") as usize;
        let role = served["role"].as_str().expect("a role").to_owned();
        (node - 1, role, served["asked_leader"].as_bool().expect("it says so"))
    }

    fn traffic(&self, home: usize) -> Traffic {
        let between = |whose: Whose| {
            let touches = |lane: &&relay::Lane| lane.whose == whose && (lane.from == home || lane.to == home);
            let carried = self.relay.lanes.iter().filter(touches).map(relay::Lane::carried);
            carried.map(|(there, back)| there + back).sum()
        };
        Traffic {
            clients: between(Whose::Clients),
            nodes: between(Whose::Nodes),
            cable: self.network.cable_bytes(home),
            inner: self.network.inner_bytes(home),
        }
    }
}

fn nearest<'a>(level: &'a str, zone: &'a str) -> [&'a str; 6] {
    ["--level", level, "--policy", "nearest", "--zone", zone]
}

/// Measures until nothing came between, some times at most: on a machine that has much to do a node may stand still for
/// so long that reads rightly go elsewhere, or that its shard gets another leader. Fails with the last reason.
async fn undisturbed<T>(mut measure: impl AsyncFnMut() -> Result<T, String>) -> T {
    let mut reasons = Vec::new();
    while reasons.len() < MEASUREMENTS {
        match measure().await {
            Ok(measured) => return measured,
            Err(why) => {
                println!("measured again: {why}");
                reasons.push(why);
            }
        }
    }
    panic!("no measurement of {MEASUREMENTS} is as it should be: {reasons:#?}");
}

fn ensure(holds: bool, why: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(why()) }
}

/// All were answered, by the node of this zone.
fn all_served_by(run: &Run, zone: usize) -> Result<(), String> {
    let all = run.errors == 0 && run.served_by == BTreeMap::from([(zone, run.ops)]);
    ensure(all, || format!("zone {} was to answer all: {run:?}", zone + 1))
}

fn bytes_a_read(bytes: u64, run: &Run) -> f64 {
    bytes as f64 / run.ops as f64
}

/// Bounded reads by `nearest` are answered in the client's own zone, and nothing of them leaves it. The same reads of a
/// client that believes to be elsewhere do, every byte of them.
#[tokio::test(flavor = "multi_thread")]
async fn nearest_bounded_reads_stay_in_their_zone() {
    let Some(zones) = Zones::start().await else { return };
    let (home, leader) = zones.home_and_leader().await;
    undisturbed(async || near_reads_move_nothing(&zones, home).await).await;
    undisturbed(async || far_reads_move_all(&zones, home, leader).await).await;
    balanced_reads_move_their_share(&zones, home).await;
    nothing_goes_past_the_relay(&zones, home, leader).await;
}

async fn near_reads_move_nothing(zones: &Zones, home: usize) -> Result<(), String> {
    let (before, began) = (zones.traffic(home), Instant::now());
    let run = zones.bench(home, 5, 16, &nearest("bounded", &zone_name(home))).await;
    let (took, after) = (began.elapsed(), zones.traffic(home));
    let moved = after - before;
    sleep(took).await;
    let idle = zones.traffic(home) - after;
    println!("{} reads in the own zone, {took:?}: {moved:?}; idle as long: {idle:?}", run.ops);
    let surplus = moved.cable.saturating_sub(idle.cable);
    println!("between zones, less idle: {:.3} bytes a read", bytes_a_read(surplus, &run));

    all_served_by(&run, home)?;
    let allowed = STRAY_BYTES + STRAY_BYTES_A_READ * run.ops;
    ensure(moved.clients <= STRAY_BYTES, || format!("clients moved {} bytes between zones", moved.clients))?;
    for (what, moved, idle) in [("nodes", moved.nodes, idle.nodes), ("the cable", moved.cable, idle.cable)] {
        let holds = moved <= idle + allowed;
        ensure(holds, || format!("{what}: {moved} bytes, idle {idle}, of {} reads", run.ops))?;
    }
    // They were read nevertheless, and what is allowed is far from what they would have moved.
    let least = run.least_bytes();
    ensure(moved.inner >= least, || format!("{} bytes stayed inside, of {} reads", moved.inner, run.ops))?;
    ensure(allowed * 10 <= least, || format!("{} reads are too few to tell", run.ops))
}

/// The control: the same command, with another zone's name.
async fn far_reads_move_all(zones: &Zones, home: usize, other: usize) -> Result<(), String> {
    let before = zones.traffic(home);
    let run = zones.bench(home, 5, 64, &nearest("bounded", &zone_name(other))).await;
    let moved = zones.traffic(home) - before;
    println!("{} reads at another zone: {moved:?}", run.ops);
    println!(
        "between zones: {:.0} bytes a read, on the cable {:.0}",
        bytes_a_read(moved.clients, &run),
        bytes_a_read(moved.cable, &run)
    );
    let least = run.least_bytes();
    assert!(moved.clients >= least || run.served_by.contains_key(&home), "{moved:?} of {run:?}");
    assert!(moved.cable >= moved.clients, "{moved:?}: the kernel counts less than the relay");
    all_served_by(&run, other)
}

/// Balanced reads go to all zones at first, and then less often to those that are found to be slow.
async fn balanced_reads_move_their_share(zones: &Zones, home: usize) {
    let before = zones.traffic(home);
    let run = zones.bench(home, 5, 64, &["--level", "bounded", "--policy", "balanced"]).await;
    let moved = zones.traffic(home) - before;
    println!("{} balanced reads, by zone {:?}: {moved:?}", run.ops, run.served_by);
    let elsewhere: u64 =
        run.served_by.iter().filter(|(zone, _)| **zone != home).map(|(_, reads)| reads).sum();
    assert!(run.errors == 0 && elsewhere > 0, "{run:?}");
    assert!(moved.clients >= elsewhere * (KEY_BYTES + VALUE_BYTES), "{moved:?} of {run:?}");
}

/// What is not led to the relay is dropped, and until now there was nothing of the kind.
async fn nothing_goes_past_the_relay(zones: &Zones, home: usize, other: usize) {
    let dropped: Vec<u64> = (0..ZONES).map(|zone| zones.network.dropped(zone)).collect();
    assert_eq!(dropped, [0; ZONES], "packets of each zone that went past the relay");
    let unled = zones.network.http(other);
    TcpStream::connect(unled).await.expect("the node listens there, for the root namespace");
    let output = zones.kvorum_at(home, &unled.to_string(), &["--deadline", "2s", "get", "k"]).await;
    assert!(!output.status.success(), "{output:?}");
    assert!(zones.network.dropped(home) > 0, "the connection to {unled} was not dropped: {output:?}");
}

/// Reads of a shard that is led in another zone.
struct Trips {
    /// Measured before and after them.
    round_trips: [Duration; 2],
    /// Linearizable, by `nearest` and by `leader`.
    nearest: Run,
    leader: Run,
    bounded: Run,
}

impl Trips {
    async fn measure(zones: &Zones, home: usize) -> Self {
        let own = zone_name(home);
        let before = zones.relay.round_trip().await;
        let nearest_run = zones.bench(home, 4, 4, &nearest("linearizable", &own)).await;
        let leader = zones.bench(home, 4, 4, &["--policy", "leader"]).await;
        let bounded = zones.bench(home, 4, 4, &nearest("bounded", &own)).await;
        let round_trips = [before, zones.relay.round_trip().await];
        Self { round_trips, nearest: nearest_run, leader, bounded }
    }

    /// The median latency in hundredths of a round trip.
    fn hundredths(&self, run: &Run) -> u64 {
        let trip = (self.round_trips[0] + self.round_trips[1]) / 2;
        (run.p50.as_micros() * 100 / trip.as_micros()) as u64
    }

    fn check(&self, home: usize, leader: usize) -> Result<(), String> {
        let [nearest, led, bounded] =
            [&self.nearest, &self.leader, &self.bounded].map(|run| self.hundredths(run));
        println!(
            "round trips {:?}; medians: linearizable by nearest {:?} ({nearest} hundredths of a trip), by leader {:?} \
             ({led}); bounded {:?} ({bounded})",
            self.round_trips, self.nearest.p50, self.leader.p50, self.bounded.p50
        );
        all_served_by(&self.nearest, home)?;
        all_served_by(&self.leader, leader)?;
        all_served_by(&self.bounded, home)?;
        let is_one = |hundredths| ONE_TRIP.contains(&hundredths);
        ensure(is_one(nearest), || format!("the own zone's node asks the leader once: {:?}", self.nearest))?;
        ensure(is_one(led), || format!("the leader is asked once: {:?}", self.leader))?;
        ensure(bounded < 30, || format!("nobody is asked: {:?}", self.bounded))
    }
}

/// A linearizable read of a shard that is led elsewhere costs one trip, whether the client asks the leader or the own
/// zone's node does; a bounded one costs none.
#[tokio::test(flavor = "multi_thread")]
async fn linearizable_reads_cost_one_trip_between_zones() {
    let Some(zones) = Zones::start().await else { return };
    undisturbed(async || {
        let (home, leader) = zones.home_and_leader().await;
        let own = zone_name(home);
        let who = [
            zones.explained(home, &["--policy", "leader"]).await,
            zones.explained(home, &nearest("linearizable", &own)).await,
            zones.explained(home, &nearest("bounded", &own)).await,
        ];
        let trips = Trips::measure(&zones, home).await;
        let now = zones.cluster.leader_of(PREFIX).await;
        ensure(now == leader, || {
            format!("the leader was in zone {}, and is in zone {}", leader + 1, now + 1)
        })?;
        let follower = || "follower".to_owned();
        let wanted =
            [(leader, "leader".to_owned(), false), (home, follower(), true), (home, follower(), false)];
        ensure(who == wanted, || format!("who answers, and whether the leader was asked: {who:?}"))?;
        trips.check(home, leader)
    })
    .await;
}

/// While the own zone's node stands still or is down, reads by `nearest` are answered in other zones, none fails, and
/// they come home when it is back.
#[tokio::test(flavor = "multi_thread")]
async fn nearest_reads_go_on_from_other_zones() {
    let Some(mut zones) = Zones::start().await else { return };
    let (home, _) = zones.home_and_leader().await;
    let own = zone_name(home);
    let near = nearest("bounded", &own);

    // It stops while a client reads.
    let inner = zones.traffic(home).inner;
    let reads_come =
        eventually("the own zone's node is read at", async || match zones.traffic(home).inner - inner {
            0..100_000 => Err("not much yet".to_owned()),
            _ => Ok(()),
        });
    let stop = async {
        reads_come.await;
        zones.cluster.nodes[home].signal(Signal::STOP);
    };
    let (torn, ()) = tokio::join!(zones.bench(home, 10, 4, &near), stop);
    println!("the own zone's node stopped meanwhile: {torn:?}");
    assert_eq!(torn.errors, 0, "{torn:?}");
    assert!(torn.served_by.contains_key(&home), "{torn:?}");
    assert!(torn.served_by.keys().any(|zone| *zone != home), "{torn:?}");

    goes_elsewhere(&zones, home, "stands still").await;
    zones.cluster.nodes[home].signal(Signal::CONT);
    comes_home(&zones, home).await;

    zones.cluster.kill(home);
    goes_elsewhere(&zones, home, "is down").await;
    zones.cluster.nodes[home].start_as(zones.network.node(home));
    zones.cluster.wait_serving().await;
    comes_home(&zones, home).await;
}

/// A new client's reads, of both levels, are answered by the other zones.
async fn goes_elsewhere(zones: &Zones, home: usize, how: &str) {
    for level in ["bounded", "linearizable"] {
        let before = zones.traffic(home);
        let run = zones.bench(home, 6, 4, &nearest(level, &zone_name(home))).await;
        let moved = zones.traffic(home) - before;
        println!("the own zone's node {how}, {level}: {run:?}, {} bytes from other zones", moved.clients);
        assert_eq!(run.errors, 0, "{run:?}");
        assert!(run.ops > 0 && !run.served_by.contains_key(&home), "{run:?}");
        assert!(moved.clients >= run.least_bytes(), "{moved:?} of {} reads", run.ops);
    }
}

async fn comes_home(zones: &Zones, home: usize) {
    eventually("reads come home", async || {
        let run = zones.bench(home, 1, 4, &nearest("bounded", &zone_name(home))).await;
        match run.served_by.get(&home) {
            Some(reads) if *reads == run.ops && run.errors == 0 => Ok(()),
            _ => Err(format!("{run:?}")),
        }
    })
    .await;
}
