//! Reads over a cluster whose nodes fail on order: which replica is asked, and which is left alone.

use std::time::Duration;

use super::fake::{FakeCluster, Fault};
use super::{Client, HedgeAfter, Policy, ReadAt};
use crate::ErrorKind;
use crate::types::NodeId;

fn endpoints(cluster: &FakeCluster) -> Vec<String> {
    (1..=3).map(|node| cluster.addr(node)).collect()
}

#[tokio::test]
async fn reads_are_spread_over_replicas_and_one_that_fails_is_left_alone() {
    let cluster = FakeCluster::start().await;
    let client = cluster.client().await;
    client.put("b", "1").await.expect("put");
    for _ in 0..300 {
        let got = client.read("b", ReadAt::Latest).await.expect("read");
        assert_eq!(got.record.expect("there").value, "1");
    }
    let by_node = cluster.world.lock().requests.clone();
    assert!(by_node.values().all(|requests| *requests > 50), "{by_node:?}");

    cluster.world.lock().always.insert(NodeId(2), Fault::Answer(ErrorKind::Unavailable));
    cluster.world.lock().requests.clear();
    for _ in 0..300 {
        client.get("b").await.expect("another replica answers at once").expect("there");
    }
    let asked = cluster.world.lock().requests.get(&NodeId(2)).copied().unwrap_or(0);
    assert!((1..60).contains(&asked), "node 2 failed all, and was asked {asked} times");
}

#[tokio::test]
async fn a_read_goes_elsewhere_where_a_replica_does_not_answer() {
    let cluster = FakeCluster::start().await;
    let client = cluster.client().await;
    client.put("b", "1").await.expect("put");
    cluster.world.lock().always.insert(NodeId(1), Fault::Swallow);
    for _ in 0..6 {
        client.get("b").await.expect("another replica answers").expect("there");
    }
    let explained = client.get_explained("b", ReadAt::Latest).await.expect("read");
    assert!(!explained.route.is_empty(), "it says why");
    let hedged = Client::builder().endpoints(endpoints(&cluster)).hedge(HedgeAfter::Auto, 0).connect().await;
    assert_eq!(hedged.map(|_| ()).expect_err("a budget of nothing").kind, ErrorKind::Invalid);
}

#[tokio::test]
async fn a_second_copy_answers_where_the_first_does_not() {
    let cluster = FakeCluster::start().await;
    let hedge_after = HedgeAfter::Fixed(Duration::from_millis(20));
    let builder = Client::builder().endpoints(endpoints(&cluster)).hedge(hedge_after, 100);
    let client = builder.read_policy(Policy::Leader).connect().await.expect("connected");
    client.put("b", "1").await.expect("put");
    cluster.world.lock().always.insert(NodeId(1), Fault::Swallow);
    let got = client.get_explained("b", ReadAt::Latest).await.expect("answered by the second copy");
    assert_ne!(got.served.expect("it says who").node, NodeId(1));
    assert!(got.route.iter().any(|step| step.contains("a second copy went to node")), "{:?}", got.route);
}
