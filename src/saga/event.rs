//! What happens to a saga, and what is told of it.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{Outcome, TaskKind};
use crate::types::{Error, Result};

/// A task of a saga.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct TaskRef {
    /// The step, by its place in the definition.
    pub step: usize,
    /// What of it.
    pub kind: TaskKind,
}

/// One hand-out of a task: what its worker shows when it is done.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Token {
    /// The task.
    pub task: TaskRef,
    /// Which hand-out of it.
    pub fence: u64,
}

impl Token {
    /// It as a text, together with its saga's id: what a worker is given.
    pub fn to_text(&self, saga_id: &str) -> String {
        format!("{}.{}.{}.{saga_id}", self.fence, self.task.step, self.task.kind.name())
    }

    /// The saga's id and the token in a text.
    ///
    /// # Errors
    ///
    /// `Invalid` where it is none.
    pub fn from_text(text: &str) -> Result<(String, Self)> {
        let parse = || {
            let mut parts = text.splitn(4, '.');
            let fence = parts.next()?.parse().ok()?;
            let step = parts.next()?.parse::<u32>().ok()? as usize;
            let kind = parts.next()?;
            let kind = TaskKind::ALL.into_iter().find(|one| one.name() == kind)?;
            let id = parts.next().filter(|id| !id.is_empty())?;
            Some((id.to_owned(), Self { task: TaskRef { step, kind }, fence }))
        };
        parse().ok_or_else(|| {
            Error::invalid(format!(
                "{:?} is no token of a task: send the one that came with it",
                text.chars().take(80).collect::<String>()
            ))
        })
    }
}

/// Why an attempt was not successful.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Failure {
    /// For people.
    pub message: String,
    /// For programs: what a retry policy calls final goes by it. May be empty.
    pub kind: String,
    /// Whether another attempt would fail alike.
    pub is_final: bool,
    /// Whether it is certain that the attempt did nothing. Else a step counts as one that may have taken effect, and is
    /// compensated.
    pub did_nothing: bool,
}

/// A signal that was sent to a saga.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Signal {
    /// Names the sending: the same one again is not a second signal.
    pub id: u128,
    /// The signal's name.
    pub name: String,
    /// What it says.
    pub payload: Bytes,
}

/// What happens to a saga.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// A worker gets a task.
    HandOut {
        /// Which.
        task: TaskRef,
        /// Who.
        worker: String,
    },
    /// A task that was handed out did not reach its worker.
    Return {
        /// Which hand-out.
        token: Token,
    },
    /// An attempt was successful.
    Complete {
        /// Which hand-out.
        token: Token,
        /// What it came to.
        output: Bytes,
        /// Whether the transaction that did it is committed: for a task that is one.
        is_committed: bool,
    },
    /// An attempt was not.
    Fail {
        /// Which hand-out.
        token: Token,
        /// Why.
        failure: Failure,
    },
    /// A worker is still at it.
    Heartbeat {
        /// Which hand-out.
        token: Token,
    },
    /// Time has passed.
    Tick,
    /// A signal came.
    Signal(Signal),
    /// It is to end, and what it did to be undone.
    Cancel {
        /// Why.
        reason: String,
    },
    /// It is to end as it stands.
    Terminate {
        /// Why.
        reason: String,
    },
    /// It is to stand still.
    Pause {
        /// Why.
        reason: String,
    },
    /// It is to go on.
    Resume,
    /// What waits for another attempt, or failed for good, is to be tried now.
    Retry {
        /// Only this step.
        step: Option<usize>,
    },
    /// Somebody has looked what became of a step that can't be gone on with.
    Resolve {
        /// Which.
        step: usize,
        /// Whether it is done.
        is_done: bool,
    },
    /// What was done since a step, and the step itself, is to be undone and done again.
    Reset {
        /// Which.
        step: usize,
    },
    /// A child saga has ended.
    ChildClosed {
        /// Which start of it.
        token: Token,
        /// When the saga that it is a step of was started: another one of the same id is not meant.
        created_ms: u64,
        /// How.
        outcome: Outcome,
        /// What it came to.
        output: Bytes,
    },
    /// A letter has reached whom it was for.
    Delivered {
        /// Its number.
        letter: u64,
    },
    /// Somebody else looks after the saga now.
    TakenOver,
    /// A transaction has started it, a while ago perhaps: it is known now that it is committed, and time counts from now on.
    Begun,
    /// Something that happens once, however often its request arrives.
    Once {
        /// Names the request.
        request: u128,
        /// What happens.
        event: Box<Event>,
    },
}

impl Event {
    /// It, or what happens once.
    pub fn inner(&self) -> &Self {
        match self {
            Self::Once { event, .. } => event.inner(),
            other => other,
        }
    }
}

/// Why an event changed nothing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// The hand-out is not the one that counts any more, or its attempt has ended otherwise.
    Stale {
        /// For people: what became of it.
        why: String,
    },
    /// That was so already; nothing had to be done.
    Already,
    /// It does not go with where the saga is.
    Unfit {
        /// For people: why.
        why: String,
    },
}

impl Refusal {
    pub(super) fn unfit(why: impl Into<String>) -> Self {
        Self::Unfit { why: why.into() }
    }
}

/// What an event changed, besides the state.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Change {
    /// What history gets.
    pub records: Vec<Record>,
    /// What steps came to.
    pub outputs: Vec<(usize, Bytes)>,
    /// Whether the state has to be stored: not for a sign of life.
    pub must_store: bool,
}

/// A line of a saga's history.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Record {
    /// When, by the engine's clock, in milliseconds since 1970.
    pub at_ms: u64,
    /// Of which step; of none for what is about the whole saga.
    pub step: Option<usize>,
    /// What.
    pub what: RecordKind,
}

/// What a line of history says.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum RecordKind {
    /// The saga was started.
    Started,
    /// What only waits has begun.
    Waiting,
    /// A worker got a task.
    HandedOut {
        /// Of what kind.
        kind: TaskKind,
        /// Which attempt, from 1 on.
        attempt: u32,
        /// Who.
        worker: String,
    },
    /// A task did not reach its worker.
    Returned {
        /// Of what kind.
        kind: TaskKind,
    },
    /// A task is done.
    Completed {
        /// Of what kind.
        kind: TaskKind,
        /// Which attempt did it.
        attempt: u32,
    },
    /// An attempt failed, and there will be another one.
    AttemptFailed {
        /// Of what kind.
        kind: TaskKind,
        /// Which attempt.
        attempt: u32,
        /// Why.
        failure: Failure,
        /// After which pause there will be another one.
        pause_ms: u64,
    },
    /// A task failed for good.
    Failed {
        /// Of what kind.
        kind: TaskKind,
        /// How many attempts there were.
        attempts: u32,
        /// Why.
        failure: Failure,
    },
    /// A task is not wanted any more.
    Withdrawn {
        /// Of what kind.
        kind: TaskKind,
    },
    /// A signal came.
    Signalled {
        /// Its name.
        name: String,
    },
    /// From here on steps are undone.
    Compensating {
        /// Why.
        reason: String,
    },
    /// Somebody wants it cancelled.
    CancelRequested {
        /// Why.
        reason: String,
    },
    /// The pivot was done before it could go back: it goes on.
    TooLateToGoBack,
    /// It has taken longer than it may.
    TimedOut,
    /// It stands still.
    Paused {
        /// Why.
        reason: String,
    },
    /// It goes on.
    Resumed,
    /// Somebody wants something tried again.
    RetryRequested,
    /// Somebody has looked what became of a step.
    Resolved {
        /// Whether it is done.
        is_done: bool,
    },
    /// Somebody wants it done again from a step on.
    ResetRequested,
    /// It goes forward again, from a step on.
    WentBack,
    /// A child saga ended.
    ChildClosed {
        /// How.
        outcome: Outcome,
    },
    /// What a child saga came to is not kept here: with it, it would be too much.
    OutputLeftOut {
        /// How much it is.
        size_bytes: u64,
    },
    /// It has ended.
    Closed {
        /// How.
        outcome: Outcome,
        /// Names of steps that had taken effect, or may have, and are not undone: where it was terminated.
        not_undone: Vec<String>,
    },
}
