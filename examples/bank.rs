//! A bank over many shards: transfers between accounts at once, and books that balance at every instant.
//!
//! ```text
//! cargo run --example bank --no-default-features --features client -- 127.0.0.1:7400
//! ```
//!
//! Each transfer is a transaction over two accounts that usually lie in two shards. It reads both, refuses to
//! overdraw, and writes both. Auditors add up all accounts meanwhile, each time at one timestamp.

use futures::future::{try_join, try_join_all};
use kvorum::Client;
use kvorum::client::{Record, Snapshot, Txn};
use rand::Rng;

const ACCOUNTS: u8 = 16;
const OPENING: i64 = 100;
const TELLERS: usize = 8;
const TRANSFERS: usize = 25;
const AUDITS: usize = 10;

#[tokio::main]
async fn main() -> kvorum::Result<()> {
    let given: Vec<String> = std::env::args().skip(1).collect();
    let named = std::env::var("KVORUM_ENDPOINTS").unwrap_or_else(|_| "127.0.0.1:7400".into());
    let endpoints = if given.is_empty() { named.split(',').map(str::to_owned).collect() } else { given };
    let client = Client::connect(endpoints).await?;

    // All accounts are opened in one transaction: nobody sees a bank with some of them.
    let opened = client
        .transact(|txn| async move {
            (0..ACCOUNTS).try_for_each(|nth| txn.put(account(nth), OPENING.to_string()))
        })
        .await?;
    println!("opened {ACCOUNTS} accounts at {}", opened.commit_ts);

    let tellers = try_join_all((0..TELLERS).map(|_| teller(client.clone())));
    let (done, ()) = try_join(tellers, auditor(&client)).await?;
    let (made, attempts) = done.iter().fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
    println!("{made} of {} transfers made, in {attempts} attempts", TELLERS * TRANSFERS);

    let total = total(&client.snapshot(client.timestamp().await?)).await?;
    println!("the books are in balance: {total}");
    Ok(())
}

/// Accounts are spread over the whole keyspace, so that a cluster of many shards has some in each.
fn account(nth: u8) -> Vec<u8> {
    [&[nth * 16][..], format!("bank/account/{nth:02}").as_bytes()].concat()
}

/// Makes transfers; answers how many were made and how many attempts all of them took.
async fn teller(client: Client) -> kvorum::Result<(usize, u32)> {
    let (mut made, mut attempts) = (0, 0);
    for _ in 0..TRANSFERS {
        let (from, to, amount) = {
            let mut random = rand::rng();
            let from = random.random_range(0..ACCOUNTS);
            let to = (from + random.random_range(1..ACCOUNTS)) % ACCOUNTS;
            (from, to, random.random_range(1..=60))
        };
        let done = client
            .transaction()
            .label(format!("transfer from {from} to {to}"))
            .run(|txn| transfer(txn, from, to, amount))
            .await?;
        made += usize::from(done.value);
        attempts += done.attempts;
    }
    Ok((made, attempts))
}

/// Moves an amount; false where the account would be overdrawn. Runs again where another transfer was faster.
async fn transfer(txn: Txn, from: u8, to: u8, amount: i64) -> kvorum::Result<bool> {
    let held = txn.get_many([account(from), account(to)]).await?;
    let (payer, payee) = (balance(&held[0])?, balance(&held[1])?);
    if payer < amount {
        return Ok(false);
    }
    txn.put(account(from), (payer - amount).to_string())?;
    txn.put(account(to), (payee + amount).to_string())?;
    Ok(true)
}

async fn auditor(client: &Client) -> kvorum::Result<()> {
    for _ in 0..AUDITS {
        total(&client.snapshot(client.timestamp().await?)).await?;
    }
    println!("{AUDITS} audits during the transfers found nothing missing");
    Ok(())
}

/// The sum of all accounts at one instant; an error where it is not what was paid in.
async fn total(snapshot: &Snapshot) -> kvorum::Result<i64> {
    let mut total = 0;
    for record in snapshot.get_many((0..ACCOUNTS).map(account)).await? {
        total += balance(&record)?;
    }
    if total != i64::from(ACCOUNTS) * OPENING {
        return Err(kvorum::Error::corrupt(format!("the accounts hold {total} at {}", snapshot.at())));
    }
    Ok(total)
}

fn balance(record: &Option<Record>) -> kvorum::Result<i64> {
    let text = record.as_ref().and_then(|record| std::str::from_utf8(&record.value).ok());
    text.and_then(|text| text.parse().ok())
        .ok_or_else(|| kvorum::Error::corrupt(format!("an account holds {record:?} instead of a number")))
}
