//! Transactions that append to lists and read them: what each saw tells the order of all appends, so that every
//! anomaly there is shows as a cycle.

use futures::future::BoxFuture;
use kvorum::client::Txn;
use kvorum::{Client, Error};
use parking_lot::Mutex;
use rand::Rng;
use rand::rngs::SmallRng;

use super::outcome::number;
use super::{Outcome, ReadLevel, Request, Workload, placed};
use crate::history::{F, MicroOp, Seen, Value};

/// Lists in use at a time.
const ACTIVE: usize = 6;
/// A list gets so many appends, and then another one takes its place.
const APPENDS: i64 = 32;
/// The longest transaction.
const STEPS: usize = 4;

/// The workload `append`.
#[derive(Default)]
pub struct Append {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Lists in use, and how many appends each had.
    active: Vec<(u32, i64)>,
    next_list: u32,
}

impl State {
    fn step(&mut self, rng: &mut SmallRng) -> MicroOp {
        while self.active.len() < ACTIVE {
            self.active.push((self.next_list, 0));
            self.next_list += 1;
        }
        let at = rng.random_range(0..ACTIVE);
        let (list, appends) = self.active[at];
        if rng.random() {
            return MicroOp::read(list.to_string());
        }
        self.active[at].1 += 1;
        if appends + 1 >= APPENDS {
            self.active.remove(at);
        }
        MicroOp::append(list.to_string(), appends + 1)
    }
}

impl Workload for Append {
    fn next(&self, rng: &mut SmallRng) -> Request {
        let count = rng.random_range(1..=STEPS);
        let mut state = self.state.lock();
        Request::whole(F::Txn, Value::Txn((0..count).map(|_| state.step(rng)).collect()))
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
        let lists: Vec<u32> = (0..self.state.lock().next_list).collect();
        let read = |some: &[u32]| some.iter().map(|list| MicroOp::read(list.to_string())).collect();
        lists.chunks(STEPS).map(|some| Request::whole(F::Txn, Value::Txn(read(some)))).collect()
    }

    fn hot_key(&self) -> String {
        let list = self.state.lock().active.first().map_or(0, |(list, _)| *list);
        stored(&list.to_string())
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
    match step {
        MicroOp::Append { value, .. } => {
            let mut next = String::from_utf8_lossy(held).into_owned();
            if !next.is_empty() {
                next.push(' ');
            }
            next.push_str(&value.to_string());
            txn.put(&key, next)?;
            Ok(step.clone())
        }
        MicroOp::Read { key, .. } => {
            let elements = held.split(|byte| *byte == b' ').filter(|element| !element.is_empty());
            let list: Vec<i64> = elements.map(number).collect::<Result<_, _>>()?;
            let seen = if list.is_empty() { Seen::Nothing } else { Seen::List(list) };
            Ok(MicroOp::Read { key: key.clone(), seen })
        }
        MicroOp::Write { .. } => Err(Error::invalid("a list is appended to, never written")),
    }
}
