//! The largest transactions, in indexes: taken in whole, or halted at with the reason.

use bytes::Bytes;
use kvorum::client::{IndexSpec, Timestamp};
use kvorum::{Client, ErrorKind};

use super::{check_equal, create, wait_ready};
use crate::support::Cluster;

/// One transaction that writes so many rows, each with a text of so many bytes.
async fn write(client: &Client, rows: usize, pad_bytes: usize, round: u32) -> Timestamp {
    let pad = "x".repeat(pad_bytes);
    let rows: Vec<(String, Bytes)> = (0..rows)
        .map(|n| {
            let row = format!(r#"{{"team": "team {}", "name": "{n} {round}", "pad": "{pad}"}}"#, n % 10);
            (format!("{}/{n:05}", (b'a' + (n % 26) as u8) as char), row.into())
        })
        .collect();
    let written = client.transact(|txn| {
        let rows = rows.clone();
        async move { rows.into_iter().try_for_each(|(key, row)| txn.put(key, row)) }
    });
    written.await.expect("committed").commit_ts
}

#[tokio::test(flavor = "multi_thread")]
async fn the_largest_transaction_is_taken_in_whole_and_one_that_is_too_large_halts() {
    let cluster = Cluster::start(3, 4).await;
    let client = cluster.client().await;
    let unique = IndexSpec::new("unique_index", "unique").on("$.name").on("$.team");
    let mut wide = IndexSpec::new("wide", "value").on("$.name");
    for n in 0..15 {
        wide = wide.covering(format!("pad{n}=$.pad"));
    }
    create(&client, vec![unique, wide]).await;
    wait_ready(&client, "unique_index").await;
    wait_ready(&client, "wide").await;
    // Twice, so that entries and groups go and come: four rows of the index for each.
    for round in 0..2 {
        let written = write(&client, 9_900, 20, round).await;
        for name in ["unique_index", "wide"] {
            let page = client.query(name).limit(1).at_least(written).page().await.expect("answered");
            assert!(page.watermark >= written);
            check_equal(&client, name).await;
        }
    }
    // 700 rows of 4 KiB are 2.7 MiB, and 15 times that in the index that covers it 15 times.
    let large = write(&client, 700, 4 * 1024, 2).await;
    let page = client.query("unique_index").limit(1).at_least(large).page().await.expect("answered");
    assert!(page.watermark >= large);
    let error = client.query("wide").at_least(large).page().await.expect_err("it has halted");
    assert_eq!(error.kind, ErrorKind::Invalid, "{error}");
    assert!(error.message.contains("over the limits") && error.message.contains("700 changes"), "{error}");
    let page = client.query("wide").limit(1).page().await.expect("it answers as of before");
    assert!(page.watermark < large && page.halted.is_some(), "{page:?}");
    // Built anew from the rows, each of which is small enough.
    client.rebuild_index("wide", None, false).await.expect("begun");
    wait_ready(&client, "wide").await;
    check_equal(&client, "wide").await;
    check_equal(&client, "unique_index").await;
}
