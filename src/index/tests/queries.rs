//! Queries by a plan and a reader give what filtering, sorting and grouping all rows the simple way gives.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use bytes::Bytes;
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::strategy::ValueTree;
use serde_json::{Map, Value};

use super::histories::{definition, row_key, row_value};
use super::store::{READ_TS, Store, WATERMARK};
use crate::index::{
    Aggregate, Batch, Condition, Datum, Definition, EntryItem, Fixed, GroupItem, Item, Kind, Missing, Order,
    OrderBy, Query, Test, plan,
};
use crate::types::ErrorKind;

/// A row as the definition reads it, by its own, simple means.
#[derive(Clone, Debug)]
struct Read {
    key: Bytes,
    on: Vec<Datum>,
    measure: Option<Datum>,
    covering: Vec<Datum>,
}

/// What a field has: `None` where it is missing, `Err` where it is wrong.
fn field(text: &str, rest: &[u8], value: Option<&Value>) -> Result<Option<Datum>, ()> {
    let string =
        |bytes: &[u8]| std::str::from_utf8(bytes).map(|text| Datum::String(text.into())).map_err(|_| ());
    let source =
        text.split_once('=').map_or(text, |(_, source)| source).split([' ', ':']).next().unwrap_or_default();
    match source {
        "key" => string(rest).map(Some),
        "key-part" => {
            let part = usize::from(text.contains("key-part:1"));
            rest.split(|byte| *byte == b'/').nth(part).map(string).transpose()
        }
        path => {
            let found = value.ok_or(())?.get(path.trim_start_matches("$."));
            let datum = found.map(|value| Datum::from_json(value).ok_or(())).transpose()?;
            match datum {
                Some(Datum::Bool(_) | Datum::String(_)) if text.contains(":number") => Err(()),
                datum => Ok(datum),
            }
        }
    }
}

/// The row; `None` where it is not in the index.
fn read(definition: &Definition, key: &Bytes, value: &Bytes) -> Option<Read> {
    let spec = definition.spec();
    let rest = key.strip_prefix(b"p/")?;
    let value: Option<Value> = serde_json::from_slice(value).ok();
    let get = |field: &crate::index::Field| self::field(&field.to_string(), rest, value.as_ref());
    let mut row = Read { key: key.clone(), on: Vec::new(), measure: None, covering: Vec::new() };
    for field in &spec.on {
        row.on.push(match (get(field).ok()?, spec.missing) {
            (Some(datum), _) => datum,
            (None, Missing::Null) => Datum::Null,
            (None, Missing::Skip) => return None,
        });
    }
    if let Some(measure) = &spec.measure {
        let measure = get(measure).ok()?.filter(|datum| *datum != Datum::Null)?;
        match &measure {
            Datum::Number(number) if spec.kind == Kind::Sum => drop(Fixed::from_number(*number)?),
            _ if spec.kind == Kind::Sum => return None,
            _ => {}
        }
        row.measure = Some(measure);
    }
    for field in &spec.covering {
        row.covering.push(get(field).ok()?.unwrap_or(Datum::Null));
    }
    Some(row)
}

/// The value of a field by its name.
fn value<'r>(definition: &Definition, row: &'r Read, name: &str) -> &'r Datum {
    let spec = definition.spec();
    let at = |fields: &[crate::index::Field]| fields.iter().position(|field| field.name == name);
    match (at(&spec.on), at(&spec.covering)) {
        (Some(at), _) => &row.on[at],
        (_, Some(at)) => &row.covering[at],
        _ => row.measure.as_ref().expect("the measure"),
    }
}

fn matches(test: &Test, datum: &Datum) -> bool {
    let same = |bound: &Datum| std::mem::discriminant(bound) == std::mem::discriminant(datum);
    match test {
        Test::In(values) => values.iter().any(|value| value == datum),
        Test::Not(value) => value != datum,
        Test::Less(bound) => same(bound) && datum < bound,
        Test::LessOrEqual(bound) => same(bound) && datum <= bound,
        Test::Greater(bound) => same(bound) && datum > bound,
        Test::GreaterOrEqual(bound) => same(bound) && datum >= bound,
        Test::Prefix(prefix) => matches!(datum, Datum::String(text) if text.starts_with(prefix.as_str())),
    }
}

fn object<'d>(fields: impl Iterator<Item = (&'d crate::index::Field, &'d Datum)>) -> Map<String, Value> {
    fields.map(|(field, datum)| (field.name.clone(), datum.to_json())).collect()
}

/// The rows in the order of the index: fields, of entries the measure, keys.
fn in_index_order(definition: &Definition, rows: &mut [Read]) {
    let spec = definition.spec();
    let by_entry = spec.kind.has_entries();
    rows.sort_by(|a, b| {
        let fields = spec.on.iter().zip(a.on.iter().zip(&b.on)).map(|(field, (a, b))| match field.order {
            Order::Asc => a.cmp(b),
            Order::Desc => b.cmp(a),
        });
        let measure = if by_entry { a.measure.cmp(&b.measure) } else { Ordering::Equal };
        fields.fold(Ordering::Equal, Ordering::then).then(measure).then(a.key.cmp(&b.key))
    });
}

/// All results, the simple way.
fn naive(store: &Store, query: &Query, reversed: bool) -> Vec<Item> {
    let definition = &store.definition;
    let spec = definition.spec();
    let mut rows: Vec<Read> =
        store.users.iter().filter_map(|(key, value)| read(definition, key, value)).collect();
    rows.retain(|row| {
        query
            .filter
            .iter()
            .all(|condition| matches(&condition.test, value(definition, row, &condition.field)))
    });
    in_index_order(definition, &mut rows);
    if reversed {
        rows.reverse();
    }
    let is_grouped = !spec.kind.has_entries()
        || query.duplicates
        || query.group_by.is_some()
        || !query.aggregates.is_empty();
    if !is_grouped {
        let entry = |row: &Read| EntryItem {
            key: row.key.clone(),
            fields: object(spec.on.iter().zip(&row.on)),
            measure: row.measure.as_ref().map(Datum::to_json),
            covering: object(spec.covering.iter().zip(&row.covering)),
        };
        return rows.iter().map(|row| Item::Entry(entry(row))).collect();
    }
    groups(definition, query, &rows)
}

/// The rows in groups, in the order in which the groups first occur.
fn groups(definition: &Definition, query: &Query, rows: &[Read]) -> Vec<Item> {
    let spec = definition.spec();
    let shown = |name: &String| query.group_by.as_ref().is_none_or(|group_by| group_by.contains(name));
    let mut order: Vec<Vec<Datum>> = Vec::new();
    let mut groups: BTreeMap<Vec<Datum>, Vec<&Read>> = BTreeMap::new();
    for row in rows {
        let fields = spec.on.iter().zip(&row.on).filter(|(field, _)| shown(&field.name));
        let group: Vec<Datum> = fields.map(|(_, datum)| datum.clone()).collect();
        if !order.contains(&group) {
            order.push(group.clone());
        }
        groups.entry(group).or_default().push(row);
    }
    let default = match spec.kind {
        Kind::Sum => vec![Aggregate::Count, Aggregate::Sum],
        Kind::Min => vec![Aggregate::Min],
        Kind::Max => vec![Aggregate::Max],
        _ => vec![Aggregate::Count],
    };
    let aggregates = if query.aggregates.is_empty() { default } else { query.aggregates.clone() };
    let asked = |aggregate| aggregates.contains(&aggregate);
    let item = |group: &Vec<Datum>| {
        let rows = &groups[group];
        let measures = || rows.iter().filter_map(|row| row.measure.as_ref());
        let sum = || {
            measures().map(|measure| match measure {
                Datum::Number(number) => Fixed::from_number(*number).expect("a summand").0,
                _ => 0,
            })
        };
        let fields = spec.on.iter().filter(|field| shown(&field.name)).zip(group);
        GroupItem {
            fields: object(fields),
            count: asked(Aggregate::Count).then_some(rows.len() as u64),
            sum: asked(Aggregate::Sum).then(|| Fixed(sum().sum())),
            min: measures().min().filter(|_| asked(Aggregate::Min)).map(Datum::to_json),
            max: measures().max().filter(|_| asked(Aggregate::Max)).map(Datum::to_json),
        }
    };
    let most = if query.duplicates { 2 } else { 0 };
    order.iter().filter(|group| groups[*group].len() >= most).map(|group| Item::Group(item(group))).collect()
}

fn test() -> impl Strategy<Value = Test> {
    let datum = || {
        proptest::sample::select(vec![
            Value::Null,
            false.into(),
            true.into(),
            0.into(),
            1.into(),
            2.into(),
            2.4.into(),
            "".into(),
            "a".into(),
            "ab".into(),
            "b".into(),
            "x".into(),
            "y".into(),
            "x/1".into(),
            "\0".into(),
        ])
        .prop_map(|value| Datum::from_json(&value).expect("a scalar"))
    };
    prop_oneof![
        3 => datum().prop_map(|datum| Test::In(vec![datum])),
        2 => proptest::collection::vec(datum(), 2..5).prop_map(Test::In),
        1 => datum().prop_map(Test::Not),
        1 => datum().prop_map(Test::Less),
        1 => datum().prop_map(Test::LessOrEqual),
        1 => datum().prop_map(Test::Greater),
        1 => datum().prop_map(Test::GreaterOrEqual),
        1 => proptest::sample::select(vec!["", "a", "x", "x/", "\0"]).prop_map(|text| Test::Prefix(text.into())),
    ]
}

/// What a query is drawn from, before it is known which fields there are.
#[derive(Clone, Debug)]
struct Draft {
    conditions: Vec<(Index, Test)>,
    /// How many fields to order by, whether in reverse, and a field that comes first instead.
    order: (usize, bool, Option<Index>),
    group: Option<usize>,
    aggregates: Vec<Aggregate>,
    duplicates: bool,
    limit: usize,
}

fn draft() -> impl Strategy<Value = Draft> {
    let order = (0..4_usize, any::<bool>(), proptest::option::weighted(0.2, any::<Index>()));
    (
        proptest::collection::vec((any::<Index>(), test()), 0..4),
        order,
        proptest::option::of(0..4_usize),
        proptest::sample::subsequence(
            vec![Aggregate::Count, Aggregate::Sum, Aggregate::Min, Aggregate::Max],
            0..=2,
        ),
        proptest::bool::weighted(0.2),
        1..5_usize,
    )
        .prop_map(|(conditions, order, group, aggregates, duplicates, limit)| Draft {
            conditions,
            order,
            group,
            aggregates,
            duplicates,
            limit,
        })
}

/// A query that the index may serve: aggregates and groups are of its kind.
fn query(definition: &Definition, draft: &Draft) -> Query {
    let spec = definition.spec();
    let allowed: &[Aggregate] = match spec.kind {
        Kind::Value => &[],
        Kind::Unique | Kind::Count => &[Aggregate::Count],
        Kind::Sum => &[Aggregate::Count, Aggregate::Sum],
        Kind::Min | Kind::Max => &[Aggregate::Min, Aggregate::Max],
    };
    let duplicates = draft.duplicates && spec.kind == Kind::Unique;
    let is_grouping = !allowed.is_empty() && !duplicates;
    let aggregates: Vec<_> = draft
        .aggregates
        .iter()
        .copied()
        .filter(|aggregate| allowed.contains(aggregate) && is_grouping)
        .collect();
    let names: Vec<String> = spec.on.iter().map(|field| field.name.clone()).collect();
    let group_by = draft.group.filter(|_| is_grouping).map(|group| names[..group.min(names.len())].to_vec());
    let reads_groups = spec.kind.has_groups()
        && (duplicates || group_by.is_some() || !aggregates.is_empty() || !spec.kind.has_entries());
    let mut fields = names.clone();
    if !reads_groups {
        fields.extend(spec.measure.iter().chain(&spec.covering).map(|field| field.name.clone()));
    }
    let filter = draft
        .conditions
        .iter()
        .map(|(at, test)| Condition { field: at.get(&fields).clone(), test: test.clone() });
    let (length, is_reversed, other) = draft.order;
    let ordered = group_by.as_ref().map_or(names.len(), Vec::len).min(length);
    let mut order: Vec<OrderBy> = spec.on[..ordered]
        .iter()
        .map(|field| OrderBy {
            field: field.name.clone(),
            order: if is_reversed { field.order.reversed() } else { field.order },
        })
        .collect();
    if let Some(other) = other {
        order.insert(0, OrderBy { field: other.get(&names).clone(), order: Order::Asc });
    }
    Query {
        filter: filter.collect(),
        order,
        group_by,
        aggregates,
        duplicates,
        limit: draft.limit,
        page_token: None,
        with_rows: false,
    }
}

/// Whether the results stand in the order that was asked for.
fn in_asked_order(items: &[Item], query: &Query) -> bool {
    let fields = |item: &Item| match item {
        Item::Entry(entry) => entry.fields.clone(),
        Item::Group(group) => group.fields.clone(),
    };
    let key = |item: &Item, name: &str| fields(item).get(name).and_then(Datum::from_json);
    items.windows(2).all(|pair| {
        let compared = query.order.iter().map(|by| {
            let ordering = key(&pair[0], &by.field).cmp(&key(&pair[1], &by.field));
            if by.order == Order::Asc { ordering } else { ordering.reverse() }
        });
        compared.fold(Ordering::Equal, Ordering::then) != Ordering::Greater
    })
}

fn filled(definition: Definition, rows: Vec<(Bytes, Bytes)>) -> Store {
    let mut store = Store::new(definition);
    for (key, value) in rows {
        let mut batch = Batch::default();
        // What can't be indexed is refused by halt, and not written to the store either.
        if store.write(&key, Some(value), &mut batch).is_ok() {
            store.apply(batch).expect("applies");
        }
    }
    store
}

/// All pages, each stopped after so many index rows.
fn all_pages(store: &Store, query: &Query, most_rows: usize) -> Vec<Item> {
    let mut query = query.clone();
    let mut items = Vec::new();
    for page_number in 0..1000 {
        let plan = plan(&store.definition, &query).expect("what was planned once");
        assert_eq!(plan.moment(), (page_number > 0).then_some((READ_TS, WATERMARK)));
        let page = store.read(plan, most_rows);
        assert!(page.items.len() <= query.limit);
        items.extend(page.items);
        match page.token {
            Some(token) => query.page_token = Some(token),
            None => return items,
        }
    }
    panic!("the pages don't end");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    #[test]
    fn a_query_gives_what_the_simple_way_gives(
        definition in definition(),
        rows in proptest::collection::vec((row_key(), row_value()), 0..25),
        draft in draft(),
    ) {
        let store = filled(definition, rows);
        let query = query(&store.definition, &draft);
        let planned = match plan(&store.definition, &query) {
            Ok(planned) => planned,
            Err(error) => {
                prop_assert_eq!(error.kind, ErrorKind::Invalid);
                return Ok(());
            }
        };
        let reversed = planned.direction() == crate::types::Direction::Reverse;
        let expected = naive(&store, &query, reversed);
        prop_assert!(in_asked_order(&expected, &query), "{:?}", expected);
        prop_assert_eq!(&all_pages(&store, &query, usize::MAX), &expected);
        let whole = Query { limit: 1000, ..query.clone() };
        prop_assert_eq!(&all_pages(&store, &whole, usize::MAX), &expected);
        if planned.explain().iter().all(|line| !line.starts_with("groups")) {
            prop_assert_eq!(&all_pages(&store, &query, 1 + draft.limit / 2), &expected);
        }
    }
}

/// Plans are not refused that could be served: a query in the index's own order, with conditions on its fields.
#[test]
fn most_drafts_are_served() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let mut served = 0;
    for _ in 0..500 {
        let drawn = (definition(), draft()).new_tree(&mut runner).expect("a value").current();
        let query = query(&drawn.0, &drawn.1);
        served += usize::from(plan(&drawn.0, &query).is_ok());
    }
    assert!(served > 200, "only {served} of 500 queries are served: the tests above test little");
}

#[test]
fn a_group_that_is_stopped_in_is_read_again_whole() {
    use crate::index::{OnError, Spec};
    let spec = Spec {
        name: "x".into(),
        prefix: Bytes::from_static(b"p/"),
        kind: Kind::Count,
        on: vec!["$.a".parse().expect("a field"), "whole=key".parse().expect("a field")],
        measure: None,
        covering: Vec::new(),
        missing: Missing::Skip,
        on_error: OnError::Halt,
    };
    let definition = Definition::new(1, 1, spec).expect("a definition");
    let rows = (0..6).map(|n| (Bytes::from(format!("p/{n}")), Bytes::from(format!("{{\"a\":{}}}", n / 3))));
    let store = filled(definition, rows.collect());
    for order in [Order::Asc, Order::Desc] {
        let query = Query {
            group_by: Some(vec!["a".into()]),
            order: vec![OrderBy { field: "a".into(), order }],
            limit: 10,
            ..Query::default()
        };
        // Four rows are one whole group and the beginning of the next.
        let page = store.read(plan(&store.definition, &query).expect("a plan"), 4);
        assert_eq!(page.items.len(), 1);
        assert_eq!(all_pages(&store, &query, 4), naive(&store, &query, order == Order::Desc));
    }
}
