//! What an index is: over which rows, by which fields, and what becomes of rows that don't fit.

use std::str::FromStr;
use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{DatumType, Field, Order};
use crate::codec::{self, keyspace::index_version_range};
use crate::types::limits::{MAX_INDEX_COVERING_FIELDS, MAX_INDEX_FIELDS, MAX_KEY_BYTES, MAX_NAME_BYTES};
use crate::types::{Error, KeyRange, Result, is_name};

/// What an index answers.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Which rows have these fields.
    Value,
    /// The same, and which values several rows have. Null counts as a value.
    Unique,
    /// How many rows have these fields.
    Count,
    /// How many, and the sum of a measure.
    Sum,
    /// The smallest measure of the rows with these fields.
    Min,
    /// The largest measure of the rows with these fields.
    Max,
}

impl Kind {
    const ALL: [Self; 6] = [Self::Value, Self::Unique, Self::Count, Self::Sum, Self::Min, Self::Max];

    /// The kind's name in text.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Value => "value",
            Self::Unique => "unique",
            Self::Count => "count",
            Self::Sum => "sum",
            Self::Min => "min",
            Self::Max => "max",
        }
    }

    /// Whether it has a measure.
    pub const fn has_measure(self) -> bool {
        matches!(self, Self::Sum | Self::Min | Self::Max)
    }

    /// Whether each row of users has an entry.
    pub const fn has_entries(self) -> bool {
        !matches!(self, Self::Count | Self::Sum)
    }

    /// Whether rows with the same fields share a row that counts them.
    pub const fn has_groups(self) -> bool {
        matches!(self, Self::Unique | Self::Count | Self::Sum)
    }
}

/// What becomes of a row that has no such field.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Missing {
    /// It is not in the index.
    #[default]
    Skip,
    /// The field is null.
    Null,
}

/// What becomes of a row that can't be indexed. Under each rule it counts as not in the index.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnError {
    /// Nothing goes on until somebody has seen to it.
    #[default]
    Halt,
    /// It is recorded.
    DeadLetter,
    /// It is left out.
    Skip,
}

impl Missing {
    const ALL: [Self; 2] = [Self::Skip, Self::Null];

    /// The rule's name in text.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Skip => "skip",
            Self::Null => "null",
        }
    }
}

impl OnError {
    const ALL: [Self; 3] = [Self::Halt, Self::DeadLetter, Self::Skip];

    /// The rule's name in text.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Halt => "halt",
            Self::DeadLetter => "dead-letter",
            Self::Skip => "skip",
        }
    }
}

impl FromStr for Kind {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        by_name("kind of index", text, Self::ALL.map(|kind| (kind.name(), kind)))
    }
}

impl FromStr for Missing {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        by_name("rule for rows without a field", text, Self::ALL.map(|rule| (rule.name(), rule)))
    }
}

impl FromStr for OnError {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        by_name("rule for rows that can't be indexed", text, Self::ALL.map(|rule| (rule.name(), rule)))
    }
}

/// What has the name.
fn by_name<T, const N: usize>(what: &str, text: &str, known: [(&'static str, T); N]) -> Result<T> {
    let names = known.each_ref().map(|(name, _)| *name).join(", ");
    let found = known.into_iter().find(|(name, _)| *name == text);
    found
        .map(|(_, value)| value)
        .ok_or_else(|| Error::invalid(format!("{text:?} is no {what}: use one of {names}")))
}

/// What an index is, as it is written down. [`Definition::new`] checks it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Spec {
    /// 1 to 64 of a-z, 0-9, `_` and `-`.
    pub name: String,
    /// How the keys of the indexed rows begin, as users know them. Empty: all rows.
    pub prefix: Bytes,
    /// What it answers.
    pub kind: Kind,
    /// What it is ordered or grouped by: 1 to 8 fields.
    pub on: Vec<Field>,
    /// What is summed or compared: of sum, min and max, and of no other kind. A row whose measure is null or missing
    /// is not in the index. Of a sum it is a number, exact to nine digits after the point and up to 10^18.
    #[serde(default)]
    pub measure: Option<Field>,
    /// What entries hold besides, so that queries need not read the rows: up to 16 fields, and none of count and sum,
    /// which have no entries. One that is missing is null, whatever `missing` says.
    #[serde(default)]
    pub covering: Vec<Field>,
    /// What becomes of a row that has no such field.
    #[serde(default)]
    pub missing: Missing,
    /// What becomes of a row that can't be indexed.
    #[serde(default)]
    pub on_error: OnError,
}

/// A checked definition of an index. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(try_from = "Identified", into = "Identified")]
pub struct Definition(Arc<Identified>);

/// A definition as it is stored; reading it checks it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct Identified {
    id: u64,
    version: u32,
    spec: Spec,
}

impl Definition {
    /// The definition of the index `id`, in its `version`: rows of different versions lie apart. Both are the
    /// caller's: two definitions with the same ones would write over each other's rows.
    ///
    /// # Errors
    ///
    /// `Invalid`, saying what is wrong and what is allowed.
    pub fn new(id: u64, version: u32, mut spec: Spec) -> Result<Self> {
        check_names(&spec)?;
        check_counts(&spec)?;
        check_measure(&mut spec)?;
        if let Some(field) = spec.covering.iter().find(|field| field.order == Order::Desc) {
            return Err(Error::invalid(format!(
                "the covering field {} can't be desc: an index is ordered by the fields of `on` only",
                field.name
            )));
        }
        Ok(Self(Arc::new(Identified { id, version, spec })))
    }

    /// The index's id.
    pub fn id(&self) -> u64 {
        self.0.id
    }

    /// The version of the definition.
    pub fn version(&self) -> u32 {
        self.0.version
    }

    /// What the index is.
    pub fn spec(&self) -> &Spec {
        &self.0.spec
    }

    /// The index's name.
    pub fn name(&self) -> &str {
        &self.0.spec.name
    }

    /// The same, but that rows which can't be indexed are left out, with a dead letter.
    pub(super) fn leaving_out(&self) -> Self {
        let mut lenient = Identified::clone(&self.0);
        lenient.spec.on_error = OnError::DeadLetter;
        Self(Arc::new(lenient))
    }

    /// As it is stored.
    pub fn encode(&self) -> Bytes {
        codec::encode(&*self.0).into()
    }

    /// Reads a stored definition.
    ///
    /// # Errors
    ///
    /// `Corrupt` where it can't be read, `Invalid` where it is wrong: only another build of kvorum can have stored it.
    pub fn decode(stored: &[u8]) -> Result<Self> {
        let Identified { id, version, spec } = codec::decode(stored, "the definition of an index")?;
        Self::new(id, version, spec)
    }

    /// All rows of this version of the index, by their internal keys.
    pub fn range(&self) -> KeyRange {
        index_version_range(self.id(), self.version())
    }

    /// The fields that entries are ordered by: those of `on`, and of min and max the measure.
    pub(super) fn entry_columns(&self) -> impl Iterator<Item = &Field> {
        let spec = self.spec();
        let measure = spec.measure.as_ref().filter(|_| spec.kind.has_entries());
        spec.on.iter().chain(measure)
    }
}

impl TryFrom<Identified> for Definition {
    type Error = Error;

    fn try_from(stored: Identified) -> Result<Self> {
        Self::new(stored.id, stored.version, stored.spec)
    }
}

impl From<Definition> for Identified {
    fn from(definition: Definition) -> Self {
        Arc::unwrap_or_clone(definition.0)
    }
}

fn check_names(spec: &Spec) -> Result<()> {
    let name = &spec.name;
    if !is_name(name) {
        return Err(Error::invalid(format!(
            "{:?} is no name of an index: it has 1 to {MAX_NAME_BYTES} of a-z, 0-9, _ and -",
            name.chars().take(2 * MAX_NAME_BYTES).collect::<String>()
        )));
    }
    if spec.prefix.len() > MAX_KEY_BYTES {
        return Err(Error::invalid(format!(
            "the prefix of index {name} has {} bytes: the longest key has {MAX_KEY_BYTES}",
            spec.prefix.len()
        )));
    }
    let mut seen = Vec::new();
    for field in spec.on.iter().chain(&spec.measure).chain(&spec.covering) {
        field.check()?;
        if seen.contains(&&field.name) {
            return Err(Error::invalid(format!(
                "index {name} has two fields named {0}: give one another name, NAME={1}",
                field.name, field.source
            )));
        }
        seen.push(&field.name);
    }
    Ok(())
}

fn check_counts(spec: &Spec) -> Result<()> {
    let (name, kind) = (&spec.name, spec.kind.name());
    if spec.on.is_empty() || spec.on.len() > MAX_INDEX_FIELDS {
        return Err(Error::invalid(format!(
            "index {name} is on {} fields: it needs 1 to {MAX_INDEX_FIELDS}",
            spec.on.len()
        )));
    }
    if spec.covering.len() > MAX_INDEX_COVERING_FIELDS {
        return Err(Error::invalid(format!(
            "index {name} has {} covering fields: the most is {MAX_INDEX_COVERING_FIELDS}",
            spec.covering.len()
        )));
    }
    if !spec.covering.is_empty() && !spec.kind.has_entries() {
        return Err(Error::invalid(format!(
            "index {name} can't have covering fields: a {kind} index has no entry for each row; leave them out, or \
             choose the kind value"
        )));
    }
    Ok(())
}

/// Checks the measure. That of a sum is a number, also where nothing was said.
fn check_measure(spec: &mut Spec) -> Result<()> {
    let (name, kind) = (&spec.name, spec.kind);
    match &mut spec.measure {
        None if kind.has_measure() => Err(Error::invalid(format!(
            "index {name} needs a measure, the field whose {} is kept: such as $.amount",
            kind.name()
        ))),
        Some(measure) if !kind.has_measure() => Err(Error::invalid(format!(
            "index {name} can't have the measure {}: a {} index keeps none; use sum, min or max, or name it in \
             `covering`",
            measure.name,
            kind.name()
        ))),
        Some(measure) if measure.order == Order::Desc => Err(Error::invalid(format!(
            "the measure {} of index {name} can't be desc: it is always kept smallest first",
            measure.name
        ))),
        Some(measure) if kind == Kind::Sum => match measure.known_type() {
            None | Some(DatumType::Number) => {
                measure.datum_type = Some(DatumType::Number);
                Ok(())
            }
            Some(other) => Err(Error::invalid(format!(
                "the measure {} of index {name} is {}: only numbers have a sum",
                measure.name,
                other.described()
            ))),
        },
        _ => Ok(()),
    }
}
