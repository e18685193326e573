//! Operations in explanations.

use crate::history::saga::Saga;
use crate::history::{Call, Changed, Kind, MicroOp, Seen, Value, edn, to_edn_value};

/// Elements of a list that are shown; of longer ones the last so many.
const SHOWN: usize = 12;

/// One operation in one line: its entries' indexes, process, key, arguments or answer, and outcome.
pub(crate) fn call(call: &Call<'_>) -> String {
    let end = match call.complete {
        Some(complete) => format!("{}", complete.index),
        None => "never".to_owned(),
    };
    let (value, outcome) = match (call.outcome(), call.answer()) {
        (Kind::Ok, Some(Value::Nil)) if call.f() == crate::history::F::Read => ("nil".to_owned(), "ok"),
        (Kind::Ok, Some(Value::Nil)) => (value(call.argument()), "ok"),
        (Kind::Ok, Some(answer)) => (value(answer), "ok"),
        (Kind::Fail, _) => (value(call.argument()), "failed"),
        _ => (value(call.argument()), "outcome unknown"),
    };
    let key = call.invoke.key.as_ref().map(|key| format!(" {key:?}")).unwrap_or_default();
    let timestamp = call.timestamp().map(|at| format!(" at timestamp {at}")).unwrap_or_default();
    format!(
        "[{}..{end}] process {} {}{key} {value}{timestamp} ({outcome})",
        call.invoke.index,
        call.invoke.process,
        call.f()
    )
}

/// A value, with long lists cut.
pub(crate) fn value(value: &Value) -> String {
    match value {
        Value::List(elements) => list(elements),
        Value::Txn(steps) => {
            let steps: Vec<String> = steps.iter().map(step).collect();
            format!("[{}]", steps.join(" "))
        }
        Value::Told(told) => format!("({} events)", told.len()),
        Value::Found(found) => found_list(found),
        Value::Saga(Saga::Read(read)) => {
            format!("({} {}, {} lines of history)", read.saga, read.status, read.lines.len())
        }
        Value::Saga(Saga::List(sagas)) => format!("({} sagas)", sagas.len()),
        Value::Dump(dump) => format!("({} rows; the index has {})", dump.rows.len(), dump.stored.len()),
        other => {
            let mut text = String::new();
            edn::print(&to_edn_value(other), &mut text);
            text
        }
    }
}

fn step(step: &MicroOp) -> String {
    match step {
        MicroOp::Append { key, value } => format!("[append {key} {value}]"),
        MicroOp::Write { key, value } => format!("[w {key} {value}]"),
        MicroOp::Add { key, delta } => format!("[add {key} {delta}]"),
        MicroOp::Delete { key } => format!("[delete {key}]"),
        MicroOp::Read { key, seen: Seen::Nothing } => format!("[r {key} nil]"),
        MicroOp::Read { key, seen: Seen::One(value) } => format!("[r {key} {value}]"),
        MicroOp::Read { key, seen: Seen::List(elements) } => format!("[r {key} {}]", list(elements)),
    }
}

/// A list, of which only the end is shown if it is long.
pub(crate) fn list(elements: &[i64]) -> String {
    let hidden = elements.len().saturating_sub(SHOWN);
    let mut words: Vec<String> = elements[hidden..].iter().map(i64::to_string).collect();
    if hidden > 0 {
        words.insert(0, format!("(… {hidden} more)"));
    }
    format!("[{}]", words.join(" "))
}

/// What a query found, of which the beginning is shown if it is much.
pub(crate) fn found_list(found: &[(String, i64)]) -> String {
    let mut words: Vec<String> =
        found.iter().take(SHOWN).map(|(name, number)| format!("{name}: {number}")).collect();
    if found.len() > SHOWN {
        words.push(format!("… {} more", found.len() - SHOWN));
    }
    format!("{{{}}}", words.join(", "))
}

/// What a transaction is told to have changed, of which the beginning is shown if it is much.
pub(crate) fn changes(at: u64, changes: &[Changed]) -> String {
    let one = |changed: &Changed| {
        let before =
            changed.before.map(|before| format!(" (before: {})", version(before))).unwrap_or_default();
        format!("{} = {}{before}", changed.key, version(changed.value))
    };
    let mut words: Vec<String> = changes.iter().take(SHOWN).map(one).collect();
    if changes.len() > SHOWN {
        words.push(format!("… {} more", changes.len() - SHOWN));
    }
    format!("{{{}}} at timestamp {at}", words.join(", "))
}

/// A value that may be absent.
pub(crate) fn version(value: Option<i64>) -> String {
    value.map_or("nothing".to_owned(), |value| value.to_string())
}
