//! Queries of indexes and indexes as they are stored, and what that looks like in files.

use std::collections::BTreeMap;

use super::form::Form;

/// What is asked of an index; the operation's key names it.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Query {
    /// Of one group, or without it of all.
    pub group: Option<i64>,
    /// The answer is to be of this timestamp or a later one.
    pub at_least: Option<u64>,
}

/// An index as it was stored at one moment, and the rows of the same moment.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Dump {
    /// All rows, by key.
    pub rows: BTreeMap<String, i64>,
    /// What the index held: keys and values in hexadecimal digits.
    pub stored: BTreeMap<String, String>,
    /// What was computed from the rows.
    pub computed: BTreeMap<String, String>,
}

/// The form of what is asked: a map.
pub(super) fn query_form(query: &Query) -> Form {
    let number = |number: Option<i128>| number.map_or(Form::Nil, Form::Int);
    Form::Map(vec![
        (Form::keyword("group"), number(query.group.map(i128::from))),
        (Form::keyword("at-least"), number(query.at_least.map(i128::from))),
    ])
}

/// What is asked, from such a map. What it does not name is as by default.
pub(super) fn query_of(form: &Form) -> Option<Query> {
    let number = |name| match form.get(name) {
        None | Some(Form::Nil) => Some(None),
        Some(Form::Int(number)) => Some(Some(*number)),
        Some(_) => None,
    };
    Some(Query {
        group: number("group")?.map(i64::try_from).transpose().ok()?,
        at_least: number("at-least")?.map(u64::try_from).transpose().ok()?,
    })
}

/// The form of what a query found: a list of names and numbers.
pub(super) fn found_form(found: &[(String, i64)]) -> Form {
    let one = |(name, number): &(String, i64)| {
        Form::List(vec![Form::Str(name.clone()), Form::Int((*number).into())])
    };
    Form::List(found.iter().map(one).collect())
}

/// What a query found, from such a list.
pub(super) fn found_of(forms: &[Form]) -> Option<Vec<(String, i64)>> {
    let one = |form: &Form| match form {
        Form::List(parts) => match parts.as_slice() {
            [name, Form::Int(number)] => Some((name.name()?, i64::try_from(*number).ok()?)),
            _ => None,
        },
        _ => None,
    };
    forms.iter().map(one).collect()
}

/// The form of an index as it was stored: a map of three maps.
pub(super) fn dump_form(dump: &Dump) -> Form {
    let bytes = |held: &BTreeMap<String, String>| {
        Form::Map(held.iter().map(|(key, value)| (text(key), text(value))).collect())
    };
    let rows = dump.rows.iter().map(|(key, value)| (text(key), Form::Int((*value).into())));
    Form::Map(vec![
        (Form::keyword("rows"), Form::Map(rows.collect())),
        (Form::keyword("stored"), bytes(&dump.stored)),
        (Form::keyword("computed"), bytes(&dump.computed)),
    ])
}

/// An index as it was stored, from such a map.
pub(super) fn dump_of(form: &Form) -> Option<Dump> {
    let bytes = |name| entries(form.get(name)?, Form::name);
    let number = |form: &Form| match form {
        Form::Int(number) => i64::try_from(*number).ok(),
        _ => None,
    };
    Some(Dump {
        rows: entries(form.get("rows")?, number)?,
        stored: bytes("stored")?,
        computed: bytes("computed")?,
    })
}

fn entries<T>(form: &Form, value: impl Fn(&Form) -> Option<T>) -> Option<BTreeMap<String, T>> {
    let Form::Map(entries) = form else { return None };
    entries.iter().map(|(key, held)| Some((key.name()?, value(held)?))).collect()
}

fn text(text: &str) -> Form {
    Form::Str(text.to_owned())
}
