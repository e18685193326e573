//! The sagas of the workload: what their steps are, as far as a checker has to know. The workload makes definitions of them.

/// What a step is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Work {
    /// A worker does something in the world.
    Activity,
    /// A worker writes to the store.
    Txn,
    /// Time passes.
    Sleep,
    /// It waits for a signal.
    Signal,
    /// It is a saga of its own, of the plan [`CHILD`].
    Child,
}

/// A step.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Step {
    /// Its name.
    pub name: &'static str,
    /// Those that run side by side are of one stage; from 0 on.
    pub stage: usize,
    /// What it is.
    pub work: Work,
    /// Whether something undoes it: of a [`Work::Txn`] a transaction, else an activity.
    pub is_undone: bool,
    /// Whether there is no way back once it is done.
    pub is_pivot: bool,
    /// Of a pivot: whether an activity finds out whether it took effect.
    pub is_checked: bool,
    /// Whether its worker has to show signs of life.
    pub beats: bool,
    /// Whether its compensation is tried only twice before the saga stands still.
    pub undo_stands: bool,
}

const fn step(name: &'static str, stage: usize, work: Work) -> Step {
    Step {
        name,
        stage,
        work,
        is_undone: false,
        is_pivot: false,
        is_checked: false,
        beats: false,
        undo_stands: false,
    }
}

impl Step {
    const fn undone(self) -> Self {
        Self { is_undone: true, ..self }
    }

    const fn pivot(self) -> Self {
        Self { is_pivot: true, ..self }
    }

    const fn checked(self) -> Self {
        Self { is_checked: true, ..self }
    }

    const fn beating(self) -> Self {
        Self { beats: true, ..self }
    }

    const fn undo_stands(self) -> Self {
        Self { undo_stands: true, ..self }
    }
}

/// A saga.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Plan {
    /// Its name.
    pub name: &'static str,
    /// Its steps, in their order.
    pub steps: &'static [Step],
    /// Whether all is undone at once.
    pub is_parallel: bool,
    /// How long it may take until its pivot is done.
    pub timeout_ms: Option<u64>,
}

use Work::{Activity, Child, Signal, Sleep, Txn};

/// The plan of child sagas.
pub const CHILD: &str = "leaf";

/// All of them. Clients start those but the child.
pub const PLANS: [Plan; 6] = [
    // Activities side by side, a pivot that is asked for, and steps after it.
    Plan {
        name: "trip",
        steps: &[
            step("flight", 0, Activity).undone(),
            step("hotel", 1, Activity).undone(),
            step("car", 1, Txn).undone(),
            step("pay", 2, Activity).pivot().checked(),
            step("ledger", 3, Txn),
            step("mail", 4, Activity),
        ],
        is_parallel: false,
        timeout_ms: None,
    },
    // Mostly transactions, and no pivot.
    Plan {
        name: "money",
        steps: &[
            step("debit", 0, Txn).undone(),
            step("credit", 1, Txn).undone(),
            step("note", 1, Activity).undone().beating(),
            step("close", 2, Txn).undone(),
        ],
        is_parallel: false,
        timeout_ms: None,
    },
    // A signal, a pivot that is a transaction, and a time limit.
    Plan {
        name: "order",
        steps: &[
            step("reserve", 0, Txn).undone(),
            step("approve", 1, Signal),
            step("pack", 2, Activity).undone(),
            step("charge", 3, Txn).pivot(),
            step("ship", 4, Activity).beating(),
        ],
        is_parallel: false,
        timeout_ms: Some(6_000),
    },
    // A saga in a saga, and a moment of waiting.
    Plan {
        name: "family",
        steps: &[
            step("prepare", 0, Activity).undone(),
            step("nap", 1, Sleep),
            step("part", 2, Child).undone(),
            step("finish", 3, Activity).undone(),
        ],
        is_parallel: false,
        timeout_ms: None,
    },
    // Where somebody has to look: a compensation that gives up, and a pivot that nothing finds out about.
    Plan {
        name: "hard",
        steps: &[
            step("dig", 0, Activity).undone().undo_stands(),
            step("pour", 1, Txn).undone(),
            step("blast", 2, Activity).pivot(),
            step("sweep", 3, Txn),
        ],
        is_parallel: false,
        timeout_ms: None,
    },
    Plan {
        name: CHILD,
        steps: &[
            step("one", 0, Txn).undone(),
            step("two", 0, Activity).undone(),
            step("three", 1, Txn).undone(),
            step("four", 2, Activity).undone().beating(),
        ],
        is_parallel: true,
        timeout_ms: None,
    },
];

/// The plan of a name.
pub fn plan(name: &str) -> Option<&'static Plan> {
    PLANS.iter().find(|plan| plan.name == name)
}

impl Plan {
    /// The step of a name.
    pub fn step(&self, name: &str) -> Option<&'static Step> {
        self.steps.iter().find(|step| step.name == name)
    }

    /// The pivot.
    pub fn pivot(&self) -> Option<&'static Step> {
        self.steps.iter().find(|step| step.is_pivot)
    }

    /// Whether a step comes after the pivot.
    pub fn is_past_pivot(&self, step: &Step) -> bool {
        self.pivot().is_some_and(|pivot| pivot.stage < step.stage)
    }
}

/// Where the store has the transactions of a saga's step: a number that is raised by 1 each time that it is done, and by
/// [`UNDONE`] each time that it is undone.
pub fn count_key(saga: &str, step: &str) -> String {
    format!("count/{saga}/{step}")
}

/// What an undoing adds to the number of a step.
pub const UNDONE: i64 = 1_000_000;

/// Where the store has the row that a saga was started together with.
pub fn row_key(saga: &str, number: i64) -> String {
    format!("row/{saga}/{number}")
}
