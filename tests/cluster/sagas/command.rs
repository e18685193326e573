//! Sagas by the command line.

use std::process::Output;

use kvorum::saga::{Failure, Saga, Step};
use serde_json::Value;

use super::spawn;
use crate::support::{Cluster, kvorum};

fn run(cluster: &Cluster, arguments: &[&str]) -> (i32, Vec<Value>) {
    let mut command = kvorum();
    command.args(["--output", "json", "--endpoints", &cluster.endpoints().join(",")]);
    let Output { status, stdout, stderr } = command.args(arguments).output().expect("runs");
    let lines = if matches!(status.code(), Some(0 | 1)) { stdout } else { stderr };
    let text = String::from_utf8_lossy(&lines).into_owned();
    let objects = text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}")));
    (status.code().expect("an exit code"), objects.collect())
}

fn text(cluster: &Cluster, arguments: &[&str]) -> String {
    let mut command = kvorum();
    command.args(["--endpoints", &cluster.endpoints().join(",")]);
    let Output { stdout, .. } = command.args(arguments).output().expect("runs");
    String::from_utf8_lossy(&stdout).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_saga_is_defined_started_shown_and_steered_by_commands() {
    let cluster = Cluster::start(1, 1).await;
    let client = cluster.client().await;
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("trip.yaml");
    let yaml = "
name: trip
version: 1
steps:
  - { name: flight, activity: do, compensation: { activity: undo } }
  - parallel:
      - { name: hotel, activity: do, compensation: { activity: undo } }
      - { name: car, activity: do, compensation: { activity: undo } }
  - { name: approval, signal: approved }
  - { name: payment, activity: pay, pivot: true }
";
    std::fs::write(&file, yaml).expect("written");
    let path = file.to_str().expect("a path");
    assert_eq!(run(&cluster, &["saga", "define", path, "--check"]).0, 0);
    assert_eq!(run(&cluster, &["saga", "definitions", "trip"]).0, 1, "it was only checked");
    let (code, told) = run(&cluster, &["saga", "define", path]);
    assert_eq!((code, &told[0]["steps"][1]["parallel"][1]["name"]), (0, &"car".into()));
    std::fs::write(&file, yaml.replace("car", "bus")).expect("written");
    assert_eq!(run(&cluster, &["saga", "define", path]).0, 2, "the version has another definition");
    std::fs::write(&file, "name: trip\nsteps: 7\n").expect("written");
    assert_eq!(run(&cluster, &["saga", "define", path]).0, 2);

    let worker = client
        .saga_worker("trip")
        .activity("do", |_| async { Ok("done".into()) })
        .activity("undo", |_| async { Ok("".into()) })
        .activity("pay", |task| async move {
            if task.input() == "poor" { Err(Failure::refused("no money")) } else { Ok("paid".into()) }
        });
    let worker = spawn(worker);
    let start = ["saga", "start", "trip", "t-1", "--input", "rich", "--attribute", "customer=42"];
    let (code, told) = run(&cluster, &start);
    assert_eq!((code, &told[0]["already"]), (0, &false.into()));
    assert_eq!(run(&cluster, &start).1[0]["already"], true);
    assert_eq!(run(&cluster, &["saga", "signal", "t-1", "approved", "by Ada"]).0, 0);
    let (code, told) = run(&cluster, &["saga", "wait", "t-1"]);
    assert_eq!((code, &told[0]["status"]), (0, &"completed".into()), "{told:?}");
    assert_eq!(told[0]["steps"][3]["output"], "by Ada");

    assert_eq!(run(&cluster, &["saga", "start", "trip", "t-2", "--input", "poor"]).0, 0);
    assert_eq!(run(&cluster, &["saga", "pause", "t-2", "--reason", "lunch"]).1[0]["changed"], true);
    let (_, told) = run(&cluster, &["saga", "list", "--status", "paused"]);
    assert_eq!((told.len(), &told[0]["id"], &told[0]["reason"]), (1, &"t-2".into(), &"lunch".into()));
    assert_eq!(run(&cluster, &["saga", "resume", "t-2"]).0, 0);
    assert_eq!(run(&cluster, &["saga", "signal", "t-2", "approved"]).0, 0);
    let (code, told) = run(&cluster, &["saga", "wait", "t-2"]);
    assert_eq!(
        (code, &told[0]["status"]),
        (1, &"compensated".into()),
        "one that is not completed is no success"
    );
    let drawn = text(&cluster, &["saga", "show", "t-2"]);
    for part in [
        "t-2  trip v1  compensated",
        "step payment failed: no money",
        "↶ flight",
        "┌ ↶ hotel",
        "└ ↶ car",
        "✗ payment (pivot)",
    ] {
        assert!(drawn.contains(part), "{part:?} is not in:\n{drawn}");
    }
    let history = text(&cluster, &["saga", "history", "t-2"]);
    assert!(history.contains("hotel compensation completed (attempt 1)"), "{history}");
    assert_eq!(run(&cluster, &["saga", "list", "--attribute", "customer=42"]).1.len(), 1);
    assert_eq!(run(&cluster, &["saga", "list", "--since", "1h", "--limit", "1"]).1.len(), 1);
    for (arguments, code) in [
        (&["saga", "show", "none"][..], 2),
        (&["saga", "cancel", "t-1"], 2),
        (&["saga", "retry", "t-1"], 2),
        (&["saga", "list", "--status", "odd"], 2),
        (&["saga", "schedule", "put", "s", "--saga", "trip", "--cron", "bad"], 2),
        (&["saga", "schedule", "drop", "s"], 1),
        (&["saga", "queue", "set", "trip", "--rate", "50"], 0),
    ] {
        assert_eq!(run(&cluster, arguments).0, code, "{arguments:?}");
    }
    assert_eq!(run(&cluster, &["saga", "queue", "list"]).1[0]["queues"][0]["rate_per_s"], 50.0);
    let put = [
        "saga",
        "schedule",
        "put",
        "nightly",
        "--saga",
        "trip",
        "--cron",
        "30 2 * * *",
        "--time-zone",
        "Asia/Tokyo",
    ];
    assert_eq!(run(&cluster, &put).0, 0);
    let (_, told) = run(&cluster, &["saga", "schedule", "list"]);
    let next = told[0]["schedules"][0]["next_unix_ms"].as_u64().expect("a time");
    assert_eq!(next / 60_000 % (24 * 60), 17 * 60 + 30, "half past two in Tokyo, in UTC");
    assert_eq!(run(&cluster, &["saga", "schedule", "trigger", "nightly"]).0, 0);
    worker.stop().await;
    // A definition made by calls is the same as one that was written.
    let made = Saga::define("x", 1).step(Step::activity("a")).check().expect("fine");
    client.define_saga(&made).await.expect("defined");
    assert_eq!(run(&cluster, &["saga", "definitions"]).1[0]["definitions"].as_array().map(Vec::len), Some(2));
}
