//! What changes come to, one after the other.

use std::collections::{BTreeMap, BTreeSet};

use super::collect::Snapshot;
use super::order::{Heard, Stream};
use super::{Findings, WRONG_BEFORE, WRONG_REPLAY};
use crate::check::show;

/// Keys and what they hold.
pub(super) type Rows<'a> = BTreeMap<&'a str, i64>;

/// Takes a transaction into the rows.
pub(super) fn apply<'a>(rows: &mut Rows<'a>, heard: &Heard<'a>) {
    for changed in heard.changes {
        match changed.value {
            Some(value) => rows.insert(&changed.key, value),
            None => rows.remove(changed.key.as_str()),
        };
    }
}

/// What a stream from the start on comes to at a timestamp.
pub(super) fn at<'a>(stream: &Stream<'a>, at: u64) -> Rows<'a> {
    let mut rows = Rows::new();
    stream.transactions.range(..=at).for_each(|(_, heard)| apply(&mut rows, heard));
    rows
}

/// Compares what a transaction says of the time before with the rows of then.
pub(super) fn check_before(name: &str, heard: &Heard<'_>, rows: &Rows<'_>, findings: &mut Findings) {
    for changed in heard.changes {
        let held = rows.get(changed.key.as_str()).copied();
        if changed.before == Some(held) {
            continue;
        }
        findings.anomaly(WRONG_BEFORE, || {
            let said = match changed.before {
                Some(before) => format!("is said to have held {}", show::version(before)),
                None => "is not said what it held".to_owned(),
            };
            let text = format!(
                "{}\nOf {:?} it {said} before; by the changes before it held {}.",
                heard.text(name),
                changed.key,
                show::version(held)
            );
            (heard.call.indexes(), text)
        });
    }
}

/// Compares rows that were read with those that the changes come to.
pub(super) fn check_read(name: &str, read: &Snapshot<'_>, rows: &Rows<'_>, findings: &mut Findings) {
    let held: Rows<'_> = read.rows.iter().map(|(key, value)| (key.as_str(), *value)).collect();
    let Some(difference) = difference(rows, &held) else { return };
    findings.anomaly(WRONG_REPLAY, || {
        let text = format!(
            "[{}] process {} read all rows at timestamp {}. What follower {name:?} was told up to there comes to other \
             rows (told, read): {difference}.",
            read.call.invoke.index, read.call.invoke.process, read.at
        );
        (read.call.indexes(), text)
    });
}

/// Keys that are shown of a difference.
const SHOWN: usize = 6;

/// Where rows differ, for people; `None` where they do not.
pub(super) fn difference(one: &Rows<'_>, other: &Rows<'_>) -> Option<String> {
    if one == other {
        return None;
    }
    let keys: BTreeSet<&str> = one.keys().chain(other.keys()).copied().collect();
    let differs = keys.into_iter().filter(|key| one.get(key) != other.get(key));
    let shown = differs.map(|key| {
        let held = |rows: &Rows<'_>| show::version(rows.get(key).copied());
        format!("{key:?}: {}, {}", held(one), held(other))
    });
    Some(shown.take(SHOWN).collect::<Vec<_>>().join("; "))
}
