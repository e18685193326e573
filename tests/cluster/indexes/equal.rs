//! Indexes of each kind equal what a scan computes, after many transactions while the nodes that keep them up are killed.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use kvorum::{Client, ErrorKind};
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::{check_equal, create, one_of_each_kind, wait_ready};
use crate::support::Cluster;

/// Transactions, where KVORUM_TEST_INDEX_TRANSACTIONS does not say otherwise.
const TRANSACTIONS: u64 = 8_000;
/// Rows that they are about.
const KEYS: u64 = 3_000;
const WRITERS: usize = 24;
/// A node is killed so often.
const KILL_EVERY: Duration = Duration::from_secs(4);

/// A row of one of many teams. Some have no score, and some no team: those are not in most indexes.
fn row(number: u64) -> Bytes {
    let mut row = json!({ "name": format!("name {}", number % 97), "mail": format!("{number}@example.org") });
    if !number.is_multiple_of(11) {
        row["team"] = format!("team {}", number % 17).into();
    }
    if !number.is_multiple_of(5) {
        row["score"] = (((number * 37) % 1000) as f64 / 8.0 - 20.0).into();
    }
    row.to_string().into()
}

/// A key in one of the shards of a cluster of eight.
fn key(n: u64) -> String {
    const FIRST: &[u8] = b"0123456789abcdefghijklmnopqrstuvwxyz";
    format!("{}/{n:05}", FIRST[(n as usize * 7) % FIRST.len()] as char)
}

/// Writes and removes one to four rows in each transaction, until so many were committed.
async fn write(client: Client, committed: Arc<AtomicU64>, most: u64) {
    while committed.load(Ordering::Relaxed) < most {
        let changes: Vec<(String, Option<Bytes>)> = (0..rand::random_range(1..=4))
            .map(|_| {
                let value = (rand::random_range(0..5) > 0).then(|| row(rand::random_range(0..100_000)));
                (key(rand::random_range(0..KEYS)), value)
            })
            .collect();
        let written = client.transact(|txn| {
            let changes = changes.clone();
            async move {
                for (key, value) in changes {
                    match value {
                        Some(value) => txn.put(&key, value)?,
                        None => txn.delete(&key)?,
                    }
                }
                Ok(())
            }
        });
        match written.await {
            Ok(_) => {
                committed.fetch_add(1, Ordering::Relaxed);
            }
            Err(error) => assert!(
                matches!(error.kind, ErrorKind::Conflict | ErrorKind::Unavailable | ErrorKind::Undetermined),
                "{error}"
            ),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_kind_of_index_equals_a_scan_while_those_who_keep_it_up_are_killed() {
    let most = std::env::var("KVORUM_TEST_INDEX_TRANSACTIONS")
        .map_or(TRANSACTIONS, |text| text.parse().expect("a number"));
    let mut cluster = Cluster::start(3, 8).await;
    let client = cluster.client().await;
    // Some rows are there before the indexes, which are built while more are written.
    let committed = Arc::new(AtomicU64::new(0));
    let began = Instant::now();
    let mut writers = JoinSet::new();
    for _ in 0..WRITERS {
        writers.spawn(write(client.clone(), committed.clone(), most));
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    create(&client, one_of_each_kind()).await;
    let (mut kills, mut checks) = (0, 0);
    while committed.load(Ordering::Relaxed) < most {
        tokio::time::sleep(KILL_EVERY).await;
        // Of the first index: all lie in one shard.
        let id = client.indexes().await.expect("listed").first().map_or(0, |record| record.id);
        let place = kvorum::codec::keyspace::index_version_range(id, 1).start;
        let leader = cluster.leader_of_internal(&place).await;
        cluster.kill(leader);
        kills += 1;
        tokio::time::sleep(Duration::from_millis(500)).await;
        cluster.restart(leader);
        cluster.wait_serving().await;
        // In the middle of it all, too.
        let spec = &one_of_each_kind()[kills % 6];
        let is_active =
            client.index(&spec.name).await.expect("asked").and_then(|status| status.record?.active);
        if is_active.is_some() {
            check_equal(&client, &spec.name).await;
            checks += 1;
        }
    }
    writers.join_all().await;
    let wrote = began.elapsed();
    let end = client.timestamp().await.expect("a timestamp");
    for spec in one_of_each_kind() {
        wait_ready(&client, &spec.name).await;
        let page = client.query(&spec.name).limit(1).at_least(end).page().await.expect("answered");
        assert!(page.watermark >= end);
        let (watermark, rows) = check_equal(&client, &spec.name).await;
        println!("{}: {rows} rows at {watermark} equal those of a scan", spec.name);
        assert!(rows > 0);
    }
    let behind = began.elapsed() - wrote;
    println!(
        "{} transactions in {wrote:.1?}, {kills} nodes killed, {checks} looks meanwhile; {behind:.1?} later all was equal",
        committed.load(Ordering::Relaxed)
    );
    assert!(kills > 0 && checks > 0);
    // Each replica by itself, too.
    for node in 1..=3 {
        let builder =
            Client::builder().endpoints(cluster.endpoints()).prefer_node(kvorum::types::NodeId(node));
        let client = builder.connect().await.expect("connected");
        for spec in one_of_each_kind() {
            check_equal(&client, &spec.name).await;
        }
    }
}
