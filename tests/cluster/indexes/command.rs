//! Indexes by the command line, and by the gRPC service that other languages use.

use std::process::Output;

use kvorum::client::IndexSpec;
use kvorum::rpc::v1::index_client::IndexClient;
use kvorum::rpc::v1::{
    CreateIndexRequest, GetIndexRequest, IndexQuery, ListDeadLettersRequest, ListIndexesRequest, QueryRequest,
};
use serde_json::Value;

use super::wait_ready;
use crate::support::{Cluster, kvorum};

/// Runs the command with JSON as its output; answers its exit code and the objects it printed.
fn run(cluster: &Cluster, arguments: &[&str]) -> (i32, Vec<Value>) {
    let mut command = kvorum();
    command.args(["--output", "json", "--endpoints", &cluster.endpoints().join(",")]);
    let Output { status, stdout, stderr } = command.args(arguments).output().expect("runs");
    let lines = if status.code() == Some(0) || status.code() == Some(1) { stdout } else { stderr };
    let text = String::from_utf8_lossy(&lines).into_owned();
    let objects = text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}")));
    (status.code().expect("an exit code"), objects.collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_is_made_asked_checked_and_dropped_by_commands() {
    let cluster = Cluster::start(3, 2).await;
    for n in 0..25 {
        let row = format!(r#"{{"team": "t{}", "score": {n}}}"#, n % 3);
        assert_eq!(run(&cluster, &["put", &format!("u/{n:02}"), &row]).0, 0);
    }
    assert_eq!(run(&cluster, &["put", "u/bad", r#"{"team": ["t1"], "score": 1}"#]).0, 0);
    let create = [
        "index",
        "create",
        "x",
        "--prefix",
        "u/",
        "--kind",
        "value",
        "--on",
        "$.team",
        "--on",
        "$.score desc",
    ];
    let (code, told) = run(&cluster, &[&create[..], &["--on-error", "dead-letter", "--wait"]].concat());
    assert_eq!((code, &told[0]["active"]["version"]), (0, &1.into()), "{told:?}");
    assert_eq!(run(&cluster, &[&create[..], &["--covering", "$.score"]].concat()).0, 2, "another definition");

    let query =
        ["query", "x", "--where", "team = \"t1\" and score < 20", "--limit", "4", "--rows", "--explain"];
    let (code, told) = run(&cluster, &query);
    let rows: Vec<&Value> = told.iter().filter(|row| row.get("key").is_some()).collect();
    let scores: Vec<_> = rows.iter().map(|row| row["fields"]["score"].as_u64()).collect();
    assert_eq!((code, scores), (0, [19, 16, 13, 10].map(Some).to_vec()));
    assert!(rows[0]["value"].as_str().is_some_and(|row| row.contains("\"score\": 19")), "{rows:?}");
    assert!(told.iter().any(|line| line.get("explain").is_some()));
    let end = told.last().expect("the end");
    let token = end["page_token"].as_str().expect("there are more");
    let (_, more) = run(&cluster, &["query", "x", "--where", query[3], "--page-token", token]);
    assert_eq!(
        (more.len(), &more[0]["fields"]["score"], &more[3]["page_token"]),
        (4, &7.into(), &Value::Null)
    );
    assert_eq!(more[3]["read_ts"], end["read_ts"]);

    let (code, told) = run(&cluster, &["index", "dead-letters", "x"]);
    assert_eq!((code, told.len(), &told[0]["key"]), (0, 1, &"u/bad".into()));
    assert_eq!(run(&cluster, &["index", "replay", "x"]).1[0]["dead_letters"], 1);
    let (code, told) = run(&cluster, &["index", "verify", "x"]);
    assert_eq!((code, &told[0]["rows"], &told[0]["differences"]), (0, &25.into(), &0.into()));
    let (code, told) = run(&cluster, &["index", "rebuild", "x", "--on", "$.score", "--wait"]);
    assert_eq!(
        (code, &told[0]["active"]["version"], &told[0]["active"]["on"][0]),
        (0, &2.into(), &"score=$.score".into())
    );
    let (_, told) = run(&cluster, &["index", "status", "x"]);
    assert_eq!(
        (&told[0]["progress"][0]["state"], &told[0]["progress"][0]["version"]),
        (&"ready".into(), &2.into())
    );
    assert_eq!(run(&cluster, &["query", "x", "--where", "team = \"t1\""]).0, 2, "it is not by team any more");
    assert_eq!(run(&cluster, &["index", "list"]).1[0]["indexes"].as_array().map(Vec::len), Some(1));
    assert_eq!(run(&cluster, &["index", "drop", "x", "--wait"]).0, 0);
    assert_eq!(run(&cluster, &["index", "drop", "x"]).0, 1);
    assert_eq!(run(&cluster, &["index", "status", "x"]).0, 1);
    assert_eq!(run(&cluster, &["query", "x"]).0, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_service_answers_as_the_library_does() {
    let cluster = Cluster::start(3, 2).await;
    let client = cluster.client().await;
    let bad = client.put("u/b", r#"{"team": {}}"#).await.expect("written").commit_ts;
    let written = client.put("u/a", r#"{"team": "red"}"#).await.expect("written").commit_ts;
    let mut service =
        IndexClient::connect(format!("http://{}", cluster.endpoints()[1])).await.expect("connected");
    let spec = IndexSpec::new("x", "count").prefix("u/").on("$.team").on_error("dead-letter");
    service.create_index(CreateIndexRequest { header: None, spec: Some(spec) }).await.expect("created");
    wait_ready(&client, "x").await;
    let query = QueryRequest {
        name: "x".into(),
        query: Some(IndexQuery { filter: "team = \"red\"".into(), ..IndexQuery::default() }),
        at_least_ts: written.0,
        ..QueryRequest::default()
    };
    let page = service.query(query.clone()).await.expect("answered").into_inner();
    assert_eq!(page.items.len(), 1);
    assert_eq!(page.items[0].json, r#"{"count":1,"fields":{"team":"red"}}"#);
    assert!(page.watermark >= written.0 && page.items[0].key.is_none());
    let letters = ListDeadLettersRequest { header: None, name: "x".into() };
    let mut letters = service.list_dead_letters(letters).await.expect("listed").into_inner();
    let letter = letters.message().await.expect("told").expect("one");
    assert_eq!(&letter.key[..], b"u/b");
    assert!(letter.commit_ts >= bad.0, "of the scan: when that was read");
    assert_eq!(letters.message().await.expect("told"), None);
    let status = service
        .get_index(GetIndexRequest { header: None, name: "x".into() })
        .await
        .expect("there")
        .into_inner();
    assert_eq!((&*status.progress[0].state, status.progress[0].dead_letters), ("ready", 1));
    let list = service.list_indexes(ListIndexesRequest { header: None }).await.expect("listed").into_inner();
    assert_eq!(list.indexes.len(), 1);
    let wrong = QueryRequest { query: None, ..query };
    assert_eq!(service.query(wrong).await.expect_err("no query").code(), tonic::Code::InvalidArgument);
    let none = GetIndexRequest { header: None, name: "y".into() };
    assert_eq!(service.get_index(none).await.expect_err("none").code(), tonic::Code::InvalidArgument);
}
