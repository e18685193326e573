//! Where a saga is: all that the machine knows of it, and what follows from that alone.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Call, DefinedStep, Definition, Signal, Task, TaskKind, TaskRef, TaskStatus, Token, Work};

/// How a saga ended.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub enum Outcome {
    /// All of it is done.
    Completed,
    /// It failed, and all that it did, or may have done, is undone.
    Compensated,
    /// It was cancelled, and all that it did, or may have done, is undone.
    Cancelled,
    /// It was ended as it stood. What it had done may stand.
    Terminated,
}

impl Outcome {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Completed, Self::Compensated, Self::Cancelled, Self::Terminated];

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Completed => "completed",
            Self::Compensated => "compensated",
            Self::Cancelled => "cancelled",
            Self::Terminated => "terminated",
        }
    }
}

/// What comes of a saga that goes back.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Then {
    /// It ends as failed.
    Fail,
    /// It ends as cancelled.
    Cancel,
    /// It goes forward again from this stage on.
    Forward {
        /// The stage.
        stage: usize,
    },
}

/// Which way a saga goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Phase {
    /// Forward.
    Forward,
    /// Not forward any more; what workers have of the stage is waited for.
    Halting {
        /// What comes of it then.
        then: Then,
    },
    /// Back.
    Compensating {
        /// What comes of it then.
        then: Then,
    },
    /// It has ended.
    Closed {
        /// How.
        outcome: Outcome,
    },
}

/// Why a saga stands still.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Pause {
    /// Somebody wants it to.
    Asked {
        /// Why.
        reason: String,
    },
    /// A task that must be done has failed for good: a compensation, or a step after the pivot.
    Exhausted {
        /// Of which step.
        step: usize,
    },
    /// Whether the pivot took effect is not known, and there is nothing more to ask.
    Unknown {
        /// Of which step.
        step: usize,
    },
}

/// A saga in one word, as it is searched for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub enum Status {
    /// It goes forward.
    Running,
    /// It stands still.
    Paused,
    /// It is being undone.
    Compensating,
    /// It ended: all of it is done.
    Completed,
    /// It ended: it failed and is undone.
    Compensated,
    /// It ended: it was cancelled and is undone.
    Cancelled,
    /// It ended as it stood.
    Terminated,
}

impl Status {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Running,
        Self::Paused,
        Self::Compensating,
        Self::Completed,
        Self::Compensated,
        Self::Cancelled,
        Self::Terminated,
    ];

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Compensating => "compensating",
            Self::Completed => "completed",
            Self::Compensated => "compensated",
            Self::Cancelled => "cancelled",
            Self::Terminated => "terminated",
        }
    }

    /// The status of a name.
    pub fn of_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|status| status.name() == name)
    }
}

/// Who started a saga that is a step of another one.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Parent {
    /// The other one's id.
    pub id: String,
    /// When the other one was started: another one of the same id, later, is not meant.
    pub created_ms: u64,
    /// Which start of the step.
    pub token: Token,
}

/// The tasks of a step.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct StepState {
    /// The step itself.
    pub action: Task,
    /// What undoes it.
    pub compensation: Task,
    /// What finds out whether it took effect.
    pub check: Task,
    /// Bytes of what it came to.
    pub output_bytes: u64,
}

impl StepState {
    /// A task of it.
    pub fn task(&self, kind: TaskKind) -> &Task {
        match kind {
            TaskKind::Action => &self.action,
            TaskKind::Compensation => &self.compensation,
            TaskKind::Check => &self.check,
        }
    }

    pub(super) fn task_mut(&mut self, kind: TaskKind) -> &mut Task {
        match kind {
            TaskKind::Action => &mut self.action,
            TaskKind::Compensation => &mut self.compensation,
            TaskKind::Check => &mut self.check,
        }
    }

    /// Whether it took effect, or may have.
    pub fn may_have_effect(&self) -> bool {
        self.action.status == TaskStatus::Done || self.action.unsure
    }
}

/// Something that other sagas have to be told. It is kept until they were.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Letter {
    /// No two of a saga have the same.
    pub number: u64,
    /// What is to be told, and whom.
    pub message: Message,
}

/// What sagas tell each other.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Message {
    /// Start the child of this step.
    StartChild {
        /// Which start of the step.
        token: Token,
    },
    /// Cancel the child of this step.
    CancelChild {
        /// Which start of the step.
        token: Token,
    },
    /// Terminate the child of this step.
    TerminateChild {
        /// Which start of the step.
        token: Token,
    },
    /// Tell the parent that this saga has ended.
    TellParent,
}

/// A saga.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct State {
    /// Its definition's name.
    pub name: String,
    /// Its definition's version.
    pub version: u32,
    /// When it was started, by the engine's clock, in milliseconds since 1970.
    pub created_ms: u64,
    /// When it ended; 0 while it has not.
    pub closed_ms: u64,
    /// Larger ones go first, where tasks wait for workers.
    pub priority: u8,
    /// What it is found by.
    pub attributes: BTreeMap<String, String>,
    /// Who started it, where that is another saga.
    pub parent: Option<Parent>,
    /// A number made of its input, by which a start that is repeated is known from another one.
    pub input_hash: u64,
    /// Which way it goes.
    pub phase: Phase,
    /// The stage that it is at.
    pub stage: usize,
    /// Why it stands still, where it does.
    pub pause: Option<Pause>,
    /// Since when.
    pub paused_ms: u64,
    /// Why it goes back, or was ended; empty where it does not.
    pub reason: String,
    /// When it has taken too long.
    pub deadline_ms: Option<u64>,
    /// Its steps.
    pub steps: Vec<StepState>,
    /// The last fence.
    pub fence: u64,
    /// How many lines its history has.
    pub history_len: u64,
    /// Bytes of its input.
    pub input_bytes: u64,
    /// Signals that came and were not waited for yet, in the order in which they came.
    pub signals: Vec<Signal>,
    /// The last signals and other requests that came, by their ids.
    pub seen_requests: Vec<u128>,
    /// What others have to be told.
    pub letters: Vec<Letter>,
    /// The last letter's number.
    pub last_letter: u64,
}

impl State {
    /// Whether it has ended.
    pub fn is_closed(&self) -> bool {
        matches!(self.phase, Phase::Closed { .. })
    }

    /// How it ended.
    pub fn outcome(&self) -> Option<Outcome> {
        match self.phase {
            Phase::Closed { outcome } => Some(outcome),
            Phase::Forward | Phase::Halting { .. } | Phase::Compensating { .. } => None,
        }
    }

    /// It in one word.
    pub fn status(&self) -> Status {
        match (self.phase, &self.pause) {
            (Phase::Closed { outcome: Outcome::Completed }, _) => Status::Completed,
            (Phase::Closed { outcome: Outcome::Compensated }, _) => Status::Compensated,
            (Phase::Closed { outcome: Outcome::Cancelled }, _) => Status::Cancelled,
            (Phase::Closed { outcome: Outcome::Terminated }, _) => Status::Terminated,
            (_, Some(_)) => Status::Paused,
            (Phase::Forward, None) => Status::Running,
            (Phase::Halting { .. } | Phase::Compensating { .. }, None) => Status::Compensating,
        }
    }

    /// A task of it.
    pub fn task(&self, task: TaskRef) -> Option<&Task> {
        self.steps.get(task.step).map(|step| step.task(task.kind))
    }

    /// It, with the ends of leases that are known from before, of attempts that are the same.
    #[must_use]
    pub fn with_leases_of(mut self, before: &Self) -> Self {
        for (step, known) in self.steps.iter_mut().zip(&before.steps) {
            for kind in TaskKind::ALL {
                let known = known.task(kind);
                let task = step.task_mut(kind);
                if task.status == TaskStatus::Running && task.fence == known.fence {
                    task.due_ms = task.due_ms.max(known.due_ms);
                }
            }
        }
        self
    }

    pub(super) fn task_mut(&mut self, task: TaskRef) -> Option<&mut Task> {
        self.steps.get_mut(task.step).map(|step| step.task_mut(task.kind))
    }

    /// Bytes of its input and of what its steps came to.
    pub fn payload_bytes(&self) -> u64 {
        self.steps.iter().map(|step| step.output_bytes).fold(self.input_bytes, u64::saturating_add)
    }

    /// The same with the signals that wait in it.
    pub fn carried_bytes(&self) -> u64 {
        self.signals.iter().fold(self.payload_bytes(), |sum, signal| sum + signal.payload.len() as u64)
    }

    /// Whether the pivot is done: then it only goes forward.
    pub fn is_past_pivot(&self, definition: &Definition) -> bool {
        definition
            .pivot()
            .and_then(|pivot| self.steps.get(pivot))
            .is_some_and(|step| step.action.status == TaskStatus::Done)
    }

    /// What may be handed out to workers now.
    pub fn ready<'s>(&'s self, definition: &'s Definition) -> impl Iterator<Item = (TaskRef, &'s Call)> + 's {
        let stands = self.pause.is_some() || self.is_closed();
        let tasks = self.all_tasks().filter(move |(_, task)| !stands && task.status == TaskStatus::Ready);
        tasks.filter_map(move |(task, _)| call_of(definition, task).map(|call| (task, call)))
    }

    /// Whether a worker has a task of it.
    pub fn is_at_work(&self, definition: &Definition) -> bool {
        let runs = |(at, task): (TaskRef, &Task)| {
            task.status == TaskStatus::Running && call_of(definition, at).is_some()
        };
        !self.is_closed() && self.all_tasks().any(runs)
    }

    /// All tasks.
    pub(super) fn all_tasks(&self) -> impl Iterator<Item = (TaskRef, &Task)> {
        self.steps.iter().enumerate().flat_map(|(step, state)| {
            TaskKind::ALL.into_iter().map(move |kind| (TaskRef { step, kind }, state.task(kind)))
        })
    }

    /// When a [`Tick`](super::Event::Tick) would next do something, by what is known now; `None` where never.
    pub fn next_due_ms(&self, definition: &Definition) -> Option<u64> {
        if self.is_closed() {
            return None;
        }
        let stands = self.pause.is_some();
        let of_task = |(at, task): (TaskRef, &Task)| {
            let waits = call_of(definition, at).is_none();
            let closes = call_of(definition, at).and_then(|call| task.close_by_ms(&call.timeouts));
            match task.status {
                // A worker's lease ends also while the saga stands still.
                TaskStatus::Running if !stands || !waits => Some(task.due_ms),
                TaskStatus::Backoff if !stands => Some(closes.unwrap_or(u64::MAX).min(task.due_ms)),
                TaskStatus::Ready if !stands => closes,
                _ => None,
            }
        };
        let deadline = match self.phase {
            Phase::Forward if !stands && !self.is_past_pivot(definition) => self.deadline_ms,
            _ => None,
        };
        // A wait without an end is due never.
        let dues = self.all_tasks().filter_map(of_task).filter(|due_ms| *due_ms < u64::MAX);
        dues.chain(deadline).min()
    }
}

/// What a worker is called for to do a task; `None` for what only waits, or is not there.
pub fn call_of(definition: &Definition, task: TaskRef) -> Option<&Call> {
    let step: &DefinedStep = definition.step(task.step)?;
    match task.kind {
        TaskKind::Action => match &step.work {
            Work::Call(call) => Some(call),
            Work::Sleep { .. } | Work::Signal { .. } | Work::Child { .. } => None,
        },
        TaskKind::Compensation => step.compensation.as_ref(),
        TaskKind::Check => step.check.as_ref(),
    }
}
