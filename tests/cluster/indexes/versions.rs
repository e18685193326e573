//! Versions, halts and dead letters of indexes; bad queries and definitions.

use bytes::Bytes;
use kvorum::client::{IndexSpec, Timestamp};
use kvorum::{Client, ErrorKind};

use super::{check_equal, create, wait_ready};
use crate::support::{Cluster, eventually};

async fn put(client: &Client, key: &str, value: &str) -> Timestamp {
    client.put(key, value.to_owned()).await.expect("written").commit_ts
}

async fn keys(client: &Client, index: &str, filter: &str, at_least: Timestamp) -> Vec<String> {
    let page = client.query(index).filter(filter).at_least(at_least).page().await.expect("answered");
    let key = |key: &Bytes| String::from_utf8(key.to_vec()).expect("text");
    page.items.iter().filter_map(|item| item.key.as_ref()).map(key).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn versions_are_swapped_and_a_dropped_index_leaves_nothing() {
    let cluster = Cluster::start(3, 2).await;
    let client = cluster.client().await;
    for n in 0..500 {
        put(&client, &format!("u/{n:03}"), &format!(r#"{{"team": {}, "name": "n{}"}}"#, n % 7, n % 3)).await;
    }
    let written = put(&client, "elsewhere", r#"{"team": 1}"#).await;
    let spec = IndexSpec::new("x", "value").prefix("u/").on("$.team");
    create(&client, vec![spec.clone()]).await;
    let again = client.create_index(spec.clone()).await.expect("the same again is no error");
    let other = client.create_index(spec.clone().on("$.name")).await.expect_err("another one of the name");
    assert_eq!(other.kind, ErrorKind::Invalid, "{other}");
    wait_ready(&client, "x").await;
    assert_eq!(keys(&client, "x", "team = 3", written).await.len(), 71);

    // Pages, in both directions.
    let (mut all, mut token) = (Vec::new(), None::<Bytes>);
    loop {
        let mut query = client.query("x").filter("team in (2, 5)").order("team desc").limit(30).with_rows();
        if let Some(token) = token.take() {
            query = query.page_token(token);
        }
        let page = query.page().await.expect("answered");
        all.extend(
            page.items.iter().map(|item| item.field("team").and_then(|team| team.as_u64()).expect("a team")),
        );
        assert!(page.items.iter().all(|item| item.value.is_some()), "the rows come too");
        match page.next {
            Some(next) => token = Some(next),
            None => break,
        }
    }
    assert_eq!(all.len(), 143);
    assert!(all.is_sorted_by(|a, b| a >= b), "{all:?}");

    // Another definition, held until it is wanted.
    let record = client.rebuild_index("x", Some(spec.clone().on("$.name")), true).await.expect("begun");
    assert_eq!((record.id, record.building.as_ref().map(|version| version.number)), (again.id, Some(2)));
    eventually("the second version is built", async || {
        let record =
            client.index("x").await.expect("asked").and_then(|status| status.record).unwrap_or_default();
        if record.is_built { Ok(()) } else { Err(format!("{record:?}")) }
    })
    .await;
    let error = client.query("x").filter("name = \"n1\"").page().await.expect_err("the first one answers");
    assert_eq!(error.kind, ErrorKind::Invalid, "{error}");
    client.swap_index("x").await.expect("swapped");
    let written = put(&client, "u/new", r#"{"team": 3, "name": "n1"}"#).await;
    eventually("the second version answers", async || {
        let page = client.query("x").filter("name = \"n1\" and team = 3").at_least(written).page().await;
        let page = page.map_err(|error| error.to_string())?;
        if page.version == 2 { Ok(page) } else { Err("not yet".to_owned()) }
    })
    .await;
    check_equal(&client, "x").await;

    // Dropped, nothing is left, and the name is free.
    assert!(client.drop_index("x").await.expect("dropped"));
    eventually("the rows are cleared away", async || match client.index("x").await {
        Ok(None) => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    let error = client.query("x").page().await.expect_err("there is none");
    assert_eq!(error.kind, ErrorKind::Invalid, "{error}");
    assert!(!client.drop_index("x").await.expect("asked"));
    create(&client, vec![spec]).await;
    wait_ready(&client, "x").await;
    let (_, rows) = check_equal(&client, "x").await;
    assert_eq!(rows, 501, "nothing of the one before");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_row_halts_an_index_or_becomes_a_dead_letter() {
    let cluster = Cluster::start(3, 2).await;
    let client = cluster.client().await;
    let spec = |name: &str| IndexSpec::new(name, "value").on("$.team:string");
    create(
        &client,
        vec![spec("halts"), spec("letters").on_error("dead-letter"), spec("skips").on_error("skip")],
    )
    .await;
    for name in ["halts", "letters", "skips"] {
        wait_ready(&client, name).await;
    }
    put(&client, "a", r#"{"team": "red"}"#).await;
    let bad = put(&client, "b", r#"{"team": 7}"#).await;
    let after = put(&client, "c", r#"{"team": "red"}"#).await;
    assert_eq!(keys(&client, "letters", "", after).await, ["a", "c"]);
    assert_eq!(keys(&client, "skips", "", after).await, ["a", "c"]);
    let error = client.query("halts").at_least(after).page().await.expect_err("it does not come so far");
    assert_eq!(error.kind, ErrorKind::Invalid, "{error}");
    assert!(error.message.contains("halted") && error.message.contains('b'), "{error}");
    let page = client.query("halts").page().await.expect("it answers");
    assert!(page.watermark < bad && page.items.len() == 1 && page.halted.is_some(), "{page:?}");
    let status = client.index("halts").await.expect("asked").expect("there");
    assert_eq!((&*status.progress[0].state, &status.progress[0].halted_key[..]), ("halted", &b"b"[..]));
    // Resumed, it halts again; without the row it goes on.
    client.resume_index("halts", false).await.expect("resumed");
    eventually("it halts again", async || {
        let status = client.index("halts").await.map_err(|error| error.to_string())?.ok_or("none")?;
        if status.progress[0].state == "halted" { Ok(()) } else { Err(format!("{status:?}")) }
    })
    .await;
    client.resume_index("halts", true).await.expect("resumed");
    assert_eq!(keys(&client, "halts", "", after).await, ["a", "c"]);
    for name in ["halts", "letters"] {
        let (letters, next) = client.dead_letters(name, Bytes::new()).await.expect("listed");
        assert_eq!(
            (letters.len(), &letters[0].key[..], letters[0].commit_ts, next),
            (1, &b"b"[..], bad.0, None)
        );
        assert_eq!(check_equal(&client, name).await.1, 2);
    }
    // Replayed, the row is as bad as before; mended, it is in.
    assert_eq!(client.replay_dead_letters("letters").await.expect("replayed").dead_letters, 1);
    let mended = put(&client, "b", r#"{"team": "blue"}"#).await;
    for name in ["halts", "letters", "skips"] {
        assert_eq!(keys(&client, name, "team = \"blue\"", mended).await, ["b"]);
        check_equal(&client, name).await;
    }
    for name in ["halts", "letters"] {
        assert_eq!(client.dead_letters(name, Bytes::new()).await.expect("listed").0, []);
        let status = client.index(name).await.expect("asked").expect("there");
        assert_eq!(status.progress[0].dead_letters, 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_that_fell_behind_is_built_anew_by_itself() {
    let cluster = Cluster::start_with(3, 2, &[("KVORUM_CHANGELOG_RETENTION", "4s")]).await;
    let client = cluster.client().await;
    create(&client, vec![IndexSpec::new("x", "value").on("$.team:string")]).await;
    wait_ready(&client, "x").await;
    put(&client, "a", r#"{"team": "red"}"#).await;
    let bad = put(&client, "b", r#"{"team": 7}"#).await;
    put(&client, "b", r#"{"team": "blue"}"#).await;
    eventually("changes are cut off", async || {
        put(&client, "c", r#"{"team": "red"}"#).await;
        match client.changes_after(&[kvorum::types::KeyRange::all()], bad).await {
            Err(error) if error.oldest.is_some() => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    let page = client.query("x").page().await.expect("it answers");
    assert!(page.watermark < bad && page.version == 1, "{page:?}");
    client.resume_index("x", true).await.expect("resumed");
    eventually("a second version answers", async || {
        let record =
            client.index("x").await.expect("asked").and_then(|status| status.record).unwrap_or_default();
        match record.active.as_ref().is_some_and(|active| active.number > 1) && !record.restarted.is_empty() {
            true => Ok(()),
            false => Err(format!("{record:?}")),
        }
    })
    .await;
    let now = client.timestamp().await.expect("a timestamp");
    assert_eq!(keys(&client, "x", "", now).await, ["b", "a", "c"], "by team");
    check_equal(&client, "x").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_is_said() {
    let cluster = Cluster::start(1, 1).await;
    let client = cluster.client().await;
    let invalid = |error: kvorum::Error| assert_eq!(error.kind, ErrorKind::Invalid, "{error}");
    for spec in [
        IndexSpec::new("x", "hash").on("$.a"),
        IndexSpec::new("x", "value"),
        IndexSpec::new("X y", "value").on("$.a"),
        IndexSpec::new("x", "value").on("$[?@.a]"),
        IndexSpec::new("x", "sum").on("$.a"),
        IndexSpec::new("x", "value").on("$.a").on_error("cry"),
        IndexSpec::new("x", "value").on("$.a").prefix(vec![b'k'; 5000]),
    ] {
        invalid(client.create_index(spec).await.expect_err("wrong"));
    }
    invalid(client.query("x").page().await.expect_err("there is none"));
    invalid(client.swap_index("x").await.expect_err("there is none"));
    assert_eq!(client.index("x").await.expect("asked"), None);
    create(&client, vec![IndexSpec::new("x", "count").on("$.a")]).await;
    wait_ready(&client, "x").await;
    invalid(client.swap_index("x").await.expect_err("nothing is built"));
    invalid(client.cancel_index_build("x").await.expect_err("nothing is built"));
    for wrong in ["a =", "b = 1", "a = 1 or a = 2"] {
        invalid(client.query("x").filter(wrong).page().await.expect_err(wrong));
    }
    invalid(client.query("x").limit(20_000).page().await.expect_err("too many"));
    invalid(client.query("x").page_token(&b"nonsense"[..]).page().await.expect_err("no token"));
    invalid(client.query("x").aggregates("sum").page().await.expect_err("it has no sum"));
    // A timestamp in the far future is waited for until the deadline.
    let future = client.timestamp().await.expect("a timestamp").plus(1 << 40);
    let brief = client.with_deadline(std::time::Duration::from_millis(300));
    let error = brief.query("x").at_least(future).page().await.expect_err("not yet");
    assert_eq!(error.kind, ErrorKind::Unavailable, "{error}");
}
