//! What each read shows by itself, without the order of transactions.

use std::collections::{HashMap, HashSet};

use super::collect::{Step, Txn, Txns};
use super::{DIRTY, DUPLICATE, G1A, G1B, INTERNAL, UNWRITTEN};
use crate::check::show;
use crate::check::verdict::Findings;

/// Checks every read of every successful transaction.
pub(super) fn check(txns: &Txns<'_>, findings: &mut Findings) {
    let mut reported: HashSet<(&str, u32, i64)> = HashSet::new();
    for (place, txn) in txns.all.iter().enumerate().filter(|(_, txn)| txn.is_ok()) {
        check_internal(txns, txn, findings);
        for step in &txn.steps {
            let Step::Read { key, list } = step else { continue };
            check_duplicates(txns, txn, *key, list, findings);
            check_intermediate(txns, place, *key, list, findings);
            for (at, value) in list.iter().enumerate() {
                let mut is_new = |name| reported.insert((name, *key, *value));
                match txns.writers.get(&(*key, *value)) {
                    None if is_new(UNWRITTEN) => findings.anomaly(UNWRITTEN, || {
                        let name = txns.keys[*key as usize];
                        let text = format!("{}\nNobody appended {value} to {name}.", show::call(&txn.call));
                        (txn.call.indexes(), text)
                    }),
                    Some(writer) if txns.all[*writer].failed() => {
                        let writer = &txns.all[*writer];
                        if is_new(G1A) {
                            report_aborted(txns, txn, writer, (*key, *value), findings);
                        }
                        let later = list[at + 1..].iter().find(|later| stays(txns, *key, **later));
                        if let Some(later) = later.filter(|_| is_new(DIRTY)) {
                            report_dirty(txns, [writer, txn], *key, [*value, *later], findings);
                        }
                    }
                    _ => {}
                }
            }
        }
    }
}

/// Whether an element is of a transaction that did not fail.
fn stays(txns: &Txns<'_>, key: u32, value: i64) -> bool {
    txns.writers.get(&(key, value)).is_some_and(|writer| !txns.all[*writer].failed())
}

fn report_aborted(
    txns: &Txns<'_>,
    reader: &Txn<'_>,
    writer: &Txn<'_>,
    (key, value): (u32, i64),
    findings: &mut Findings,
) {
    findings.anomaly(G1A, || {
        let text = format!(
            "{}\n{}\nThe second read {} with {value}, which the first appended, and the first failed.",
            show::call(&writer.call),
            show::call(&reader.call),
            txns.keys[key as usize]
        );
        (both(writer, reader), text)
    });
}

fn report_dirty(
    txns: &Txns<'_>,
    [writer, reader]: [&Txn<'_>; 2],
    key: u32,
    [value, later]: [i64; 2],
    findings: &mut Findings,
) {
    let Some(updater) = txns.writers.get(&(key, later)).map(|place| &txns.all[*place]) else { return };
    findings.anomaly(DIRTY, || {
        let text = format!(
            "{}\n{}\n{}\nThe first failed, and the second appended {later} to {} after its {value}, as the third shows.",
            show::call(&writer.call),
            show::call(&updater.call),
            show::call(&reader.call),
            txns.keys[key as usize]
        );
        (both(writer, updater).into_iter().chain(reader.call.indexes()).collect(), text)
    });
}

/// A transaction sees its own appends at the end of a list, and nobody else's between two of its reads.
fn check_internal(txns: &Txns<'_>, txn: &Txn<'_>, findings: &mut Findings) {
    /// What a transaction knows about a list: all of it, or the end that it appended.
    #[derive(Default)]
    struct Known<'a> {
        whole: Option<&'a [i64]>,
        appended: Vec<i64>,
    }
    let mut known: HashMap<u32, Known<'_>> = HashMap::new();
    for step in &txn.steps {
        match step {
            Step::Append { key, value } => known.entry(*key).or_default().appended.push(*value),
            Step::Read { key, list } => {
                let known = known.entry(*key).or_default();
                let fits = match known.whole {
                    Some(whole) => list.strip_prefix(whole) == Some(&known.appended),
                    None => list.ends_with(&known.appended),
                };
                if !fits {
                    findings.anomaly(INTERNAL, || {
                        let before = known.whole.map_or("…".to_owned(), show::list);
                        let text = format!(
                            "{}\nIt read {} as {}, and must have read {before} and then its own appends {}.",
                            show::call(&txn.call),
                            txns.keys[*key as usize],
                            show::list(list),
                            show::list(&known.appended)
                        );
                        (txn.call.indexes(), text)
                    });
                }
                *known = Known { whole: Some(list), appended: Vec::new() };
            }
        }
    }
}

fn check_duplicates(txns: &Txns<'_>, txn: &Txn<'_>, key: u32, list: &[i64], findings: &mut Findings) {
    let mut sorted = list.to_vec();
    sorted.sort_unstable();
    if let Some(pair) = sorted.windows(2).find(|pair| pair[0] == pair[1]) {
        findings.anomaly(DUPLICATE, || {
            let name = txns.keys[key as usize];
            let text = format!("{}\nIt read {name} with {} more than once.", show::call(&txn.call), pair[0]);
            (txn.call.indexes(), text)
        });
    }
}

/// A list that ends with an element of another transaction ends with that transaction's last one.
fn check_intermediate(txns: &Txns<'_>, reader: usize, key: u32, list: &[i64], findings: &mut Findings) {
    let Some(last) = list.last() else { return };
    let Some(writer) = txns.writers.get(&(key, *last)).filter(|writer| **writer != reader) else { return };
    let writer = &txns.all[*writer];
    let Some((_, wanted)) = writer.appends().filter(|(other, _)| *other == key).last() else { return };
    if wanted != *last {
        let reader = &txns.all[reader];
        findings.anomaly(G1B, || {
            let text = format!(
                "{}\n{}\nThe second read {} up to {last}, but the first went on to append {wanted}.",
                show::call(&writer.call),
                show::call(&reader.call),
                txns.keys[key as usize]
            );
            (both(writer, reader), text)
        });
    }
}

fn both(a: &Txn<'_>, b: &Txn<'_>) -> Vec<u64> {
    a.call.indexes().into_iter().chain(b.call.indexes()).collect()
}
