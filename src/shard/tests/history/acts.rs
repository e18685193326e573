//! What happens in a history, drawn at random.

use super::*;

#[derive(Clone, Debug)]
pub(super) enum Act {
    Begin {
        reads: Vec<Bytes>,
        range: Option<KeyRange>,
        writes: Vec<TxnWrite>,
    },
    Prepare(Index, usize),
    Decide(Index),
    Abort(Index),
    Mark(Index, Index),
    Finish(Index, usize),
    Forget(Index),
    Recover(Index),
    Put(Bytes),
    Delete(Bytes),
    Add(Bytes),
    /// Read a key, as it was a little while ago.
    Look(Bytes, u64),
    Pause {
        minutes: u64,
    },
    Collect,
    Compact,
}

pub(super) fn key() -> impl Strategy<Value = Bytes> {
    prop_oneof![Just("a"), Just("b"), Just("c"), Just("x"), Just("y")].prop_map(Bytes::from)
}

pub(super) fn range() -> impl Strategy<Value = KeyRange> {
    prop_oneof![
        Just(KeyRange::new("a", Some("c".into()))),
        Just(KeyRange::new("b", Some("y".into()))),
        Just(KeyRange::new("x", None)),
    ]
}

pub(super) fn write() -> impl Strategy<Value = TxnWrite> {
    prop_oneof![
        3 => key().prop_map(|key| TxnWrite::Put { key, value: Bytes::new() }),
        1 => key().prop_map(|key| TxnWrite::Delete { key }),
        1 => key().prop_map(|key| TxnWrite::Add { key, delta: 1 }),
    ]
}

pub(super) fn act() -> impl Strategy<Value = Act> {
    let begin = (
        proptest::collection::vec(key(), 0..3),
        proptest::option::weighted(0.3, range()),
        proptest::collection::vec(write(), 1..4),
    )
        .prop_map(|(reads, range, writes)| Act::Begin { reads, range, writes });
    let txn = any::<Index>;
    prop_oneof![
        8 => begin,
        16 => (txn(), 0..SHARDS).prop_map(|(txn, shard)| Act::Prepare(txn, shard)),
        6 => txn().prop_map(Act::Decide),
        2 => txn().prop_map(Act::Abort),
        2 => (txn(), any::<Index>()).prop_map(|(txn, key)| Act::Mark(txn, key)),
        6 => (txn(), 0..SHARDS).prop_map(|(txn, shard)| Act::Finish(txn, shard)),
        2 => txn().prop_map(Act::Forget),
        3 => txn().prop_map(Act::Recover),
        2 => key().prop_map(Act::Put),
        2 => key().prop_map(Act::Delete),
        2 => key().prop_map(Act::Add),
        6 => (key(), 0..6u64).prop_map(|(key, back)| Act::Look(key, back)),
        2 => (0..12u64).prop_map(|minutes| Act::Pause { minutes }),
        2 => Just(Act::Collect),
        2 => Just(Act::Compact),
    ]
}
