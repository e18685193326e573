//! What people do to sagas: cancel and terminate at every step, pause, retry, resolve, reset, signal.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use kvorum::client::{SagaStart, SagaView};
use kvorum::saga::{CallDocument, Failure, Retry, Saga, Step};
use kvorum::testing::TestStore;
use kvorum::{Client, ErrorKind};

use super::{Log, Worker, define, note, noting, spawn, wait_at};
use crate::support::eventually;

const STEPS: [&str; 6] = ["flight", "hotel", "car", "tally", "payment", "mail"];

/// A worker of the trip whose steps, where the input names them, have `action` done to their saga while they run.
fn meddling(client: &Client, log: &Log, action: &'static str) -> Worker {
    let meddle = {
        let client = client.clone();
        move |task: kvorum::client::Task| {
            let client = client.clone();
            async move {
                if task.input() != task.step().as_bytes() || task.info().kind != "action" {
                    return;
                }
                let done = match action {
                    "cancel" => client.cancel_saga(task.saga_id(), "changed their mind").await,
                    _ => client.terminate_saga(task.saga_id(), "enough").await,
                };
                let is_past = task.step() == "mail" && action == "cancel";
                assert_eq!(done.is_err(), is_past, "{} at {}: {done:?}", action, task.step());
            }
        }
    };
    let (doing, undoing, counting) = (log.clone(), log.clone(), log.clone());
    let (meddle_first, meddle_too) = (meddle.clone(), meddle);
    let worker = client
        .saga_worker("trip")
        .activity("do", move |task| {
            note(&doing, &task);
            let meddle = meddle_first.clone();
            async move {
                meddle(task).await;
                Ok("".into())
            }
        })
        .activity("undo", move |task| {
            note(&undoing, &task);
            async move { Ok("".into()) }
        })
        .txn("count", move |task, txn| {
            note(&counting, &task);
            let meddle = meddle_too.clone();
            async move {
                txn.add(
                    format!("count/{}", task.saga_id()),
                    if task.info().kind == "action" { 1 } else { -1 },
                )?;
                meddle(task).await;
                Ok("".into())
            }
        });
    spawn(worker)
}

async fn run(client: &Client, id: &str, input: &str) -> SagaView {
    client.start_saga(SagaStart::new("trip", id).input(input.to_owned())).await.expect("started");
    client.wait_for_saga(id).await.expect("waited")
}

async fn counted(client: &Client, id: &str) -> i64 {
    let count = client.get(format!("count/{id}")).await.expect("read");
    count.map_or(0, |count| String::from_utf8_lossy(&count.value).parse().expect("a number"))
}

#[tokio::test(flavor = "multi_thread")]
async fn cancelled_at_every_step_it_is_undone_or_goes_on_past_the_pivot() {
    let store = TestStore::open().await.expect("a store");
    let (client, log) = (store.client(), Log::default());
    define(&client).await;
    let worker = meddling(&client, &log, "cancel");
    for step in STEPS {
        let saga = run(&client, step, step).await;
        let did = std::mem::take(&mut *log.lock());
        let (history, _) = client.saga_history(step, 0).await.expect("read");
        let lines: Vec<&str> = history.iter().map(|line| line.what.as_str()).collect();
        if matches!(step, "payment" | "mail") {
            assert_eq!(saga.status, "completed", "the pivot was done: {did:?}");
            assert_eq!(lines.contains(&"too_late_to_go_back"), step == "payment");
            assert!(did.iter().all(|one| !one.starts_with("undo")), "{did:?}");
            assert_eq!(counted(&client, step).await, 1);
            continue;
        }
        assert_eq!((saga.status.as_str(), saga.reason.as_str()), ("cancelled", "changed their mind"));
        // A transaction that runs when it is cancelled commits, and is undone; so the count is as before in any case.
        assert_eq!(counted(&client, step).await, 0, "{did:?}");
        let undone: Vec<&String> = did.iter().filter(|one| one.starts_with("undo")).collect();
        let began: Vec<&String> = did.iter().filter(|one| !one.starts_with("undo")).collect();
        assert!(began.iter().all(|one| undone.contains(&&format!("undo {one}"))), "{did:?}");
        assert_eq!(undone.last().map(|last| last.as_str()), Some("undo flight"), "{did:?}");
    }
    worker.stop().await;
    store.close().await.expect("closed");
}

#[tokio::test(flavor = "multi_thread")]
async fn terminated_at_every_step_it_ends_as_it_stands_and_says_so() {
    let store = TestStore::open().await.expect("a store");
    let (client, log) = (store.client(), Log::default());
    define(&client).await;
    let worker = meddling(&client, &log, "terminate");
    for step in STEPS {
        let saga = run(&client, step, step).await;
        let did = std::mem::take(&mut *log.lock());
        assert_eq!((saga.status.as_str(), saga.reason.as_str()), ("terminated", "enough"));
        assert!(did.iter().all(|one| !one.starts_with("undo")), "{did:?}");
        let (history, _) = client.saga_history(step, 0).await.expect("read");
        let told = &history.last().expect("its end").detail;
        assert!(told.starts_with("terminated; not undone: flight") || step == "flight", "{told}");
        // The transaction that ran could not commit any more.
        let is_past = matches!(step, "payment" | "mail");
        assert_eq!(counted(&client, step).await, i64::from(is_past), "{step}: {told}");
        assert_eq!(told.contains("tally"), is_past, "{step}: {told}");
        client.cancel_saga(step, "").await.expect_err("it has ended");
        assert!(!client.terminate_saga(step, "").await.expect("again"), "nothing was to be done");
    }
    worker.stop().await;
    store.close().await.expect("closed");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exhausted_compensation_pauses_shows_and_goes_on_after_retry() {
    let store = TestStore::open().await.expect("a store");
    let client = store.client();
    let twice = Retry { max_attempts: 2, initial_ms: 10, ..Retry::default() };
    let undo = CallDocument { activity: Some("undo".into()), retry: Some(twice), ..CallDocument::default() };
    let saga = Saga::define("stubborn", 1)
        .step(Step::activity("first").handler("do").compensation(undo.clone()))
        .step(Step::activity("second").handler("do").compensation(undo))
        .step(Step::activity("third").handler("refuse"));
    client.define_saga(&saga.check().expect("a definition")).await.expect("defined");
    let works = Arc::new(AtomicBool::new(false));
    let (log, seen) = (Log::default(), works.clone());
    let undoing = log.clone();
    let worker = client
        .saga_worker("stubborn")
        .activity("do", |_| async { Ok("".into()) })
        .activity("refuse", |_| async { Err(Failure::refused("no")) })
        .activity("undo", move |task| {
            note(&undoing, &task);
            let works = seen.load(Ordering::Relaxed) || task.step() != "second";
            async move { if works { Ok("".into()) } else { Err(Failure::new("out of order")) } }
        });
    let worker = spawn(worker);
    client.start_saga(SagaStart::new("stubborn", "1")).await.expect("started");
    let paused = eventually("it stands still", async || {
        let saga = client.saga("1").await.map_err(|error| error.to_string())?;
        if saga.status == "paused" { Ok(saga) } else { Err(saga.status) }
    })
    .await;
    assert!(paused.reason.contains("second") && paused.reason.contains("out of order"), "{}", paused.reason);
    let shown = paused.steps[1].compensation.clone().expect("it has one");
    assert_eq!((shown.status.as_str(), shown.attempts), ("failed", 2));
    let listed = client
        .sagas(kvorum::client::SagaFilter { status: "paused".into(), ..Default::default() })
        .all()
        .await
        .expect("listed");
    assert_eq!(listed.len(), 1);
    assert_eq!(*log.lock(), ["undo second", "undo second"], "nothing before it is undone yet");
    assert_eq!(client.resume_saga("1").await.expect_err("it has failed").kind, ErrorKind::Invalid);
    // Tried again in vain: it stands still again.
    client.retry_saga("1", None).await.expect("tried");
    eventually("it was tried again", async || match log.lock().len() {
        4 => Ok(()),
        tries => Err(format!("{tries} tries")),
    })
    .await;
    works.store(true, Ordering::Relaxed);
    eventually("it goes on", async || {
        client.retry_saga("1", Some("second")).await.map_err(|error| error.to_string())
    })
    .await;
    let ended = client.wait_for_saga("1").await.expect("waited");
    assert_eq!(ended.status, "compensated");
    assert_eq!(log.lock().last().map(String::as_str), Some("undo first"));
    worker.stop().await;
    store.close().await.expect("closed");
}

#[tokio::test(flavor = "multi_thread")]
async fn pause_resume_reset_signal_and_resolve() {
    let store = TestStore::open().await.expect("a store");
    let client = store.client();
    let saga = Saga::define("long", 1)
        .step(Step::activity("first").handler("do").compensate_with("undo"))
        .step(Step::signal("answer", "answer"))
        .step(Step::activity("pay").pivot().retry(Retry { max_attempts: 1, ..Retry::default() }))
        .step(Step::activity("last").handler("do"));
    client.define_saga(&saga.check().expect("a definition")).await.expect("defined");
    let log = Log::default();
    let worker = spawn(
        noting(&client, "long", &log).activity("pay", |_| async { Err(Failure::new("the line is dead")) }),
    );
    client.start_saga(SagaStart::new("long", "1")).await.expect("started");
    wait_at(&client, "1", "answer").await;
    assert!(client.pause_saga("1", "lunch").await.expect("paused"));
    assert!(!client.pause_saga("1", "lunch").await.expect("it was"));
    assert_eq!(client.saga("1").await.expect("read").status, "paused");
    client.signal_saga("1", "answer", "yes").await.expect("sent");
    assert!(client.resume_saga("1").await.expect("goes on"));
    // The pivot failed with an outcome that nobody knows, and nobody can be asked.
    let paused = eventually("it stands still", async || {
        let saga = client.saga("1").await.map_err(|error| error.to_string())?;
        if saga.status == "paused" { Ok(saga) } else { Err(saga.status) }
    })
    .await;
    assert!(paused.reason.contains("not known whether the pivot pay took effect"), "{}", paused.reason);
    assert_eq!(paused.steps[1].output.as_deref(), Some(&b"yes"[..]));
    // That is to be said also where it is not wanted any more; it is too late then.
    assert!(client.cancel_saga("1", "").await.expect("cancelled"));
    assert_eq!(client.saga("1").await.expect("read").status, "paused");
    client.resolve_saga("1", "pay", true).await.expect("it did");
    let ended = client.wait_for_saga("1").await.expect("waited");
    assert_eq!(ended.status, "completed");
    assert_eq!(std::mem::take(&mut *log.lock()), ["first", "last"]);

    // Back to the first step, and then cancelled.
    client.start_saga(SagaStart::new("long", "2")).await.expect("started");
    wait_at(&client, "2", "answer").await;
    client.reset_saga("2", "first").await.expect("goes back");
    eventually("it was undone and done again", async || {
        let did = log.lock().clone();
        if did.len() == 3 { Ok(()) } else { Err(format!("{did:?}")) }
    })
    .await;
    wait_at(&client, "2", "answer").await;
    client.reset_saga("2", "last").await.expect_err("not come to yet");
    client.reset_saga("2", "nothing").await.expect_err("no such step");
    client.cancel_saga("2", "").await.expect("cancelled");
    assert_eq!(client.wait_for_saga("2").await.expect("waited").status, "cancelled");
    assert_eq!(*log.lock(), ["first", "undo first", "first", "undo first"]);
    client.signal_saga("2", "answer", "").await.expect_err("it has ended");
    worker.stop().await;
    store.close().await.expect("closed");
}
