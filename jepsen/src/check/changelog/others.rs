//! The other followers against the first: as far as they follow its keys, they are told the same.

use super::order::{Heard, Stream};
use super::replay::{self, Rows};
use super::{DIFFER, Findings, WRONG_ROWS};
use crate::history::Changed;

/// Compares a follower with the first, as far as both came.
pub(super) fn check(whole: &Stream<'_>, other: &Stream<'_>, findings: &mut Findings) {
    let name = other.follower.name;
    let Some(base) = other.base else {
        findings.note(format!("Follower {name:?} was not told all rows, so it is not compared."));
        return;
    };
    if other.follower.following.scans {
        check_rows(whole, other, base, findings);
    }
    let reach = whole.reach.min(other.reach);
    let mut compared = 0;
    for (at, heard) in whole.transactions.iter().filter(|(at, _)| **at > base && **at <= reach) {
        let followed = |changed: &&Changed| other.follower.following.has(&changed.key);
        let expected: Vec<&Changed> = heard.changes.iter().filter(followed).collect();
        let told = other.transactions.get(at);
        if expected.is_empty() && told.is_none() {
            continue;
        }
        compared += 1;
        if !told.is_some_and(|told| alike(&expected, told.changes, other)) {
            report(whole, other, Some(heard), told, findings);
        }
    }
    for (_, told) in other.transactions.iter().filter(|(at, _)| **at <= reach) {
        if !whole.transactions.contains_key(&told.at) || told.at <= base {
            report(whole, other, None, Some(told), findings);
        }
    }
    findings.stat(&format!("transactions told to {name}"), compared);
}

/// Whether a follower was told what it must be. What a key held before counts where it asked for that.
fn alike(expected: &[&Changed], told: &[Changed], other: &Stream<'_>) -> bool {
    let before = other.follower.following.before_images;
    let one = |(expected, told): (&&Changed, &Changed)| {
        let is_same = expected.key == told.key && expected.value == told.value;
        is_same
            && (!before
                || (told.before.is_some() && (expected.before.is_none() || expected.before == told.before)))
    };
    expected.len() == told.len() && expected.iter().zip(told).all(one)
}

fn check_rows(whole: &Stream<'_>, other: &Stream<'_>, base: u64, findings: &mut Findings) {
    let name = other.follower.name;
    if base > whole.reach {
        findings.note(format!("The rows of follower {name:?} are of a later time than all that was told."));
        return;
    }
    let mut rows: Rows<'_> = replay::at(whole, base);
    rows.retain(|key, _| other.follower.following.has(key));
    if let Some(difference) = replay::difference(&rows, &other.rows) {
        findings.anomaly(WRONG_ROWS, || {
            let text = format!(
                "Follower {name:?} began with rows at timestamp {base}. What follower {:?} was told up to there comes to \
                 other rows (told, rows): {difference}.",
                whole.follower.name
            );
            (other.rows_told_by.clone(), text)
        });
    }
}

fn report(
    whole: &Stream<'_>,
    other: &Stream<'_>,
    first: Option<&Heard<'_>>,
    second: Option<&Heard<'_>>,
    findings: &mut Findings,
) {
    findings.anomaly(DIFFER, || {
        let line = |heard: Option<&Heard<'_>>, stream: &Stream<'_>| match heard {
            Some(heard) => heard.text(stream.follower.name),
            None => format!("Follower {:?} was not told this.", stream.follower.name),
        };
        let ops = [first, second].into_iter().flatten().flat_map(|heard| heard.call.indexes());
        (ops.collect(), format!("{}\n{}", line(first, whole), line(second, other)))
    });
}
