//! Counters over all shards, raised and read, each time with the timestamp: the commit's, or the one a read is of.

use futures::future::BoxFuture;
use kvorum::{Client, Error};
use rand::Rng;
use rand::rngs::SmallRng;

use super::outcome::number;
use super::{Outcome, ReadLevel, Request, Workload, placed};
use crate::history::{F, Value};

/// How many counters there are.
const KEYS: u32 = 8;

/// The workload `monotonic`.
pub struct Monotonic;

impl Workload for Monotonic {
    fn next(&self, rng: &mut SmallRng) -> Request {
        let key = format!("m{}", rng.random_range(0..KEYS));
        match rng.random() {
            true => Request::of(key, F::Read, Value::Nil),
            false => Request::of(key, F::Add, Value::Int(1)),
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
        (0..KEYS).map(|key| Request::of(format!("m{key}"), F::Read, Value::Nil)).collect()
    }

    fn hot_key(&self) -> String {
        placed("m0")
    }
}

/// Answers what the counter holds then.
async fn add(client: &Client, stored: &str, delta: i64) -> Result<(Value, Option<u64>), Error> {
    let added = client.add(stored, delta).await?;
    Ok((Value::Int(added.value), Some(added.commit_ts.0)))
}

async fn read(client: &Client, stored: &str) -> Result<(Value, Option<u64>), Error> {
    let values = client.get_many([stored]).await?;
    let record = values.records.into_iter().next().flatten();
    let value = record.map(|record| number(&record.value)).transpose()?;
    Ok((Value::register(value), Some(values.at_ts.0)))
}
