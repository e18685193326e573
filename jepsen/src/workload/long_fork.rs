//! Long fork: single writes of keys that are written once, and reads of a whole group of them. Two reads that each
//! see one of two writes and not the other can't be put in any order.

use std::collections::VecDeque;

use futures::future::BoxFuture;
use kvorum::{Client, Error};
use parking_lot::Mutex;
use rand::Rng;
use rand::rngs::SmallRng;
use rand::seq::SliceRandom;

use super::outcome::{number, one_by_one};
use super::reading::get_many;
use super::{Outcome, ReadLevel, Request, Workload, placed};
use crate::history::{F, MicroOp, Seen, Value};

/// Keys of a group.
const KEYS: usize = 3;
/// Groups in use at a time.
const ACTIVE: usize = 3;
/// Reads of a group before another takes its place.
const READS: u32 = 8;

/// The workload `long-fork`.
#[derive(Default)]
pub struct LongFork {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    active: Vec<Group>,
    groups: u32,
}

struct Group {
    number: u32,
    unwritten: VecDeque<usize>,
    reads: u32,
}

impl State {
    fn refill(&mut self, rng: &mut SmallRng) {
        self.active.retain(|group| group.reads < READS || !group.unwritten.is_empty());
        while self.active.len() < ACTIVE {
            let mut order: Vec<usize> = (0..KEYS).collect();
            order.shuffle(rng);
            self.active.push(Group { number: self.groups, unwritten: order.into(), reads: 0 });
            self.groups += 1;
        }
    }
}

impl Workload for LongFork {
    fn next(&self, rng: &mut SmallRng) -> Request {
        let mut state = self.state.lock();
        state.refill(rng);
        let at = rng.random_range(0..ACTIVE);
        let group = &mut state.active[at];
        if rng.random_ratio(1, 3)
            && let Some(member) = group.unwritten.pop_front()
        {
            let write = MicroOp::write(key(group.number, member), member as i64 + 1);
            return Request::whole(F::Txn, Value::Txn(vec![write]));
        }
        group.reads += 1;
        let mut members: Vec<usize> = (0..KEYS).collect();
        members.shuffle(rng);
        read_all(group.number, &members)
    }

    fn perform<'a>(
        &'a self,
        client: &'a Client,
        request: &'a Request,
        level: ReadLevel,
    ) -> BoxFuture<'a, Outcome> {
        Box::pin(async move { Outcome::of(request, perform(client, request, level).await) })
    }

    fn closing(&self) -> Vec<Request> {
        (0..self.state.lock().groups).map(|group| read_all(group, &[0, 1, 2])).collect()
    }

    fn hot_key(&self) -> String {
        placed(&key(self.state.lock().active.first().map_or(0, |group| group.number), 0))
    }
}

fn key(group: u32, member: usize) -> String {
    format!("g{group}.{member}")
}

fn read_all(group: u32, members: &[usize]) -> Request {
    let steps = members.iter().map(|member| MicroOp::read(key(group, *member))).collect();
    Request::whole(F::Txn, Value::Txn(steps))
}

async fn perform(
    client: &Client,
    request: &Request,
    level: ReadLevel,
) -> Result<(Value, Option<u64>), Error> {
    let Value::Txn(steps) = &request.value else {
        return Err(Error::invalid(format!("{:?} is no transaction", request.value)));
    };
    if let [MicroOp::Write { key, value }] = &steps[..] {
        let written = client.put(placed(key), value.to_string()).await?;
        return Ok((request.value.clone(), Some(written.commit_ts.0)));
    }
    let keys: Vec<String> = steps.iter().map(|step| placed(step.key())).collect();
    // All keys in one question, or one after the other in a transaction: both are of one instant.
    let (records, at) = if !level.is_linearizable() || rand::random() {
        let values = get_many(client, &keys, level.read_at(client).await?).await?;
        (values.records, values.at_ts)
    } else {
        one_by_one(client, &keys).await?
    };
    let mut seen = Vec::new();
    for (step, record) in steps.iter().zip(records) {
        let value = record.map(|record| number(&record.value)).transpose()?;
        seen.push(MicroOp::Read { key: step.key().to_owned(), seen: value.map_or(Seen::Nothing, Seen::One) });
    }
    Ok((Value::Txn(seen), Some(at.0)))
}
