//! A read model inside the store, each change applied once: how many orders each customer has, and for how much.
//!
//! ```text
//! cargo run --example projection --no-default-features --features client -- 127.0.0.1:7400
//! ```
//!
//! Orders lie at `order/NUMBER` and hold a customer and an amount. What is made of them lies under `view/`, outside of what
//! is followed. Killed at any point and started again, it goes on behind what it did.

use std::time::Duration;

use bytes::Bytes;
use kvorum::client::{Before, Event, FollowOptions, Projection, ScanOptions, Since, Txn, clear_prefix};
use kvorum::{Client, Error, Result};
use serde::{Deserialize, Serialize};

/// A read model that reads its own changes waits so long for them.
const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Serialize, Deserialize)]
struct Order {
    customer: String,
    amount: i64,
}

struct OrdersOfCustomers;

impl Projection for OrdersOfCustomers {
    fn follows(&self) -> FollowOptions {
        // What was there before is what is taken away again.
        FollowOptions::prefix("order/").since(Since::Scan).before_images()
    }

    async fn apply(&self, event: &Event, txn: &Txn) -> Result<()> {
        match event {
            Event::Row(row) => count(txn, &row.record.value, 1),
            Event::Changes(changes) => changes.changes.iter().try_for_each(|change| {
                if let Before::Value(before) = &change.before {
                    count(txn, before, -1)?;
                }
                change.value.as_ref().map_or(Ok(()), |value| count(txn, value, 1))
            }),
            Event::Progress(_) => Ok(()),
        }
    }

    async fn clear(&self, txn: &Txn) -> Result<bool> {
        clear_prefix(txn, "view/").await
    }
}

/// Adds an order to its customer's, or takes it away (`times` is -1).
fn count(txn: &Txn, value: &Bytes, times: i64) -> Result<()> {
    let order: Order = serde_json::from_slice(value)
        .map_err(|error| Error::corrupt(format!("an order that is none ({error}): correct it at its key")))?;
    txn.add(format!("view/{}/orders", order.customer), times)?;
    txn.add(format!("view/{}/amount", order.customer), times * order.amount)
}

#[tokio::main]
async fn main() -> Result<()> {
    let given: Vec<String> = std::env::args().skip(1).collect();
    let named = std::env::var("KVORUM_ENDPOINTS").unwrap_or_else(|_| "127.0.0.1:7400".into());
    let endpoints = if given.is_empty() { named.split(',').map(str::to_owned).collect() } else { given };
    let client = Client::connect(endpoints).await?;
    let view = client.project("orders-of-customers", OrdersOfCustomers).start().await?;

    // Commands know nothing of the view.
    let orders = client.typed::<Order>();
    for (number, customer, amount) in [(1, "ann", 30), (2, "bob", 5), (3, "ann", 12), (2, "ann", 8)] {
        orders.put(format!("order/{number}"), &Order { customer: customer.into(), amount }).await?;
    }
    let last = client.delete("order/3").await?.commit_ts;

    // Whoever wants to find his own writes in the view waits until it is that far.
    view.wait_for(last, PATIENCE).await?;
    let mut rows = client.scan(ScanOptions::prefix("view/"));
    while let Some(row) = rows.next().await {
        let row = row?;
        println!("{:?} = {:?}", row.key, row.record.value);
    }
    view.stop().await;
    Ok(())
}
