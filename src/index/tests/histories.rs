//! A history of writes, applied as deltas in batches of any size, comes to the very bytes of an index built anew from
//! the rows that are left.

use bytes::Bytes;
use proptest::prelude::*;
use serde_json::Value;

use super::encodings::scalar;
use super::store::Store;
use crate::index::{Batch, Definition, Field, Kind, Missing, OnError, Spec};

/// Values of a field: few, so that rows share groups and move between them; and some that can't be indexed.
pub(super) fn member() -> impl Strategy<Value = Option<Value>> {
    prop_oneof![
        2 => Just(None),
        8 => proptest::sample::select(vec![
            Value::Null, false.into(), true.into(), 0.into(), 1.into(), 2.into(), 2.5.into(), (-1).into(), "".into(),
            "a".into(), "ab".into(), "b".into(), "\0".into(), "é".into(),
        ]).prop_map(Some),
        1 => scalar().prop_map(Some),
        1 => Just(Some(Value::Array(vec![1.into()]))),
    ]
}

/// A row's value: mostly an object with members a, b and m.
pub(super) fn row_value() -> impl Strategy<Value = Bytes> {
    let object = (member(), member(), member()).prop_map(|(a, b, m)| {
        let members = [("a", a), ("b", b), ("m", m)].into_iter();
        let object: Value = members
            .filter_map(|(name, value)| Some((name.to_owned(), value?)))
            .collect::<serde_json::Map<_, _>>()
            .into();
        Bytes::from(object.to_string())
    });
    prop_oneof![20 => object, 1 => Just(Bytes::from_static(b"no JSON"))]
}

pub(super) fn row_key() -> impl Strategy<Value = Bytes> {
    let parts = ["p/", "p/x", "p/x/1", "p/x/2", "p/y/1", "p/y/\0", "p/y/\u{ff}", "p", "q/1"];
    let keys: Vec<Bytes> = parts.iter().map(|key| Bytes::from_static(key.as_bytes())).collect();
    prop_oneof![9 => proptest::sample::select(keys), 1 => Just(Bytes::from_static(b"p/\xff/1"))]
}

pub(super) fn definition() -> impl Strategy<Value = Definition> {
    let kinds = vec![Kind::Value, Kind::Unique, Kind::Count, Kind::Sum, Kind::Min, Kind::Max];
    let on = proptest::sample::subsequence(
        vec!["$.a", "b=$.b desc", "part=key-part:0", "typed=$.a:number desc", "whole=key"],
        1..=4,
    )
    .prop_shuffle();
    let covering = proptest::sample::subsequence(vec!["c=$.m", "d=$.b", "e=key-part:1"], 0..=3);
    let missing = proptest::sample::select(vec![Missing::Skip, Missing::Null]);
    let on_error = proptest::sample::select(vec![OnError::Halt, OnError::Skip, OnError::DeadLetter]);
    (proptest::sample::select(kinds), on, covering, missing, on_error).prop_map(
        |(kind, on, covering, missing, on_error)| {
            let fields = |texts: Vec<&str>| -> Vec<Field> {
                texts.into_iter().map(|text| text.parse().expect("a field")).collect()
            };
            let spec = Spec {
                name: "x".into(),
                prefix: Bytes::from_static(b"p/"),
                kind,
                on: fields(on),
                measure: kind.has_measure().then(|| "m=$.m".parse().expect("a field")),
                covering: if kind.has_entries() { fields(covering) } else { Vec::new() },
                missing,
                on_error,
            };
            Definition::new(3, 2, spec).expect("a definition")
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn deltas_come_to_an_index_built_anew(
        definition in definition(),
        history in proptest::collection::vec((row_key(), proptest::option::weighted(0.75, row_value()), 0..5_u8), 0..60),
    ) {
        let mut store = Store::new(definition);
        let mut batch = Batch::default();
        for (key, value, end_of_batch) in history {
            // With halt a row that can't be indexed changes nothing.
            let written = store.write(&key, value.clone(), &mut batch);
            let is_halt = store.definition.spec().on_error == OnError::Halt;
            prop_assert!(written.is_ok() || is_halt && value.is_some());
            if end_of_batch == 0 {
                store.apply(std::mem::take(&mut batch)).expect("applies");
                prop_assert_eq!(&store.index, &store.scanned().expect("scans"));
            }
        }
        store.apply(batch).expect("applies");
        prop_assert_eq!(&store.index, &store.scanned().expect("scans"));
        let range = store.definition.range();
        prop_assert!(store.index.keys().all(|key| range.contains(key)));
    }
}
