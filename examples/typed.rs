//! Values of a program's own types, stored as JSON, changed without losing anyone's change.
//!
//! ```text
//! cargo run --example typed --no-default-features --features client -- 127.0.0.1:7400
//! ```

use futures::future::try_join_all;
use kvorum::Client;
use kvorum::client::ScanOptions;
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize, Debug)]
struct Product {
    name: String,
    stock: u32,
}

#[tokio::main]
async fn main() -> kvorum::Result<()> {
    let given: Vec<String> = std::env::args().skip(1).collect();
    let named = std::env::var("KVORUM_ENDPOINTS").unwrap_or_else(|_| "127.0.0.1:7400".into());
    let endpoints = if given.is_empty() { named.split(',').map(str::to_owned).collect() } else { given };
    let client = Client::connect(endpoints).await?;
    let products = client.typed::<Product>();

    products.put("typed/apple", &Product { name: "Apple".into(), stock: 0 }).await?;
    products.put("typed/pear", &Product { name: "Pear".into(), stock: 7 }).await?;

    // Ten at once: each reads, changes and swaps on the version it read, again where another was faster.
    let deliveries = (0..10).map(|_| {
        products.update("typed/apple", |held| {
            let mut product = held.unwrap_or(Product { name: "Apple".into(), stock: 0 });
            product.stock += 1;
            product
        })
    });
    try_join_all(deliveries).await?;

    let mut scan = client.scan(ScanOptions::prefix("typed/"));
    while let Some(row) = scan.next().await {
        let (key, product) = products.row(row?)?;
        println!("{key:?}: {:?} (version {})", product.value, product.version);
    }
    let apple = products.get("typed/apple").await?.map(|record| record.value.stock);
    println!("ten deliveries, stock {apple:?}");
    Ok(())
}
