//! Recovery: ends the transaction of somebody who does not (rules R5 and R6).

use bytes::Bytes;

use super::cut::Cut;
use super::ending::Ending;
use super::step::{Action, Event, Request, Step, Verdict};
use crate::bugs::{self, Bug};
use crate::types::{AbortReason, Decision, KeyRange, Lock, Timestamp, TxnId, TxnStatus};

/// Ends a transaction whose lock has outlived its time ([`LOCK_TTL_MS`](crate::types::limits::LOCK_TTL_MS)), or
/// whose record a new leader has found. Any number of them, and the coordinator, may be at work on the same
/// transaction: what they do is decided at its primary, once.
///
/// Says what became of the transaction by [`Action::Acknowledge`], unless it finds the lock gone.
#[derive(Clone, Debug)]
pub struct Recovery {
    txn: TxnId,
    primary: Bytes,
    /// Where the lock was met.
    met: Bytes,
    ending: Ending,
}

impl Recovery {
    /// Begins with a lock that was met. `shards` are the ranges of the shards as far as known. Of an aborted
    /// transaction this shard's locks are released, and those at listed keys; who meets others comes again.
    pub fn start(lock: &Lock, shards: &[KeyRange]) -> (Self, Vec<Action>) {
        let cut = Cut::new(shards);
        let spans = vec![cut.shard_of(&lock.key)];
        let mut recovery = Self {
            txn: lock.txn,
            primary: lock.primary.clone(),
            met: lock.key.clone(),
            ending: Ending::new(lock.primary.clone(), cut, spans, false),
        };
        let mut actions = Vec::new();
        let ask = Request::Ask { primary: lock.primary.clone(), at: None };
        recovery.ending.steps.begin(ask, &mut actions);
        (recovery, actions)
    }

    /// Goes on with a transaction whose COMMITTED record is still there: its locks in `spans` may not all be
    /// released yet (rule R11).
    pub fn resume(
        txn: TxnId,
        primary: Bytes,
        commit_ts: Timestamp,
        spans: Vec<KeyRange>,
        shards: &[KeyRange],
    ) -> (Self, Vec<Action>) {
        let mut ending = Ending::new(primary.clone(), Cut::new(shards), spans, true);
        let mut actions = Vec::new();
        ending.committed(commit_ts, &mut actions);
        (Self { txn, met: primary.clone(), primary, ending }, actions)
    }

    /// The transaction, which is the id of every command sent.
    pub fn id(&self) -> TxnId {
        self.txn
    }

    /// Whether nothing is left to do.
    pub fn ended(&self) -> bool {
        self.ending.ended()
    }

    /// Whether a request waits for the next [`Event::Resend`]. Look after every event: not only what the edge says has
    /// failed comes again, but also what a shard refused for now, such as a commit that met a lock.
    pub fn waits(&self) -> bool {
        self.ending.steps.any_failed()
    }

    /// What the edge tells.
    pub fn on(&mut self, event: Event, actions: &mut Vec<Action>) {
        if self.ending.begun() {
            return self.ending.on(event, actions);
        }
        match event {
            Event::Status { step, status } if self.ending.steps.get(step).is_some() => {
                self.on_status(status, actions);
            }
            Event::Looked { step, locked } if self.ending.steps.get(step).is_some() => match locked {
                // The record would be there if it were committed, and the lock gone if all were over. If it is
                // committed after all, the primary key has its version, and the abort is refused.
                Some(_) => self.ending.abort(false, actions),
                None => self.ending.end(actions),
            },
            Event::Failed { step } => self.ending.steps.failed(step),
            Event::Moved { step, shards } => self.on_moved(step, &shards),
            Event::Resend => self.ending.steps.resend(actions),
            Event::GiveUp | Event::Outcome { .. } | Event::Status { .. } | Event::Looked { .. } => {}
        }
    }

    fn on_status(&mut self, status: TxnStatus, actions: &mut Vec<Action>) {
        match status {
            TxnStatus::Committed { commit_ts, spans } => {
                // Without spans only a version tells: the record is gone, or never was, and there is none to
                // forget.
                if spans.is_empty() {
                    self.ending.acknowledge(Verdict::Committed { commit_ts }, actions);
                    return self.ending.finish(Decision::Committed { commit_ts }, actions);
                }
                self.ending.lies_in(spans);
                self.ending.committed(commit_ts, actions);
            }
            TxnStatus::Aborted => self.ending.aborted(AbortReason::RolledBack, actions),
            TxnStatus::Staging { listed } => self.ending.mark(&listed, actions),
            TxnStatus::Missing if bugs::on(Bug::MissingIsAborted) => {
                self.ending.aborted(AbortReason::RolledBack, actions);
            }
            // Never read as aborted (rule R6): is the lock still there, now that the record is not?
            TxnStatus::Missing => {
                self.ending.steps.end_all();
                self.ending.steps.begin(Request::Look { key: self.met.clone(), at: None }, actions);
            }
        }
    }

    fn on_moved(&mut self, step: Step, shards: &[KeyRange]) {
        self.ending.cut = Cut::new(shards);
        self.ending.steps.failed(step);
    }

    /// The primary key.
    pub fn primary(&self) -> &Bytes {
        &self.primary
    }
}
