//! Nodes that end and start again: moved, wiped, with strange or newer data; and a node on its own.

use std::fs;
use std::process::{Command, ExitStatus};

use kvorum::{Embedded, ErrorKind};
use rustix::process::{Pid, Resource, Rlimit, prlimit};
use tempfile::tempdir;

use crate::support::{Cluster, Process, client_of, eventually, kvorum, turn};

/// Waits until a node's log says this.
async fn wait_log(node: &Process, wanted: &str) {
    eventually(&format!("the log says {wanted:?}"), async || {
        if node.log().contains(wanted) { Ok(()) } else { Err("not yet".to_owned()) }
    })
    .await;
}

fn assert_clean(exit: ExitStatus) {
    assert_eq!(exit.code(), Some(0), "SIGTERM ends a node well");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_at_a_new_address_is_found() {
    let mut cluster = Cluster::start(3, 4).await;
    let client = cluster.client().await;
    client.put("key", "1").await.expect("written");
    assert_clean(cluster.terminate(1).await);
    client.put("key", "2").await.expect("written by two of three");

    let moved = Process::new(cluster.dir.path(), "unused");
    let old = std::mem::replace(&mut cluster.nodes[1].grpc, moved.grpc.clone());
    cluster.nodes[1].http.clone_from(&moved.http);
    cluster.restart(1);
    cluster.wait_serving().await;
    cluster.wait_equal().await;
    assert_eq!(cluster.replica_rows(1).await.get(&b"key"[..]).expect("there"), "2");

    // The others need it from here on.
    cluster.kill(2);
    client.put("key", "3").await.expect("written with the node that moved");
    let nodes = eventually("the map has the new address", async || {
        let nodes = client.map().await.map_err(|error| error.to_string())?.nodes;
        if nodes.iter().any(|node| node.id == 2 && node.grpc_addr == moved.grpc) {
            Ok(nodes)
        } else {
            Err(format!("{nodes:?}"))
        }
    })
    .await;
    assert!(nodes.iter().all(|node| node.grpc_addr != old), "the old address is forgotten: {nodes:?}");
    cluster.restart(2);
    cluster.wait_equal().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wiped_node_is_refused_under_its_old_address_and_joins_under_a_new_one() {
    let mut cluster = Cluster::start(3, 4).await;
    let client = cluster.client().await;
    client.put("key", "1").await.expect("written");
    cluster.kill(2);
    fs::remove_dir_all(&cluster.nodes[2].data).expect("wiped");
    cluster.restart(2);
    wait_log(&cluster.nodes[2], "a wiped node can't go on under its old id").await;
    let status = cluster.nodes[2].status().await.expect("it answers");
    assert_eq!((status.state.as_str(), status.cluster_id.as_str()), ("waiting", ""), "it is no member");
    client.put("key", "2").await.expect("the others go on");

    // Under an address that nobody had, it is a new node.
    assert_clean(cluster.terminate(2).await);
    let fresh = Process::new(cluster.dir.path(), "unused");
    cluster.nodes[2].grpc.clone_from(&fresh.grpc);
    cluster.restart(2);
    cluster.nodes[2].wait_state("serving").await;
    let status = cluster.nodes[2].status().await.expect("it answers");
    assert_eq!(status.node.expect("it says who it is").id, 4, "ids are not given twice");
    assert_eq!(client.get("key").await.expect("read").expect("there").value, "2");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_with_another_clusters_data_is_refused() {
    let mut cluster = Cluster::start(3, 4).await;
    let client = cluster.client().await;
    client.put("key", "ours").await.expect("written");
    // A store of its own, which then comes under the address of one of the cluster's nodes.
    let mut foreign = Process::new(cluster.dir.path(), "foreign");
    foreign.start();
    foreign.wait_state("serving").await;
    client_of([&foreign.grpc]).await.put("key", "theirs").await.expect("written");
    assert_clean(foreign.terminate().await);
    cluster.kill(2);
    foreign.grpc.clone_from(&cluster.nodes[2].grpc);
    foreign.join.clone_from(&cluster.nodes[0].join);
    foreign.start();

    wait_log(&foreign, "nodes of two clusters never mix").await;
    foreign.wait_state("serving").await;
    for _ in 0..20 {
        // It may ask the stranger, who refuses; it never takes the other cluster's value.
        match client.get("key").await {
            Ok(found) => assert_eq!(found.expect("there").value, "ours"),
            Err(error) => assert_eq!(error.kind, ErrorKind::Denied, "{error}"),
        }
    }
    let wanted = client.cluster_id().parse().expect("an id");
    let other = kvorum::Client::builder().endpoints([&foreign.grpc]).cluster_id(wanted).connect().await;
    assert_eq!(other.map(|_| ()).expect_err("another cluster").kind, ErrorKind::Denied);
    assert_eq!(
        client_of([&foreign.grpc]).await.get("key").await.expect("read").expect("there").value,
        "theirs"
    );

    foreign.kill();
    cluster.restart(2);
    cluster.wait_serving().await;
    client.put("key", "still ours").await.expect("written");
    cluster.wait_equal().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn data_of_an_unknown_format_is_refused_and_left_alone() {
    let _turn = turn().await;
    let dir = tempdir().expect("a directory");
    let mut node = Process::new(dir.path(), "node");
    node.start();
    node.wait_state("serving").await;
    client_of([&node.grpc]).await.put("key", "value").await.expect("written");
    assert_clean(node.terminate().await);

    let file = node.data.join("node.json");
    let good = fs::read_to_string(&file).expect("the identity");
    let newer = good.replace("\"format\": 2", "\"format\": 99");
    assert_ne!(newer, good, "the identity names its format: {good}");
    for (bad, why) in [(newer.as_str(), "data format 99"), ("{", "damaged")] {
        fs::write(&file, bad).expect("written");
        node.start();
        let exit = node.exit().await;
        assert_eq!(exit.code(), Some(i32::from(ErrorKind::Corrupt.exit_code())), "{}", node.log());
        assert!(node.log().contains(why), "{}", node.log());
    }
    fs::write(&file, good).expect("written");
    node.start();
    node.wait_state("serving").await;
    let found = client_of([&node.grpc]).await.get("key").await.expect("read").expect("there");
    assert_eq!(found.value, "value");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_single_node_keeps_its_data_and_is_the_embedded_store() {
    let _turn = turn().await;
    let dir = tempdir().expect("a directory");
    let mut node = Process::new(dir.path(), "node");
    let store = Embedded::open(&node.data).await.expect("opened");
    store.client().put("embedded", "1").await.expect("written");
    store.close().await.expect("closed");

    node.start();
    node.wait_state("serving").await;
    let client = client_of([&node.grpc]).await;
    assert_eq!(client.get("embedded").await.expect("read").expect("there").value, "1");
    client.put("served", "2").await.expect("written");
    let twice = Embedded::open(&node.data).await.err();
    let twice = twice.expect("another process has it open");
    assert_eq!(twice.kind, ErrorKind::Unavailable, "{twice}");
    assert_clean(node.terminate().await);

    let store = Embedded::open(&node.data).await.expect("opened");
    for (key, value) in [("embedded", "1"), ("served", "2")] {
        assert_eq!(store.client().get(key).await.expect("read").expect("there").value, value);
    }
    // Dropped without being closed, it lets go of the store in the background.
    store.client().put("embedded", "3").await.expect("written");
    drop(store);
    eventually("the store is free", async || {
        let again = Embedded::open(&node.data).await.map_err(|error| error.to_string())?;
        again.close().await.map_err(|error| error.to_string())
    })
    .await;
    node.start();
    node.wait_state("serving").await;
    assert_eq!(client_of([&node.grpc]).await.get("embedded").await.expect("read").expect("there").value, "3");
    node.kill();
    node.start();
    node.wait_state("serving").await;
    assert_clean(node.terminate().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_that_are_stopped_under_load_end_well_and_lose_nothing() {
    let mut cluster = Cluster::start(3, 4).await;
    let client = cluster.client().await;
    let written = async {
        for n in 0..200_u32 {
            client.put(format!("{}/{n}", n % 10), n.to_string()).await.expect("written");
        }
    };
    let nodes = &mut cluster.nodes;
    let mut handed_over = 0;
    let stopped = async {
        for node in nodes.iter_mut() {
            assert_clean(node.terminate().await);
            handed_over += usize::from(node.log().contains("handed over what this node led"));
            node.start();
            node.wait_state("serving").await;
        }
    };
    tokio::join!(written, stopped);
    // One after the other, so that who leads anything has somebody to give it to.
    assert!(handed_over > 0, "no node handed over what it led");
    cluster.wait_serving().await;
    cluster.wait_equal().await;
    let rows = cluster.replica_rows(0).await;
    for n in 0..200_u32 {
        assert_eq!(rows.get(format!("{}/{n}", n % 10).as_bytes()).expect("there"), &n.to_string());
    }
}

/// The program under a shell that has it live on where a file becomes larger than it may: its writes fail then, as
/// on a full disk.
fn ignoring_file_limits() -> Command {
    let program = kvorum();
    let mut shell = Command::new("sh");
    shell.args(["-c", "trap '' XFSZ; exec \"$0\" \"$@\""]).arg(program.get_program());
    for (name, value) in program.get_envs() {
        match value {
            Some(value) => shell.env(name, value),
            None => shell.env_remove(name),
        };
    }
    shell
}

fn limit_files(node: &Process, size_bytes: Option<u64>) {
    let pid = Pid::from_raw(i32::try_from(node.pid()).expect("a process id"));
    let limit = Rlimit { current: size_bytes, maximum: None };
    prlimit(pid, Resource::Fsize, limit).expect("limited");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_whose_disk_is_full_ends_and_goes_on_when_there_is_room() {
    const ROWS: usize = 200;
    let mut cluster = Cluster::start(3, 4).await;
    cluster.kill(2);
    cluster.nodes[2].start_as(ignoring_file_limits());
    cluster.wait_serving().await;
    let client = cluster.client().await;
    // Much for what it says, and less than what is written: each row is in the log and in the data.
    limit_files(&cluster.nodes[2], Some(128 * 1024));
    let value = "v".repeat(1000);
    for at in 0..ROWS {
        client.put(format!("key-{at}"), value.clone()).await.expect("written by two of three");
    }
    let exit = cluster.nodes[2].exit().await;
    assert_eq!(exit.code(), Some(3), "it says that it is unavailable");
    let log = cluster.nodes[2].log();
    assert!(
        log.contains("refused a write") && log.contains("start the node again"),
        "it says why and what to do"
    );

    cluster.restart(2);
    cluster.wait_serving().await;
    client.put("key-0", "new").await.expect("written");
    cluster.wait_equal().await;
    let rows = cluster.replica_rows(2).await;
    assert_eq!(rows.len(), ROWS, "all that was written meanwhile is there");
    assert_eq!(rows.get(&b"key-0"[..]).expect("there"), "new");
}
