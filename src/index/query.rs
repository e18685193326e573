//! What is asked of an index: conditions, an order, groups, a page.

use std::fmt;

use bytes::Bytes;

use super::parse;
use super::{Datum, Order};
use crate::types::limits::{DEFAULT_QUERY_LIMIT, MAX_PAGE_ROWS};
use crate::types::{Error, Result};

/// What the value of a field must be.
///
/// `<`, `<=`, `>`, `>=` and `prefix` hold for values of the same type only: `score >= 10` for no string. `=` and
/// `!=` compare all: null equals null, and `x != 1` holds for null.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Test {
    /// One of these.
    In(Vec<Datum>),
    /// Not this.
    Not(Datum),
    /// Smaller. Never null.
    Less(Datum),
    /// Smaller or the same. Never null.
    LessOrEqual(Datum),
    /// Larger. Never null.
    Greater(Datum),
    /// Larger or the same. Never null.
    GreaterOrEqual(Datum),
    /// A string that begins so.
    Prefix(String),
}

impl Test {
    /// Whether a value meets it.
    pub fn matches(&self, datum: &Datum) -> bool {
        let comparable = |wanted: &Datum| wanted.datum_type() == datum.datum_type();
        match self {
            Self::In(wanted) => wanted.contains(datum),
            Self::Not(refused) => refused != datum,
            Self::Less(bound) => comparable(bound) && datum < bound,
            Self::LessOrEqual(bound) => comparable(bound) && datum <= bound,
            Self::Greater(bound) => comparable(bound) && datum > bound,
            Self::GreaterOrEqual(bound) => comparable(bound) && datum >= bound,
            Self::Prefix(prefix) => matches!(datum, Datum::String(text) if text.starts_with(prefix.as_str())),
        }
    }

    /// The values that it names.
    pub(super) fn values(&self) -> Vec<Datum> {
        match self {
            Self::In(values) => values.clone(),
            Self::Not(value)
            | Self::Less(value)
            | Self::LessOrEqual(value)
            | Self::Greater(value)
            | Self::GreaterOrEqual(value) => vec![value.clone()],
            Self::Prefix(prefix) => vec![Datum::String(prefix.clone())],
        }
    }
}

/// A field and what it must be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Condition {
    /// The field's name.
    pub field: String,
    /// What it must be.
    pub test: Test,
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (sign, value) = match &self.test {
            Test::In(values) => match values.as_slice() {
                [value] => ("=", value.to_string()),
                values => ("in", format!("({})", joined(values, ", "))),
            },
            Test::Not(value) => ("!=", value.to_string()),
            Test::Less(value) => ("<", value.to_string()),
            Test::LessOrEqual(value) => ("<=", value.to_string()),
            Test::Greater(value) => (">", value.to_string()),
            Test::GreaterOrEqual(value) => (">=", value.to_string()),
            Test::Prefix(prefix) => ("prefix", Datum::String(prefix.clone()).to_string()),
        };
        write!(f, "{} {sign} {value}", self.field)
    }
}

/// A field to order by.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct OrderBy {
    /// The field's name.
    pub field: String,
    /// Which end comes first.
    pub order: Order,
}

impl fmt::Display for OrderBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.field, self.order)
    }
}

/// What is asked of a group of rows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Aggregate {
    /// How many they are: of a count, sum or unique index.
    Count,
    /// The sum of their measure: of a sum index.
    Sum,
    /// Their smallest measure: of a min or max index.
    Min,
    /// Their largest measure: of a min or max index.
    Max,
}

impl Aggregate {
    pub(super) const ALL: [Self; 4] = [Self::Count, Self::Sum, Self::Min, Self::Max];

    /// The aggregate's name in text.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Count => "count",
            Self::Sum => "sum",
            Self::Min => "min",
            Self::Max => "max",
        }
    }
}

/// A query as text, as the command line and HTTP have it. What is left out asks for nothing.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct QueryText<'t> {
    /// `country = "FR" and score >= 10 and name prefix "Al"`. Conditions: `=`, `!=`, `<`, `<=`, `>`, `>=`, `prefix`,
    /// `in (…)`; values as in JSON.
    pub filter: &'t str,
    /// `score desc, name`.
    pub order: &'t str,
    /// `country, type`; empty for one group of all; `None` for the index's own groups, or no groups.
    pub group_by: Option<&'t str>,
    /// `count, sum`.
    pub aggregates: &'t str,
    /// Of a unique index: the values that several rows have, and how many.
    pub duplicates: bool,
    /// Results in the page: 1 to 10,000.
    pub limit: Option<usize>,
    /// Where the page before ended.
    pub page_token: Option<Bytes>,
    /// Whether the rows themselves are wanted too.
    pub with_rows: bool,
}

/// A query. `plan` says how an index serves it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Query {
    /// All of these are met.
    pub filter: Vec<Condition>,
    /// The order of the results; empty where any will do.
    pub order: Vec<OrderBy>,
    /// The fields whose values make a group; empty for one group of all. `None` for the index's own groups, where
    /// it has only groups or aggregates are asked for, else for no groups.
    pub group_by: Option<Vec<String>>,
    /// What is asked of the groups; empty for all that a count or sum index has, else for no groups.
    pub aggregates: Vec<Aggregate>,
    /// Of a unique index: the values that several rows have, and how many. Goes with a filter and an order only.
    pub duplicates: bool,
    /// Results in the page: 1 to [`MAX_PAGE_ROWS`].
    pub limit: usize,
    /// Where the page before ended, as its reader gave it.
    pub page_token: Option<Bytes>,
    /// Whether the caller reads the rows themselves too. Changes no result.
    pub with_rows: bool,
}

impl Query {
    /// Reads a query.
    ///
    /// # Errors
    ///
    /// `Invalid`, saying where the text is wrong and what was expected there; or which limit was passed.
    pub fn parse(text: &QueryText<'_>) -> Result<Self> {
        let limit = text.limit.unwrap_or(DEFAULT_QUERY_LIMIT);
        if limit == 0 || limit > MAX_PAGE_ROWS {
            return Err(Error::invalid(format!(
                "a query's limit is {limit}: a page has 1 to {MAX_PAGE_ROWS} results"
            )));
        }
        Ok(Self {
            filter: parse::filter(text.filter)?,
            order: parse::order(text.order)?,
            group_by: text.group_by.map(parse::group_by).transpose()?,
            aggregates: parse::aggregates(text.aggregates)?,
            duplicates: text.duplicates,
            limit,
            page_token: text.page_token.clone(),
            with_rows: text.with_rows,
        })
    }
}

impl fmt::Display for Query {
    /// What decides which results come in which order: not the page.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "filter {}", joined(&self.filter, " and "))?;
        write!(f, "; order {}", joined(&self.order, ", "))?;
        if let Some(group_by) = &self.group_by {
            write!(f, "; group by {}", group_by.join(", "))?;
        }
        let aggregates: Vec<_> = self.aggregates.iter().map(|aggregate| aggregate.name()).collect();
        write!(f, "; aggregates {}", aggregates.join(", "))?;
        if self.duplicates { f.write_str("; duplicates") } else { Ok(()) }
    }
}

/// Items with a separator between them.
pub(super) fn joined<T: fmt::Display>(items: &[T], separator: &str) -> String {
    items.iter().map(T::to_string).collect::<Vec<_>>().join(separator)
}
