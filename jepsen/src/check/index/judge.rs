//! Answers, rows and stored indexes against what they must be.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::collect::{Asked, Collected, Snapshot};
use super::truth::{Commit, Rows};
use super::{BY_TEAM, COUNT_BY_TEAM, DIFFERS, Findings, MISSED, STALE, SUM_BY_TEAM, WRONG, WRONG_ROWS};
use crate::check::show;
use crate::history::{Call, Dump};

/// Differences that are shown of one answer or index.
const SHOWN: usize = 6;

/// How much was compared.
#[derive(Default)]
pub(super) struct Judged {
    pub queries: usize,
    /// Of them those that were to be of an own commit at least.
    pub own: usize,
    pub reads: usize,
    pub dumps: usize,
}

/// Compares everything, in the order of timestamps.
pub(super) fn check<'a>(
    collected: &Collected<'a>,
    commits: &BTreeMap<u64, Commit<'a>>,
    findings: &mut Findings,
) -> Judged {
    let mut judged = Judged::default();
    // Behind that it is not known what became of transactions of unknown fate.
    let reach = if collected.open.is_empty() { u64::MAX } else { collected.reach };
    let (mut rows, mut left) = (Rows::default(), commits.iter().peekable());
    let mut snapshots = collected.snapshots.iter().filter(|snapshot| snapshot.at <= reach).peekable();
    let mut queries = collected.queries.iter().filter(|asked| asked.watermark <= reach).peekable();
    loop {
        let next = [snapshots.peek().map(|next| next.at), queries.peek().map(|next| next.watermark)];
        let Some(at) = next.into_iter().flatten().min() else { break };
        while let Some((commit_ts, commit)) = left.next_if(|(commit_ts, _)| **commit_ts <= at) {
            rows.apply(*commit_ts, &commit.writes);
        }
        while let Some(snapshot) = snapshots.next_if(|snapshot| snapshot.at == at) {
            check_rows(snapshot, &rows, findings);
            judged.reads += 1;
        }
        while let Some(asked) = queries.next_if(|asked| asked.watermark == at) {
            check_query(asked, &rows, commits, findings, &mut judged);
        }
    }
    let beyond = collected.queries.iter().filter(|asked| asked.watermark > reach).count();
    if beyond > 0 {
        findings.doubt(format!(
            "The follower came to timestamp {reach}, so that for {beyond} queries it is not known what became of \
             transactions of unknown fate."
        ));
    }
    for (call, dump) in &collected.dumps {
        check_dump(call, dump, findings);
        judged.dumps += 1;
    }
    judged
}

fn check_rows(snapshot: &Snapshot<'_>, rows: &Rows<'_>, findings: &mut Findings) {
    let differs = |key: &&str| snapshot.rows.get(*key) != rows.now.get(key);
    let read = snapshot.rows.keys().map(String::as_str);
    let keys: BTreeSet<&str> = read.chain(rows.now.keys().copied()).filter(differs).collect();
    if keys.is_empty() {
        return;
    }
    findings.anomaly(WRONG_ROWS, || {
        let held = |value: Option<&i64>| show::version(value.copied());
        let shown = keys
            .iter()
            .take(SHOWN)
            .map(|key| format!("{key:?}: {}, {}", held(rows.now.get(key)), held(snapshot.rows.get(*key))));
        let text = format!(
            "{}\nThe transactions up to timestamp {} come to other rows (committed, read): {}.",
            show::call(&snapshot.call),
            snapshot.at,
            shown.collect::<Vec<_>>().join("; ")
        );
        (snapshot.call.indexes(), text)
    });
}

fn check_query(
    asked: &Asked<'_>,
    rows: &Rows<'_>,
    commits: &BTreeMap<u64, Commit<'_>>,
    findings: &mut Findings,
    judged: &mut Judged,
) {
    let (index, group) = (asked.call.key(), asked.query.group);
    if ![BY_TEAM, COUNT_BY_TEAM, SUM_BY_TEAM].contains(&index) {
        findings.doubt(format!("There is no index {index:?}, of which a query was answered."));
        return;
    }
    judged.queries += 1;
    judged.own += usize::from(asked.query.at_least.is_some());
    if let Some(at_least) = asked.query.at_least.filter(|at_least| asked.watermark < *at_least) {
        findings.anomaly(STALE, || {
            let text = format!(
                "{}\nIts watermark is {}, and it was to be {at_least} at least.",
                show::call(&asked.call),
                asked.watermark
            );
            (asked.call.indexes(), text)
        });
    }
    let expected = rows.found(index, group);
    if expected == asked.found {
        return;
    }
    let names = differing(&expected, asked.found);
    let missed = asked.query.at_least.and_then(|at_least| {
        let ceased = |name: &&str| rows.ceased(index, group, name, number(asked.found, name), at_least);
        names.iter().filter_map(ceased).max()
    });
    let anomaly = if missed.is_some() { MISSED } else { WRONG };
    findings
        .anomaly(anomaly, || explained(asked, &expected, &names, missed.map(|at| (at, commits.get(&at)))));
}

/// The entries that show a wrong answer, and how it is told. `missed` is the transaction before which it may have been so.
fn explained(
    asked: &Asked<'_>,
    expected: &[(String, i64)],
    names: &BTreeSet<&str>,
    missed: Option<(u64, Option<&Commit<'_>>)>,
) -> (Vec<u64>, String) {
    let mut text = show::call(&asked.call);
    let mut ops = asked.call.indexes();
    let one = |name: &&str| {
        let said = |found| show::version(number(found, name));
        format!("{name}: {}, {}", said(expected), said(asked.found))
    };
    let shown: Vec<String> = names.iter().take(SHOWN).map(one).collect();
    let what = match shown.is_empty() {
        true => format!("the same in another order or number: {}", show::found_list(expected)),
        false => format!("something else (expected, answered): {}", shown.join("; ")),
    };
    text += &format!("\nThe rows at its watermark {} come to {what}.", asked.watermark);
    if let (Some((at, commit)), Some(at_least)) = (missed, asked.query.at_least) {
        text += &format!("\nIt was to be of {at_least} at least, and is as before a transaction at {at}");
        if let Some(call) = commit.and_then(|commit| commit.call) {
            text += &format!(": {}", show::call(&call));
            ops.extend(call.indexes());
        }
        text.push('.');
    }
    (ops, text)
}

/// Names that two lists have different numbers of, or one of them another number of times.
fn differing<'f>(expected: &'f [(String, i64)], found: &'f [(String, i64)]) -> BTreeSet<&'f str> {
    let mut counts: HashMap<(&str, i64), i64> = HashMap::new();
    for (list, by) in [(expected, 1), (found, -1)] {
        for (name, number) in list {
            *counts.entry((name, *number)).or_default() += by;
        }
    }
    counts.into_iter().filter(|(_, count)| *count != 0).map(|((name, _), _)| name).collect()
}

/// The first number that a list has of a name.
fn number(list: &[(String, i64)], name: &str) -> Option<i64> {
    list.iter().find(|(other, _)| other == name).map(|(_, number)| *number)
}

fn check_dump(call: &Call<'_>, dump: &Dump, findings: &mut Findings) {
    let differs = |key: &&String| dump.stored.get(*key) != dump.computed.get(*key);
    let keys: BTreeSet<&String> = dump.stored.keys().chain(dump.computed.keys()).filter(differs).collect();
    if keys.is_empty() {
        return;
    }
    findings.anomaly(DIFFERS, || {
        let held = |side: &BTreeMap<String, String>, key: &String| {
            side.get(key).map_or("nothing".to_owned(), |value| format!("{value:?}"))
        };
        let shown = keys
            .iter()
            .take(SHOWN)
            .map(|key| format!("{key}: {}, {}", held(&dump.computed, key), held(&dump.stored, key)));
        let text = format!(
            "{}\nOf {} keys it holds something else than the rows come to (computed, stored): {}.",
            show::call(call),
            keys.len(),
            shown.collect::<Vec<_>>().join("; ")
        );
        (call.indexes(), text)
    });
}
