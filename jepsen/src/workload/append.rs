//! Transactions that append to lists and read them: what each saw tells the order of all appends, so that every
//! anomaly there is shows as a cycle.

use futures::future::BoxFuture;
use kvorum::client::Txn;
use kvorum::{Client, Error};
use parking_lot::Mutex;
use rand::Rng;
use rand::rngs::SmallRng;

use super::outcome::number;
use super::{Outcome, ReadLevel, Request, Rotation, Workload, placed};
use crate::history::{F, MicroOp, Seen, Value};

/// Lists in use at a time.
const ACTIVE: usize = 6;
/// A list gets so many appends, and then another one takes its place.
const APPENDS: u32 = 32;
/// The longest transaction.
const STEPS: usize = 4;

/// The workload `append`.
pub struct Append {
    lists: Mutex<Rotation>,
}

impl Default for Append {
    fn default() -> Self {
        Self { lists: Mutex::new(Rotation::new(ACTIVE, APPENDS)) }
    }
}

fn step(lists: &mut Rotation, rng: &mut SmallRng) -> MicroOp {
    let place = lists.pick(rng);
    if rng.random() {
        return MicroOp::read(lists.number(place).to_string());
    }
    let (list, appends) = lists.spend(place);
    MicroOp::append(list.to_string(), i64::from(appends))
}

impl Workload for Append {
    fn next(&self, rng: &mut SmallRng) -> Request {
        let count = rng.random_range(1..=STEPS);
        let mut lists = self.lists.lock();
        Request::whole(F::Txn, Value::Txn((0..count).map(|_| step(&mut lists, rng)).collect()))
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
        let lists: Vec<u32> = (0..self.lists.lock().count()).collect();
        let read = |some: &[u32]| some.iter().map(|list| MicroOp::read(list.to_string())).collect();
        lists.chunks(STEPS).map(|some| Request::whole(F::Txn, Value::Txn(read(some)))).collect()
    }

    fn hot_key(&self) -> String {
        stored(&self.lists.lock().hot().to_string())
    }
}

fn stored(list: &str) -> String {
    placed(&format!("l{list}"))
}

async fn perform(client: &Client, request: &Request) -> Result<(Value, Option<u64>), Error> {
    let Value::Txn(steps) = &request.value else {
        return Err(Error::invalid(format!("{:?} is no transaction", request.value)));
    };
    // What only reads says so half of the time: it takes another way through the store.
    let mut transaction = client.transaction();
    if request.only_reads() && rand::random() {
        transaction = transaction.read_only();
    }
    let done = transaction.run(|txn| async move {
        let mut seen = Vec::with_capacity(steps.len());
        for step in steps {
            seen.push(take(&txn, step).await?);
        }
        Ok(seen)
    });
    let done = done.await?;
    Ok((Value::Txn(done.value), Some(done.commit_ts.0)))
}

async fn take(txn: &Txn, step: &MicroOp) -> Result<MicroOp, Error> {
    let key = stored(step.key());
    let held = txn.get(&key).await?;
    let held = held.as_ref().map_or(&b""[..], |record| &record.value[..]);
    let elements = held.split(|byte| *byte == b' ').filter(|element| !element.is_empty());
    let mut list: Vec<i64> = elements.map(number).collect::<Result<_, _>>()?;
    match step {
        MicroOp::Append { value, .. } => {
            list.push(*value);
            let next: Vec<String> = list.iter().map(i64::to_string).collect();
            txn.put(&key, next.join(" "))?;
            Ok(step.clone())
        }
        MicroOp::Read { key, .. } => {
            let seen = if list.is_empty() { Seen::Nothing } else { Seen::List(list) };
            Ok(MicroOp::Read { key: key.clone(), seen })
        }
        MicroOp::Write { .. } | MicroOp::Add { .. } | MicroOp::Delete { .. } => {
            Err(Error::invalid("a list is appended to, never written"))
        }
    }
}
