//! Floor 0: known bugs that tests switch on, to see that they would find them.
//!
//! The simulation switches one on in a thread; a node of a test build that is started with `KVORUM_BUG=NAME` has it from
//! its start. Compiled in only with the feature `sim-bugs`. Without it [`on`] is the constant `false`, and nothing of a
//! bug is left in the program.

/// A bug, named after what is wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Bug {
    /// A write does not mind the locks of those who read its key.
    ReadLocksIgnored,
    /// A write does not mind the locks of those who read a range around its key.
    RangeLocksIgnored,
    /// A key has room for one lock, so that of two transactions that read it the second takes the first
    /// one's place.
    OneLockPerKey,
    /// A missing record is taken for an abort (rule R6).
    MissingIsAborted,
    /// A rollback marker is answered but not written (rule R5).
    NoRollbackMarker,
    /// A STAGING record alone is taken for undecided (rule R4).
    StagingIsUndecided,
    /// Locks are released while COMMITTED is still on its way.
    FinishBeforeCommitted,
    /// The record is forgotten while locks are still being released (rule R7).
    ForgetEarly,
    /// A parallel commit bears the smallest of its prepare timestamps.
    CommitAtSmallest,
    /// The barrier lets a read pass a batch that still waits for the oracle (rule R1).
    BarrierForgetsAsked,
    /// A read of the newest value does not wait for batches on its key (rule R1).
    LatestDoesNotWait,
    /// A refusal or a failed condition leaves no marker (rule R8).
    RefusalDoesNotStick,
    /// The release of what was only read leaves no marker, so that a late prepare locks it again (rule R8).
    ReadOnlyFinishLeavesNoTrace,
    /// A version is not recognised as written by an earlier attempt (rule R8).
    RetryAppliedTwice,
    /// A batch is proposed under a later leadership than it was asked for.
    StaleLeadership,
    /// A commit that is given up is said to be aborted, without a marker that makes it so.
    GivenUpIsAborted,
    /// What a replica promised to keep is not synced before it is answered.
    AcknowledgeBeforeSync,
    /// A leader answers reads for as long as it believes that it leads, and a replica that was started again votes
    /// at once, whatever it promised before.
    LeaseReadWithoutGuards,
    /// A replica that does not lead answers reads from what it has applied.
    FollowerReadWithoutReadIndex,
    /// A page of changes reaches past prepared locks, whose transactions may be committed in what it covers.
    ChangesPastLocks,
    /// An index tells whoever waits for it that it is there, whatever it has written.
    IndexWatermarkAhead,
    /// An index is written without a look at the checkpoint that another projector may have left meanwhile.
    IndexForgetsCheckpoint,
    /// An attempt at a saga's step that was lost, or failed in whatever way, counts as one that did nothing.
    SagaForgetsUnsure,
    /// The end of an attempt at a saga's step counts as that of the newest one.
    SagaStaleFence,
    /// The transaction that is a saga's step is committed whether or not its worker holds the step.
    SagaTxnWithoutLease,
}

impl Bug {
    /// Those of the machines, which the simulation runs.
    pub const IN_MACHINES: [Bug; 16] = [
        Self::ReadLocksIgnored,
        Self::RangeLocksIgnored,
        Self::OneLockPerKey,
        Self::MissingIsAborted,
        Self::NoRollbackMarker,
        Self::StagingIsUndecided,
        Self::FinishBeforeCommitted,
        Self::ForgetEarly,
        Self::CommitAtSmallest,
        Self::BarrierForgetsAsked,
        Self::LatestDoesNotWait,
        Self::RefusalDoesNotStick,
        Self::ReadOnlyFinishLeavesNoTrace,
        Self::RetryAppliedTwice,
        Self::StaleLeadership,
        Self::GivenUpIsAborted,
    ];

    /// Those of a node's edges, which only real nodes have.
    pub const IN_EDGES: [Bug; 9] = [
        Self::AcknowledgeBeforeSync,
        Self::LeaseReadWithoutGuards,
        Self::FollowerReadWithoutReadIndex,
        Self::ChangesPastLocks,
        Self::IndexWatermarkAhead,
        Self::IndexForgetsCheckpoint,
        Self::SagaForgetsUnsure,
        Self::SagaStaleFence,
        Self::SagaTxnWithoutLease,
    ];

    /// The bug of a name, as it stands here.
    #[must_use]
    pub fn named(name: &str) -> Option<Bug> {
        Self::IN_MACHINES.into_iter().chain(Self::IN_EDGES).find(|bug| format!("{bug:?}") == name)
    }
}

#[cfg(feature = "sim-bugs")]
mod switch {
    use std::cell::Cell;
    use std::sync::OnceLock;

    use super::Bug;

    static IN_PROCESS: OnceLock<Bug> = OnceLock::new();

    thread_local! {
        static ON: Cell<Option<Bug>> = const { Cell::new(None) };
    }

    /// Switches one bug on in this thread, or with `None` off.
    pub fn set(bug: Option<Bug>) {
        ON.set(bug);
    }

    /// Switches one bug on in the whole process, for good; the first one stays.
    pub fn set_for_process(bug: Bug) {
        let _ = IN_PROCESS.set(bug);
    }

    /// Whether the bug is switched on, in this thread or in the process.
    #[must_use]
    pub fn on(bug: Bug) -> bool {
        ON.get() == Some(bug) || IN_PROCESS.get() == Some(&bug)
    }
}

#[cfg(feature = "sim-bugs")]
pub use switch::{on, set, set_for_process};

/// Whether the bug is switched on: never, in a build like this.
#[cfg(not(feature = "sim-bugs"))]
#[inline]
#[must_use]
pub const fn on(_: Bug) -> bool {
    false
}
