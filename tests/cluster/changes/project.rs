//! Read models: projections that are stopped over and over, several at once, and the example that keeps one in SQLite,
//! killed over and over, while transactions go over all shards and leaders are killed.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use kvorum::client::{
    Before, Event, FollowOptions, Projection, Row, RunningProjection, ScanOptions, Since, Timestamp, Txn,
    clear_prefix,
};
use kvorum::{Client, ErrorKind, Result};
use rusqlite::Connection;
use tokio::task::JoinSet;

use super::writers::Writers;
use crate::examples::rust_example;
use crate::support::{Cluster, PATIENCE, eventually};

/// How often each of the two programs that run the projection is stopped.
const STOPS: usize = 40;
/// How often a leader is killed meanwhile.
const NODE_KILLS: usize = 4;
/// How often the example is killed.
const EXAMPLE_KILLS: usize = 8;
/// Where the writers' keys end: they begin with a digit or a small letter. The read model lies behind.
const BEHIND: &str = "{";

/// For each first letter of a key: how many keys there are and the sum of the numbers in their values, and how often keys
/// were told of. To apply anything twice, or not at all, would show in each.
struct Letters {
    since: Since,
}

impl Projection for Letters {
    fn follows(&self) -> FollowOptions {
        let keys = kvorum::types::KeyRange::new("", Some(BEHIND.into()));
        FollowOptions::all().and_range(keys).since(self.since.clone()).before_images()
    }

    async fn apply(&self, event: &Event, txn: &Txn) -> Result<()> {
        match event {
            Event::Row(row) => count(txn, &row.key, None, Some(&row.record.value)).await,
            Event::Changes(changes) => {
                for change in &changes.changes {
                    let before = match &change.before {
                        Before::Value(value) => Some(value),
                        _ => None,
                    };
                    count(txn, &change.key, before, change.value.as_ref()).await?;
                }
                Ok(())
            }
            Event::Progress(_) => Ok(()),
        }
    }

    async fn clear(&self, txn: &Txn) -> Result<bool> {
        clear_prefix(txn, "{view/").await
    }
}

/// One row of the read model: keys, sum.
type Counts = (i64, i64);

/// Reads the row and writes it, so that a read of what another run has written meanwhile would show.
async fn count(txn: &Txn, key: &[u8], before: Option<&Bytes>, after: Option<&Bytes>) -> Result<()> {
    let row = [b"{view/", &key[..1]].concat();
    let (mut keys, mut sum) = txn.get(&row).await?.map_or((0, 0), |record| counts(&record.value));
    keys += i64::from(after.is_some()) - i64::from(before.is_some());
    sum += after.map_or(0, number) - before.map_or(0, number);
    txn.add("{view/told", 1)?;
    txn.put(&row, format!("{keys} {sum}"))
}

fn counts(value: &[u8]) -> Counts {
    let text = std::str::from_utf8(value).expect("text");
    let (keys, sum) = text.split_once(' ').expect("two numbers");
    (keys.parse().expect("a number"), sum.parse().expect("a number"))
}

/// The number in a writer's value.
fn number(value: &Bytes) -> i64 {
    let text = std::str::from_utf8(value).expect("text");
    text.split(' ').next().expect("a number").parse().expect("a number")
}

/// The read model.
async fn view(client: &Client) -> BTreeMap<Bytes, Counts> {
    let rows = client.scan(ScanOptions::prefix("{view/").at(client.timestamp().await.expect("a timestamp")));
    let rows = rows.collect_rows().await.expect("reads");
    let rows = rows.into_iter().filter(|row| row.key != "{view/told");
    rows.map(|row| (row.key.slice(6..), counts(&row.record.value))).filter(|row| row.1 != (0, 0)).collect()
}

/// What the read model must be: made of what there is at a timestamp.
async fn expected(client: &Client, at: Timestamp) -> BTreeMap<Bytes, Counts> {
    let rows = client.scan(ScanOptions::range("", BEHIND).at(at)).collect_rows().await.expect("reads");
    let mut expected = BTreeMap::new();
    for row in rows {
        let counts: &mut Counts = expected.entry(row.key.slice(..1)).or_default();
        *counts = (counts.0 + 1, counts.1 + number(&row.record.value));
    }
    expected
}

async fn start(client: &Client, since: Since) -> RunningProjection {
    loop {
        let project = client.project("letters", Letters { since: since.clone() });
        // Few events together, so that there are many transactions to be stopped in.
        match project.checkpoint("{place").batch_events(20).start().await {
            Ok(running) => return running,
            Err(error) => assert!(
                matches!(error.kind, ErrorKind::Unavailable | ErrorKind::Undetermined | ErrorKind::Conflict),
                "{error}"
            ),
        }
    }
}

/// One program that runs the projection: it is stopped at any point and starts again at once, though another one may have
/// it. Answers how often it was superseded.
async fn program(client: Client, since: Since, stops: Arc<AtomicUsize>) -> usize {
    let mut superseded = 0;
    for _ in 0..STOPS {
        let running = start(&client, since.clone()).await;
        let time = Duration::from_millis(rand::random_range(20..600));
        if let Ok(error) = tokio::time::timeout(time, running.ended()).await {
            assert_eq!(error.kind, ErrorKind::Denied, "{error}");
            superseded += 1;
            // Long enough for the other one to do something, short enough to come in its way again.
            tokio::time::sleep(Duration::from_millis(rand::random_range(0..400))).await;
        }
        stops.fetch_add(1, Ordering::Relaxed);
    }
    superseded
}

/// Kills leaders, one after the other, while `goes_on`.
async fn kill_leaders(cluster: &mut Cluster, kills: usize, goes_on: impl Fn() -> bool) -> usize {
    let mut killed = 0;
    while killed < kills && goes_on() {
        tokio::time::sleep(Duration::from_secs(2)).await;
        let leader = cluster.leader_of(&super::key(rand::random_range(0..60))).await;
        cluster.kill(leader);
        killed += 1;
        tokio::time::sleep(Duration::from_millis(500)).await;
        cluster.restart(leader);
        cluster.wait_serving().await;
    }
    killed
}

#[tokio::test(flavor = "multi_thread")]
async fn a_projection_that_is_stopped_over_and_over_applies_each_change_once() {
    let mut cluster = Cluster::start(3, 8).await;
    let client = cluster.client().await;
    let writers = Writers::start(&client, 6);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let stops = Arc::new(AtomicUsize::new(0));
    let mut programs = JoinSet::new();
    for _ in 0..2 {
        // Clients of their own, as programs have.
        programs.spawn(program(cluster.client().await, Since::Scan, Arc::clone(&stops)));
    }
    let killed = kill_leaders(&mut cluster, NODE_KILLS, || stops.load(Ordering::Relaxed) < 2 * STOPS).await;
    let superseded: usize = programs.join_all().await.into_iter().sum();
    // While it still goes on: what was written before a read is in the view once that is waited for.
    let running = start(&client, Since::Scan).await;
    let written = client.put("0/own", "1000000007 own").await.expect("writes").commit_ts;
    assert!(running.wait_for(written, PATIENCE).await.expect("reached") >= written);
    assert!(view(&client).await[&b"0"[..]].1 >= 1_000_000_007);
    let record = writers.stop().await;
    let end = client.timestamp().await.expect("a timestamp");
    assert!(running.wait_for(end, PATIENCE).await.expect("reached") >= end);
    let status = running.status();
    assert!(status.watermark >= end && status.ended.is_none(), "{status:?}");
    assert!(running.lag().await.expect("asked").expect("known") < PATIENCE);
    assert_eq!(view(&client).await, expected(&client, end).await);
    println!(
        "{} transactions, {} stops, {superseded} of which by the other program, {killed} leaders killed; the last run: {} \
         events in {} transactions",
        record.committed.lock().len(),
        stops.load(Ordering::Relaxed),
        status.events,
        status.commits
    );
    assert!(superseded > 0, "the two never met");
    // Begun anew, beside what is written: the same again.
    running.stop().await;
    let writers = Writers::start(&client, 2);
    let project = client.project("letters", Letters { since: Since::Scan }).checkpoint("{place");
    let running = project.restart().start().await.expect("starts");
    tokio::time::sleep(Duration::from_secs(1)).await;
    writers.stop().await;
    let end = client.timestamp().await.expect("a timestamp");
    running.wait_for(end, PATIENCE).await.expect("reached");
    assert_eq!(view(&client).await, expected(&client, end).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_told_without_a_scan_is_applied_once_too() {
    let cluster = Cluster::start(3, 8).await;
    let client = cluster.client().await;
    let first = start(&client, Since::Now).await;
    first.stop().await;
    // Where it begins was kept: what comes while nobody runs it is told.
    let writers = Writers::start(&client, 4);
    for _ in 0..15 {
        let running = start(&client, Since::Now).await;
        tokio::time::sleep(Duration::from_millis(rand::random_range(10..300))).await;
        drop(running);
    }
    let record = writers.stop().await;
    let end = client.timestamp().await.expect("a timestamp");
    let running = start(&client, Since::Now).await;
    running.wait_for(end, PATIENCE).await.expect("reached");
    assert_eq!(view(&client).await, expected(&client, end).await);
    assert!(record.open.lock().is_empty(), "nothing was killed");
    let told: i64 = client
        .get("{view/told")
        .await
        .expect("get")
        .map_or(0, |record| std::str::from_utf8(&record.value).expect("text").parse().expect("a number"));
    // A removal of a key that was not there is told of by a transaction as well, so each write is told once.
    let written: usize = record.committed.lock().values().map(BTreeMap::len).sum();
    assert_eq!(told, i64::try_from(written).expect("small"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sqlite_example_is_killed_and_ends_with_what_is_stored() {
    let mut cluster = Cluster::start(3, 8).await;
    let client = cluster.client().await;
    let writers = Writers::start(&client, 4);
    let file = cluster.dir.path().join("view.sqlite");
    let command = |more: &[&str]| {
        let mut command = tokio::process::Command::from(rust_example("sqlite_view"));
        command.arg(&file).args(more).args(cluster.endpoints()).stdin(Stdio::null()).kill_on_drop(true);
        command
    };
    for _ in 0..EXAMPLE_KILLS {
        let mut child = command(&[]).stdout(Stdio::null()).spawn().expect("starts");
        tokio::time::sleep(Duration::from_millis(rand::random_range(100..1500))).await;
        assert_eq!(child.try_wait().expect("asked"), None, "it follows until it is killed");
        child.kill().await.expect("killed");
    }
    // The leaders are killed while it runs to a timestamp, with what is written meanwhile.
    let until = client.timestamp().await.expect("a timestamp").plus(8000 << Timestamp::LOGICAL_BITS);
    let told = command(&["--until", &until.to_string()]).output();
    let endpoints = cluster.endpoints();
    let told = tokio::spawn(told);
    let nodes = kill_leaders(&mut cluster, 2, || true).await;
    let output = told.await.expect("no panic").expect("runs");
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{out}{err}");
    assert!(out.contains("goes on where it stopped"), "{out}");
    writers.stop().await;
    let once = || once(&file, &endpoints).0;
    let out = once();
    let stored = stored(&client).await;
    assert_eq!(rows(&file), stored);
    assert!(out.contains(&format!("{} rows, ", stored.len())), "{out}");
    println!("{} rows after {EXAMPLE_KILLS} kills of it and {nodes} of leaders", stored.len());
    // From nothing, by a scan: the same.
    let database = Connection::open(&file).expect("opens");
    database.execute_batch("DELETE FROM rows; DELETE FROM place;").expect("emptied");
    drop(database);
    assert!(once().contains("begins with a scan"));
    assert_eq!(rows(&file), stored);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_cut_off_is_told_and_a_read_model_starts_over() {
    let cluster = Cluster::start_with(3, 8, &[("KVORUM_CHANGELOG_RETENTION", "4s")]).await;
    let client = cluster.client().await;
    let file = cluster.dir.path().join("view.sqlite");
    client.put(super::key(1), "1 first").await.expect("writes");
    let running = start(&client, Since::Scan).await;
    let began = client.timestamp().await.expect("a timestamp");
    running.wait_for(began, PATIENCE).await.expect("reached");
    running.stop().await;
    assert!(once(&file, &cluster.endpoints()).0.contains("begins with a scan"));
    assert_eq!(rows(&file), stored(&client).await);
    let both = client.timestamp().await.expect("a timestamp");
    let writers = Writers::start(&client, 4);
    eventually("changes are cut off", async || {
        let all = kvorum::types::KeyRange::all();
        match client.changes_after(&[all], both).await {
            Err(error) if error.oldest.is_some() => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    writers.stop().await;
    for _ in 0..2 {
        let error = start(&client, Since::Scan).await.ended().await;
        assert_eq!((error.kind, error.oldest.is_some()), (ErrorKind::TooOld, true), "{error}");
        assert_eq!(view(&client).await[&super::key(1)[..1]], (1, 1), "it stays as it was");
    }
    let project = client.project("letters", Letters { since: Since::Scan }).checkpoint("{place");
    let running = project.restart().start().await.expect("starts");
    let end = client.timestamp().await.expect("a timestamp");
    running.wait_for(end, PATIENCE).await.expect("reached");
    running.stop().await;
    assert_eq!(view(&client).await, expected(&client, end).await);
    let (out, err) = once(&file, &cluster.endpoints());
    assert!(err.contains("starting over with a scan") && out.contains("begins with a scan"), "{out}{err}");
    assert_eq!(rows(&file), stored(&client).await);
}

/// Runs the example up to now; what it prints, and what it complains of.
fn once(file: &Path, endpoints: &[String]) -> (String, String) {
    let mut command = rust_example("sqlite_view");
    let output = command.arg(file).arg("--once").args(endpoints).output().expect("runs");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{out}{err}");
    (out, err)
}

/// What the example's table must be, while nobody writes.
async fn stored(client: &Client) -> Rows {
    let stored = client.scan(ScanOptions::all()).collect_rows().await.expect("reads");
    let row = |row: Row| (row.key.to_vec(), (row.record.value.to_vec(), row.record.commit_ts.0));
    stored.into_iter().map(row).collect()
}

/// Value and commit timestamp by key.
type Rows = BTreeMap<Vec<u8>, (Vec<u8>, u64)>;

fn rows(file: &Path) -> Rows {
    let database = Connection::open(file).expect("opens");
    let mut rows = database.prepare("SELECT key, value, commit_ts FROM rows").expect("prepared");
    let rows =
        rows.query_map([], |row| Ok((row.get(0)?, (row.get(1)?, row.get::<_, i64>(2)?.cast_unsigned()))));
    rows.expect("reads").collect::<rusqlite::Result<_>>().expect("reads")
}
