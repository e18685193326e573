//! Single keys: read, write, compare and swap.

use std::collections::HashMap;

use bytes::Bytes;
use futures::future::BoxFuture;
use kvorum::client::{Expect, Swap};
use kvorum::{Client, Error, ErrorKind};
use parking_lot::Mutex;
use rand::Rng;
use rand::rngs::SmallRng;

use super::outcome::number;
use super::{Outcome, ReadLevel, Request, Rotation, Workload, placed};
use crate::history::{F, Value};

/// Keys in use at a time.
const ACTIVE: usize = 4;
/// A key is laid aside after so many requests: what is unknown piles up on it, and the checker has to try all orders.
const REQUESTS_A_KEY: u32 = 150;

/// The workload `register`.
pub struct Register {
    state: Mutex<State>,
}

struct State {
    keys: Rotation,
    next_value: i64,
    /// What keys held when a client last saw them: a compare-and-swap guesses from it.
    seen: HashMap<String, Option<i64>>,
}

impl Default for Register {
    fn default() -> Self {
        let keys = Rotation::new(ACTIVE, REQUESTS_A_KEY);
        Self { state: Mutex::new(State { keys, next_value: 0, seen: HashMap::new() }) }
    }
}

impl State {
    fn key(&mut self, rng: &mut SmallRng) -> String {
        let place = self.keys.pick(rng);
        register(self.keys.spend(place).0)
    }

    fn value(&mut self) -> i64 {
        self.next_value += 1;
        self.next_value
    }
}

impl Workload for Register {
    fn next(&self, rng: &mut SmallRng) -> Request {
        let mut state = self.state.lock();
        let key = state.key(rng);
        match rng.random_range(0..10) {
            0..5 => Request::of(key, F::Read, Value::Nil),
            5..8 => {
                let value = state.value();
                Request::of(key, F::Write, Value::Int(value))
            }
            _ => {
                let old = state.seen.get(&key).copied().flatten();
                let new = state.value();
                Request::of(key, F::Cas, Value::Cas { old, new })
            }
        }
    }

    fn perform<'a>(
        &'a self,
        client: &'a Client,
        request: &'a Request,
        level: ReadLevel,
    ) -> BoxFuture<'a, Outcome> {
        Box::pin(async move {
            let key = request.key.as_deref().unwrap_or_default();
            let note = |value| self.state.lock().seen.insert(key.to_owned(), value);
            let outcome = match perform(client, request, &placed(key), level).await {
                Ok(outcome) => outcome,
                Err(error) => Outcome::of_error(request, &error),
            };
            match (&outcome, &request.value) {
                (Outcome::Ok(Value::Cas { new, .. }, _), _) => drop(note(Some(*new))),
                (Outcome::Ok(Value::Int(value), _), _) => drop(note(Some(*value))),
                (Outcome::Ok(..), _) => drop(note(None)),
                _ => {}
            }
            outcome
        })
    }

    fn closing(&self) -> Vec<Request> {
        let keys = self.state.lock().keys.count();
        (0..keys).map(|key| Request::of(register(key), F::Read, Value::Nil)).collect()
    }

    fn hot_key(&self) -> String {
        placed(&register(self.state.lock().keys.hot()))
    }
}

fn register(number: u32) -> String {
    format!("r{number}")
}

/// Makes a request about the register that is stored under `stored`.
async fn perform(
    client: &Client,
    request: &Request,
    stored: &str,
    level: ReadLevel,
) -> Result<Outcome, Error> {
    match &request.value {
        Value::Nil => {
            let record = client.read(stored, level.read_at(client).await?).await?.record;
            let value = record.map(|record| number(&record.value)).transpose()?;
            Ok(Outcome::Ok(Value::register(value), None))
        }
        Value::Int(value) => {
            let written = client.put(stored, value.to_string()).await?;
            Ok(Outcome::Ok(Value::Int(*value), Some(written.commit_ts.0)))
        }
        Value::Cas { old, new } => {
            let expect = old.map_or(Expect::Absent, |old| Expect::Value(Bytes::from(old.to_string())));
            match client.compare_and_swap(stored, expect, Some(new.to_string().into())).await? {
                Swap::Differs { current, .. } => {
                    let held = current.map(|record| number(&record.value)).transpose()?;
                    let held = held.map_or("nothing".to_owned(), |value| value.to_string());
                    Ok(Outcome::Fail(format!("the key held {held}")))
                }
                Swap::Written(written) => Ok(Outcome::Ok(request.value.clone(), Some(written.commit_ts.0))),
                Swap::Removed { .. } => Err(Error::new(
                    ErrorKind::Corrupt,
                    "a swap that writes a value was answered with a removal",
                )),
            }
        }
        other => Err(Error::invalid(format!("{other:?} is nothing that a register does"))),
    }
}
