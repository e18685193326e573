//! The whole store inside a program's own process: no server, no port, the same client.
//!
//! ```text
//! cargo run --example embedded -- ./my-data
//! ```

use kvorum::Embedded;
use kvorum::client::ScanOptions;

#[tokio::main]
async fn main() -> kvorum::Result<()> {
    let path = std::env::args().nth(1).unwrap_or_else(|| "./embedded-data".into());
    let store = Embedded::open(&path).await?;
    let client = store.client();

    let runs = client.add("embedded/runs", 1).await?;
    client.put(format!("embedded/run/{:06}", runs.value), "was here").await?;
    println!("run {} on {path}", runs.value);

    // What earlier runs wrote is there.
    let mut scan = client.scan(ScanOptions::prefix("embedded/run/"));
    while let Some(row) = scan.next().await {
        let row = row?;
        println!("  {:?} at {}", row.key, row.record.commit_ts);
    }
    store.close().await
}
