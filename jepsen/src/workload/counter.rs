//! Counters: additions, alone or in a transaction, and reads.

use futures::future::BoxFuture;
use kvorum::client::{Record, Txn};
use kvorum::{Client, Error};
use parking_lot::Mutex;
use rand::Rng;
use rand::rngs::SmallRng;

use super::outcome::number;
use super::reading::get_many;
use super::{Outcome, ReadLevel, Request, Workload, placed};
use crate::history::{F, Value};

/// Counters in use at a time.
const ACTIVE: u32 = 4;
/// All counters in use are laid aside after so many requests: unknown additions widen what a read may see.
const REQUESTS: u32 = 1200;
/// The largest addition.
const LARGEST: i64 = 5;

/// The workload `counter`.
#[derive(Default)]
pub struct Counters {
    requests: Mutex<u32>,
}

impl Counters {
    fn generation(&self) -> u32 {
        *self.requests.lock() / REQUESTS
    }
}

impl Workload for Counters {
    fn next(&self, rng: &mut SmallRng) -> Request {
        let generation = self.generation();
        *self.requests.lock() += 1;
        let key = counter(generation * ACTIVE + rng.random_range(0..ACTIVE));
        match rng.random_ratio(3, 5) {
            true => Request::of(key, F::Add, Value::Int(rng.random_range(1..=LARGEST))),
            false => Request::of(key, F::Read, Value::Nil),
        }
    }

    fn perform<'a>(
        &'a self,
        client: &'a Client,
        request: &'a Request,
        level: ReadLevel,
    ) -> BoxFuture<'a, Outcome> {
        Box::pin(async move {
            let counter = request.key.as_deref().unwrap_or_default();
            let done = match request.value {
                Value::Int(delta) => add(client, counter, delta).await,
                _ => read(client, counter, level).await,
            };
            Outcome::of(request, done)
        })
    }

    fn closing(&self) -> Vec<Request> {
        let count = (self.generation() + 1) * ACTIVE;
        (0..count).map(|at| Request::of(counter(at), F::Read, Value::Nil)).collect()
    }

    fn hot_key(&self) -> String {
        placed(&counter(self.generation() * ACTIVE))
    }
}

fn counter(number: u32) -> String {
    format!("c{number}")
}

/// A counter is the sum of two, which mostly lie in different shards.
fn halves(counter: &str) -> [String; 2] {
    [placed(counter), placed(&format!("{counter}.more"))]
}

async fn add(client: &Client, counter: &str, delta: i64) -> Result<(Value, Option<u64>), Error> {
    let [first, second] = &halves(counter);
    // Small ones go alone, large ones as two parts in a transaction that reads nothing: both ways count once.
    let commit_ts = match delta > LARGEST / 2 {
        false => client.add(first, delta).await?.commit_ts,
        true => {
            let parts = |txn: Txn| async move {
                txn.add(first, delta / 2)?;
                txn.add(second, delta - delta / 2)
            };
            client.transact(parts).await?.commit_ts
        }
    };
    Ok((Value::Int(delta), Some(commit_ts.0)))
}

async fn read(client: &Client, counter: &str, level: ReadLevel) -> Result<(Value, Option<u64>), Error> {
    let held = get_many(client, &halves(counter), level.read_at(client).await?).await?;
    let value = |record: Option<Record>| record.map_or(Ok(0), |record| number(&record.value));
    let values = held.records.into_iter().map(value).collect::<Result<Vec<i64>, Error>>()?;
    Ok((Value::Int(values.iter().sum()), Some(held.at_ts.0)))
}
