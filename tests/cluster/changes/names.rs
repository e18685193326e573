//! Named consumers, and the service for callers in any language.

use std::time::Duration;

use kvorum::ErrorKind;
use kvorum::client::{Cursor, CursorState, Event, FollowOptions, Since, Timestamp};
use kvorum::rpc::v1;
use kvorum::rpc::v1::changelog_client::ChangelogClient;
use kvorum::rpc::v1::follow_request::From;
use tokio_stream::StreamExt;

use super::read_until;
use crate::support::{Cluster, kvorum};

#[tokio::test(flavor = "multi_thread")]
async fn a_named_consumer_goes_on_where_it_was_and_has_one_owner() {
    let mut cluster = Cluster::start(3, 8).await;
    let client = cluster.client().await;
    let options = FollowOptions::prefix("k").since(Since::Oldest);
    let first = client.consumer("billing", options.clone()).await.expect("opens");
    assert!(matches!(first.cursor().state(), CursorState::Following { .. }), "it has begun");
    for n in 0..10 {
        client.put(format!("k{n}"), "1").await.expect("writes");
        client.put(format!("other{n}"), "1").await.expect("writes");
    }
    let mut stream = first.follow().expect("follows");
    let mut cursors = Vec::new();
    while cursors.len() < 6 {
        let followed = stream.next().await.expect("goes on");
        if let Event::Changes(changes) = &followed.event {
            assert!(changes.changes[0].key.starts_with(b"k"));
            cursors.push(followed.cursor());
        }
    }
    first.acknowledge(&cursors[2]).await.expect("kept");
    first.acknowledge(&cursors[4]).await.expect("kept");
    assert_eq!(first.acknowledge(&cursors[3]).await.expect_err("back").kind, ErrorKind::Invalid);
    // Its place survives whoever leads, and another process takes over behind what was acknowledged.
    let leader = cluster.system_leader().await;
    cluster.kill(leader);
    let second = client.consumer("billing", options.clone()).await.expect("opens");
    assert_eq!(second.cursor(), cursors[4]);
    assert_eq!(first.acknowledge(&cursors[5]).await.expect_err("not its own").kind, ErrorKind::Denied);
    let until = client.timestamp().await.expect("a timestamp");
    let mut stream = second.follow().expect("follows");
    let left = read_until(&mut stream, until).await;
    let told = left.iter().filter(|followed| matches!(followed.event, Event::Changes(_))).count();
    assert_eq!(told, 5, "ten were committed, and five acknowledged");
    let status = client.consumers().await.expect("lists").remove(0);
    let lag = status.lag_entries.expect("known");
    assert!((5..=30).contains(&lag), "at least its own five changes lie before it, at most all: {lag}");
    second.acknowledge(&left.last().expect("one").cursor()).await.expect("kept");
    let status = client.consumers().await.expect("lists").remove(0);
    assert_eq!((status.record.name.as_str(), status.lag_entries), ("billing", Some(0)));
    assert!(status.lag_ms.is_some() && !status.truncated);
    cluster.restart(leader);
    // Begun anew, dropped, and what is wrong.
    let third = client.reset_consumer("billing", options.clone()).await.expect("opens");
    assert_ne!(third.cursor(), left.last().expect("one").cursor());
    assert!(client.drop_consumer("billing").await.expect("drops"));
    assert!(!client.drop_consumer("billing").await.expect("is gone"));
    assert_eq!(third.acknowledge(&cursors[0]).await.expect_err("gone").kind, ErrorKind::Invalid);
    let named = client.consumer("Not A Name", options).await;
    assert_eq!(named.expect_err("no name").kind, ErrorKind::Invalid);
}

#[tokio::test(flavor = "multi_thread")]
async fn any_node_serves_the_changelog_to_any_language() {
    let cluster = Cluster::start(3, 8).await;
    let client = cluster.client().await;
    client.put("a", "1").await.expect("writes");
    client.put("z", "1").await.expect("writes");
    for addr in cluster.endpoints() {
        let mut service = ChangelogClient::connect(format!("http://{addr}")).await.expect("connects");
        let request = v1::FollowRequest {
            from: Some(From::Scan(true)),
            prefixes: vec!["a".into()],
            before_images: true,
            ..v1::FollowRequest::default()
        };
        let mut events = service.follow(request).await.expect("follows").into_inner();
        let mut written = None;
        let mut seen = Vec::new();
        let mut cursor = Vec::new();
        while seen.last() != Some(&"changes") {
            let reply = events.next().await.expect("goes on").expect("no error");
            for event in reply.events {
                cursor = event.cursor.to_vec();
                match event.event.expect("an event") {
                    v1::event::Event::Row(row) => {
                        assert_eq!(row.key, "a");
                        seen.push("row");
                    }
                    // The scan is over, so that what is written now is a change.
                    v1::event::Event::ProgressTs(_) if written.is_none() => {
                        written = Some(client.put("a", "2").await.expect("writes").commit_ts);
                    }
                    v1::event::Event::ProgressTs(_) => {}
                    v1::event::Event::Changes(changes) => {
                        assert_eq!(Some(Timestamp(changes.commit_ts)), written);
                        assert!(changes.changes[0].before.is_some());
                        seen.push("changes");
                    }
                }
            }
        }
        assert_eq!(seen, ["row", "changes"], "what was there, then what came");
        let refused = |from| v1::FollowRequest { from: Some(from), ..v1::FollowRequest::default() };
        cursor[20] ^= 1;
        for wrong in [From::Cursor(cursor.into()), From::AfterTs(u64::MAX), From::Scan(false)] {
            let error = service.follow(refused(wrong.clone())).await.expect_err("refused");
            assert_eq!(error.code(), tonic::Code::InvalidArgument, "{wrong:?}: {error}");
        }
        // In the future: nothing can be promised about it. It is known once the oracle was asked.
        let future = written.expect("written").plus(1 << 40);
        let mut events = service.follow(refused(From::AfterTs(future.0))).await.expect("begins").into_inner();
        let error = events.next().await.expect("an answer").expect_err("refused");
        assert_eq!(error.code(), tonic::Code::InvalidArgument, "{error}");
    }
    let future = Cursor::new(
        client.cluster_id().parse().expect("an id"),
        &[kvorum::types::KeyRange::all()],
        CursorState::Following { after: Timestamp::MAX },
    );
    let consumer = client.consumer("c", FollowOptions::all()).await.expect("opens");
    assert_eq!(consumer.acknowledge(&future).await.expect_err("not told yet").kind, ErrorKind::Invalid);
    client.changes_after(&[kvorum::types::KeyRange::all()], Timestamp::MAX).await.expect("counts none");
    client.put("still", "writes").await.expect("nobody believes in the future");
    let foreign =
        Cursor::new(kvorum::types::ClusterId(7), &[], CursorState::Following { after: Timestamp(1) });
    let error = client.changes(FollowOptions::all().since(Since::Cursor(foreign))).err().expect("refused");
    assert_eq!(error.kind, ErrorKind::Invalid);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_acknowledges_what_it_printed() {
    let cluster = Cluster::start(1, 1).await;
    let client = cluster.client().await;
    for n in 0..5 {
        client.put(format!("k{n}"), "v").await.expect("writes");
    }
    let watch = |limit: &'static str, more: &'static [&'static str]| {
        let mut command = tokio::process::Command::from(kvorum());
        command.arg("--endpoints").arg(cluster.endpoints().join(","));
        command.args(["watch", "--consumer", "c", "--since", "oldest", "--limit", limit]).args(more);
        async move {
            let output = tokio::time::timeout(Duration::from_secs(60), command.output()).await;
            let output = output.expect("ends").expect("runs");
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            let text = String::from_utf8(output.stdout).expect("text");
            text.lines().map(|line| line.split('\t').nth(2).expect("a key").to_owned()).collect::<Vec<_>>()
        }
    };
    assert_eq!(watch("2", &[]).await, ["k0", "k1"]);
    assert_eq!(watch("1", &[]).await, ["k2"]);
    assert_eq!(watch("2", &[]).await, ["k3", "k4"]);
    assert_eq!(watch("1", &["--restart"]).await, ["k0"]);
}
