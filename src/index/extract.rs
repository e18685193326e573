//! From a user's row to the fields of an index, or to why it can't be indexed.

use std::fmt;

use bytes::Bytes;
use serde_json::Value;

use super::layout::{self, Layout};
use super::source::Found;
use super::{Datum, Definition, Field, Fixed, Kind, Missing};
use crate::types::Error;
use crate::types::limits::{MAX_INDEX_COVERING_BYTES, MAX_INDEX_KEY_BYTES};

/// Why a row can't be indexed: what a dead-letter record holds of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RowError {
    /// The row's key, as users know it.
    pub key: Bytes,
    /// The field that is to blame.
    pub field: String,
    /// What was found.
    pub found: String,
    /// What was wanted.
    pub wanted: String,
}

impl RowError {
    /// The error without the key: the reason in a dead-letter record.
    pub fn reason(&self) -> String {
        format!("the field {} is {}: wanted {}", self.field, self.found, self.wanted)
    }
}

impl fmt::Display for RowError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the row \"{}\" can't be indexed: {}", self.key.escape_ascii(), self.reason())
    }
}

impl std::error::Error for RowError {}

impl From<RowError> for Error {
    fn from(error: RowError) -> Self {
        Error::invalid(format!(
            "{error}; correct the row, or let the index leave such rows out (on_error: dead-letter or skip)"
        ))
    }
}

/// The index rows that one row of users has a part in.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct IndexRows {
    /// The key and value of its entry.
    pub entry: Option<(Bytes, Bytes)>,
    /// The key of its group, and what it adds to the group's sum.
    pub group: Option<(Bytes, Option<Fixed>)>,
}

/// One row, and its value as JSON where any field needs it.
struct Row<'r> {
    definition: &'r Definition,
    key: &'r [u8],
    /// The key behind the prefix.
    rest: &'r [u8],
    value: Result<Option<Value>, String>,
}

/// What comes of one field of a row.
enum Extracted {
    /// The row is not in the index.
    Absent,
    Datum(Datum),
}

/// The index rows of a row; none where it is not in the index.
///
/// The fields are looked at in the order of the definition: the first that is missing, where such rows are skipped,
/// or that is wrong, decides.
///
/// # Errors
///
/// The first field that can't be indexed.
pub(super) fn index_rows(definition: &Definition, key: &[u8], value: &[u8]) -> Result<IndexRows, RowError> {
    let spec = definition.spec();
    let Some(rest) = key.strip_prefix(&spec.prefix[..]) else { return Ok(IndexRows::default()) };
    let row = Row { definition, key, rest, value: parse(definition, value) };
    let mut fields = Vec::with_capacity(spec.on.len() + 1);
    for field in &spec.on {
        match row.extract(field, spec.missing)? {
            Extracted::Datum(datum) => fields.push(datum),
            Extracted::Absent => return Ok(IndexRows::default()),
        }
    }
    let mut sum = None;
    if let Some(measure) = &spec.measure {
        match row.extract(measure, Missing::Skip)? {
            Extracted::Absent | Extracted::Datum(Datum::Null) => return Ok(IndexRows::default()),
            Extracted::Datum(datum) if spec.kind == Kind::Sum => sum = Some(row.summand(measure, &datum)?),
            Extracted::Datum(datum) => fields.push(datum),
        }
    }
    let mut covering = Vec::with_capacity(spec.covering.len());
    for field in &spec.covering {
        match row.extract(field, Missing::Null)? {
            Extracted::Datum(datum) => covering.push(datum),
            Extracted::Absent => covering.push(Datum::Null),
        }
    }
    row.assemble(&fields, &covering, sum)
}

/// The value as JSON, where any field needs it.
fn parse(definition: &Definition, value: &[u8]) -> Result<Option<Value>, String> {
    let spec = definition.spec();
    let mut fields = spec.on.iter().chain(&spec.measure).chain(&spec.covering);
    if !fields.any(|field| field.source.reads_value()) {
        return Ok(None);
    }
    serde_json::from_slice(value).map(Some).map_err(|error| error.to_string())
}

impl Row<'_> {
    fn error(&self, field: &Field, found: String, wanted: String) -> RowError {
        RowError { key: Bytes::copy_from_slice(self.key), field: field.name.clone(), found, wanted }
    }

    fn extract(&self, field: &Field, missing: Missing) -> Result<Extracted, RowError> {
        let value = match &self.value {
            Ok(value) => value.as_ref(),
            Err(_) if !field.source.reads_value() => None,
            Err(error) => {
                let found = format!("in a value that is no JSON ({error})");
                return Err(self.error(field, found, "a value of JSON".into()));
            }
        };
        match field.source.find(self.rest, value) {
            Found::Missing if missing == Missing::Skip => Ok(Extracted::Absent),
            Found::Missing => Ok(Extracted::Datum(Datum::Null)),
            Found::Wrong(found, wanted) => Err(self.error(field, found, wanted.into())),
            Found::Datum(datum) => match field.datum_type {
                Some(datum_type) if !datum_type.admits(&datum) => {
                    let found = super::datum::describe(&datum.to_json());
                    Err(self.error(field, found, datum_type.described().into()))
                }
                _ => Ok(Extracted::Datum(datum)),
            },
        }
    }

    /// What the row adds to its group's sum.
    fn summand(&self, measure: &Field, datum: &Datum) -> Result<Fixed, RowError> {
        let summand = match datum {
            Datum::Number(number) => Fixed::from_number(*number),
            _ => None,
        };
        summand.ok_or_else(|| {
            let found = super::datum::describe(&datum.to_json());
            let wanted = "a number from -10^18 to 10^18 with at most 9 digits after the point".into();
            self.error(measure, found, wanted)
        })
    }

    fn assemble(
        &self,
        fields: &[Datum],
        covering: &[Datum],
        sum: Option<Fixed>,
    ) -> Result<IndexRows, RowError> {
        let kind = self.definition.spec().kind;
        let mut rows = IndexRows::default();
        if kind.has_entries() {
            let layout = Layout::entries(self.definition);
            let (key, value) = (layout.key(fields, self.key), layout::entry_value(covering));
            self.check_covering(covering, &value)?;
            self.check_key(&layout, &key)?;
            rows.entry = Some((key, value));
        }
        if kind.has_groups() {
            let layout = Layout::groups(self.definition);
            let key = layout.key(fields, b"");
            self.check_key(&layout, &key)?;
            rows.group = Some((key, sum));
        }
        Ok(rows)
    }

    /// A key that is too long is blamed on its longest field.
    fn check_key(&self, layout: &Layout, key: &[u8]) -> Result<(), RowError> {
        if key.len() <= MAX_INDEX_KEY_BYTES {
            return Ok(());
        }
        let ends = layout.read_key(key).map(|key| key.ends).unwrap_or_default();
        let lengths = ends.windows(2).map(|ends| ends[1] - ends[0]);
        let longest = self.definition.entry_columns().zip(lengths).max_by_key(|(_, length)| *length);
        let Some((field, length)) = longest else { return Ok(()) };
        let found = format!("{length} bytes long, and the key of its index row {}", key.len());
        let wanted = format!(
            "at most {MAX_INDEX_KEY_BYTES} bytes for all fields and the row's own key, which has {}",
            self.key.len()
        );
        Err(self.error(field, found, wanted))
    }

    fn check_covering(&self, covering: &[Datum], value: &[u8]) -> Result<(), RowError> {
        if value.len() <= MAX_INDEX_COVERING_BYTES {
            return Ok(());
        }
        let lengths = covering.iter().map(|datum| layout::entry_value(std::slice::from_ref(datum)).len() - 1);
        let fields = self.definition.spec().covering.iter();
        let Some((field, length)) = fields.zip(lengths).max_by_key(|(_, length)| *length) else {
            return Ok(());
        };
        let found = format!("{length} bytes long, and all covering fields {}", value.len());
        Err(self.error(
            field,
            found,
            format!("at most {MAX_INDEX_COVERING_BYTES} bytes for all covering fields"),
        ))
    }
}
