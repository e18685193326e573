//! What is too long, too much, or does not add up.

use bytes::Bytes;
use serde_json::Value;

use super::store::Store;
use crate::index::{
    Aggregate, Batch, Condition, Datum, Definition, Delta, Field, Fixed, GroupChange, Kind, Missing, OnError,
    Order, OrderBy, Query, QueryText, Spec, Test, delta, plan,
};
use crate::types::ErrorKind;
use crate::types::limits::{
    MAX_INDEX_COVERING_BYTES, MAX_INDEX_KEY_BYTES, MAX_KEY_BYTES, MAX_NAME_BYTES, MAX_QUERY_BYTES,
    MAX_QUERY_CONDITIONS, MAX_QUERY_RANGES,
};

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
    let stored = GroupChange { count: 1, sum: Some(Fixed(5)) }.apply(None).expect("applies").expect("a row");
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

/// An error of kind `Invalid` that names each of the parts.
fn refused<T: std::fmt::Debug>(result: crate::types::Result<T>, parts: &[&str]) {
    let error = result.expect_err("refused");
    assert_eq!(error.kind, ErrorKind::Invalid, "{error}");
    for part in parts {
        assert!(error.message.contains(part), "{part} in {error}");
    }
}

#[test]
fn names_and_prefixes_are_limited() {
    let base = defined(Kind::Value, &["$.a"], &[], None).spec().clone();
    let new = |spec: Spec| Definition::new(1, 1, spec);
    assert!(new(Spec { name: "n".repeat(MAX_NAME_BYTES), ..base.clone() }).is_ok());
    refused(new(Spec { name: "n".repeat(MAX_NAME_BYTES + 1), ..base.clone() }), &["64"]);
    assert!(new(Spec { prefix: vec![1; MAX_KEY_BYTES].into(), ..base.clone() }).is_ok());
    refused(new(Spec { prefix: vec![1; MAX_KEY_BYTES + 1].into(), ..base.clone() }), &["4097", "4096"]);
    let field = |length: usize| format!("{}=$.a", "n".repeat(length)).parse::<Field>();
    assert!(field(MAX_NAME_BYTES).is_ok());
    refused(field(MAX_NAME_BYTES + 1), &["64"]);
}

#[test]
fn texts_of_queries_are_limited() {
    let filter = |filter: &str| Query::parse(&QueryText { filter, ..QueryText::default() });
    let text = |length: usize| format!("a = \"{}\"", "x".repeat(length - 6));
    assert!(filter(&text(MAX_QUERY_BYTES)).is_ok());
    refused(filter(&text(MAX_QUERY_BYTES + 1)), &["filter", "2049", "2048"]);
    let conditions = |count: usize| vec!["a = 1"; count].join(" and ");
    assert!(filter(&conditions(MAX_QUERY_CONDITIONS)).is_ok());
    refused(filter(&conditions(MAX_QUERY_CONDITIONS + 1)), &["33", "32"]);
    refused(
        Query::parse(&QueryText { order: &["a"; 10].join(","), ..QueryText::default() }),
        &["order", "10", "9"],
    );
}

/// Queries need not come from text: a plan checks them too.
#[test]
fn queries_made_otherwise_are_checked_by_the_plan() {
    let definition = defined(Kind::Value, &["$.a", "$.b"], &[], None);
    let query = |tests: Vec<Test>| Query {
        filter: tests.into_iter().map(|test| Condition { field: "a".into(), test }).collect(),
        limit: 1,
        ..Query::default()
    };
    let long = |length: usize| Test::Less(Datum::String("x".repeat(length)));
    assert!(plan(&definition, &query(vec![long(4000)])).is_ok());
    refused(plan(&definition, &query(vec![long(MAX_KEY_BYTES)])), &["4096"]);
    refused(plan(&definition, &query(vec![Test::Greater(Datum::Null)])), &["null", "="]);
    refused(plan(&definition, &query(vec![Test::Not(Datum::Null); MAX_QUERY_CONDITIONS + 1])), &["33", "32"]);
    refused(plan(&definition, &Query::default()), &["limit is 0"]);
    let token = Query { page_token: Some(vec![1; MAX_KEY_BYTES + 100].into()), ..query(Vec::new()) };
    refused(plan(&definition, &token), &["4196"]);
    // No value at all is a condition that nothing meets.
    assert!(plan(&definition, &query(vec![Test::In(Vec::new())])).expect("a plan").ranges().is_empty());
}

/// Lists of values that would make too many ranges are checked row by row.
#[test]
fn the_ranges_of_a_query_are_limited() {
    let definition = defined(Kind::Value, &["$.a", "$.b"], &[], None);
    let among = |field: &str, count: usize| Condition {
        field: field.into(),
        test: Test::In((0..count).map(|n| Datum::String(n.to_string())).collect()),
    };
    let ranges = |a: usize, b: usize| {
        let query = Query { filter: vec![among("a", a), among("b", b)], limit: 1, ..Query::default() };
        let plan = plan(&definition, &query).expect("a plan");
        (plan.ranges().len(), plan.residual().count())
    };
    assert_eq!(ranges(8, 8), (MAX_QUERY_RANGES, 0));
    assert_eq!(ranges(8, 9), (8, 1));
    assert_eq!(ranges(65, 1), (1, 2));
}

/// A token is of its query: of the same conditions, order and groups, but of any page size.
#[test]
fn a_token_is_of_its_query() {
    let definition = defined(Kind::Unique, &["$.a", "$.b"], &[], None);
    let mut store = Store::new(definition.clone());
    let mut batch = Batch::default();
    for key in ["1", "2", "3"] {
        store
            .write(&Bytes::from(key), Some(Bytes::from_static(b"{\"a\":1,\"b\":1}")), &mut batch)
            .expect("writes");
    }
    store.apply(batch).expect("applies");
    let filter = vec![Condition { field: "a".into(), test: Test::Greater(Datum::Bool(false)) }];
    let order = vec![OrderBy { field: "a".into(), order: Order::Asc }];
    let base = Query { limit: 1, ..Query::default() };
    let token = store.page(&base).expect("a page").token.expect("more");
    let with_token = |query: Query| plan(&definition, &Query { page_token: Some(token.clone()), ..query });
    assert!(with_token(base.clone()).is_ok());
    assert!(with_token(Query { limit: 7, with_rows: true, ..base.clone() }).is_ok());
    for other in [
        Query { filter, ..base.clone() },
        Query { order, ..base.clone() },
        Query { group_by: Some(Vec::new()), ..base.clone() },
        Query { aggregates: vec![Aggregate::Count], ..base.clone() },
        Query { duplicates: true, ..base.clone() },
    ] {
        assert!(plan(&definition, &other).is_ok());
        refused(with_token(other), &["another filter, order or grouping"]);
    }
}
