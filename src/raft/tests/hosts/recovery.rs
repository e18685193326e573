//! What is lost and comes back: leaders, followers, connections, logs, cores.

use std::time::Duration;

use openraft::raft::VoteRequest;

use super::*;
use crate::raft::ProposeError;
use crate::raft::tests::cut_engine::{CutEngine, FAILED_SYNC};
use crate::raft::transport::{CallError, Kind};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_leader_is_replaced_and_catches_up_at_a_new_address() {
    let mut cluster = Cluster::start(3, Timing::fast()).await;
    cluster.create_group().await;
    let (group, token) = cluster.leader(None).await;
    let first = group.node();
    submit_all(&group, token, 1..101).await;
    drop(group);
    cluster.stop_node(first).await;
    let (group, token) = cluster.leader(None).await;
    submit_all(&group, token, 101..201).await;
    drop(group);
    cluster.start_node(first).await;
    cluster.converge().await;
    let moved = cluster.nodes[&first].record.grpc_addr.clone();
    for (id, other) in &cluster.nodes {
        let known = other.host.peers().get(first).map(|record| record.grpc_addr);
        assert!(*id == first || known.as_ref() == Some(&moved), "node {id} knows {known:?}");
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_is_cut_off_serves_nothing_once_there_is_another() {
    let cluster = Cluster::start(3, Timing::fast()).await;
    cluster.create_group().await;
    let (old, token) = cluster.leader(None).await;
    submit_all(&old, token, 1..11).await;
    for other in cluster.nodes.keys().filter(|id| **id != old.node()) {
        cluster.host(old.node()).faults().cut(*other);
        cluster.host(*other).faults().cut(old.node());
    }
    let lost = old.submit(token, put(11, "lost", 1)).await;
    let (new, new_token) = cluster.leader(Some(old.node())).await;
    // The lease of the first leader had run out before the second could be elected.
    assert_eq!(old.core().lease_point(old.env()), None);
    assert!(old.ensure_leader().await.is_err());
    submit_all(&new, new_token, 12..31).await;
    for node in cluster.nodes.values() {
        node.host.faults().heal();
    }
    // It was in the first leader's log and nowhere else: nobody can tell until another took its place.
    let outcome = lost.await;
    assert!(matches!(outcome, Err(ProposeError::Unknown { .. })), "{outcome:?}");
    cluster.converge().await;
    assert_eq!(old.state().closed, Timestamp(30));
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_quorum_nothing_is_served_and_it_goes_on_when_one_is_back() {
    let cluster = Cluster::start(3, Timing::fast()).await;
    cluster.create_group().await;
    let (leader, token) = cluster.leader(None).await;
    submit_all(&leader, token, 1..11).await;
    let others: Vec<NodeId> = cluster.nodes.keys().copied().filter(|id| *id != leader.node()).collect();
    for other in &others {
        cluster.host(leader.node()).faults().cut(*other);
        cluster.host(*other).faults().cut(node(6 - leader.node().0 - other.0));
    }
    eventually("reads to fail", async || leader.ensure_leader().await.is_err()).await;
    eventually("writes to be refused", async || {
        matches!(leader.submit(token, put(11, "a", 1)).await.await, Err(ProposeError::NotLeader { .. }))
    })
    .await;
    for node in cluster.nodes.values() {
        node.host.faults().heal();
    }
    let (leader, token) = cluster.leader(None).await;
    submit_all(&leader, token, 100..111).await;
    cluster.converge().await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_whose_log_was_cut_gets_a_snapshot() {
    let timing = Timing { log_keep_entries: 20, ..Timing::fast() };
    let mut cluster = Cluster::start(3, timing).await;
    cluster.create_group().await;
    let (group, token) = cluster.leader(None).await;
    submit_all(&group, token, 1..11).await;
    cluster.converge().await;
    let behind = *cluster.nodes.keys().find(|id| **id != group.node()).expect("a follower");
    let behind_at = cluster.group(behind).applied_index();
    drop(group);
    cluster.stop_node(behind).await;
    let (group, token) = cluster.leader(None).await;
    submit_all(&group, token, 11..1001).await;
    eventually("the log to be cut", async || group.status().first_log_index > behind_at + 100).await;
    drop(group);
    cluster.start_node(behind).await;
    cluster.converge().await;
    // The status is openraft's picture, which is published a moment after the rows are there.
    eventually("the status to say that it came by a snapshot", async || {
        cluster.group(behind).status().first_log_index > behind_at + 100
    })
    .await;
    let (group, token) = cluster.leader(None).await;
    submit_all(&group, token, 1001..1101).await;
    drop(group);
    // What came by a snapshot stands a restart.
    cluster.stop_node(behind).await;
    cluster.start_node(behind).await;
    cluster.converge().await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_core_that_stops_is_started_again() {
    let cluster = Cluster::start(3, Timing::fast()).await;
    cluster.create_group().await;
    let (group, token) = cluster.leader(None).await;
    submit_all(&group, token, 1..51).await;
    let mut leadership = group.watch_leadership();
    group.core().raft.shutdown().await.expect("stops");
    leadership
        .wait_for(|leadership| matches!(leadership, Leadership::Stopped { .. }))
        .await
        .expect("the group lives");
    let late = group.submit(token, put(51, "late", 1)).await.await;
    assert!(late.is_err(), "{late:?}");
    eventually("the core to run again", async || group.status().restarts == 1).await;
    assert!(!group.status().fault.is_empty());
    let (leader, token) = cluster.leader(None).await;
    submit_all(&leader, token, 60..71).await;
    cluster.converge().await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_whose_disk_failed_a_sync_stays_stopped() {
    let engine = CutEngine::default();
    let engines = BTreeMap::from([(node(1), Arc::new(engine.clone()) as SharedEngine)]);
    let cluster = Cluster::on(engines, Timing::fast()).await;
    cluster.create_group().await;
    let (group, token) = cluster.leader(None).await;
    submit_all(&group, token, 1..11).await;
    engine.fail_next_sync();
    let lost = group.submit(token, put(11, "lost", 1)).await.await;
    assert!(matches!(lost, Err(ProposeError::Unknown { .. })), "{lost:?}");
    // The entry is readable, and the disk works again; but nobody knows what of it is on disk. The bare
    // message is that of an attempt to start.
    eventually("an attempt to start again", async || {
        assert_eq!(group.status().restarts, 0, "it runs on entries that are not on disk");
        group.leadership() == Leadership::Stopped { fault: FAILED_SYNC.to_string() }
    })
    .await;
    assert!(group.ensure_leader().await.is_err());
    assert_eq!(group.state().closed, Timestamp(10), "what was lost was applied");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_replica_does_not_vote_for_the_length_of_a_lease() {
    // So long that nothing but the gate decides.
    let patient = Timing {
        election_min: Duration::from_secs(100),
        election_max: Duration::from_secs(200),
        quorum_loss_probe: Duration::from_secs(400),
        ..Timing::fast()
    };
    let mut cluster = Cluster::start(3, patient).await;
    cluster.create_group().await;
    let (group, token) = cluster.leader(None).await;
    submit_all(&group, token, 1..11).await;
    cluster.converge().await;
    let followers: Vec<NodeId> = cluster.nodes.keys().copied().filter(|id| *id != group.node()).collect();
    let (restarted, asking) = (followers[0], followers[1]);
    cluster.stop_node(restarted).await;
    cluster.start_node(restarted).await;
    let replica = cluster.group(restarted);
    assert!(replica.elect().await.expect_err("it must not stand").message.contains("must not stand"));

    let request = VoteRequest::new(
        openraft::Vote::new(token.term() + 10, asking),
        replica.core().metrics().last_applied.map(|mut log_id| {
            log_id.index += 1000;
            log_id
        }),
    );
    for kind in [Kind::Vote, Kind::PreVote] {
        let answer = ask_vote(&cluster, asking, restarted, kind, &request).await;
        match answer {
            Err(CallError::Refused { error, .. }) => {
                assert!(error.message.contains("does not vote"), "{error}");
            }
            other => panic!("the gate was open: {other:?}"),
        }
    }
    // A replica that was not restarted keeps its promise by itself: it answers no.
    let answer = ask_vote(&cluster, restarted, asking, Kind::PreVote, &request).await.expect("answers");
    let answer: openraft::raft::VoteResponse<crate::raft::TypeConfig> =
        codec::decode(&answer, "an answer").expect("decodes");
    assert!(!answer.vote_granted);
    cluster.stop().await;
}

async fn ask_vote(
    cluster: &Cluster,
    from: NodeId,
    to: NodeId,
    kind: Kind,
    request: &VoteRequest<crate::raft::TypeConfig>,
) -> Result<Bytes, CallError> {
    let body = Bytes::from(codec::encode(request));
    let transport = &cluster.group(from).env().transport.clone();
    let mut answer = None;
    // The connection may still be the one from before the restart.
    eventually("an answer", async || {
        let asked = transport.call(to, kind, SHARD.0, body.clone(), Duration::from_secs(20)).await;
        let answered = !matches!(asked, Err(CallError::Unreachable { .. }));
        answer = Some(asked);
        answered
    })
    .await;
    answer.expect("answered")
}
