//! The coordinator: carries one commit from its first command to the end of its record.
//!
//! One shard: one `Commit`. Many: one `Prepare` to each; when all are applied a parallel commit is
//! acknowledged, a classic one gets its decision first; then what [`ending`](super::ending) does. A refused
//! prepare aborts it.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::commit::{Path, TxnCommit};
use super::cut::Cut;
use super::ending::{self, Ending};
use super::step::{Action, Event, Step, Verdict};
use crate::bugs::{self, Bug};
use crate::types::{
    AbortReason, KeyRange, Lock, Outcome, Refusal, Timestamp, TxnCommand, TxnId, TxnOutcome, TxnPart,
};

/// The first half; the second is an [`Ending`].
#[derive(Clone, Debug)]
enum Front {
    /// All of it lies in one shard.
    Commit {
        step: Step,
        /// The lock that was in the way.
        met: Option<Lock>,
    },
    /// Prepares are under way or applied.
    Prepare(BTreeMap<Step, Piece>),
}

/// The part of one shard.
#[derive(Clone, Debug)]
struct Piece {
    part: TxnPart,
    prepare_ts: Option<Timestamp>,
}

/// Carries one commit. Total: no event, in whatever order and however often it comes, makes it panic or do
/// harm. Where its node stops, whoever meets a lock carries on (see [`Recovery`](super::Recovery)); the same commit,
/// sent again, makes a new coordinator that joins in.
#[derive(Clone, Debug)]
pub struct Coordinator {
    commit: TxnCommit,
    primary: Bytes,
    path: Path,
    front: Front,
    ending: Ending,
}

impl Coordinator {
    /// Begins a commit that [`normalise`](TxnCommit::normalise) has passed. `shards` are the ranges of the
    /// shards as far as known; they may be out of date.
    pub fn start(commit: TxnCommit, shards: &[KeyRange]) -> (Self, Vec<Action>) {
        let primary = commit.primary().cloned().unwrap_or_default();
        let cut = Cut::new(shards);
        let parts = cut.parts(&commit.part);
        let mut actions = Vec::new();
        let mut ending = Ending::new(primary.clone(), cut, Vec::new(), true);
        let front = if parts.len() == 1 {
            let command = TxnCommand::Commit { primary: primary.clone(), part: commit.part.clone() };
            let step = ending.steps.send(&primary, command, &mut actions);
            Front::Commit { step, met: None }
        } else {
            Front::Prepare(BTreeMap::new())
        };
        let path = commit.path();
        let mut coordinator = Self { commit, primary, path, front, ending };
        if parts.len() != 1 {
            coordinator.prepare(parts, &mut actions);
        }
        (coordinator, actions)
    }

    /// The transaction, which is the id of every command sent.
    pub fn id(&self) -> TxnId {
        self.commit.id
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
            Event::Outcome { step, outcome } if self.ending.steps.get(step).is_some() => match &self.front {
                Front::Commit { .. } => self.on_commit(step, outcome, actions),
                Front::Prepare(_) => self.on_prepare(step, outcome, actions),
            },
            Event::Failed { step } => self.ending.steps.failed(step),
            Event::Moved { step, shards } => self.on_moved(step, &shards, actions),
            Event::Resend => self.ending.steps.resend(actions),
            Event::GiveUp => self.give_up(actions),
            Event::Outcome { .. } | Event::Status { .. } | Event::Looked { .. } => {}
        }
    }

    fn on_commit(&mut self, step: Step, outcome: Outcome, actions: &mut Vec<Action>) {
        let verdict = match outcome {
            Outcome::Txn(TxnOutcome::Committed { commit_ts }) => Verdict::Committed { commit_ts },
            Outcome::Txn(TxnOutcome::Aborted { reason }) => Verdict::Aborted { reason },
            // An earlier attempt may have been committed, and nobody knows any more.
            Outcome::Refused(Refusal::TooOld { .. }) => Verdict::Undetermined,
            Outcome::Refused(refusal @ Refusal::FutureId { .. }) => Verdict::Refused(refusal),
            // Not done; it comes again after the release.
            Outcome::Refused(Refusal::Locked(lock)) => {
                if let Front::Commit { met, .. } = &mut self.front {
                    *met = Some(lock);
                }
                return self.ending.steps.failed(step);
            }
            Outcome::Refused(_) => return self.ending.steps.failed(step),
            // No answer to what was asked.
            _ => return self.ending.steps.failed(step),
        };
        self.ending.acknowledge(verdict, actions);
        self.ending.end(actions);
    }

    fn on_prepare(&mut self, step: Step, outcome: Outcome, actions: &mut Vec<Action>) {
        match outcome {
            Outcome::Txn(TxnOutcome::Prepared { prepare_ts }) => self.prepared(step, prepare_ts, actions),
            // Somebody else has carried it on.
            Outcome::Txn(TxnOutcome::Committed { commit_ts }) => {
                self.ending.lies_in(self.spans());
                self.ending.committed(commit_ts, actions);
            }
            Outcome::Txn(TxnOutcome::Aborted { reason }) => {
                // All of a part is locked, or none of it.
                if let Front::Prepare(pieces) = &self.front {
                    self.ending.is_free(pieces.get(&step).and_then(|piece| piece.part.span()));
                }
                self.undo(true, Verdict::Aborted { reason }, actions);
            }
            // Neither leaves a trace, so that an earlier attempt may have been prepared.
            Outcome::Refused(Refusal::TooOld { .. }) => {
                self.undo(false, Verdict::Aborted { reason: AbortReason::RolledBack }, actions);
            }
            Outcome::Refused(refusal @ Refusal::FutureId { .. }) => {
                self.undo(false, Verdict::Refused(refusal), actions);
            }
            _ => self.ending.steps.failed(step),
        }
    }

    fn prepared(&mut self, step: Step, prepare_ts: Timestamp, actions: &mut Vec<Action>) {
        let Front::Prepare(pieces) = &mut self.front else { return };
        if let Some(piece) = pieces.get_mut(&step) {
            piece.prepare_ts = Some(prepare_ts);
        }
        self.ending.steps.end(step);
        let applied = pieces.values().map(|piece| piece.prepare_ts).collect::<Option<Vec<_>>>();
        let Some(applied) = applied else { return };
        let Some(commit_ts) =
            applied.into_iter().fold(None, |so_far, prepare_ts| Some(ending::commit_ts(so_far, prepare_ts)))
        else {
            return;
        };
        self.ending.lies_in(self.spans());
        match self.path {
            Path::Parallel => {
                self.ending.acknowledge(Verdict::Committed { commit_ts }, actions);
                self.ending.decide(Some(commit_ts), actions);
            }
            Path::Classic => self.ending.decide(None, actions),
        }
    }

    /// Turns back, as far as there is a way back.
    fn undo(&mut self, certain: bool, verdict: Verdict, actions: &mut Vec<Action>) {
        self.ending.lies_in(self.spans());
        self.ending.if_aborted(verdict);
        self.ending.abort(certain, actions);
    }

    /// Where locks may lie.
    fn spans(&self) -> Vec<KeyRange> {
        match &self.front {
            Front::Commit { .. } => self.commit.part.span().into_iter().collect(),
            Front::Prepare(pieces) => pieces.values().filter_map(|piece| piece.part.span()).collect(),
        }
    }

    /// Sends a prepare to each shard.
    fn prepare(&mut self, parts: Vec<TxnPart>, actions: &mut Vec<Action>) {
        for part in parts {
            let has_primary = part.writes.iter().any(|write| *write.key() == self.primary);
            let listed = (self.path == Path::Parallel && has_primary).then(|| self.commit.part.keys());
            let to = part.keys().first().or(part.ranges.first().map(|range| &range.start)).cloned();
            let command = TxnCommand::Prepare { primary: self.primary.clone(), part: part.clone(), listed };
            let step = self.ending.steps.send(&to.unwrap_or_default(), command, actions);
            if let Front::Prepare(pieces) = &mut self.front {
                pieces.insert(step, Piece { part, prepare_ts: None });
            }
        }
    }

    /// Cuts what went to the wrong place by what is known now. An earlier attempt of the whole may have been
    /// applied before the shard was cut: its locks, versions and markers went with their keys, and each piece
    /// finds its own. What the new cut leaves as it was waits for its turn: else a wrong map would send it round
    /// and round.
    fn on_moved(&mut self, step: Step, shards: &[KeyRange], actions: &mut Vec<Action>) {
        let whole = match &self.front {
            Front::Commit { step: under_way, .. } if *under_way == step => &self.commit.part,
            Front::Prepare(pieces) => match pieces.get(&step) {
                Some(piece) if piece.prepare_ts.is_none() => &piece.part,
                _ => return,
            },
            Front::Commit { .. } => return,
        };
        self.ending.cut = Cut::new(shards);
        let parts = self.ending.cut.parts(whole);
        if parts.len() <= 1 {
            return self.ending.steps.failed(step);
        }
        self.ending.steps.end(step);
        match &mut self.front {
            Front::Prepare(pieces) => {
                pieces.remove(&step);
            }
            Front::Commit { .. } => self.front = Front::Prepare(BTreeMap::new()),
        }
        self.prepare(parts, actions);
    }

    /// The client waits no longer. Nothing is decided, so it is undone, by a marker at the primary: a command
    /// that is still on its way somewhere finds it there.
    fn give_up(&mut self, actions: &mut Vec<Action>) {
        let reason = match &self.front {
            Front::Commit { met: Some(lock), .. } => AbortReason::Locked(lock.clone()),
            _ => AbortReason::RolledBack,
        };
        if bugs::on(Bug::GivenUpIsAborted) && matches!(self.front, Front::Commit { .. }) {
            self.ending.acknowledge(Verdict::Aborted { reason }, actions);
            return self.ending.end(actions);
        }
        self.undo(false, Verdict::Aborted { reason }, actions);
    }
}
