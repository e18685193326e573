//! The nodes that own sagas are killed while those run: all end, and each transaction's effect is there once.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use kvorum::Client;
use kvorum::client::{SagaFilter, SagaStart, SagaView, ScanOptions};
use kvorum::codec::keyspace::saga_row;
use kvorum::saga::{Failure, Retry, Saga, Step, Timeouts};
use rand::Rng;

use super::spawn;
use crate::support::Cluster;

const SAGAS: usize = 300;
const KILLS: usize = 4;

async fn define(client: &Client) {
    let retry = Retry { initial_ms: 20, max_ms: 200, ..Retry::default() };
    let timeouts = Timeouts { start_to_close_ms: 5_000, ..Timeouts::default() };
    let with = |step: Step| step.retry(retry.clone()).timeouts(timeouts.clone());
    let saga = Saga::define("move", 1)
        .step(with(Step::activity("ask").handler("flaky").compensate_with("flaky")))
        .parallel([
            with(Step::txn("take").compensate_with_txn("take")),
            with(Step::txn("note").compensate_with_txn("note")),
        ])
        .step(with(Step::activity("decide").pivot()))
        .step(with(Step::txn("give")));
    client.define_saga(&saga.check().expect("a definition")).await.expect("defined");
}

fn worker(client: &Client) -> super::Worker {
    let delta = |task: &kvorum::client::Task, delta: i64| match task.info().kind.as_str() {
        "compensation" => -delta,
        _ => delta,
    };
    let worker = client
        .saga_worker("move")
        .concurrency(32)
        .activity("flaky", |_| async {
            match rand::rng().random_range(0..5) {
                0 => Err(Failure::new("not now")),
                _ => Ok(Bytes::new()),
            }
        })
        .activity("decide", |task| async move {
            let refuses = task.saga_id().ends_with('7');
            if refuses { Err(Failure::refused("no")) } else { Ok(Bytes::new()) }
        })
        .txn("take", move |task, txn| async move {
            txn.add(format!("one/{}/take", task.saga_id()), delta(&task, 1))?;
            Ok(Bytes::new())
        })
        .txn("note", move |task, txn| async move {
            let key = format!("one/{}/note", task.saga_id());
            let held = txn.get(&key).await?.map_or(0, |held| held.value.len());
            txn.put(&key, vec![b'x'; held + 1])?;
            Ok(Bytes::new())
        })
        .txn("give", move |task, txn| async move {
            txn.add(format!("one/{}/give", task.saga_id()), 1)?;
            Ok(Bytes::new())
        });
    spawn(worker)
}

/// Waits for a saga's end. Where an attempt at the pivot was lost, and a later one refused, it waits to be told what became
/// of the first one: that is told, as somebody would who has looked.
async fn wait_for_end(client: &Client, id: &str) -> SagaView {
    for _ in 0..60 {
        let looking = client.with_deadline(Duration::from_secs(2));
        let Ok(saga) = looking.wait_for_saga(id).await else { continue };
        if saga.closed_unix_ms > 0 {
            return saga;
        }
        if saga.reason.contains("not known whether the pivot decide took effect") {
            client.resolve_saga(id, "decide", !id.ends_with('7')).await.expect("told");
        }
    }
    let history = client.saga_history(id, 0).await;
    panic!("{id} has not ended: {:#?} {history:#?}", client.saga(id).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn owners_are_killed_and_all_sagas_end_with_their_effects_once() {
    let mut cluster = Cluster::start(3, 3).await;
    let client = cluster.client().await;
    define(&client).await;
    let workers = [worker(&client), worker(&cluster.client().await)];
    let started = Arc::new(AtomicU64::new(0));
    let (starting, count) = (client.clone(), started.clone());
    let starter = tokio::spawn(async move {
        for n in 0..SAGAS {
            starting.start_saga(SagaStart::new("move", format!("m-{n}"))).await.expect("started");
            count.fetch_add(1, Ordering::Relaxed);
        }
    });
    for kill in 1..=KILLS {
        while !starter.is_finished() && started.load(Ordering::Relaxed) < (kill * SAGAS / (KILLS + 1)) as u64
        {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let owner = cluster.leader_of_internal(&saga_row(&format!("m-{kill}"), 1, &[])).await;
        cluster.kill(owner);
        tokio::time::sleep(Duration::from_millis(500)).await;
        cluster.restart(owner);
        cluster.wait_serving().await;
    }
    starter.await.expect("all were started");
    for n in 0..SAGAS {
        let id = format!("m-{n}");
        let saga = wait_for_end(&client, &id).await;
        let wanted = if id.ends_with('7') { "compensated" } else { "completed" };
        assert_eq!(saga.status, wanted, "{saga:?}");
    }
    let open = client.sagas(SagaFilter { status: "open".into(), ..Default::default() }).all().await;
    assert_eq!(open.expect("listed"), []);
    let rows = client.scan(ScanOptions::prefix("one/")).collect_rows().await.expect("scanned");
    let count = rows.len();
    for row in rows {
        let key = String::from_utf8_lossy(&row.key).into_owned();
        let (id, step) = key.trim_start_matches("one/").split_once('/').expect("a saga and a step");
        let is_undone = id.ends_with('7');
        match step {
            // Once, and once more where it was undone.
            "note" => assert_eq!(row.record.value.len(), if is_undone { 2 } else { 1 }, "{key}"),
            "take" => assert_eq!(row.record.value, if is_undone { "0" } else { "1" }, "{key}"),
            _ => assert!(row.record.value == "1" && !is_undone, "{key}"),
        }
    }
    // Three for each that is completed, two for each that was undone.
    let undone = (0..SAGAS).filter(|n| n % 10 == 7).count();
    assert_eq!(count, 3 * (SAGAS - undone) + 2 * undone);
    for worker in workers {
        worker.stop().await;
    }
}
