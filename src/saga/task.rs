//! What a step has done, and undone: a machine whose table says for each state and event what comes, or that nothing does.

use serde::{Deserialize, Serialize};

use super::{Failure, Retry, Timeouts};

/// What of a step a task does.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub enum TaskKind {
    /// The step itself.
    Action,
    /// What undoes it.
    Compensation,
    /// Of a pivot: what finds out whether it took effect.
    Check,
}

impl TaskKind {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Action, Self::Compensation, Self::Check];

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Action => "action",
            Self::Compensation => "compensation",
            Self::Check => "check",
        }
    }
}

/// Where a task is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
pub enum TaskStatus {
    /// Not come to yet.
    #[default]
    Idle,
    /// To be handed out to a worker.
    Ready,
    /// Handed out; or, of what only waits, begun.
    Running,
    /// Between two attempts.
    Backoff,
    /// Done.
    Done,
    /// Not done, and not tried again.
    Failed,
    /// Not wanted any more, before it was done.
    Withdrawn,
}

impl TaskStatus {
    /// All of them.
    pub const ALL: [Self; 7] =
        [Self::Idle, Self::Ready, Self::Running, Self::Backoff, Self::Done, Self::Failed, Self::Withdrawn];

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Ready => "ready",
            Self::Running => "running",
            Self::Backoff => "backoff",
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Withdrawn => "withdrawn",
        }
    }
}

/// What happens to a task.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum TaskEvent {
    /// Its turn has come.
    Schedule,
    /// A worker gets it; what only waits begins.
    HandOut,
    /// It was handed out, and did not reach its worker.
    Return,
    /// Its attempt was successful.
    Complete,
    /// Its attempt was not, and there will be another one.
    FailAttempt,
    /// It has failed for good.
    Fail,
    /// The pause after an attempt is over.
    Due,
    /// It is not wanted any more, and no worker has it.
    Withdraw,
    /// Somebody wants it tried again.
    Again,
    /// Somebody who looked says that it is done.
    Resolve,
    /// It may be scheduled once more, as if it had never been.
    Clear,
}

impl TaskEvent {
    /// All of them.
    pub const ALL: [Self; 11] = [
        Self::Schedule,
        Self::HandOut,
        Self::Return,
        Self::Complete,
        Self::FailAttempt,
        Self::Fail,
        Self::Due,
        Self::Withdraw,
        Self::Again,
        Self::Resolve,
        Self::Clear,
    ];

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Schedule => "schedule",
            Self::HandOut => "hand out",
            Self::Return => "return",
            Self::Complete => "complete",
            Self::FailAttempt => "fail attempt",
            Self::Fail => "fail",
            Self::Due => "due",
            Self::Withdraw => "withdraw",
            Self::Again => "again",
            Self::Resolve => "resolve",
            Self::Clear => "clear",
        }
    }
}

/// The table: what a task is after an event. `None` where the event can't happen to it.
pub fn next_status(status: TaskStatus, event: TaskEvent) -> Option<TaskStatus> {
    use TaskEvent as E;
    use TaskStatus as S;
    match (status, event) {
        (S::Idle, E::Schedule) => Some(S::Ready),
        (S::Ready, E::HandOut) => Some(S::Running),
        (S::Running, E::Return) => Some(S::Ready),
        (S::Running, E::Complete) => Some(S::Done),
        (S::Running, E::FailAttempt) => Some(S::Backoff),
        // While none has it, only time can make it fail.
        (S::Ready | S::Running | S::Backoff, E::Fail) => Some(S::Failed),
        (S::Backoff, E::Due | E::Again) => Some(S::Ready),
        // Of what runs, only what waits is withdrawn: a worker's attempt may have taken effect.
        (S::Idle | S::Ready | S::Running | S::Backoff, E::Withdraw) => Some(S::Withdrawn),
        (S::Failed, E::Again) => Some(S::Ready),
        (S::Failed, E::Resolve) => Some(S::Done),
        (S::Done | S::Failed | S::Withdrawn | S::Idle, E::Clear) => Some(S::Idle),
        (
            S::Idle,
            E::HandOut | E::Return | E::Complete | E::FailAttempt | E::Fail | E::Due | E::Again | E::Resolve,
        )
        | (
            S::Ready,
            E::Schedule
            | E::Return
            | E::Complete
            | E::FailAttempt
            | E::Due
            | E::Again
            | E::Resolve
            | E::Clear,
        )
        | (S::Running, E::Schedule | E::HandOut | E::Due | E::Again | E::Resolve | E::Clear)
        | (
            S::Backoff,
            E::Schedule | E::HandOut | E::Return | E::Complete | E::FailAttempt | E::Resolve | E::Clear,
        )
        | (
            S::Done | S::Withdrawn,
            E::Schedule
            | E::HandOut
            | E::Return
            | E::Complete
            | E::FailAttempt
            | E::Fail
            | E::Due
            | E::Withdraw
            | E::Again
            | E::Resolve,
        )
        | (
            S::Failed,
            E::Schedule
            | E::HandOut
            | E::Return
            | E::Complete
            | E::FailAttempt
            | E::Fail
            | E::Due
            | E::Withdraw,
        ) => None,
    }
}

/// A task.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Task {
    /// Where it is.
    pub status: TaskStatus,
    /// How often it was handed out.
    pub attempts: u32,
    /// How often it had been when somebody last wanted it tried again: those before don't count against its retries.
    pub forgiven: u32,
    /// Names the last hand-out. No two of a saga have the same, and a later one is larger.
    pub fence: u64,
    /// When it was scheduled, by the engine's clock.
    pub scheduled_ms: u64,
    /// When it was handed out last.
    pub started_ms: u64,
    /// While it is running, when its lease ends or what it waits for comes; in a pause, when that is over.
    pub due_ms: u64,
    /// Whether an attempt ended without it being certain that it did nothing.
    pub unsure: bool,
    /// Who has it, or had it last.
    pub worker: String,
    /// Why the last attempt that failed did.
    pub failure: Option<Failure>,
}

impl Task {
    /// Whether the event can happen, and if so its status changed.
    pub(super) fn step(&mut self, event: TaskEvent) -> bool {
        match next_status(self.status, event) {
            Some(next) => {
                self.status = next;
                true
            }
            None => false,
        }
    }

    /// Whether it was scheduled and has not come to an end.
    pub fn is_open(&self) -> bool {
        matches!(self.status, TaskStatus::Ready | TaskStatus::Running | TaskStatus::Backoff)
    }

    /// When the lease of its attempt ends, if no sign of life comes until then.
    pub(super) fn lease_end_ms(&self, timeouts: &Timeouts, heard_ms: u64) -> u64 {
        let whole = self.started_ms.saturating_add(timeouts.start_to_close_ms);
        match timeouts.heartbeat_ms {
            Some(heartbeat_ms) => whole.min(heard_ms.saturating_add(heartbeat_ms)),
            None => whole,
        }
    }

    /// When all attempts together have taken too long.
    pub(super) fn close_by_ms(&self, timeouts: &Timeouts) -> Option<u64> {
        timeouts.schedule_to_close_ms.map(|most| self.scheduled_ms.saturating_add(most))
    }

    /// Whether the attempts are used up.
    pub(super) fn is_exhausted(&self, retry: &Retry) -> bool {
        retry.max_attempts > 0 && self.attempts.saturating_sub(self.forgiven) >= retry.max_attempts
    }
}

/// The pause after the attempt of this number, from 1 on. Each is a little shorter than the policy says, by up to a fifth,
/// so that what failed together is not tried again together; `salt` decides by how much.
pub fn pause_ms(retry: &Retry, attempt: u32, salt: u64) -> u64 {
    let mut pause = retry.initial_ms.min(retry.max_ms);
    for _ in 1..attempt {
        if pause >= retry.max_ms {
            break;
        }
        if retry.factor_percent == 100 {
            break;
        }
        // A factor of 1.01 of a pause of 1 would never get anywhere.
        let longer = pause.saturating_mul(u64::from(retry.factor_percent)) / 100;
        pause = longer.max(pause.saturating_add(1));
    }
    let pause = pause.min(retry.max_ms);
    let less = (pause / 5).saturating_add(1);
    pause - (mix(salt) % less).min(pause - 1)
}

/// Spreads numbers that lie close together (the finalizer of splitmix64).
fn mix(mut number: u64) -> u64 {
    number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}
