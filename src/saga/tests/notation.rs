//! How tests write sagas and events, and how they show what became of them.

use std::error::Error;
use std::fmt::Write as _;

use bytes::Bytes;

use super::machine::Machine;
use crate::saga::{
    CallDocument, Change, CompensationOrder, Definition, Document, Event, Failure, Letter, Message, Outcome,
    Pause, Phase, Record, RecordKind, Saga, Signal, State, Step, TaskKind, TaskRef, TaskStatus, Then, Token,
};

pub(super) type Parsed<T> = Result<T, Box<dyn Error>>;

/// A saga in short: each word group is a stage, `|` stands between steps that run side by side, and `timeout=MS` and
/// `parallel` are about all of it. A step is its name and what [`step`] knows.
pub(super) fn document(groups: &[&str]) -> Parsed<Document> {
    let mut document = Saga::define("trip", 1);
    for group in groups {
        if let Some(timeout_ms) = group.strip_prefix("timeout=") {
            document = document.timeout_ms(timeout_ms.parse()?);
        } else if *group == "parallel" {
            document = document.compensation_order(CompensationOrder::Parallel);
        } else if group.contains('|') {
            let steps: Vec<Step> = group.split('|').map(step).collect::<Parsed<_>>()?;
            document = document.parallel(steps);
        } else {
            document = document.step(step(group)?);
        }
    }
    Ok(document)
}

fn step(text: &str) -> Parsed<Step> {
    let mut words = text.split_whitespace();
    let name = words.next().ok_or("a step has a name")?;
    let mut step = Step::activity(name);
    let mut of = "action";
    let (mut undo, mut check) = (CallDocument::default(), CallDocument::default());
    for word in words {
        let (key, value) = word.split_once('=').unwrap_or((word, ""));
        // What follows `undo` or `check` is about that.
        let (retry, timeouts) = match of {
            "undo" => (&mut undo.retry, &mut undo.timeouts),
            "check" => (&mut check.retry, &mut check.timeouts),
            _ => (&mut step.retry, &mut step.timeouts),
        };
        match key {
            "tries" => retry.get_or_insert_default().max_attempts = value.parse()?,
            "pause" => retry.get_or_insert_default().initial_ms = value.parse()?,
            "factor" => retry.get_or_insert_default().factor_percent = value.parse()?,
            "max" => retry.get_or_insert_default().max_ms = value.parse()?,
            "final" => retry.get_or_insert_default().final_kinds.push(value.to_owned()),
            "lease" => timeouts.get_or_insert_default().start_to_close_ms = value.parse()?,
            "beat" => timeouts.get_or_insert_default().heartbeat_ms = Some(value.parse()?),
            "within" => timeouts.get_or_insert_default().schedule_to_close_ms = Some(value.parse()?),
            "txn" => step = Step { retry: step.retry, timeouts: step.timeouts, ..Step::txn(name) },
            "sleep" => step = Step::sleep_ms(name, value.parse()?),
            "signal" => step = Step::signal(name, value),
            "wait" => step = step.timeout_ms(value.parse()?),
            "child" => step = Step::child(name, value),
            "pivot" => step = step.pivot(),
            "undo" => (of, undo.activity) = ("undo", Some(format!("undo-{name}"))),
            "undo-txn" => (of, undo.txn) = ("undo", Some(format!("undo-{name}"))),
            "check" => (of, check.activity) = ("check", Some(format!("check-{name}"))),
            word => return Err(format!("a step has no {word}").into()),
        }
    }
    step.compensation = (undo != CallDocument::default()).then_some(undo);
    step.check = (check != CallDocument::default()).then_some(check);
    Ok(step)
}

/// A task: `STEP`, `STEP.undo` or `STEP.check`.
fn task(definition: &Definition, text: &str) -> Parsed<TaskRef> {
    let (name, kind) = match text.split_once('.') {
        None => (text, TaskKind::Action),
        Some((name, "undo")) => (name, TaskKind::Compensation),
        Some((name, "check")) => (name, TaskKind::Check),
        Some(_) => return Err(format!("{text} is no task").into()),
    };
    Ok(TaskRef { step: step_of(definition, name)?, kind })
}

/// A step that is not there is written `nowhere`.
fn step_of(definition: &Definition, name: &str) -> Parsed<usize> {
    match name {
        "nowhere" => Ok(99),
        _ => Ok(definition.find(name).ok_or_else(|| format!("no step {name}"))?),
    }
}

/// The token of a task's last hand-out, or of the one with the fence behind `@`.
fn token(machine: &Machine, text: &str) -> Parsed<Token> {
    let (name, fence) = text.split_once('@').map_or((text, None), |(name, fence)| (name, Some(fence)));
    let task = task(&machine.definition, name)?;
    let last = machine.state.task(task).map_or(0, |task| task.fence);
    Ok(Token { task, fence: fence.map_or(Ok(last), str::parse)? })
}

pub(super) fn outcome(name: &str) -> Parsed<Outcome> {
    let found = Outcome::ALL.into_iter().find(|outcome| outcome.name() == name);
    Ok(found.ok_or_else(|| format!("no outcome {name}"))?)
}

/// An event in words: its name, what it is about, and `key=value`.
pub(super) fn event(machine: &Machine, words: &[&str]) -> Parsed<Event> {
    let definition = &machine.definition;
    let key = |key: &str| {
        words.iter().find_map(|word| word.strip_prefix(key).and_then(|word| word.strip_prefix('=')))
    };
    let says = |flag: &str| words.contains(&flag);
    let name = *words.first().ok_or("no event")?;
    let about = || words.get(1).copied().ok_or_else(|| format!("what shall {name}?"));
    let text = |word: &str| key(word).unwrap_or_default();
    let reason = words.get(1).copied().unwrap_or("why-not").to_owned();
    Ok(match name {
        "hand" => Event::HandOut {
            task: task(definition, about()?)?,
            worker: words.get(2).copied().unwrap_or("w").to_owned(),
        },
        "return" => Event::Return { token: token(machine, about()?)? },
        "complete" | "commit" => Event::Complete {
            token: token(machine, about()?)?,
            output: Bytes::copy_from_slice(text("output").as_bytes()),
            is_committed: name == "commit",
        },
        "fail" => {
            let failure = Failure {
                message: key("why").unwrap_or("broken").to_owned(),
                kind: text("kind").to_owned(),
                is_final: says("final"),
                did_nothing: says("nothing"),
            };
            Event::Fail { token: token(machine, about()?)?, failure }
        }
        "beat" => Event::Heartbeat { token: token(machine, about()?)? },
        "tick" => Event::Tick,
        "signal" => Event::Signal(Signal {
            id: key("id").unwrap_or("1").parse()?,
            name: about()?.to_owned(),
            payload: Bytes::copy_from_slice(text("payload").as_bytes()),
        }),
        "cancel" => Event::Cancel { reason },
        "terminate" => Event::Terminate { reason },
        "pause" => Event::Pause { reason },
        "resume" => Event::Resume,
        "retry" => Event::Retry { step: words.get(1).map(|name| step_of(definition, name)).transpose()? },
        "resolve" => Event::Resolve { step: step_of(definition, about()?)?, is_done: !says("undone") },
        "reset" => Event::Reset { step: step_of(definition, about()?)? },
        "once" => Event::Once {
            request: about()?.parse()?,
            event: Box::new(event(machine, words.get(2..).unwrap_or_default())?),
        },
        "child" => Event::ChildClosed {
            token: token(machine, about()?)?,
            created_ms: key("of").map_or(Ok(machine.state.created_ms), str::parse)?,
            outcome: outcome(words.get(2).copied().unwrap_or("completed"))?,
            output: Bytes::copy_from_slice(text("output").as_bytes()),
        },
        "delivered" => Event::Delivered { letter: about()?.parse()? },
        "takeover" => Event::TakenOver,
        "begun" => Event::Begun,
        name => return Err(format!("no event {name}").into()),
    })
}

fn step_name(definition: &Definition, step: usize) -> &str {
    definition.step(step).map_or("?", |step| &step.name)
}

pub(super) fn show_task(definition: &Definition, at: TaskRef) -> String {
    let kind = match at.kind {
        TaskKind::Action => "",
        TaskKind::Compensation => ".undo",
        TaskKind::Check => ".check",
    };
    format!("{}{kind}", step_name(definition, at.step))
}

fn show_failure(failure: &Failure) -> String {
    let mut out = format!("{:?}", failure.message);
    if !failure.kind.is_empty() {
        write!(out, " kind {}", failure.kind).expect("writes to a string");
    }
    if failure.is_final {
        out.push_str(" final");
    }
    if failure.did_nothing {
        out.push_str(" did nothing");
    }
    out
}

pub(super) fn show_record(definition: &Definition, record: &Record) -> String {
    let of =
        |kind: &TaskKind| show_task(definition, TaskRef { step: record.step.unwrap_or(99), kind: *kind });
    let step = record.step.map_or(String::new(), |step| format!("{} ", step_name(definition, step)));
    match &record.what {
        RecordKind::Started => "started".to_owned(),
        RecordKind::Waiting => format!("{step}waits"),
        RecordKind::HandedOut { kind, attempt, worker } => {
            format!("{} handed out to {worker}, attempt {attempt}", of(kind))
        }
        RecordKind::Returned { kind } => format!("{} returned", of(kind)),
        RecordKind::Completed { kind, attempt } => format!("{} completed by attempt {attempt}", of(kind)),
        RecordKind::AttemptFailed { kind, attempt, failure, pause_ms } => {
            format!("{} attempt {attempt} failed: {}; pause {pause_ms} ms", of(kind), show_failure(failure))
        }
        RecordKind::Failed { kind, attempts, failure } => {
            format!("{} failed for good after {attempts} attempts: {}", of(kind), show_failure(failure))
        }
        RecordKind::Withdrawn { kind } => format!("{} withdrawn", of(kind)),
        RecordKind::Signalled { name } => format!("signal {name} came"),
        RecordKind::Compensating { reason } => format!("compensating: {reason}"),
        RecordKind::CancelRequested { reason } => format!("cancel requested: {reason}"),
        RecordKind::TooLateToGoBack => format!("{step}was done too early for going back"),
        RecordKind::TimedOut => "timed out".to_owned(),
        RecordKind::Paused { reason } => format!("paused: {reason}"),
        RecordKind::Resumed => "resumed".to_owned(),
        RecordKind::RetryRequested => format!("{step}retry requested"),
        RecordKind::Resolved { is_done } => format!("{step}resolved, done: {is_done}"),
        RecordKind::ResetRequested => format!("{step}reset requested"),
        RecordKind::WentBack => format!("goes forward from {step}on"),
        RecordKind::ChildClosed { outcome } => format!("{step}child {}", outcome.name()),
        RecordKind::OutputLeftOut { size_bytes } => format!("{step}output of {size_bytes} bytes left out"),
        RecordKind::Closed { outcome, not_undone } => {
            format!("closed {} not undone {not_undone:?}", outcome.name())
        }
    }
}

pub(super) fn show_tasks(definition: &Definition, state: &State, old: Option<&State>) -> String {
    let mut out = Vec::new();
    for step in 0..state.steps.len() {
        for kind in TaskKind::ALL {
            let at = TaskRef { step, kind };
            let (task, before) = (state.task(at), old.and_then(|old| old.task(at)));
            let Some(task) = task.filter(|task| {
                Some(*task) != before && (task.status != TaskStatus::Idle || before.is_some())
            }) else {
                continue;
            };
            let mut shown = format!("{}={}", show_task(definition, at), task.status.name());
            if task.fence > 0 && task.status == TaskStatus::Running {
                write!(shown, "@{}", task.fence).expect("writes to a string");
            }
            if task.unsure {
                shown.push('?');
            }
            out.push(shown);
        }
    }
    out.join(" ")
}

fn show_then(then: Then) -> String {
    match then {
        Then::Fail => "to fail".to_owned(),
        Then::Cancel => "to cancel".to_owned(),
        Then::Forward { stage } => format!("to go forward from stage {stage}"),
    }
}

pub(super) fn show_way(definition: &Definition, state: &State) -> String {
    let phase = match state.phase {
        Phase::Forward => "forward".to_owned(),
        Phase::Halting { then } => format!("halting {}", show_then(then)),
        Phase::Compensating { then } => format!("compensating {}", show_then(then)),
        Phase::Closed { outcome } => return format!("closed {}", outcome.name()),
    };
    let pause = match &state.pause {
        None => String::new(),
        Some(Pause::Asked { reason }) => format!(", paused by {reason}"),
        Some(Pause::Exhausted { step }) => format!(", exhausted {}", step_name(definition, *step)),
        Some(Pause::Unknown { step }) => format!(", unknown {}", step_name(definition, *step)),
    };
    format!("{phase}, stage {}{pause}", state.stage)
}

fn show_letter(definition: &Definition, letter: &Letter) -> String {
    let (what, token) = match &letter.message {
        Message::StartChild { token } => ("start", Some(token)),
        Message::CancelChild { token } => ("cancel", Some(token)),
        Message::TerminateChild { token } => ("terminate", Some(token)),
        Message::TellParent => ("tell parent", None),
    };
    let whom = token
        .map_or(String::new(), |token| format!(" {}@{}", show_task(definition, token.task), token.fence));
    format!("{}:{what}{whom}", letter.number)
}

/// All that came of an event.
pub(super) fn show(definition: &Definition, state: &State, change: &Change) -> String {
    let mut out = String::new();
    for record in &change.records {
        writeln!(out, "{}", show_record(definition, record)).expect("writes to a string");
    }
    for (step, output) in &change.outputs {
        writeln!(out, "{} output \"{}\"", step_name(definition, *step), output.escape_ascii())
            .expect("writes to a string");
    }
    write!(out, "= {}: {}", show_way(definition, state), show_tasks(definition, state, None))
        .expect("writes to a string");
    let ready: Vec<_> = state.ready(definition).map(|(at, _)| show_task(definition, at)).collect();
    let letters: Vec<_> = state.letters.iter().map(|letter| show_letter(definition, letter)).collect();
    for (what, list) in [("ready", ready), ("letters", letters)] {
        if !list.is_empty() {
            write!(out, "; {what} {}", list.join(" ")).expect("writes to a string");
        }
    }
    if let Some(due_ms) = state.next_due_ms(definition) {
        write!(out, "; due {due_ms}").expect("writes to a string");
    }
    if !change.must_store {
        out.push_str("; not stored");
    }
    out
}
