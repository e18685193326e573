//! The transactions of a projection against a cluster that misbehaves on order. What follows the changelog is tested with
//! real clusters (`tests/cluster/changes/project.rs`).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use parking_lot::Mutex;

use super::run::Done;
use super::writer::{Failed, Item};
use super::*;
use crate::changelog::{Cursor, CursorState};
use crate::client::Since;
use crate::client::fake::{CLUSTER, FakeCluster, Fault, World};
use crate::types::{Before, Change, Changes, KeyRange, NodeId};

const SHORT: Duration = Duration::from_millis(400);

/// Adds up what is written below `order/`, in a way that shows what is applied twice.
#[derive(Default)]
struct Sum {
    /// Keys that it writes for each event, besides.
    wide: usize,
    /// Refuses events with this error.
    fails: Option<ErrorKind>,
    /// Takes so long for each event.
    slow: Duration,
    /// Writes into what it follows.
    follows_itself: bool,
    /// Has the answer to the commit lost, once.
    lose: Arc<AtomicBool>,
    /// Has somebody else write the sum before each commit, so many times.
    in_the_way: Arc<AtomicUsize>,
    world: Option<Arc<Mutex<World>>>,
    client: Option<Client>,
}

impl Projection for Sum {
    fn follows(&self) -> FollowOptions {
        FollowOptions::prefix("order/").since(Since::Timestamp(Timestamp(1)))
    }

    async fn apply(&self, event: &Event, txn: &Txn) -> Result<()> {
        let Event::Changes(changes) = event else { return Ok(()) };
        if let Some(kind) = self.fails {
            return Err(Error::new(kind, "as ordered"));
        }
        tokio::time::sleep(self.slow).await;
        let held = txn.get("view/sum").await?.map_or(0, |record| number(&record.value));
        let more: i64 =
            changes.changes.iter().filter_map(|change| change.value.as_ref()).map(|v| number(v)).sum();
        txn.put("view/sum", (held + more).to_string())?;
        for n in 0..self.wide {
            txn.put(format!("view/{}/{n}", changes.commit_ts), "x")?;
        }
        if self.follows_itself {
            txn.put("order/total", "x")?;
        }
        if let Some(client) = &self.client
            && self
                .in_the_way
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1))
                .is_ok()
        {
            client.add("view/sum", 1).await?;
        }
        if let Some(world) = &self.world
            && self.lose.swap(false, Ordering::Relaxed)
        {
            let mut world = world.lock();
            world.faults.entry(NodeId(3)).or_default().push_back(Fault::ApplyThenCut);
            world.always.extend((1..=3).map(|node| (NodeId(node), Fault::Swallow)));
        }
        Ok(())
    }

    async fn clear(&self, txn: &Txn) -> Result<bool> {
        clear_prefix(txn, "view/").await
    }
}

fn number(value: &[u8]) -> i64 {
    std::str::from_utf8(value).expect("text").parse().expect("a number")
}

fn place(state: CursorState) -> Cursor {
    let followed = [KeyRange::prefix("order/")];
    Cursor::new(CLUSTER.parse().expect("an id"), &followed, state)
}

fn item(ts: u64, event: Event) -> Item {
    Item { event, place: place(CursorState::Following { after: Timestamp(ts) }) }
}

/// A transaction that wrote `value` below `order/`.
fn wrote(ts: u64, value: i64) -> Item {
    let change = Change {
        key: format!("order/{ts}").into(),
        value: Some(value.to_string().into()),
        create_ts: Timestamp(ts),
        version: 1,
        before: Before::Unasked,
    };
    item(ts, Event::Changes(Changes { commit_ts: Timestamp(ts), changes: vec![change] }))
}

/// A run of the projection, opened.
async fn opened(client: &Client, sum: Sum) -> Writer<Sum> {
    let mut writer = client.project("sum", sum).writer(SHORT).expect("options").0;
    writer.open(false).await.expect("opens");
    writer
}

fn run(writer: Writer<Sum>, events: usize) -> (Run<Sum>, watch::Receiver<Timestamp>) {
    let (watermark, told) = watch::channel(Timestamp::ZERO);
    let pace = Pace { events, bytes: 1024, idle: Duration::from_secs(60) };
    let wanted = watch::channel(Timestamp::ZERO).1;
    (Run::new(writer, pace, Arc::default(), watermark, wanted), told)
}

async fn value(client: &Client, key: &str) -> Option<i64> {
    client.get(key).await.expect("get").map(|record| number(&record.value))
}

async fn kept(client: &Client) -> Checkpoint {
    let record = client.get("projection/sum").await.expect("get").expect("there");
    Checkpoint::decode(b"projection/sum", &record.value).expect("a checkpoint")
}

#[tokio::test]
async fn what_can_not_be_right_is_refused_before_anything_is_written() {
    let cluster = FakeCluster::start().await;
    let client = cluster.client().await;
    let start = |name: &str, key: &str| client.project(name, Sum::default()).checkpoint(key).start();
    for (name, key, why) in [
        ("sum", "order/place", "\"order/place\""),
        ("sum", "", "key"),
        ("Not A Name", "place", "\"Not A Name\""),
    ] {
        let error = start(name, key).await.err().expect("refused");
        assert!(error.kind == ErrorKind::Invalid && error.message.contains(why), "{error}");
    }
    assert_eq!(cluster.world.lock().effects, 0);
    client.put("place", "somebody's").await.expect("put");
    let error = start("sum", "place").await.err().expect("refused");
    assert!(error.kind == ErrorKind::Invalid && error.message.contains("\"place\""), "{error}");
    // A place of other keys: changes of these would be missing.
    let other = Cursor::new(
        CLUSTER.parse().expect("an id"),
        &[KeyRange::prefix("other/")],
        CursorState::Following { after: Timestamp(1) },
    );
    let other = Checkpoint { run: 1, place: Place::At(other) };
    client.put("place", other.encode()).await.expect("put");
    let error = start("sum", "place").await.err().expect("refused");
    assert!(error.kind == ErrorKind::Invalid && error.message.contains("other keys"), "{error}");
    assert_eq!(client.get("place").await.expect("get").expect("there").value, other.encode());
}

#[tokio::test]
async fn events_and_the_place_behind_them_are_one_transaction() {
    let cluster = FakeCluster::start().await;
    let client = cluster.client().await;
    let mut writer = opened(&client, Sum::default()).await;
    assert_eq!(kept(&client).await.place.watermark(), Timestamp(1), "where it begins is kept at once");
    let before = cluster.world.lock().effects;
    writer.write(&[wrote(10, 1), wrote(11, 2), wrote(12, 4)]).await.expect("written");
    assert_eq!(cluster.world.lock().effects, before + 1);
    assert_eq!(value(&client, "view/sum").await, Some(7));
    assert_eq!(kept(&client).await, writer.believed);
    assert_eq!(writer.believed.place.watermark(), Timestamp(12));
    // The next start goes on there.
    let writer = opened(&client, Sum::default()).await;
    assert_eq!(writer.believed.place.watermark(), Timestamp(12));
}

#[tokio::test]
async fn the_last_one_to_start_owns_it() {
    let cluster = FakeCluster::start().await;
    let client = cluster.client().await;
    let mut first = opened(&client, Sum::default()).await;
    first.write(&[wrote(10, 1)]).await.expect("written");
    let mut second = opened(&client, Sum::default()).await;
    let items = [wrote(11, 2)];
    for _ in 0..2 {
        match first.write(&items).await {
            Err(Failed::Error(error)) => {
                assert!(error.kind == ErrorKind::Denied && error.message.contains("\"sum\""), "{error}");
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(first.look().await.expect_err("not its own").kind, ErrorKind::Denied);
    }
    assert_eq!(value(&client, "view/sum").await, Some(1));
    second.write(&items).await.expect("written");
    assert_eq!(value(&client, "view/sum").await, Some(3));
    client.delete("projection/sum").await.expect("deleted");
    let (mut run, _) = run(second, 8);
    let error = run.work(&[wrote(12, 4)]).await.expect_err("the place is gone");
    assert_eq!(error.kind, ErrorKind::Denied, "{error}");
    assert_eq!(value(&client, "view/sum").await, Some(3));
}

#[tokio::test]
async fn a_commit_of_unknown_fate_takes_effect_once() {
    for looks in [true, false] {
        let cluster = FakeCluster::start().await;
        let client = cluster.client().await;
        let lose = Arc::new(AtomicBool::new(true));
        let sum = Sum { lose: Arc::clone(&lose), world: Some(Arc::clone(&cluster.world)), ..Sum::default() };
        let mut writer = opened(&client, sum).await;
        let began = writer.believed.clone();
        let items = [wrote(10, 1), wrote(11, 2)];
        match writer.write(&items).await {
            Err(Failed::Error(error)) => assert_eq!(error.kind, ErrorKind::Undetermined, "{error}"),
            other => panic!("{other:?}"),
        }
        assert_eq!(writer.believed, began);
        cluster.world.lock().always.clear();
        if looks {
            writer.look().await.expect("read");
            assert_eq!(writer.believed.place.watermark(), Timestamp(11));
            writer.write(&[wrote(12, 4)]).await.expect("goes on");
            assert_eq!(value(&client, "view/sum").await, Some(7));
            continue;
        }
        // As if the commit had come late, after somebody looked: the next one finds the place moved.
        let (mut run, _) = run(writer, 8);
        assert_eq!(run.work(&items).await, Ok(Done::Elsewhere));
        assert_eq!(run.writer.believed.place.watermark(), Timestamp(11));
        assert_eq!(value(&client, "view/sum").await, Some(3));
    }
}

#[tokio::test]
async fn a_transaction_that_gets_too_large_is_made_of_fewer_events() {
    let cluster = FakeCluster::start().await;
    let client = cluster.client().await;
    let queue: Vec<Item> = (10..18).map(|ts| wrote(ts, 1)).collect();
    let (mut wide, _) = run(opened(&client, Sum { wide: 3000, ..Sum::default() }).await, 8);
    assert_eq!(wide.work(&queue).await, Ok(Done::Again));
    assert_eq!(wide.work(&queue).await, Ok(Done::Again));
    assert_eq!(wide.work(&queue).await, Ok(Done::Kept(2)));
    assert_eq!(value(&client, "view/sum").await, Some(2));
    assert_eq!(kept(&client).await.place.watermark(), Timestamp(11));
    // One event alone over the limit: nothing that passes.
    let (mut wider, _) = run(opened(&client, Sum { wide: limits(), ..Sum::default() }).await, 8);
    let error = loop {
        match wider.work(&queue[2..]).await {
            Ok(done) => assert_eq!(done, Done::Again),
            Err(error) => break error,
        }
    };
    let told = ["the transaction at 12", "one event", "10000"];
    assert!(
        error.kind == ErrorKind::Invalid && told.iter().all(|told| error.message.contains(told)),
        "{error}"
    );
    assert_eq!(value(&client, "view/sum").await, Some(2));
}

/// As many keys as a transaction may have, before the checkpoint's is counted.
fn limits() -> usize {
    crate::types::limits::MAX_TXN_KEYS
}

#[tokio::test]
async fn conflicts_make_a_transaction_smaller_and_cost_nothing_else() {
    let cluster = FakeCluster::start().await;
    let client = cluster.client().await;
    let in_the_way = Arc::new(AtomicUsize::new(45));
    let sum = Sum { in_the_way: Arc::clone(&in_the_way), client: Some(client.clone()), ..Sum::default() };
    let (mut run, told) = run(opened(&client, sum).await, 8);
    let mut queue: Vec<Item> = (10..18).map(|ts| wrote(ts, 100)).collect();
    let mut first = 0;
    while !queue.is_empty() {
        if let Done::Kept(count) = run.work(&queue).await.expect("passes") {
            first = if first == 0 { count } else { first };
            queue.drain(..count);
        }
    }
    assert_eq!(first, 4, "five attempts with eight, then with half of them");
    assert_eq!(value(&client, "view/sum").await, Some(845), "each event once, and what others added");
    assert_eq!(*told.borrow(), Timestamp(17));
}

#[tokio::test]
async fn what_is_not_done_in_time_is_tried_with_less() {
    let cluster = FakeCluster::start().await;
    let client = cluster.client().await;
    let slow = Sum { slow: SHORT / 6, ..Sum::default() };
    let (mut run, _) = run(opened(&client, slow).await, 8);
    let queue: Vec<Item> = (10..18).map(|ts| wrote(ts, 1)).collect();
    assert_eq!(run.work(&queue).await, Ok(Done::Again), "eight take longer than there is time");
    let kept = loop {
        if let Done::Kept(count) = run.work(&queue).await.expect("passes") {
            break count;
        }
    };
    assert!((1..=4).contains(&kept), "{kept} at a time");
    assert_eq!(value(&client, "view/sum").await, i64::try_from(kept).ok());
}

#[tokio::test]
async fn an_error_of_apply_ends_it_and_skips_nothing() {
    let cluster = FakeCluster::start().await;
    let client = cluster.client().await;
    let (mut fails, _) =
        run(opened(&client, Sum { fails: Some(ErrorKind::Corrupt), ..Sum::default() }).await, 8);
    let error = fails.work(&[wrote(10, 1), wrote(11, 1)]).await.expect_err("as ordered");
    assert!(error.kind == ErrorKind::Corrupt && error.message.contains("the transaction at 10"), "{error}");
    let passes = Sum { fails: Some(ErrorKind::Unavailable), ..Sum::default() };
    let (mut passes, _) = run(opened(&client, passes).await, 8);
    assert_eq!(passes.work(&[wrote(10, 1)]).await, Ok(Done::Again));
    let (mut itself, _) = run(opened(&client, Sum { follows_itself: true, ..Sum::default() }).await, 8);
    let error = itself.work(&[wrote(10, 1)]).await.expect_err("it follows itself");
    assert!(error.kind == ErrorKind::Invalid && error.message.contains("\"order/total\""), "{error}");
    assert_eq!(value(&client, "view/sum").await, None);
    assert_eq!(kept(&client).await.place.watermark(), Timestamp(1));
}

#[tokio::test]
async fn progress_is_told_at_once_and_kept_seldom() {
    let cluster = FakeCluster::start().await;
    let client = cluster.client().await;
    let mut writer = opened(&client, Sum::default()).await;
    let scanning = place(CursorState::Scanning { at: Timestamp(5), next: "order/3".into() });
    writer.believed.place = Place::At(scanning);
    client.put("projection/sum", writer.believed.encode()).await.expect("put");
    let (mut run, told) = run(writer, 8);
    let progress = |ts| item(ts, Event::Progress(Timestamp(ts)));
    assert_eq!(run.work(&[progress(5)]).await, Ok(Done::Kept(1)));
    assert_eq!(kept(&client).await.place.watermark(), Timestamp(5), "the scan is over, which is kept");
    assert_eq!(run.work(&[progress(8), progress(9)]).await, Ok(Done::Kept(2)));
    assert_eq!(*told.borrow(), Timestamp(9));
    assert_eq!(kept(&client).await.place.watermark(), Timestamp(5), "too soon");
    assert_eq!(run.work(&[progress(10), wrote(11, 1), progress(12)]).await, Ok(Done::Kept(3)));
    assert_eq!(kept(&client).await.place.watermark(), Timestamp(12));
    run.pace_for_tests(Duration::ZERO);
    assert_eq!(run.work(&[progress(20)]).await, Ok(Done::Kept(1)));
    assert_eq!(kept(&client).await.place.watermark(), Timestamp(20), "it was time");
}

#[tokio::test]
async fn a_restart_removes_what_was_made_and_begins_again() {
    let cluster = FakeCluster::start().await;
    cluster.world.lock().page_rows = 1000;
    let client = cluster.client().await;
    let mut writer = opened(&client, Sum { wide: 1500, ..Sum::default() }).await;
    writer.write(&[wrote(10, 1)]).await.expect("written");
    writer.open(true).await.expect("opens");
    assert_eq!(writer.believed.place, Place::Clearing);
    writer.clear().await.expect("cleared");
    assert_eq!(writer.believed.place, Place::Clearing, "there is more");
    // It was killed there: whoever starts it next goes on, restart or not.
    let mut writer = opened(&client, Sum::default()).await;
    assert_eq!(kept(&client).await.place, Place::Clearing);
    writer.clear().await.expect("cleared");
    assert_eq!(kept(&client).await.place.watermark(), Timestamp(1), "it begins where it says");
    let left = client.scan(ScanOptions::prefix("view/")).collect_rows().await.expect("scans");
    assert!(left.is_empty(), "{} rows are left", left.len());
    writer.write(&[wrote(10, 1)]).await.expect("written");
    assert_eq!(value(&client, "view/sum").await, Some(1));
}

#[tokio::test]
async fn whoever_waits_learns_of_the_end() {
    // The fake keeps no changelog, which ends the projection.
    let cluster = FakeCluster::start().await;
    let client = cluster.client().await;
    let running = client.project("sum", Sum::default()).start().await.expect("starts");
    let ended = tokio::time::timeout(Duration::from_secs(30), running.ended()).await.expect("it ends");
    assert!(ended.kind == ErrorKind::Invalid && ended.message.contains("no changelog"), "{ended}");
    let waited = running.wait_for(Timestamp(99), Duration::from_secs(30)).await;
    assert_eq!(waited, Err(ended.clone()));
    assert_eq!(running.status().ended, Some(ended));
    assert_eq!(running.wait_for(Timestamp(1), SHORT).await, Ok(Timestamp(1)), "that far it came");
    assert!(running.lag().await.expect("asked").is_some());
    running.stop().await;
}
