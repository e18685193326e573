//! A bank: transfers between accounts of different shards, and reads of all of them, in every way there is to read
//! several keys at one instant.

use std::collections::BTreeMap;

use futures::future::BoxFuture;
use kvorum::client::Record;
use kvorum::{Client, Error, ErrorKind};
use rand::Rng;
use rand::rngs::SmallRng;

use super::outcome::{number, one_by_one};
use super::reading::get_many;
use super::{Outcome, ReadLevel, Request, Workload, placed};
use crate::history::{F, Value};

/// How many accounts there are.
const ACCOUNTS: u32 = 8;
/// What each holds at the beginning.
const OPENING: i64 = 50;
/// The largest transfer.
const LARGEST: i64 = 20;
/// The message by which a transfer says that an account holds too little.
const POOR: &str = "the account holds too little";

/// The workload `bank`.
pub struct Bank;

impl Workload for Bank {
    fn opening(&self) -> Vec<Request> {
        let balances = accounts().map(|account| (account, OPENING)).collect();
        vec![Request::whole(F::Write, Value::Balances(balances))]
    }

    fn next(&self, rng: &mut SmallRng) -> Request {
        if rng.random_ratio(2, 5) {
            return Request::whole(F::Read, Value::Nil);
        }
        let from = rng.random_range(0..ACCOUNTS);
        let to = (from + rng.random_range(1..ACCOUNTS)) % ACCOUNTS;
        let amount = rng.random_range(1..=LARGEST);
        Request::whole(F::Transfer, Value::Transfer { from: account(from), to: account(to), amount })
    }

    fn perform<'a>(
        &'a self,
        client: &'a Client,
        request: &'a Request,
        level: ReadLevel,
    ) -> BoxFuture<'a, Outcome> {
        Box::pin(async move {
            let done = match &request.value {
                Value::Balances(balances) => open(client, balances).await,
                Value::Transfer { from, to, amount } => transfer(client, from, to, *amount).await,
                _ => read(client, level).await,
            };
            match done {
                Err(error) if error.kind == ErrorKind::Invalid && error.message == POOR => {
                    Outcome::Fail(POOR.into())
                }
                done => {
                    Outcome::of(request, done.map(|(value, ts)| (value.unwrap_or(request.value.clone()), ts)))
                }
            }
        })
    }

    fn closing(&self) -> Vec<Request> {
        // Each of them reads in another way.
        vec![Request::whole(F::Read, Value::Nil); 6]
    }

    fn hot_key(&self) -> String {
        placed(&account(0))
    }
}

fn account(number: u32) -> String {
    format!("a{number}")
}

fn accounts() -> impl Iterator<Item = String> {
    (0..ACCOUNTS).map(account)
}

/// The answer, where it is not the request's own value, and the timestamp.
type Answer = Result<(Option<Value>, Option<u64>), Error>;

async fn open(client: &Client, balances: &BTreeMap<String, i64>) -> Answer {
    let opened = client.transact(|txn| async move {
        for (account, amount) in balances {
            txn.put(placed(account), amount.to_string())?;
        }
        Ok(())
    });
    Ok((None, Some(opened.await?.commit_ts.0)))
}

async fn transfer(client: &Client, from: &str, to: &str, amount: i64) -> Answer {
    let (from, to) = (&placed(from), &placed(to));
    let transferred = client.transact(|txn| async move {
        let held = txn.get_many([from, to]).await?;
        let [payer, payee] = [balance(held.first())?, balance(held.get(1))?];
        if payer < amount {
            // An error of the closure: nothing is sent.
            return Err(Error::invalid(POOR));
        }
        // By writing the sum, or by an addition that the store makes.
        if amount % 2 == 0 {
            txn.put(from, (payer - amount).to_string())?;
            txn.put(to, (payee + amount).to_string())
        } else {
            txn.add(from, -amount)?;
            txn.add(to, amount)
        }
    });
    Ok((None, Some(transferred.await?.commit_ts.0)))
}

fn balance(record: Option<&Option<Record>>) -> Result<i64, Error> {
    match record {
        Some(Some(record)) => number(&record.value),
        _ => Err(Error::corrupt("an account is gone, which nobody removed")),
    }
}

async fn read(client: &Client, level: ReadLevel) -> Answer {
    let keys: Vec<String> = accounts().map(|account| placed(&account)).collect();
    let keys = &keys;
    let (records, at) = match rand::random_range(0..3) {
        _ if !level.is_linearizable() => {
            let values = get_many(client, keys, level.read_at(client).await?).await?;
            (values.records, values.at_ts)
        }
        0 => {
            let values = client.get_many(keys).await?;
            (values.records, values.at_ts)
        }
        1 => {
            let at = client.timestamp().await?;
            (client.snapshot(at).get_many(keys).await?, at)
        }
        _ => one_by_one(client, keys).await?,
    };
    let mut balances = BTreeMap::new();
    for (account, record) in accounts().zip(&records) {
        if let Some(record) = record {
            balances.insert(account, number(&record.value)?);
        }
    }
    Ok((Some(Value::Balances(balances)), Some(at.0)))
}
