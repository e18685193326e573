//! Nothing that comes from outside makes these functions panic.

use bytes::Bytes;
use proptest::prelude::*;

use super::histories::{definition, row_key, row_value};
use crate::index::{
    Definition, Field, GroupChange, Next, Path, Query, QueryText, Reader, delta, from_scan, plan,
};
use crate::types::ErrorKind;

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    proptest::collection::vec(prop_oneof![Just(0), Just(255), any::<u8>()], 0..40)
}

/// Texts made of the words that mean something.
fn words() -> impl Strategy<Value = String> {
    let words = vec![
        "a",
        "b",
        "part",
        "typed",
        "=",
        "!=",
        "<",
        ">=",
        "in",
        "(",
        ")",
        ",",
        "and",
        "prefix",
        "\"x\"",
        "\"",
        "1",
        "-",
        "2.5",
        "null",
        "true",
        "asc",
        "desc",
        "count",
        "min",
        " ",
        "\n",
        "é",
        "\\",
        "e9",
        "$",
        ".",
        "[",
        "]",
        "*",
        "'",
        ":",
        "?",
        "@",
        "key",
        "key-part:",
        "..",
        "[0:1]",
        "string",
    ];
    prop_oneof![
        proptest::collection::vec(proptest::sample::select(words), 0..14).prop_map(|words| words.concat()),
        any::<String>(),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    #[test]
    fn rows_of_any_bytes(definition in definition(), rest in bytes(), before in bytes(), after in row_value()) {
        let key = [b"p/", &rest[..]].concat();
        let _ = delta(&definition, &key, Some(&before), Some(&after));
        let _ = delta(&definition, &rest, Some(&after), Some(&before));
        let _ = from_scan(&definition, [(&key[..], &after[..]), (&rest[..], &before[..])]);
        let _ = GroupChange { count: 1, sum: None }.apply(Some(&before));
    }

    #[test]
    fn texts_of_any_kind(definition in definition(), texts in proptest::array::uniform4(words()), limit: usize) {
        let text = QueryText {
            filter: &texts[0],
            order: &texts[1],
            group_by: Some(&texts[2]),
            aggregates: &texts[3],
            limit: Some(limit % 10_000),
            ..QueryText::default()
        };
        if let Ok(query) = Query::parse(&text) {
            let _ = plan(&definition, &query).map(|plan| plan.explain());
        }
        for text in &texts {
            // Each on its own, since one that is wrong hides the others.
            for text in [
                QueryText { filter: text, ..QueryText::default() },
                QueryText { order: text, ..QueryText::default() },
                QueryText { group_by: Some(text), ..QueryText::default() },
                QueryText { aggregates: text, ..QueryText::default() },
            ] {
                if let Err(error) = Query::parse(&text) {
                    prop_assert_eq!(error.kind, ErrorKind::Invalid);
                }
            }
            let _ = text.parse::<Field>();
            let _ = Path::parse(&format!("${text}"));
            let _ = serde_json::from_str::<Definition>(text);
        }
    }

    /// A filter that is read says again what it was.
    #[test]
    fn filters_read_back_as_they_are_shown(text in words()) {
        if let Ok(query) = Query::parse(&QueryText { filter: &text, ..QueryText::default() }) {
            let shown: Vec<String> = query.filter.iter().map(ToString::to_string).collect();
            let again = QueryText { filter: &shown.join(" and "), ..QueryText::default() };
            prop_assert_eq!(Query::parse(&again).expect("its own text").filter, query.filter);
        }
    }

    #[test]
    fn tokens_of_any_bytes(definition in definition(), token in bytes()) {
        let query = Query { limit: 1, page_token: Some(token.into()), ..Query::default() };
        prop_assert_eq!(plan(&definition, &query).expect_err("no token").kind, ErrorKind::Invalid);
    }

    #[test]
    fn index_rows_of_any_bytes(definition in definition(), row in row_key(), at in bytes(), value in bytes(), cut: prop::sample::Index) {
        let query = Query { limit: 10, ..Query::default() };
        let planned = plan(&definition, &query).expect("a plan");
        let header = planned.ranges()[0].start.clone();
        let genuine = from_scan(&definition, [(&row[..], &b"{\"a\":1,\"b\":\"x\",\"m\":2}"[..])]).unwrap_or_default();
        let mut keys = vec![Bytes::from([&header[..], &at].concat()), Bytes::from(at)];
        keys.extend(genuine.keys().cloned());
        keys.extend(genuine.keys().map(|key| key.slice(..cut.index(key.len()))));
        for key in keys {
            for value in [Bytes::from(value.clone()), Bytes::from([&[1], &value[..]].concat())] {
                let (mut reader, _) = Reader::start(planned.clone());
                if let Err(error) = reader.push(&key, &value) {
                    prop_assert!([ErrorKind::Corrupt, ErrorKind::Invalid].contains(&error.kind));
                }
            }
        }
    }
}

#[test]
fn a_reader_refuses_rows_that_go_backwards_and_needs_none_after_its_end() {
    let text = "{\"id\":1,\"version\":1,\"spec\":{\"name\":\"x\",\"prefix\":[],\"kind\":\"value\",\"on\":[{\"name\":\"a\",\
                \"source\":\"$.a\"}]}}";
    let definition: Definition = serde_json::from_str(text).expect("a definition");
    let rows = from_scan(&definition, [(&b"1"[..], &b"{\"a\":1}"[..]), (&b"2"[..], &b"{\"a\":2}"[..])])
        .expect("scans");
    let rows: Vec<_> = rows.into_iter().collect();
    let planned = plan(&definition, &Query { limit: 2, ..Query::default() }).expect("a plan");
    let (mut reader, next) = Reader::start(planned);
    assert!(matches!(next, Next::SeekTo(_)));
    assert_eq!(reader.push(&rows[1].0, &rows[1].1), Ok(Next::Continue));
    for (key, value) in &rows {
        assert_eq!(reader.push(key, value).expect_err("backwards").kind, ErrorKind::Invalid);
    }
    assert_eq!(reader.end_of_range(), Ok(Next::Done));
    assert_eq!(reader.take_items().len(), 1);
    assert_eq!(reader.page_token(crate::types::Timestamp(2), crate::types::Timestamp(1)), None);
    assert_eq!(reader.end_of_range(), Ok(Next::Done));
}

/// Paths whose time would grow beyond the value's size are refused; long ones that are served don't exhaust the stack.
#[test]
fn paths_can_not_be_made_to_explode() {
    for refused in ["$[*,*][*,*]", "$..*..*", "$[?((((@.a))))]", &format!("$.{}", "a".repeat(300))] {
        assert!(Path::parse(refused).is_err(), "{refused}");
    }
    assert!(Path::parse(&format!("${}", "[*]".repeat(80))).is_ok());
    let deep = format!("{{\"a\":{}1{}}}", "[".repeat(200), "]".repeat(200));
    let field: Field = "x=$..b".parse().expect("a field");
    assert!(field.source.to_string().contains(".."));
    let definition = serde_json::json!({"id": 1, "version": 1, "spec": {
        "name": "x", "prefix": [], "kind": "value", "on": [{"name": "x", "source": "$..b"}]}});
    let definition: Definition = serde_json::from_value(definition).expect("a definition");
    let error = delta(&definition, b"k", None, Some(deep.as_bytes())).expect_err("too deep for JSON");
    assert!(error.found.contains("recursion"), "{error}");
}
