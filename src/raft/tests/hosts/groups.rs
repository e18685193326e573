//! A group at work: proposals, reads, hand-over, housekeeping.

use std::time::Duration;

use super::*;
use crate::raft::{ProposeError, Role};
use crate::types::ErrorKind;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn proposals_are_applied_in_order_on_all_replicas() {
    let cluster = Cluster::start(3, Timing::fast()).await;
    cluster.create_group().await;
    let (group, token) = cluster.leader(None).await;
    // Timestamps must rise in the log, so any other order would be refused by apply.
    submit_all(&group, token, 1..301).await;
    cluster.converge().await;
    assert_eq!(group.state().closed, Timestamp(300));
    let status = group.status();
    assert_eq!((status.role, status.leader, status.voters.len()), (Role::Leader, Some(group.node()), 3));
    assert!(status.log_bytes > 300 * 100, "{status:?}");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proposal_under_another_leadership_is_certainly_refused() {
    let cluster = Cluster::start(3, Timing::fast()).await;
    cluster.create_group().await;
    let (group, token) = cluster.leader(None).await;
    let mut stale = token;
    stale.0.term += 1;
    let refused = group.submit(stale, put(1, "a", 1)).await.await;
    assert!(matches!(refused, Err(ProposeError::NotLeader { .. })), "{refused:?}");
    let follower = cluster.nodes.keys().find(|id| **id != group.node()).expect("a follower");
    let refused = cluster.group(*follower).submit(token, put(1, "a", 1)).await.await;
    assert!(matches!(refused, Err(ProposeError::NotLeader { .. })), "{refused:?}");
    let error = cluster.group(*follower).ensure_leader().await.expect_err("it follows");
    assert_eq!(error.kind, ErrorKind::Moved, "{error}");
    assert_eq!(error.moved.and_then(|moved| moved.leader).map(|hint| hint.node), Some(group.node()));
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_single_replica_leads_itself_and_again_after_a_restart() {
    let mut cluster = Cluster::start(1, Timing::fast()).await;
    cluster.create_group().await;
    let (group, token) = cluster.leader(None).await;
    submit_all(&group, token, 1..51).await;
    drop(group);
    cluster.stop_node(node(1)).await;
    cluster.start_node(node(1)).await;
    let (group, token) = cluster.leader(None).await;
    assert_eq!(group.state().closed, Timestamp(50));
    submit_all(&group, token, 51..61).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_leadership_is_handed_to_a_follower_that_lives() {
    let cluster = Cluster::start(3, Timing::fast()).await;
    cluster.create_group().await;
    let (group, token) = cluster.leader(None).await;
    submit_all(&group, token, 1..11).await;
    cluster.converge().await;
    let followers: Vec<NodeId> = cluster.nodes.keys().copied().filter(|id| *id != group.node()).collect();
    let limit = Duration::from_secs(20);
    let error = group.transfer_leader(node(9), limit).await.expect_err("no voter");
    assert_eq!(error.kind, ErrorKind::Invalid, "{error}");
    let error = cluster.group(followers[0]).transfer_leader(followers[1], limit).await.expect_err("follows");
    assert_eq!(error.kind, ErrorKind::Moved, "{error}");
    group.transfer_leader(followers[0], limit).await.expect("handed over");
    let (next, next_token) = cluster.leader(None).await;
    assert_eq!(next.node(), followers[0]);
    assert!(next_token.term() > token.term());
    submit_all(&next, next_token, 11..21).await;
    cluster.converge().await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn creating_a_group_again_changes_nothing() {
    let cluster = Cluster::start(1, Timing::fast()).await;
    cluster.create_group().await;
    let (group, token) = cluster.leader(None).await;
    submit_all(&group, token, 1..11).await;
    cluster.create_group().await;
    let (again, _) = cluster.leader(None).await;
    assert!(Arc::ptr_eq(&group, &again));
    assert_eq!(again.state().closed, Timestamp(10));
    let error = cluster.host(node(1)).create_group(descriptor(vec![node(2)])).await.err().expect("not here");
    assert_eq!(error.kind, ErrorKind::Invalid, "{error}");
    drop((group, again));
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_is_kept_short_by_entries_by_bytes_and_by_age() {
    let short = [
        Timing { log_keep_entries: 40, ..Timing::fast() },
        Timing { log_keep_bytes: 4000, ..Timing::fast() },
        Timing { log_keep_age: Duration::from_millis(300), ..Timing::fast() },
    ];
    for timing in short {
        let cluster = Cluster::start(1, timing.clone()).await;
        cluster.create_group().await;
        let (group, token) = cluster.leader(None).await;
        submit_all(&group, token, 1..201).await;
        eventually("the log to be cut", async || {
            let status = group.status();
            let kept = status.applied_index + 1 - status.first_log_index;
            status.first_log_index > 50
                && kept <= 40.max(if timing.log_keep_entries == 40 { 40 } else { 150 })
        })
        .await;
        submit_all(&group, token, 201..211).await;
        cluster.stop().await;
    }
}

/// Not a test of anything: prints how fast three hosts on RocksDB apply small entries.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "prints a measurement"]
async fn measure_submits() {
    use crate::engine::{RocksEngine, RocksOptions};
    let directory = tempfile::tempdir().expect("a directory");
    let rocks = |id: u64| {
        let path = directory.path().join(id.to_string());
        Arc::new(RocksEngine::open(&path, &RocksOptions::default()).expect("opens")) as SharedEngine
    };
    let on_rocks = (1..=3).map(|id| (node(id), rocks(id))).collect();
    measure("RocksDB", Cluster::on(on_rocks, Timing::default()).await).await;
    measure("memory", Cluster::start(3, Timing::default()).await).await;
}

async fn measure(what: &str, cluster: Cluster) {
    cluster.create_group().await;
    let (group, token) = cluster.leader(None).await;
    let mut timestamp = 1;
    for in_flight in [1, 16, 256] {
        let started = std::time::Instant::now();
        let mut entries = 0;
        while started.elapsed() < Duration::from_secs(4) {
            submit_all(&group, token, timestamp..timestamp + in_flight).await;
            timestamp += in_flight;
            entries += in_flight;
        }
        let per_second = entries as f64 / started.elapsed().as_secs_f64();
        let mut reads = 0;
        let started = std::time::Instant::now();
        while started.elapsed() < Duration::from_secs(1) {
            group.ensure_leader().await.expect("leads");
            reads += 1;
        }
        println!("{what}, {in_flight} in flight: {per_second:.0} entries/s; {reads} lease checks/s");
    }
    cluster.converge().await;
    cluster.stop().await;
}
