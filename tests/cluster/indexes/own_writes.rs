//! Reading one's own writes: a commit's timestamp, passed to a query, is never missed.

use std::time::Duration;

use hdrhistogram::Histogram;
use kvorum::Client;
use kvorum::client::IndexSpec;
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::{create, wait_ready};
use crate::support::Cluster;

/// Commits that are queried, where KVORUM_TEST_INDEX_QUERIES does not say otherwise.
const QUERIES: u64 = 1_000;
const CALLERS: u64 = 8;

/// Commits rows of a team of its own and counts them, again and again. Answers how long each query took.
async fn caller(client: Client, number: u64, rounds: u64) -> Vec<Duration> {
    let mut times = Vec::new();
    for round in 1..=rounds {
        let row = json!({ "team": format!("team {number}"), "round": round }).to_string();
        let key = format!("{}/{number}/{round}", (b'a' + (round % 26) as u8) as char);
        let written = client.put(&key, row).await.expect("written").commit_ts;
        let began = Instant::now();
        let filter = format!("team = \"team {number}\" and round = {round}");
        let page = client.query("by_team").filter(filter).at_least(written).page().await.expect("answered");
        times.push(began.elapsed());
        let keys: Vec<&[u8]> = page.items.iter().filter_map(|item| item.key.as_deref()).collect();
        assert_eq!(keys, [key.as_bytes()], "round {round} of {number}, committed at {written}");
        assert!(page.watermark >= written);
        if round % 16 == 0 {
            let filter = format!("team = \"team {number}\"");
            let page =
                client.query("per_team").filter(filter).at_least(written).page().await.expect("answered");
            assert_eq!(page.items[0].count(), Some(round));
        }
    }
    times
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_at_a_commits_timestamp_sees_the_commit() {
    let queries =
        std::env::var("KVORUM_TEST_INDEX_QUERIES").map_or(QUERIES, |text| text.parse().expect("a number"));
    let cluster = Cluster::start(3, 4).await;
    let client = cluster.client().await;
    let by_team = IndexSpec::new("by_team", "value").on("$.team").on("$.round");
    create(&client, vec![by_team, IndexSpec::new("per_team", "count").on("$.team")]).await;
    wait_ready(&client, "by_team").await;
    wait_ready(&client, "per_team").await;
    let mut callers = JoinSet::new();
    for number in 0..CALLERS {
        callers.spawn(caller(cluster.client().await, number, queries / CALLERS));
    }
    let times = callers.join_all().await.concat();
    let mut histogram = Histogram::<u64>::new(3).expect("a histogram");
    for time in &times {
        histogram.record(time.as_micros() as u64).expect("recorded");
    }
    let ms = |quantile| histogram.value_at_quantile(quantile) as f64 / 1000.0;
    println!(
        "{} commits queried at their own timestamps, none missed; commit to answer: p50 {:.1} ms, p90 {:.1} ms, p99 {:.1} ms, \
         p99.9 {:.1} ms, longest {:.1} ms",
        times.len(),
        ms(0.5),
        ms(0.9),
        ms(0.99),
        ms(0.999),
        ms(1.0)
    );
    // One that waits alone, for nothing that is written: also told of within a while.
    let now = client.timestamp().await.expect("a timestamp");
    let page = client.query("by_team").limit(1).at_least(now).page().await.expect("answered");
    assert!(page.watermark >= now);
}
