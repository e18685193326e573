//! Write skew: pairs of keys in different shards. Each transaction reads both and writes one of them, so that each
//! write tells what it was decided on; two that decided on what the other changed did not see each other.

use futures::future::BoxFuture;
use kvorum::{Client, Error};
use parking_lot::Mutex;
use rand::Rng;
use rand::rngs::SmallRng;

use super::outcome::number;
use super::{Outcome, ReadLevel, Request, Rotation, Workload, placed};
use crate::history::{F, MicroOp, Seen, Value};

/// Pairs in use at a time.
const ACTIVE: usize = 3;
/// A pair is asked for so often, and then another takes its place.
const REQUESTS: u32 = 40;

/// The workload `write-skew`.
pub struct WriteSkew {
    state: Mutex<State>,
}

struct State {
    pairs: Rotation,
    next_value: i64,
}

impl Default for WriteSkew {
    fn default() -> Self {
        Self { state: Mutex::new(State { pairs: Rotation::new(ACTIVE, REQUESTS), next_value: 0 }) }
    }
}

impl Workload for WriteSkew {
    fn next(&self, rng: &mut SmallRng) -> Request {
        let mut state = self.state.lock();
        let place = state.pairs.pick(rng);
        let (pair, _) = state.pairs.spend(place);
        let mut steps = read_both(pair, rng.random());
        if rng.random_ratio(2, 3) {
            state.next_value += 1;
            steps.push(MicroOp::write(key(pair, rng.random()), state.next_value));
        }
        Request::whole(F::Txn, Value::Txn(steps))
    }

    fn perform<'a>(
        &'a self,
        client: &'a Client,
        request: &'a Request,
        _: ReadLevel,
    ) -> BoxFuture<'a, Outcome> {
        Box::pin(async move { Outcome::of(request, perform(client, request).await) })
    }

    fn closing(&self) -> Vec<Request> {
        let pairs = self.state.lock().pairs.count();
        (0..pairs).map(|pair| Request::whole(F::Txn, Value::Txn(read_both(pair, false)))).collect()
    }

    fn hot_key(&self) -> String {
        placed(&key(self.state.lock().pairs.hot(), false))
    }
}

fn key(pair: u32, is_second: bool) -> String {
    format!("p{pair}.{}", u8::from(is_second))
}

fn read_both(pair: u32, second_first: bool) -> Vec<MicroOp> {
    vec![MicroOp::read(key(pair, second_first)), MicroOp::read(key(pair, !second_first))]
}

async fn perform(client: &Client, request: &Request) -> Result<(Value, Option<u64>), Error> {
    let Value::Txn(steps) = &request.value else {
        return Err(Error::invalid(format!("{:?} is no transaction", request.value)));
    };
    let done = client.transact(|txn| async move {
        let mut seen = Vec::with_capacity(steps.len());
        for step in steps {
            match step {
                MicroOp::Read { key, .. } => {
                    let held = txn.get(placed(key)).await?;
                    let value = held.map(|record| number(&record.value)).transpose()?;
                    seen.push(MicroOp::Read {
                        key: key.clone(),
                        seen: value.map_or(Seen::Nothing, Seen::One),
                    });
                }
                MicroOp::Write { key, value } => {
                    txn.put(placed(key), value.to_string())?;
                    seen.push(step.clone());
                }
                MicroOp::Append { .. } | MicroOp::Add { .. } | MicroOp::Delete { .. } => {
                    return Err(Error::invalid("pairs are written, never appended to"));
                }
            }
        }
        Ok(seen)
    });
    let done = done.await?;
    Ok((Value::Txn(done.value), Some(done.commit_ts.0)))
}
