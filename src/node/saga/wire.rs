//! Sagas as messages.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::rpc::convert::failure_to_proto;
use crate::rpc::v1;
use crate::saga::{
    Call, Definition, Outcome, Pause, Record, RecordKind, State, Task, TaskKind, TaskRef, TaskStatus, Token,
    Work, call_of,
};
use crate::types::Timestamp;

/// What a saga and its steps came from and to, as far as it was read.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Payloads {
    /// The saga's input.
    pub input: Bytes,
    /// What steps came to, by their places.
    pub outputs: BTreeMap<usize, Bytes>,
}

/// A task for a worker, that was handed out just now.
pub(super) fn task_to_proto(
    id: &str,
    definition: &Definition,
    state: &State,
    payloads: &Payloads,
    at: TaskRef,
    (now_ms, handed_out): (u64, Timestamp),
) -> Option<v1::SagaTask> {
    let (step, call, task) = (definition.step(at.step)?, call_of(definition, at)?, state.task(at)?);
    let outputs = payloads.outputs.iter().filter_map(|(number, output)| {
        let is_done = state.steps.get(*number)?.action.status == TaskStatus::Done;
        is_done.then(|| Some((definition.step(*number)?.name.clone(), output.clone())))?
    });
    Some(v1::SagaTask {
        token: Token { task: at, fence: task.fence }.to_text(id),
        saga_id: id.to_owned(),
        saga: state.name.clone(),
        version: state.version,
        step: step.name.clone(),
        kind: at.kind.name().to_owned(),
        handler: call.handler.clone(),
        is_txn: call.is_txn,
        attempt: task.attempts,
        fence: task.fence,
        input: payloads.input.clone(),
        outputs: outputs.collect(),
        lease_ms: task.started_ms.saturating_add(call.timeouts.start_to_close_ms).saturating_sub(now_ms),
        heartbeat_ms: call.timeouts.heartbeat_ms.unwrap_or_default(),
        key: format!("{id}/{}/{}", step.name, at.kind.name()),
        queue: call.queue.clone(),
        lease_ts: handed_out.0,
    })
}

/// A saga as it is shown. `payloads` only where they were asked for.
pub(super) fn view_to_proto(
    id: &str,
    definition: &Definition,
    state: &State,
    payloads: Option<&Payloads>,
    now_ms: u64,
) -> v1::SagaView {
    let steps = definition.steps().iter().enumerate().zip(&state.steps).map(|((number, step), tasks)| {
        let shown = |call: &Option<Call>, kind| call.as_ref().map(|_| task_view(tasks.task(kind)));
        v1::SagaStepView {
            name: step.name.clone(),
            work: work_name(&step.work).to_owned(),
            stage: step.stage as u32,
            is_pivot: step.is_pivot,
            action: Some(task_view(&tasks.action)),
            compensation: shown(&step.compensation, TaskKind::Compensation),
            check: shown(&step.check, TaskKind::Check),
            // Of one that was gone back over, what it came to then is still stored.
            output: payloads
                .filter(|_| tasks.action.status == TaskStatus::Done)
                .and_then(|payloads| payloads.outputs.get(&number).cloned()),
        }
    });
    v1::SagaView {
        steps: steps.collect(),
        input: payloads.map(|payloads| payloads.input.clone()),
        ..summary_to_proto(id, definition, state, now_ms)
    }
}

/// A saga as it stands in lists.
pub(super) fn summary_to_proto(
    id: &str,
    definition: &Definition,
    state: &State,
    now_ms: u64,
) -> v1::SagaView {
    v1::SagaView {
        id: id.to_owned(),
        name: state.name.clone(),
        version: state.version,
        status: state.status().name().to_owned(),
        created_unix_ms: state.created_ms,
        closed_unix_ms: state.closed_ms,
        reason: reason(definition, state),
        priority: u32::from(state.priority),
        attributes: state.attributes.clone().into_iter().collect(),
        parent: state.parent.as_ref().map(|parent| parent.id.clone()).unwrap_or_default(),
        at: open_steps(definition, state),
        signals: state.signals.iter().map(|signal| signal.name.clone()).collect(),
        now_unix_ms: now_ms,
        ..v1::SagaView::default()
    }
}

/// Why a saga stands still or goes back.
fn reason(definition: &Definition, state: &State) -> String {
    let name = |step: usize| definition.step(step).map_or("?", |step| step.name.as_str());
    let failure = |step: usize| {
        let tasks = state.steps.get(step);
        let failed = tasks.into_iter().flat_map(|step| [&step.compensation, &step.action]);
        let failed = failed.filter(|task| task.status == TaskStatus::Failed);
        failed.filter_map(|task| task.failure.as_ref()).map(|failure| failure.message.clone()).next()
    };
    match &state.pause {
        None => state.reason.clone(),
        Some(Pause::Asked { reason }) => reason.clone(),
        Some(Pause::Exhausted { step }) => format!(
            "step {} has failed for good and must be done or undone: {}; `retry` it",
            name(*step),
            failure(*step).unwrap_or_default()
        ),
        Some(Pause::Unknown { step }) => {
            format!("it is not known whether the pivot {} took effect: look, and `resolve` it", name(*step))
        }
    }
}

/// Names of the steps with something that is ready, runs or waits.
pub(super) fn open_steps(definition: &Definition, state: &State) -> Vec<String> {
    let is_open = |step: usize| {
        state.steps.get(step).is_some_and(|step| TaskKind::ALL.iter().any(|kind| step.task(*kind).is_open()))
    };
    let steps = definition.steps().iter().enumerate();
    let open = steps.filter(|(number, _)| !state.is_closed() && is_open(*number));
    open.map(|(_, step)| step.name.clone()).collect()
}

fn work_name(work: &Work) -> &'static str {
    match work {
        Work::Call(call) if call.is_txn => "txn",
        Work::Call(_) => "activity",
        Work::Sleep { .. } => "sleep",
        Work::Signal { .. } => "signal",
        Work::Child { .. } => "child",
    }
}

fn task_view(task: &Task) -> v1::SagaTaskView {
    let has_due = matches!(task.status, TaskStatus::Running | TaskStatus::Backoff) && task.due_ms < u64::MAX;
    v1::SagaTaskView {
        status: task.status.name().to_owned(),
        attempts: task.attempts,
        worker: task.worker.clone(),
        failure: task.failure.clone().map(failure_to_proto),
        due_unix_ms: if has_due { task.due_ms } else { 0 },
        started_unix_ms: task.started_ms,
        unsure: task.unsure,
    }
}

/// A line of history as a message.
pub(super) fn record_to_proto(number: u64, definition: &Definition, record: Record) -> v1::SagaRecord {
    let step = record.step.and_then(|step| definition.step(step));
    let (what, kind, attempt, detail) = told(record.what);
    v1::SagaRecord {
        number,
        at_unix_ms: record.at_ms,
        step: step.map(|step| step.name.clone()).unwrap_or_default(),
        what: what.to_owned(),
        kind: kind.map(TaskKind::name).unwrap_or_default().to_owned(),
        attempt,
        detail,
    }
}

fn told(what: RecordKind) -> (&'static str, Option<TaskKind>, u32, String) {
    let plain = |what| (what, None, 0, String::new());
    let why = |what, reason| (what, None, 0, reason);
    match what {
        RecordKind::Started => plain("started"),
        RecordKind::Waiting => plain("waiting"),
        RecordKind::HandedOut { kind, attempt, worker } => ("handed_out", Some(kind), attempt, worker),
        RecordKind::Returned { kind } => ("returned", Some(kind), 0, String::new()),
        RecordKind::Completed { kind, attempt } => ("completed", Some(kind), attempt, String::new()),
        RecordKind::AttemptFailed { kind, attempt, failure, pause_ms } => {
            let detail = format!("{}; again in {pause_ms} ms", failure.message);
            ("attempt_failed", Some(kind), attempt, detail)
        }
        RecordKind::Failed { kind, attempts, failure } => ("failed", Some(kind), attempts, failure.message),
        RecordKind::Withdrawn { kind } => ("withdrawn", Some(kind), 0, String::new()),
        RecordKind::Signalled { name } => why("signalled", name),
        RecordKind::Compensating { reason } => why("compensating", reason),
        RecordKind::CancelRequested { reason } => why("cancel_requested", reason),
        RecordKind::TooLateToGoBack => plain("too_late_to_go_back"),
        RecordKind::TimedOut => plain("timed_out"),
        RecordKind::Paused { reason } => why("paused", reason),
        RecordKind::Resumed => plain("resumed"),
        RecordKind::RetryRequested => plain("retry_requested"),
        RecordKind::Resolved { is_done } => {
            why("resolved", if is_done { "done" } else { "not done" }.to_owned())
        }
        RecordKind::ResetRequested => plain("reset_requested"),
        RecordKind::WentBack => plain("went_back"),
        RecordKind::OutputLeftOut { size_bytes } => why("output_left_out", format!("{size_bytes} bytes")),
        RecordKind::ChildClosed { outcome } => why("child_closed", outcome.name().to_owned()),
        RecordKind::Closed { outcome, not_undone } => {
            let detail = match not_undone.is_empty() {
                true => outcome.name().to_owned(),
                false => format!("{}; not undone: {}", outcome.name(), not_undone.join(", ")),
            };
            why("closed", detail)
        }
    }
}

/// How a saga ended, from its name.
pub(super) fn outcome_of_name(name: &str) -> Option<Outcome> {
    Outcome::ALL.into_iter().find(|outcome| outcome.name() == name)
}
