//! What follows in a saga by itself: forward, stage after stage; back, when a step has failed; and to its end.

use bytes::Bytes;

use super::apply::Turn;
use super::event::{RecordKind, Signal, TaskRef, Token};
use super::state::{Letter, Message, Outcome, Pause, Phase, Then};
use super::{CompensationOrder, Task, TaskEvent, TaskKind, TaskStatus, Work};

impl Turn<'_> {
    /// Goes on as far as the saga goes by itself.
    pub(super) fn advance(&mut self) {
        while self.advance_once() {}
    }

    /// Whether anything came of it.
    fn advance_once(&mut self) -> bool {
        match self.state.phase {
            Phase::Closed { .. } => false,
            Phase::Forward if self.state.pause.is_some() => false,
            Phase::Forward => self.go_forward(),
            Phase::Halting { then } => self.halt(then),
            Phase::Compensating { .. } if self.state.pause.is_some() => false,
            Phase::Compensating { then } => self.compensate(then),
        }
    }

    fn go_forward(&mut self) -> bool {
        let stage = self.definition.stage(self.state.stage);
        let mut all_done = true;
        for step in stage {
            let action = TaskRef { step, kind: TaskKind::Action };
            let status = self.status(action);
            all_done &= status == TaskStatus::Done;
            match status {
                TaskStatus::Idle => {
                    self.schedule(action);
                    return true;
                }
                TaskStatus::Failed => return self.step_failed(step),
                TaskStatus::Running if self.take_signal(action) => return true,
                _ => {}
            }
        }
        if !all_done {
            return false;
        }
        match self.state.stage + 1 < self.definition.stages() {
            true => self.state.stage += 1,
            false => self.close(Outcome::Completed),
        }
        true
    }

    fn status(&self, at: TaskRef) -> TaskStatus {
        self.state.task(at).map(|task| task.status).unwrap_or_default()
    }

    /// A task's turn has come. What only waits begins at once.
    fn schedule(&mut self, at: TaskRef) {
        let now_ms = self.now_ms;
        let Some(task) = self.state.task_mut(at) else { return };
        task.step(TaskEvent::Schedule);
        task.scheduled_ms = now_ms;
        self.change.must_store = true;
        let Some(work) = self.definition.step(at.step).map(|step| &step.work) else { return };
        let due_ms = match (at.kind, work) {
            (TaskKind::Compensation | TaskKind::Check, _) | (_, Work::Call(_)) => return,
            (_, Work::Sleep { sleep_ms }) => now_ms.saturating_add(*sleep_ms),
            (_, Work::Signal { timeout_ms, .. }) => {
                timeout_ms.map_or(u64::MAX, |timeout_ms| now_ms.saturating_add(timeout_ms))
            }
            (_, Work::Child { .. }) => u64::MAX,
        };
        let is_child = matches!(work, Work::Child { .. });
        self.state.fence += 1;
        let fence = self.state.fence;
        if let Some(task) = self.state.task_mut(at) {
            task.step(TaskEvent::HandOut);
            task.fence = fence;
            task.attempts = 1;
            task.started_ms = now_ms;
            task.due_ms = due_ms;
        }
        self.record(Some(at.step), RecordKind::Waiting);
        if is_child {
            self.send(Message::StartChild { token: Token { task: at, fence } });
        }
    }

    pub(super) fn send(&mut self, message: Message) {
        self.state.last_letter += 1;
        self.state.letters.push(Letter { number: self.state.last_letter, message });
        self.change.must_store = true;
    }

    /// A step that waits for a signal takes it, if it is there.
    fn take_signal(&mut self, at: TaskRef) -> bool {
        let Some(Work::Signal { signal, .. }) = self.definition.step(at.step).map(|step| &step.work) else {
            return false;
        };
        let Some(place) = self.state.signals.iter().position(|sent| sent.name == *signal) else {
            return false;
        };
        let Signal { payload, .. } = self.state.signals.remove(place);
        self.done(at, payload);
        true
    }

    /// A step of the stage has failed for good. Whether anything came of that.
    fn step_failed(&mut self, step: usize) -> bool {
        let name = self.name_of(step).to_owned();
        let why = self.failure_of(TaskRef { step, kind: TaskKind::Action });
        if self.state.is_past_pivot(self.definition) {
            let reason =
                format!("step {name} comes after the pivot, so it must get done, and has failed: {why}");
            self.stand(Pause::Exhausted { step }, reason);
            return false;
        }
        if self.is_pivot_unknown(step) {
            return self.ask_for_pivot(step);
        }
        self.go_back(Then::Fail, format!("step {name} failed: {why}"));
        true
    }

    fn failure_of(&self, at: TaskRef) -> String {
        let failure = self.state.task(at).and_then(|task| task.failure.as_ref());
        failure.map_or_else(String::new, |failure| failure.message.clone())
    }

    /// Whether a step is the pivot, has failed, and may have taken effect all the same.
    pub(super) fn is_pivot_unknown(&self, step: usize) -> bool {
        self.definition.pivot() == Some(step)
            && self
                .state
                .steps
                .get(step)
                .is_some_and(|state| state.action.status == TaskStatus::Failed && state.action.unsure)
    }

    /// Has it found out whether the pivot took effect. Whether anything came of that.
    fn ask_for_pivot(&mut self, step: usize) -> bool {
        let check = TaskRef { step, kind: TaskKind::Check };
        let has_check = self.definition.step(step).is_some_and(|step| step.check.is_some());
        match self.status(check) {
            TaskStatus::Idle if has_check => {
                self.schedule(check);
                true
            }
            TaskStatus::Ready | TaskStatus::Running | TaskStatus::Backoff => false,
            _ => {
                let name = self.name_of(step).to_owned();
                // While it goes back anyway, the pivot itself is not wanted any more.
                let or_retry = match (self.state.phase, has_check) {
                    (Phase::Forward, _) | (_, true) => ", or have it tried again with `retry`",
                    _ => "",
                };
                let reason = format!(
                    "it is not known whether the pivot {name} took effect: look, and say so with `resolve`{or_retry}"
                );
                self.stand(Pause::Unknown { step }, reason);
                false
            }
        }
    }

    /// It is known now whether the pivot took effect.
    pub(super) fn settle_pivot(&mut self, step: usize, took_effect: bool) {
        let at = TaskRef { step, kind: TaskKind::Action };
        let Some(task) = self.state.task_mut(at) else { return };
        task.unsure = false;
        if took_effect && task.step(TaskEvent::Resolve) {
            let attempt = task.attempts;
            self.came_to(step, Bytes::new());
            self.record(Some(step), RecordKind::Completed { kind: TaskKind::Action, attempt });
        }
    }

    /// Goes no further, and back once what workers have of the stage has ended.
    pub(super) fn go_back(&mut self, then: Then, reason: String) {
        self.state.phase = Phase::Halting { then };
        self.state.reason = reason;
        self.change.must_store = true;
        for step in self.definition.stage(self.state.stage) {
            let at = TaskRef { step, kind: TaskKind::Action };
            match self.status(at) {
                TaskStatus::Idle | TaskStatus::Ready | TaskStatus::Backoff => self.give_up(at),
                TaskStatus::Running => self.end_wait(at),
                TaskStatus::Done | TaskStatus::Failed | TaskStatus::Withdrawn => {}
            }
        }
    }

    /// A step that no worker has is not wanted any more. Whether a pivot took effect has to be found out first.
    pub(super) fn give_up(&mut self, at: TaskRef) {
        let is_unsure_pivot =
            self.definition.pivot() == Some(at.step) && self.state.task(at).is_some_and(|task| task.unsure);
        match self.state.task_mut(at).filter(|_| is_unsure_pivot) {
            Some(task) => {
                task.step(TaskEvent::Fail);
                self.change.must_store = true;
            }
            None => self.withdraw(at),
        }
    }

    pub(super) fn withdraw(&mut self, at: TaskRef) {
        let Some(task) = self.state.task_mut(at) else { return };
        let was_idle = task.status == TaskStatus::Idle;
        if task.step(TaskEvent::Withdraw) && !was_idle {
            self.record(Some(at.step), RecordKind::Withdrawn { kind: at.kind });
        }
    }

    /// What only waits does so no longer; a child saga is told to go back too, and waited for.
    fn end_wait(&mut self, at: TaskRef) {
        match self.definition.step(at.step).map(|step| &step.work) {
            Some(Work::Sleep { .. } | Work::Signal { .. }) => self.withdraw(at),
            Some(Work::Child { .. }) => {
                let fence = self.state.task(at).map_or(0, |task| task.fence);
                self.send(Message::CancelChild { token: Token { task: at, fence } });
            }
            Some(Work::Call(_)) | None => {}
        }
    }

    /// Waits for what workers have of the stage. Whether anything came of that.
    fn halt(&mut self, then: Then) -> bool {
        let stage = self.definition.stage(self.state.stage);
        let is_under_way = |task: &Task| task.status == TaskStatus::Running;
        let steps = self.state.steps.get(stage.clone()).unwrap_or_default();
        if steps.iter().any(|step| is_under_way(&step.action) || step.check.is_open()) {
            return false;
        }
        if let Some(pivot) = self.definition.pivot().filter(|pivot| stage.contains(pivot)) {
            if self.state.is_past_pivot(self.definition) {
                self.record(Some(pivot), RecordKind::TooLateToGoBack);
                self.state.phase = Phase::Forward;
                self.state.reason.clear();
                return true;
            }
            if self.is_pivot_unknown(pivot) {
                return self.ask_for_pivot(pivot);
            }
        }
        self.state.phase = Phase::Compensating { then };
        let reason = self.state.reason.clone();
        self.record(None, RecordKind::Compensating { reason });
        true
    }

    /// Undoes what has to be undone. Whether anything came of that.
    fn compensate(&mut self, then: Then) -> bool {
        let floor = match then {
            Then::Fail | Then::Cancel => 0,
            Then::Forward { stage } => stage,
        };
        let here = self.definition.stage(self.state.stage);
        let is_parallel = self.definition.compensation_order() == CompensationOrder::Parallel;
        let steps = match is_parallel {
            true => self.definition.stage(floor).start..here.end,
            false => here,
        };
        let mut under_way = false;
        for step in steps {
            let at = TaskRef { step, kind: TaskKind::Compensation };
            match self.status(at) {
                TaskStatus::Idle if self.must_be_undone(step) => {
                    self.schedule(at);
                    return true;
                }
                TaskStatus::Failed => {
                    let (name, why) = (self.name_of(step).to_owned(), self.failure_of(at));
                    let reason = format!("step {name} could not be undone: {why}");
                    self.stand(Pause::Exhausted { step }, reason);
                    return false;
                }
                status => {
                    under_way |=
                        matches!(status, TaskStatus::Ready | TaskStatus::Running | TaskStatus::Backoff);
                }
            }
        }
        if under_way {
            return false;
        }
        if self.state.stage > floor && !is_parallel {
            self.state.stage -= 1;
            return true;
        }
        match then {
            Then::Fail => self.close(Outcome::Compensated),
            Then::Cancel => self.close(Outcome::Cancelled),
            Then::Forward { stage } => self.begin_again(stage),
        }
        true
    }

    fn must_be_undone(&self, step: usize) -> bool {
        let has_compensation = self.definition.step(step).is_some_and(|step| step.compensation.is_some());
        has_compensation && self.state.steps.get(step).is_some_and(|state| state.may_have_effect())
    }

    /// Goes forward again, from a stage on: its steps, and those after it, are as if they had never been.
    fn begin_again(&mut self, stage: usize) {
        let first = self.definition.stage(stage).start;
        for step in self.state.steps.iter_mut().skip(first) {
            step.output_bytes = 0;
            for kind in TaskKind::ALL {
                let task = step.task_mut(kind);
                if task.step(TaskEvent::Clear) {
                    *task = Task::default();
                }
            }
        }
        self.state.stage = stage;
        self.state.phase = Phase::Forward;
        self.state.reason.clear();
        self.state.deadline_ms =
            self.definition.timeout_ms().map(|timeout_ms| self.now_ms.saturating_add(timeout_ms));
        self.record(Some(first), RecordKind::WentBack);
    }

    /// The end.
    pub(super) fn close(&mut self, outcome: Outcome) {
        let not_undone = match outcome {
            Outcome::Terminated => self.not_undone(),
            Outcome::Completed | Outcome::Compensated | Outcome::Cancelled => Vec::new(),
        };
        self.state.phase = Phase::Closed { outcome };
        self.state.closed_ms = self.now_ms;
        self.state.pause = None;
        self.state.signals.clear();
        if self.state.parent.is_some() {
            self.send(Message::TellParent);
        }
        self.record(None, RecordKind::Closed { outcome, not_undone });
    }

    /// Steps that have taken effect, or may have or still may, and are not undone.
    fn not_undone(&self) -> Vec<String> {
        let is_txn = |step| match self.definition.step(step).map(|step| &step.work) {
            Some(Work::Call(call)) => call.is_txn,
            _ => false,
        };
        let stands = |step: usize| {
            self.state.steps.get(step).is_some_and(|state| {
                // A transaction that is not committed by now can't be any more.
                let may_come = state.action.status == TaskStatus::Running && !is_txn(step);
                (state.may_have_effect() || may_come) && state.compensation.status != TaskStatus::Done
            })
        };
        let waits = |step: usize| {
            matches!(
                self.definition.step(step).map(|step| &step.work),
                Some(Work::Sleep { .. } | Work::Signal { .. })
            )
        };
        let steps = 0..self.state.steps.len();
        steps
            .filter(|step| stands(*step) && !waits(*step))
            .map(|step| self.name_of(step).to_owned())
            .collect()
    }
}
