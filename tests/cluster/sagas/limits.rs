//! What sagas refuse since it is too much, and what is done once, however often it is asked for.

use kvorum::ErrorKind;
use kvorum::client::SagaStart;
use kvorum::rpc::v1;
use kvorum::rpc::v1::saga_client::SagaClient;
use kvorum::saga::{Saga, Step};
use kvorum::testing::TestStore;

use super::{Log, noting, spawn, wait_at};
use crate::support::{Cluster, eventually};

const KIB: usize = 1_024;

fn invalid(what: &str, error: &kvorum::Error) {
    assert_eq!(error.kind, ErrorKind::Invalid, "{what}: {error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn tasks_that_are_taken_together_are_one_message() {
    let store = TestStore::open().await.expect("a store");
    let client = store.client();
    let saga = Saga::define("large", 1).step(Step::activity("one"));
    client.define_saga(&saga.check().expect("a definition")).await.expect("defined");
    const SAGAS: usize = 100;
    for n in 0..SAGAS {
        let start = SagaStart::new("large", n.to_string()).input(vec![b'x'; 256 * KIB]);
        client.start_saga(start).await.expect("started");
    }
    let mut taken = 0;
    while taken < SAGAS {
        let tasks = client.poll_saga_tasks("large", "w", 256).await.expect("they fit");
        let bytes: usize = tasks.iter().map(|task| task.input.len()).sum();
        assert!(!tasks.is_empty() && bytes <= 4 * KIB * KIB, "{} tasks with {bytes} bytes", tasks.len());
        for task in &tasks {
            client.complete_saga_task(&task.token, "").await.expect("done");
        }
        taken += tasks.len();
    }
    store.close().await.expect("closed");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_saga_carries_is_bounded_whatever_it_comes_from() {
    let store = TestStore::open().await.expect("a store");
    let client = store.client();
    let step = |n: usize| match n {
        0..7 => Step::activity(format!("a{n}")).queue("by-hand"),
        _ => Step::txn(format!("t{n}")).handler("t"),
    };
    let saga =
        (0..8).fold(Saga::define("much", 1), |saga, n| saga.step(step(n))).step(Step::signal("s", "go"));
    client.define_saga(&saga.check().expect("a definition")).await.expect("defined");
    let full = vec![b'y'; 256 * KIB];
    let worker = client.saga_worker("much").txn("t", move |task, txn| {
        let output = vec![b'w'; if task.saga_id() == "1" { 256 * KIB } else { 100 * KIB }];
        async move {
            txn.put(format!("committed/{}", task.saga_id()), "")?;
            Ok(output.into())
        }
    });
    let worker = spawn(worker);
    for id in ["1", "2"] {
        let start = SagaStart::new("much", id).input(vec![b'x'; 128 * KIB]);
        client.start_saga(start).await.expect("started");
        for n in 0..7 {
            let task = client.poll_saga_tasks("by-hand", "w", 1).await.expect("polled").remove(0);
            assert_eq!(task.step, format!("a{n}"));
            if n == 6 {
                // 384 KiB are left, of which the output takes most.
                let too_much = client.signal_saga(id, "go", vec![b'z'; 256 * KIB + 1]).await;
                invalid("a signal", &too_much.expect_err("larger than any"));
                client.signal_saga(id, "go", vec![b'z'; KIB]).await.expect("there is room");
            }
            client.complete_saga_task(&task.token, full.clone()).await.expect("there is room");
        }
        let ended = client.wait_for_saga(id).await.expect("waited");
        let is_committed = client.get(format!("committed/{id}")).await.expect("read").is_some();
        match id {
            "1" => {
                assert_eq!((ended.status.as_str(), is_committed), ("compensated", false));
                assert!(ended.reason.contains("has room for 130048 of them"), "{}", ended.reason);
                let signal = client.signal_saga(id, "go", "").await;
                invalid("it has ended", &signal.expect_err("it has ended"));
            }
            _ => {
                assert_eq!((ended.status.as_str(), is_committed), ("completed", true), "{}", ended.reason);
                assert_eq!(ended.steps[7].output.as_ref().map(|output| output.len()), Some(100 * KIB));
                assert_eq!(ended.steps[8].output.as_ref().map(|output| output.len()), Some(KIB));
            }
        }
    }
    // What is too much together: of a signal, and of an output.
    let saga = (0..9).fold(Saga::define("more", 1), |saga, n| saga.step(Step::activity(format!("a{n}"))));
    client.define_saga(&saga.check().expect("a definition")).await.expect("defined");
    client.start_saga(SagaStart::new("more", "3")).await.expect("started");
    for n in 0..9 {
        let task = client.poll_saga_tasks("more", "w", 1).await.expect("polled").remove(0);
        let told = client.complete_saga_task(&task.token, full.clone()).await;
        match n {
            8 => invalid("an output", &told.expect_err("no room")),
            _ => drop(told.expect("there is room")),
        }
    }
    let signal = client.signal_saga("3", "go", "z").await;
    invalid("a signal", &signal.expect_err("no room"));
    worker.stop().await;
    store.close().await.expect("closed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_saga_keeps_so_many_signals_that_nobody_waits_for() {
    let store = TestStore::open().await.expect("a store");
    let client = store.client();
    let saga = Saga::define("patient", 1).step(Step::signal("s", "go"));
    client.define_saga(&saga.check().expect("a definition")).await.expect("defined");
    client.start_saga(SagaStart::new("patient", "1")).await.expect("started");
    for _ in 0..1_000 {
        client.signal_saga("1", "other", "").await.expect("kept");
    }
    let too_many = client.signal_saga("1", "other", "").await.expect_err("too many");
    invalid("too many", &too_many);
    assert_eq!(client.saga("1").await.expect("read").signals.len(), 1_000);
    store.close().await.expect("closed");
}

/// What is sent again, since its answer was lost, is done once: shown with requests that bear the same id.
#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_is_sent_again_is_done_once() {
    let cluster = Cluster::start(1, 1).await;
    let client = cluster.client().await;
    let log = Log::default();
    let saga = Saga::define("long", 1)
        .step(Step::activity("first").handler("do").compensate_with("undo"))
        .step(Step::signal("answer", "go"));
    client.define_saga(&saga.check().expect("a definition")).await.expect("defined");
    let worker = spawn(noting(&client, "long", &log));
    client.start_saga(SagaStart::new("long", "1")).await.expect("started");
    wait_at(&client, "1", "answer").await;
    let mut raw = SagaClient::connect(format!("http://{}", cluster.nodes[0].grpc)).await.expect("connected");
    let reset = |request_id: &[u8]| v1::ControlSagaRequest {
        header: None,
        control: Some(v1::SagaControl {
            id: "1".to_owned(),
            action: "reset".to_owned(),
            step: "first".to_owned(),
            request_id: request_id.to_vec().into(),
            ..Default::default()
        }),
    };
    let first = raw.control(reset(&[7; 16])).await.expect("goes back").into_inner();
    eventually("it was done again", async || {
        let did = log.lock().clone();
        if did == ["first", "undo first", "first"] { Ok(()) } else { Err(format!("{did:?}")) }
    })
    .await;
    wait_at(&client, "1", "answer").await;
    let again = raw.control(reset(&[7; 16])).await.expect("the same").into_inner();
    assert_eq!((first.already, again.already), (false, true));
    assert_eq!(log.lock().len(), 3);
    assert!(!raw.control(reset(&[8; 16])).await.expect("another one").into_inner().already);
    let refused = raw.control(reset(&[7; 3])).await.expect_err("no id");
    assert_eq!(refused.code(), tonic::Code::InvalidArgument, "{refused}");

    let schedule = kvorum::client::SagaSchedule {
        name: "yearly".into(),
        cron: "0 0 1 1 *".into(),
        start: Some(SagaStart { name: "long".into(), ..SagaStart::default() }),
        ..Default::default()
    };
    client.put_saga_schedule(schedule).await.expect("put");
    for request_id in [[1; 16], [1; 16], [2; 16], [1; 16]] {
        let trigger = v1::SagaTrigger { name: "yearly".into(), request_id: request_id.to_vec().into() };
        let request = v1::TriggerSagaScheduleRequest { header: None, trigger: Some(trigger) };
        raw.trigger_schedule(request).await.expect("triggered");
    }
    eventually("there were two runs", async || {
        let all = client.saga_schedules().await.map_err(|error| error.to_string())?;
        if all[0].runs == 2 { Ok(()) } else { Err(format!("{all:?}")) }
    })
    .await;
    worker.stop().await;
}
