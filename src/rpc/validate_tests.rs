//! Each wrong request is refused, and the refusal says the value and the limit.

use super::*;
use crate::types::ErrorKind;

fn refused<T: std::fmt::Debug>(result: Result<T>, says: &[&str]) {
    let error = result.expect_err("must be refused");
    assert_eq!(error.kind, ErrorKind::Invalid);
    for part in says {
        assert!(error.message.contains(part), "{:?} does not say {part:?}", error.message);
    }
}

fn expect(expect: v1::expect::Expect) -> Option<v1::Expect> {
    Some(v1::Expect { expect: Some(expect) })
}

fn put(key: &str, bytes: usize) -> v1::Step {
    let put = v1::PutStep { key: Bytes::copy_from_slice(key.as_bytes()), value: vec![0; bytes].into() };
    v1::Step { step: Some(v1::step::Step::Put(put)) }
}

#[test]
fn keys_and_values_have_limits() {
    assert!(key(&[0; limits::MAX_KEY_BYTES]).is_ok() && key(&[0]).is_ok());
    refused(key(b""), &["empty", "4096"]);
    refused(key(&[b'x'; limits::MAX_KEY_BYTES + 1]), &["4097", "4096", "\"xxx"]);
    assert!(value(b"k", &vec![0; limits::MAX_VALUE_BYTES]).is_ok());
    refused(value(b"k", &vec![0; limits::MAX_VALUE_BYTES + 1]), &["\"k\"", "1048577", "1048576"]);
    refused(keys(&[]), &["10000"]);
    refused(keys(&vec![Bytes::from("k"); 10_001]), &["10001", "10000"]);
    refused(keys(&[Bytes::from("k"), Bytes::new()]), &["empty"]);
}

#[test]
fn ranges_and_limits_make_sense() {
    assert!(range(b"a", Some(b"a")).is_ok() && range(b"a", None).is_ok() && range(b"", Some(b"")).is_ok());
    refused(range(b"b", Some(b"a")), &["reversed", "\"b\"", "\"a\""]);
    assert!(bound("start", &[0; limits::MAX_KEY_BYTES + 1]).is_ok());
    refused(bound("start", &[0; limits::MAX_KEY_BYTES + 2]), &["start", "4098"]);
    assert!(limit("limit_rows", None).is_ok() && limit("limit_rows", Some(1)).is_ok());
    refused(limit("limit_rows", Some(0)), &["limit_rows", "0"]);
    for wrong in [
        v1::ScanRequest { limit_rows: Some(0), ..Default::default() },
        v1::ScanRequest { limit_bytes: Some(0), ..Default::default() },
        v1::ScanRequest { start: "b".into(), end: Some("a".into()), ..Default::default() },
        v1::ScanRequest { prefix: vec![1; limits::MAX_KEY_BYTES + 2].into(), ..Default::default() },
        v1::ScanRequest { at_ts: u64::MAX, ..Default::default() },
    ] {
        refused(scan(&wrong), &[]);
    }
    assert!(scan(&v1::ScanRequest::default()).is_ok());
}

#[test]
fn timestamps_and_ids_are_well_formed() {
    assert_eq!(read_at(0, None), Ok(ReadAt::Latest));
    assert_eq!(read_at(Timestamp::MAX.0, None), Ok(ReadAt::Snapshot(Timestamp::MAX)));
    refused(read_at(Timestamp::MAX.0 + 1, None), &["9007199254740992", "9007199254740991"]);
    assert_eq!(read_at(0, Some(1)), Ok(ReadAt::Bounded { max_staleness_ms: 1 }));
    refused(read_at(0, Some(0)), &["max_staleness_ms is 0"]);
    refused(read_at(0, Some(600_001)), &["600001", "600000"]);
    refused(read_at(7, Some(5)), &["at_ts 7", "max_staleness_ms 5", "the one or the other"]);
    let id = |bytes: usize, seen_ts| v1::RequestId { seen_ts, unique: vec![1; bytes].into() };
    assert!(request_id(&id(16, 5)).is_ok());
    refused(request_id(&id(15, 5)), &["15", "16"]);
    refused(request_id(&id(0, 5)), &["0 bytes"]);
    refused(request_id(&id(16, u64::MAX)), &["seen_ts"]);
}

#[test]
fn headers_have_defaults_and_caps() {
    assert_eq!(header(None), Ok(CallHeader::default()));
    let with = |deadline_ms, cluster_id: &str| v1::Header {
        cluster_id: cluster_id.into(),
        deadline_ms,
        request_id: None,
    };
    assert_eq!(header(Some(&with(0, ""))).expect("proper").deadline, Duration::from_secs(10));
    assert_eq!(header(Some(&with(7, ""))).expect("proper").deadline, Duration::from_millis(7));
    assert_eq!(header(Some(&with(u32::MAX, ""))).expect("proper").deadline, Duration::from_secs(300));
    refused(header(Some(&with(0, "nonsense"))), &["nonsense", "32"]);
    let ours = ClusterId(7);
    let checked = header(Some(&with(0, &ours.to_string()))).expect("proper");
    assert!(checked.check_cluster(ours).is_ok() && CallHeader::default().check_cluster(ours).is_ok());
    let denied = checked.check_cluster(ClusterId(8)).expect_err("another cluster");
    assert_eq!(denied.kind, ErrorKind::Denied);
}

#[test]
fn batches_have_steps_and_limits() {
    let batch_of = |then: Vec<v1::Step>| v1::BatchRequest { then, ..Default::default() };
    refused(batch(&batch_of(vec![])), &["no steps"]);
    assert!(batch(&batch_of(vec![put("k", 1); 10_000])).is_ok());
    refused(batch(&batch_of(vec![put("k", 1); 10_001])), &["10001", "10000"]);
    assert!(batch(&batch_of(vec![put("k", limits::MAX_VALUE_BYTES - 1); 16])).is_ok());
    refused(batch(&batch_of(vec![put("k", limits::MAX_VALUE_BYTES); 16])), &["16777232", "16777216"]);
    refused(batch(&batch_of(vec![put("", 1)])), &["empty"]);
    refused(batch(&batch_of(vec![put("k", limits::MAX_VALUE_BYTES + 1)])), &["1048577"]);
    refused(batch(&batch_of(vec![v1::Step { step: None }])), &["step"]);
    let condition = v1::Condition { key: "k".into(), expect: None };
    let odd = v1::BatchRequest { conditions: vec![condition], then: vec![put("k", 1)], ..Default::default() };
    refused(batch(&odd), &["expects nothing", "\"k\""]);
}

#[test]
fn expectations_say_something() {
    use v1::expect::Expect;
    assert_eq!(expect_bytes(b"k", expect(Expect::Value("abc".into())).as_ref()), Ok(3));
    assert!(expect_bytes(b"k", expect(Expect::Absent(true)).as_ref()).is_ok());
    refused(expect_bytes(b"k", None), &["expects nothing"]);
    refused(expect_bytes(b"k", Some(&v1::Expect { expect: None })), &["expects nothing"]);
    refused(expect_bytes(b"k", expect(Expect::Absent(false)).as_ref()), &["present: true"]);
    refused(expect_bytes(b"k", expect(Expect::CommitTs(u64::MAX)).as_ref()), &["commit_ts"]);
    let large = vec![0; limits::MAX_VALUE_BYTES + 1];
    refused(expect_bytes(b"k", expect(Expect::Value(large.into())).as_ref()), &["1048577"]);
}

fn write(write: v1::write::Write) -> v1::Write {
    v1::Write { write: Some(write) }
}

fn delete(key: impl Into<Bytes>) -> v1::Write {
    write(v1::write::Write::Delete(key.into()))
}

fn txn(writes: Vec<v1::Write>) -> v1::CommitRequest {
    v1::CommitRequest { start_ts: 7, writes, ..Default::default() }
}

fn many(count: usize) -> Vec<Bytes> {
    (0..count).map(|n| Bytes::from(format!("{n:05}"))).collect()
}

#[test]
fn transactions_have_a_start_and_writes() {
    assert!(commit(&txn(vec![delete("k")])).is_ok());
    refused(commit(&txn(vec![])), &["no writes", "no commit"]);
    refused(commit(&v1::CommitRequest { start_ts: 0, ..txn(vec![delete("k")]) }), &["start_ts is 0"]);
    let beyond = v1::CommitRequest { start_ts: Timestamp::MAX.0 + 1, ..txn(vec![delete("k")]) };
    refused(commit(&beyond), &["start_ts", "9007199254740992"]);
    refused(commit(&txn(vec![v1::Write { write: None }])), &["empty", "put, delete, add"]);
    refused(commit(&txn(vec![delete("")])), &["empty"]);
    let large = v1::PutStep { key: "k".into(), value: vec![0; limits::MAX_VALUE_BYTES + 1].into() };
    refused(commit(&txn(vec![write(v1::write::Write::Put(large))])), &["1048577"]);
}

#[test]
fn no_key_of_a_transaction_stands_twice_in_a_list() {
    let add = || write(v1::write::Write::Add(v1::AddStep { key: "k".into(), delta: 1 }));
    refused(commit(&txn(vec![delete("k"), add()])), &["\"k\"", "twice", "written"]);
    let reads = |keys: [&'static str; 2]| v1::CommitRequest {
        read_keys: keys.map(Bytes::from).to_vec(),
        ..txn(vec![add()])
    };
    refused(commit(&reads(["r", "r"])), &["\"r\"", "twice", "read"]);
    assert!(commit(&reads(["r", "k"])).is_ok(), "a key may be read and written");
}

#[test]
fn transactions_have_limits() {
    let of = |reads: usize, writes: usize| v1::CommitRequest {
        read_keys: many(reads),
        ..txn(many(writes).into_iter().map(delete).collect())
    };
    assert!(commit(&of(5_000, 5_000)).is_ok());
    refused(commit(&of(5_001, 5_000)), &["5001", "5000", "10000"]);
    let ranges = |count| v1::CommitRequest {
        read_ranges: many(count).into_iter().map(|start| v1::KeyRange { start, end: None }).collect(),
        ..txn(vec![delete("k")])
    };
    assert!(commit(&ranges(1_000)).is_ok());
    refused(commit(&ranges(1_001)), &["1001", "1000"]);
    let puts = |count: usize| {
        let put = |key| {
            let value = vec![0; limits::MAX_VALUE_BYTES - 5].into();
            write(v1::write::Write::Put(v1::PutStep { key, value }))
        };
        txn(many(count).into_iter().map(put).collect())
    };
    assert!(commit(&puts(16)).is_ok());
    let one_more = v1::CommitRequest { read_keys: vec!["r".into()], ..puts(16) };
    refused(commit(&one_more), &["16777217", "16777216"]);
}

#[test]
fn ranges_that_were_read_hold_something() {
    let of = |start: &'static str, end: Option<&'static str>| v1::CommitRequest {
        read_ranges: vec![v1::KeyRange { start: start.into(), end: end.map(Bytes::from) }],
        ..txn(vec![delete("k")])
    };
    assert!(commit(&of("a", Some("b"))).is_ok() && commit(&of("", None)).is_ok());
    refused(commit(&of("b", Some("a"))), &["reversed", "\"b\"", "\"a\""]);
    refused(commit(&of("a", Some("a"))), &["empty", "\"a\""]);
}
