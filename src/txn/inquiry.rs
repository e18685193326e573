//! The inquiry of a reader that met a lock: is what it stages to be seen at the reader's timestamp?
//! (rules R3, R4 and R6). Nothing is written, and nobody is waited for.

use bytes::Bytes;

use super::ending;
use super::step::{Action, Event, Request, Steps};
use crate::bugs::{self, Bug};
use crate::shard::Fate;
use crate::types::{Lock, Timestamp, TxnId, TxnStatus};

/// What a reader has learnt.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Learnt {
    /// Of use for reads at the timestamp that was asked for. The reader reads again with it, in one view: the
    /// lock may be gone meanwhile.
    pub fate: Fate,
    /// The record is gone, or says aborted: the read must be done again behind a *fresh* read index, one asked
    /// for after this. Only a lock that is still there then has not been committed; else it was of a transaction
    /// that is long over, and what it wrote is there (rule R6).
    pub confirm: bool,
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum Stage {
    /// The record is asked for; `again`: after a listed key was seen unlocked.
    Asking {
        again: bool,
    },
    /// The listed keys are looked at.
    Looking {
        commit_ts: Option<Timestamp>,
    },
    Ended,
}

/// Asks what became of one transaction, for a reader at one timestamp. Every question waits behind the barrier
/// for that timestamp (rule R1), so that "undecided" means "not at or below it".
#[derive(Clone, Debug)]
pub struct Inquiry {
    txn: TxnId,
    primary: Bytes,
    at: Timestamp,
    stage: Stage,
    steps: Steps,
}

impl Inquiry {
    /// Begins with a lock that was met by a read at `at`, and that was taken at or below it. A lock taken later
    /// is ignored without a question (rule R3).
    pub fn start(lock: &Lock, at: Timestamp) -> (Self, Vec<Action>) {
        let (stage, steps) = (Stage::Asking { again: false }, Steps::default());
        let mut inquiry = Self { txn: lock.txn, primary: lock.primary.clone(), at, stage, steps };
        let mut actions = Vec::new();
        inquiry.ask(false, &mut actions);
        (inquiry, actions)
    }

    /// The transaction that is asked about.
    pub fn id(&self) -> TxnId {
        self.txn
    }

    /// Whether a request waits for the next [`Event::Resend`]. Look after every event: not only what the edge says has
    /// failed comes again, but also what a shard refused for now, such as a commit that met a lock.
    pub fn waits(&self) -> bool {
        self.steps.any_failed()
    }

    /// What the edge tells. Gives the answer once there is one; after that nothing more comes.
    #[must_use]
    pub fn on(&mut self, event: Event, actions: &mut Vec<Action>) -> Option<Learnt> {
        match event {
            Event::Status { step, status } if self.steps.get(step).is_some() => {
                self.on_status(status, actions)
            }
            Event::Looked { step, locked } if self.steps.get(step).is_some() => {
                let Stage::Looking { commit_ts } = &mut self.stage else { return None };
                let Some(prepare_ts) = locked else {
                    self.ask(true, actions);
                    return None;
                };
                *commit_ts = Some(ending::commit_ts(*commit_ts, prepare_ts));
                self.steps.end(step);
                let commit_ts = commit_ts.filter(|_| self.steps.is_empty())?;
                self.ended(Fate::Committed { commit_ts }, false)
            }
            Event::Failed { step } | Event::Moved { step, .. } => {
                self.steps.failed(step);
                None
            }
            Event::Resend => {
                self.steps.resend(actions);
                None
            }
            Event::GiveUp | Event::Outcome { .. } | Event::Status { .. } | Event::Looked { .. } => None,
        }
    }

    fn ask(&mut self, again: bool, actions: &mut Vec<Action>) {
        self.steps.end_all();
        self.stage = Stage::Asking { again };
        self.steps.begin(Request::Ask { primary: self.primary.clone(), at: Some(self.at) }, actions);
    }

    fn on_status(&mut self, status: TxnStatus, actions: &mut Vec<Action>) -> Option<Learnt> {
        let Stage::Asking { again } = self.stage else { return None };
        match status {
            TxnStatus::Committed { commit_ts, .. } => self.ended(Fate::Committed { commit_ts }, false),
            TxnStatus::Missing if bugs::on(Bug::MissingIsAborted) => self.ended(Fate::NotBelow, false),
            // Neither is believed before the key was read again: the reader may have looked at a replica that
            // lags far behind, and the transaction may be long over (rule R6).
            TxnStatus::Missing | TxnStatus::Aborted => self.ended(Fate::NotBelow, true),
            TxnStatus::Staging { .. } if again || bugs::on(Bug::StagingIsUndecided) => {
                self.ended(Fate::NotBelow, false)
            }
            // The client may have its acknowledgement already.
            TxnStatus::Staging { listed } => {
                self.steps.end_all();
                self.stage = Stage::Looking { commit_ts: None };
                for key in listed {
                    self.steps.begin(Request::Look { key, at: Some(self.at) }, actions);
                }
                None
            }
        }
    }

    fn ended(&mut self, fate: Fate, confirm: bool) -> Option<Learnt> {
        self.steps.end_all();
        self.stage = Stage::Ended;
        Some(Learnt { fate, confirm })
    }
}
