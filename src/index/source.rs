//! Where a field comes from: a JSON path into the value, or a part of the key.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json_path::JsonPath;

use super::datum::describe;
use super::{Datum, DatumType};
use crate::types::limits::MAX_INDEX_PATH_BYTES;
use crate::types::{Error, Result};

/// What separates the parts of a key where nothing else is said.
const SEPARATOR: u8 = b'/';

/// Where a field comes from. As text: `$.json.path`, `key-part:1`, `key-part:1(-)`, `key`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Source {
    /// What a JSON path selects in the value.
    Path(Path),
    /// A part of the key behind the definition's prefix. As text a separator other than `/` stands in parentheses,
    /// as itself or as `\x1f`.
    KeyPart {
        /// Which part, from 0.
        part: u16,
        /// The byte between two parts.
        separator: u8,
    },
    /// The whole key behind the definition's prefix.
    Key,
}

/// A JSON path (RFC 9535) that takes time in proportion to the value: names, indexes, slices, wildcards, and `..` at
/// most once. Filters and lists of selectors are refused: a field has one value.
#[derive(Clone, Debug)]
pub struct Path {
    text: String,
    compiled: JsonPath,
}

impl PartialEq for Path {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for Path {}

/// What a source has in a row.
pub(super) enum Found {
    Missing,
    Datum(Datum),
    /// What was found instead of a value, and what was wanted.
    Wrong(String, &'static str),
}

impl Path {
    /// Reads a path.
    ///
    /// # Errors
    ///
    /// `Invalid` where it is no JSON path, or one that is not served.
    pub fn parse(text: &str) -> Result<Self> {
        if text.len() > MAX_INDEX_PATH_BYTES {
            return Err(Error::invalid(format!(
                "a JSON path has {} bytes: the most is {MAX_INDEX_PATH_BYTES}",
                text.len()
            )));
        }
        let plain = without_names(text);
        for (part, what) in [("?", "a filter"), (",", "a list of selectors"), ("(", "a function")] {
            if plain.contains(part) {
                return Err(Error::invalid(format!(
                    "the JSON path {text:?} has {what}: a field has one value, so name it by its members, as in \
                     $.address.country"
                )));
            }
        }
        if plain.matches("..").count() > 1 {
            return Err(Error::invalid(format!(
                "the JSON path {text:?} has `..` more than once: once is the most"
            )));
        }
        let compiled = JsonPath::parse(text).map_err(|error| {
            Error::invalid(format!("{text:?} is no JSON path: {error}; one looks like $.address.country"))
        })?;
        Ok(Self { text: text.to_owned(), compiled })
    }

    /// The name of the last step, where it is a name.
    fn last_name(&self) -> Option<&str> {
        let quoted = |quote: char| {
            let inner = self.text.strip_suffix(']')?.trim_end().strip_suffix(quote)?;
            // Behind an escaped quote is no name, but the end of one.
            inner.rsplit_once(quote).filter(|(before, _)| !before.ends_with('\\')).map(|(_, name)| name)
        };
        let plain = || self.text.rsplit_once('.').map(|(_, name)| name);
        quoted('\'').or_else(|| quoted('"')).or_else(plain)
    }

    fn find(&self, value: &Value) -> Found {
        let nodes = self.compiled.query(value);
        if nodes.len() > 1 {
            return Found::Wrong(format!("{} values", nodes.len()), "one value");
        }
        let Some(node) = nodes.first() else { return Found::Missing };
        match Datum::from_json(node) {
            Some(datum) => Found::Datum(datum),
            None => Found::Wrong(describe(node), "a string, a number, a bool or null"),
        }
    }
}

/// The path without what stands in quotes, so that the rest can be searched for what is not served.
fn without_names(text: &str) -> String {
    let (mut out, mut quote, mut escaped) = (String::new(), None, false);
    for character in text.chars() {
        match quote {
            Some(_) if escaped => escaped = false,
            Some(_) if character == '\\' => escaped = true,
            Some(open) if character == open => quote = None,
            Some(_) => {}
            None if matches!(character, '\'' | '"') => quote = Some(character),
            None => out.push(character),
        }
    }
    out
}

impl Source {
    /// The name of a field that is given none: the last step of a path, `key`, or `key_part_1`.
    pub(super) fn default_name(&self) -> Option<String> {
        match self {
            Self::Path(path) => path.last_name().map(str::to_owned),
            Self::KeyPart { part, .. } => Some(format!("key_part_{part}")),
            Self::Key => Some("key".into()),
        }
    }

    /// Whether the row's value is needed, as JSON.
    pub(super) fn reads_value(&self) -> bool {
        matches!(self, Self::Path(_))
    }

    /// The only type that the source can have; `None` where any is possible.
    pub(super) fn fixed_type(&self) -> Option<DatumType> {
        (!self.reads_value()).then_some(DatumType::String)
    }

    /// What the source has in a row: `rest` is the key behind the prefix, `value` the row's value as JSON, which
    /// must be there where [`Self::reads_value`].
    pub(super) fn find(&self, rest: &[u8], value: Option<&Value>) -> Found {
        let part = match (self, value) {
            (Self::Path(path), Some(value)) => return path.find(value),
            (Self::Path(_), None) => None,
            (Self::KeyPart { part, separator }, _) => {
                rest.split(|byte| byte == separator).nth(usize::from(*part))
            }
            (Self::Key, _) => Some(rest),
        };
        match part.map(std::str::from_utf8) {
            None => Found::Missing,
            Some(Ok(text)) => Found::Datum(Datum::String(text.to_owned())),
            Some(Err(error)) => {
                let found = format!("bytes that are no UTF-8 from byte {} on", error.valid_up_to());
                Found::Wrong(found, "UTF-8 in the key")
            }
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => f.write_str(&path.text),
            Self::KeyPart { part, separator: SEPARATOR } => write!(f, "key-part:{part}"),
            Self::KeyPart { part, separator } if separator.is_ascii_graphic() => {
                write!(f, "key-part:{part}({})", char::from(*separator))
            }
            Self::KeyPart { part, separator } => write!(f, "key-part:{part}(\\x{separator:02x})"),
            Self::Key => f.write_str("key"),
        }
    }
}

impl FromStr for Source {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        if text.starts_with('$') {
            return Path::parse(text).map(Self::Path);
        }
        if text == "key" {
            return Ok(Self::Key);
        }
        let wrong = || {
            Error::invalid(format!(
                "{text:?} is no source of a field: write a JSON path ($.country), a part of the key counted from 0 \
                 (key-part:1, or key-part:1(-) where - separates the parts), or key for the whole key"
            ))
        };
        let rest = text.strip_prefix("key-part:").ok_or_else(wrong)?;
        let (part, separator) = match rest.split_once('(') {
            None => (rest, SEPARATOR),
            Some((part, separator)) => {
                let separator = separator.strip_suffix(')').and_then(separator_byte);
                (part, separator.ok_or_else(wrong)?)
            }
        };
        let is_number = !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
        let part = part.parse().ok().filter(|_| is_number).ok_or_else(wrong)?;
        Ok(Self::KeyPart { part, separator })
    }
}

/// `-` or `\x2d`.
fn separator_byte(text: &str) -> Option<u8> {
    match text.as_bytes() {
        [byte] if byte.is_ascii_graphic() => Some(*byte),
        [b'\\', b'x', high, low] if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => {
            u8::from_str_radix(&text[2..], 16).ok()
        }
        _ => None,
    }
}

impl From<Source> for String {
    fn from(source: Source) -> Self {
        source.to_string()
    }
}

impl TryFrom<String> for Source {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}
