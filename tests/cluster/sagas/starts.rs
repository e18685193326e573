//! Starting sagas: within transactions, by schedules, by other sagas; and finding them again.

use kvorum::ErrorKind;
use kvorum::client::{SagaFilter, SagaSchedule, SagaStart};
use kvorum::saga::{Failure, Saga, Step};
use kvorum::testing::TestStore;

use super::{Log, define, noting, spawn, work};
use crate::support::eventually;

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_starts_sagas_or_does_nothing() {
    let store = TestStore::open().await.expect("a store");
    let (client, log) = (store.client(), Log::default());
    define(&client).await;
    let worker = work(&client, &log);
    let start = |id: &str| SagaStart::new("trip", id).input("well").attribute("customer", "42");
    let order = async |id: &'static str, also: Option<&'static str>| {
        client
            .transact(|txn| async move {
                txn.put(format!("order/{id}"), "ordered")?;
                txn.start_saga(start(id))?;
                also.map_or(Ok(()), |also| txn.start_saga(start(also)))
            })
            .await
    };
    order("1", Some("2")).await.expect("committed");
    for id in ["1", "2"] {
        assert_eq!(client.wait_for_saga(id).await.expect("waited").status, "completed");
    }
    // One whose id is taken: nothing of the transaction is done.
    let refused = order("3", Some("1")).await.expect_err("the id is taken");
    assert_eq!(refused.kind, ErrorKind::Invalid, "{refused}");
    assert!(client.get("order/3").await.expect("read").is_none());
    assert_eq!(client.saga("3").await.expect_err("never started").kind, ErrorKind::Invalid);
    // Without any other write, and without such a saga.
    client.transact(|txn| async move { txn.start_saga(start("4")) }).await.expect("committed");
    assert_eq!(client.wait_for_saga("4").await.expect("waited").status, "completed");
    let unknown = client.transact(|txn| async move { txn.start_saga(SagaStart::new("none", "5")) }).await;
    assert_eq!(unknown.expect_err("no such saga").kind, ErrorKind::Invalid);

    let find = async |filter: SagaFilter| {
        let mut found: Vec<String> =
            client.sagas(filter).all().await.expect("listed").into_iter().map(|saga| saga.id).collect();
        found.sort();
        found
    };
    let customer = |value: &str| [("customer".to_owned(), value.to_owned())].into();
    assert_eq!(find(SagaFilter { attributes: customer("42"), ..Default::default() }).await, ["1", "2", "4"]);
    assert_eq!(find(SagaFilter { attributes: customer("4"), ..Default::default() }).await, [""; 0]);
    assert_eq!(find(SagaFilter { status: "completed".into(), ..Default::default() }).await, ["1", "2", "4"]);
    let named = |name: &str| SagaFilter { name: name.into(), status: "closed".into(), ..Default::default() };
    assert_eq!(find(named("trip")).await, ["1", "2", "4"]);
    assert_eq!(find(named("tri")).await, [""; 0]);
    assert_eq!(find(SagaFilter { status: "open".into(), ..Default::default() }).await, [""; 0]);
    worker.stop().await;
    store.close().await.expect("closed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_child_is_a_step_and_goes_back_with_its_parent() {
    let store = TestStore::open().await.expect("a store");
    let (client, log) = (store.client(), Log::default());
    let child = Saga::define("child", 1)
        .queue("family")
        .step(Step::activity("inner").handler("do").compensate_with("undo"))
        .step(Step::signal("wait", "go"));
    let parent = Saga::define("parent", 1)
        .queue("family")
        .step(Step::activity("before").handler("do").compensate_with("undo"))
        .step(Step::child("kid", "child"))
        .step(Step::activity("after").handler("do"));
    for saga in [child, parent] {
        client.define_saga(&saga.check().expect("a definition")).await.expect("defined");
    }
    let worker = spawn(noting(&client, "family", &log));
    for (id, wanted) in [("1", "completed"), ("2", "cancelled")] {
        client.start_saga(SagaStart::new("parent", id)).await.expect("started");
        let kid = eventually("the child waits", async || {
            let filter = SagaFilter { name: "child".into(), at: "wait".into(), ..Default::default() };
            let found = client.sagas(filter).all().await.map_err(|error| error.to_string())?;
            found.into_iter().find(|saga| saga.parent == id).ok_or("none is there yet".to_owned())
        })
        .await;
        // Its id is nobody else's to start.
        let taken = client.start_saga(SagaStart::new("child", &kid.id)).await.expect_err("it is a step");
        assert_eq!(taken.kind, ErrorKind::Invalid, "{taken}");
        match wanted {
            "completed" => client.signal_saga(&kid.id, "go", "gone").await.expect("sent"),
            _ => drop(client.cancel_saga(id, "").await.expect("cancelled")),
        }
        let ended = client.wait_for_saga(id).await.expect("waited");
        assert_eq!(ended.status, wanted);
        let kid = client.wait_for_saga(&kid.id).await.expect("waited");
        assert_eq!(kid.status, wanted);
        if wanted == "completed" {
            assert_eq!(
                ended.steps[1].output.as_deref(),
                Some(&b"gone"[..]),
                "what the child's last step came to"
            );
        }
    }
    let did = log.lock().clone();
    assert_eq!(did, ["before", "inner", "after", "before", "inner", "undo inner", "undo before"]);
    worker.stop().await;
    store.close().await.expect("closed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schedule_starts_sagas_at_its_times_and_not_twice() {
    let store = TestStore::open().await.expect("a store");
    let client = store.client();
    let tick = Saga::define("tick", 1).retention_ms(365 * 24 * 3_600_000).step(Step::activity("tock"));
    client.define_saga(&tick.check().expect("a definition")).await.expect("defined");
    let worker = spawn(client.saga_worker("tick").activity("tock", |_| async { Ok("".into()) }));
    let schedule = |cron: &str, zone: &str| SagaSchedule {
        name: "hourly".into(),
        cron: cron.into(),
        time_zone: zone.into(),
        start: Some(SagaStart { name: "tick".into(), ..SagaStart::default() }),
        ..SagaSchedule::default()
    };
    for (cron, zone) in [("every hour", ""), ("0 * * * *", "Europe/Nowhere"), ("61 * * * *", "")] {
        let refused = client.put_saga_schedule(schedule(cron, zone)).await.expect_err(cron);
        assert_eq!(refused.kind, ErrorKind::Invalid, "{refused}");
    }
    let mut unknown = schedule("0 * * * *", "");
    unknown.start = Some(SagaStart { name: "none".into(), ..SagaStart::default() });
    client.put_saga_schedule(unknown).await.expect_err("no such saga");
    // The clock is put forward to each of its times at once: so it is dropped once there were some.
    client.put_saga_schedule(schedule("30 9 * * MON-FRI", "Europe/Berlin")).await.expect("put");
    eventually("there were runs", async || {
        let all = client.saga_schedules().await.map_err(|error| error.to_string())?;
        match all.first() {
            Some(one) if one.runs >= 5 => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    assert!(client.drop_saga_schedule("hourly").await.expect("dropped"));
    assert!(!client.drop_saga_schedule("hourly").await.expect("gone"));
    assert_eq!(client.saga_schedules().await.expect("listed"), []);
    let runs =
        client.sagas(SagaFilter { name: "tick".into(), ..Default::default() }).all().await.expect("listed");
    let mut ids: Vec<String> = runs.iter().map(|run| run.id.clone()).collect();
    ids.sort();
    let before = ids.len();
    ids.dedup();
    assert!(ids.len() == before && before >= 5);
    for id in &ids {
        // Half past nine in Berlin is 7:30 or 8:30 in UTC.
        assert!(id.ends_with("T07:30:00Z") || id.ends_with("T08:30:00Z"), "{id}");
    }
    client.trigger_saga_schedule("hourly").await.expect_err("there is none");
    worker.stop().await;
    store.close().await.expect("closed");
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_input_is_refused_and_loses_nothing() {
    let store = TestStore::open().await.expect("a store");
    let client = store.client();
    define(&client).await;
    let invalid =
        |what: &str, error: kvorum::Error| assert_eq!(error.kind, ErrorKind::Invalid, "{what}: {error}");
    let large = vec![b'x'; 256 * 1024 + 1];
    let starts = [
        ("no id", SagaStart::new("trip", "")),
        ("a long id", SagaStart::new("trip", "x".repeat(201))),
        ("a control character", SagaStart::new("trip", "a\0b")),
        ("no name", SagaStart::new("", "1")),
        ("a wrong name", SagaStart::new("a b", "1")),
        ("an unknown name", SagaStart::new("none", "1")),
        ("an unknown version", SagaStart::new("trip", "1").version(9)),
        ("a large input", SagaStart::new("trip", "1").input(large.clone())),
        ("a large priority", SagaStart::new("trip", "1").priority(10)),
        ("a large attribute", SagaStart::new("trip", "1").attribute("a", "x".repeat(257))),
        ("a wrong attribute", SagaStart::new("trip", "1").attribute("a b", "x")),
        (
            "many attributes",
            (0..17).fold(SagaStart::new("trip", "1"), |s, n| s.attribute(format!("a{n}"), "")),
        ),
    ];
    for (what, start) in starts {
        invalid(what, client.start_saga(start.clone()).await.expect_err(what));
        invalid(
            what,
            client
                .transact(|txn| {
                    let start = start.clone();
                    async move { txn.start_saga(start) }
                })
                .await
                .expect_err(what),
        );
    }
    assert_eq!(client.sagas(SagaFilter::default()).all().await.expect("listed"), []);
    client.start_saga(SagaStart::new("trip", "1")).await.expect("started");
    let task = client.poll_saga_tasks("trip", "w", 1).await.expect("polled").remove(0);
    invalid("no token", client.complete_saga_task("", "").await.expect_err("no token"));
    invalid("no token", client.complete_saga_task("1.0.action", "").await.expect_err("no token"));
    invalid("no saga", client.complete_saga_task("1.0.action.none", "").await.expect_err("no saga"));
    invalid("no step", client.complete_saga_task("1.99.action.1", "").await.expect_err("no step"));
    invalid("never given", client.complete_saga_task("99.0.action.1", "").await.expect_err("never given"));
    invalid("too large", client.complete_saga_task(&task.token, large.clone()).await.expect_err("too large"));
    invalid("too large", client.signal_saga("1", "s", large).await.expect_err("too large"));
    invalid("no signal", client.signal_saga("1", "", "").await.expect_err("no name"));
    invalid("no step", client.reset_saga("1", "none").await.expect_err("no step"));
    invalid("no queue", client.poll_saga_tasks("a b", "w", 1).await.expect_err("no queue"));
    invalid("a rate", client.set_saga_queue("trip", -1.0).await.expect_err("a rate"));
    invalid("a rate", client.set_saga_queue("trip", f64::NAN).await.expect_err("a rate"));
    let status = SagaFilter { status: "wrong".into(), ..Default::default() };
    invalid("a status", client.sagas(status).all().await.expect_err("a status"));
    invalid(
        "a version",
        client
            .define_saga(&Saga::define("trip", 1).step(Step::activity("other")).check().expect("fine"))
            .await
            .expect_err("another definition"),
    );
    client.fail_saga_task(&task.token, Failure::refused("enough")).await.expect("told");
    assert_eq!(client.wait_for_saga("1").await.expect("waited").status, "compensated");
    store.close().await.expect("closed");
}
