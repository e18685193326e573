//! What people do to a saga: cancel, terminate, pause, resume, retry, resolve, reset.

use bytes::Bytes;

use super::apply::Turn;
use super::event::{RecordKind, Refusal, TaskRef, Token};
use super::state::{Message, Outcome, Pause, Phase, Then, call_of};
use super::{CompensationOrder, Task, TaskEvent, TaskKind, TaskStatus, Work};

impl Turn<'_> {
    pub(super) fn cancel(&mut self, reason: String) -> Result<(), Refusal> {
        if self.state.outcome() == Some(Outcome::Cancelled) {
            return Err(Refusal::Already);
        }
        self.check_open()?;
        if self.state.is_past_pivot(self.definition) {
            return Err(Refusal::unfit(
                "its pivot is done: it can't be undone any more, only go forward, or be terminated",
            ));
        }
        match self.state.phase {
            Phase::Forward => {
                self.record(None, RecordKind::CancelRequested { reason: reason.clone() });
                // Whether the pivot took effect has to be found out first: it stands until that is said.
                if !matches!(self.state.pause, Some(Pause::Unknown { .. })) {
                    self.end_pause();
                }
                self.go_back(Then::Cancel, reason);
            }
            Phase::Halting { then: Then::Forward { .. } } => {
                self.record(None, RecordKind::CancelRequested { reason: reason.clone() });
                self.state.phase = Phase::Halting { then: Then::Cancel };
                self.state.reason = reason;
            }
            Phase::Compensating { then: Then::Forward { .. } } => {
                self.record(None, RecordKind::CancelRequested { reason: reason.clone() });
                self.state.phase = Phase::Compensating { then: Then::Cancel };
                self.state.reason = reason;
            }
            // It is on its way back anyhow.
            Phase::Halting { .. } | Phase::Compensating { .. } | Phase::Closed { .. } => {
                return Err(Refusal::Already);
            }
        }
        self.advance();
        Ok(())
    }

    pub(super) fn terminate(&mut self, reason: String) -> Result<(), Refusal> {
        if self.state.outcome() == Some(Outcome::Terminated) {
            return Err(Refusal::Already);
        }
        self.check_open()?;
        for step in 0..self.state.steps.len() {
            let at = TaskRef { step, kind: TaskKind::Action };
            let is_child =
                matches!(self.definition.step(step).map(|step| &step.work), Some(Work::Child { .. }));
            let running = self.state.task(at).filter(|task| task.status == TaskStatus::Running);
            if let (true, Some(fence)) = (is_child, running.map(|task| task.fence)) {
                self.send(Message::TerminateChild { token: Token { task: at, fence } });
            }
        }
        self.state.reason = reason;
        self.close(Outcome::Terminated);
        Ok(())
    }

    pub(super) fn pause(&mut self, reason: String) -> Result<(), Refusal> {
        self.check_open()?;
        if self.state.pause.is_some() {
            return Err(Refusal::Already);
        }
        self.stand(Pause::Asked { reason: reason.clone() }, reason);
        Ok(())
    }

    pub(super) fn resume(&mut self) -> Result<(), Refusal> {
        self.check_open()?;
        match &self.state.pause {
            None => Err(Refusal::Already),
            Some(Pause::Asked { .. }) => {
                self.end_pause();
                self.record(None, RecordKind::Resumed);
                self.advance();
                Ok(())
            }
            Some(Pause::Exhausted { step }) => Err(Refusal::unfit(format!(
                "step {} has failed for good: have it tried again with `retry`, or say with `resolve` that it is done",
                self.name_of(*step)
            ))),
            Some(Pause::Unknown { step }) => Err(Refusal::unfit(format!(
                "it is not known whether the pivot {} took effect: look, and say so with `resolve`, or have it tried again \
                 with `retry`",
                self.name_of(*step)
            ))),
        }
    }

    /// Stands still no longer. The time that it did does not count.
    fn end_pause(&mut self) {
        if self.state.pause.take().is_some() {
            let stood_ms = self.now_ms.saturating_sub(self.state.paused_ms);
            self.state.deadline_ms =
                self.state.deadline_ms.map(|deadline_ms| deadline_ms.saturating_add(stood_ms));
            self.change.must_store = true;
        }
    }

    pub(super) fn retry(&mut self, only: Option<usize>) -> Result<(), Refusal> {
        self.check_open()?;
        if only.is_some_and(|step| step >= self.state.steps.len()) {
            return Err(Refusal::unfit("the saga has no such step"));
        }
        let wanted = |step: usize| only.is_none_or(|only| only == step);
        let mut tried = Vec::new();
        for step in (0..self.state.steps.len()).filter(|step| wanted(*step)) {
            for kind in TaskKind::ALL {
                let at = TaskRef { step, kind };
                if self.can_be_tried_again(at) {
                    tried.push(at);
                }
            }
        }
        if tried.is_empty() {
            return Err(Refusal::unfit("nothing of it waits for another attempt, or has failed for good"));
        }
        let now_ms = self.now_ms;
        for at in &tried {
            let is_wait = call_of(self.definition, *at).is_none();
            let task = self.task_mut(*at)?;
            if is_wait {
                // No worker would come for it: it begins anew, as when its turn came first.
                task.step(TaskEvent::Clear);
                *task = Task { unsure: task.unsure, ..Task::default() };
            } else {
                task.forgiven = task.attempts;
                task.scheduled_ms = now_ms;
                task.step(TaskEvent::Again);
            }
            self.record(Some(at.step), RecordKind::RetryRequested);
        }
        if matches!(self.state.pause, Some(Pause::Exhausted { .. } | Pause::Unknown { .. })) {
            self.end_pause();
        }
        self.advance();
        Ok(())
    }

    /// Whether a task is in a pause between attempts, or stands in the way since it has failed.
    fn can_be_tried_again(&self, at: TaskRef) -> bool {
        let Some(task) = self.state.task(at) else { return false };
        if task.status == TaskStatus::Backoff {
            return true;
        }
        if task.status != TaskStatus::Failed {
            return false;
        }
        match (at.kind, self.state.phase) {
            (TaskKind::Compensation, Phase::Compensating { .. }) => true,
            (TaskKind::Check, Phase::Forward | Phase::Halting { .. }) => self.is_pivot_unknown(at.step),
            // The pivot itself only while nothing else can find out about it, and it is still wanted.
            (TaskKind::Action, Phase::Forward) => {
                let has_check = self.definition.step(at.step).is_some_and(|step| step.check.is_some());
                self.state.is_past_pivot(self.definition) || (self.is_pivot_unknown(at.step) && !has_check)
            }
            _ => false,
        }
    }

    pub(super) fn resolve(&mut self, step: usize, is_done: bool) -> Result<(), Refusal> {
        self.check_open()?;
        let state = self.state.steps.get(step).ok_or_else(|| Refusal::unfit("the saga has no such step"))?;
        if self.is_pivot_unknown(step) {
            if state.check.status == TaskStatus::Running {
                return Err(Refusal::unfit("a worker is finding that out: wait for it"));
            }
            self.withdraw(TaskRef { step, kind: TaskKind::Check });
            self.record(Some(step), RecordKind::Resolved { is_done });
            self.settle_pivot(step, is_done);
            return self.go_on(Pause::Unknown { step });
        }
        let is_compensating = matches!(self.state.phase, Phase::Compensating { .. });
        let (kind, failed) = match is_compensating {
            true => (TaskKind::Compensation, &state.compensation),
            false => (TaskKind::Action, &state.action),
        };
        let stands_in_the_way = failed.status == TaskStatus::Failed
            && (is_compensating || self.state.is_past_pivot(self.definition));
        if !stands_in_the_way {
            return Err(Refusal::unfit(
                "the saga does not wait to be told about this step: it is for a step that has failed for good and must be done, \
                 or undone",
            ));
        }
        if !is_done {
            return Err(Refusal::unfit("it must get done: have it tried again with `retry`"));
        }
        self.task_mut(TaskRef { step, kind })?.step(TaskEvent::Resolve);
        if kind == TaskKind::Action {
            self.came_to(step, Bytes::new());
        }
        self.record(Some(step), RecordKind::Resolved { is_done });
        self.go_on(Pause::Exhausted { step })
    }

    /// Goes on, where it stood still for this reason.
    fn go_on(&mut self, pause: Pause) -> Result<(), Refusal> {
        if self.state.pause == Some(pause) {
            self.end_pause();
        }
        self.advance();
        Ok(())
    }

    pub(super) fn reset(&mut self, step: usize) -> Result<(), Refusal> {
        self.check_open()?;
        let to = self.definition.step(step).ok_or_else(|| Refusal::unfit("the saga has no such step"))?;
        let stage = to.stage;
        if stage > self.state.stage {
            return Err(Refusal::unfit(format!(
                "it has not come to step {} yet, or is undone past it",
                to.name
            )));
        }
        let pivot = self.definition.pivot();
        if self.state.is_past_pivot(self.definition) && pivot.is_some_and(|pivot| step <= pivot) {
            return Err(Refusal::unfit("its pivot is done: it can go back to a step after it, not further"));
        }
        if pivot.is_some_and(|pivot| self.is_pivot_unknown(pivot)) {
            return Err(Refusal::unfit(
                "it is not known whether its pivot took effect: look, and say so with `resolve` first",
            ));
        }
        let is_cancelled = matches!(
            self.state.phase,
            Phase::Halting { then: Then::Cancel } | Phase::Compensating { then: Then::Cancel }
        );
        if is_cancelled {
            return Err(Refusal::unfit("it is being cancelled: let it end, and start another one"));
        }
        let then = Then::Forward { stage };
        let reason = format!("it goes back to step {}", to.name);
        match self.state.phase {
            Phase::Forward => {
                self.record(Some(step), RecordKind::ResetRequested);
                self.end_pause();
                self.go_back(then, reason);
            }
            Phase::Halting { .. } => {
                self.record(Some(step), RecordKind::ResetRequested);
                self.state.phase = Phase::Halting { then };
                self.state.reason = reason;
            }
            Phase::Compensating { .. }
                if self.definition.compensation_order() == CompensationOrder::Reverse =>
            {
                self.record(Some(step), RecordKind::ResetRequested);
                self.state.phase = Phase::Compensating { then };
                self.state.reason = reason;
            }
            Phase::Compensating { .. } | Phase::Closed { .. } => {
                return Err(Refusal::unfit(
                    "all of it is being undone at once: let it end, and start another one",
                ));
            }
        }
        self.advance();
        Ok(())
    }
}
