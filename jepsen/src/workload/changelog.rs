//! A changelog: writes of all sorts over all shards, scans of everything, and followers who are told of every change.

use std::sync::atomic::{AtomicI64, Ordering};

use futures::future::BoxFuture;
use kvorum::client::{ScanOptions, Written};
use kvorum::{Client, Error};
use rand::Rng;
use rand::rngs::SmallRng;

use super::outcome::number;
use super::{FollowerPlan, Outcome, ReadLevel, Request, Workload, placed};
use crate::history::{F, Following, MicroOp, Value};

/// Keys that are written and removed, and numbers that are added to and removed.
const REGISTERS: u32 = 40;
const NUMBERS: u32 = 16;
/// So many of each, the first ones, are hot: every third choice is one of them.
const HOT: u32 = 3;
/// Keys of a transaction: of most ones at most, and of a large one.
const FEW: usize = 5;
const MANY: usize = 24;
/// What a large transaction writes is made so long, that pages of changes have to be cut.
const PADDED_BYTES: usize = 8 * 1024;
/// The keys of the follower of a part: over a bound of shards, and a bit of another one.
const PART: [(&str, Option<&str>); 2] = [("30", Some("98")), ("e", None)];

/// The workload `changelog`.
#[derive(Default)]
pub struct Changelog {
    requests: AtomicI64,
}

impl Workload for Changelog {
    fn next(&self, rng: &mut SmallRng) -> Request {
        if rng.random_ratio(1, 6) {
            return Request::whole(F::Read, Value::Nil);
        }
        let number = self.requests.fetch_add(1, Ordering::Relaxed);
        let keys = match rng.random_range(0..100) {
            0..4 => MANY,
            4..40 => 1,
            _ => rng.random_range(2..=FEW),
        };
        let mut steps: Vec<MicroOp> = Vec::with_capacity(keys);
        while steps.len() < keys {
            // Each value, and each number that is added, is one that no other request has.
            let step = step(rng, number * 100 + steps.len() as i64 + 1);
            if steps.iter().all(|other| other.key() != step.key()) {
                steps.push(step);
            }
        }
        Request::whole(F::Txn, Value::Txn(steps))
    }

    fn perform<'a>(
        &'a self,
        client: &'a Client,
        request: &'a Request,
        _: ReadLevel,
    ) -> BoxFuture<'a, Outcome> {
        Box::pin(async move {
            let done = match &request.value {
                Value::Txn(steps) => match &steps[..] {
                    [step] if rand::random() => alone(client, step).await,
                    _ => together(client, steps).await,
                },
                _ => read(client).await,
            };
            Outcome::of(request, done)
        })
    }

    fn closing(&self) -> Vec<Request> {
        vec![Request::whole(F::Read, Value::Nil); 4]
    }

    fn hot_key(&self) -> String {
        placed("k0")
    }

    fn held(&self, stored: &[u8]) -> Result<i64, Error> {
        held(stored)
    }

    fn followers(&self) -> Vec<FollowerPlan> {
        let plan = |name, begins_at_percent, resumes, following| FollowerPlan {
            name,
            following,
            begins_at_percent,
            resumes,
        };
        let ranges = PART.map(|(from, to)| (from.to_owned(), to.map(str::to_owned))).to_vec();
        let whole = Following { before_images: true, ..Following::default() };
        let part = Following { before_images: true, ranges, ..Following::default() };
        let scan = Following { scans: true, ..Following::default() };
        vec![
            plan("all", 0, false, whole.clone()),
            plan("resumed", 0, true, whole),
            plan("part", 0, false, part),
            plan("scan", 50, false, scan),
            // It has everything before it, in large pages.
            plan("late", 60, false, Following::default()),
        ]
    }
}

fn step(rng: &mut SmallRng, unique: i64) -> MicroOp {
    let is_number = rng.random_ratio(1, 4);
    let (prefix, count) = if is_number { ("c", NUMBERS) } else { ("k", REGISTERS) };
    let among = if rng.random_ratio(1, 3) { HOT } else { count };
    let key = placed(&format!("{prefix}{}", rng.random_range(0..among)));
    match rng.random_range(0..4) {
        0 => MicroOp::delete(key),
        _ if is_number => MicroOp::add(key, unique),
        _ => MicroOp::write(key, unique),
    }
}

/// What came of a write, and when it was committed.
type Answer = Result<(Value, Option<u64>), Error>;

/// A write of one key outside transactions.
async fn alone(client: &Client, step: &MicroOp) -> Answer {
    let done = Value::Txn(vec![step.clone()]);
    match step {
        MicroOp::Write { key, value } => {
            let Written { commit_ts, .. } = client.put(key, value.to_string()).await?;
            Ok((done, Some(commit_ts.0)))
        }
        MicroOp::Add { key, delta } => Ok((done, Some(client.add(key, *delta).await?.commit_ts.0))),
        MicroOp::Delete { key } => {
            let deleted = client.delete(key).await?;
            // Nothing was there, and nothing is changed.
            let done = if deleted.existed { done } else { Value::Txn(Vec::new()) };
            Ok((done, Some(deleted.commit_ts.0)))
        }
        MicroOp::Append { .. } | MicroOp::Read { .. } => Err(unknown(step)),
    }
}

async fn together(client: &Client, steps: &[MicroOp]) -> Answer {
    let is_large = steps.len() >= MANY;
    let committed = client.transact(|txn| async move {
        for step in steps {
            match step {
                MicroOp::Write { key, value } => txn.put(key, stored(*value, is_large))?,
                MicroOp::Add { key, delta } => txn.add(key, *delta)?,
                MicroOp::Delete { key } => txn.delete(key)?,
                MicroOp::Append { .. } | MicroOp::Read { .. } => return Err(unknown(step)),
            }
        }
        Ok(())
    });
    Ok((Value::Txn(steps.to_vec()), Some(committed.await?.commit_ts.0)))
}

fn unknown(step: &MicroOp) -> Error {
    Error::invalid(format!("this workload has no step {step:?}"))
}

/// All rows at a fresh timestamp.
async fn read(client: &Client) -> Answer {
    let at = client.timestamp().await?;
    let rows = client.scan(ScanOptions::all().at(at)).collect_rows().await?;
    let row = |row: kvorum::client::Row| Ok((text(&row.key), held(&row.record.value)?));
    let rows = rows.into_iter().map(row).collect::<Result<_, Error>>()?;
    Ok((Value::Balances(rows), Some(at.0)))
}

/// A number as it is stored: with as much behind it as makes it long.
fn stored(value: i64, is_long: bool) -> String {
    match is_long {
        true => format!("{value} {}", ".".repeat(PADDED_BYTES)),
        false => value.to_string(),
    }
}

/// The number that is stored.
///
/// # Errors
/// `Corrupt` where it is none that a client wrote, or what makes it long is not whole.
fn held(bytes: &[u8]) -> Result<i64, Error> {
    let end = bytes.iter().position(|byte| *byte == b' ').unwrap_or(bytes.len());
    let (value, rest) = bytes.split_at(end);
    if !rest.is_empty() && (rest.len() != PADDED_BYTES + 1 || rest[1..].iter().any(|byte| *byte != b'.')) {
        return Err(Error::corrupt(format!(
            "a key holds {:?} and {} bytes more, which no client wrote",
            String::from_utf8_lossy(value),
            rest.len()
        )));
    }
    number(value)
}

fn text(key: &[u8]) -> String {
    String::from_utf8_lossy(key).into_owned()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use rand::SeedableRng;

    use super::*;

    #[test]
    fn no_value_is_written_twice_and_no_key_twice_in_a_request() {
        let (workload, mut rng) = (Changelog::default(), SmallRng::seed_from_u64(1));
        let (mut seen, mut sizes, mut keys) = (HashSet::new(), HashSet::new(), HashSet::new());
        for _ in 0..2_000 {
            let Value::Txn(steps) = workload.next(&mut rng).value else { continue };
            sizes.insert(steps.len());
            let of_request: HashSet<&str> = steps.iter().map(MicroOp::key).collect();
            assert_eq!(of_request.len(), steps.len());
            for step in &steps {
                keys.insert(step.key().to_owned());
                if let MicroOp::Write { value, .. } | MicroOp::Add { delta: value, .. } = step {
                    assert!(seen.insert(*value), "{value}");
                }
            }
        }
        assert_eq!(sizes, HashSet::from([1, 2, 3, 4, 5, MANY]));
        assert_eq!(keys.len(), (REGISTERS + NUMBERS) as usize);
    }

    #[test]
    fn the_part_has_keys_of_several_shards_and_not_all() {
        let workload = Changelog::default();
        let plans = workload.followers();
        let part = plans.iter().find(|plan| plan.name == "part").expect("there is one");
        let keys = (0..REGISTERS).map(|key| placed(&format!("k{key}")));
        let (within, without): (Vec<_>, Vec<_>) = keys.partition(|key| part.following.has(key));
        let cuts = super::super::split_keys(4);
        let shard = |key: &String| cuts.iter().filter(|cut| *cut <= key).count();
        assert!(within.iter().map(shard).collect::<HashSet<_>>().len() >= 3, "{within:?}");
        assert!(without.len() > 10, "{without:?}");
    }

    #[test]
    fn long_values_are_read_back_and_cut_ones_are_not() {
        for long in [false, true] {
            assert_eq!(held(stored(-17, long).as_bytes()), Ok(-17));
        }
        let mut cut = stored(17, true);
        cut.pop();
        assert!(held(cut.as_bytes()).is_err() && held(b"x").is_err());
    }
}
