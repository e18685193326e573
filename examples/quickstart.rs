//! Every call of the client once, against a running cluster:
//!
//! ```text
//! kvorum serve &
//! cargo run --example quickstart --no-default-features --features client -- 127.0.0.1:7400
//! ```
//!
//! Endpoints come from the arguments, or from `KVORUM_ENDPOINTS` (separated by commas).

use std::time::Duration;

use kvorum::Client;
use kvorum::client::{Batch, Expect, ScanOptions, Swap};

#[tokio::main]
async fn main() -> kvorum::Result<()> {
    let client = Client::builder().endpoints(endpoints()).deadline(Duration::from_secs(10)).connect().await?;
    println!("connected to cluster {}", client.cluster_id());

    // A put says when it was committed; a get sees every write that was acknowledged before it began.
    let written = client.put("quickstart/colour", "blue").await?;
    let record = client.get("quickstart/colour").await?.ok_or_else(|| gone("quickstart/colour"))?;
    println!("put and got {:?}, version {}", record.value, record.version);

    // Compare-and-swap on the version that was read: only one of several who try gets through.
    match client
        .compare_and_swap("quickstart/colour", Expect::Version(record.version), Some("red".into()))
        .await?
    {
        Swap::Written(now) => println!("swapped to red, version {}", now.version),
        other => println!("somebody else was faster: {other:?}"),
    }

    // The value as it was before: versions are kept for a while.
    let before = client.get_at("quickstart/colour", written.commit_ts).await?;
    println!("at {} it was {:?}", written.commit_ts, before.map(|record| record.value));

    // A counter. A retry after a broken connection never counts twice.
    client.delete("quickstart/visits").await?;
    for _ in 0..3 {
        client.add("quickstart/visits", 1).await?;
    }
    println!("visits: {}", client.add("quickstart/visits", 0).await?.value);

    // Conditions, then, else: atomic over the keys of one shard.
    let batch = Batch::new()
        .when("quickstart/visits", Expect::Value("3".into()))
        .then_put("quickstart/award", "third visit")
        .then_add("quickstart/visits", 1)
        .otherwise_get("quickstart/visits");
    let outcome = client.batch(batch).await?;
    println!("batch: conditions met {}, results {:?}", outcome.succeeded, outcome.results);

    // A scan streams the rows at one timestamp; memory stays bounded however many there are.
    let mut scan = client.scan(ScanOptions::prefix("quickstart/"));
    while let Some(row) = scan.next().await {
        let row = row?;
        println!("  {:?} = {:?}", row.key, row.record.value);
    }
    Ok(())
}

fn endpoints() -> Vec<String> {
    let given: Vec<String> = std::env::args().skip(1).collect();
    if !given.is_empty() {
        return given;
    }
    let named = std::env::var("KVORUM_ENDPOINTS").unwrap_or_else(|_| "127.0.0.1:7400".into());
    named.split(',').map(str::to_owned).collect()
}

fn gone(key: &str) -> kvorum::Error {
    kvorum::Error::new(kvorum::ErrorKind::Conflict, format!("somebody removed {key} meanwhile: run it again"))
}
