//! Sets: elements are added one by one, each a key of its own, and whole sets are scanned over all shards.

use futures::future::BoxFuture;
use kvorum::client::ScanOptions;
use kvorum::{Client, Error};
use parking_lot::Mutex;
use rand::Rng;
use rand::rngs::SmallRng;

use super::outcome::number;
use super::reading::scan_all;
use super::{Outcome, ReadLevel, Request, Workload};
use crate::history::{F, Value};

/// Each set is spread over as many places, which lie in different shards if there are as many.
const PLACES: [&str; 4] = ["20", "60", "a0", "e0"];
/// A set gets so many elements, and then the next one begins.
const ELEMENTS: i64 = 200;

/// The workload `set`.
#[derive(Default)]
pub struct Sets {
    added: Mutex<i64>,
}

impl Sets {
    fn newest(&self) -> i64 {
        (*self.added.lock() - 1).max(0) / ELEMENTS
    }
}

impl Workload for Sets {
    fn next(&self, rng: &mut SmallRng) -> Request {
        if rng.random_ratio(2, 3) {
            let mut added = self.added.lock();
            *added += 1;
            let element = *added - 1;
            return Request::of(set(element / ELEMENTS), F::Add, Value::Int(element));
        }
        // Mostly the newest; what came before must stay as it is.
        let newest = self.newest();
        let read = if rng.random_ratio(3, 4) { newest } else { rng.random_range(0..=newest) };
        Request::of(set(read), F::Read, Value::Nil)
    }

    fn perform<'a>(
        &'a self,
        client: &'a Client,
        request: &'a Request,
        level: ReadLevel,
    ) -> BoxFuture<'a, Outcome> {
        Box::pin(async move {
            let set = request.key.as_deref().unwrap_or_default();
            let done = match request.value {
                Value::Int(element) => add(client, set, element).await,
                _ if level.is_linearizable() => scan(client, set).await,
                _ => scan_alone(client, set, level).await,
            };
            Outcome::of(request, done)
        })
    }

    fn closing(&self) -> Vec<Request> {
        (0..=self.newest()).map(|at| Request::of(set(at), F::Read, Value::Nil)).collect()
    }

    fn hot_key(&self) -> String {
        stored(&set(self.newest()), *self.added.lock())
    }
}

fn set(number: i64) -> String {
    format!("s{number}")
}

fn stored(set: &str, element: i64) -> String {
    format!("{}/{set}/{element}", PLACES[element.rem_euclid(PLACES.len() as i64) as usize])
}

async fn add(client: &Client, set: &str, element: i64) -> Result<(Value, Option<u64>), Error> {
    let written = client.put(stored(set, element), element.to_string()).await?;
    Ok((Value::Int(element), Some(written.commit_ts.0)))
}

/// One scan over all shards: outside a transaction, several scans would be of several instants. What is found of other
/// sets is left out.
async fn scan_alone(client: &Client, set: &str, level: ReadLevel) -> Result<(Value, Option<u64>), Error> {
    let (rows, at) = scan_all(client, level.read_at(client).await?).await?;
    let part = format!("/{set}/");
    let found = rows.into_iter().filter(|(key, _)| key.contains(&part));
    let mut elements = found.map(|(_, record)| number(&record.value)).collect::<Result<Vec<_>, _>>()?;
    elements.sort_unstable();
    Ok((Value::List(elements), at.map(|at| at.0)))
}

async fn scan(client: &Client, set: &str) -> Result<(Value, Option<u64>), Error> {
    let scanned = client.read_only(|txn| async move {
        let mut elements = Vec::new();
        for place in PLACES {
            let rows = txn.scan(ScanOptions::prefix(format!("{place}/{set}/"))).collect_rows().await?;
            for row in rows {
                elements.push(number(&row.record.value)?);
            }
        }
        elements.sort_unstable();
        Ok(elements)
    });
    let scanned = scanned.await?;
    Ok((Value::List(scanned.value), Some(scanned.commit_ts.0)))
}
