//! The tree of data that both file formats share.

use serde::ser::{SerializeMap, SerializeSeq};
use serde::{Serialize, Serializer};

/// A piece of EDN or JSON. In JSON a keyword is a string, and so is every key of a map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Form {
    /// `nil` or `null`.
    Nil,
    /// `true` or `false`.
    Bool(bool),
    /// A whole number.
    Int(i128),
    /// A string.
    Str(String),
    /// `:name`; in a JSON file it is written as the string `name`.
    Keyword(String),
    /// A vector, list or set.
    List(Vec<Form>),
    /// A map, in the order of the file.
    Map(Vec<(Form, Form)>),
}

impl Form {
    /// A keyword.
    pub fn keyword(name: &str) -> Self {
        Form::Keyword(name.to_owned())
    }

    /// The name of a key or function: a string, a keyword without its colon, or a number in digits.
    pub fn name(&self) -> Option<String> {
        match self {
            Form::Str(text) | Form::Keyword(text) => Some(text.clone()),
            Form::Int(number) => Some(number.to_string()),
            _ => None,
        }
    }

    /// What a map holds under a name; `None` for other forms.
    pub fn get(&self, name: &str) -> Option<&Form> {
        let Form::Map(entries) = self else { return None };
        entries
            .iter()
            .find(|(key, _)| matches!(key, Form::Str(text) | Form::Keyword(text) if text == name))
            .map(|(_, value)| value)
    }
}

impl Serialize for Form {
    /// As JSON.
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self {
            Form::Nil => to.serialize_unit(),
            Form::Bool(value) => to.serialize_bool(*value),
            Form::Int(number) => match (i64::try_from(*number), u64::try_from(*number)) {
                (Ok(number), _) => to.serialize_i64(number),
                (_, Ok(number)) => to.serialize_u64(number),
                _ => to.serialize_i128(*number),
            },
            Form::Str(text) | Form::Keyword(text) => to.serialize_str(text),
            Form::List(forms) => {
                let mut list = to.serialize_seq(Some(forms.len()))?;
                for form in forms {
                    list.serialize_element(form)?;
                }
                list.end()
            }
            Form::Map(entries) => {
                let mut map = to.serialize_map(Some(entries.len()))?;
                for (key, value) in entries {
                    match key {
                        Form::Int(number) => map.serialize_entry(&number.to_string(), value)?,
                        other => map.serialize_entry(other, value)?,
                    }
                }
                map.end()
            }
        }
    }
}
