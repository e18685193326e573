//! Query indexes: rows that move between groups, queries of what their indexes say of them, and the indexes as they are
//! stored against the rows.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use kvorum::client::{IndexSpec, QueryItem, Row, ScanOptions};
use kvorum::codec::keyspace;
use kvorum::index::{Definition, from_scan};
use kvorum::rpc::convert::index_spec_from_proto;
use kvorum::{Client, Error};
use rand::Rng;
use rand::rngs::SmallRng;
use serde_json::{Value as Json, json};
use tokio::time::{Instant, sleep};

use super::{FollowerPlan, Outcome, ReadLevel, Request, Workload, placed};
use crate::check::{BY_TEAM, COUNT_BY_TEAM, SUM_BY_TEAM, TEAMS, team};
use crate::history::{Dump, F, Following, MicroOp, Query, Value};

/// Rows. Every third choice is one of the first.
const ROWS: u32 = 40;
const HOT: u32 = 3;
/// Rows of a transaction, at most.
const TOGETHER: usize = 3;
/// So long the opening waits for an index to be built. It goes on to be built afterwards.
const BUILT_WITHIN: Duration = Duration::from_secs(8);
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Results in a page: so few that there are several pages, or so many that there is one.
const PAGES: [u32; 2] = [3, 1_000];

/// The workload `index`.
#[derive(Default)]
pub struct Indexes {
    requests: AtomicI64,
}

impl Workload for Indexes {
    fn opening(&self) -> Vec<Request> {
        [BY_TEAM, COUNT_BY_TEAM, SUM_BY_TEAM].map(|name| Request::of(name, F::Create, Value::Nil)).to_vec()
    }

    fn next(&self, rng: &mut SmallRng) -> Request {
        match rng.random_range(0..100) {
            0..50 => self.transaction(rng),
            50..96 => query(rng),
            96..98 => Request::of(index(rng), F::Dump, Value::Nil),
            _ => Request::whole(F::Read, Value::Nil),
        }
    }

    fn knowing(&self, request: Request, own_commit: Option<u64>) -> Request {
        match request.value {
            // Whoever has written something wants to see it.
            Value::Query(Query { group, at_least: Some(_) }) => {
                Request { value: Value::Query(Query { group, at_least: own_commit }), ..request }
            }
            _ => request,
        }
    }

    fn perform<'a>(
        &'a self,
        client: &'a Client,
        request: &'a Request,
        _: ReadLevel,
    ) -> BoxFuture<'a, Outcome> {
        Box::pin(async move {
            let name = request.key.as_deref().unwrap_or_default();
            let done = match (request.f, &request.value) {
                (F::Create, _) => create(client, name).await,
                (F::Query, Value::Query(query)) => ask(client, name, query).await,
                (F::Dump, _) => dump(client, name).await,
                (_, Value::Txn(steps)) => match &steps[..] {
                    [step] if rand::random() => alone(client, step).await,
                    _ => together(client, steps).await,
                },
                _ => read(client).await,
            };
            Outcome::of(request, done)
        })
    }

    fn closing(&self) -> Vec<Request> {
        let of_index = |name| {
            let query = Value::Query(Query::default());
            [Request::of(name, F::Query, query), Request::of(name, F::Dump, Value::Nil)]
        };
        let whole = [Request::whole(F::Read, Value::Nil)];
        [BY_TEAM, COUNT_BY_TEAM, SUM_BY_TEAM].into_iter().flat_map(of_index).chain(whole).collect()
    }

    fn hot_key(&self) -> String {
        placed("r0")
    }

    /// As often as a shard of rows the one that holds the indexes, whose leader keeps them up.
    fn hot_place(&self) -> Bytes {
        match rand::random() {
            true => keyspace::index_range().start,
            false => keyspace::user_key(self.hot_key().as_bytes()),
        }
    }

    fn held(&self, stored: &[u8]) -> Result<i64, Error> {
        held(stored)
    }

    /// One that tells what became of writes whose fate their clients do not know.
    fn followers(&self) -> Vec<FollowerPlan> {
        let following = Following::default();
        vec![FollowerPlan { name: "all", following, begins_at_percent: 0, resumes: false }]
    }
}

impl Indexes {
    fn transaction(&self, rng: &mut SmallRng) -> Request {
        let number = self.requests.fetch_add(1, Ordering::Relaxed);
        let rows = rng.random_range(1..=TOGETHER);
        let mut steps: Vec<MicroOp> = Vec::with_capacity(rows);
        while steps.len() < rows {
            let among = if rng.random_ratio(1, 3) { HOT } else { ROWS };
            let key = placed(&format!("r{}", rng.random_range(0..among)));
            // Each value is one that no other request has. Written over another one it moves the row.
            let unique = number * TOGETHER as i64 + steps.len() as i64 + 1;
            let step = match rng.random_ratio(1, 4) {
                true => MicroOp::delete(key),
                false => MicroOp::write(key, unique * TEAMS + rng.random_range(0..TEAMS)),
            };
            if steps.iter().all(|other| other.key() != step.key()) {
                steps.push(step);
            }
        }
        Request::whole(F::Txn, Value::Txn(steps))
    }
}

fn index(rng: &mut SmallRng) -> &'static str {
    [BY_TEAM, BY_TEAM, COUNT_BY_TEAM, SUM_BY_TEAM][rng.random_range(0..4)]
}

fn query(rng: &mut SmallRng) -> Request {
    let index = index(rng);
    let group = rng.random_ratio(3, 4).then(|| rng.random_range(1..TEAMS));
    // Of its client's own last commit, which is filled in where it is made.
    let at_least = rng.random_ratio(2, 3).then_some(0);
    Request::of(index, F::Query, Value::Query(Query { group, at_least }))
}

/// The answer, and the timestamp that it is of.
type Answer = Result<(Value, Option<u64>), Error>;

fn spec(name: &str) -> Result<IndexSpec, Error> {
    Ok(match name {
        BY_TEAM => IndexSpec::new(name, "value").on("$.team").on("$.number"),
        COUNT_BY_TEAM => IndexSpec::new(name, "count").on("$.team"),
        SUM_BY_TEAM => IndexSpec::new(name, "sum").on("$.team").measure("$.number"),
        other => return Err(Error::invalid(format!("this workload has no index {other:?}"))),
    })
}

/// Makes an index, and waits for it to be built, for some time.
async fn create(client: &Client, name: &str) -> Answer {
    let until = Instant::now() + BUILT_WITHIN;
    client.create_index(spec(name)?).await?;
    while Instant::now() < until {
        let status = client.index(name).await?;
        if status.and_then(|status| status.record?.active).is_some() {
            break;
        }
        sleep(LOOK_EVERY).await;
    }
    Ok((Value::Nil, None))
}

/// Asks an index, in one page or several.
async fn ask(client: &Client, name: &str, asked: &Query) -> Answer {
    let mut query = client.query(name).limit(PAGES[rand::random_range(0..PAGES.len())]);
    if let Some(group) = asked.group {
        query = query.filter(format!("team = {group}"));
    }
    if let Some(at_least) = asked.at_least {
        query = query.at_least(kvorum::client::Timestamp(at_least));
    }
    let page = query.all(usize::MAX).await?;
    let found = page.items.iter().map(|item| found(name, item)).collect::<Result<_, Error>>()?;
    Ok((Value::Found(found), Some(page.watermark.0)))
}

/// A result: a row and its number, or a group and what was asked of it.
fn found(index: &str, item: &QueryItem) -> Result<(String, i64), Error> {
    let number = |field: Option<&Json>| field.and_then(Json::as_i64);
    let group = || number(item.field("team")).map(|team| team.to_string());
    let parts = match index {
        BY_TEAM => (item.key.as_deref().map(text), number(item.field("number"))),
        COUNT_BY_TEAM => (group(), number(item.json.get("count"))),
        _ => (group(), number(item.json.get("sum"))),
    };
    match parts {
        (Some(name), Some(number)) => Ok((name, number)),
        _ => Err(Error::corrupt(format!(
            "index {index} answers with {:?}, of no row that a client wrote",
            item.json
        ))),
    }
}

/// An index as it is stored, the rows at its watermark, and what is computed from them. It is brought to now before that,
/// so that what was written last is in it too.
async fn dump(client: &Client, name: &str) -> Answer {
    let now = client.timestamp().await?;
    client.query(name).at_least(now).limit(1).page().await?;
    let stored = client.dump_index(name).await?;
    let rows =
        client.scan(ScanOptions::prefix(&stored.spec.prefix).at(stored.watermark)).collect_rows().await?;
    let definition = Definition::new(stored.id, stored.version, index_spec_from_proto(stored.spec)?)?;
    let computed = from_scan(&definition, rows.iter().map(|row| (&row.key[..], &row.record.value[..])))
        .map_err(|error| {
            Error::corrupt(format!("index {name} can't be computed from the rows: {}", error.message))
        })?;
    // The client tells keys without the byte of their keyspace.
    let computed = computed.iter().map(|(key, value)| (digits(&key[1..]), digits(value))).collect();
    let stored_rows = stored.rows.iter().map(|(key, value)| (digits(key), digits(value))).collect();
    let dump = Dump { rows: values(&rows)?, stored: stored_rows, computed };
    Ok((Value::Dump(dump), Some(stored.watermark.0)))
}

/// A write of one row outside transactions.
async fn alone(client: &Client, step: &MicroOp) -> Answer {
    let done = Value::Txn(vec![step.clone()]);
    match step {
        MicroOp::Write { key, value } => Ok((done, Some(client.put(key, stored(*value)).await?.commit_ts.0))),
        MicroOp::Delete { key } => {
            let deleted = client.delete(key).await?;
            // Nothing was there, and nothing is changed.
            let done = if deleted.existed { done } else { Value::Txn(Vec::new()) };
            Ok((done, Some(deleted.commit_ts.0)))
        }
        other => Err(unknown(other)),
    }
}

async fn together(client: &Client, steps: &[MicroOp]) -> Answer {
    let committed = client.transact(|txn| async move {
        for step in steps {
            match step {
                MicroOp::Write { key, value } => txn.put(key, stored(*value))?,
                MicroOp::Delete { key } => txn.delete(key)?,
                other => return Err(unknown(other)),
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
    Ok((Value::Balances(values(&rows)?), Some(at.0)))
}

fn values(rows: &[Row]) -> Result<BTreeMap<String, i64>, Error> {
    rows.iter().map(|row| Ok((text(&row.key), held(&row.record.value)?))).collect()
}

/// A row as it is stored. One of no team is in no index.
fn stored(value: i64) -> String {
    match team(value) {
        Some(team) => json!({ "team": team, "number": value }),
        None => json!({ "number": value }),
    }
    .to_string()
}

/// The value of a row that is stored.
///
/// # Errors
/// `Corrupt` where no client wrote it.
fn held(bytes: &[u8]) -> Result<i64, Error> {
    let row: Option<Json> = serde_json::from_slice(bytes).ok();
    let value = row.and_then(|row| row.get("number")?.as_i64());
    value.filter(|value| stored(*value).as_bytes() == bytes).ok_or_else(|| {
        Error::corrupt(format!("a key holds {:?}, which no client wrote", String::from_utf8_lossy(bytes)))
    })
}

fn text(key: &[u8]) -> String {
    String::from_utf8_lossy(key).into_owned()
}

/// Bytes in hexadecimal digits.
fn digits(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut digits, byte| {
        // A string takes everything.
        let _ = write!(digits, "{byte:02x}");
        digits
    })
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use rand::SeedableRng;

    use super::*;

    #[test]
    fn no_value_is_written_twice_and_rows_are_of_all_teams_and_of_none() {
        let (workload, mut rng) = (Indexes::default(), SmallRng::seed_from_u64(1));
        let (mut seen, mut sizes, mut keys, mut teams) =
            (HashSet::new(), HashSet::new(), HashSet::new(), HashSet::new());
        for _ in 0..2_000 {
            let Value::Txn(steps) = workload.next(&mut rng).value else { continue };
            sizes.insert(steps.len());
            assert_eq!(steps.iter().map(MicroOp::key).collect::<HashSet<_>>().len(), steps.len());
            for step in &steps {
                keys.insert(step.key().to_owned());
                if let MicroOp::Write { value, .. } = step {
                    assert!(seen.insert(*value), "{value}");
                    teams.insert(team(*value));
                }
            }
        }
        assert_eq!(sizes, HashSet::from([1, 2, 3]));
        assert_eq!((keys.len(), teams.len()), (ROWS as usize, TEAMS as usize));
        assert!(teams.contains(&None));
    }

    #[test]
    fn a_query_is_of_its_clients_own_commit_where_it_wants_that() {
        let workload = Indexes::default();
        let request =
            |at_least| Request::of(BY_TEAM, F::Query, Value::Query(Query { group: Some(1), at_least }));
        assert_eq!(workload.knowing(request(Some(0)), Some(7)), request(Some(7)));
        assert_eq!(workload.knowing(request(Some(0)), None), request(None));
        assert_eq!(workload.knowing(request(None), Some(7)), request(None));
    }

    #[test]
    fn rows_are_read_back_and_others_are_corrupt() {
        for value in [0, 1, TEAMS, 7 * TEAMS + 3] {
            assert_eq!(held(stored(value).as_bytes()), Ok(value));
        }
        for bytes in [&b"7"[..], br#"{"number":7}"#, br#"{"team":2,"number":7}"#, b"{"] {
            assert!(held(bytes).is_err(), "{}", text(bytes));
        }
    }
}
