//! From conditions to ranges of an index's keys, and what is left to check on each row.

use bytes::BytesMut;

use super::datum::{string_prefix_range, type_range};
use super::layout::Layout;
use super::query::{Condition, Test, joined};
use super::{Datum, Definition, Field, Order};
use crate::types::limits::{MAX_KEY_BYTES, MAX_QUERY_CONDITIONS, MAX_QUERY_RANGES};
use crate::types::{Error, KeyRange, Result, prefix_end};

/// Where a row of the index has a field.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Column {
    /// In the key, the n-th.
    Key(usize),
    /// In the value, the n-th.
    Covering(usize),
}

/// The fields that rows of one kind have.
pub(super) struct Columns<'d> {
    pub key: Vec<&'d Field>,
    pub covering: Vec<&'d Field>,
    pub index: &'d str,
}

impl<'d> Columns<'d> {
    pub(super) fn entries(definition: &'d Definition) -> Self {
        let covering = definition.spec().covering.iter().collect();
        Self { key: definition.entry_columns().collect(), covering, index: definition.name() }
    }

    pub(super) fn groups(definition: &'d Definition) -> Self {
        let key = definition.spec().on.iter().collect();
        Self { key, covering: Vec::new(), index: definition.name() }
    }

    /// # Errors
    ///
    /// `Invalid` where rows have no such field; the error lists those that they have.
    pub(super) fn find(&self, name: &str) -> Result<(Column, &'d Field)> {
        let key = self.key.iter().enumerate().map(|(at, field)| (Column::Key(at), *field));
        let covering = self.covering.iter().enumerate().map(|(at, field)| (Column::Covering(at), *field));
        key.chain(covering).find(|(_, field)| field.name == name).ok_or_else(|| {
            let names = |fields: &[&Field]| {
                fields.iter().map(|field| field.name.as_str()).collect::<Vec<_>>().join(", ")
            };
            let covering = match self.covering.as_slice() {
                [] => String::new(),
                fields => format!(", and covers {}", names(fields)),
            };
            Error::invalid(format!(
                "index {} has no field {name:?} to answer this from: it is on {}{covering}",
                self.index,
                names(&self.key)
            ))
        })
    }

    /// The place of a field in the key.
    pub(super) fn find_key(&self, name: &str) -> Result<usize> {
        match self.find(name)? {
            (Column::Key(at), _) => Ok(at),
            (Column::Covering(_), _) => Err(Error::invalid(format!(
                "index {} only covers the field {name}: it is neither ordered nor grouped by it; use an index that \
                 is on {name}",
                self.index
            ))),
        }
    }
}

/// A condition that is checked on each row.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Residual {
    pub column: Column,
    pub condition: Condition,
}

/// What conditions come to.
pub(super) struct Ranged {
    /// In key order; none overlaps or touches another. None at all where no row can match.
    pub ranges: Vec<KeyRange>,
    /// The conditions that all rows in the ranges meet.
    pub served: Vec<Condition>,
    pub residual: Vec<Residual>,
    /// Of each field in the key: whether the conditions leave it one value.
    pub fixed: Vec<bool>,
}

/// Equality on the first fields, then at most one range on the next, makes the ranges; all other conditions are
/// residual.
///
/// # Errors
///
/// `Invalid` where a condition is on a field that the rows don't have, or has a value that the field can't have, or
/// the values together are longer than a key.
pub(super) fn ranges(columns: &Columns<'_>, layout: &Layout, filter: &[Condition]) -> Result<Ranged> {
    let placed = place(columns, filter)?;
    let on = |at: usize| {
        placed.iter().filter(move |(column, _)| *column == Column::Key(at)).map(|(_, condition)| *condition)
    };
    let values: Vec<_> =
        (0..columns.key.len()).map(|at| values(on(at).map(|condition| &condition.test))).collect();
    let mut bases = vec![BytesMut::from(&layout.header()[..])];
    let mut served = Vec::new();
    let mut exact = 0;
    while let Some(Some(values)) = values.get(exact)
        && bases.len() * values.len() <= MAX_QUERY_RANGES
    {
        bases = extend(&bases, values, layout.order(exact));
        served.extend(on(exact).cloned());
        exact += 1;
    }
    let is_range = |condition: &&Condition| !matches!(condition.test, Test::In(_) | Test::Not(_));
    let bounds: Vec<&Condition> = match values.get(exact) {
        Some(None) => on(exact).filter(is_range).collect(),
        _ => Vec::new(),
    };
    let narrowed = bases.iter().filter_map(|base| narrow(base, layout.order(exact), &bounds)).collect();
    let is_bound = |condition: &Condition| bounds.iter().any(|bound| std::ptr::eq(*bound, condition));
    let is_served = |column: Column, condition: &Condition| {
        matches!(column, Column::Key(at) if at < exact) || is_bound(condition)
    };
    let residual = placed
        .iter()
        .filter(|(column, condition)| !is_served(*column, condition))
        .map(|(column, condition)| Residual { column: *column, condition: (*condition).clone() })
        .collect();
    served.extend(bounds.iter().map(|condition| (*condition).clone()));
    let fixed = values.iter().map(|values| values.as_ref().is_some_and(|values| values.len() == 1)).collect();
    Ok(Ranged { ranges: checked(KeyRange::join(narrowed))?, served, residual, fixed })
}

/// The conditions, each with the place of its field.
fn place<'c>(columns: &Columns<'_>, filter: &'c [Condition]) -> Result<Vec<(Column, &'c Condition)>> {
    if filter.len() > MAX_QUERY_CONDITIONS {
        return Err(Error::invalid(format!(
            "the filter has {} conditions: the most is {MAX_QUERY_CONDITIONS}",
            filter.len()
        )));
    }
    let mut placed = Vec::with_capacity(filter.len());
    for condition in filter {
        let (column, field) = columns.find(&condition.field)?;
        check_types(columns.index, field, &condition.test)?;
        placed.push((column, condition));
    }
    Ok(placed)
}

fn check_types(index: &str, field: &Field, test: &Test) -> Result<()> {
    let values = test.values();
    if let Some(known) = field.known_type()
        && let Some(other) = values.iter().find(|value| !known.admits(value))
    {
        return Err(Error::invalid(format!(
            "{} is {} in index {index}: compare it with one, not with {other}",
            field.name,
            known.described()
        )));
    }
    let is_bound = !matches!(test, Test::In(_) | Test::Not(_));
    match values.contains(&Datum::Null) && is_bound {
        true => Err(Error::invalid(format!(
            "{} is compared with null, which has no order: use = or !=",
            field.name
        ))),
        false => Ok(()),
    }
}

/// The values that meet all tests, in order; `None` where no test lists any.
fn values<'t>(tests: impl Iterator<Item = &'t Test> + Clone) -> Option<Vec<Datum>> {
    let listed = tests.clone().find_map(|test| match test {
        Test::In(values) => Some(values),
        _ => None,
    })?;
    let mut values: Vec<Datum> =
        listed.iter().filter(|value| tests.clone().all(|test| test.matches(value))).cloned().collect();
    values.sort_unstable();
    values.dedup();
    Some(values)
}

/// Every base with every value behind it.
fn extend(bases: &[BytesMut], values: &[Datum], order: Order) -> Vec<BytesMut> {
    let pairs = bases.iter().flat_map(|base| values.iter().map(move |value| (base, value)));
    pairs
        .map(|(base, value)| {
            let mut base = base.clone();
            value.encode(order, &mut base);
            base
        })
        .collect()
}

/// The keys that begin with `base` and go on with a value within all bounds.
fn narrow(base: &[u8], order: Order, bounds: &[&Condition]) -> Option<KeyRange> {
    let all = KeyRange::prefix(base.to_vec());
    bounds.iter().try_fold(all, |range, bound| range.intersect(&bound_range(base, order, &bound.test)?))
}

/// The keys that begin with `base` and go on with a value that meets a test of order. `None` where none does.
fn bound_range(base: &[u8], order: Order, test: &Test) -> Option<KeyRange> {
    let (bound, upwards, inclusive) = match test {
        Test::Prefix(prefix) => return Some(string_prefix_range(base, order, prefix)),
        Test::Less(bound) => (bound, false, false),
        Test::LessOrEqual(bound) => (bound, false, true),
        Test::Greater(bound) => (bound, true, false),
        Test::GreaterOrEqual(bound) => (bound, true, true),
        Test::In(_) | Test::Not(_) => return Some(KeyRange::prefix(base.to_vec())),
    };
    let same_type = type_range(base, order, bound.datum_type()?);
    let mut key = BytesMut::from(base);
    bound.encode(order, &mut key);
    // The value's own keys are those that begin with it: they lie before this one and not before `key`.
    let behind = prefix_end(&key);
    let key = key.freeze();
    let side = match (upwards == (order == Order::Asc), inclusive) {
        (true, true) => KeyRange::new(key, None),
        (true, false) => KeyRange::new(behind?, None),
        (false, true) => KeyRange { start: same_type.start.clone(), end: behind },
        (false, false) => KeyRange { start: same_type.start.clone(), end: Some(key) },
    };
    same_type.intersect(&side)
}

/// Refuses bounds that no scan takes: only values of thousands of bytes make them.
fn checked(ranges: Vec<KeyRange>) -> Result<Vec<KeyRange>> {
    let longest = |range: &KeyRange| range.start.len().max(range.end.as_ref().map_or(0, |end| end.len()));
    match ranges.iter().map(longest).max() {
        Some(longest) if longest > MAX_KEY_BYTES => Err(Error::invalid(format!(
            "the values in the filter make a key of {longest} bytes: the most is {MAX_KEY_BYTES}"
        ))),
        _ => Ok(ranges),
    }
}

/// The fields of an index with their orders, for messages.
pub(super) fn described(fields: &[&Field]) -> String {
    let items: Vec<_> = fields.iter().map(|field| format!("{} {}", field.name, field.order)).collect();
    joined(&items, ", ")
}
