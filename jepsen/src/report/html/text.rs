//! Words of the page.

use crate::history::saga::{Saga, Task};
use crate::history::{Call, Kind, MicroOp, Seen, Told, Value};

/// Longer values are cut.
const VALUE_CHARS: usize = 160;

/// Text that stands in HTML as it is.
pub(super) fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            other => safe.push(other),
        }
    }
    safe
}

/// A time of the history, in seconds.
pub(super) fn seconds(ns: u64) -> String {
    format!("{:.3}", ns as f64 / 1e9)
}

/// The class of an outcome: `o`, `f` or `i`.
pub(super) fn class(outcome: Kind) -> &'static str {
    match outcome {
        Kind::Ok => "o",
        Kind::Fail => "f",
        Kind::Info | Kind::Invoke => "i",
    }
}

/// An operation in a line, not escaped.
pub(super) fn told(call: &Call<'_>) -> String {
    let value = match call.answer() {
        Some(answer) => shown(answer),
        None => format!("{} ({})", shown(call.argument()), call.outcome().name()),
    };
    let value = match value.char_indices().nth(VALUE_CHARS) {
        Some((end, _)) => format!("{}…", &value[..end]),
        None => value,
    };
    let key = if call.key().is_empty() { String::new() } else { format!("{} ", call.key()) };
    format!("#{} process {}: {} {key}{value}", call.invoke.index, call.invoke.process, call.f())
}

fn shown(value: &Value) -> String {
    match value {
        Value::Nil => "nil".into(),
        Value::Int(number) => number.to_string(),
        Value::Cas { old, new } => format!("{} → {new}", old.map_or("nil".into(), |old| old.to_string())),
        Value::List(elements) => list(elements),
        Value::Balances(balances) => {
            let each: Vec<String> =
                balances.iter().map(|(account, held)| format!("{account} {held}")).collect();
            each.join(", ")
        }
        Value::Transfer { from, to, amount } => format!("{amount} from {from} to {to}"),
        Value::Txn(steps) => steps.iter().map(step).collect::<Vec<_>>().join("; "),
        Value::Follow(following) if following.scans => "rows, then changes".into(),
        Value::Follow(_) => "changes from the start".into(),
        Value::Query(query) => {
            let of = query.group.map_or("all".to_owned(), |group| format!("group {group}"));
            let at_least = query.at_least.map(|at| format!(" at {at} at least")).unwrap_or_default();
            of + &at_least
        }
        Value::Found(found) => {
            let each: Vec<String> = found.iter().map(|(name, number)| format!("{name} {number}")).collect();
            each.join(", ")
        }
        Value::Dump(dump) => format!("{} rows, {} stored", dump.rows.len(), dump.stored.len()),
        Value::Saga(saga) => of_saga(saga),
        Value::Told(told) => told.iter().map(event).collect::<Vec<_>>().join("; "),
    }
}

fn of_saga(saga: &Saga) -> String {
    let task = |task: &Task| format!("{} {} {}, fence {}", task.step, task.kind, task.attempt, task.fence);
    match saga {
        Saga::Start(start) => format!("{} {}", start.saga, start.input),
        Saga::Started { already } => (if *already { "was there" } else { "started" }).to_owned(),
        Saga::Task(at) => task(at),
        Saga::Came(came) => format!("{came:?}"),
        Saga::Effect(effect) => {
            let refused = if effect.refused { ": refused" } else { "" };
            format!("{} {}, fence {}{refused}", effect.step, effect.kind, effect.fence)
        }
        Saga::Tell(tell) => {
            format!("{}: {}", task(&tell.task), tell.output.as_deref().unwrap_or("failed"))
        }
        Saga::Told { already: false, .. } => "recorded".to_owned(),
        Saga::Told { recorded, .. } => format!("recorded before: {recorded}"),
        Saga::Steer { action, step } => format!("{action} {step}"),
        Saga::Status(status) => status.clone(),
        Saga::Read(read) => format!("{} {}, {} lines", read.saga, read.status, read.lines.len()),
        Saga::List(sagas) => format!("{} sagas", sagas.len()),
    }
}

fn event(told: &Told) -> String {
    match told {
        Told::Row { key, value } => format!("row {key} {value}"),
        Told::Changes { at, changes } => format!("{} changes at {at}", changes.len()),
        Told::Progress { at } => format!("all up to {at}"),
    }
}

fn step(step: &MicroOp) -> String {
    match step {
        MicroOp::Append { key, value } => format!("append {key} {value}"),
        MicroOp::Write { key, value } => format!("write {key} {value}"),
        MicroOp::Add { key, delta } => format!("add {key} {delta}"),
        MicroOp::Delete { key } => format!("delete {key}"),
        MicroOp::Read { key, seen } => match seen {
            Seen::Nothing => format!("read {key}: nil"),
            Seen::One(value) => format!("read {key}: {value}"),
            Seen::List(elements) => format!("read {key}: {}", list(elements)),
        },
    }
}

fn list(elements: &[i64]) -> String {
    let each: Vec<String> = elements.iter().map(i64::to_string).collect();
    format!("[{}]", each.join(" "))
}
