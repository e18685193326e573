//! What sagas cost: how many commands of the store a step is.

use std::time::Duration;

use kvorum::Client;
use kvorum::client::SagaStart;
use kvorum::saga::{Document, Saga, Step};

use super::{Log, noting, spawn};
use crate::raw;
use crate::support::Cluster;

const STEPS: usize = 10;
const SAGAS: usize = 20;

/// The last log indexes of all shards of a cluster of one node, together.
async fn commands(cluster: &Cluster) -> u64 {
    let (_, body) = raw::http_get(&cluster.nodes[0].http, "/metrics").await;
    let lines = body.lines().filter(|line| line.starts_with("kvorum_replica_last_log_index{"));
    lines.filter_map(|line| line.split_whitespace().last()?.parse::<u64>().ok()).sum()
}

/// Commands of a saga, where one runs at a time; without those that there are while nothing is done.
async fn commands_of_a_saga(cluster: &Cluster, client: &Client, name: &str, prefix: &str) -> f64 {
    let run = async |id: String| {
        client.start_saga(SagaStart::new(name, &id)).await.expect("started");
        assert_eq!(client.wait_for_saga(&id).await.expect("waited").status, "completed");
        // Its worker polls again.
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    run(format!("{prefix}-first")).await;
    let (before, began) = (commands(cluster).await, std::time::Instant::now());
    for n in 0..SAGAS {
        run(format!("{prefix}-{n}")).await;
    }
    let (after, took) = (commands(cluster).await, began.elapsed());
    tokio::time::sleep(took).await;
    let idle = commands(cluster).await - after;
    println!("{name}: {} commands of {SAGAS} sagas, and {idle} in as much time without any", after - before);
    (after - before).saturating_sub(idle) as f64 / SAGAS as f64
}

/// As docs/SAGAS.md says: one command starts a saga, one ends each step; where no worker waits already, one more hands it
/// out. A `txn` step is besides the transaction that it is.
#[tokio::test(flavor = "multi_thread")]
async fn a_step_costs_a_command_and_at_most_one_more_to_hand_it_out() {
    let cluster = Cluster::start(1, 1).await;
    let client = cluster.client().await;
    let all = |work: fn(String) -> Step| {
        move |saga: Document| (0..STEPS).fold(saga, |saga, step| saga.step(work(format!("s{step}"))))
    };
    let activities = all(|name| Step::activity(name).handler("do"))(Saga::define("activities", 1).queue("q"));
    let txns = all(|name| Step::txn(name).handler("write"))(Saga::define("txns", 1).queue("q"));
    for saga in [activities, txns] {
        client.define_saga(&saga.check().expect("a definition")).await.expect("defined");
    }
    let log = Log::default();
    let (one, steps) = (1.0, STEPS as f64);
    for concurrency in [1, 4] {
        let worker =
            noting(&client, "q", &log).concurrency(concurrency).txn("write", |task, txn| async move {
                txn.put(format!("w/{}", task.saga_id()), "")?;
                Ok("".into())
            });
        let worker = spawn(worker);
        let prefix = format!("with-{concurrency}");
        let of_activities = commands_of_a_saga(&cluster, &client, "activities", &format!("a-{prefix}")).await;
        let of_txns = commands_of_a_saga(&cluster, &client, "txns", &format!("t-{prefix}")).await;
        println!(
            "concurrency {concurrency}: {of_activities} commands of {STEPS} activities, {of_txns} of {STEPS} txns"
        );
        worker.stop().await;
        // Half a command for what the shards themselves write now and then.
        let most = one + 2.0 * steps + 0.5;
        assert!((one + steps..=most).contains(&of_activities), "{of_activities}");
        // A worker that waits while it does others gets some with the end of the step before; on a busy machine not many.
        assert!(concurrency == 1 || of_activities < one + 2.0 * steps - 0.25, "{of_activities}");
        // Two are prepared, one decides, two finish, one forgets, the saga takes note; and the hand-out.
        assert!(of_txns <= one + 8.0 * steps + 0.5, "{of_txns}");
    }
}
