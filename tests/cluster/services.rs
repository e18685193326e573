//! The services that any program uses, on every node of a cluster: unary calls whose keys are led elsewhere,
//! reads over shards, health, reflection, HTTP, and the command line from end to end.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Output;

use bytes::Bytes;
use futures::stream::{self, StreamExt};
use kvorum::Client;
use kvorum::client::ScanOptions;
use kvorum::rpc::v1;
use rand::{Rng, SeedableRng};
use serde_json::Value;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;

use crate::raw;
use crate::support::{Cluster, kvorum};

const SHARDS: u32 = 8;

/// Eight keys, one a shard of a cluster that was cut evenly by first bytes.
fn spread() -> Vec<Bytes> {
    (0..8_u8).map(|n| Bytes::copy_from_slice(&[n * 32 + 5, b'k'])).collect()
}

/// Every unary call on every node, for keys of every shard: most are led elsewhere.
#[tokio::test(flavor = "multi_thread")]
async fn any_node_serves_any_key() {
    let cluster = Cluster::start(3, SHARDS).await;
    let map = cluster.client().await.map().await.expect("a map");
    assert_eq!(
        map.shards.len(),
        SHARDS as usize + 5,
        "and those of the system, of indexes, and three of sagas"
    );
    for (at, node) in cluster.nodes.iter().enumerate() {
        let mut kv = raw::kv(&node.grpc).await;
        for key in spread() {
            let value = format!("from node {at}");
            let header = None;
            let put =
                v1::PutRequest { header: header.clone(), key: key.clone(), value: value.clone().into() };
            let written = kv.put(put).await.expect("put").into_inner();
            let got = kv.get(v1::GetRequest { key: key.clone(), ..Default::default() }).await.expect("got");
            let got = got.into_inner();
            let record = got.record.expect("held");
            assert_eq!((record.value, record.commit_ts), (Bytes::from(value), written.commit_ts));
            assert_eq!(got.served.expect("it says who").node, at as u64 + 1, "the node answers by itself");
            let swap = v1::CompareAndSwapRequest {
                key: key.clone(),
                expect: Some(v1::Expect { expect: Some(v1::expect::Expect::Version(written.version)) }),
                value: Some("5".into()),
                ..Default::default()
            };
            assert!(kv.compare_and_swap(swap).await.expect("swapped").into_inner().swapped);
            let add = v1::AddRequest { header: header.clone(), key: key.clone(), delta: -7 };
            assert_eq!(kv.add(add).await.expect("added").into_inner().value, -2);
            let step = |step| v1::Step { step: Some(step) };
            let then =
                vec![step(v1::step::Step::Get(key.clone())), step(v1::step::Step::Delete(key.clone()))];
            let batch = kv.batch(v1::BatchRequest { then, ..Default::default() }).await.expect("a batch");
            assert_eq!(batch.into_inner().results.len(), 2);
            let deleted = kv.delete(v1::DeleteRequest { header, key }).await.expect("deleted").into_inner();
            assert!(!deleted.existed, "the batch removed it");
        }
    }
    reads_of_many_keys_are_of_one_time(&cluster).await;
    retries_take_effect_once(&cluster).await;
    health_reflection_and_http_answer(&cluster).await;
    cluster.wait_equal().await;
}

/// A writer raises all counters in turn: at one timestamp no later one is ahead of an earlier one, and none is
/// behind by more than one.
async fn reads_of_many_keys_are_of_one_time(cluster: &Cluster) {
    let client = cluster.client().await;
    let keys = spread();
    let stop = tokio_util::sync::CancellationToken::new();
    let writer = {
        let (client, keys, stop) = (client.clone(), keys.clone(), stop.clone());
        tokio::spawn(async move {
            while !stop.is_cancelled() {
                for key in &keys {
                    client.add(key.clone(), 1).await.expect("added");
                }
            }
        })
    };
    let mut distinct = 0;
    let mut last = Vec::new();
    for round in 0..60 {
        let mut kv = raw::kv(&cluster.nodes[round % cluster.nodes.len()].grpc).await;
        let request = v1::GetManyRequest { keys: keys.clone(), ..Default::default() };
        let reply = kv.get_many(request).await.expect("read").into_inner();
        let counts: Vec<u64> = reply
            .records
            .iter()
            .map(|one| one.record.as_ref().map_or("0".into(), |record| record.value.clone()))
            .map(|text| std::str::from_utf8(&text).expect("text").parse().expect("a number"))
            .collect();
        assert!(
            counts.is_sorted_by(|a, b| a >= b) && counts[0] - counts[7] <= 1,
            "no one moment: {counts:?}"
        );
        // The same again, of the same time, from another node.
        let mut kv = raw::kv(&cluster.nodes[(round + 1) % cluster.nodes.len()].grpc).await;
        let again = v1::GetManyRequest { keys: keys.clone(), at_ts: reply.at_ts, ..Default::default() };
        let again = kv.get_many(again).await.expect("read").into_inner();
        assert_eq!((again.records, again.at_ts), (reply.records, reply.at_ts), "whoever answered");
        distinct += usize::from(counts != last);
        last = counts;
    }
    stop.cancel();
    writer.await.expect("the writer ends");
    assert!(distinct > 5, "the writer made no progress between reads: the test shows nothing");
    println!("60 reads of 8 shards, {distinct} different states, each of one moment");
}

/// The same request id, sent again to the same and to other nodes, counts once.
async fn retries_take_effect_once(cluster: &Cluster) {
    let client = cluster.client().await;
    for (n, key) in spread().into_iter().enumerate() {
        let key = Bytes::from([&key[..], b"/once"].concat());
        let seen_ts = client.map().await.expect("a map").seen_ts;
        let id = v1::RequestId { seen_ts, unique: Bytes::from(vec![n as u8; 16]) };
        let header = Some(v1::Header { request_id: Some(id), ..Default::default() });
        let add = v1::AddRequest { header, key: key.clone(), delta: 3 };
        let mut replies = Vec::new();
        for attempt in 0..6 {
            let mut kv = raw::kv(&cluster.nodes[attempt % cluster.nodes.len()].grpc).await;
            replies.push(kv.add(add.clone()).await.expect("added").into_inner());
        }
        assert_eq!(replies[0].value, 3);
        assert!(replies.iter().all(|reply| *reply == replies[0]), "{replies:?}");
        assert_eq!(client.get(key).await.expect("got").expect("held").value, "3");
    }
}

async fn health_reflection_and_http_answer(cluster: &Cluster) {
    for (at, node) in cluster.nodes.iter().enumerate() {
        let channel = raw::channel(&node.grpc).await;
        let mut health = HealthClient::new(channel.clone());
        for service in ["", "kvorum.v1.Kv"] {
            let answer =
                health.check(HealthCheckRequest { service: service.to_owned() }).await.expect("answered");
            assert_eq!(answer.into_inner().status(), ServingStatus::Serving, "{service:?}");
        }
        let unknown = health.check(HealthCheckRequest { service: "nothing".to_owned() }).await;
        assert_eq!(unknown.expect_err("unknown").code(), tonic::Code::NotFound);

        let ask = |message| ServerReflectionRequest { host: String::new(), message_request: Some(message) };
        let list = ask(MessageRequest::ListServices(String::new()));
        let symbol = ask(MessageRequest::FileContainingSymbol("kvorum.v1.Kv.Put".to_owned()));
        let replies =
            ServerReflectionClient::new(channel).server_reflection_info(stream::iter([list, symbol])).await;
        let mut replies = replies.expect("reflection").into_inner();
        let mut next = async || replies.message().await.expect("no error").expect("a reply").message_response;
        let Some(MessageResponse::ListServicesResponse(services)) = next().await else { panic!("no list") };
        let names: Vec<String> = services.service.into_iter().map(|service| service.name).collect();
        for name in [
            "kvorum.v1.Kv",
            "kvorum.v1.Changelog",
            "kvorum.v1.Index",
            "kvorum.v1.Cluster",
            "grpc.health.v1.Health",
        ] {
            assert!(names.iter().any(|one| one == name), "{name} is not in {names:?}");
        }
        let Some(MessageResponse::FileDescriptorResponse(files)) = next().await else { panic!("no file") };
        assert!(!files.file_descriptor_proto.is_empty());

        assert_eq!(raw::http_get(&node.http, "/healthz").await, (200, "ok\n".to_owned()));
        let (code, body) = raw::http_get(&node.http, "/readyz").await;
        assert_eq!((code, json(&body)), (200, serde_json::json!({ "ready": true })));
        let (code, body) = raw::http_get(&node.http, "/status").await;
        let status = json(&body);
        assert_eq!((code, status["node"]["id"].as_u64()), (200, Some(at as u64 + 1)), "{body}");
        assert_eq!(status["replicas"].as_array().map(Vec::len), Some(SHARDS as usize + 5), "{body}");
        assert_eq!((status["state"].as_str(), status["ready"].as_bool()), (Some("serving"), Some(true)));
        let (code, body) = raw::http_get(&node.http, "/metrics").await;
        assert_eq!(code, 200);
        for line in body.lines().filter(|line| !line.starts_with('#') && !line.is_empty()) {
            let number = line.rsplit(' ').next().and_then(|number| number.parse::<f64>().ok());
            assert!(number.is_some(), "{line:?} is not Prometheus text");
        }
        assert_eq!(raw::http_get(&node.http, "/nothing").await.0, 404);
    }
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// What a scan must answer, from a map in memory: rows, and whether a limit ended it (where that is certain).
fn expected(model: &BTreeMap<Bytes, Bytes>, options: &ScanOptions) -> Vec<(Bytes, Bytes)> {
    let inside = |key: &Bytes| {
        *key >= options.start
            && options.end.as_ref().is_none_or(|end| key < end)
            && key.starts_with(&options.prefix)
    };
    let mut rows: Vec<_> = model.iter().filter(|(key, _)| inside(key)).collect();
    if options.reverse {
        rows.reverse();
    }
    let mut left = options.limit_bytes;
    let mut found = Vec::new();
    for (key, value) in rows.into_iter().take(options.limit_rows.unwrap_or(u64::MAX) as usize) {
        let value = if options.keys_only { Bytes::new() } else { value.clone() };
        let size = (key.len() + value.len()) as u64;
        if left.is_some_and(|left| size > left) && !found.is_empty() {
            break;
        }
        left = left.map(|left| left.saturating_sub(size));
        found.push((key.clone(), value));
    }
    found
}

/// Random scans, in both directions and with all limits, by the client and by a unary call on any node,
/// equal those of a map in memory.
#[tokio::test(flavor = "multi_thread")]
async fn scans_over_shards_equal_a_model() {
    let cluster = Cluster::start(3, SHARDS).await;
    let client = cluster.client().await;
    let mut random = rand::rngs::StdRng::seed_from_u64(2);
    let model = fill(&client, &mut random).await;
    let all: Vec<Bytes> = model.keys().cloned().collect();
    for round in 0..150 {
        let options = random_scan(&mut random, &all);
        let wanted = expected(&model, &options);
        let rows = client.scan(options.clone()).collect_rows().await.expect("scanned");
        let rows: Vec<_> = rows.into_iter().map(|row| (row.key, row.record.value)).collect();
        assert_eq!(rows, wanted, "the client, {options:?}");

        let mut kv = raw::kv(&cluster.nodes[round % cluster.nodes.len()].grpc).await;
        let (rows, more) = unary_scan(&mut kv, &options).await;
        assert_eq!(rows, wanted, "node {}, {options:?}", round % cluster.nodes.len() + 1);
        let unlimited = ScanOptions { limit_rows: None, limit_bytes: None, ..options.clone() };
        let cut = rows.len() < expected(&model, &unlimited).len();
        assert!(more || !cut, "rows are left and `more` does not say so: {options:?}");
        let limited = options.limit_rows.is_some() || options.limit_bytes.is_some();
        assert!(limited || !more, "nothing is left and `more` says so: {options:?}");
    }
}

/// 700 keys over all shards, some of them long, some removed again.
async fn fill(client: &Client, random: &mut rand::rngs::StdRng) -> BTreeMap<Bytes, Bytes> {
    let mut model = BTreeMap::new();
    for _ in 0..700 {
        let length = if random.random_bool(0.02) { 4096 } else { random.random_range(1..6) };
        let key: Bytes = (0..length)
            .map(|_| [0, 1, 97, 98, 200, 255, random.random()][random.random_range(0..7)])
            .collect();
        let value = Bytes::from(vec![b'v'; random.random_range(0..3000)]);
        model.insert(key, value);
    }
    let writes = model.iter().map(|(key, value)| client.put(key.clone(), value.clone()));
    let written: Vec<_> = stream::iter(writes).buffer_unordered(64).collect().await;
    written.into_iter().collect::<kvorum::Result<Vec<_>>>().expect("written");
    let removed: Vec<Bytes> = model.keys().step_by(9).cloned().collect();
    for key in removed {
        assert!(client.delete(key.clone()).await.expect("deleted").existed);
        model.remove(&key);
    }
    model
}

fn random_scan(random: &mut rand::rngs::StdRng, keys: &[Bytes]) -> ScanOptions {
    let bound = |random: &mut rand::rngs::StdRng| match random.random_range(0..4) {
        0 => Bytes::new(),
        1 => Bytes::from(vec![random.random::<u8>()]),
        2 => Bytes::from(vec![random.random_range(0..8_u8) * 32]),
        _ => keys[random.random_range(0..keys.len())].clone(),
    };
    let (start, end) = (bound(random), bound(random));
    let end = (end >= start && !end.is_empty() && random.random_bool(0.7)).then_some(end);
    let prefix = if random.random_bool(0.2) { bound(random) } else { Bytes::new() };
    ScanOptions {
        start,
        end,
        prefix,
        reverse: random.random(),
        keys_only: random.random(),
        limit_rows: random.random_bool(0.4).then(|| random.random_range(1..400)),
        limit_bytes: random.random_bool(0.3).then(|| random.random_range(1..300_000)),
        at: None,
    }
}

async fn unary_scan(
    kv: &mut v1::kv_client::KvClient<tonic::transport::Channel>,
    options: &ScanOptions,
) -> (Vec<(Bytes, Bytes)>, bool) {
    let request = v1::ScanRequest {
        start: options.start.clone(),
        end: options.end.clone(),
        prefix: options.prefix.clone(),
        reverse: options.reverse,
        keys_only: options.keys_only,
        limit_rows: options.limit_rows,
        limit_bytes: options.limit_bytes,
        ..Default::default()
    };
    let mut pages = kv.scan(request).await.expect("begun").into_inner();
    let (mut rows, mut more, mut at_ts) = (Vec::new(), false, None);
    while let Some(page) = pages.message().await.expect("a page") {
        assert!(!more, "`more` is said in the last message only");
        assert_eq!(*at_ts.get_or_insert(page.at_ts), page.at_ts, "pages of two times");
        more = page.more;
        rows.extend(page.rows.into_iter().map(|row| (row.key, row.record.expect("a record").value)));
    }
    (rows, more)
}

/// The command line against a cluster.
struct Shell {
    endpoints: String,
}

impl Shell {
    fn run(&self, arguments: &[&str]) -> Output {
        let mut command = kvorum();
        command.args(["--endpoints", &self.endpoints]).args(arguments);
        command.output().expect("the command runs")
    }

    /// Runs a command that must exit with this code; answers its standard output.
    fn exits(&self, code: i32, arguments: &[&str]) -> Vec<u8> {
        let output = self.run(arguments);
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {told}");
        output.stdout
    }

    /// Standard output as text.
    fn says(&self, code: i32, arguments: &[&str]) -> String {
        String::from_utf8(self.exits(code, arguments)).expect("text")
    }

    /// Standard output as JSON.
    fn json(&self, code: i32, arguments: &[&str]) -> Value {
        json(&self.says(code, &[&["--output", "json"], arguments].concat()))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_from_end_to_end() {
    let cluster = Cluster::start(3, SHARDS).await;
    let shell = Shell { endpoints: cluster.endpoints().join(",") };
    let dir = tempfile::tempdir().expect("a directory");
    tokio::task::spawn_blocking(move || {
        single_keys(&shell);
        scripts_are_transactions(&shell, dir.path());
        errors_have_their_codes(&shell);
        files_come_back(&shell, dir.path());
        let checksums = shell.json(0, &["checksum"]);
        assert!(checksums.is_object() || checksums.is_array(), "{checksums}");
    })
    .await
    .expect("the commands do what they should");
}

fn single_keys(shell: &Shell) {
    assert!(shell.says(0, &["put", "greeting", "hello"]).starts_with("ok: version 1, "));
    assert_eq!(shell.exits(0, &["get", "greeting"]), b"hello");
    let record = shell.json(0, &["get", "greeting"]);
    assert_eq!((record["value"].as_str(), record["version"].as_u64()), (Some("hello"), Some(1)));
    let before = record["commit_ts"].as_u64().expect("a timestamp").to_string();
    assert_eq!(shell.json(0, &["put", "greeting", "hi"])["version"], 2);
    assert_eq!(shell.exits(0, &["get", "greeting", "--at", &before]), b"hello");
    assert_eq!(shell.exits(1, &["get", "nothing"]), b"");
    assert_eq!(shell.json(1, &["get", "nothing"]), Value::Null);

    assert!(shell.says(0, &["cas", "greeting", "hey", "--version", "2"]).starts_with("ok: version 3"));
    assert!(shell.says(1, &["cas", "greeting", "no", "--value", "hi"]).contains("version 3 holds hey"));
    assert_eq!(shell.json(1, &["cas", "greeting", "no", "--absent"])["current"]["value"], "hey");
    assert!(shell.says(1, &["cas", "nothing", "no", "--present"]).contains("no such key"));
    assert_eq!(shell.json(0, &["cas", "greeting", "--delete", "--value", "hey"])["swapped"], true);

    assert_eq!(shell.says(0, &["add", "visits"]), "1\n");
    assert_eq!(shell.json(0, &["add", "visits", "-5"])["value"], -4);
    assert_eq!(shell.json(0, &["delete", "visits"])["existed"], true);
    assert_eq!(shell.json(1, &["delete", "visits"])["existed"], false);

    // Any bytes.
    shell.exits(0, &["--hex", "put", "00ff01", "ff00"]);
    assert_eq!(shell.exits(0, &["--hex", "get", "00ff01"]), b"ff00\n");
    assert_eq!(shell.json(0, &["--hex", "get", "00ff01"])["value_hex"], "ff00");

    for (key, value) in [("row/a", "1"), ("row/b", "2\n"), ("row/c", "3")] {
        shell.exits(0, &["put", key, value]);
    }
    assert_eq!(shell.says(0, &["scan", "--prefix", "row/"]), "row/a\t1\nrow/b\t2\\n\nrow/c\t3\n");
    assert_eq!(
        shell.says(0, &["scan", "--prefix", "row/", "--reverse", "--limit", "2", "--keys-only"]),
        "row/c\nrow/b\n"
    );
    assert_eq!(shell.says(0, &["scan", "--start", "row/b", "--end", "row/c"]), "row/b\t2\\n\n");
    let rows = shell.says(0, &["--output", "json", "scan", "--prefix", "row/"]);
    let rows: Vec<Value> = rows.lines().map(json).collect();
    assert_eq!((rows.len(), rows[1]["value"].as_str()), (3, Some("2\n")));
}

fn scripts_are_transactions(shell: &Shell, dir: &Path) {
    let path = dir.join("script").display().to_string();
    let script = |text: &str| std::fs::write(&path, text).expect("written");
    let before = shell.says(0, &["timestamp"]).trim().to_owned();
    let later = shell.json(0, &["timestamp"])["ts"].as_u64();
    assert!(later > Some(before.parse().expect("a number")), "{before}, then {later:?}");

    // Keys of two shards.
    script("expect-absent !first\nput !first 'one two' # words\nadd zlast 3\nget zlast\n");
    let done = shell.json(0, &["txn", &path]);
    assert_eq!((done["committed"].as_bool(), done["attempts"].as_u64()), (Some(true), Some(1)), "{done}");
    assert_eq!(done["results"][0]["value"], "3", "its own write");
    for key in ["!first", "zlast"] {
        assert_eq!(shell.json(0, &["get", key])["commit_ts"], done["commit_ts"]);
        assert_eq!(shell.json(1, &["get", key, "--at", &before]), Value::Null);
    }

    // An expectation that is not met: nothing is written.
    script("add zlast 1\nexpect !first one\n");
    assert!(shell.says(1, &["txn", &path]).contains("line 2: key !first holds one two, not one"));
    let told = shell.json(1, &["txn", &path]);
    assert_eq!(told["committed"], false);
    assert_eq!(told["unmet"]["found"]["value"], "one two");
    assert_eq!(shell.exits(0, &["get", "zlast"]), b"3");

    script("scan --prefix !first\nget zlast\nget nothing\n");
    let text = shell.says(0, &["txn", "--read-only", &path]);
    assert!(text.starts_with("!first\tone two\nzlast\t3\nno such key: nothing\nread at "), "{text}");
}

fn errors_have_their_codes(shell: &Shell) {
    let error = |code: i32, arguments: &[&str]| {
        let output = shell.run(&[&["--output", "json"], arguments].concat());
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {output:?}");
        let error = json(&String::from_utf8(output.stderr).expect("text"));
        error["error"]["kind"].as_str().expect("a kind").to_owned()
    };
    shell.exits(0, &["put", "text", "no number"]);
    assert_eq!(error(2, &["add", "text"]), "invalid");
    assert_eq!(error(2, &["get", ""]), "invalid");
    assert_eq!(error(2, &["scan", "--limit", "0"]), "invalid");
    assert_eq!(error(2, &["scan", "--start", "b", "--end", "a"]), "invalid");
    assert_eq!(error(2, &["get", "text", "--at", "9000000000000000000"]), "invalid");
    assert_eq!(error(7, &["--cluster-id", "0123456789abcdef0123456789abcdef", "get", "text"]), "denied");
}

/// What is imported comes back byte for byte.
fn files_come_back(shell: &Shell, dir: &Path) {
    let file = |name: &str, content: &str| {
        let path = dir.join(name);
        std::fs::write(&path, content).expect("written");
        path.display().to_string()
    };
    let mut words: Vec<String> =
        (0..3000).map(|n| format!("{:x}wört {n} \\ \"'\t", n * 7919 % 4096)).collect();
    words.sort();
    words.dedup();
    let words = words.join("\n") + "\n";
    let path = file("words", &words);
    let report = shell.json(0, &["import", &path, "--format", "lines", "--prefix", "word/"]);
    assert_eq!(report["acknowledged"].as_u64(), Some(words.lines().count() as u64), "{report}");
    assert_eq!(report["complete"], true);
    assert_eq!(shell.says(0, &["export", "--prefix", "word/", "--format", "lines"]), words);

    // As objects, into other keys and back: the same file again, whatever bytes there are.
    shell.exits(0, &["--hex", "put", "776f72642fff00", "00ff0a"]);
    let exported = shell.exits(0, &["export", "--prefix", "word/"]);
    let path = file("exported", std::str::from_utf8(&exported).expect("JSON is text"));
    shell.exits(0, &["import", &path, "--prefix", "copy/"]);
    let copied = shell.says(0, &["export", "--prefix", "copy/", "--format", "ndjson"]);
    assert_eq!(copied.lines().count(), words.lines().count() + 1);
    shell.exits(0, &["import", &path]);
    assert_eq!(shell.exits(0, &["export", "--prefix", "word/"]), exported);

    let ndjson = "{\"id\": \"a\",  \"n\":1}\n{\"id\":\"b\",\"n\":2.50}\n";
    let path = file("records", ndjson);
    shell.exits(0, &["import", &path, "--key", "id", "--prefix", "record/"]);
    assert_eq!(shell.says(0, &["export", "--prefix", "record/", "--format", "lines"]), ndjson);
    assert_eq!(shell.says(0, &["get", "record/b"]), "{\"id\":\"b\",\"n\":2.50}");

    let path = file("cities.csv", "code,name\nzrh,\"Zürich, ZH\"\nbsl,Basel\nbad\n");
    let output = shell.run(&["import", &path, "--format", "csv", "--key", "code", "--prefix", "city/"]);
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(2) && told.contains("line 4"), "{told}");
    let skipping =
        ["import", &path, "--format", "csv", "--key", "code", "--prefix", "city/", "--on-error", "skip"];
    let report = shell.json(1, &skipping);
    assert_eq!((report["acknowledged"].as_u64(), report["bad_lines"].as_u64()), (Some(2), Some(1)));
    let city = json(&shell.says(0, &["get", "city/zrh"]));
    assert_eq!(city, serde_json::json!({ "code": "zrh", "name": "Zürich, ZH" }));
    let verified = shell.run(&[
        "verify",
        &dir.join("words").display().to_string(),
        "--format",
        "lines",
        "--prefix",
        "word/",
    ]);
    assert!(verified.status.success(), "{}", String::from_utf8_lossy(&verified.stderr));
}
