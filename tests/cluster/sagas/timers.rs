//! Sagas that wait: many of them cost nothing, they are woken in time, and nodes that are started again know of them.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use futures::StreamExt;
use kvorum::Client;
use kvorum::client::{SagaFilter, SagaStart};
use kvorum::saga::{Saga, Step};
use tokio_util::sync::CancellationToken;

use crate::raw;
use crate::support::Cluster;

/// How many wait; `KVORUM_TEST_SAGA_TIMERS` says otherwise.
const TIMERS: usize = 2_000;
/// How long nothing is read while they wait, and how often that is looked at.
const QUIET: Duration = Duration::from_secs(3);
const WINDOWS: usize = 5;
/// Who writes as fast as it goes, while it is looked at whether sagas are woken in time.
const WRITERS: usize = 64;

fn timers() -> usize {
    std::env::var("KVORUM_TEST_SAGA_TIMERS").map_or(TIMERS, |count| count.parse().expect("a number"))
}

async fn start_many(client: &Client, name: &str, count: usize) {
    let starts = futures::stream::iter(0..count).map(|n| {
        let (client, start) = (client.clone(), SagaStart::new(name, format!("{name}-{n}")));
        async move { client.start_saga(start).await.expect("started") }
    });
    starts.buffer_unordered(128).for_each(|_| async {}).await;
}

/// Writes until it is told to stop; answers how much it has written.
async fn write(client: Client, writer: usize, stop: CancellationToken) -> u64 {
    let mut written = 0;
    while !stop.is_cancelled() {
        client.put(format!("load/{writer}/{}", written % 1_000), vec![b'x'; 256]).await.expect("written");
        written += 1;
    }
    written
}

/// Waits for sagas that slept, and tells how many milliseconds too late they were woken: in the middle, and at most.
async fn late_ms(client: &Client, name: &str, count: usize, slept_ms: u64) -> (u64, u64) {
    let mut late = Vec::new();
    for n in 0..count {
        let saga = client.wait_for_saga(&format!("{name}-{n}")).await.expect("waited");
        assert_eq!(saga.status, "completed");
        late.push(saga.closed_unix_ms - saga.created_unix_ms - slept_ms);
    }
    late.sort_unstable();
    (late[count / 2], late[count - 1])
}

/// How many rows' reads the nodes have made for sagas and indexes, all together.
async fn reads(cluster: &Cluster) -> u64 {
    let mut sum = 0;
    for node in cluster.nodes.iter().filter(|node| node.runs()) {
        let (_, body) = raw::http_get(&node.http, "/metrics").await;
        let lines = body.lines().filter(|line| line.starts_with("kvorum_own_reads_total"));
        sum += lines.filter_map(|line| line.split_whitespace().last()?.parse::<u64>().ok()).sum::<u64>();
    }
    sum
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_costs_no_reads_and_wakes_in_time_also_after_a_restart() {
    let mut cluster = Cluster::start(3, 3).await;
    let client = cluster.client().await;
    let month = Saga::define("month", 1).step(Step::sleep_ms("sleep", 30 * 24 * 3_600_000));
    let soon = Saga::define("soon", 1).step(Step::sleep_ms("sleep", 15_000));
    let busy = Saga::define("busy", 1).step(Step::sleep_ms("sleep", 5_000));
    for saga in [month, soon, busy] {
        client.define_saga(&saga.check().expect("a definition")).await.expect("defined");
    }
    let began = Instant::now();
    start_many(&client, "month", timers()).await;
    println!("{} waiting sagas were started in {:?}", timers(), began.elapsed());
    // On a busy machine a shard may get another leader meanwhile, which reads what it takes over: but not every time.
    let mut counts = Vec::new();
    for _ in 0..WINDOWS {
        let before = reads(&cluster).await;
        assert!(before > 0, "they are counted");
        tokio::time::sleep(QUIET).await;
        counts.push(reads(&cluster).await - before);
        if counts.last() == Some(&0) {
            break;
        }
    }
    assert!(counts.contains(&0), "reads while {} sagas wait: {counts:?}", timers());

    // All nodes are started again while others wait that are due soon.
    start_many(&client, "soon", 100).await;
    for at in 0..3 {
        cluster.kill(at);
    }
    for at in 0..3 {
        cluster.restart(at);
    }
    cluster.wait_serving().await;
    let (middle, most) = late_ms(&client, "soon", 100, 15_000).await;
    println!(
        "after all nodes were started again, woken late by {middle} ms in the middle, {most} ms at most"
    );
    // Others while the cluster has as much to do as it can.
    let stop = CancellationToken::new();
    let load: Vec<_> =
        (0..WRITERS).map(|writer| tokio::spawn(write(client.clone(), writer, stop.clone()))).collect();
    start_many(&client, "busy", 1_000).await;
    let (middle, most) = late_ms(&client, "busy", 1_000, 5_000).await;
    stop.cancel();
    let mut written = 0;
    for writer in load {
        written += writer.await.expect("it ran");
    }
    println!("beside {written} writes, woken late by {middle} ms in the middle, {most} ms at most");
    let waiting = SagaFilter { name: "month".into(), at: "sleep".into(), ..Default::default() };
    let listed = client.sagas(waiting).all().await.expect("listed");
    let ids: HashSet<String> = listed.iter().map(|saga| saga.id.clone()).collect();
    // A clock that was not set yet when one was started would have woken it at once.
    for id in (0..timers()).map(|n| format!("month-{n}")).filter(|id| !ids.contains(id)) {
        println!("not listed: {id}, which is {:?}", client.saga(&id).await.map(|saga| saga.status));
    }
    assert_eq!((listed.len(), ids.len()), (timers(), timers()));
}
