//! Sagas: clients start them, alone or together with a row, cancel them, send signals, wait for their ends and read them, while
//! a crew of workers does their tasks, or fails to, and is killed.

mod crew;
mod definitions;
mod tasks;
mod world;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use bytes::Bytes;
use futures::future::BoxFuture;
use kvorum::client::{SagaFilter, SagaRecord, SagaStart, ScanOptions};
use kvorum::codec::keyspace;
use kvorum::{Client, Error, ErrorKind};
use parking_lot::Mutex;
use rand::Rng;
use rand::rngs::SmallRng;

pub use crew::Crew;
pub use definitions::definition;

use super::outcome::number;
use super::{Outcome, ReadLevel, Request, Workload, placed};
use crate::check::saga::{CHILD, PLANS, plan, row_key};
use crate::history::saga::{Line, Read, Saga, Start};
use crate::history::{F, Recorder, Value};
use crate::hosts::Cluster;

/// Requests about a saga that was started are about one of the last so many.
const RECENT: i64 = 12;
/// How often the end of a read is asked for, where a saga's history is long.
const PAGES: usize = 100;

/// The workload `saga`.
#[derive(Default)]
pub struct Sagas {
    started: AtomicI64,
    rows: AtomicI64,
    /// Ids of sagas that are steps of others, as far as they are known.
    children: Arc<Mutex<Vec<String>>>,
}

impl Workload for Sagas {
    fn opening(&self) -> Vec<Request> {
        // The child first, since another one names it.
        let mut names: Vec<&str> = PLANS.iter().map(|plan| plan.name).collect();
        names.sort_by_key(|name| *name != CHILD);
        names.into_iter().map(|name| Request::of(name, F::Create, Value::Nil)).collect()
    }

    fn next(&self, rng: &mut SmallRng) -> Request {
        match rng.random_range(0..100) {
            0..22 => self.start(self.started.fetch_add(1, Ordering::Relaxed), false),
            22..28 => self.start(self.recent(rng), rng.random_ratio(1, 4)),
            28..35 => Request::of(id(self.recent(rng)), F::Cancel, Value::Nil),
            35..48 => Request::of(id(self.recent(rng)), F::Signal, Value::Nil),
            48..78 => Request::of(id(self.recent(rng)), F::Await, Value::Nil),
            78..96 => Request::of(id(self.recent(rng)), F::Inspect, Value::Nil),
            96..98 => Request::whole(F::List, Value::Nil),
            _ => Request::whole(F::Read, Value::Nil),
        }
    }

    fn perform<'a>(
        &'a self,
        client: &'a Client,
        request: &'a Request,
        _: ReadLevel,
    ) -> BoxFuture<'a, Outcome> {
        Box::pin(async move {
            let id = request.key.as_deref().unwrap_or_default();
            let done = match (request.f, &request.value) {
                (F::Create, _) => define(client, id).await,
                (F::Start, Value::Saga(Saga::Start(start))) => begin(client, id, start).await,
                (F::Cancel, _) => {
                    let changed = client.cancel_saga(id, "a client wants it").await;
                    changed.map(|changed| (Value::Int(changed.into()), None))
                }
                (F::Signal, _) => {
                    client.signal_saga(id, definitions::SIGNAL, "go").await.map(|()| (Value::Nil, None))
                }
                (F::Await, _) => {
                    let ended = client.wait_for_saga(id).await;
                    ended.map(|view| (Value::Saga(Saga::Status(view.status)), None))
                }
                (F::Inspect, _) => inspect(client, id).await,
                (F::List, _) => list(client).await,
                _ => read(client).await,
            };
            Outcome::of(request, done)
        })
    }

    fn closing(&self) -> Vec<Request> {
        let known = (0..self.started.load(Ordering::Relaxed)).map(id);
        let children = self.children.lock().clone();
        // The number says that it is the last word.
        let inspect = |id: String| Request::of(id, F::Inspect, Value::Int(1));
        let whole = [Request::whole(F::List, Value::Nil), Request::whole(F::Read, Value::Nil)];
        known.chain(children).map(inspect).chain(whole).collect()
    }

    fn hot_key(&self) -> String {
        placed("count/s0/debit")
    }

    /// Where the newest saga is: its shard's leader runs it.
    fn hot_place(&self) -> Bytes {
        let newest = id(self.started.load(Ordering::Relaxed).max(1) - 1);
        keyspace::saga_row(&newest, keyspace::SAGA_OPEN, &[])
    }

    fn crew(&self, cluster: &Arc<Cluster>, recorder: &Arc<Recorder>, seed: u64) -> Option<Crew> {
        Some(Crew::start(cluster, recorder, seed, Arc::clone(&self.children)))
    }
}

impl Sagas {
    /// The start of a saga. What it is, its number says, so that it can be repeated.
    fn start(&self, saga: i64, is_other: bool) -> Request {
        let plans: Vec<&str> = PLANS.iter().map(|plan| plan.name).filter(|name| *name != CHILD).collect();
        let saga_name = plans[saga.rem_euclid(plans.len() as i64) as usize];
        let row = (saga / plans.len() as i64 % 3 == 0).then(|| self.rows.fetch_add(1, Ordering::Relaxed));
        let start = Start { saga: saga_name.to_owned(), input: if is_other { 2 } else { 1 }, row };
        Request::of(id(saga), F::Start, Value::Saga(Saga::Start(start)))
    }

    /// One of the last ones.
    fn recent(&self, rng: &mut SmallRng) -> i64 {
        let back = rng.random_range(1..=RECENT);
        (self.started.load(Ordering::Relaxed) - back).max(0)
    }
}

fn id(saga: i64) -> String {
    format!("s{saga}")
}

/// The answer, and the timestamp that it is of.
type Answer = Result<(Value, Option<u64>), Error>;

async fn define(client: &Client, name: &str) -> Answer {
    let plan = plan(name).ok_or_else(|| Error::invalid(format!("this workload has no saga {name:?}")))?;
    client.define_saga(&definitions::definition(plan)?).await?;
    Ok((Value::Nil, None))
}

async fn begin(client: &Client, id: &str, start: &Start) -> Answer {
    let asked = || SagaStart::new(&start.saga, id).input(start.input.to_string());
    let started = |already| Value::Saga(Saga::Started { already });
    let Some(row) = start.row else {
        return Ok((started(client.start_saga(asked()).await?.already), None));
    };
    let committed = client.transact(|txn| async move {
        txn.put(placed(&row_key(id, row)), "1")?;
        txn.start_saga(asked())
    });
    Ok((started(false), Some(committed.await?.commit_ts.0)))
}

/// A saga with all of its history; nothing where there is none.
async fn inspect(client: &Client, id: &str) -> Answer {
    let mut lines = Vec::new();
    let mut from = Some(0);
    for _ in 0..PAGES {
        let Some(next) = from else { break };
        match client.saga_history(id, next).await {
            Ok((page, more)) => {
                lines.extend(page.into_iter().map(line));
                from = more;
            }
            Err(error) if is_missing(&error) => return Ok((Value::Nil, None)),
            Err(error) => return Err(error),
        }
    }
    let view = client.saga(id).await?;
    let text = |bytes: &Bytes| String::from_utf8_lossy(bytes).into_owned();
    let outputs = view.steps.iter().filter_map(|step| Some((step.name.clone(), text(step.output.as_ref()?))));
    let outputs: BTreeMap<String, String> = outputs.collect();
    let input = number(&view.input.unwrap_or_default())?;
    let read = Read { saga: view.name, status: view.status, input, parent: view.parent, outputs, lines };
    Ok((Value::Saga(Saga::Read(Box::new(read))), None))
}

fn is_missing(error: &Error) -> bool {
    error.kind == ErrorKind::Invalid && error.message.starts_with("there is no saga")
}

fn line(record: SagaRecord) -> Line {
    Line(record.step, record.what, record.kind, record.attempt, record.detail)
}

async fn list(client: &Client) -> Answer {
    let sagas = client.sagas(SagaFilter::default()).all().await?;
    let sagas = sagas.into_iter().map(|saga| (saga.id, saga.status)).collect();
    Ok((Value::Saga(Saga::List(sagas)), None))
}

/// All rows at a fresh timestamp, without what spreads their keys over shards.
async fn read(client: &Client) -> Answer {
    let at = client.timestamp().await?;
    let rows = client.scan(ScanOptions::all().at(at)).collect_rows().await?;
    let row = |row: kvorum::client::Row| {
        let key = String::from_utf8_lossy(&row.key).into_owned();
        let plain = key.split_once('/').map(|(_, plain)| plain.to_owned());
        Ok((plain.unwrap_or(key), number(&row.record.value)?))
    };
    let rows = rows.into_iter().map(row).collect::<Result<_, Error>>()?;
    Ok((Value::Balances(rows), Some(at.0)))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use rand::SeedableRng;

    use super::*;

    #[test]
    fn starts_are_of_all_plans_alone_and_with_rows_and_are_repeated_alike() {
        let (workload, mut rng) = (Sagas::default(), SmallRng::seed_from_u64(1));
        let (mut kinds, mut of_id) = (BTreeSet::new(), BTreeMap::new());
        let mut repeated = 0;
        for _ in 0..2_000 {
            let request = workload.next(&mut rng);
            let Value::Saga(Saga::Start(start)) = request.value else { continue };
            kinds.insert((start.saga.clone(), start.row.is_some()));
            let key = (start.saga, start.row.is_some());
            if let Some(before) = of_id.insert(request.key, key.clone()) {
                assert_eq!(before, key);
                repeated += 1;
            }
        }
        assert_eq!(kinds.len(), 2 * (PLANS.len() - 1));
        assert!(repeated > 20);
    }
}
