//! What a machine asks its edge to do, what the edge tells it, and which requests are under way.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::types::{AbortReason, KeyRange, Outcome, Refusal, Timestamp, TxnCommand, TxnStatus};

/// Numbers the requests of one machine.
pub type Step = u32;

/// What the edge is to do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Action {
    /// Send a command, with the transaction's id, to the shard that holds `to`.
    Send {
        /// Comes back in the event that ends it.
        step: Step,
        /// A key of the shard.
        to: Bytes,
        /// The command.
        command: TxnCommand,
    },
    /// Ask the leader of the primary's shard what the record says.
    Ask {
        /// Comes back in the event that ends it.
        step: Step,
        /// The primary key.
        primary: Bytes,
        /// Behind the barrier for this timestamp (rule R1); without one, behind a fresh read index.
        at: Option<Timestamp>,
    },
    /// Ask the leader of the key's shard whether the transaction holds a lock that is stored at `key`, be it
    /// of the key or of a range.
    Look {
        /// Comes back in the event that ends it.
        step: Step,
        /// The key.
        key: Bytes,
        /// See [`Action::Ask`].
        at: Option<Timestamp>,
    },
    /// This became of the transaction. Said once at most.
    Acknowledge(Verdict),
    /// There is nothing left to do: the machine may be dropped.
    Ended,
}

/// What the edge tells. Each `Send`, `Ask` and `Look` ends with one event that bears its step; one whose
/// step is no longer under way changes nothing, so that late and repeated answers do no harm.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// A command was applied, or refused in apply.
    Outcome {
        /// Of which request.
        step: Step,
        /// What came of it.
        outcome: Outcome,
    },
    /// An `Ask` is answered.
    Status {
        /// Of which request.
        step: Step,
        /// What the record says.
        status: TxnStatus,
    },
    /// A `Look` is answered.
    Looked {
        /// Of which request.
        step: Step,
        /// When the lock was taken; `None` where there is none.
        locked: Option<Timestamp>,
    },
    /// The request came to nothing, or its fate is unknown. It is sent again at the next [`Event::Resend`]:
    /// every command may be applied twice, whenever that happens.
    Failed {
        /// Of which request.
        step: Step,
    },
    /// The request went to the wrong place (`Moved`, or refused as `OutOfRange`), and was not done.
    Moved {
        /// Of which request.
        step: Step,
        /// How the keys are cut into shards, as known now.
        shards: Vec<KeyRange>,
    },
    /// Time to send again what has failed: a timer of the edge, or a lock was released that was in the way.
    Resend,
    /// The client will soon wait no longer: what is not decided yet is undone, so that it can be told. An edge
    /// that has no word from the machine at the client's deadline answers "undetermined" itself, and lets the
    /// machine go on.
    GiveUp,
}

/// What became of a transaction.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// It is committed.
    Committed {
        /// The commit timestamp.
        commit_ts: Timestamp,
    },
    /// It had no effect and never will have.
    Aborted {
        /// Why.
        reason: AbortReason,
    },
    /// It had no effect and never will have: the commit itself is wrong.
    Refused(Refusal),
    /// It is older than retries are recognised, so that an earlier attempt may have been committed, and nobody
    /// can learn that any more (rule R7).
    Undetermined,
}

/// A request under way.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Request {
    Send { to: Bytes, command: TxnCommand },
    Ask { primary: Bytes, at: Option<Timestamp> },
    Look { key: Bytes, at: Option<Timestamp> },
}

impl Request {
    fn action(&self, step: Step) -> Action {
        match self.clone() {
            Self::Send { to, command } => Action::Send { step, to, command },
            Self::Ask { primary, at } => Action::Ask { step, primary, at },
            Self::Look { key, at } => Action::Look { step, key, at },
        }
    }
}

#[derive(Clone, Debug)]
struct Open {
    request: Request,
    /// The edge has given it up: it waits to be sent again.
    failed: bool,
}

/// The requests under way. Every machine drives its requests through this table, so that an answer counts
/// once, and only while the machine still waits for it.
#[derive(Clone, Debug, Default)]
pub(super) struct Steps {
    open: BTreeMap<Step, Open>,
    next: Step,
}

impl Steps {
    /// Begins a request.
    pub(super) fn begin(&mut self, request: Request, actions: &mut Vec<Action>) -> Step {
        let step = self.next;
        self.next += 1;
        actions.push(request.action(step));
        self.open.insert(step, Open { request, failed: false });
        step
    }

    /// Begins to send a command.
    pub(super) fn send(&mut self, to: &Bytes, command: TxnCommand, actions: &mut Vec<Action>) -> Step {
        self.begin(Request::Send { to: to.clone(), command }, actions)
    }

    /// The request of a step that is under way.
    pub(super) fn get(&self, step: Step) -> Option<&Request> {
        self.open.get(&step).map(|open| &open.request)
    }

    /// Ends a request.
    pub(super) fn end(&mut self, step: Step) {
        self.open.remove(&step);
    }

    /// Ends them all: answers that are still to come change nothing.
    pub(super) fn end_all(&mut self) {
        self.open.clear();
    }

    /// Whether nothing is under way.
    pub(super) fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    /// The edge has given a request up.
    pub(super) fn failed(&mut self, step: Step) {
        if let Some(open) = self.open.get_mut(&step) {
            open.failed = true;
        }
    }

    /// Whether anything waits to be sent again.
    pub(super) fn any_failed(&self) -> bool {
        self.open.values().any(|open| open.failed)
    }

    /// Sends again what has failed.
    pub(super) fn resend(&mut self, actions: &mut Vec<Action>) {
        for (step, open) in self.open.iter_mut().filter(|(_, open)| open.failed) {
            open.failed = false;
            actions.push(open.request.action(*step));
        }
    }
}
