//! Tests of the shard's machine: scripts on both engines, and a plain serial model.

mod changes;
mod disk_use;
mod history;
mod model;
mod scripts;
mod transactions;

use bytes::Bytes;

use super::{Command, Counts, Entry, Fates, Look, State, apply, look};
use crate::engine::{Engine, MemoryEngine, Overlay};
use crate::types::{
    Decision, Epoch, KeyRange, Operation, Outcome, Refusal, RequestId, ShardDescriptor, ShardId, Step,
    Timestamp, TxnCommand, TxnOutcome, TxnPart, TxnWrite, limits,
};

/// A shard of all keys that has applied nothing.
fn new_state() -> State {
    State::new(ShardDescriptor {
        id: ShardId::SYSTEM,
        range: KeyRange::all(),
        epoch: Epoch(1),
        replicas: Vec::new(),
    })
}

#[test]
fn a_batch_that_reads_too_much_is_refused_and_writes_nothing() {
    let engine = MemoryEngine::new();
    let view = engine.view();
    let mut overlay = Overlay::new(view.as_ref());
    let mut state = new_state();
    let mut run = |operation: Operation, timestamp: u64| {
        let id = RequestId { seen: Timestamp(timestamp - 1), unique: 0 };
        let command = Command { id, timestamp: Timestamp(timestamp), operation };
        let outcomes = apply(&mut state, &mut overlay, &Entry::Commands(vec![command])).expect("applies");
        outcomes.into_iter().next().expect("one outcome")
    };
    let (key, value) = (Bytes::from("k"), Bytes::from(vec![7; limits::MAX_VALUE_BYTES - 1]));
    run(Operation::Put { key: key.clone(), value }, 10);
    // A get counts a key of one byte and a value one byte short of the limit.
    let most = limits::MAX_BATCH_RESULT_BYTES / limits::MAX_VALUE_BYTES;
    let mut gets = |count: usize, timestamp| {
        let mut then = vec![Step::Put { key: "other".into(), value: "written".into() }];
        then.extend((0..count).map(|_| Step::Get { key: key.clone() }));
        run(Operation::Batch { conditions: Vec::new(), then, otherwise: Vec::new() }, timestamp)
    };
    let limit_bytes = limits::MAX_BATCH_RESULT_BYTES as u64;
    assert_eq!(gets(most + 1, 20), Outcome::Refused(Refusal::ResultTooLarge { limit_bytes }));
    assert!(matches!(gets(most, 30), Outcome::Batch { results, .. } if results.len() == most + 1));
    let look = look(&overlay, Counts::default(), b"other", Timestamp::MAX, &Fates::new());
    let written = look.and_then(Look::unlocked).expect("reads").expect("is there");
    assert_eq!((written.commit_ts, written.version), (Timestamp(30), 1), "the refused batch wrote nothing");
}

/// A client that uses an id for two different commits may get the first one's outcome for the second, but
/// harms nobody else: what the first can't have committed is not written, and the shard goes on.
#[test]
fn a_finish_of_an_earlier_commit_under_the_same_id_writes_nothing() {
    let engine = MemoryEngine::new();
    let view = engine.view();
    let mut overlay = Overlay::new(view.as_ref());
    let mut state = new_state();
    let mut run = |unique: u128, operation: Operation, timestamp: u64| {
        let command = Command {
            id: RequestId { seen: Timestamp(1), unique },
            timestamp: Timestamp(timestamp),
            operation,
        };
        let outcomes = apply(&mut state, &mut overlay, &Entry::Commands(vec![command])).expect("applies");
        outcomes.into_iter().next().expect("one outcome")
    };
    let key = Bytes::from("k");
    run(1, Operation::Put { key: key.clone(), value: "kept".into() }, 20);
    let writes = vec![TxnWrite::Put { key: key.clone(), value: "lost".into() }];
    let part = TxnPart { writes, ..TxnPart::default() };
    let prepare = TxnCommand::Prepare { primary: "elsewhere".into(), part, listed: None };
    let prepared = TxnOutcome::Prepared { prepare_ts: Timestamp(30) };
    assert_eq!(run(2, Operation::Txn(prepare), 30), Outcome::Txn(prepared));
    let decision = Decision::Committed { commit_ts: Timestamp(10) };
    run(2, Operation::Txn(TxnCommand::Finish { span: KeyRange::all(), decision }), 40);
    let written = run(3, Operation::Put { key: key.clone(), value: "next".into() }, 50);
    assert!(
        matches!(written, Outcome::Put { version: 2, .. }),
        "the lock is gone, and nothing was written: {written:?}"
    );
}
