//! Transactions against a cluster that misbehaves on order.

mod scans;

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::future::{join_all, try_join};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::*;
use crate::client::fake::{FakeCluster, Fault, World};
use crate::client::{ConflictReason, Policy, Record, Row, ScanOptions};
use crate::rpc::v1;
use crate::rpc::v1::session_reply::Reply;
use crate::rpc::v1::session_request::Request;
use crate::types::{NodeId, RequestId, TxnPart, TxnWrite, limits};

const SHORT: Duration = Duration::from_millis(400);

fn text(record: Option<&Record>) -> Option<&str> {
    record.map(|record| std::str::from_utf8(&record.value).expect("the tests' values are text"))
}

fn number(record: Option<Record>) -> i64 {
    text(record.as_ref()).map_or(0, |text| text.parse().expect("a number"))
}

fn part(world: &World, nth: usize) -> TxnPart {
    world.commits[nth].part.clone()
}

/// The keys of a part, without the keyspace byte.
fn names(keys: &[Bytes]) -> Vec<&str> {
    keys.iter().map(|key| std::str::from_utf8(&key[1..]).expect("the tests' keys are text")).collect()
}

async fn value_of(client: &Client, key: &str) -> Option<String> {
    client.get(key).await.expect("get").map(|record| String::from_utf8_lossy(&record.value).into_owned())
}

#[tokio::test]
async fn a_transaction_over_shards_takes_effect_at_one_timestamp() {
    let cluster = FakeCluster::start().await;
    let client = cluster.client().await;
    client.put("apple", "10").await.expect("put");
    client.put("zebra", "old").await.expect("put");
    let done = client
        .transact(|txn| async move {
            let held = txn.get_many(["zebra", "apple", "none"]).await?;
            assert_eq!((text(held[0].as_ref()), text(held[1].as_ref())), (Some("old"), Some("10")));
            assert_eq!(held[2], None);
            txn.put("kiwi", "new")?;
            txn.delete("zebra")?;
            txn.add("apple", 5)?;
            assert_eq!(text(txn.get("kiwi").await?.as_ref()), Some("new"), "own writes are seen");
            assert_eq!(txn.get("zebra").await?, None);
            let apple = txn.get("apple").await?.expect("there");
            assert_eq!((&apple.value[..], apple.commit_ts, apple.version), (&b"15"[..], Timestamp(0), 0));
            txn.start_ts().await
        })
        .await
        .expect("committed");
    assert_eq!(done.attempts, 1);
    let records = client.get_many(["apple", "kiwi", "zebra"]).await.expect("get_many").records;
    assert_eq!((text(records[0].as_ref()), text(records[1].as_ref())), (Some("15"), Some("new")));
    assert_eq!(records[2], None);
    assert!(records.iter().flatten().all(|record| record.commit_ts == done.commit_ts));
    let world = cluster.world.lock();
    let sent = part(&world, 0);
    assert_eq!(names(&sent.reads), ["apple", "none", "zebra"]);
    let written: Vec<Bytes> = sent.writes.iter().map(|write| write.key().clone()).collect();
    assert_eq!(names(&written), ["apple", "kiwi", "zebra"]);
    assert!(matches!(&sent.writes[0], TxnWrite::Add { delta: 5, .. }));
    assert_eq!(world.commits[0].id.seen, done.value, "the id bears the start timestamp");
}

#[tokio::test]
async fn the_first_read_takes_the_start_timestamp_and_blind_writes_need_none() {
    let cluster = FakeCluster::start().await;
    let client = cluster.client().await.with_read_policy(Policy::Leader);
    let done = client
        .transact(|txn| async move {
            let held = number(txn.get("b").await?);
            txn.put("b", (held + 1).to_string())
        })
        .await
        .expect("committed");
    assert_eq!(done.attempts, 1);
    client
        .transact(|txn| async move {
            txn.put("b", "1")?;
            txn.put("t", "2")
        })
        .await
        .expect("committed");
    let world = cluster.world.lock();
    assert_eq!(world.timestamps, 0, "no round for the beginning alone");
    assert_eq!(world.requests.values().sum::<usize>(), 3, "one read and two commits");
    assert_eq!(world.requests[&NodeId(1)], 3, "a commit goes to the leader of its smallest written key");
}

#[tokio::test]
async fn what_changed_after_it_was_read_is_a_conflict_and_is_read_again() {
    let cluster = FakeCluster::start().await;
    let client = cluster.client().await;
    client.put("b", "1").await.expect("put");
    let runs = AtomicU32::new(0);
    let done = client
        .transact(|txn| {
            let (runs, client) = (&runs, &client);
            async move {
                let held = number(txn.get("b").await?);
                if runs.fetch_add(1, Ordering::Relaxed) < 2 {
                    client.add("b", 10).await?;
                }
                txn.put("t", (held * 2).to_string())?;
                Ok(held)
            }
        })
        .await
        .expect("committed");
    assert_eq!((done.value, done.attempts), (21, 3));
    assert_eq!(value_of(&client, "t").await.as_deref(), Some("42"));
    let ids: HashSet<RequestId> = cluster.world.lock().commits.iter().map(|came| came.id).collect();
    assert_eq!(ids.len(), 3, "each attempt is a transaction of its own");
}

#[tokio::test]
async fn writes_that_were_not_read_do_not_conflict() {
    let cluster = FakeCluster::start().await;
    let client = cluster.client().await;
    let done = client
        .transact(|txn| {
            let client = &client;
            async move {
                txn.get("other").await?;
                client.put("b", "theirs").await?;
                client.add("t", 1).await?;
                txn.put("b", "ours")?;
                txn.add("t", 1)
            }
        })
        .await
        .expect("committed");
    assert_eq!(done.attempts, 1);
    assert_eq!(value_of(&client, "b").await.as_deref(), Some("ours"));
    assert_eq!(value_of(&client, "t").await.as_deref(), Some("2"));
}

#[tokio::test]
async fn a_commit_without_an_answer_is_asked_for_again_under_its_id() {
    for faults in [
        vec![Fault::ApplyThenCut],
        vec![Fault::Cut, Fault::Answer(ErrorKind::Unavailable)],
        vec![Fault::ApplyThenUndetermined, Fault::ApplyThenCut],
        // A lock in the way of the second attempt does not say that the first did nothing.
        vec![Fault::ApplyThenCut, Fault::Locked, Fault::Locked],
    ] {
        let cluster = FakeCluster::start().await;
        let client = cluster.client().await;
        cluster.order(1, faults.clone());
        let done = client.transact(|txn| async move { txn.add("counter", 1) }).await.expect("learnt");
        assert_eq!(done.attempts, 1, "{faults:?}: the closure runs once");
        assert_eq!(value_of(&client, "counter").await.as_deref(), Some("1"));
        let world = cluster.world.lock();
        let ids: HashSet<_> = world.ids.iter().collect();
        assert_eq!((ids.len(), world.effects), (1, 1), "{faults:?}");
    }
}

#[tokio::test]
async fn a_refusal_that_is_kept_tells_the_fate_of_earlier_attempts() {
    let cluster = FakeCluster::start().await;
    let client = cluster.client().await;
    let runs = AtomicU32::new(0);
    let done = client
        .transact(|txn| {
            let (runs, cluster, client) = (&runs, &cluster, &client);
            async move {
                txn.get("b").await?;
                if runs.fetch_add(1, Ordering::Relaxed) == 0 {
                    client.put("b", "theirs").await?;
                    cluster.order(1, [Fault::ApplyThenCut]);
                }
                txn.put("c", "ours")
            }
        })
        .await
        .expect("committed");
    // The first attempt was refused, its answer lost, and the refusal learnt by asking again.
    assert_eq!((done.attempts, runs.into_inner()), (2, 2));
    assert_eq!(cluster.world.lock().commits.len(), 3);
}

#[tokio::test]
async fn undetermined_is_said_only_where_it_is_so() {
    let cluster = FakeCluster::start().await;
    let client = cluster.client().await.with_deadline(SHORT);
    let named = || client.transaction().label("transfer 7");
    // Every attempt is answered: nothing was done, and that is known.
    cluster.always(Fault::Answer(ErrorKind::Unavailable));
    let error = named().run(|txn| async move { txn.put("b", "1") }).await.expect_err("nobody serves");
    assert_eq!(error.kind, ErrorKind::Unavailable, "{error}");
    // One attempt of unknown fate, and no answer after it that tells.
    for last in [Fault::Answer(ErrorKind::Unavailable), Fault::Locked, Fault::Swallow] {
        cluster.world.lock().always.clear();
        client.timestamp().await.expect("a fresh one for the id");
        cluster.always(last);
        cluster.order(1, [Fault::ApplyThenCut]);
        let error = named().run(|txn| async move { txn.put("b", "2") }).await.expect_err("who knows");
        assert_eq!(error.kind, ErrorKind::Undetermined, "{last:?}: {error}");
        assert!(error.message.contains("transfer 7"), "{error}");
    }
    // An id that is too old by then does not tell either. On a cluster of its own: a late request of the last one must
    // not take the fault that is meant for this one's first attempt.
    let cluster = FakeCluster::start().await;
    let client = cluster.client().await.with_deadline(SHORT);
    let named = || client.transaction().label("transfer 7");
    client.timestamp().await.expect("a fresh one for the id");
    cluster.always(Fault::Answer(ErrorKind::TooOld));
    cluster.order(1, [Fault::Cut]);
    let error = named().run(|txn| async move { txn.put("b", "3") }).await.expect_err("who knows");
    assert_eq!(error.kind, ErrorKind::Undetermined, "{error}");
}

#[tokio::test]
async fn conflicts_end_by_the_deadline_or_the_number_of_attempts() {
    let cluster = FakeCluster::start().await;
    let client = cluster.client().await;
    cluster.always(Fault::Locked);
    let blind = |txn: Txn| async move { txn.put("b", "1") };
    let error =
        client.transaction().label("greedy").max_attempts(3).run(blind).await.expect_err("always locked");
    assert_eq!(error.kind, ErrorKind::Conflict, "{error}");
    assert!(error.message.contains("greedy") && error.message.contains("3 attempts"), "{error}");
    let conflict = error.conflict.expect("what was in the way");
    assert_eq!((conflict.reason, conflict.key), (ConflictReason::Locked, Some("held".into())));
    assert_eq!(cluster.world.lock().requests[&NodeId(1)], 3);
    let error = client.transaction().deadline(SHORT).run(blind).await.expect_err("always locked");
    assert!(error.kind == ErrorKind::Conflict && error.message.contains("until its deadline"), "{error}");
    assert!(cluster.world.lock().requests[&NodeId(1)] > 5, "it was tried again");
}

#[tokio::test]
async fn a_closure_that_outlives_the_deadline_is_dropped_and_nothing_is_sent() {
    let cluster = FakeCluster::start().await;
    let client = cluster.client().await;
    let slow = client.transaction().label("slow").deadline(SHORT);
    let error = slow
        .run(|txn| async move {
            txn.put("b", "1")?;
            std::future::pending::<Result<()>>().await
        })
        .await
        .expect_err("it never ends");
    assert!(error.kind == ErrorKind::Unavailable && error.message.contains("slow"), "{error}");
    let past = client.with_deadline(Duration::ZERO);
    let error = past.transact(|txn| async move { txn.put("b", "1") }).await.expect_err("past");
    assert_eq!(error.kind, ErrorKind::Unavailable);
    assert!(cluster.world.lock().requests.is_empty());
}

#[derive(Debug, PartialEq)]
enum Refused {
    Poor(i64),
    Store(Error),
}

impl From<Error> for Refused {
    fn from(error: Error) -> Self {
        Self::Store(error)
    }
}

#[tokio::test]
async fn an_error_of_the_closure_ends_it_and_nothing_is_sent() {
    let cluster = FakeCluster::start().await;
    let client = cluster.client().await;
    client.put("b", "3").await.expect("put");
    let error = client
        .transaction()
        .try_run(|txn| async move {
            let held = number(txn.get("b").await?);
            txn.put("b", (held - 5).to_string())?;
            if held < 5 {
                return Err(Refused::Poor(held));
            }
            Ok(())
        })
        .await
        .expect_err("too poor");
    assert_eq!(error, Refused::Poor(3));
    let error = client
        .transact(|txn| async move {
            txn.delete("b")?;
            Err::<(), _>(Error::invalid("not today"))
        })
        .await
        .expect_err("refused");
    assert_eq!(error, Error::invalid("not today"));
    assert!(cluster.world.lock().commits.is_empty());
    assert_eq!(value_of(&client, "b").await.as_deref(), Some("3"));
}

#[tokio::test]
async fn a_transaction_over_its_limits_is_refused_before_anything_is_sent() {
    let cluster = FakeCluster::start().await;
    let client = cluster.client().await;
    let keys = client
        .transact(|txn| async move {
            for n in 0..=limits::MAX_TXN_KEYS {
                txn.put(format!("k{n}"), "v")?;
            }
            Ok(())
        })
        .await
        .expect_err("10,001 keys");
    let bytes = client
        .transact(|txn| async move {
            for n in 0..16 {
                // Who does not look at the answer does not get past the limit either.
                let _refused = txn.put(format!("k{n}"), vec![0; limits::MAX_VALUE_BYTES]);
            }
            Ok(())
        })
        .await
        .expect_err("16 MiB and keys");
    let ranges = client
        .transact(|txn| async move {
            let mut buffer = txn.inner.buffer.lock();
            for n in 0..=limits::MAX_TXN_RANGES {
                let scan = buffer.begin_scan();
                let (start, end) = (format!("k{n:04}"), format!("k{n:04}a"));
                buffer.note_scanned(scan, crate::types::KeyRange::new(start, Some(end.into())));
            }
            drop(buffer);
            txn.put("k", "v")
        })
        .await
        .expect_err("1,001 ranges");
    for (error, says) in [(keys, "10001"), (bytes, "16777216"), (ranges, "1001")] {
        assert!(error.kind == ErrorKind::Invalid && error.message.contains(says), "{error}");
    }
    for wrong in ["", &"k".repeat(limits::MAX_KEY_BYTES + 1)] {
        let error = client.transact(|txn| async move { txn.add(wrong, 1) }).await.expect_err("wrong key");
        assert_eq!(error.kind, ErrorKind::Invalid);
    }
    assert!(cluster.world.lock().requests.is_empty());
}

#[tokio::test]
async fn reading_alone_needs_no_commit_and_never_conflicts() {
    let cluster = FakeCluster::start().await;
    let client = cluster.client().await;
    client.put("b", "1").await.expect("put");
    client.put("t", "1").await.expect("put");
    for read_only in [false, true] {
        let mut transaction = client.transaction();
        if read_only {
            transaction = transaction.read_only();
        }
        let done = transaction
            .run(|txn| {
                let client = &client;
                async move {
                    let before = txn.get("b").await?;
                    try_join(client.put("b", "9"), client.put("t", "9")).await?;
                    let after = txn.get_many(["b", "t"]).await?;
                    assert_eq!(before, after[0]);
                    let rows = txn.scan(ScanOptions::all()).collect_rows().await?;
                    assert_eq!(rows.len(), 2);
                    assert_eq!(rows[1].record, after[1].clone().expect("there"));
                    Ok((txn.start_ts().await?, after))
                }
            })
            .await
            .expect("read");
        let (start_ts, values) = done.value;
        assert_eq!((done.attempts, done.commit_ts), (1, start_ts));
        assert!(values.iter().flatten().all(|record| record.commit_ts < start_ts));
    }
    let refused = client.read_only(|txn| async move { txn.put("b", "1") }).await.expect_err("read-only");
    assert_eq!(refused.kind, ErrorKind::Invalid);
    let nothing = client.transact(|_| async { Ok(()) }).await.expect("nothing to do");
    assert_eq!(nothing.commit_ts, Timestamp::ZERO);
    let late = client
        .transact(|txn| async move {
            txn.put("b", "1")?;
            txn.read_only()
        })
        .await
        .expect_err("it has written");
    assert_eq!(late.kind, ErrorKind::Invalid);
    assert!(cluster.world.lock().commits.is_empty());
}

#[tokio::test]
async fn a_snapshot_is_one_instant() {
    let cluster = FakeCluster::start().await;
    let client = cluster.client().await;
    client.put("b", "1").await.expect("put");
    let snapshot = client.snapshot(client.timestamp().await.expect("timestamp"));
    client.put("b", "2").await.expect("put");
    client.put("t", "2").await.expect("put");
    assert_eq!(text(snapshot.get("b").await.expect("get").as_ref()), Some("1"));
    let records = snapshot.get_many(["t", "b"]).await.expect("get_many");
    assert_eq!((records[0].as_ref(), text(records[1].as_ref())), (None, Some("1")));
    assert_eq!(snapshot.scan(ScanOptions::all()).collect_rows().await.expect("scan").len(), 1);
    assert!(snapshot.scan(ScanOptions::all().at(snapshot.at())).next().await.expect("a row").is_ok());
    let other = snapshot.scan(ScanOptions::all().at(Timestamp(1))).next().await.expect("an item");
    assert_eq!(other.expect_err("another timestamp").kind, ErrorKind::Invalid);
    let zero = client.snapshot(Timestamp::ZERO).get("b").await.expect_err("before everything");
    assert_eq!(zero.kind, ErrorKind::Invalid);
}

#[tokio::test]
async fn a_start_that_is_too_old_is_begun_anew() {
    let cluster = FakeCluster::start().await;
    let client = cluster.client().await;
    cluster.order(1, [Fault::Answer(ErrorKind::TooOld)]);
    let done = client.transact(|txn| async move { txn.put("b", "1") }).await.expect("committed");
    assert_eq!(done.attempts, 2);
    let world = cluster.world.lock();
    assert!(world.ids[0].seen < world.ids[1].seen, "with a newer timestamp");
}

#[tokio::test]
async fn a_commit_follows_its_shard_and_keeps_its_id() {
    let cluster = FakeCluster::start().await;
    let client = cluster.client().await;
    cluster.world.lock().shards[1].leader = NodeId(3);
    let done = client
        .transact(|txn| async move {
            txn.put("t", "1")?;
            txn.put("b", "1")
        })
        .await
        .expect("committed");
    assert_eq!(done.attempts, 1);
    let world = cluster.world.lock();
    assert_eq!((world.requests[&NodeId(1)], world.requests[&NodeId(3)]), (1, 1), "node 1 led to node 3");
    assert_eq!(world.effects, 1);
}

#[tokio::test]
async fn what_is_no_counter_is_invalid_and_not_tried_again() {
    let cluster = FakeCluster::start().await;
    let client = cluster.client().await;
    client.put("b", "text").await.expect("put");
    let runs = AtomicU32::new(0);
    let error = client
        .transact(|txn| {
            runs.fetch_add(1, Ordering::Relaxed);
            async move { txn.add("b", 1) }
        })
        .await
        .expect_err("no counter");
    assert_eq!((error.kind, runs.into_inner()), (ErrorKind::Invalid, 1), "{error}");
    assert_eq!(error.conflict.expect("told").reason, ConflictReason::Counter);
    let error = client
        .transact(|txn| async move {
            txn.add("b", 1)?;
            txn.get("b").await
        })
        .await
        .expect_err("no counter");
    assert!(error.kind == ErrorKind::Invalid && error.message.contains("\"b\""), "{error}");
}

#[tokio::test]
async fn a_handle_is_of_no_use_after_its_closure() {
    let cluster = FakeCluster::start().await;
    let client = cluster.client().await;
    let txn = client.transact(|txn| async move { Ok(txn) }).await.expect("nothing to do").value;
    let mut errors = vec![
        txn.put("b", "1").expect_err("ended"),
        txn.get("b").await.expect_err("ended"),
        txn.start_ts().await.expect_err("ended"),
        txn.read_only().expect_err("ended"),
    ];
    errors.push(txn.scan(ScanOptions::all()).next().await.expect("an item").expect_err("ended"));
    for error in errors {
        assert!(error.kind == ErrorKind::Invalid && error.message.contains("has ended"), "{error}");
    }
    assert!(cluster.world.lock().requests.is_empty());
}

#[tokio::test]
async fn sixty_four_clients_of_one_key_get_through_with_few_retries() {
    let cluster = FakeCluster::start().await;
    let client = cluster.client().await.with_deadline(Duration::from_secs(60));
    let increments = (0..64).map(|_| {
        let client = client.clone();
        tokio::spawn(async move {
            let increment = |txn: Txn| async move {
                let held = number(txn.get("b").await?);
                txn.put("b", (held + 1).to_string())
            };
            client.transact(increment).await.expect("committed").attempts
        })
    });
    let attempts: Vec<u32> =
        join_all(increments).await.into_iter().map(|attempts| attempts.expect("no panic")).collect();
    assert_eq!(value_of(&client, "b").await.as_deref(), Some("64"));
    let all: u32 = attempts.iter().sum();
    assert!(all <= 64 * 10, "{all} attempts for 64 increments");
}

#[tokio::test]
async fn typed_values_are_json_in_transactions_too() {
    #[derive(serde::Serialize, serde::Deserialize, PartialEq, Debug)]
    struct Stock {
        left: u32,
    }
    let cluster = FakeCluster::start().await;
    let client = cluster.client().await;
    client
        .transact(|txn| async move {
            let stocks = txn.typed::<Stock>();
            stocks.put("stock/b", &Stock { left: 7 })?;
            stocks.update("stock/b", |held| Stock { left: held.expect("just written").left - 1 }).await?;
            let row = txn.scan(ScanOptions::prefix("stock/")).next().await.expect("a row")?;
            assert_eq!(stocks.row(row)?.1.value, Stock { left: 6 });
            assert_eq!(stocks.get("stock/none").await?, None);
            Ok(())
        })
        .await
        .expect("committed");
    let stored = client.typed::<Stock>().get("stock/b").await.expect("get").expect("there");
    assert_eq!(stored.value, Stock { left: 6 });
}

#[tokio::test]
async fn a_commit_of_another_caller_is_checked_and_passed_on_once() {
    let cluster = FakeCluster::start().await;
    let client = cluster.client().await;
    let start_ts = client.timestamp().await.expect("timestamp");
    let put = |key: &'static str| {
        let put = v1::PutStep { key: key.into(), value: "1".into() };
        v1::Write { write: Some(v1::write::Write::Put(put)) }
    };
    let commit =
        v1::CommitRequest { start_ts: start_ts.0, writes: vec![put("t"), put("b")], ..Default::default() };
    let id = RequestId { seen: Timestamp::ZERO, unique: 7 };
    let mut committed = HashSet::new();
    for _ in 0..2 {
        match client.pass_on(Request::Commit(commit.clone()), Some(id)).await.expect("committed") {
            Reply::Commit(reply) => committed.insert(reply.commit_ts),
            other => panic!("{other:?}"),
        };
    }
    assert_eq!(committed.len(), 1, "a retry gets the first outcome");
    assert_eq!(cluster.world.lock().commits[0].id, RequestId { seen: start_ts, unique: 7 });
    let sent = cluster.world.lock().requests.clone();
    for (wrong, id) in [
        (v1::CommitRequest { start_ts: 0, ..commit.clone() }, None),
        (v1::CommitRequest { writes: vec![], ..commit.clone() }, None),
        (v1::CommitRequest { writes: vec![put("b"), put("b")], ..commit.clone() }, None),
        (commit.clone(), Some(RequestId { seen: start_ts.before(), unique: 7 })),
    ] {
        let error = client.pass_on(Request::Commit(wrong), id).await.expect_err("wrong");
        assert_eq!(error.kind, ErrorKind::Invalid, "{error}");
    }
    assert_eq!(cluster.world.lock().requests, sent, "nothing was sent");
    let future = v1::CommitRequest { start_ts: start_ts.0 + 1_000_000, ..commit };
    let error = client.pass_on(Request::Commit(future), None).await.expect_err("not handed out yet");
    assert!(error.kind == ErrorKind::Invalid && error.message.contains("start_ts"), "{error}");
}
