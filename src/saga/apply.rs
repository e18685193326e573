//! What an event makes of a saga: the events that come from outside. What follows from them is in `flow`.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::event::{Change, Event, Failure, Record, RecordKind, Refusal, Signal, TaskRef, Token};
use super::state::{Message, Outcome, Parent, Pause, Phase, State, StepState, Then, call_of};
use super::task::pause_ms;
use super::{Call, Definition, Task, TaskEvent, TaskKind, TaskStatus, Work};
use crate::types::limits;

/// How many ids of requests are kept, by which one that is sent again is known.
const SEEN_REQUESTS: usize = 100;

/// What a saga is started with.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Start {
    /// Larger ones go first, where tasks wait for workers.
    pub priority: u8,
    /// What it is found by.
    pub attributes: BTreeMap<String, String>,
    /// Who starts it, where that is another saga.
    pub parent: Option<Parent>,
    /// A number made of its input.
    pub input_hash: u64,
    /// Bytes of its input.
    pub input_bytes: u64,
}

/// A saga at its beginning.
pub fn start(definition: &Definition, start: Start, now_ms: u64) -> (State, Change) {
    let state = State {
        name: definition.name().to_owned(),
        version: definition.version(),
        created_ms: now_ms,
        closed_ms: 0,
        priority: start.priority,
        attributes: start.attributes,
        parent: start.parent,
        input_hash: start.input_hash,
        phase: Phase::Forward,
        stage: 0,
        pause: None,
        paused_ms: 0,
        reason: String::new(),
        deadline_ms: definition.timeout_ms().map(|timeout_ms| now_ms.saturating_add(timeout_ms)),
        steps: vec![StepState::default(); definition.steps().len()],
        fence: 0,
        history_len: 0,
        input_bytes: start.input_bytes,
        signals: Vec::new(),
        seen_requests: Vec::new(),
        letters: Vec::new(),
        last_letter: 0,
    };
    let mut turn = Turn { state, definition, now_ms, change: Change::default() };
    turn.record(None, RecordKind::Started);
    turn.advance();
    turn.end()
}

/// What an event makes of a saga. `definition` is that of the saga's version, `now_ms` the engine's clock.
///
/// # Errors
///
/// Where the event changes nothing: why.
pub fn apply(
    state: &State,
    definition: &Definition,
    now_ms: u64,
    event: Event,
) -> Result<(State, Change), Refusal> {
    let mut turn = Turn { state: state.clone(), definition, now_ms, change: Change::default() };
    turn.take(event)?;
    Ok(turn.end())
}

/// One event at work.
pub(super) struct Turn<'d> {
    pub(super) state: State,
    pub(super) definition: &'d Definition,
    pub(super) now_ms: u64,
    pub(super) change: Change,
}

impl Turn<'_> {
    fn end(mut self) -> (State, Change) {
        self.state.history_len += self.change.records.len() as u64;
        (self.state, self.change)
    }

    /// Writes a line of history.
    pub(super) fn record(&mut self, step: Option<usize>, what: RecordKind) {
        self.change.must_store = true;
        self.change.records.push(Record { at_ms: self.now_ms, step, what });
    }

    fn take(&mut self, event: Event) -> Result<(), Refusal> {
        match event {
            Event::HandOut { task, worker } => self.hand_out(task, worker),
            Event::Return { token } => self.give_back(token),
            Event::Complete { token, output, is_committed } => self.complete(token, output, is_committed),
            Event::Fail { token, failure } => self.fail(token, failure),
            Event::Heartbeat { token } => self.heartbeat(token),
            Event::Tick => self.tick(),
            Event::Signal(signal) => self.once(signal.id, |turn| turn.signal(signal)),
            Event::Cancel { reason } => self.cancel(reason),
            Event::Terminate { reason } => self.terminate(reason),
            Event::Pause { reason } => self.pause(reason),
            Event::Resume => self.resume(),
            Event::Retry { step } => self.retry(step),
            Event::Resolve { step, is_done } => self.resolve(step, is_done),
            Event::Reset { step } => self.reset(step),
            Event::ChildClosed { token, created_ms, .. } if created_ms != self.state.created_ms => {
                Err(Refusal::Stale { why: format!("{token:?} is of an earlier saga of this id") })
            }
            Event::ChildClosed { token, outcome, output, .. } => self.child_closed(token, outcome, output),
            Event::Delivered { letter } => self.delivered(letter),
            Event::TakenOver => self.taken_over(),
            Event::Begun => self.begun(),
            Event::Once { request, event } => self.once(request, |turn| turn.take(*event)),
        }
    }

    /// Lets something happen unless its request has come before.
    fn once(
        &mut self,
        request: u128,
        what: impl FnOnce(&mut Self) -> Result<(), Refusal>,
    ) -> Result<(), Refusal> {
        if self.state.seen_requests.contains(&request) {
            return Err(Refusal::Already);
        }
        what(self)?;
        if self.state.seen_requests.len() >= SEEN_REQUESTS {
            self.state.seen_requests.remove(0);
        }
        self.state.seen_requests.push(request);
        self.change.must_store = true;
        Ok(())
    }

    fn hand_out(&mut self, at: TaskRef, worker: String) -> Result<(), Refusal> {
        let call = self.call(at)?.clone();
        if self.state.is_closed() || self.state.pause.is_some() {
            return Err(Refusal::unfit(format!("the saga is {}", self.state.status().name())));
        }
        let (fence, now_ms) = (self.state.fence + 1, self.now_ms);
        let task = self.task_mut(at)?;
        if !task.step(TaskEvent::HandOut) {
            return Err(Refusal::unfit(format!("the task is {}", task.status.name())));
        }
        task.attempts = task.attempts.saturating_add(1);
        task.fence = fence;
        task.started_ms = now_ms;
        task.worker = worker.clone();
        task.due_ms = task.lease_end_ms(&call.timeouts, now_ms);
        let attempt = task.attempts;
        self.state.fence = fence;
        self.record(Some(at.step), RecordKind::HandedOut { kind: at.kind, attempt, worker });
        Ok(())
    }

    fn give_back(&mut self, token: Token) -> Result<(), Refusal> {
        self.call(token.task)?;
        self.check_runs(token)?;
        let is_halting = token.task.kind == TaskKind::Action && self.is_halting();
        let task = self.task_mut(token.task)?;
        if !task.step(TaskEvent::Return) {
            return Err(Refusal::Already);
        }
        // As if it had not been handed out.
        task.attempts = task.attempts.saturating_sub(1);
        // Whatever comes of the task: the history has its hand-out, and says how that ended.
        self.record(Some(token.task.step), RecordKind::Returned { kind: token.task.kind });
        if is_halting {
            self.give_up(token.task);
        }
        self.advance();
        Ok(())
    }

    fn complete(&mut self, token: Token, output: Bytes, is_committed: bool) -> Result<(), Refusal> {
        let at = token.task;
        let call = self.call(at)?.clone();
        self.check_runs(token)?;
        if call.is_txn && !is_committed {
            return Err(Refusal::unfit(
                "the step is a transaction, which completes it by being committed: send the token and the output with its \
                 commit",
            ));
        }
        let check = match at.kind {
            TaskKind::Check => Some(match &*output {
                b"true" => true,
                b"false" => false,
                _ => {
                    return Err(Refusal::unfit(
                        "the output of a check is `true` where the step took effect, or `false`: send one of these",
                    ));
                }
            }),
            TaskKind::Action | TaskKind::Compensation => None,
        };
        // What is committed stands, however large.
        if at.kind == TaskKind::Action {
            let bytes = self.state.carried_bytes().saturating_add(output.len() as u64);
            if !is_committed && bytes > limits::MAX_SAGA_BYTES as u64 {
                return Err(Refusal::unfit(format!(
                    "with this output the saga's input, outputs and signals would come to {bytes} bytes, over the limit of {}: store \
                     large values under keys of their own, and hand on the keys",
                    limits::MAX_SAGA_BYTES
                )));
            }
        }
        self.done(at, output);
        if let Some(took_effect) = check {
            self.settle_pivot(at.step, took_effect);
        }
        self.advance();
        Ok(())
    }

    /// A task that runs is done.
    pub(super) fn done(&mut self, at: TaskRef, output: Bytes) {
        let Some(task) = self.state.task_mut(at) else { return };
        if !task.step(TaskEvent::Complete) {
            return;
        }
        let attempt = task.attempts;
        task.failure = None;
        if at.kind == TaskKind::Action {
            self.came_to(at.step, output);
        }
        self.record(Some(at.step), RecordKind::Completed { kind: at.kind, attempt });
    }

    /// What a step came to.
    pub(super) fn came_to(&mut self, step: usize, output: Bytes) {
        if let Some(state) = self.state.steps.get_mut(step) {
            state.output_bytes = output.len() as u64;
        }
        self.change.outputs.push((step, output));
    }

    fn fail(&mut self, token: Token, failure: Failure) -> Result<(), Refusal> {
        self.call(token.task)?;
        let ended = self.state.task(token.task).filter(|task| task.fence == token.fence);
        let has_failed =
            |task: &Task| matches!(task.status, TaskStatus::Backoff | TaskStatus::Ready | TaskStatus::Failed);
        let is_told = |told: &Failure| *told == failure || *told == took_too_long(failure.clone());
        if ended.is_some_and(|task| has_failed(task) && task.failure.as_ref().is_some_and(is_told)) {
            // It was told before.
            return Err(Refusal::Already);
        }
        self.check_runs(token)?;
        self.end_attempt(token.task, failure);
        self.advance();
        Ok(())
    }

    /// An attempt of a worker came to nothing, or nobody knows to what.
    fn end_attempt(&mut self, at: TaskRef, failure: Failure) {
        let Some(call) = call_of(self.definition, at).cloned() else { return };
        let is_halting = at.kind == TaskKind::Action && self.is_halting();
        let salt = self.state.created_ms.rotate_left(32) ^ self.state.fence;
        let now_ms = self.now_ms;
        let Some(task) = self.state.task_mut(at) else { return };
        // A transaction that was not committed did nothing, whatever its worker says.
        task.unsure |= at.kind == TaskKind::Action && !failure.did_nothing && !call.is_txn;
        let pause_ms = pause_ms(&call.retry, task.attempts.saturating_sub(task.forgiven).max(1), salt);
        let due_ms = now_ms.saturating_add(pause_ms);
        let is_late = task.close_by_ms(&call.timeouts).is_some_and(|close_by| close_by <= due_ms);
        let is_final = failure.is_final
            || call.retry.final_kinds.contains(&failure.kind)
            || task.is_exhausted(&call.retry)
            || is_halting;
        let failure = if is_late && !is_final { took_too_long(failure) } else { failure };
        task.failure = Some(failure.clone());
        let (kind, attempt) = (at.kind, task.attempts);
        if is_final || is_late {
            task.step(TaskEvent::Fail);
            self.record(Some(at.step), RecordKind::Failed { kind, attempts: attempt, failure });
        } else {
            task.step(TaskEvent::FailAttempt);
            task.due_ms = due_ms;
            self.record(Some(at.step), RecordKind::AttemptFailed { kind, attempt, failure, pause_ms });
        }
    }

    fn heartbeat(&mut self, token: Token) -> Result<(), Refusal> {
        let call = self.call(token.task)?.clone();
        self.check_runs(token)?;
        let now_ms = self.now_ms;
        let task = self.task_mut(token.task)?;
        task.due_ms = task.lease_end_ms(&call.timeouts, now_ms);
        Ok(())
    }

    fn tick(&mut self) -> Result<(), Refusal> {
        let stands = self.state.pause.is_some();
        if self.state.is_closed() {
            return Err(Refusal::Already);
        }
        let tasks: Vec<(TaskRef, Task)> =
            self.state.all_tasks().map(|(at, task)| (at, task.clone())).collect();
        for (at, task) in tasks {
            self.tick_task(at, &task, stands);
        }
        let is_late = self.state.deadline_ms.is_some_and(|deadline_ms| deadline_ms <= self.now_ms);
        if is_late
            && !stands
            && self.state.phase == Phase::Forward
            && !self.state.is_past_pivot(self.definition)
        {
            self.record(None, RecordKind::TimedOut);
            self.go_back(Then::Fail, "it has taken longer than its timeout".to_owned());
        }
        self.advance();
        if self.change.must_store { Ok(()) } else { Err(Refusal::Already) }
    }

    fn tick_task(&mut self, at: TaskRef, task: &Task, stands: bool) {
        let call = call_of(self.definition, at);
        let is_due = task.due_ms <= self.now_ms;
        let is_late = call
            .and_then(|call| task.close_by_ms(&call.timeouts))
            .is_some_and(|close_by| close_by <= self.now_ms);
        match (task.status, call) {
            (TaskStatus::Running, Some(call)) if is_due => {
                let failure = lease_ended(task, call, self.now_ms);
                self.end_attempt(at, failure);
            }
            (TaskStatus::Running, None) if is_due && !stands => self.wait_over(at),
            (TaskStatus::Ready | TaskStatus::Backoff, Some(_)) if is_late && !stands => {
                let failure = took_too_long(task.failure.clone().unwrap_or_default());
                let attempts = task.attempts;
                if let Some(task) = self.state.task_mut(at) {
                    task.step(TaskEvent::Fail);
                    task.failure = Some(failure.clone());
                }
                self.record(Some(at.step), RecordKind::Failed { kind: at.kind, attempts, failure });
            }
            (TaskStatus::Backoff, _) if is_due && !stands => {
                if let Some(task) = self.state.task_mut(at) {
                    task.step(TaskEvent::Due);
                }
                self.change.must_store = true;
            }
            _ => {}
        }
    }

    /// What only waits has waited long enough.
    fn wait_over(&mut self, at: TaskRef) {
        match self.definition.step(at.step).map(|step| &step.work) {
            Some(Work::Sleep { .. }) => self.done(at, Bytes::new()),
            Some(Work::Signal { signal, .. }) => {
                let message = format!("signal {signal} did not come in time");
                let failure = Failure { message, did_nothing: true, is_final: true, ..Failure::default() };
                self.fail_wait(at, failure, false);
            }
            Some(Work::Call(_) | Work::Child { .. }) | None => {}
        }
    }

    /// What only waits has failed.
    pub(super) fn fail_wait(&mut self, at: TaskRef, failure: Failure, unsure: bool) {
        let Some(task) = self.state.task_mut(at) else { return };
        if task.step(TaskEvent::Fail) {
            task.unsure |= unsure;
            task.failure = Some(failure.clone());
            self.record(Some(at.step), RecordKind::Failed { kind: at.kind, attempts: 1, failure });
        }
    }

    fn signal(&mut self, signal: Signal) -> Result<(), Refusal> {
        self.check_open()?;
        self.check_room(&signal)?;
        self.record(None, RecordKind::Signalled { name: signal.name.clone() });
        self.state.signals.push(signal);
        self.advance();
        Ok(())
    }

    /// Refuses a signal that there is no room for.
    fn check_room(&self, signal: &Signal) -> Result<(), Refusal> {
        let bytes: usize = self.state.signals.iter().map(|signal| signal.payload.len()).sum();
        if self.state.signals.len() >= limits::MAX_SAGA_SIGNALS
            || bytes + signal.payload.len() > limits::MAX_SAGA_PAYLOAD_BYTES
        {
            return Err(Refusal::unfit(format!(
                "{} signals with {bytes} bytes wait in the saga already; the limits are {} and {}: let it take some first",
                self.state.signals.len(),
                limits::MAX_SAGA_SIGNALS,
                limits::MAX_SAGA_PAYLOAD_BYTES
            )));
        }
        let all = self.state.carried_bytes().saturating_add(signal.payload.len() as u64);
        if all > limits::MAX_SAGA_BYTES as u64 {
            return Err(Refusal::unfit(format!(
                "with this signal the saga's input, outputs and signals would come to {all} bytes, over the limit of {}: store \
                 large values under keys of their own, and hand on the keys",
                limits::MAX_SAGA_BYTES
            )));
        }
        Ok(())
    }

    fn child_closed(&mut self, token: Token, outcome: Outcome, output: Bytes) -> Result<(), Refusal> {
        let is_child =
            matches!(self.definition.step(token.task.step).map(|step| &step.work), Some(Work::Child { .. }));
        if !is_child || self.check_runs(token).is_err() {
            return Err(Refusal::Already);
        }
        self.record(Some(token.task.step), RecordKind::ChildClosed { outcome });
        // It was started, whether or not that was heard of: once it is forgotten it must not be started anew.
        self.state.letters.retain(|letter| letter.message != Message::StartChild { token });
        let failed = |did_nothing| Failure {
            message: format!("the child saga ended {}", outcome.name()),
            kind: outcome.name().to_owned(),
            is_final: true,
            did_nothing,
        };
        match outcome {
            Outcome::Completed => {
                let output = self.kept(token.task.step, output);
                self.done(token.task, output);
            }
            Outcome::Compensated | Outcome::Cancelled => self.fail_wait(token.task, failed(true), false),
            Outcome::Terminated => self.fail_wait(token.task, failed(false), true),
        }
        self.advance();
        Ok(())
    }

    /// What a child saga came to, or nothing where that would be too much.
    fn kept(&mut self, step: usize, output: Bytes) -> Bytes {
        let size_bytes = output.len() as u64;
        if self.state.carried_bytes().saturating_add(size_bytes) <= limits::MAX_SAGA_BYTES as u64 {
            return output;
        }
        self.record(Some(step), RecordKind::OutputLeftOut { size_bytes });
        Bytes::new()
    }

    fn delivered(&mut self, number: u64) -> Result<(), Refusal> {
        let before = self.state.letters.len();
        self.state.letters.retain(|letter| letter.number != number);
        if self.state.letters.len() == before {
            return Err(Refusal::Already);
        }
        self.change.must_store = true;
        Ok(())
    }

    /// What was heard of workers, only their engine knew: they get the time of one sign of life more.
    fn taken_over(&mut self) -> Result<(), Refusal> {
        let now_ms = self.now_ms;
        let leases: Vec<(TaskRef, Call)> = self
            .state
            .all_tasks()
            .filter(|(_, task)| task.status == TaskStatus::Running)
            .filter_map(|(at, _)| call_of(self.definition, at).map(|call| (at, call.clone())))
            .filter(|(_, call)| call.timeouts.heartbeat_ms.is_some())
            .collect();
        for (at, call) in leases {
            let task = self.task_mut(at)?;
            task.due_ms = task.due_ms.max(task.lease_end_ms(&call.timeouts, now_ms));
        }
        Ok(())
    }

    /// Puts off all that is due by as long as it took until its start was known.
    fn begun(&mut self) -> Result<(), Refusal> {
        let waited_ms = self.now_ms.saturating_sub(self.state.created_ms);
        let put_off = |at_ms: &mut u64| *at_ms = at_ms.saturating_add(waited_ms);
        self.state.deadline_ms.iter_mut().for_each(put_off);
        for step in &mut self.state.steps {
            let task = &mut step.action;
            if task.status != TaskStatus::Idle {
                [&mut task.scheduled_ms, &mut task.started_ms, &mut task.due_ms]
                    .into_iter()
                    .for_each(put_off);
            }
        }
        self.change.must_store = true;
        Ok(())
    }

    /// Refuses a hand-out that does not count any more.
    fn check_runs(&self, token: Token) -> Result<(), Refusal> {
        let task = self.state.task(token.task).ok_or_else(|| Refusal::unfit("the saga has no such step"))?;
        if token.fence == 0 || token.fence > self.state.fence {
            return Err(Refusal::unfit("the token is none that this saga has handed out"));
        }
        if task.fence != token.fence {
            let why = match task.worker.as_str() {
                "" => "the saga has gone back since".to_owned(),
                worker => format!("its lease has ended, and the task was handed out again to {worker:?}"),
            };
            return Err(Refusal::Stale { why });
        }
        match task.status {
            TaskStatus::Running if !self.state.is_closed() => Ok(()),
            TaskStatus::Done => Err(Refusal::Already),
            TaskStatus::Backoff | TaskStatus::Failed | TaskStatus::Ready => Err(Refusal::Stale {
                why: "this attempt has ended as failed, or its lease has ended".to_owned(),
            }),
            TaskStatus::Running | TaskStatus::Withdrawn | TaskStatus::Idle => {
                Err(Refusal::Stale { why: format!("the saga is {}", self.state.status().name()) })
            }
        }
    }

    fn call(&self, at: TaskRef) -> Result<&Call, Refusal> {
        call_of(self.definition, at).ok_or_else(|| Refusal::unfit("no worker is called for that step"))
    }

    pub(super) fn task_mut(&mut self, at: TaskRef) -> Result<&mut Task, Refusal> {
        self.state.task_mut(at).ok_or_else(|| Refusal::unfit("the saga has no such step"))
    }

    pub(super) fn check_open(&self) -> Result<(), Refusal> {
        match self.state.outcome() {
            None => Ok(()),
            Some(outcome) => Err(Refusal::unfit(format!("the saga has ended: it is {}", outcome.name()))),
        }
    }

    pub(super) fn is_halting(&self) -> bool {
        matches!(self.state.phase, Phase::Halting { .. })
    }

    /// The name of a step, for people.
    pub(super) fn name_of(&self, step: usize) -> &str {
        self.definition.step(step).map_or("?", |step| &step.name)
    }

    /// Stands still, unless it does already.
    pub(super) fn stand(&mut self, pause: Pause, reason: String) {
        if self.state.pause.is_none() {
            self.state.pause = Some(pause);
            self.state.paused_ms = self.now_ms;
            self.record(None, RecordKind::Paused { reason });
        }
    }
}

/// What is said of a task that was not done within the time for all its attempts.
fn took_too_long(last: Failure) -> Failure {
    const WHY: &str = "all its attempts together took longer than schedule_to_close_ms";
    if last.message.starts_with(WHY) {
        return last;
    }
    let mut message = WHY.to_owned();
    if !last.message.is_empty() {
        message = format!("{message}; the last one: {}", last.message);
    }
    Failure { message, ..last }
}

/// What is said of an attempt whose worker was not heard of in time.
fn lease_ended(task: &Task, call: &Call, now_ms: u64) -> Failure {
    let whole_ms = task.started_ms.saturating_add(call.timeouts.start_to_close_ms);
    let message = match whole_ms <= now_ms {
        true => format!("it took longer than start_to_close_ms, {} ms", call.timeouts.start_to_close_ms),
        false => format!(
            "its worker was not heard of for heartbeat_ms, {} ms",
            call.timeouts.heartbeat_ms.unwrap_or_default()
        ),
    };
    Failure { message, kind: "timeout".to_owned(), ..Failure::default() }
}
