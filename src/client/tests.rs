//! The client against a cluster that misbehaves on order.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use parking_lot::Mutex;

use super::fake::{CLUSTER, FakeCluster, Fault, LocalDialer, shard, world};
use super::{Batch, BatchResult, Client, Expect, Policy, Row, ScanOptions, Swap};
use crate::ErrorKind;
use crate::types::{ClusterId, NodeId, Timestamp, limits};

const SHORT: Duration = Duration::from_millis(400);

fn keys(rows: &[Row]) -> Vec<&str> {
    rows.iter().map(|row| std::str::from_utf8(&row.key).expect("the tests' keys are text")).collect()
}

async fn fill(client: &Client, count: usize) -> Vec<String> {
    let mut names: Vec<String> = (0..count).map(|n| format!("{}{n:02}", ["b", "k", "t"][n % 3])).collect();
    for name in &names {
        client.put(name, name.clone()).await.expect("put");
    }
    names.sort();
    names
}

#[tokio::test]
async fn every_call_does_what_it_says() {
    let cluster = FakeCluster::start().await;
    let client = cluster.client().await;
    assert_eq!(client.cluster_id(), CLUSTER);

    let first = client.put("apple", "red").await.expect("put");
    assert_eq!((first.version, first.create_ts), (1, first.commit_ts));
    let second = client.put("apple", "green").await.expect("put");
    assert_eq!((second.version, second.create_ts), (2, first.commit_ts));
    let record = client.get("apple").await.expect("get").expect("there");
    assert_eq!((record.value, record.version), (Bytes::from("green"), 2));
    let old = client.get_at("apple", first.commit_ts).await.expect("get_at").expect("there");
    assert_eq!(old.value, "red");

    let swap = client.compare_and_swap("apple", Expect::Version(1), Some("x".into())).await.expect("cas");
    assert!(matches!(swap, Swap::Differs { current: Some(record), .. } if record.version == 2));
    let swap = client.compare_and_swap("apple", Expect::Value("green".into()), None).await.expect("cas");
    assert!(swap.swapped());
    assert_eq!(client.get("apple").await.expect("get"), None);
    assert!(!client.delete("apple").await.expect("delete").existed);

    assert_eq!(client.add("pears", -3).await.expect("add").value, -3);
    let batch = Batch::new().when("pears", Expect::Value("-3".into())).then_add("pears", 5).then_get("pears");
    let outcome = client.batch(batch.clone()).await.expect("batch");
    assert!(outcome.succeeded);
    assert_eq!(outcome.results[0], BatchResult::Added { value: 2 });
    assert_eq!(outcome.record(1).expect("a get").expect("there").value, "2");
    assert!(outcome.record(0).is_err());
    assert!(!client.batch(batch).await.expect("batch").succeeded);

    assert!(client.timestamp().await.expect("timestamp") > outcome.commit_ts);
    client.empty("payload").await.expect("empty");
    let statuses = client.statuses().await.expect("statuses");
    assert_eq!(statuses.len(), 3);
    assert!(statuses.iter().all(|(node, status)| {
        status.as_ref().is_ok_and(|status| status.node.as_ref().is_some_and(|told| told.id == node.id))
    }));
}

#[tokio::test]
async fn requests_go_straight_to_the_leader() {
    let cluster = FakeCluster::start().await;
    let client = cluster.client().await;
    for key in ["a", "i", "j", "z"] {
        client.put(key, "v").await.expect("put");
    }
    let world = cluster.world.lock();
    let count = |node| world.requests.get(&NodeId(node)).copied().unwrap_or(0);
    assert_eq!((count(1), count(2), count(3)), (1, 2, 1));
    assert_eq!(world.maps, 1);
}

#[tokio::test]
async fn a_hint_is_followed_and_remembered() {
    let cluster = FakeCluster::start().await;
    let client = cluster.client().await;
    cluster.world.lock().shards[1].leader = NodeId(3);
    client.put("a", "1").await.expect("put");
    client.put("a", "2").await.expect("put");
    let world = cluster.world.lock();
    assert_eq!(world.requests[&NodeId(1)], 1, "only the first went to the old leader");
    assert_eq!(world.requests[&NodeId(3)], 2);
    assert_eq!(world.effects, 2);
}

#[tokio::test]
async fn without_a_hint_the_map_or_the_replicas_tell() {
    let cluster = FakeCluster::start().await;
    let client = cluster.client().await;
    {
        let mut world = cluster.world.lock();
        world.hints = false;
        world.stale_map = Some(world.shards.clone());
        world.shards[1].leader = NodeId(2);
    }
    client.put("a", "1").await.expect("found by trying the replicas");
    assert_eq!(cluster.world.lock().effects, 1);
}

#[tokio::test]
async fn a_split_is_learnt_from_hints() {
    let cluster = FakeCluster::start().await;
    let client = cluster.client().await;
    {
        let mut world = cluster.world.lock();
        world.stale_map = Some(world.shards.clone());
        let (mut left, mut right) = (shard(1, None, Some("d"), 1), shard(9, Some("d"), Some("h"), 2));
        left.descriptor.epoch.0 = 2;
        right.descriptor.epoch.0 = 2;
        world.shards[1] = left;
        world.shards.push(right);
    }
    client.put("e", "1").await.expect("put");
    client.put("b", "2").await.expect("put");
    let values = client.get_many(["b", "e"]).await.expect("get_many");
    assert_eq!(values.records.iter().flatten().count(), 2);
    // A batch over what was one shard before is refused, not retried until the deadline.
    let batch = Batch::new().then_put("b", "x").then_put("e", "x");
    let error = client.batch(batch).await.expect_err("two shards");
    assert_eq!(error.kind, ErrorKind::Invalid, "{error}");
}

#[tokio::test]
async fn a_retry_keeps_its_id_and_takes_effect_once() {
    for fault in [Fault::ApplyThenCut, Fault::ApplyThenUndetermined, Fault::Cut] {
        let cluster = FakeCluster::start().await;
        let client = cluster.client().await;
        client.put("other", "seen").await.expect("put");
        cluster.order(1, [fault, fault, Fault::Answer(ErrorKind::Unavailable)]);
        assert_eq!(client.add("counter", 1).await.expect("retried").value, 1);
        assert_eq!(client.get("counter").await.expect("get").expect("there").value, "1");
        let world = cluster.world.lock();
        let ids: HashSet<_> = world.ids.iter().skip(1).collect();
        assert_eq!(ids.len(), 1, "{fault:?}: every attempt has the same id");
        assert_eq!(world.effects, 2);
    }
}

#[tokio::test]
async fn undetermined_is_said_only_where_it_is_so() {
    // Every attempt is answered: nothing was done, and that is known.
    let cluster = FakeCluster::start().await;
    let client = cluster.client().await.with_deadline(SHORT);
    cluster.always(Fault::Answer(ErrorKind::Unavailable));
    let error = client.put("a", "1").await.expect_err("nobody serves");
    assert_eq!(error.kind, ErrorKind::Unavailable, "{error}");
    let tries = cluster.world.lock().ids.clone();
    assert!(tries.len() > 2, "it was retried");
    assert!(tries.iter().all(|id| *id == tries[0]));
    // One attempt of unknown fate, and no answer after it.
    cluster.order(1, [Fault::ApplyThenCut]);
    let error = client.put("a", "2").await.expect_err("nobody serves");
    assert_eq!(error.kind, ErrorKind::Undetermined, "{error}");
    // A read does nothing, whatever became of it.
    cluster.order(1, [Fault::Cut]);
    let error = client.get("a").await.expect_err("nobody serves");
    assert_eq!(error.kind, ErrorKind::Unavailable, "{error}");
}

#[tokio::test]
async fn a_request_that_is_never_answered_ends_by_its_deadline() {
    let cluster = FakeCluster::start().await;
    let client = cluster.client().await.with_deadline(SHORT);
    cluster.always(Fault::Swallow);
    let error = client.put("a", "1").await.expect_err("no answer");
    assert_eq!(error.kind, ErrorKind::Undetermined, "{error}");
    let error = client.get("a").await.expect_err("no answer");
    assert_eq!(error.kind, ErrorKind::Unavailable, "{error}");
}

#[tokio::test]
async fn nodes_that_are_gone_are_unavailable() {
    let cluster = FakeCluster::start().await;
    let client = cluster.client().await.with_deadline(SHORT);
    // A port that was bound and is free again: connecting is refused.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let dead = listener.local_addr().expect("bound").to_string();
    drop(listener);
    let error =
        Client::builder().endpoints([dead.clone()]).deadline(SHORT).connect().await.expect_err("dead");
    assert_eq!(error.kind, ErrorKind::Unavailable);
    cluster.world.lock().addrs.values_mut().for_each(|addr| addr.clone_from(&dead));
    client.map().await.expect("the endpoint still answers");
    let error = client.put("a", "1").await.expect_err("all dead");
    assert_eq!(error.kind, ErrorKind::Unavailable, "{error}");
}

#[tokio::test]
async fn a_deadline_in_the_past_sends_nothing() {
    let cluster = FakeCluster::start().await;
    let connected = cluster.client().await;
    let moment = std::time::Instant::now();
    for client in [connected.with_deadline(Duration::ZERO), connected.with_deadline_at(moment)] {
        assert_eq!(client.put("a", "1").await.expect_err("past").kind, ErrorKind::Unavailable);
        assert_eq!(client.get("a").await.expect_err("past").kind, ErrorKind::Unavailable);
        let scanned = client.scan(ScanOptions::all()).next().await.expect("an item").expect_err("past");
        assert_eq!(scanned.kind, ErrorKind::Unavailable);
    }
    let world = cluster.world.lock();
    assert!(world.requests.is_empty() && world.sessions == 0);
}

#[tokio::test]
async fn a_thousand_calls_share_one_stream() {
    let cluster = FakeCluster::start().await;
    let client = cluster.client().await.with_read_policy(Policy::Leader);
    let puts = (0..1000).map(|n| {
        let client = client.clone();
        tokio::spawn(async move { client.put(format!("b{n}"), n.to_string()).await.map(|_| ()) })
    });
    for put in join_all(puts).await {
        put.expect("no panic").expect("put");
    }
    let gets = join_all((0..1000).map(|n| client.get(format!("b{n}")))).await;
    for (n, got) in gets.into_iter().enumerate() {
        assert_eq!(got.expect("get").expect("there").value, n.to_string(), "replies go to their callers");
    }
    let world = cluster.world.lock();
    assert_eq!((world.effects, world.sessions), (1000, 1));
    assert!(world.messages < 1500, "{} messages for 2000 calls: they travel together", world.messages);
}

#[tokio::test]
async fn a_broken_stream_loses_no_one_elses_call() {
    let cluster = FakeCluster::start().await;
    let client = cluster.client().await;
    cluster.order(
        1,
        (0..40).map(|n| if n % 8 == 7 { Fault::ApplyThenCut } else { Fault::Answer(ErrorKind::Unavailable) }),
    );
    let adds = join_all((0..200).map(|_| client.add("counter", 1))).await;
    assert!(adds.iter().all(Result::is_ok), "{adds:?}");
    let values: HashSet<i64> = adds.into_iter().map(|add| add.expect("added").value).collect();
    assert_eq!(values, (1..=200).collect(), "each took effect once");
}

#[tokio::test]
async fn scans_go_over_shards_in_both_directions() {
    let cluster = FakeCluster::start().await;
    let client = cluster.client().await;
    let names = fill(&client, 30).await;
    let forward = client.scan(ScanOptions::all()).collect_rows().await.expect("scan");
    assert_eq!(keys(&forward), names);
    assert!(forward.iter().all(|row| row.key == row.record.value));
    let backward = client.scan(ScanOptions::all().reverse().keys_only()).collect_rows().await.expect("scan");
    assert!(backward.iter().rev().map(|row| &row.key).eq(forward.iter().map(|row| &row.key)));
    assert!(backward.iter().all(|row| row.record.value.is_empty()));
    let some = client.scan(ScanOptions::range("b27", "k04")).collect_rows().await.expect("scan");
    assert_eq!(keys(&some), ["b27", "k01"]);
    let some = client.scan(ScanOptions::range("b27", "k04").reverse()).collect_rows().await.expect("scan");
    assert_eq!(keys(&some), ["k01", "b27"]);
    let some = client.scan(ScanOptions::prefix("t0")).collect_rows().await.expect("scan");
    assert_eq!(keys(&some), ["t02", "t05", "t08"]);
    let from = client.scan(ScanOptions::from("t26")).collect_rows().await.expect("scan");
    assert_eq!(keys(&from), ["t26", "t29"]);
    for empty in [ScanOptions::prefix("zz"), ScanOptions::range("k", "k"), ScanOptions::range("x", "z")] {
        assert!(client.scan(empty.clone()).collect_rows().await.expect("scan").is_empty());
        assert!(client.scan(empty.reverse()).collect_rows().await.expect("scan").is_empty());
    }
}

#[tokio::test]
async fn limits_hold_over_the_whole_scan() {
    let cluster = FakeCluster::start().await;
    let client = cluster.client().await;
    let names = fill(&client, 30).await;
    for rows in [1, 2, 3, 4, 10, 11, 29] {
        for reverse in [false, true] {
            let mut options = ScanOptions::all().limit_rows(rows as u64);
            options.reverse = reverse;
            let mut scan = client.scan(options);
            let mut got = Vec::new();
            while let Some(row) = scan.next().await {
                got.push(row.expect("scan"));
            }
            let mut want = names.clone();
            if reverse {
                want.reverse();
            }
            assert_eq!(keys(&got), want[..rows]);
            assert!(scan.more(), "{rows} of 30 rows leave some");
        }
    }
    let mut scan = client.scan(ScanOptions::all().limit_rows(31));
    while let Some(row) = scan.next().await {
        row.expect("scan");
    }
    assert!(!scan.more());
    // A row has 6 bytes: three of the key, three of the value.
    for (bytes, rows) in [(1, 1), (6, 1), (11, 1), (12, 2), (62, 10), (68, 11), (180, 30)] {
        let got = client.scan(ScanOptions::all().limit_bytes(bytes)).collect_rows().await.expect("scan");
        assert_eq!(got.len(), rows, "within {bytes} bytes");
    }
}

#[tokio::test]
async fn a_scan_reads_at_one_timestamp() {
    let cluster = FakeCluster::start().await;
    let client = cluster.client().await;
    let names = fill(&client, 30).await;
    let mut scan = client.scan(ScanOptions::all());
    let first = scan.next().await.expect("a row").expect("scan");
    let at = scan.at_ts().expect("known from the first row on");
    for name in &names {
        client.delete(name).await.expect("delete");
    }
    let mut rows = vec![first];
    while let Some(row) = scan.next().await {
        rows.push(row.expect("scan"));
    }
    assert_eq!(keys(&rows), names);
    assert!(client.scan(ScanOptions::all()).collect_rows().await.expect("scan").is_empty());
    assert_eq!(client.scan(ScanOptions::all().at(at)).collect_rows().await.expect("scan").len(), 30);
}

#[tokio::test]
async fn a_page_is_retried() {
    let cluster = FakeCluster::start().await;
    let client = cluster.client().await;
    let names = fill(&client, 30).await;
    for node in 1..=3 {
        cluster.order(node, [Fault::Cut, Fault::Answer(ErrorKind::Unavailable), Fault::ApplyThenCut]);
    }
    let rows = client.scan(ScanOptions::all()).collect_rows().await.expect("scan");
    assert_eq!(keys(&rows), names);
}

#[tokio::test]
async fn a_slow_consumer_has_one_page_fetched_ahead() {
    let cluster = FakeCluster::start().await;
    let client = cluster.client().await;
    fill(&client, 30).await;
    let mut scan = client.scan(ScanOptions::all());
    scan.next().await.expect("a row").expect("scan");
    while cluster.world.lock().pages < 2 {
        tokio::task::yield_now().await;
    }
    // Whatever the scan would have asked for would have come before the last of these.
    for _ in 0..100 {
        client.get("b00").await.expect("get");
    }
    assert_eq!(cluster.world.lock().pages, 2);
    drop(scan);
}

#[tokio::test]
async fn several_keys_are_read_at_one_timestamp() {
    let cluster = FakeCluster::start().await;
    let client = cluster.client().await;
    fill(&client, 6).await;
    let before = cluster.world.lock().timestamps;
    let values = client.get_many(["t02", "none", "b00", "k01", "b00"]).await.expect("get_many");
    let got: Vec<_> = values.records.iter().map(|r| r.as_ref().map(|r| r.value.clone())).collect();
    assert_eq!(got, [Some("t02".into()), None, Some("b00".into()), Some("k01".into()), Some("b00".into())]);
    assert_eq!(cluster.world.lock().timestamps, before + 1, "one timestamp over all shards");
    let one = client.get_many(["b00", "b03"]).await.expect("get_many");
    assert_eq!(cluster.world.lock().timestamps, before + 1, "a single shard takes its own");
    client.put("b00", "new").await.expect("put");
    let again = client.get_many_at(["b00", "t02"], one.at_ts).await.expect("get_many_at");
    assert_eq!(again.records[0].as_ref().expect("there").value, "b00");
    assert_eq!(again.at_ts, one.at_ts);
}

#[tokio::test]
async fn an_id_that_is_too_old_is_renewed_unless_an_attempt_may_have_worked() {
    let cluster = FakeCluster::start().await;
    let client = cluster.client().await;
    cluster.order(1, [Fault::Answer(ErrorKind::TooOld)]);
    assert_eq!(client.add("counter", 1).await.expect("renewed").value, 1);
    {
        let world = cluster.world.lock();
        assert_eq!((world.ids.len(), world.timestamps), (2, 1));
        assert_ne!(world.ids[0].unique, world.ids[1].unique);
        assert!(world.ids[0].seen < world.ids[1].seen);
    }
    cluster.order(1, [Fault::ApplyThenCut]);
    cluster.world.lock().always.insert(NodeId(1), Fault::Answer(ErrorKind::TooOld));
    let error = client.add("counter", 1).await.expect_err("who knows");
    assert_eq!(error.kind, ErrorKind::Undetermined, "{error}");
}

#[tokio::test]
async fn a_client_that_was_idle_asks_for_one_timestamp() {
    let cluster = FakeCluster::start().await;
    let client = cluster.client().await;
    client.shared.seen.distrust();
    for put in join_all((0..50).map(|n| client.put(format!("k{n}"), "v"))).await {
        put.expect("put");
    }
    assert_eq!(cluster.world.lock().timestamps, 1);
    assert!(cluster.world.lock().ids.iter().all(|id| id.seen > Timestamp(100)));
}

#[tokio::test]
async fn bad_input_is_refused_before_anything_is_sent() {
    let cluster = FakeCluster::start().await;
    let client = cluster.client().await;
    let long = vec![b'k'; limits::MAX_KEY_BYTES + 1];
    let large = vec![0; limits::MAX_VALUE_BYTES + 1];
    let mut errors = vec![
        client.put("", "v").await.expect_err("empty key"),
        client.put(&long, "v").await.expect_err("long key"),
        client.put("k", large.clone()).await.expect_err("large value"),
        client.get("").await.expect_err("empty key"),
        client.get_at("k", Timestamp(u64::MAX)).await.expect_err("no timestamp"),
        client.get_at("k", Timestamp::ZERO).await.expect_err("before everything"),
        client.get_many(Vec::<&str>::new()).await.expect_err("no keys"),
        client.get_many(vec!["k"; limits::MAX_GET_KEYS + 1]).await.expect_err("many keys"),
        client.delete(&long).await.expect_err("long key"),
        client.add("", 1).await.expect_err("empty key"),
        client.compare_and_swap("k", Expect::Value(large.into()), None).await.expect_err("large"),
        client.batch(Batch::new()).await.expect_err("no steps"),
        client.batch(Batch::new().when("a", Expect::Absent)).await.expect_err("no steps"),
        client.batch(Batch::new().then_put("a", "v").then_put("z", "v")).await.expect_err("two shards"),
    ];
    for options in [
        ScanOptions::range("b", "a"),
        ScanOptions::all().limit_rows(0),
        ScanOptions::all().limit_bytes(0),
        ScanOptions::prefix(vec![1; limits::MAX_KEY_BYTES + 2]),
        ScanOptions::all().at(Timestamp(u64::MAX)),
    ] {
        errors.push(client.scan(options).next().await.expect("an item").expect_err("wrong options"));
    }
    for error in errors {
        assert_eq!(error.kind, ErrorKind::Invalid, "{error}");
    }
    assert!(cluster.world.lock().requests.is_empty());
    let none = Client::connect(Vec::<String>::new()).await.expect_err("no endpoints");
    assert_eq!(none.kind, ErrorKind::Invalid);
}

#[tokio::test]
async fn a_large_batch_and_large_values_pass() {
    let cluster = FakeCluster::start().await;
    let client = cluster.client().await;
    let value = Bytes::from(vec![7; limits::MAX_VALUE_BYTES]);
    let batch = (0..15).fold(Batch::new(), |batch, n| batch.then_put(format!("b{n}"), value.clone()));
    client.batch(batch).await.expect("15 MiB");
    assert_eq!(client.get("b14").await.expect("get").expect("there").value, value);
    let batch = (0..17).fold(Batch::new(), |batch, n| batch.then_put(format!("b{n}"), value.clone()));
    assert_eq!(client.batch(batch).await.expect_err("17 MiB").kind, ErrorKind::Invalid);
}

#[tokio::test]
async fn many_large_values_travel_at_once() {
    let cluster = FakeCluster::start().await;
    let client = cluster.client().await.with_read_policy(Policy::Leader);
    let value = Bytes::from(vec![7; limits::MAX_VALUE_BYTES]);
    let puts = join_all((0..60).map(|n| client.put(format!("b{n}"), value.clone()))).await;
    assert!(puts.iter().all(Result::is_ok));
    for got in join_all((0..60).map(|n| client.get(format!("b{n}")))).await {
        assert_eq!(got.expect("get").expect("there").value, value);
    }
    let error = client.get_many((0..60).map(|n| format!("b{n}"))).await.expect_err("60 MiB in one answer");
    assert!(error.kind == ErrorKind::Invalid && error.message.contains("read fewer"), "{error}");
    let values = client.get_many((0..15).map(|n| format!("b{n}"))).await.expect("within the limit");
    assert!(values.records.iter().all(|got| got.as_ref().is_some_and(|got| got.value == value)));
    assert_eq!(cluster.world.lock().sessions, 1, "no message was too large for the stream");
}

#[tokio::test]
async fn calls_that_are_given_up_leave_nothing_behind() {
    let cluster = FakeCluster::start().await;
    let client = cluster.client().await;
    cluster.order(1, [Fault::Swallow; 20]);
    for _ in 0..20 {
        let mut put = Box::pin(client.put("a", "1"));
        // Under way: the fake has it and will not answer.
        let before = cluster.world.lock().messages;
        while cluster.world.lock().messages == before {
            assert!(futures::poll!(&mut put).is_pending());
            tokio::task::yield_now().await;
        }
        drop(put);
    }
    client.put("a", "2").await.expect("the stream goes on");
    assert_eq!(cluster.world.lock().sessions, 1);
}

#[tokio::test]
async fn another_cluster_is_denied() {
    let cluster = FakeCluster::start().await;
    let builder = Client::builder().endpoints([cluster.addr(1)]).cluster_id(ClusterId(7)).deadline(SHORT);
    assert_eq!(builder.connect().await.expect_err("another cluster").kind, ErrorKind::Denied);
    let builder = Client::builder().endpoints([cluster.addr(1)]).cluster_id(CLUSTER.parse().expect("an id"));
    builder.connect().await.expect("the cluster that is meant");
}

#[tokio::test]
async fn the_transport_can_be_replaced() {
    let mut local = world();
    for node in 1..=3 {
        local.addrs.insert(NodeId(node), format!("local-{node}:1"));
    }
    let local = Arc::new(Mutex::new(local));
    let client =
        Client::with_dialer(Arc::new(LocalDialer(Arc::clone(&local))), "local-1:1").await.expect("local");
    let names = fill(&client, 9).await;
    assert_eq!(keys(&client.scan(ScanOptions::all()).collect_rows().await.expect("scan")), names);
    assert_eq!(local.lock().sessions, 0);
}

#[tokio::test]
async fn typed_values_are_json() {
    #[derive(serde::Serialize, serde::Deserialize, PartialEq, Debug)]
    struct Fruit {
        name: String,
        stock: u32,
    }
    let cluster = FakeCluster::start().await;
    let client = cluster.client().await;
    let fruits = client.typed::<Fruit>();
    fruits.put("fruit/1", &Fruit { name: "apple".into(), stock: 1 }).await.expect("put");
    let changed =
        fruits.update("fruit/1", |old| Fruit { stock: 5, ..old.expect("there") }).await.expect("update");
    assert_eq!((changed.value.stock, changed.version), (5, 2));
    let row = client.scan(ScanOptions::prefix("fruit/")).next().await.expect("a row").expect("scan");
    assert_eq!(fruits.row(row).expect("a fruit").1.value, changed.value);
    client.put("fruit/2", "no json").await.expect("put");
    assert_eq!(fruits.get("fruit/2").await.expect_err("no fruit").kind, ErrorKind::Corrupt);
    assert_eq!(fruits.get("fruit/3").await.expect("get"), None);
}
