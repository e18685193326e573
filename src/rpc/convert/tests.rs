//! What goes out comes back, and nothing of the keyspaces leaks.

use bytes::Bytes;
use proptest::prelude::*;
use tonic::{Code, Status};

use super::*;
use crate::codec::keyspace::{TIMESTAMP_CEILING, user_key};
use crate::rpc::v1;
use crate::rpc::v1::session_request::Request;
use crate::types::{
    AbortReason, BatchResult, Condition, Conflict, ConflictReason, Epoch, Error, ErrorKind, Expect, KeyRange,
    LeaderHint, Lock, Moved, NodeId, Operation, Outcome, Record, Refusal, RequestId, ShardDescriptor,
    ShardId, Step, Timestamp, TxnOutcome, TxnPart, TxnWrite,
};

fn key() -> impl Strategy<Value = Bytes> {
    proptest::collection::vec(any::<u8>(), 1..6).prop_map(|key| user_key(&key))
}

fn value() -> impl Strategy<Value = Bytes> {
    proptest::collection::vec(any::<u8>(), 0..6).prop_map(Bytes::from)
}

fn ts() -> impl Strategy<Value = Timestamp> {
    (1..=Timestamp::MAX.0).prop_map(Timestamp)
}

fn expect() -> impl Strategy<Value = Expect> {
    prop_oneof![
        Just(Expect::Absent),
        Just(Expect::Present),
        any::<u64>().prop_map(Expect::Version),
        ts().prop_map(Expect::CommitTs),
        value().prop_map(Expect::Value),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (key(), value()).prop_map(|(key, value)| Step::Put { key, value }),
        key().prop_map(|key| Step::Delete { key }),
        (key(), any::<i64>()).prop_map(|(key, delta)| Step::Add { key, delta }),
        key().prop_map(|key| Step::Get { key }),
    ]
}

fn operation() -> impl Strategy<Value = Operation> {
    let conditions = proptest::collection::vec(
        (key(), expect()).prop_map(|(key, expect)| Condition { key, expect }),
        0..3,
    );
    let steps = || proptest::collection::vec(step(), 1..4);
    prop_oneof![
        (key(), value()).prop_map(|(key, value)| Operation::Put { key, value }),
        key().prop_map(|key| Operation::Delete { key }),
        (key(), expect(), proptest::option::of(value()))
            .prop_map(|(key, expect, value)| Operation::CompareAndSwap { key, expect, value }),
        (key(), any::<i64>()).prop_map(|(key, delta)| Operation::Add { key, delta }),
        (conditions, steps(), steps()).prop_map(|(conditions, then, otherwise)| Operation::Batch {
            conditions,
            then,
            otherwise
        }),
    ]
}

fn record() -> impl Strategy<Value = Record> {
    (value(), ts(), ts(), 1..u64::MAX).prop_map(|(value, commit_ts, create_ts, version)| Record {
        value,
        commit_ts,
        create_ts,
        version,
    })
}

fn result() -> impl Strategy<Value = BatchResult> {
    prop_oneof![
        (any::<u64>(), ts()).prop_map(|(version, create_ts)| BatchResult::Put { version, create_ts }),
        any::<bool>().prop_map(|existed| BatchResult::Deleted { existed }),
        any::<i64>().prop_map(|value| BatchResult::Added { value }),
        proptest::option::of(record()).prop_map(|record| BatchResult::Got { record }),
    ]
}

fn outcome() -> impl Strategy<Value = (WriteKind, Outcome)> {
    let put = || {
        (ts(), 1..u64::MAX, ts()).prop_map(|(commit_ts, version, create_ts)| Outcome::Put {
            commit_ts,
            version,
            create_ts,
        })
    };
    prop_oneof![
        put().prop_map(|outcome| (WriteKind::Put, outcome)),
        put().prop_map(|outcome| (WriteKind::CompareAndSwap, outcome)),
        (ts(), any::<bool>())
            .prop_map(|(commit_ts, existed)| (WriteKind::Delete, Outcome::Deleted { commit_ts, existed })),
        ts().prop_map(|commit_ts| {
            (WriteKind::CompareAndSwap, Outcome::Deleted { commit_ts, existed: true })
        }),
        (ts(), proptest::option::of(record())).prop_map(|(commit_ts, current)| {
            (WriteKind::CompareAndSwap, Outcome::NotMatched { commit_ts, current })
        }),
        (ts(), any::<i64>())
            .prop_map(|(commit_ts, value)| (WriteKind::Add, Outcome::Added { commit_ts, value })),
        (ts(), any::<bool>(), proptest::collection::vec(result(), 0..4)).prop_map(
            |(commit_ts, succeeded, results)| (
                WriteKind::Batch,
                Outcome::Batch { commit_ts, succeeded, results }
            )
        ),
    ]
}

fn part() -> impl Strategy<Value = TxnPart> {
    let write = |key: Bytes| {
        prop_oneof![
            value().prop_map({
                let key = key.clone();
                move |value| TxnWrite::Put { key: key.clone(), value }
            }),
            Just(TxnWrite::Delete { key: key.clone() }),
            any::<i64>().prop_map(move |delta| TxnWrite::Add { key: key.clone(), delta }),
        ]
    };
    let writes = proptest::collection::btree_set(key(), 1..5)
        .prop_flat_map(move |keys| keys.into_iter().map(write).collect::<Vec<_>>());
    let reads = proptest::collection::btree_set(key(), 0..5);
    let end = prop_oneof![key(), Just(Bytes::from_static(&[crate::codec::keyspace::USER + 1]))];
    let ranges = proptest::collection::vec((key(), end), 0..5);
    (reads, ranges, writes).prop_map(|(reads, ranges, writes)| TxnPart {
        reads: reads.into_iter().collect(),
        ranges: KeyRange::join(ranges.into_iter().map(|(a, b)| KeyRange::new(a, Some(b))).collect()),
        writes,
    })
}

proptest! {
    #[test]
    fn transactions_come_back_in_order(part in part(), start in ts(), unique in any::<u128>()) {
        let id = RequestId { seen: start, unique };
        let header = v1::Header { request_id: Some(request_id_to_proto(id)), ..Default::default() };
        let mut commit = commit_to_proto(part.clone(), start, Some(header)).expect("users' keys");
        commit.read_keys.reverse();
        commit.read_ranges.reverse();
        commit.writes.reverse();
        let back = call_from_proto(Request::Commit(commit)).expect("proper");
        prop_assert_eq!(back, Call::Commit { id_unique: unique, start_ts: start, part, sagas: SagaPart::default() });
    }

    #[test]
    fn operations_come_back(operation in operation(), seen in ts(), unique in any::<u128>()) {
        let id = RequestId { seen, unique };
        let header = v1::Header { request_id: Some(request_id_to_proto(id)), ..Default::default() };
        let request = operation_to_proto(operation.clone(), header).expect("users' keys");
        prop_assert_eq!(header_of(&request).expect("proper").id, Some(id));
        match call_from_proto(request).expect("proper") {
            Call::Write { operation: back, .. } => prop_assert_eq!(back, operation),
            other => prop_assert!(false, "{other:?}"),
        }
    }

    #[test]
    fn outcomes_come_back((kind, outcome) in outcome()) {
        let reply = write_reply(kind, outcome.clone()).expect("it fits its kind");
        prop_assert_eq!(outcome_from_reply(reply).expect("a write's"), outcome);
    }

    #[test]
    fn any_key_can_be_shown(key in proptest::collection::vec(any::<u8>(), 0..200)) {
        let shown = printable(&key);
        prop_assert!(shown.is_ascii() || shown.chars().all(|c| !c.is_control()));
        prop_assert!(shown.len() < 1000);
    }
}

#[test]
fn keys_are_shown_readably() {
    assert_eq!(printable(b"fruit/7"), "\"fruit/7\"");
    assert_eq!(printable("gr\u{fc}n".as_bytes()), "\"gr\u{fc}n\"");
    assert_eq!(printable(b"a\xff\n"), "\"a\\xff\\n\"");
    assert!(printable(&[b'x'; 100]).ends_with("... (100 bytes)"));
    assert_eq!(printable_internal(&user_key(b"k")), "\"k\"");
}

#[test]
fn refusals_show_the_users_key_and_have_the_right_kind() {
    let not_a_counter = refusal_to_error(&Refusal::NotACounter { key: user_key(b"stock") });
    assert_eq!(not_a_counter.kind, ErrorKind::Invalid);
    assert!(not_a_counter.message.contains("\"stock\""));
    let overflow = Refusal::CounterOverflow { key: user_key(b"stock"), value: i64::MAX, delta: 1 };
    assert!(refusal_to_error(&overflow).message.contains("9223372036854775807"));
    for (refusal, kind) in [
        (Refusal::OutOfRange, ErrorKind::Moved),
        (Refusal::TooOld { age_ms: 700_000 }, ErrorKind::TooOld),
        (Refusal::StaleTimestamp { closed: Timestamp(9) }, ErrorKind::Unavailable),
    ] {
        assert_eq!(refusal_to_error(&refusal).kind, kind);
        let reply = write_reply(WriteKind::Put, Outcome::Refused(refusal));
        assert_eq!(reply.expect_err("refused").kind, kind);
    }
    let mixed = put_reply(Outcome::Added { commit_ts: Timestamp(1), value: 1 });
    assert_eq!(mixed.expect_err("an id used twice").kind, ErrorKind::Invalid);
}

fn descriptor() -> ShardDescriptor {
    ShardDescriptor {
        id: ShardId(4),
        range: KeyRange::new(user_key(b"a"), Some(user_key(b"b"))),
        epoch: Epoch(3),
        replicas: vec![NodeId(1), NodeId(2)],
    }
}

#[test]
fn errors_travel_in_messages_and_statuses() {
    let leader = Some(LeaderHint { node: NodeId(2), grpc_addr: "db2:7400".into() });
    let errors = [
        Error::moved("elsewhere", Moved { shard: Some(descriptor()), leader }),
        Error::moved("who knows where", Moved::default()),
        Error::invalid("key \"gr\u{fc}n\u{2026}\" is wrong,\nin two lines"),
        Error::unavailable("no quorum"),
        Error::undetermined("who knows"),
        Error::denied("no"),
        Error::corrupt("bad"),
        Error::new(ErrorKind::TooOld, "gone"),
        Error::new(ErrorKind::Conflict, "locked"),
        abort_to_error(&AbortReason::Changed { key: user_key(b"k"), commit_ts: Timestamp(7) }),
        abort_to_error(&AbortReason::Locked(lock())),
        abort_to_error(&AbortReason::RolledBack),
        abort_to_error(&AbortReason::Counter(Box::new(Refusal::NotACounter { key: user_key(b"k") }))),
        refusal_to_error(&Refusal::Locked(lock())),
    ];
    for error in errors {
        assert_eq!(error_from_proto(error_to_proto(&error)), error);
        let status = error_to_status(&error);
        assert_eq!(status.metadata().get(ERROR_METADATA).expect("named"), error.kind.name());
        assert_ne!(status.code(), Code::Ok);
        assert_eq!(error_from_status(&status), error);
        // As it looks on the wire.
        let headers = status.clone().into_http::<()>().into_parts().0.headers;
        let parsed = Status::from_header_map(&headers).expect("a status");
        assert_eq!(error_from_status(&parsed), error);
    }
}

#[test]
fn a_hint_that_is_too_large_is_left_out() {
    let mut shard = descriptor();
    shard.range = KeyRange::new(user_key(&[b'a'; 4096]), Some(user_key(&[b'b'; 4096])));
    let error = Error::moved("elsewhere", Moved { shard: Some(shard), leader: None });
    let back = error_from_status(&error_to_status(&error));
    assert_eq!((back.kind, back.moved), (ErrorKind::Moved, None));
}

#[test]
fn a_conflict_over_a_long_key_is_told_without_it() {
    let key = user_key(&[b'a'; 4096]);
    let error = abort_to_error(&AbortReason::Changed { key, commit_ts: Timestamp(7) });
    let back = error_from_status(&error_to_status(&error));
    let conflict = back.conflict.expect("told");
    assert_eq!((conflict.reason, conflict.key, conflict.is_final), (ConflictReason::Changed, None, true));
}

fn lock() -> Lock {
    let txn = RequestId { seen: Timestamp(5), unique: 6 };
    Lock { key: user_key(b"held"), txn, primary: user_key(b"p"), prepare_ts: Timestamp(9) }
}

#[test]
fn outcomes_of_commits_are_told_as_they_are() {
    let committed = Outcome::Txn(TxnOutcome::Committed { commit_ts: Timestamp(8) });
    assert_eq!(commit_reply(committed).expect("committed").commit_ts, 8);
    let told = |outcome| commit_reply(outcome).expect_err("not committed");
    let aborted = |reason| told(Outcome::Txn(TxnOutcome::Aborted { reason }));
    let counter = Refusal::NotACounter { key: user_key(b"text") };
    for (error, kind, reason, key, is_final) in [
        (
            aborted(AbortReason::Changed { key: user_key(b"k"), commit_ts: Timestamp(7) }),
            ErrorKind::Conflict,
            ConflictReason::Changed,
            Some("k"),
            true,
        ),
        (
            aborted(AbortReason::Locked(lock())),
            ErrorKind::Conflict,
            ConflictReason::Locked,
            Some("held"),
            true,
        ),
        (
            told(Outcome::Refused(Refusal::Locked(lock()))),
            ErrorKind::Conflict,
            ConflictReason::Locked,
            Some("held"),
            false,
        ),
        (aborted(AbortReason::RolledBack), ErrorKind::Conflict, ConflictReason::RolledBack, None, true),
        (
            aborted(AbortReason::Counter(Box::new(counter))),
            ErrorKind::Invalid,
            ConflictReason::Counter,
            Some("text"),
            true,
        ),
    ] {
        assert_eq!(error.kind, kind, "{error}");
        let Conflict { reason: told, key: named, is_final: kept, .. } = *error.conflict.expect("a detail");
        assert_eq!((told, kept), (reason, is_final));
        assert_eq!(named, key.map(Bytes::from));
    }
    assert_eq!(told(Outcome::Txn(TxnOutcome::AbortedLate)).kind, ErrorKind::Undetermined);
    assert_eq!(told(Outcome::Refused(Refusal::TooOld { age_ms: 700_000 })).kind, ErrorKind::TooOld);
    let future = told(Outcome::Refused(Refusal::FutureId { seen: Timestamp(77) }));
    assert!(future.kind == ErrorKind::Invalid && future.message.contains("start_ts is 77"), "{future}");
    let mixed = told(Outcome::Added { commit_ts: Timestamp(1), value: 1 });
    assert_eq!(mixed.kind, ErrorKind::Invalid);
}

#[test]
fn a_commit_is_named_by_its_start_timestamp() {
    let commit = |request_id| {
        let write = v1::Write { write: Some(v1::write::Write::Delete("k".into())) };
        let header = Some(v1::Header { request_id, ..Default::default() });
        let commit = v1::CommitRequest { header, start_ts: 9, writes: vec![write], ..Default::default() };
        call_from_proto(Request::Commit(commit))
    };
    let unique_of = |call| match call {
        Ok(Call::Commit { id_unique, start_ts: Timestamp(9), .. }) => id_unique,
        other => panic!("{other:?}"),
    };
    let id = |seen| Some(request_id_to_proto(RequestId { seen: Timestamp(seen), unique: 3 }));
    assert_eq!((unique_of(commit(id(9))), unique_of(commit(id(0)))), (3, 3));
    assert_ne!(unique_of(commit(None)), unique_of(commit(None)), "each without an id is another transaction");
    let error = commit(id(8)).expect_err("another timestamp");
    assert!(error.kind == ErrorKind::Invalid && error.message.contains("start_ts is 9"), "{error}");
}

#[test]
fn what_this_version_does_not_know_promises_nothing() {
    let odd = v1::Error { kind: "quantum".into(), message: "hm".into(), ..Default::default() };
    assert_eq!(error_from_proto(odd).kind, ErrorKind::Undetermined);
    assert_eq!(error_from_status(&Status::internal("x")).kind, ErrorKind::Undetermined);
    assert_eq!(error_from_status(&Status::deadline_exceeded("x")).kind, ErrorKind::Undetermined);
    assert_eq!(error_from_status(&Status::unavailable("x")).kind, ErrorKind::Unavailable);
    assert_eq!(error_from_status(&Status::invalid_argument("x")).kind, ErrorKind::Invalid);
}

#[test]
fn shards_come_back_and_empty_ones_are_refused() {
    let shard = descriptor();
    assert_eq!(descriptor_from_proto(descriptor_to_proto(&shard)).expect("proper"), shard);
    let whole = ShardDescriptor { range: KeyRange::all(), ..shard };
    assert_eq!(descriptor_from_proto(descriptor_to_proto(&whole)).expect("proper"), whole);
    let backwards = v1::Shard { start: "b".into(), end: Some("a".into()), ..Default::default() };
    assert_eq!(descriptor_from_proto(backwards).expect_err("empty").kind, ErrorKind::Invalid);
}

#[test]
fn the_system_keyspace_stays_inside() {
    let operation = Operation::Delete { key: Bytes::from_static(TIMESTAMP_CEILING) };
    let error = operation_to_proto(operation, v1::Header::default()).expect_err("not a user's");
    assert_eq!(error.kind, ErrorKind::Corrupt);
    let record = Record { value: Bytes::new(), commit_ts: Timestamp(1), create_ts: Timestamp(1), version: 1 };
    assert!(row_to_proto(&Bytes::from_static(TIMESTAMP_CEILING), record).is_err());
    // No user's key, whatever its bytes, reaches it.
    let delete = v1::DeleteRequest { header: None, key: Bytes::from_static(TIMESTAMP_CEILING) };
    match call_from_proto(Request::Delete(delete)).expect("any bytes are a key") {
        Call::Write { operation, .. } => assert_eq!(operation.keys()[0][0], crate::codec::keyspace::USER),
        other => panic!("{other:?}"),
    }
}

#[test]
fn scans_keep_to_the_users_keys() {
    let scan = |start: &str, end: Option<&str>, prefix: &str| {
        scan_from_proto(v1::ScanRequest {
            start: Bytes::copy_from_slice(start.as_bytes()),
            end: end.map(|end| Bytes::copy_from_slice(end.as_bytes())),
            prefix: Bytes::copy_from_slice(prefix.as_bytes()),
            ..Default::default()
        })
        .expect("proper")
        .range
    };
    assert_eq!(scan("", None, ""), crate::codec::keyspace::user_range(&KeyRange::all()));
    assert_eq!(scan("", None, "ab"), KeyRange::new(user_key(b"ab"), Some(user_key(b"ac"))));
    assert_eq!(scan("abc", None, "ab"), KeyRange::new(user_key(b"abc"), Some(user_key(b"ac"))));
    assert_eq!(scan("a", Some("abc"), "ab"), KeyRange::new(user_key(b"ab"), Some(user_key(b"abc"))));
    assert!(scan("x", None, "ab").is_empty() && scan("a", Some("a"), "").is_empty());
}

#[test]
fn pages_without_a_scan_and_writes_without_keys_are_refused() {
    for request in [
        Request::ScanPage(v1::ScanPageRequest { scan: None }),
        Request::Put(v1::PutRequest::default()),
        Request::Get(v1::GetRequest::default()),
        Request::GetMany(v1::GetManyRequest::default()),
        Request::Delete(v1::DeleteRequest::default()),
        Request::Add(v1::AddRequest::default()),
        Request::Batch(v1::BatchRequest::default()),
        Request::Commit(v1::CommitRequest::default()),
        Request::CompareAndSwap(v1::CompareAndSwapRequest { key: "k".into(), ..Default::default() }),
    ] {
        assert_eq!(call_from_proto(request).expect_err("malformed").kind, ErrorKind::Invalid);
    }
    assert_eq!(call_from_proto(Request::Empty(v1::EmptyRequest::default())), Ok(Call::Empty));
    assert_eq!(call_from_proto(Request::Timestamp(v1::TimestampRequest::default())), Ok(Call::Timestamp));
}
