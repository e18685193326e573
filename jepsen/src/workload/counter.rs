//! Counters: additions, alone or in a transaction, and reads.

use futures::future::BoxFuture;
use kvorum::{Client, Error};
use parking_lot::Mutex;
use rand::Rng;
use rand::rngs::SmallRng;

use super::outcome::number;
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
        _: ReadLevel,
    ) -> BoxFuture<'a, Outcome> {
        Box::pin(async move {
            let stored = placed(request.key.as_deref().unwrap_or_default());
            let done = match request.value {
                Value::Int(delta) => add(client, &stored, delta).await,
                _ => read(client, &stored).await,
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

async fn add(client: &Client, stored: &str, delta: i64) -> Result<(Value, Option<u64>), Error> {
    // Small ones go alone, large ones in a transaction: both ways count once.
    let commit_ts = match delta > LARGEST / 2 {
        false => client.add(stored, delta).await?.commit_ts,
        true => client.transact(|txn| async move { txn.add(stored, delta) }).await?.commit_ts,
    };
    Ok((Value::Int(delta), Some(commit_ts.0)))
}

async fn read(client: &Client, stored: &str) -> Result<(Value, Option<u64>), Error> {
    let held = client.get(stored).await?;
    let value = held.map_or(Ok(0), |record| number(&record.value))?;
    Ok((Value::Int(value), None))
}
