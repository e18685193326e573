//! Nothing acknowledged is lost, and nothing is half there, however the nodes are killed.

use crate::support::Cluster;

#[tokio::test(flavor = "multi_thread")]
async fn a_write_outlives_a_kill_of_all_nodes() {
    let mut cluster = Cluster::start(3, 8).await;
    let client = cluster.client().await;
    client.put("key", "value").await.expect("written");
    for at in 0..3 {
        cluster.kill(at);
    }
    for at in 0..3 {
        cluster.restart(at);
    }
    cluster.wait_serving().await;
    assert_eq!(client.get("key").await.expect("read").expect("there").value, "value");
    cluster.wait_equal().await;
}
