//! Tests of the shard's machine: scripts on both engines, and a plain serial model.

mod disk_use;
mod history;
mod model;
mod scripts;
mod transactions;

use bytes::Bytes;

use super::{Command, Counts, Entry, Fates, Look, State, apply, look};
use crate::engine::{Engine, MemoryEngine, Overlay};
use crate::types::{
    Epoch, KeyRange, Operation, Outcome, Refusal, RequestId, ShardDescriptor, ShardId, Step, Timestamp,
    limits,
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
