//! A consumer process that is killed over and over, while transactions go over all shards and leaders are killed.

use std::collections::BTreeMap;
use std::process::Stdio;
use std::str::FromStr;
use std::time::Duration;

use bytes::Bytes;
use kvorum::client::{Before, Change, Changes, Cursor, Event, FollowOptions, ScanOptions, Since, Timestamp};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader};

use super::read_until;
use super::writers::{Writers, replay};
use crate::support::{Cluster, kvorum};

/// How often the consumer is killed.
const KILLS: usize = 100;
/// After so many kills of the consumer a node is killed.
const KILLS_A_NODE: usize = 12;

/// What a consumer process printed: changes, and the cursor of the last line that came whole.
#[derive(Default)]
struct Printed {
    told: Vec<Changes>,
    cursor: Option<String>,
    progress: Timestamp,
}

impl Printed {
    fn line(&mut self, line: &str) {
        // The last line of a killed process may be half a line: it was not told, and comes again.
        let Ok(event) = serde_json::from_str::<Value>(line) else { return };
        match event["event"].as_str() {
            Some("changes") => self.told.push(changes(&event)),
            Some("progress") => self.progress = Timestamp(event["ts"].as_u64().expect("a timestamp")),
            other => panic!("an event of kind {other:?}"),
        }
        self.cursor = Some(event["cursor"].as_str().expect("a cursor").to_owned());
    }
}

fn changes(event: &Value) -> Changes {
    let text = |value: &Value| value.as_str().map(|text| Bytes::from(text.to_owned()));
    let change = |change: &Value| Change {
        key: text(&change["key"]).expect("a key"),
        value: text(&change["value"]),
        create_ts: Timestamp(change["create_ts"].as_u64().unwrap_or_default()),
        version: change["version"].as_u64().unwrap_or_default(),
        before: text(&change["before"]).map_or(Before::Absent, Before::Value),
    };
    Changes {
        commit_ts: Timestamp(event["commit_ts"].as_u64().expect("a timestamp")),
        changes: event["changes"].as_array().expect("changes").iter().map(change).collect(),
    }
}

/// Runs the consumer from its last cursor for a while, or until it has told of everything up to a timestamp.
async fn consume(
    cluster: &Cluster,
    printed: &mut Printed,
    began: Timestamp,
    end: Result<Duration, Timestamp>,
) {
    let since = printed.cursor.clone().unwrap_or_else(|| began.to_string());
    let mut command = tokio::process::Command::from(kvorum());
    command.arg("--endpoints").arg(cluster.endpoints().join(","));
    command.args(["--output", "json", "watch", "--before-images", "--progress", "--since", &since]);
    if let Err(until) = end {
        command.args(["--until", &until.to_string()]);
    }
    let mut child = command.stdout(Stdio::piped()).kill_on_drop(true).spawn().expect("starts");
    let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    let reading = async {
        while let Some(line) = lines.next_line().await.expect("reads") {
            printed.line(&line);
        }
    };
    match end {
        Ok(time) => {
            let _ = tokio::time::timeout(time, reading).await;
            child.kill().await.expect("killed");
            // What it had printed by then counts too.
            while let Some(line) = lines.next_line().await.expect("reads") {
                printed.line(&line);
            }
        }
        Err(_) => {
            reading.await;
            assert!(child.wait().await.expect("ends").success());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_that_is_killed_a_hundred_times_is_told_everything_once_and_in_order() {
    let mut cluster = Cluster::start(3, 8).await;
    let client = cluster.client().await;
    let began = client.timestamp().await.expect("a timestamp");
    let writers = Writers::start(&client, 8);
    let mut printed = Printed::default();
    let mut node_kills = 0;
    for kill in 1..=KILLS {
        let time = Duration::from_millis(rand::random_range(60..500));
        consume(&cluster, &mut printed, began, Ok(time)).await;
        if kill % KILLS_A_NODE == 0 {
            let leader = cluster.leader_of(&super::key(rand::random_range(0..60))).await;
            cluster.kill(leader);
            node_kills += 1;
            tokio::time::sleep(Duration::from_millis(300)).await;
            cluster.restart(leader);
        }
    }
    let record = writers.stop().await;
    cluster.wait_serving().await;
    let end = client.timestamp().await.expect("a timestamp");
    consume(&cluster, &mut printed, began, Err(end)).await;
    assert!(printed.progress >= end);
    println!(
        "{} transactions told over {KILLS} kills of the consumer and {node_kills} of leaders; {} acknowledged, {} of \
         unknown fate",
        printed.told.len(),
        record.committed.lock().len(),
        record.open.lock().len()
    );
    assert!(printed.told.len() > 500, "there was too little to be told: {}", printed.told.len());
    record.check(&printed.told);
    let replayed = replay(BTreeMap::new(), &printed.told);
    let rows = client.scan(ScanOptions::all().at(end)).collect_rows().await.expect("reads");
    let rows: BTreeMap<Bytes, Bytes> = rows.into_iter().map(|row| (row.key, row.record.value)).collect();
    assert_eq!(replayed, rows, "the changes replayed are the data");
    Cursor::from_str(&printed.cursor.expect("a cursor")).expect("one that can be read");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scan_goes_over_into_following_without_a_gap_or_a_repeat() {
    let cluster = Cluster::start(3, 8).await;
    let client = cluster.client().await;
    let writers = Writers::start(&client, 8);
    tokio::time::sleep(Duration::from_secs(1)).await;
    // Two at once: of all keys, and of a few, whose transactions are told in part.
    let part = FollowOptions::prefix("0").and_prefix("m").and_prefix("7/2").before_images();
    let whole = FollowOptions::all().before_images();
    for options in [whole, part] {
        let mut rows = BTreeMap::new();
        let mut told = Vec::new();
        let mut stream = client.changes(options.clone().since(Since::Scan)).expect("follows");
        // Resumed from a cursor in the middle of the scan, and once more behind it.
        for resume in 0..3 {
            let mut left = 20;
            let cursor = loop {
                let followed = stream.next().await.expect("goes on");
                match &followed.event {
                    Event::Row(row) => {
                        let twice = rows.insert(row.key.clone(), row.record.value.clone());
                        assert_eq!(twice, None, "{:?} came twice", row.key);
                    }
                    Event::Changes(changes) => told.push(changes.clone()),
                    Event::Progress(_) => {}
                }
                left -= 1;
                if left == 0 {
                    break followed.cursor();
                }
            };
            let options = options.clone().since(Since::Cursor(cursor));
            stream = client.changes(options).unwrap_or_else(|error| panic!("resumes ({resume}): {error}"));
        }
        let until = client.timestamp().await.expect("a timestamp");
        for followed in read_until(&mut stream, until).await {
            match followed.event {
                Event::Row(row) => assert_eq!(rows.insert(row.key, row.record.value), None),
                Event::Changes(changes) => told.push(changes),
                Event::Progress(_) => {}
            }
        }
        assert!(told.is_sorted_by(|a, b| a.commit_ts < b.commit_ts));
        told.retain(|changes| changes.commit_ts <= until);
        let replayed = replay(rows, &told);
        let mut expected = BTreeMap::new();
        let ranges =
            if options.ranges.is_empty() { vec![kvorum::types::KeyRange::all()] } else { options.ranges };
        for range in ranges {
            let scan =
                ScanOptions { start: range.start, end: range.end, at: Some(until), ..ScanOptions::all() };
            let rows = client.scan(scan).collect_rows().await.expect("reads");
            expected.extend(rows.into_iter().map(|row| (row.key, row.record.value)));
        }
        assert_eq!(replayed, expected);
    }
    writers.stop().await;
}
