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
        if round.is_multiple_of(16) {
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

#[tokio::test(flavor = "multi_thread")]
async fn all_pages_and_their_rows_are_of_one_moment() {
    let cluster = Cluster::start(3, 4).await;
    let client = cluster.client().await;
    let row = |other: &str| format!(r#"{{"team": "red", "other": "{other}"}}"#);
    for n in 0..30 {
        client.put(format!("{}/{n:02}", (b'a' + n % 26) as char), row("old")).await.expect("written");
    }
    create(&client, vec![IndexSpec::new("by_team", "value").on("$.team")]).await;
    wait_ready(&client, "by_team").await;
    for round in 0..10 {
        // Nothing of this is in the index: no row of it changes.
        let other = format!("round {round}");
        let written = client.transact(|txn| {
            let row = row(&other);
            async move {
                txn.put("a/00", row.clone())?;
                txn.put("z/25", row)
            }
        });
        let written = written.await.expect("committed").commit_ts;
        let query = client.query("by_team").filter("team = \"red\"").limit(7).with_rows();
        let mut page = query.clone().at_least(written).page().await.expect("answered");
        let (watermark, read_ts, mut items) = (page.watermark, page.read_ts, page.items);
        while let Some(next) = page.next.take() {
            page = query.clone().page_token(next).page().await.expect("answered");
            assert_eq!((page.watermark, page.read_ts), (watermark, read_ts));
            items.append(&mut page.items);
        }
        assert!(watermark >= written && items.len() == 30);
        for key in ["a/00", "z/25"] {
            let found = items.iter().find(|item| item.key.as_deref() == Some(key.as_bytes())).expect("there");
            assert_eq!(found.value.as_deref(), Some(row(&other).as_bytes()), "{key} in round {round}");
        }
    }
}
