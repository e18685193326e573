//! Transactions over shards of real processes: nodes that are killed at every step of a commit, clients that
//! are killed, many writers on one key, snapshots while others write.

use std::collections::{BTreeMap, HashMap};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use kvorum::client::{Committed, Record, ScanOptions, Timestamp};
use kvorum::rpc::v1::kv_client::KvClient;
use kvorum::rpc::{convert, v1};
use kvorum::{Client, ErrorKind};
use parking_lot::Mutex;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::support::{Cluster, Process, eventually, kvorum};

const SHARDS: u32 = 8;
const ACCOUNTS: u64 = 64;
const OPENING: i64 = 1000;
const TRANSFERRERS: usize = 32;
/// One key in each of three of the eight shards.
const APART: [&str; 3] = ["1", "f", "x"];

/// Accounts lie all over the shards: the first byte cuts them.
fn account(n: u64) -> String {
    const FIRST: &[u8] = b"0123456789abcdefghijklmnopqrstuvwxyz";
    format!("{}/account/{n:03}", FIRST[(n as usize * 7) % FIRST.len()] as char)
}

fn number(record: Option<&Record>) -> i64 {
    record.map_or(0, |record| String::from_utf8_lossy(&record.value).parse().expect("a number"))
}

async fn open_accounts(client: &Client) {
    for n in 0..ACCOUNTS {
        client.put(account(n), OPENING.to_string()).await.expect("opened");
    }
}

/// Moves money between two accounts and notes it under a key of its own, all in one transaction.
async fn transfer(client: &Client, id: u64, from: u64, to: u64, amount: i64) -> kvorum::Result<Timestamp> {
    let done = client
        .transact(|txn| async move {
            let (source, target) = (account(from), account(to));
            let read = txn.get_many([&source, &target]).await?;
            txn.put(&source, (number(read[0].as_ref()) - amount).to_string())?;
            txn.put(&target, (number(read[1].as_ref()) + amount).to_string())?;
            txn.put(
                format!("{}/transfer/{id}", (b'a' + (id % 26) as u8) as char),
                format!("{from} {to} {amount}"),
            )
        })
        .await?;
    Ok(done.commit_ts)
}

/// How the transfers of a run ended, by id.
#[derive(Default)]
struct Ends {
    acknowledged: Mutex<Vec<u64>>,
    open: Mutex<Vec<u64>>,
    refused: AtomicU64,
}

async fn transfer_until(client: Client, worker: u64, stop: Arc<AtomicBool>, ends: Arc<Ends>) {
    let mut count = 0;
    while !stop.load(Ordering::Relaxed) {
        let id = worker * 1_000_000 + count;
        count += 1;
        let (from, to) = (rand::random_range(0..ACCOUNTS), rand::random_range(0..ACCOUNTS));
        if from == to {
            continue;
        }
        match transfer(&client, id, from, to, rand::random_range(1..10)).await {
            Ok(_) => ends.acknowledged.lock().push(id),
            Err(error) => match error.kind {
                ErrorKind::Undetermined => ends.open.lock().push(id),
                ErrorKind::Conflict | ErrorKind::Unavailable => {
                    ends.refused.fetch_add(1, Ordering::Relaxed);
                }
                kind => panic!("a transfer failed as {kind}: {error}"),
            },
        }
    }
}

/// What all accounts hold together at one instant.
async fn total(client: &Client) -> kvorum::Result<i64> {
    let sum = client
        .read_only(|txn| async move {
            let keys: Vec<String> = (0..ACCOUNTS).map(account).collect();
            Ok(txn.get_many(&keys).await?.iter().map(|record| number(record.as_ref())).sum::<i64>())
        })
        .await?;
    Ok(sum.value)
}

/// Checks accounts against the notes of the transfers: each acknowledged one is there, and what the accounts hold
/// is what the notes say.
async fn check_books(client: &Client, ends: &Ends) {
    let (accounts, notes) = client
        .read_only(|txn| async move {
            let keys: Vec<String> = (0..ACCOUNTS).map(account).collect();
            let accounts: Vec<i64> =
                txn.get_many(&keys).await?.iter().map(|one| number(one.as_ref())).collect();
            let mut notes = HashMap::new();
            let mut rows = txn.scan(ScanOptions::all());
            while let Some(row) = rows.next().await {
                let row = row?;
                let key = String::from_utf8_lossy(&row.key).into_owned();
                if let Some((_, id)) = key.split_once("/transfer/") {
                    let value = String::from_utf8_lossy(&row.record.value).into_owned();
                    notes.insert(id.parse::<u64>().expect("an id"), value);
                }
            }
            Ok((accounts, notes))
        })
        .await
        .expect("read")
        .value;
    for id in ends.acknowledged.lock().iter() {
        assert!(notes.contains_key(id), "transfer {id} was acknowledged and is not there");
    }
    let known: Vec<u64> = ends.acknowledged.lock().iter().chain(ends.open.lock().iter()).copied().collect();
    assert!(notes.keys().all(|id| known.contains(id)), "a transfer is there that was refused");
    let mut expected = vec![OPENING; ACCOUNTS as usize];
    for note in notes.values() {
        let parts: Vec<i64> = note.split(' ').map(|part| part.parse().expect("a number")).collect();
        expected[parts[0] as usize] -= parts[2];
        expected[parts[1] as usize] += parts[2];
    }
    assert_eq!(accounts, expected, "the accounts differ from what the transfers' notes say");
}

/// Waits until no node counts a lock, and says how long that took.
async fn wait_for_no_locks(cluster: &Cluster) -> Duration {
    let since = Instant::now();
    eventually("no lock is left", async || {
        for node in &cluster.nodes {
            let locks = locks_on(node).await?;
            if locks > 0 {
                return Err(format!("{} locks on {}", locks, node.grpc));
            }
        }
        Ok(())
    })
    .await;
    since.elapsed()
}

async fn locks_on(node: &Process) -> Result<u64, String> {
    let status = node.status().await.map_err(|error| error.to_string())?;
    Ok(status.replicas.iter().map(|replica| replica.locks).sum())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_books_balance_while_coordinators_are_killed() {
    let seconds =
        std::env::var("KVORUM_TEST_BANK_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(20);
    keep_books(3, seconds).await;
}

/// With more nodes than replicas, those who meet a lock often have no replica of the shard that knows its fate.
#[tokio::test(flavor = "multi_thread")]
async fn the_books_balance_with_more_nodes_than_replicas() {
    keep_books(5, 15).await;
}

/// Transfers, snapshots and kills of the node that coordinates most, then the books.
async fn keep_books(nodes: usize, seconds: u64) {
    let mut cluster = Cluster::start(nodes, SHARDS).await;
    let client = cluster.client().await;
    open_accounts(&client).await;
    let (stop, ends) = (Arc::new(AtomicBool::new(false)), Arc::new(Ends::default()));
    let mut workers = JoinSet::new();
    let patient = client.with_deadline(Duration::from_secs(10));
    for worker in 0..TRANSFERRERS {
        workers.spawn(transfer_until(patient.clone(), worker as u64, stop.clone(), ends.clone()));
    }
    let (watched, watch_stop) = (client.clone(), stop.clone());
    let watcher = tokio::spawn(async move {
        let mut looks = 0_u64;
        while !watch_stop.load(Ordering::Relaxed) {
            let sum = total(&watched).await.expect("a read-only transaction never fails for a conflict");
            assert_eq!(sum, OPENING * ACCOUNTS as i64, "a snapshot shows money made or lost");
            looks += 1;
        }
        looks
    });
    let until = Instant::now() + Duration::from_secs(seconds);
    let mut kills = 0;
    while Instant::now() < until {
        // The node that coordinates most: the primary is the smallest key of a transfer.
        let victim = cluster.leader_of(account(kills % ACCOUNTS).as_bytes()).await;
        cluster.kill(victim);
        kills += 1;
        tokio::time::sleep(Duration::from_secs(2)).await;
        cluster.restart(victim);
        cluster.wait_serving().await;
        tokio::time::sleep(Duration::from_secs(3)).await;
    }
    stop.store(true, Ordering::Relaxed);
    while let Some(worker) = workers.join_next().await {
        worker.expect("the worker ends");
    }
    let looks = watcher.await.expect("every look added up");
    let left = wait_for_no_locks(&cluster).await;
    check_books(&client, &ends).await;
    cluster.wait_equal().await;
    let acknowledged = ends.acknowledged.lock().len();
    println!(
        "{kills} kills: {acknowledged} transfers acknowledged, {} open, {} refused, {looks} snapshots, no lock {left:?} after the \
         end",
        ends.open.lock().len(),
        ends.refused.load(Ordering::Relaxed)
    );
    assert!(acknowledged > 100 && looks > 10, "hardly anything was tested");
}

/// The steps at which a coordinator dies: before it sends the first and the last of its prepares, before and
/// after the acknowledgement, around decision, finishes and the record's end.
const STEPS: [&str; 9] = [
    "prepare:1",
    "prepare:2",
    "prepare:3",
    "acknowledge:1",
    "decide:1",
    "finish:1",
    "finish:2",
    "forget:1",
    "ended:1",
];

#[tokio::test(flavor = "multi_thread")]
async fn a_coordinator_that_dies_at_any_step_leaves_one_outcome() {
    let mut cluster = Cluster::start(3, SHARDS).await;
    let client = cluster.client().await;
    for (round, step) in STEPS.into_iter().enumerate() {
        let (before, after) = (format!("before {round}"), format!("after {round}"));
        for key in APART {
            client.put(key, before.clone()).await.expect("written");
        }
        let victim = cluster.leader_of(APART[0].as_bytes()).await;
        // It comes back with the failpoint, and has to lead the primary's shard.
        cluster.kill(victim);
        cluster.nodes[victim].start_with(&[("KVORUM_FAILPOINT", step)]);
        cluster.wait_serving().await;
        let outcome = loop {
            lead_shard_of(&mut cluster, APART[0], victim).await;
            let outcome = write_apart(&client, &after).await;
            if has_died(&mut cluster, victim).await {
                break outcome;
            }
            // Another node had become the leader before the transaction came: once more, from where it was.
            for key in APART {
                client.put(key, before.clone()).await.expect("written");
            }
        };
        // Others get past its locks while it is still down.
        let since = Instant::now();
        let read = client.get_many(APART).await.expect("read").records;
        let values: Vec<_> = read.into_iter().map(|record| record.expect("there").value).collect();
        assert!(values.iter().all(|value| *value == values[0]), "{step}: the shards differ: {values:?}");
        match &outcome {
            Ok(_) => assert_eq!(values[0], after, "{step}: it was acknowledged"),
            Err(error) if error.kind == ErrorKind::Undetermined => {}
            Err(error) => {
                assert!(
                    matches!(error.kind, ErrorKind::Conflict | ErrorKind::Unavailable),
                    "{step}: {error}"
                );
                assert_eq!(values[0], before, "{step}: it was refused ({error})");
            }
        }
        for key in APART {
            client.put(key, "past it").await.expect("written past the dead coordinator's locks");
        }
        println!(
            "{step}: {}, past its locks in {:?}",
            outcome.map_or_else(|e| e.kind.to_string(), |_| "committed".into()),
            since.elapsed()
        );
        cluster.restart(victim);
        cluster.wait_serving().await;
        wait_for_no_locks(&cluster).await;
    }
    cluster.wait_equal().await;
}

async fn write_apart(client: &Client, value: &str) -> kvorum::Result<Committed<()>> {
    let short = client.with_deadline(Duration::from_secs(8));
    short
        .transact(|txn| async move {
            txn.get(APART[1]).await?;
            APART.iter().try_for_each(|key| txn.put(key, value.to_owned()))
        })
        .await
}

/// Whether a node has ended by itself; not where another one leads the shard that it was to lead.
async fn has_died(cluster: &mut Cluster, victim: usize) -> bool {
    // Where it leads again by now, it is only known after a while that it did not then.
    let give_up_at = Instant::now() + Duration::from_secs(20);
    while !cluster.nodes[victim].has_exited() {
        let leads = cluster.leader_of(APART[0].as_bytes()).await == victim;
        if !leads || Instant::now() > give_up_at {
            return cluster.nodes[victim].has_exited();
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    true
}

/// Kills the shard's leaders until `wanted` leads it.
async fn lead_shard_of(cluster: &mut Cluster, key: &str, wanted: usize) {
    loop {
        let leader = cluster.leader_of(key.as_bytes()).await;
        if leader == wanted {
            return;
        }
        cluster.kill(leader);
        let next = cluster.leader_of(key.as_bytes()).await;
        cluster.restart(leader);
        cluster.wait_serving().await;
        if next == wanted {
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_is_killed_after_its_commit_changes_nothing() {
    let cluster = Cluster::start(3, SHARDS).await;
    let client = cluster.client().await;
    for round in 0..10_u64 {
        let script: String = APART.iter().map(|key| format!("put {key} v{round}\n")).collect();
        let file = cluster.dir.path().join("script");
        std::fs::write(&file, script).expect("written");
        let mut child = kvorum()
            .args(["--endpoints", &cluster.endpoints().join(","), "txn"])
            .arg(&file)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("the program starts");
        tokio::time::sleep(Duration::from_millis(5 * round)).await;
        child.kill().expect("killed");
        child.wait().expect("ended");
        let read = client.get_many(APART).await.expect("read").records;
        let values: Vec<_> = read.into_iter().map(|record| record.map(|record| record.value)).collect();
        assert!(
            values.iter().all(|value| *value == values[0]),
            "round {round}: the shards differ: {values:?}"
        );
        for key in APART {
            client.put(key, "past it").await.expect("written past the dead client's locks");
        }
    }
    wait_for_no_locks(&cluster).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_writers_of_one_key_all_get_through() {
    const CLIENTS: usize = 64;
    const EACH: usize = 5;
    let cluster = Cluster::start(3, SHARDS).await;
    let client = cluster.client().await;
    let mut workers = JoinSet::new();
    for _ in 0..CLIENTS {
        let client = client.clone();
        workers.spawn(async move {
            let mut most = 0;
            for _ in 0..EACH {
                let done = client
                    .transact(|txn| async move {
                        let count = number(txn.get("hot").await?.as_ref());
                        txn.put("hot", (count + 1).to_string())
                    })
                    .await
                    .expect("every writer gets through");
                most = most.max(done.attempts);
            }
            most
        });
    }
    let mut most = 0;
    while let Some(worker) = workers.join_next().await {
        most = most.max(worker.expect("the worker ends"));
    }
    let count = number(client.get("hot").await.expect("read").as_ref());
    assert_eq!(count, (CLIENTS * EACH) as i64, "an increment was lost or made twice");
    println!("{CLIENTS} writers of one key, {EACH} times each: at most {most} attempts");
    assert!(most <= 200, "a writer needed {most} attempts");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_shows_the_same_however_often_it_is_read() {
    let cluster = Cluster::start(3, SHARDS).await;
    let client = cluster.client().await;
    open_accounts(&client).await;
    let stop = Arc::new(AtomicBool::new(false));
    let ends = Arc::new(Ends::default());
    let mut workers = JoinSet::new();
    for worker in 0..8 {
        workers.spawn(transfer_until(client.clone(), worker, stop.clone(), ends.clone()));
    }
    for _ in 0..20 {
        let snapshot = client.snapshot(client.timestamp().await.expect("a timestamp"));
        let mut first: Option<BTreeMap<String, bytes::Bytes>> = None;
        for _ in 0..3 {
            let rows = snapshot.scan(ScanOptions::all()).collect_rows().await.expect("scanned");
            let rows: BTreeMap<String, bytes::Bytes> = rows
                .into_iter()
                .map(|row| (String::from_utf8_lossy(&row.key).into_owned(), row.record.value))
                .filter(|(key, _)| key.contains("/account/"))
                .collect();
            let sum: i64 = rows
                .values()
                .map(|value| String::from_utf8_lossy(value).parse::<i64>().expect("a number"))
                .sum();
            assert_eq!(sum, OPENING * ACCOUNTS as i64);
            assert!(first.as_ref().is_none_or(|first| *first == rows), "the snapshot has changed");
            first = Some(rows);
        }
    }
    stop.store(true, Ordering::Relaxed);
    while let Some(worker) = workers.join_next().await {
        worker.expect("the worker ends");
    }
    wait_for_no_locks(&cluster).await;
    check_books(&client, &ends).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_commit_gets_a_clear_error_and_locks_nothing() {
    let cluster = Cluster::start(3, SHARDS).await;
    let client = cluster.client().await;
    client.put("1", "kept").await.expect("written");
    let now = client.timestamp().await.expect("a timestamp").0;
    let put = |key: &'static str| v1::Write {
        write: Some(v1::write::Write::Put(v1::PutStep { key: key.into(), value: "lost".into() })),
    };
    let good = v1::CommitRequest { start_ts: now, writes: vec![put("1"), put("x")], ..Default::default() };
    let cases = [
        (
            "a start in the future",
            v1::CommitRequest { start_ts: now + (1 << 40), ..good.clone() },
            ErrorKind::Invalid,
        ),
        ("no start", v1::CommitRequest { start_ts: 0, ..good.clone() }, ErrorKind::Invalid),
        ("nothing written", v1::CommitRequest { writes: Vec::new(), ..good.clone() }, ErrorKind::Invalid),
        (
            "a key twice",
            v1::CommitRequest { writes: vec![put("1"), put("1")], ..good.clone() },
            ErrorKind::Invalid,
        ),
        ("an empty key", v1::CommitRequest { writes: vec![put("")], ..good.clone() }, ErrorKind::Invalid),
        (
            "too many keys",
            v1::CommitRequest {
                read_keys: (0..20_000).map(|n| n.to_string().into()).collect(),
                ..good.clone()
            },
            ErrorKind::Invalid,
        ),
        (
            "older than its lifetime",
            v1::CommitRequest { start_ts: now - ((3600 * 1000) << 12), ..good.clone() },
            ErrorKind::Undetermined,
        ),
    ];
    let mut kv = KvClient::connect(format!("http://{}", cluster.nodes[0].grpc)).await.expect("connected");
    for (what, request, kind) in cases {
        let error =
            kv.commit(request).await.map_err(|status| convert::error_from_status(&status)).expect_err(what);
        assert_eq!(error.kind, kind, "{what}: {error}");
    }
    assert_eq!(client.get("1").await.expect("read").expect("there").value, "kept");
    for node in &cluster.nodes {
        assert_eq!(locks_on(node).await, Ok(0));
    }
    for (what, at) in [("in the future", now + (1 << 40)), ("before everything", 1)] {
        let read = client.snapshot(Timestamp(at)).get("1").await;
        match (what, read) {
            ("in the future", read) => assert_eq!(read.expect_err(what).kind, ErrorKind::Invalid),
            (_, read) => {
                // Nothing was dropped yet: before everything there is nothing.
                assert!(read.is_ok_and(|record| record.is_none()), "{what}");
            }
        }
    }
}
