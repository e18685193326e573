//! Starts, lists and cancels: a saga is there if it was started, once, and together with its row.

use super::collect::{Collected, One, is_closed};
use super::plans::row_key;
use super::{ABORTED, CANCEL, Findings, LIST, LOST, TORN, TWICE_STARTED};
use crate::check::show;
use crate::history::saga::{Read, Saga};
use crate::history::{Call, Kind, Value};

pub(super) fn check(collected: &Collected<'_>, findings: &mut Findings) {
    for (id, one) in &collected.sagas {
        let Some((last, read)) = one.last else { continue };
        match read {
            None => absent(id, one, &last, findings),
            // It was started by the saga that it is a step of.
            Some(read) if !read.parent.is_empty() => {}
            Some(read) => {
                present(id, one, &last, read, findings);
                cancels(id, one, &last, read, findings);
            }
        }
        if let Some((rows, held)) = &collected.rows {
            with_rows(id, one, &last, read.is_some(), (rows, held), findings);
        }
    }
    lists(collected, findings);
}

fn absent(id: &str, one: &One<'_>, last: &Call<'_>, findings: &mut Findings) {
    for (call, _) in one.starts.iter().filter(|(call, _)| call.is_ok()) {
        findings.anomaly(LOST, || {
            let told = format!("{}\nSaga {id} was started, and is not there at the end.", show::call(call));
            ([call.indexes(), last.indexes()].concat(), told)
        });
    }
}

fn present(id: &str, one: &One<'_>, last: &Call<'_>, read: &Read, findings: &mut Findings) {
    let mut possible =
        one.starts.iter().filter(|(call, start)| call.outcome() != Kind::Fail && start.input == read.input);
    if possible.next().is_none() {
        findings.anomaly(ABORTED, || {
            let starts = one.starts.iter().flat_map(|(call, _)| call.indexes());
            let told = format!(
                "Saga {id} is there, with input {}, and nobody started it: each such start failed, for certain.",
                read.input
            );
            (starts.chain(last.indexes()).collect(), told)
        });
    }
    let acknowledged = || one.starts.iter().filter(|(call, _)| call.is_ok());
    for (call, start) in acknowledged().filter(|(_, start)| start.input != read.input) {
        findings.anomaly(TWICE_STARTED, || {
            let told = format!(
                "{}\nThe start was acknowledged with input {}, and saga {id} has input {}.",
                show::call(call),
                start.input,
                read.input
            );
            ([call.indexes(), last.indexes()].concat(), told)
        });
    }
    let is_first =
        |call: &Call<'_>| matches!(call.answer(), Some(Value::Saga(Saga::Started { already: false })));
    let first: Vec<u64> =
        acknowledged().filter(|(call, _)| is_first(call)).flat_map(|(call, _)| call.indexes()).collect();
    if first.len() > 2 {
        findings.anomaly(TWICE_STARTED, || {
            (first, format!("Each of several starts was told to be the one that has started saga {id}."))
        });
    }
}

fn cancels(id: &str, one: &One<'_>, last: &Call<'_>, read: &Read, findings: &mut Findings) {
    let has = |what: &str| read.lines.iter().any(|line| line.what() == what);
    for call in one.cancels.iter().filter(|call| call.is_ok()) {
        let is_kept = match read.status.as_str() {
            "cancelled" | "compensated" => true,
            "completed" => has("too_late_to_go_back"),
            // That is another anomaly.
            status => !is_closed(status),
        };
        let is_noted = call.answer() != Some(&Value::Int(1)) || has("cancel_requested");
        if !is_kept || !is_noted {
            findings.anomaly(CANCEL, || {
                let told = format!(
                    "{}\nThe cancel was acknowledged, and saga {id} is {}{}.",
                    show::call(call),
                    read.status,
                    if is_noted { "" } else { "; its history does not have it" }
                );
                ([call.indexes(), last.indexes()].concat(), told)
            });
        }
    }
}

/// A row is there if and only if its transaction has started the saga.
fn with_rows(
    id: &str,
    one: &One<'_>,
    last: &Call<'_>,
    is_there: bool,
    (rows, held): (&Call<'_>, &std::collections::BTreeMap<String, i64>),
    findings: &mut Findings,
) {
    let with_row: Vec<_> =
        one.starts.iter().filter_map(|(call, start)| Some((call, row_key(id, start.row?)))).collect();
    let mut present = Vec::new();
    for (call, key) in &with_row {
        let has_row = held.contains_key(key);
        present.extend(has_row.then(|| call.indexes()));
        let why = match (has_row, call.outcome()) {
            (false, Kind::Ok) => "was acknowledged, and its row is missing",
            (true, Kind::Fail) => "failed, and its row is there",
            (true, _) if !is_there => "has left its row, and no saga",
            _ => continue,
        };
        findings.anomaly(TORN, || {
            let told = format!("{}\nThe transaction that starts saga {id} {why}.", show::call(call));
            ([call.indexes(), rows.indexes(), last.indexes()].concat(), told)
        });
    }
    if present.len() > 1 {
        findings.anomaly(TWICE_STARTED, || {
            let told = format!("{} transactions have each started saga {id}.", present.len());
            ([present.concat(), rows.indexes()].concat(), told)
        });
    }
    let alone = one.starts.iter().any(|(call, start)| start.row.is_none() && call.outcome() != Kind::Fail);
    if is_there
        && present.is_empty()
        && !alone
        && with_row.iter().any(|(call, _)| call.outcome() != Kind::Fail)
    {
        findings.anomaly(TORN, || {
            let starts = with_row.iter().flat_map(|(call, _)| call.indexes());
            let told =
                format!("Saga {id} is there, and none of the rows that it can have been started with.");
            (starts.chain(rows.indexes()).chain(last.indexes()).collect(), told)
        });
    }
}

/// Lists show what was started before, nothing that is not there, and ends as they are.
fn lists(collected: &Collected<'_>, findings: &mut Findings) {
    for (call, listed) in &collected.lists {
        let mut wrong = |id: &str, ops: Vec<u64>, why: String| {
            findings.anomaly(LIST, || {
                ([call.indexes(), ops].concat(), format!("{}\nOf saga {id} {why}.", show::call(call)))
            });
        };
        for (id, one) in &collected.sagas {
            let before = one.starts.iter().find(|(start, _)| start.is_ok() && start.end < call.start);
            let status = listed.get(*id).map(String::as_str);
            if let (Some((start, _)), None) = (before, status) {
                wrong(id, start.indexes(), "it has nothing, though it was started before".to_owned());
            }
            let (Some((last, read)), Some(status)) = (one.last, status) else { continue };
            let Some(read) = read else {
                wrong(id, last.indexes(), format!("it says {status}, and there is none"));
                continue;
            };
            let was_closed = one.reads.iter().any(|(earlier, read)| {
                earlier.end < call.start && read.is_some_and(|read| is_closed(&read.status))
            });
            if (is_closed(status) || was_closed) && status != read.status {
                wrong(id, last.indexes(), format!("it says {status}, and its end is {}", read.status));
            }
        }
    }
}
