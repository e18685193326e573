//! How sagas, their steps and their history are told: for people, and as JSON.

use serde_json::{Map, Value, json};

use crate::cli::output::{self, put_bytes};
use crate::client::{SagaDefinition, SagaRecord, SagaView};
use crate::rpc::v1::{SagaStepView, SagaTaskView};
use crate::saga::{DefinedStep, Definition, Work};

/// The header over [`list_line`].
pub const LIST_HEADER: &str =
    "STATUS        STARTED                   SAGA                      ID                        AT";

/// A time for people, in UTC.
pub fn time(unix_ms: u64) -> String {
    let at = std::time::UNIX_EPOCH + std::time::Duration::from_millis(unix_ms);
    humantime::format_rfc3339_millis(at).to_string()
}

/// A saga in one line.
pub fn list_line(saga: &SagaView) -> String {
    let name = format!("{} v{}", saga.name, saga.version);
    let at = if saga.at.is_empty() { saga.reason.clone() } else { saga.at.join(", ") };
    format!("{:<13} {:<25} {name:<25} {:<25} {at}", saga.status, time(saga.created_unix_ms), saga.id)
}

/// A saga with its steps, drawn.
pub fn drawn(saga: &SagaView) -> String {
    let mut lines = vec![format!("{}  {} v{}  {}", saga.id, saga.name, saga.version, saga.status)];
    if !saga.reason.is_empty() {
        lines.push(format!("  {}", saga.reason));
    }
    let ended = match saga.closed_unix_ms {
        0 => String::new(),
        closed => format!(", ended {}", time(closed)),
    };
    lines.push(format!("  started {}{ended}", time(saga.created_unix_ms)));
    if !saga.attributes.is_empty() {
        let mut attributes: Vec<_> =
            saga.attributes.iter().map(|(name, value)| format!("{name}={value}")).collect();
        attributes.sort();
        lines.push(format!("  {}", attributes.join("  ")));
    }
    if !saga.parent.is_empty() {
        lines.push(format!("  a step of {}", saga.parent));
    }
    if !saga.signals.is_empty() {
        lines.push(format!("  signals that wait: {}", saga.signals.join(", ")));
    }
    let width = saga.steps.iter().map(|step| step.name.chars().count()).max().unwrap_or_default();
    for (number, step) in saga.steps.iter().enumerate() {
        let same = |other: Option<&SagaStepView>| other.is_some_and(|other| other.stage == step.stage);
        let before = same(number.checked_sub(1).and_then(|before| saga.steps.get(before)));
        let after = same(saga.steps.get(number + 1));
        let line = match (before, after) {
            (false, false) => ' ',
            (false, true) => '┌',
            (true, true) => '│',
            (true, false) => '└',
        };
        lines.push(format!("{line} {}", step_line(step, width, saga.now_unix_ms)));
    }
    lines.join("\n")
}

fn step_line(step: &SagaStepView, width: usize, now_ms: u64) -> String {
    let action = step.action.clone().unwrap_or_default();
    let undone = step.compensation.as_ref().filter(|task| task.status != "idle");
    let mark = match (undone.map(|task| task.status.as_str()), action.status.as_str()) {
        (Some("done"), _) => '↶',
        (Some("failed"), _) | (None, "failed") => '✗',
        (Some(_), _) | (None, "running" | "ready" | "backoff") => '▸',
        (None, "done") => '✓',
        _ => '·',
    };
    let pivot = if step.is_pivot { " (pivot)" } else { "" };
    let name = format!("{}{pivot}", step.name);
    let mut line =
        format!("{mark} {name:<width$}  {}", task_text(&action, &step.work, now_ms), width = width + 8);
    if let Some(task) = undone {
        line += &format!(" · undo {}", task_text(task, "activity", now_ms));
    }
    if let Some(check) = step.check.as_ref().filter(|task| task.status != "idle") {
        line += &format!(" · check {}", task_text(check, "activity", now_ms));
    }
    line
}

fn task_text(task: &SagaTaskView, work: &str, now_ms: u64) -> String {
    let is_call = matches!(work, "activity" | "txn");
    let mut parts = vec![match (task.status.as_str(), is_call) {
        ("running", false) => format!("waiting ({work})"),
        (status, _) => status.to_owned(),
    }];
    if is_call && task.attempts > 0 && (task.attempts > 1 || task.status != "done") {
        parts.push(format!("attempt {}", task.attempts));
    }
    if is_call && task.status == "running" {
        parts.push(format!("by {}", task.worker));
    }
    if task.due_unix_ms > 0 && (task.status != "running" || !is_call) {
        let left = std::time::Duration::from_millis(task.due_unix_ms.saturating_sub(now_ms) / 100 * 100);
        parts.push(format!("in {}", humantime::format_duration(left)));
    }
    if task.status != "done"
        && let Some(failure) = &task.failure
    {
        parts.push(failure.message.clone());
    }
    if task.unsure && task.status != "done" {
        parts.push("may have taken effect".to_owned());
    }
    parts.join(", ")
}

fn task_json(task: &SagaTaskView) -> Value {
    let failure = task.failure.as_ref().map(|failure| {
        json!({
            "message": failure.message,
            "kind": failure.kind,
            "is_final": failure.is_final,
            "did_nothing": failure.did_nothing,
        })
    });
    json!({
        "status": task.status,
        "attempts": task.attempts,
        "worker": task.worker,
        "failure": failure,
        "due_unix_ms": task.due_unix_ms,
        "started_unix_ms": task.started_unix_ms,
        "unsure": task.unsure,
    })
}

/// A saga as JSON.
pub fn saga_json(saga: &SagaView, hex: bool) -> Value {
    let mut object = Map::new();
    let plain = json!({
        "id": saga.id,
        "name": saga.name,
        "version": saga.version,
        "status": saga.status,
        "created_unix_ms": saga.created_unix_ms,
        "closed_unix_ms": saga.closed_unix_ms,
        "reason": saga.reason,
        "priority": saga.priority,
        "attributes": saga.attributes,
        "parent": saga.parent,
        "at": saga.at,
        "signals": saga.signals,
    });
    if let Value::Object(plain) = plain {
        object.extend(plain);
    }
    if let Some(input) = &saga.input {
        put_bytes(&mut object, "input", input, hex);
    }
    if !saga.steps.is_empty() {
        let steps = saga.steps.iter().map(|step| {
            let mut one = Map::new();
            one.insert("name".to_owned(), step.name.clone().into());
            one.insert("work".to_owned(), step.work.clone().into());
            one.insert("stage".to_owned(), step.stage.into());
            one.insert("is_pivot".to_owned(), step.is_pivot.into());
            one.insert("action".to_owned(), step.action.as_ref().map_or(Value::Null, task_json));
            one.insert("compensation".to_owned(), step.compensation.as_ref().map_or(Value::Null, task_json));
            one.insert("check".to_owned(), step.check.as_ref().map_or(Value::Null, task_json));
            if let Some(output) = &step.output {
                put_bytes(&mut one, "output", output, hex);
            }
            Value::Object(one)
        });
        object.insert("steps".to_owned(), steps.collect());
    }
    Value::Object(object)
}

/// A line of history, for people.
pub fn record_line(record: &SagaRecord) -> String {
    let mut parts = vec![time(record.at_unix_ms)];
    if !record.step.is_empty() {
        parts.push(record.step.clone());
    }
    if !record.kind.is_empty() && record.kind != "action" {
        parts.push(record.kind.clone());
    }
    parts.push(record.what.replace('_', " "));
    if record.attempt > 0 {
        parts.push(format!("(attempt {})", record.attempt));
    }
    if !record.detail.is_empty() {
        parts.push(format!("- {}", record.detail));
    }
    parts.join(" ")
}

/// A line of history as JSON.
pub fn record_json(record: &SagaRecord) -> Value {
    json!({
        "number": record.number,
        "at_unix_ms": record.at_unix_ms,
        "step": record.step,
        "what": record.what,
        "kind": record.kind,
        "attempt": record.attempt,
        "detail": record.detail,
    })
}

/// A definition as JSON.
pub fn definition_json(definition: &SagaDefinition) -> Value {
    json!({
        "name": definition.name,
        "version": definition.version,
        "created_ts": definition.created_ts,
        "definition": serde_json::from_str::<Value>(&definition.json).unwrap_or_default(),
    })
}

/// Definitions as a table.
pub fn definitions_table(definitions: &[SagaDefinition]) -> String {
    let mut table = output::table(&["SAGA", "VERSION", "CREATED_TS"]);
    for one in definitions {
        table.add_row([one.name.clone(), one.version.to_string(), one.created_ts.to_string()]);
    }
    table.to_string()
}

/// The steps of a definition, a line each.
pub fn outline(definition: &Definition) -> String {
    let line = |step: &DefinedStep| {
        let work = match &step.work {
            Work::Call(call) => {
                let kind = if call.is_txn { "txn" } else { "activity" };
                format!("{kind} {} (queue {})", call.handler, call.queue)
            }
            Work::Sleep { sleep_ms } => {
                format!("sleep {}", humantime::format_duration(std::time::Duration::from_millis(*sleep_ms)))
            }
            Work::Signal { signal, .. } => format!("signal {signal}"),
            Work::Child { saga, .. } => format!("child saga {saga}"),
        };
        let pivot = if step.is_pivot { ", the pivot" } else { "" };
        let undone = step.compensation.as_ref().map(|call| format!(", undone by {}", call.handler));
        format!("  {} {}: {work}{pivot}{}", step.stage + 1, step.name, undone.unwrap_or_default())
    };
    definition.steps().iter().map(line).collect::<Vec<_>>().join("\n")
}
