//! A field of an index: its name, where it comes from, its order and its type.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{Datum, Source};
use crate::types::limits::MAX_NAME_BYTES;
use crate::types::{Error, Result};

/// Which end of a field's values comes first in an index.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// The smallest.
    #[default]
    Asc,
    /// The largest.
    Desc,
}

impl Order {
    /// The other order.
    #[must_use]
    pub fn reversed(self) -> Self {
        match self {
            Self::Asc => Self::Desc,
            Self::Desc => Self::Asc,
        }
    }
}

impl fmt::Display for Order {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Asc => "asc",
            Self::Desc => "desc",
        })
    }
}

/// The types that a field can be bound to. Null is of each of them.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DatumType {
    /// Strings.
    String,
    /// Numbers.
    Number,
    /// Truth values.
    Bool,
}

impl DatumType {
    const ALL: [Self; 3] = [Self::String, Self::Number, Self::Bool];

    /// The type's name in text.
    pub const fn name(self) -> &'static str {
        match self {
            Self::String => "string",
            Self::Number => "number",
            Self::Bool => "bool",
        }
    }

    /// The type with its article, for messages.
    pub(super) const fn described(self) -> &'static str {
        match self {
            Self::String => "a string",
            Self::Number => "a number",
            Self::Bool => "a bool",
        }
    }

    /// Whether the value is of the type.
    pub fn admits(self, datum: &Datum) -> bool {
        datum.datum_type().is_none_or(|found| found == self)
    }
}

/// A field of an index. As text: `[NAME=]SOURCE[:TYPE][ asc| desc]`, such as `country=$.country:string` or
/// `$.score:number desc`. Without a name it gets the last step's of the path.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Field {
    /// What queries call it: 1 to 64 letters, digits, `_` and `-`, the first one a letter or `_`.
    pub name: String,
    /// Where it comes from.
    pub source: Source,
    /// Its order in the index. Of use in `on` only.
    #[serde(default)]
    pub order: Order,
    /// The only type that it may have; `None` allows all.
    #[serde(default)]
    pub datum_type: Option<DatumType>,
}

impl Field {
    /// Checks the name, and that the source can have the type.
    ///
    /// # Errors
    ///
    /// `Invalid`, saying which is wrong.
    pub(super) fn check(&self) -> Result<()> {
        let name = &self.name;
        if !is_field_name(name) {
            return Err(Error::invalid(format!(
                "{name:?} is no name of a field: it has 1 to {MAX_NAME_BYTES} letters, digits, _ and -, and \
                 begins with a letter or _; write NAME={}",
                self.source
            )));
        }
        match (self.source.fixed_type(), self.datum_type) {
            (Some(fixed), Some(wanted)) if fixed != wanted => Err(Error::invalid(format!(
                "the field {name} is to be a {}, but parts of keys are strings",
                wanted.name()
            ))),
            _ => Ok(()),
        }
    }

    /// The only type its values can have besides null; `None` where several can occur.
    pub(super) fn known_type(&self) -> Option<DatumType> {
        self.datum_type.or(self.source.fixed_type())
    }
}

/// Whether a name can stand in a query.
fn is_field_name(name: &str) -> bool {
    let bytes = name.as_bytes();
    bytes.len() <= MAX_NAME_BYTES
        && bytes.first().is_some_and(|byte| byte.is_ascii_alphabetic() || *byte == b'_')
        && bytes.iter().all(|byte| is_name_byte(*byte))
}

/// Whether a name of a field may have the byte behind its first.
pub(super) fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-')
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.name, self.source)?;
        if let Some(datum_type) = self.datum_type {
            write!(f, ":{}", datum_type.name())?;
        }
        match self.order {
            Order::Asc => Ok(()),
            Order::Desc => f.write_str(" desc"),
        }
    }
}

impl FromStr for Field {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let rest = text.trim();
        let (name, rest) = match rest.split_once('=') {
            Some((name, rest)) if !name.starts_with('$') => (Some(name.trim().to_owned()), rest.trim()),
            _ => (None, rest),
        };
        let (rest, order) = match (rest.strip_suffix(" asc"), rest.strip_suffix(" desc")) {
            (Some(rest), _) => (rest.trim_end(), Order::Asc),
            (_, Some(rest)) => (rest.trim_end(), Order::Desc),
            _ => (rest, Order::Asc),
        };
        let mut typed = DatumType::ALL
            .into_iter()
            .filter_map(|datum_type| Some((strip_type(rest, datum_type)?, Some(datum_type))));
        let (rest, datum_type) = typed.next().unwrap_or((rest, None));
        let source: Source = rest.parse()?;
        let name = name
            .or_else(|| source.default_name())
            .ok_or_else(|| Error::invalid(format!("the field {text:?} needs a name: write NAME={rest}")))?;
        let field = Self { name, source, order, datum_type };
        field.check()?;
        Ok(field)
    }
}

fn strip_type(text: &str, datum_type: DatumType) -> Option<&str> {
    text.strip_suffix(datum_type.name())?.strip_suffix(':')
}
