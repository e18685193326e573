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

/// A definition over all rows.
fn defined(kind: Kind, on: &[&str], covering: &[&str], measure: Option<&str>) -> Definition {
    let fields =
        |texts: &[&str]| -> Vec<Field> { texts.iter().map(|text| text.parse().expect("a field")).collect() };
    let spec = Spec {
        name: "x".into(),
        prefix: Bytes::new(),
        kind,
        on: fields(on),
        measure: measure.map(|text| text.parse().expect("a field")),
        covering: fields(covering),
        missing: Missing::Skip,
        on_error: OnError::Halt,
    };
    Definition::new(1, 1, spec).expect("a definition")
}

mod limits {
    //! What is too long, and what does not add up.

    use super::*;
    use crate::index::{Delta, Fixed, GroupChange, delta};
    use crate::types::ErrorKind;
    use crate::types::limits::{MAX_INDEX_COVERING_BYTES, MAX_INDEX_KEY_BYTES, MAX_KEY_BYTES};

    fn put(definition: &Definition, key: &[u8], value: &Value) -> Result<usize, String> {
        let delta = delta(definition, key, None, Some(value.to_string().as_bytes()));
        delta.map(|delta| delta.entries[0].0.len()).map_err(|error| error.to_string())
    }

    #[test]
    fn a_key_that_is_too_long_is_blamed_on_the_longest_field() {
        let definition = defined(Kind::Value, &["$.a", "$.b"], &[], None);
        let row = |length: usize| serde_json::json!({"a": "x", "b": "y".repeat(length)});
        // 14 bytes of header, 4 and 3 around the strings, 1 of the key, 1 of a.
        let room = MAX_INDEX_KEY_BYTES - 14 - 4 - 3 - 1;
        assert_eq!(put(&definition, b"k", &row(room)), Ok(MAX_INDEX_KEY_BYTES));
        let error = put(&definition, b"k", &row(room + 1)).expect_err("too long");
        for part in ["field b", "4097", "4096", "has 1"] {
            assert!(error.contains(part), "{part} in {error}");
        }
        assert!(put(&definition, &vec![b'k'; MAX_KEY_BYTES], &row(0)).is_err());
        // Zeros take two bytes.
        assert!(put(&definition, b"k", &serde_json::json!({"a": "\0".repeat(2040), "b": 1})).is_err());
    }

    #[test]
    fn covering_fields_that_are_too_long_are_refused() {
        let definition = defined(Kind::Value, &["$.a"], &["$.b", "$.c"], None);
        let row = |length: usize| serde_json::json!({"a": "x", "b": 1, "c": "y".repeat(length)});
        // A byte of format, 11 of the number, 3 around the string.
        let room = MAX_INDEX_COVERING_BYTES - 1 - 11 - 3;
        assert!(put(&definition, b"k", &row(room)).is_ok());
        let error = put(&definition, b"k", &row(room + 1)).expect_err("too long");
        assert!(error.contains("field c") && error.contains("65536"), "{error}");
    }

    #[test]
    fn a_group_that_does_not_add_up_is_corrupt() {
        let stored =
            GroupChange { count: 1, sum: Some(Fixed(5)) }.apply(None).expect("applies").expect("a row");
        let change = |count, sum| GroupChange { count, sum: Some(Fixed(sum)) };
        assert_eq!(change(-1, -5).apply(Some(&stored)), Ok(None));
        assert_eq!(change(0, 0).apply(None), Ok(None));
        let wrong = [
            change(-1, -4).apply(Some(&stored)),
            change(-2, 0).apply(Some(&stored)),
            change(-1, 0).apply(None),
            change(0, 1).apply(None),
            change(1, i128::MAX).apply(Some(&stored)),
            GroupChange { count: 1, sum: None }.apply(Some(&stored)),
            change(1, 1).apply(Some(&stored[..9])),
            change(1, 1).apply(Some(b"")),
            change(1, 1).apply(Some(&[&[2], &stored[1..]].concat())),
            // A row of nobody.
            change(1, 1).apply(Some(&[&[1], &[0; 24][..]].concat())),
        ];
        for (at, result) in wrong.into_iter().enumerate() {
            assert_eq!(result.expect_err("refused").kind, ErrorKind::Corrupt, "case {at}");
        }
    }

    #[test]
    fn what_does_not_change_the_index_is_not_written() {
        let [before, after] = [&b"{\"a\":1,\"b\":1}"[..], b"{\"b\":2,\"a\":1.0}"];
        for kind in [Kind::Value, Kind::Unique, Kind::Count] {
            let definition = defined(kind, &["$.a"], &[], None);
            let delta = delta(&definition, b"k", Some(before), Some(after));
            assert_eq!(delta, Ok(Delta::default()), "{}", kind.name());
        }
        // What is covered is written once, and the entry not deleted before.
        let definition = defined(Kind::Value, &["$.a"], &["$.b"], None);
        let delta = delta(&definition, b"k", Some(before), Some(after)).expect("a delta");
        assert!(matches!(&delta.entries[..], [(_, Some(_))]), "{delta:?}");
    }

    #[test]
    fn a_batch_refuses_what_does_not_fit_and_keeps_the_rest() {
        let definition = defined(Kind::Sum, &["$.a"], &[], Some("$.m"));
        let mut batch = Batch::default();
        let delta = delta(&definition, b"k", None, Some(b"{\"a\":1,\"m\":1}")).expect("a delta");
        batch.add(delta.clone()).expect("adds");
        let mut huge = delta.clone();
        huge.groups[0].1.sum = Some(Fixed(i128::MAX));
        let before = batch.clone();
        assert_eq!(batch.add(huge).expect_err("refused").kind, ErrorKind::Invalid);
        assert_eq!(batch, before);
    }
}
