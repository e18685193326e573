//! Nothing acknowledged is lost, and nothing is half there, however the nodes are killed: three processes under
//! writes and reads, 30 rounds of SIGKILL of one, two or all of them at random moments.
//!
//! `KVORUM_TEST_SEED` chooses the kills, `KVORUM_TEST_ROUNDS` how many rounds there are.

use std::collections::BTreeMap;
use std::env;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use kvorum::client::{Batch, Expect, ScanOptions, Swap};
use kvorum::{Client, Error, ErrorKind};
use parking_lot::{Mutex, RwLock};
use rand::rngs::StdRng;
use rand::seq::{IndexedRandom, SliceRandom};
use rand::{Rng, SeedableRng};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::ledger::{Chain, Counter, Fate, Register};
use crate::support::{Cluster, eventually};

const NODES: usize = 3;
const SHARDS: u32 = 8;
const ROUNDS: u64 = 30;
const WRITERS: usize = 16;
const READERS: usize = 4;
const COUNTERS: usize = 6;
/// Writes that are to be acknowledged before the next kill: at least, and at most.
const BETWEEN_KILLS: std::ops::Range<u64> = 20..400;
/// Half of the writers give up early, so that there are writes of unknown fate; the others try on through a
/// round.
const DEADLINES: [Duration; 2] = [Duration::from_millis(1500), Duration::from_secs(30)];

#[tokio::test(flavor = "multi_thread")]
async fn nothing_acknowledged_is_lost_in_rounds_of_kills() {
    let setting = |name: &str| env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    let seed = setting("KVORUM_TEST_SEED").unwrap_or_else(rand::random);
    let rounds = setting("KVORUM_TEST_ROUNDS").unwrap_or(ROUNDS);
    println!("crash test: KVORUM_TEST_SEED={seed}, {rounds} rounds");
    let mut random = StdRng::seed_from_u64(seed);
    let mut cluster = Cluster::start(NODES, SHARDS).await;
    let mut load = Load::start(&cluster).await;
    let mut killed = [0_u64; NODES];
    for _ in 0..rounds {
        load.wait_for(random.random_range(BETWEEN_KILLS)).await;
        let mut nodes: Vec<usize> = (0..NODES).collect();
        nodes.shuffle(&mut random);
        nodes.truncate(random.random_range(1..=NODES));
        killed[nodes.len() - 1] += 1;
        kill_and_restart(&mut cluster, &load, &nodes, &mut random).await;
    }
    load.wait_for(BETWEEN_KILLS.end).await;
    let world = load.stop().await;
    cluster.wait_serving().await;
    verify(&cluster, &world).await;
    let [one, two, all] = killed;
    println!(
        "{rounds} rounds: one node killed {one} times, two {two} times, all {all} times; {}",
        world.told()
    );
}

/// SIGKILL for these nodes, some at once and some a moment later; then each is started again.
async fn kill_and_restart(cluster: &mut Cluster, load: &Load, nodes: &[usize], random: &mut StdRng) {
    let moment = |random: &mut StdRng| {
        let long = random.random_bool(0.5);
        Duration::from_millis(if long { random.random_range(0..300) } else { 0 })
    };
    for node in nodes {
        cluster.kill(*node);
        tokio::time::sleep(moment(random)).await;
    }
    // Two of three go on without the third, half of the times until they have shown it.
    if nodes.len() == 1 && random.random_bool(0.5) {
        load.wait_for(random.random_range(BETWEEN_KILLS)).await;
    }
    let mut order = nodes.to_vec();
    order.shuffle(random);
    for node in order {
        cluster.restart(node);
        tokio::time::sleep(moment(random)).await;
    }
}

/// What all writers and readers share.
struct World {
    registers: RwLock<Vec<Arc<Register>>>,
    chains: Mutex<Vec<Chain>>,
    counters: Vec<Counter>,
    stop: AtomicBool,
    acknowledged: AtomicU64,
    refused: AtomicU64,
    undetermined: AtomicU64,
    reads: AtomicU64,
    longest_gap: Mutex<Duration>,
}

impl World {
    fn new() -> Self {
        Self {
            registers: RwLock::default(),
            chains: Mutex::default(),
            counters: (0..COUNTERS)
                .map(|n| Counter::new(format!("{}/counter", place(n, COUNTERS))))
                .collect(),
            stop: AtomicBool::new(false),
            acknowledged: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            undetermined: AtomicU64::new(0),
            reads: AtomicU64::new(0),
            longest_gap: Mutex::default(),
        }
    }

    fn ended(&self, fate: Fate) {
        let counter = match fate {
            Fate::Acknowledged => &self.acknowledged,
            Fate::Refused => &self.refused,
            Fate::Undetermined => &self.undetermined,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    fn note_gap(&self, gap: Duration) {
        let mut longest = self.longest_gap.lock();
        *longest = gap.max(*longest);
    }

    fn runs(&self) -> bool {
        !self.stop.load(Ordering::Relaxed)
    }

    fn told(&self) -> String {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        format!(
            "{} writes acknowledged, {} refused, {} of unknown fate, {} reads checked, {} keys; longest time without \
             an acknowledged write: {:.2?}",
            of(&self.acknowledged),
            of(&self.refused),
            of(&self.undetermined),
            of(&self.reads),
            self.registers.read().iter().map(|register| register.keys.len()).sum::<usize>()
                + self.chains.lock().len()
                + self.counters.len(),
            *self.longest_gap.lock(),
        )
    }
}

/// The `n`-th of `all` prefixes, spread over the shards.
fn place(n: usize, all: usize) -> String {
    let digits = b"0123456789abcdefghijklmnopqrstuvwxyz";
    let at = (n * digits.len() * digits.len()) / all;
    [digits[at / digits.len()], digits[at % digits.len()]].iter().map(|digit| char::from(*digit)).collect()
}

/// The tasks that write and read.
struct Load {
    world: Arc<World>,
    tasks: Mutex<JoinSet<()>>,
}

impl Load {
    async fn start(cluster: &Cluster) -> Self {
        let world = Arc::new(World::new());
        let mut tasks = JoinSet::new();
        // The clients are few, as programs are, and know nothing of each other.
        let mut clients = Vec::new();
        for deadline in DEADLINES.iter().cycle().take(4) {
            clients.push(cluster.client().await.with_deadline(*deadline));
        }
        for n in 0..WRITERS {
            let client = clients[n % clients.len()].clone();
            tasks.spawn(Writer::new(n, client, world.clone()).run());
        }
        let client = cluster.client().await.with_deadline(DEADLINES[0]);
        for _ in 0..READERS {
            tasks.spawn(read(client.clone(), world.clone()));
        }
        tasks.spawn(watch(world.clone()));
        Self { world, tasks: Mutex::new(tasks) }
    }

    /// Waits until so many more writes are acknowledged. A task that failed fails the test.
    async fn wait_for(&self, writes: u64) {
        let wanted = self.world.acknowledged.load(Ordering::Relaxed) + writes;
        eventually("writes are acknowledged", async || {
            if let Some(ended) = self.tasks.lock().try_join_next() {
                ended.expect("a task failed: what it found is above");
            }
            let so_far = self.world.acknowledged.load(Ordering::Relaxed);
            if so_far >= wanted { Ok(()) } else { Err(format!("{so_far} of {wanted}")) }
        })
        .await;
    }

    async fn stop(&mut self) -> Arc<World> {
        self.world.stop.store(true, Ordering::Relaxed);
        std::mem::take(self.tasks.get_mut()).join_all().await;
        self.world.clone()
    }
}

/// Measures how long no write is acknowledged.
async fn watch(world: Arc<World>) {
    let (mut last, mut since) = (0, Instant::now());
    while world.runs() {
        let now = world.acknowledged.load(Ordering::Relaxed);
        if now != last {
            (last, since) = (now, Instant::now());
        }
        world.note_gap(since.elapsed());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// One of the writers: it does one thing after the other.
struct Writer {
    name: usize,
    client: Client,
    world: Arc<World>,
    made: usize,
}

impl Writer {
    fn new(name: usize, client: Client, world: Arc<World>) -> Self {
        Self { name, client, world, made: 0 }
    }

    async fn run(mut self) {
        let mut single = self.register(&["single"]);
        let mut pair = self.register(&["left", "right"]);
        let mut chain = Chain::new(self.key("chain"));
        while self.world.runs() {
            match rand::random_range(0..4) {
                0 => {
                    if !self.write(&single).await {
                        single = self.register(&["single"]);
                    }
                }
                1 => {
                    if !self.write(&pair).await {
                        pair = self.register(&["left", "right"]);
                    }
                }
                2 => self.add().await,
                _ => self.swap(&mut chain).await,
            }
        }
        self.world.chains.lock().push(chain);
    }

    /// A key of this writer, in another shard than the last one.
    fn key(&mut self, what: &str) -> String {
        self.made += 1;
        format!(
            "{}/{}/{}/{what}",
            place((self.name + self.made * 5) % WRITERS, WRITERS),
            self.name,
            self.made
        )
    }

    /// New keys, together in one shard.
    fn register(&mut self, names: &[&str]) -> Arc<Register> {
        let prefix = self.key("register");
        let register = Arc::new(Register::new(names.iter().map(|name| format!("{prefix}/{name}")).collect()));
        self.world.registers.write().push(register.clone());
        register
    }

    /// Writes the next value. False: the keys are to be left alone from here on.
    async fn write(&self, register: &Register) -> bool {
        let value = register.next();
        let text = value.to_string();
        let written = match &register.keys[..] {
            [key] => self.client.put(key, text).await.map(|_| ()),
            keys => {
                let batch = keys.iter().fold(Batch::new(), |batch, key| batch.then_put(key, text.clone()));
                self.client.batch(batch).await.map(|_| ())
            }
        };
        let fate = written.map_or_else(|error| Fate::of(&error), |()| Fate::Acknowledged);
        let goes_on = register.ended(value, fate);
        self.world.ended(fate);
        goes_on
    }

    async fn add(&self) {
        let counter = &self.world.counters[rand::random_range(0..COUNTERS)];
        counter.begin();
        let fate = match self.client.add(&counter.key, 1).await {
            Ok(added) => {
                counter.added(added.value);
                Fate::Acknowledged
            }
            Err(error) => {
                let fate = Fate::of(&error);
                counter.failed(fate);
                fate
            }
        };
        self.world.ended(fate);
    }

    async fn swap(&self, chain: &mut Chain) {
        let value = chain.next();
        let expect = if chain.version == 0 { Expect::Absent } else { Expect::Version(chain.version) };
        let text = Bytes::from(value.to_string());
        let fate = match self.client.compare_and_swap(&chain.key, expect, Some(text)).await {
            Ok(Swap::Written(written)) => {
                chain.swapped(value, written.version);
                Fate::Acknowledged
            }
            // Only an earlier attempt of unknown fate explains it. Were it this one, it took effect twice.
            Ok(Swap::Differs { current, .. }) => {
                let before = chain.version;
                chain.holds(current.as_ref().map(|record| (record.version, &record.value)));
                assert_ne!(chain.version, before, "{}: it differs from itself: {current:?}", chain.key);
                return;
            }
            Ok(Swap::Removed { .. }) => panic!("{}: removed by a write", chain.key),
            Err(error) => {
                let fate = Fate::of(&error);
                chain.failed(value, fate);
                fate
            }
        };
        self.world.ended(fate);
    }
}

/// Reads what the writers write, and checks that nothing goes backwards: a read sees all that was acknowledged
/// or read before it began.
async fn read(client: Client, world: Arc<World>) {
    let check = |error: Error| {
        assert_eq!(error.kind, ErrorKind::Unavailable, "a read failed: {error}");
    };
    while world.runs() {
        let register = world.registers.read().choose(&mut rand::rng()).cloned();
        if let Some(register) = register {
            let least = register.least();
            let values = match &register.keys[..] {
                [key] => client.get(key).await.map(|found| vec![found]),
                keys => client.get_many(keys).await.map(|found| found.records),
            };
            match values {
                Ok(records) => {
                    let values: Vec<_> = records.into_iter().map(|found| found.map(|it| it.value)).collect();
                    register.check(least, &values);
                    world.reads.fetch_add(1, Ordering::Relaxed);
                }
                Err(error) => check(error),
            }
        }
        let counter = &world.counters[rand::random_range(0..COUNTERS)];
        let least = counter.least();
        match client.get(&counter.key).await {
            Ok(found) => {
                counter.check(least, found.as_ref().map(|record| &record.value));
                world.reads.fetch_add(1, Ordering::Relaxed);
            }
            Err(error) => check(error),
        }
    }
}

/// After the last write: the replicas are equal, and each holds everything.
async fn verify(cluster: &Cluster, world: &World) {
    let client = cluster.client().await;
    let rows = client.scan(ScanOptions::all()).collect_rows().await.expect("scanned");
    let read: BTreeMap<Bytes, Bytes> =
        rows.iter().map(|row| (row.key.clone(), row.record.value.clone())).collect();
    let versions: BTreeMap<&[u8], u64> = rows.iter().map(|row| (&row.key[..], row.record.version)).collect();
    cluster.wait_equal().await;
    for status in cluster.statuses().await {
        for replica in status.expect("every node answers").replicas {
            assert_eq!(replica.fault, "", "a replica stopped: {replica:?}");
        }
    }
    let mut views = vec![read];
    for at in 0..NODES {
        views.push(cluster.replica_rows(at).await);
    }
    for rows in &views {
        let found = |key: &String| rows.get(key.as_bytes()).cloned();
        for register in world.registers.read().iter() {
            register.check_end(&register.keys.iter().map(found).collect::<Vec<_>>());
        }
        for counter in &world.counters {
            counter.check_end(found(&counter.key).as_ref());
        }
        for chain in world.chains.lock().iter_mut() {
            let value = found(&chain.key);
            let version = versions.get(chain.key.as_bytes()).copied().unwrap_or(0);
            chain.holds(value.as_ref().map(|value| (version, value)));
        }
        assert_eq!(*rows, views[0], "a replica holds other rows than were read");
    }
}
