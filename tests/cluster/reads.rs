//! Reads at every level, from every replica: what they see, who answers, and what goes on without a majority.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use kvorum::client::{Policy, ReadAt, ReadLevel, ReplicaRole, ScanOptions, Served};
use kvorum::rpc::{convert, v1};
use kvorum::{Client, ErrorKind};
use rustix::process::Signal;
use tokio::time::Instant;

use crate::raw;
use crate::support::{Cluster, PATIENCE, eventually};

/// One key a shard, of a cluster that was cut evenly in four by first bytes.
fn spread() -> Vec<Vec<u8>> {
    (0..4_u8).map(|n| vec![n * 64 + 5, b'k']).collect()
}

/// Reads a key at the node itself: a unary call is answered where it goes.
async fn get_at_node(addr: &str, request: v1::GetRequest) -> (Option<String>, Served) {
    let reply = raw::kv(addr).await.get(request).await.expect("read").into_inner();
    let served = convert::served_from_proto(&reply.served.expect("it says who answered")).expect("in full");
    let value = reply.record.map(|record| String::from_utf8(record.value.to_vec()).expect("text"));
    (value, served)
}

fn request(key: &[u8]) -> v1::GetRequest {
    v1::GetRequest { key: key.to_vec().into(), ..Default::default() }
}

/// Whatever was acknowledged is seen at once, at each node; a follower asks the leader how far it must be.
#[tokio::test(flavor = "multi_thread")]
async fn every_node_answers_linearizable_reads_of_every_shard() {
    let cluster = Cluster::start(3, 4).await;
    let client = cluster.client().await;
    let mut roles: BTreeMap<ReplicaRole, u64> = BTreeMap::new();
    for round in 0..50 {
        for key in spread() {
            let value = format!("{round}");
            client.put(&key, value.clone()).await.expect("written");
            for (at, node) in cluster.nodes.iter().enumerate() {
                let (read, served) = get_at_node(&node.grpc, request(&key)).await;
                assert_eq!(read.as_ref(), Some(&value), "node {} shows an old value", at + 1);
                assert_eq!(served.node.0, at as u64 + 1, "the node itself answers");
                assert_eq!(served.level, ReadLevel::Linearizable);
                assert_eq!(served.asked_leader, served.role == ReplicaRole::Follower);
                *roles.entry(served.role).or_default() += 1;
            }
        }
    }
    let (led, followed) = (roles[&ReplicaRole::Leader], roles[&ReplicaRole::Follower]);
    assert!(led >= 150 && followed >= 350, "one of three leads each shard: {roles:?}");
}

/// Snapshots that lie a little back, and bounded reads, are answered by each replica alone; both see one instant.
#[tokio::test(flavor = "multi_thread")]
async fn closed_timestamps_rise_in_idle_shards_and_serve_reads_without_the_leader() {
    let cluster = Cluster::start(3, 4).await;
    let client = cluster.client().await;
    for key in spread() {
        client.put(&key, "1").await.expect("written");
    }
    let at = client.timestamp().await.expect("a timestamp");
    client.put(&spread()[0], "2").await.expect("written");
    for key in spread() {
        for node in &cluster.nodes {
            // The shards are idle, so that only words of their leaders can close the timestamp.
            eventually("the timestamp is closed", async || {
                let snapshot = v1::GetRequest { at_ts: at.0, ..request(&key) };
                let (value, served) = get_at_node(&node.grpc, snapshot).await;
                assert_eq!(value.as_deref(), Some("1"), "the snapshot is before the last write");
                assert_eq!((served.level, served.at_ts), (ReadLevel::Snapshot, at));
                if served.asked_leader { Err("the leader was asked".to_owned()) } else { Ok(()) }
            })
            .await;
            // It may be a minute old, and go back to before the key was written, but not for long.
            eventually("a bounded read sees the key", async || {
                let bounded = v1::GetRequest { max_staleness_ms: Some(60_000), ..request(&key) };
                let (value, served) = get_at_node(&node.grpc, bounded).await;
                assert_eq!((served.level, served.asked_leader), (ReadLevel::Bounded, false));
                assert!(served.staleness_ms <= 60_000);
                value.map(drop).ok_or_else(|| format!("nothing as of {}", served.at_ts))
            })
            .await;
        }
    }
    // As fresh as that there is nothing closed, but a leader vouches for it.
    let fresh = v1::GetRequest { max_staleness_ms: Some(1), ..request(&spread()[0]) };
    for node in &cluster.nodes {
        let (value, _) = get_at_node(&node.grpc, fresh.clone()).await;
        assert_eq!(value.as_deref(), Some("2"));
    }
    wrong_levels_are_refused(&cluster).await;
}

async fn wrong_levels_are_refused(cluster: &Cluster) {
    let mut kv = raw::kv(&cluster.nodes[0].grpc).await;
    for (wrong, said) in [
        (v1::GetRequest { max_staleness_ms: Some(0), ..request(b"k") }, "max_staleness_ms is 0"),
        (v1::GetRequest { max_staleness_ms: Some(600_001), ..request(b"k") }, "600001"),
        (v1::GetRequest { max_staleness_ms: Some(5), at_ts: 7, ..request(b"k") }, "the one or the other"),
    ] {
        let status = kv.get(wrong).await.expect_err("refused");
        let error = convert::error_from_status(&status);
        assert_eq!(error.kind, ErrorKind::Invalid, "{error}");
        assert!(error.message.contains(said), "{error}");
    }
}

/// Moves amounts between accounts in all shards, so that only reads of one instant add up.
async fn transfer_for_ever(
    client: Client,
    accounts: Vec<Vec<u8>>,
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
) {
    let hasty = client.with_deadline(Duration::from_secs(3));
    let mut turn = 0_usize;
    while !stop.load(Ordering::SeqCst) {
        turn += 1;
        let (from, to) = (accounts[turn % 4].clone(), accounts[(turn + 1 + turn / 4 % 3) % 4].clone());
        let moved = hasty.transact(|txn| {
            let (from, to) = (from.clone(), to.clone());
            async move {
                txn.add(from, -1)?;
                txn.add(to, 1)
            }
        });
        if moved.await.is_ok() {
            done.fetch_add(1, Ordering::SeqCst);
        }
    }
}

const TOTAL: i64 = 4_000;

async fn sum_of(client: &Client, accounts: &[Vec<u8>], max_staleness: Duration) -> kvorum::Result<i64> {
    Ok(sum(client.bounded(max_staleness).get_many(accounts).await?))
}

fn sum(values: kvorum::client::Values) -> i64 {
    let amount = |record: Option<kvorum::client::Record>| {
        // Before they were opened, none was there.
        let Some(record) = record else { return 0 };
        std::str::from_utf8(&record.value).expect("text").parse::<i64>().expect("a number")
    };
    values.records.into_iter().map(amount).sum()
}

/// While two of three nodes are down, the third answers bounded reads, of one instant over all shards and never older than
/// asked; linearizable ones fail by their deadline.
#[tokio::test(flavor = "multi_thread")]
async fn bounded_reads_go_on_without_a_majority() {
    let mut cluster = Cluster::start(3, 4).await;
    let client = cluster.client().await;
    let accounts = spread();
    client
        .transact(|txn| {
            let accounts = accounts.clone();
            async move { accounts.iter().try_for_each(|account| txn.put(account, (TOTAL / 4).to_string())) }
        })
        .await
        .expect("opened");
    let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let writer =
        tokio::spawn(transfer_for_ever(client.clone(), accounts.clone(), stop.clone(), done.clone()));
    let mut sums = Vec::new();
    let mut instants = std::collections::BTreeSet::new();
    let give_up_at = Instant::now() + PATIENCE;
    // Until they were of many instants, while money moved.
    while (instants.len() < 20 || done.load(Ordering::SeqCst) < 100) && Instant::now() < give_up_at {
        let max_staleness = Duration::from_millis(if sums.len() % 2 == 0 { 300 } else { 60_000 });
        let values = client.bounded(max_staleness).get_many(&accounts).await.expect("read");
        instants.insert(values.at_ts);
        sums.push(sum(values));
    }
    assert!(instants.len() >= 20, "the reads were of {} instants", instants.len());
    let opened = |sum: &i64| *sum == TOTAL;
    assert!(sums.iter().all(|sum| *sum == 0 || opened(sum)), "a bounded read saw two instants: {sums:?}");
    assert!(sums.iter().any(opened), "it never sees anything newer");
    cluster.kill(0);
    cluster.kill(1);
    let alone = Instant::now();
    stop.store(true, Ordering::SeqCst);
    let survivor = cluster.nodes[2].grpc.clone();
    let left = kvorum::Client::builder().endpoints([&survivor]).deadline(PATIENCE).connect().await;
    let left = left.expect("connected");
    for _ in 0..50 {
        assert_eq!(sum_of(&left, &accounts, Duration::from_secs(120)).await.expect("read"), TOTAL);
        let rows = left.bounded(Duration::from_secs(120)).scan(ScanOptions::all()).collect_rows().await;
        assert_eq!(rows.expect("scanned").len(), 4);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // What it has is at least as old as the majority's end, and it says so.
    let lost_ms = alone.elapsed().as_millis() as u64;
    let got = left.read(&accounts[0], ReadAt::Bounded { max_staleness_ms: 120_000 }).await.expect("read");
    let served = got.served.expect("it says who answered");
    assert!(served.staleness_ms >= lost_ms, "{served:?} after {lost_ms} ms alone");
    let hasty = left.with_deadline(Duration::from_secs(3));
    let error = hasty.get(&accounts[0]).await.expect_err("no majority");
    assert_eq!(error.kind, ErrorKind::Unavailable, "{error}");
    let error =
        hasty.bounded(Duration::from_millis(500)).get(&accounts[0]).await.expect_err("nothing so fresh");
    assert_eq!(error.kind, ErrorKind::Unavailable, "{error}");
    writer.await.expect("ends");

    cluster.restart(0);
    cluster.restart(1);
    cluster.wait_serving().await;
    eventually("fresh bounded reads are back", async || {
        let sum =
            sum_of(&left, &accounts, Duration::from_secs(1)).await.map_err(|error| error.to_string())?;
        assert_eq!(sum, TOTAL);
        Ok(())
    })
    .await;
}

/// How many of `reads` each node answers.
async fn shares(client: &Client, key: &[u8], reads: usize) -> BTreeMap<u64, usize> {
    let mut by_node = BTreeMap::new();
    for batch in 0..reads / 16 {
        let asked = (0..16).map(|_| client.read(key, ReadAt::Latest));
        for got in futures::future::join_all(asked).await {
            let got = got.unwrap_or_else(|error| panic!("batch {batch}: {error}"));
            *by_node.entry(got.served.expect("it says who answered").node.0).or_default() += 1;
        }
    }
    by_node
}

/// One hot shard: all replicas serve it; one that stands still gets next to nothing, and its share again when it is well.
#[tokio::test(flavor = "multi_thread")]
async fn balanced_reads_spread_over_replicas_and_leave_a_stopped_one_alone() {
    let cluster = Cluster::start(3, 1).await;
    let client = cluster.client().await;
    client.put("hot", "1").await.expect("written");
    // Nodes that have just begun to connect to each other may refuse some at first.
    eventually("all replicas answer", async || {
        let by_node = shares(&client, b"hot", 3000).await;
        let is_even = by_node.len() == 3 && by_node.values().all(|share| *share > 300);
        if is_even { Ok(()) } else { Err(format!("{by_node:?}")) }
    })
    .await;
    let leader = cluster.leader_of(b"hot").await;
    let led = shares(&client.with_read_policy(Policy::Leader), b"hot", 320).await;
    assert!(led[&(leader as u64 + 1)] >= 300, "node {}: {led:?}", leader + 1);

    let system = cluster.system_leader().await;
    let slow = (0..3).find(|node| *node != leader && *node != system).expect("one of three");
    cluster.nodes[slow].signal(Signal::STOP);
    let by_node = shares(&client, b"hot", 3000).await;
    cluster.nodes[slow].signal(Signal::CONT);
    let missed = by_node.get(&(slow as u64 + 1)).copied().unwrap_or(0);
    assert!(missed < 300, "node {} was stopped, and yet: {by_node:?}", slow + 1);
    eventually("the node has its share again", async || {
        let by_node = shares(&client, b"hot", 960).await;
        match by_node.get(&(slow as u64 + 1)) {
            Some(share) if *share > 150 => Ok(()),
            _ => Err(format!("{by_node:?}")),
        }
    })
    .await;
}
