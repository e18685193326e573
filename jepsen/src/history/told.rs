//! What followers of changes ask for and are told, and what that looks like in files.

use super::form::Form;

/// What a follower asks for when it begins.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Following {
    /// It begins with the rows as they are; else with the first change there ever was.
    pub scans: bool,
    /// It wants to know what keys held before they were changed.
    pub before_images: bool,
    /// The keys, as ranges from a key on up to before another one, or without an end. None is all keys.
    pub ranges: Vec<(String, Option<String>)>,
}

impl Following {
    /// Whether a key is followed.
    pub fn has(&self, key: &str) -> bool {
        let within = |(from, to): &(String, Option<String>)| {
            from.as_str() <= key && to.as_ref().is_none_or(|to| key < to.as_str())
        };
        self.ranges.is_empty() || self.ranges.iter().any(within)
    }
}

/// Something that a follower was told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    /// A row of the scan at the beginning.
    Row {
        /// The key.
        key: String,
        /// What it held.
        value: i64,
    },
    /// A transaction.
    Changes {
        /// Its commit timestamp.
        at: u64,
        /// What it changed of the followed keys.
        changes: Vec<Changed>,
    },
    /// Nothing more is committed at or before a timestamp. Right behind the rows it is the one that they are of.
    Progress {
        /// The timestamp.
        at: u64,
    },
}

/// A key that a transaction changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Changed {
    /// The key.
    pub key: String,
    /// What it holds since; `None` where it was removed.
    pub value: Option<i64>,
    /// What it held before, where that was told: a value or none.
    pub before: Option<Option<i64>>,
}

/// The form of what a follower asks for: a map.
pub(super) fn following_form(following: &Following) -> Form {
    let since = if following.scans { "scan" } else { "start" };
    let range = |(from, to): &(String, Option<String>)| {
        Form::List(vec![text(from), to.as_ref().map_or(Form::Nil, |to| text(to))])
    };
    Form::Map(vec![
        (Form::keyword("since"), Form::keyword(since)),
        (Form::keyword("before-images"), Form::Bool(following.before_images)),
        (Form::keyword("ranges"), Form::List(following.ranges.iter().map(range).collect())),
    ])
}

/// What a follower asks for, from such a map. What it does not name is as by default.
pub(super) fn following_of(form: &Form) -> Option<Following> {
    let scans = match form.get("since").map(Form::name) {
        None => false,
        Some(since) => match since?.as_str() {
            "start" => false,
            "scan" => true,
            _ => return None,
        },
    };
    let before_images = match form.get("before-images") {
        None => false,
        Some(Form::Bool(wanted)) => *wanted,
        Some(_) => return None,
    };
    let range = |form: &Form| match form {
        Form::List(bounds) => match bounds.as_slice() {
            [from, Form::Nil] => Some((from.name()?, None)),
            [from, to] => Some((from.name()?, Some(to.name()?))),
            _ => None,
        },
        _ => None,
    };
    let ranges = match form.get("ranges") {
        None => Vec::new(),
        Some(Form::List(ranges)) => ranges.iter().map(range).collect::<Option<_>>()?,
        Some(_) => return None,
    };
    Some(Following { scans, before_images, ranges })
}

/// The form of something that was told: a list that begins with its name.
pub(super) fn told_form(told: &Told) -> Form {
    Form::List(match told {
        Told::Row { key, value } => vec![Form::keyword("row"), text(key), int(*value)],
        Told::Changes { at, changes } => {
            let changes = changes.iter().map(changed_form).collect();
            vec![Form::keyword("changes"), Form::Int((*at).into()), Form::List(changes)]
        }
        Told::Progress { at } => vec![Form::keyword("progress"), Form::Int((*at).into())],
    })
}

/// Key and value, and where it was told what the key held before.
fn changed_form(changed: &Changed) -> Form {
    let value = |value: Option<i64>| value.map_or(Form::Nil, int);
    let known = [text(&changed.key), value(changed.value)];
    Form::List(known.into_iter().chain(changed.before.map(value)).collect())
}

/// What was told, from such a list.
pub(super) fn told_of(form: &Form) -> Option<Told> {
    let Form::List(parts) = form else { return None };
    let (name, rest) = parts.split_first()?;
    Some(match (name.name()?.as_str(), rest) {
        ("row", [key, value]) => Told::Row { key: key.name()?, value: value_of(value)?? },
        ("changes", [at, Form::List(changes)]) => {
            Told::Changes { at: at_of(at)?, changes: changes.iter().map(changed_of).collect::<Option<_>>()? }
        }
        ("progress", [at]) => Told::Progress { at: at_of(at)? },
        _ => return None,
    })
}

fn changed_of(form: &Form) -> Option<Changed> {
    let Form::List(parts) = form else { return None };
    let (key, value, before) = match parts.as_slice() {
        [key, value] => (key, value, None),
        [key, value, before] => (key, value, Some(value_of(before)?)),
        _ => return None,
    };
    Some(Changed { key: key.name()?, value: value_of(value)?, before })
}

/// A number or nil; `None` for other forms.
fn value_of(form: &Form) -> Option<Option<i64>> {
    match form {
        Form::Nil => Some(None),
        Form::Int(number) => i64::try_from(*number).ok().map(Some),
        _ => None,
    }
}

fn at_of(form: &Form) -> Option<u64> {
    let Form::Int(number) = form else { return None };
    u64::try_from(*number).ok()
}

fn text(text: &str) -> Form {
    Form::Str(text.to_owned())
}

fn int(number: i64) -> Form {
    Form::Int(number.into())
}
