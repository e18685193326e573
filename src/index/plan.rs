//! How an index serves a query: which ranges are read in which direction, and what is made of the rows.

use super::layout::Layout;
use super::query::{OrderBy, joined};
use super::ranges::{self, Column, Columns, Ranged, Residual, described};
use super::token::{PageToken, query_digest};
use super::{Aggregate, Condition, Definition, Field, Kind, Query, Test};
use crate::types::limits::MAX_PAGE_ROWS;
use crate::types::{Direction, Error, KeyRange, Result, Timestamp};

/// How an index serves a query. Made by [`plan`]; read by [`super::Reader`].
#[derive(Clone, Debug)]
pub struct Plan {
    pub(super) definition: Definition,
    pub(super) layout: Layout,
    pub(super) rows: RowKind,
    /// In the order in which they are read. Those of earlier pages are gone.
    pub(super) ranges: Vec<KeyRange>,
    pub(super) direction: Direction,
    pub(super) served: Vec<Condition>,
    pub(super) residual: Vec<Residual>,
    pub(super) grouping: Option<Grouping>,
    pub(super) limit: usize,
    pub(super) digest: u64,
    /// Of a page that goes on: when the first page was read, and its watermark.
    pub(super) moment: Option<(Timestamp, Timestamp)>,
    pub(super) with_rows: bool,
}

/// Which rows of the index are read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum RowKind {
    Entries,
    Groups,
}

/// What rows are folded into.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Grouping {
    /// The first so many fields of a key tell its group.
    pub fields: usize,
    /// Which of them a result names.
    pub shown: Vec<usize>,
    pub aggregates: Vec<Aggregate>,
    /// Only groups of at least so many rows are results.
    pub min_count: u64,
    /// After an entry that matched, the others with the same fields need not be read.
    pub skips: bool,
}

/// What is asked of groups, before it is known how the key's fields lie.
struct Asked {
    rows: RowKind,
    /// `None`: no groups but entries.
    aggregates: Option<Vec<Aggregate>>,
    min_count: u64,
}

/// Plans a query. A page token makes it begin where the page before ended.
///
/// # Errors
///
/// `Invalid` where the index can't serve it: a field that it doesn't have, an order or groups that don't follow its
/// own, an aggregate of another kind; or where the page token is damaged, or not of this query, index and version.
pub fn plan(definition: &Definition, query: &Query) -> Result<Plan> {
    if query.limit == 0 || query.limit > MAX_PAGE_ROWS {
        return Err(Error::invalid(format!(
            "a query's limit is {}: a page has 1 to {MAX_PAGE_ROWS} results",
            query.limit
        )));
    }
    let asked = asked(definition, query)?;
    let (layout, columns) = match asked.rows {
        RowKind::Entries => (Layout::entries(definition), Columns::entries(definition)),
        RowKind::Groups => (Layout::groups(definition), Columns::groups(definition)),
    };
    let ranged = ranges::ranges(&columns, &layout, &query.filter)?;
    let mut grouping = match asked.aggregates {
        Some(aggregates) => {
            let grouping = grouping(definition, query, &ranged, aggregates)?;
            Some(Grouping { min_count: asked.min_count, ..grouping })
        }
        None => None,
    };
    let ordered = &columns.key[..grouping.as_ref().map_or(columns.key.len(), |grouping| grouping.fields)];
    let wanted = direction(&columns, ordered, &ranged.fixed, query)?;
    let direction = settle(wanted, asked.rows, grouping.as_mut());
    let mut plan = Plan {
        definition: definition.clone(),
        layout,
        rows: asked.rows,
        ranges: ranged.ranges,
        direction,
        served: ranged.served,
        residual: ranged.residual,
        grouping,
        limit: query.limit,
        digest: query_digest(query),
        moment: None,
        with_rows: query.with_rows,
    };
    if direction == Direction::Reverse {
        plan.ranges.reverse();
    }
    if let Some(token) = &query.page_token {
        plan.resume(PageToken::decode(token, definition, plan.digest)?);
    }
    Ok(plan)
}

impl Plan {
    /// The ranges of internal keys to read, in this order; those of earlier pages are left out.
    pub fn ranges(&self) -> &[KeyRange] {
        &self.ranges
    }

    /// The direction in which each range is read.
    pub fn direction(&self) -> Direction {
        self.direction
    }

    /// Of a page that goes on, the timestamp at which the first page was read, and its watermark. They are this one's, too.
    pub fn moment(&self) -> Option<(Timestamp, Timestamp)> {
        self.moment
    }

    /// Conditions that are checked on each row, since no range serves them.
    pub fn residual(&self) -> impl Iterator<Item = &Condition> {
        self.residual.iter().map(|residual| &residual.condition)
    }

    /// Goes on where a page ended.
    fn resume(&mut self, token: PageToken) {
        let left = match self.direction {
            Direction::Forward => KeyRange::new(token.bound, None),
            Direction::Reverse => KeyRange::new("", Some(token.bound)),
        };
        self.ranges = self.ranges.iter().filter_map(|range| range.intersect(&left)).collect();
        self.moment = Some((token.read_ts, token.watermark));
    }
}

/// The direction to read in, where the query leaves it open, and whether entries can be skipped in it.
fn settle(wanted: Option<Direction>, rows: RowKind, grouping: Option<&mut Grouping>) -> Direction {
    let Some(grouping) = grouping else { return wanted.unwrap_or_default() };
    let direction = wanted.unwrap_or(match grouping.aggregates.as_slice() {
        // The largest measure of a group is its last one: read from there, it comes first.
        [Aggregate::Max] => Direction::Reverse,
        _ => Direction::Forward,
    });
    let near = match direction {
        Direction::Forward => Aggregate::Min,
        Direction::Reverse => Aggregate::Max,
    };
    grouping.skips = rows == RowKind::Entries && grouping.aggregates == [near];
    direction
}

/// Which rows answer the query, and what is made of them.
fn asked(definition: &Definition, query: &Query) -> Result<Asked> {
    let kind = definition.spec().kind;
    let refused = |what: String| Err(Error::invalid(format!("index {} {what}", definition.name())));
    if query.duplicates {
        if kind != Kind::Unique || query.group_by.is_some() || !query.aggregates.is_empty() {
            return refused(format!(
                "is of kind {}: duplicates are asked of a unique index, without groups and aggregates",
                kind.name()
            ));
        }
        return Ok(Asked { rows: RowKind::Groups, aggregates: Some(vec![Aggregate::Count]), min_count: 2 });
    }
    let (rows, all, allowed) = match kind {
        Kind::Value => (RowKind::Entries, vec![], vec![]),
        Kind::Unique => (RowKind::Groups, vec![Aggregate::Count], vec![Aggregate::Count]),
        Kind::Count => (RowKind::Groups, vec![Aggregate::Count], vec![Aggregate::Count]),
        Kind::Sum => {
            (RowKind::Groups, vec![Aggregate::Count, Aggregate::Sum], vec![Aggregate::Count, Aggregate::Sum])
        }
        Kind::Min => (RowKind::Entries, vec![Aggregate::Min], vec![Aggregate::Min, Aggregate::Max]),
        Kind::Max => (RowKind::Entries, vec![Aggregate::Max], vec![Aggregate::Min, Aggregate::Max]),
    };
    if let Some(other) = query.aggregates.iter().find(|aggregate| !allowed.contains(aggregate)) {
        return refused(format!(
            "is of kind {} and has no {}: define an index of kind {1}",
            kind.name(),
            other.name()
        ));
    }
    let wants_groups = query.group_by.is_some() || !query.aggregates.is_empty();
    if wants_groups && allowed.is_empty() {
        return refused(
            "is of kind value, and has no groups: define an index of kind count, sum, min or max".into(),
        );
    }
    if kind.has_entries() && !wants_groups {
        return Ok(Asked { rows: RowKind::Entries, aggregates: None, min_count: 0 });
    }
    let aggregates = if query.aggregates.is_empty() { all } else { query.aggregates.clone() };
    Ok(Asked { rows, aggregates: Some(aggregates), min_count: 0 })
}

/// How rows are folded. The fields that make a group must be the first ones of the index, besides those that the
/// filter leaves one value.
fn grouping(
    definition: &Definition,
    query: &Query,
    ranged: &Ranged,
    mut aggregates: Vec<Aggregate>,
) -> Result<Grouping> {
    let on: Vec<&Field> = definition.spec().on.iter().collect();
    let columns = Columns { key: on, covering: Vec::new(), index: definition.name() };
    let mut shown = match &query.group_by {
        Some(names) => names.iter().map(|name| columns.find_key(name)).collect::<Result<Vec<_>>>()?,
        None => (0..columns.key.len()).collect(),
    };
    shown.sort_unstable();
    shown.dedup();
    let fields = shown.last().map_or(0, |last| last + 1);
    let is_fixed = |at: usize| ranged.fixed.get(at).copied().unwrap_or(false);
    if let Some(left_out) = (0..fields).find(|at| !shown.contains(at) && !is_fixed(*at)) {
        return Err(Error::invalid(format!(
            "index {} can't group by {}: its fields are {}, so {} must be grouped by too, or be bound by =; or define \
             an index on the fields to group by",
            columns.index,
            query.group_by.as_deref().unwrap_or_default().join(", "),
            described(&columns.key),
            columns.key[left_out].name
        )));
    }
    aggregates.sort_unstable_by_key(|aggregate| aggregate.name());
    aggregates.dedup();
    Ok(Grouping { fields, shown, aggregates, min_count: 0, skips: false })
}

/// The direction in which the index has the order that is asked for; `None` where any will do.
///
/// # Errors
///
/// `Invalid` where neither has it; the error says which index would serve it.
fn direction(
    columns: &Columns<'_>,
    ordered: &[&Field],
    fixed: &[bool],
    query: &Query,
) -> Result<Option<Direction>> {
    let is_fixed = |at: usize| fixed.get(at).copied().unwrap_or(false);
    let mut direction = None;
    let mut next = 0;
    for OrderBy { field, order } in &query.order {
        let Column::Key(at) = columns.find(field)?.0 else {
            return Err(not_in_order(columns, ordered, query));
        };
        if at >= ordered.len() {
            return Err(Error::invalid(format!(
                "groups of index {} can't be ordered by {field}: it is not among what they are grouped by",
                columns.index
            )));
        }
        // What has one value is in every order.
        if is_fixed(at) {
            continue;
        }
        while next < at && is_fixed(next) {
            next += 1;
        }
        let wanted = match ordered.get(at) {
            Some(field) if at == next && field.order == *order => Direction::Forward,
            Some(_) if at == next => Direction::Reverse,
            _ => return Err(not_in_order(columns, ordered, query)),
        };
        if direction.is_some_and(|direction| direction != wanted) {
            return Err(not_in_order(columns, ordered, query));
        }
        direction = Some(wanted);
        next += 1;
    }
    Ok(direction)
}

fn not_in_order(columns: &Columns<'_>, ordered: &[&Field], query: &Query) -> Error {
    let is_equal = |condition: &&Condition| matches!(&condition.test, Test::In(values) if values.len() == 1);
    let mut wanted: Vec<String> = Vec::new();
    let mut named: Vec<&str> = Vec::new();
    for condition in query.filter.iter().filter(is_equal) {
        if query.order.iter().all(|item| item.field != condition.field)
            && !named.contains(&condition.field.as_str())
        {
            named.push(&condition.field);
            wanted.push(condition.field.clone());
        }
    }
    wanted.extend(query.order.iter().map(OrderBy::to_string));
    let what = if ordered.len() < columns.key.len() { "groups of index" } else { "index" };
    Error::invalid(format!(
        "{what} {} can't give the order {}: it has {}, or exactly the reverse; an index on {} would serve it",
        columns.index,
        joined(&query.order, ", "),
        if ordered.is_empty() { "one group".into() } else { described(ordered) },
        wanted.join(", ")
    ))
}

impl Residual {
    /// Whether a row with these fields meets the condition.
    pub(super) fn matches(&self, key: &[super::Datum], covering: &[super::Datum]) -> bool {
        let datum = match self.column {
            Column::Key(at) => key.get(at),
            Column::Covering(at) => covering.get(at),
        };
        datum.is_some_and(|datum| self.condition.test.matches(datum))
    }
}
