//! Consumers that stop or are slow hold nothing back, and are told what they have missed.

use std::time::Duration;

use bytes::Bytes;
use kvorum::ErrorKind;
use kvorum::client::{Event, FollowOptions, ScanOptions, Since, Timestamp};
use tokio::time::Instant;

use super::read_until;
use crate::support::{Cluster, eventually};

/// How long changes are kept in these tests.
const RETENTION: &str = "4s";
const WRITERS: u64 = 16;
const VALUE_BYTES: usize = 2000;

/// Writes for a while; how many were written a second.
async fn write_for(client: &kvorum::Client, time: Duration) -> f64 {
    let until = Instant::now() + time;
    let mut tasks = tokio::task::JoinSet::new();
    for writer in 0..WRITERS {
        let client = client.clone();
        tasks.spawn(async move {
            let mut count = 0_u64;
            while Instant::now() < until {
                let value = Bytes::from(vec![b'v'; VALUE_BYTES]);
                client.put(super::key(writer * 3 + count % 3), value).await.expect("writes");
                count += 1;
            }
            count
        });
    }
    let counts = tasks.join_all().await;
    counts.into_iter().sum::<u64>() as f64 / time.as_secs_f64()
}

/// How many changes lie in the changelogs, as far as they are kept: from the oldest on. An error where they are cut
/// meanwhile.
async fn kept(client: &kvorum::Client) -> kvorum::Result<usize> {
    let until = client.timestamp().await?;
    let mut stream = client.changes(FollowOptions::all().since(Since::Oldest))?;
    stream.reach(until);
    let mut count = 0;
    loop {
        match stream.next().await?.event {
            Event::Changes(_) => count += 1,
            Event::Progress(ts) if ts >= until => return Ok(count),
            Event::Progress(_) | Event::Row(_) => {}
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn consumers_that_stop_or_are_slow_hold_nothing_back() {
    let cluster = Cluster::start_with(3, 8, &[("KVORUM_CHANGELOG_RETENTION", RETENTION)]).await;
    let client = cluster.client().await;
    client.put(super::key(0), "first").await.expect("writes");
    let alone = write_for(&client, Duration::from_secs(5)).await;
    // One stops for good after its first event, and one takes its time with each.
    let options = FollowOptions::all().since(Since::Oldest);
    let stopped = client.consumer("stopped", options.clone()).await.expect("opens");
    let first = stopped.follow().expect("follows").next().await.expect("an event");
    stopped.acknowledge(&first.cursor()).await.expect("kept");
    let slow = client.consumer("slow", options.clone()).await.expect("opens");
    let crawl = tokio::spawn(async move {
        let mut stream = slow.follow().expect("follows");
        loop {
            match stream.next().await {
                Ok(followed) => slow.acknowledge(&followed.cursor()).await.expect("kept"),
                Err(error) => return error,
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    let beside = write_for(&client, Duration::from_secs(20)).await;
    let held = eventually("what is kept is counted", async || {
        kept(&client).await.map_err(|error| error.to_string())
    });
    let (held, written) = (held.await as f64, beside * 20.0);
    println!(
        "{alone:.0} writes/s alone, {beside:.0} beside both; {held:.0} of {written:.0} changes are kept"
    );
    // Four seconds, and what a step of the collection and the words between nodes take.
    assert!(held < written / 2.0, "what they have not read is kept");
    let error = crawl.await.expect("the slow one ends");
    assert_eq!((error.kind, error.oldest.is_some()), (ErrorKind::TooOld, true), "{error}");
    let again = client.consumer("stopped", options.clone()).await.expect("opens");
    let error = again.follow().expect("follows").next().await.expect_err("it is too late");
    let oldest = error.oldest.expect("it says from where on");
    assert_eq!(error.kind, ErrorKind::TooOld, "{error}");
    assert!(oldest > Timestamp::ZERO);
    eventually("the list says so", async || {
        let consumers = client.consumers().await.map_err(|error| error.to_string())?;
        match consumers.iter().all(|consumer| consumer.truncated) {
            true => Ok(()),
            false => Err(format!("{consumers:?}")),
        }
    })
    .await;
    // The documented way: a scan, and following from it.
    let anew = client.reset_consumer("stopped", options.since(Since::Scan)).await.expect("opens");
    let mut stream = anew.follow().expect("follows");
    let until = client.timestamp().await.expect("a timestamp");
    let rows = read_until(&mut stream, until).await;
    let found = rows.iter().filter(|followed| matches!(followed.event, Event::Row(_))).count();
    let there = client.scan(ScanOptions::all().at(until)).collect_rows().await.expect("reads").len();
    assert_eq!(found, there);
    anew.acknowledge(&rows.last().expect("progress").cursor()).await.expect("kept");
    let written = client.put("after", "all").await.expect("writes");
    loop {
        if let Event::Changes(changes) = stream.next().await.expect("goes on").event {
            assert_eq!((changes.commit_ts, &changes.changes[0].key[..]), (written.commit_ts, &b"after"[..]));
            break;
        }
    }
    cluster.wait_equal().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changelog_is_cut_by_size_too() {
    let cluster =
        Cluster::start_with(3, 1, &[("KVORUM_CHANGELOG_MIB", "1"), ("KVORUM_CHANGELOG_RETENTION", "20s")])
            .await;
    let client = cluster.client().await;
    let began = client.put(super::key(0), "first").await.expect("writes").commit_ts;
    write_for(&client, Duration::from_secs(6)).await;
    eventually("the changelog is cut", async || {
        // Its time has not come: only its size can have cut it.
        match client.changes_after(&[kvorum::types::KeyRange::all()], began.before()).await {
            Err(error) if error.oldest.is_some() => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    let most = 1024 * 1024 / VALUE_BYTES;
    eventually("no more is kept than may be", async || match kept(&client).await {
        Ok(kept) if kept <= most => Ok(()),
        Err(error) => Err(error.to_string()),
        Ok(kept) => Err(format!("{kept} changes of {VALUE_BYTES} bytes are kept, and {most} come to a MiB")),
    })
    .await;
}
