//! One saga at a time, on a store in this process: forward, back, and what can be done to it.

use std::time::{Duration, Instant};

use kvorum::client::SagaStart;
use kvorum::saga::{Failure, Retry, Saga, Step, Timeouts};
use kvorum::testing::TestStore;
use tokio_util::sync::CancellationToken;

use super::{Log, define, run, work};

#[tokio::test(flavor = "multi_thread")]
async fn it_goes_forward_and_back() {
    let store = TestStore::open().await.expect("a store");
    let (client, log) = (store.client(), Log::default());
    define(&client).await;
    let worker = work(&client, &log);

    let done = run(&client, "1", "all is well").await;
    assert_eq!(done.status, "completed", "{done:?}");
    let outputs: Vec<_> = done.steps.iter().map(|step| step.output.clone().unwrap_or_default()).collect();
    assert_eq!(outputs, ["did flight", "did hotel", "did car", "counted", "did payment", "did mail"]);
    let mut did = std::mem::take(&mut *log.lock());
    did[1..3].sort();
    assert_eq!(did, ["flight", "car", "hotel", "tally", "payment", "mail"]);

    let back = run(&client, "2", "payment").await;
    assert_eq!(
        (back.status.as_str(), back.reason.as_str()),
        ("compensated", "step payment failed: it is to fail")
    );
    let mut did = std::mem::take(&mut *log.lock());
    did[1..3].sort();
    did[6..8].sort();
    let undone = ["undo tally", "undo car", "undo hotel", "undo flight"];
    assert_eq!(did[..5], ["flight", "car", "hotel", "tally", "payment"]);
    assert_eq!(did[5..], undone);
    let count = client.get("count").await.expect("read").expect("counted");
    assert_eq!(count.value, "1", "one counted, one counted and undone");

    let (history, next) = client.saga_history("2", 0).await.expect("read");
    assert_eq!(next, None);
    assert_eq!(history.first().map(|line| line.what.as_str()), Some("started"));
    assert_eq!(history.last().map(|line| line.detail.as_str()), Some("compensated"));
    let (rest, _) = client.saga_history("2", 3).await.expect("read");
    assert_eq!(rest, history[3..]);

    // The same start again, and another one under the same id.
    let again = client.start_saga(SagaStart::new("trip", "1").input("all is well")).await.expect("the same");
    assert!(again.already);
    client.start_saga(SagaStart::new("trip", "1").input("other")).await.expect_err("another input");

    worker.stop().await;
    store.close().await.expect("closed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_month_passes_in_a_moment() {
    let store = TestStore::open().await.expect("a store");
    let client = store.client();
    const DAY_MS: u64 = 24 * 3_600 * 1_000;
    let patient = Saga::define("patient", 1)
        .queue("trip")
        .step(Step::activity("flaky").retry(Retry { initial_ms: DAY_MS, max_ms: DAY_MS, ..Retry::default() }))
        .step(Step::sleep_ms("month", 30 * DAY_MS))
        .step(Step::signal("answer", "answer").timeout_ms(DAY_MS));
    client.define_saga(&patient.check().expect("a definition")).await.expect("defined");
    let stop = CancellationToken::new();
    let worker = client.saga_worker("trip").activity("flaky", |task| async move {
        if task.attempt() < 4 { Err(Failure::new("not yet")) } else { Ok("at last".into()) }
    });
    let running = tokio::spawn(worker.run(stop.clone()));
    let began = Instant::now();
    client.start_saga(SagaStart::new("patient", "1")).await.expect("started");
    let done = client.wait_for_saga("1").await.expect("waited");
    assert_eq!(
        (done.status.as_str(), done.steps[0].output.as_deref()),
        ("compensated", Some(&b"at last"[..]))
    );
    let took_ms = done.closed_unix_ms - done.created_unix_ms;
    assert!((33 * DAY_MS..35 * DAY_MS).contains(&took_ms), "{took_ms} ms by its own clock");
    println!("34 days took {:?}", began.elapsed());
    // One that a transaction starts begins by the same clock.
    let hasty = Saga::define("hasty", 1).timeout_ms(DAY_MS).step(Step::sleep_ms("hour", DAY_MS / 24));
    client.define_saga(&hasty.check().expect("a definition")).await.expect("defined");
    client
        .transact(|txn| async move { txn.start_saga(SagaStart::new("hasty", "2")) })
        .await
        .expect("started");
    let done = client.wait_for_saga("2").await.expect("waited");
    assert_eq!(done.status, "completed", "{}", done.reason);
    stop.cancel();
    running.await.expect("it runs").expect("it stopped");
    store.close().await.expect("closed");
}

/// It has no timestamp yet by itself: it begins no transaction before its task was handed out.
#[tokio::test(flavor = "multi_thread")]
async fn a_step_that_only_writes_needs_one_attempt_also_of_a_client_that_did_nothing_before() {
    let store = TestStore::open().await.expect("a store");
    let client = store.client();
    let saga = Saga::define("writes", 1).step(Step::txn("write"));
    client.define_saga(&saga.check().expect("a definition")).await.expect("defined");
    let worker = client.saga_worker("writes").txn("write", |task, txn| async move {
        txn.put(format!("written/{}", task.saga_id()), "")?;
        Ok("".into())
    });
    let worker = super::spawn(worker);
    for id in ["1", "2", "3"] {
        client.start_saga(SagaStart::new("writes", id)).await.expect("started");
        let ended = client.wait_for_saga(id).await.expect("waited");
        let action = ended.steps[0].action.as_ref().expect("shown");
        assert_eq!((ended.status.as_str(), action.attempts), ("completed", 1), "{ended:?}");
    }
    worker.stop().await;
    store.close().await.expect("closed");
}

/// One that had to wait for the end of its poll would take ten seconds.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_waits_stops_when_it_is_told_to() {
    let store = TestStore::open().await.expect("a store");
    let client = store.client();
    let all = async {
        for concurrency in [1, 64].repeat(30) {
            let worker = client.saga_worker("idle").concurrency(concurrency);
            let worker = super::spawn(worker.activity("never", |_| async { Ok("".into()) }));
            tokio::time::sleep(Duration::from_millis(30)).await;
            worker.stop().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), all).await.expect("each stops at once");
    store.close().await.expect("closed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stale_worker_is_refused_and_a_repeated_end_is_told_what_is_recorded() {
    let store = TestStore::open().await.expect("a store");
    let client = store.client().with_deadline(Duration::from_secs(20));
    let short = Timeouts { start_to_close_ms: 50, ..Timeouts::default() };
    let saga = Saga::define("short", 1)
        .step(Step::activity("one").timeouts(short.clone()))
        .step(Step::txn("two").timeouts(short));
    client.define_saga(&saga.check().expect("a definition")).await.expect("defined");
    client.start_saga(SagaStart::new("short", "1")).await.expect("started");

    let first = client.poll_saga_tasks("short", "slow", 1).await.expect("polled").remove(0);
    // Its lease ends; the clock need not wait for that, since nothing else is to be done.
    let second = client.poll_saga_tasks("short", "quick", 1).await.expect("polled").remove(0);
    assert_eq!((first.attempt, second.attempt), (1, 2));
    assert!(second.fence > first.fence);
    let stale = client.complete_saga_task(&first.token, "late").await.expect_err("stale");
    assert_eq!(stale.kind, kvorum::ErrorKind::Denied, "{stale}");
    assert_eq!(client.complete_saga_task(&second.token, "in time").await.expect("told"), None);
    let again = client.complete_saga_task(&second.token, "again").await.expect("told again");
    assert_eq!(again.as_deref(), Some(&b"in time"[..]));
    let stale = client.complete_saga_task(&first.token, "late").await.expect_err("stale still");
    assert_eq!(stale.kind, kvorum::ErrorKind::Denied, "{stale}");
    store.close().await.expect("closed");
}
