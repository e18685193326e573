//! The second half of every commit, whoever carries it on, coordinator or recovery: the record of the decision,
//! the release of all locks, the end of the record.
//!
//! ```text
//! deciding ──────────────► finishing ──► forgetting ──► ended      committed
//!    │                        ▲   ▲
//! aborting ◄──► marking       │   └──── (aborted: no record is left to forget)
//!    └────────────────────────┘
//! ```
//!
//! What the primary answers is what became of the transaction; what a participant says beats it never (rule R5).

use bytes::Bytes;

use super::commit::merge;
use super::cut::{Cut, without};
use super::step::{Action, Event, Request, Step, Steps, Verdict};
use crate::bugs::{self, Bug};
use crate::types::{AbortReason, Decision, KeyRange, Outcome, Timestamp, TxnCommand, TxnOutcome, TxnStatus};

/// Where the work stands.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Stage {
    /// The first half is not over.
    Before,
    /// COMMITTED is on its way to the primary.
    Deciding { commit_ts: Option<Timestamp> },
    /// ABORTED is on its way to the primary.
    Aborting,
    /// The listed keys get rollback markers, unless they are locked: then at the latest of these timestamps
    /// the transaction is committed (rule R5).
    Marking { commit_ts: Option<Timestamp> },
    /// It is committed, and the record is asked for where the locks lie.
    Learning { commit_ts: Timestamp },
    /// The locks are released.
    Finishing(Decision),
    /// All of them are; so the record may go (rule R7).
    Forgetting,
    /// Nothing is left to do.
    Ended,
}

/// See the module's text.
#[derive(Clone, Debug)]
pub(super) struct Ending {
    primary: Bytes,
    stage: Stage,
    pub(super) steps: Steps,
    pub(super) cut: Cut,
    /// Where locks of the transaction may lie.
    spans: Vec<KeyRange>,
    /// Whether `spans` holds all of them. If not, the record stays: others may need it.
    complete: bool,
    /// Where locks surely are no more, as long as the transaction is not committed.
    free: Vec<KeyRange>,
    /// Whether the client has been told.
    acknowledged: bool,
    /// What an abort means to the client, where this is known better than the record says it.
    if_aborted: Option<Verdict>,
}

/// The commit timestamp of a parallel commit: the largest of its prepare timestamps.
pub(super) fn commit_ts(of_others: Option<Timestamp>, prepare_ts: Timestamp) -> Timestamp {
    match of_others {
        None => prepare_ts,
        Some(others) if bugs::on(Bug::CommitAtSmallest) => others.min(prepare_ts),
        Some(others) => others.max(prepare_ts),
    }
}

impl Ending {
    /// The second half of a commit that is in its first. `spans` is where its locks may lie as far as known.
    pub(super) fn new(primary: Bytes, cut: Cut, spans: Vec<KeyRange>, complete: bool) -> Self {
        Self {
            primary,
            stage: Stage::Before,
            steps: Steps::default(),
            cut,
            spans: merge(spans),
            complete,
            free: Vec::new(),
            acknowledged: false,
            if_aborted: None,
        }
    }

    /// Whether the first half is over.
    pub(super) fn begun(&self) -> bool {
        self.stage != Stage::Before
    }

    /// Whether nothing is left to do.
    pub(super) fn ended(&self) -> bool {
        self.stage == Stage::Ended
    }

    /// Says where all locks may lie.
    pub(super) fn lies_in(&mut self, spans: Vec<KeyRange>) {
        self.spans = merge(spans);
        self.complete = true;
    }

    /// Says that no locks lie in a span, unless the transaction is committed after all.
    pub(super) fn is_free(&mut self, span: Option<KeyRange>) {
        self.free.extend(span);
    }

    /// Says what an abort means to the client. The first to say it is right.
    pub(super) fn if_aborted(&mut self, verdict: Verdict) {
        self.if_aborted.get_or_insert(verdict);
    }

    /// Tells the client, once.
    pub(super) fn acknowledge(&mut self, verdict: Verdict, actions: &mut Vec<Action>) {
        if !self.acknowledged {
            self.acknowledged = true;
            actions.push(Action::Acknowledge(verdict));
        }
    }

    /// All is done.
    pub(super) fn end(&mut self, actions: &mut Vec<Action>) {
        self.steps.end_all();
        self.stage = Stage::Ended;
        actions.push(Action::Ended);
    }

    /// Writes COMMITTED at the primary: at the largest prepare timestamp, or (`None`) at that of its own entry.
    pub(super) fn decide(&mut self, commit_ts: Option<Timestamp>, actions: &mut Vec<Action>) {
        self.steps.end_all();
        self.stage = Stage::Deciding { commit_ts };
        let (primary, spans) = (self.primary.clone(), self.spans.clone());
        self.steps.send(&self.primary, TxnCommand::Decide { primary, commit_ts, spans }, actions);
        if let Some(commit_ts) = commit_ts.filter(|_| bugs::on(Bug::FinishBeforeCommitted)) {
            self.send_finishes(Decision::Committed { commit_ts }, actions);
        }
    }

    /// Writes ABORTED at the primary. `certain`: a participant has refused its prepare, or bears a marker.
    pub(super) fn abort(&mut self, certain: bool, actions: &mut Vec<Action>) {
        self.steps.end_all();
        self.stage = Stage::Aborting;
        let (primary, spans) = (self.primary.clone(), self.spans.clone());
        self.steps.send(&self.primary, TxnCommand::Abort { primary, certain, spans }, actions);
    }

    /// Places rollback markers at the listed keys, which shows whether all of them are locked (rule R5).
    pub(super) fn mark(&mut self, listed: &[Bytes], actions: &mut Vec<Action>) {
        self.steps.end_all();
        if !self.complete {
            self.lies_in(self.cut.spans(listed));
        }
        self.stage = Stage::Marking { commit_ts: None };
        for key in listed {
            self.steps.send(key, TxnCommand::Mark { key: key.clone() }, actions);
        }
    }

    /// The transaction is committed, says whoever must know. Its locks are released; where they may lie in
    /// more places than are known here, the record is asked first.
    pub(super) fn committed(&mut self, commit_ts: Timestamp, actions: &mut Vec<Action>) {
        self.acknowledge(Verdict::Committed { commit_ts }, actions);
        if self.complete {
            self.finish(Decision::Committed { commit_ts }, actions);
        } else {
            self.steps.end_all();
            self.stage = Stage::Learning { commit_ts };
            self.steps.begin(Request::Ask { primary: self.primary.clone(), at: None }, actions);
        }
    }

    /// The primary says that the transaction is aborted.
    pub(super) fn aborted(&mut self, reason: AbortReason, actions: &mut Vec<Action>) {
        let verdict = self.if_aborted.clone().unwrap_or(Verdict::Aborted { reason });
        self.acknowledge(verdict, actions);
        self.finish(Decision::Aborted, actions);
    }

    /// Releases the locks.
    pub(super) fn finish(&mut self, decision: Decision, actions: &mut Vec<Action>) {
        self.steps.end_all();
        self.stage = Stage::Finishing(decision);
        self.send_finishes(decision, actions);
        if bugs::on(Bug::ForgetEarly) {
            let primary = self.primary.clone();
            let step = self.steps.send(&self.primary, TxnCommand::Forget { primary }, actions);
            self.steps.end(step);
        }
        self.go_on_if_finished(decision, actions);
    }

    fn send_finishes(&mut self, decision: Decision, actions: &mut Vec<Action>) {
        let mut spans: Vec<KeyRange> = self.spans.iter().flat_map(|span| self.cut.pieces(span)).collect();
        if decision == Decision::Aborted {
            spans.retain(|span| !self.free.iter().any(|free| free.covers(span)));
        }
        for span in spans {
            self.send_finish(span, decision, actions);
        }
    }

    fn send_finish(&mut self, span: KeyRange, decision: Decision, actions: &mut Vec<Action>) {
        let to = span.start.clone();
        self.steps.send(&to, TxnCommand::Finish { span, decision }, actions);
    }

    fn go_on_if_finished(&mut self, decision: Decision, actions: &mut Vec<Action>) {
        if !self.steps.is_empty() {
            return;
        }
        // An aborted transaction's record is a marker: it stays until nothing of the transaction can come any
        // more. So does the record of one whose other locks are not known here.
        if decision == Decision::Aborted || !self.complete {
            return self.end(actions);
        }
        self.stage = Stage::Forgetting;
        let primary = self.primary.clone();
        self.steps.send(&self.primary, TxnCommand::Forget { primary }, actions);
    }

    /// What the edge tells, once the first half is over.
    pub(super) fn on(&mut self, event: Event, actions: &mut Vec<Action>) {
        match event {
            Event::Outcome { step, outcome } if self.steps.get(step).is_some() => match outcome {
                Outcome::Txn(outcome) => self.on_outcome(step, outcome, actions),
                // Out of range, or a void entry: it was not done, and comes again.
                _ => self.steps.failed(step),
            },
            Event::Status { step, status } if self.steps.get(step).is_some() => {
                self.on_status(status, actions);
            }
            Event::Failed { step } => self.steps.failed(step),
            Event::Moved { step, shards } => self.on_moved(step, &shards, actions),
            Event::Resend => self.steps.resend(actions),
            // There is no way back from here, and nobody needs one.
            Event::GiveUp => {}
            Event::Outcome { .. } | Event::Status { .. } | Event::Looked { .. } => {}
        }
    }

    fn on_outcome(&mut self, step: Step, outcome: TxnOutcome, actions: &mut Vec<Action>) {
        match (&self.stage, outcome) {
            (
                Stage::Deciding { .. } | Stage::Aborting | Stage::Marking { .. },
                TxnOutcome::Committed { commit_ts },
            ) => self.committed(commit_ts, actions),
            (Stage::Deciding { .. }, TxnOutcome::Aborted { reason }) => self.aborted(reason, actions),
            // All its keys were locked, so it was committed; what is left of that is nothing.
            (Stage::Deciding { commit_ts: Some(_) }, TxnOutcome::NotPrepared) => self.end(actions),
            (Stage::Deciding { commit_ts: None }, TxnOutcome::NotPrepared) => self.abort(false, actions),
            (Stage::Aborting, TxnOutcome::Aborted { reason }) => {
                self.released_primary();
                self.aborted(reason, actions);
            }
            (Stage::Aborting, TxnOutcome::AbortedLate) => {
                self.acknowledge(Verdict::Undetermined, actions);
                self.released_primary();
                self.finish(Decision::Aborted, actions);
            }
            (Stage::Aborting, TxnOutcome::StillStaging { listed }) => self.mark(&listed, actions),
            (Stage::Marking { commit_ts: so_far }, TxnOutcome::StillLocked { prepare_ts }) => {
                let so_far = commit_ts(*so_far, prepare_ts);
                self.stage = Stage::Marking { commit_ts: Some(so_far) };
                self.steps.end(step);
                if self.steps.is_empty() {
                    self.decide(Some(so_far), actions);
                }
            }
            (Stage::Marking { .. }, TxnOutcome::Marked | TxnOutcome::Aborted { .. }) => {
                self.abort(true, actions);
            }
            (Stage::Finishing(decision), TxnOutcome::Finished { covered }) => {
                self.on_finished(step, &covered, *decision, actions);
            }
            (Stage::Forgetting, TxnOutcome::Forgotten) => self.end(actions),
            // No answer to what was asked. Asking again does no harm.
            _ => self.steps.failed(step),
        }
    }

    /// The abort has released what lies in the primary's shard.
    fn released_primary(&mut self) {
        self.is_free(Some(self.cut.shard_of(&self.primary)));
    }

    /// A shard has released what it holds of a span. The rest of it is in other shards (rule R10).
    fn on_finished(&mut self, step: Step, covered: &KeyRange, decision: Decision, actions: &mut Vec<Action>) {
        let Some(Request::Send { command: TxnCommand::Finish { span, .. }, .. }) = self.steps.get(step)
        else {
            return self.steps.failed(step);
        };
        let rest = without(span, covered);
        if rest.first() == Some(span) {
            return self.steps.failed(step);
        }
        self.steps.end(step);
        for span in rest {
            self.send_finish(span, decision, actions);
        }
        self.go_on_if_finished(decision, actions);
    }

    fn on_status(&mut self, status: TxnStatus, actions: &mut Vec<Action>) {
        if let Stage::Learning { commit_ts } = self.stage {
            if let TxnStatus::Committed { spans, .. } = status
                && !spans.is_empty()
            {
                self.lies_in(spans);
            }
            self.finish(Decision::Committed { commit_ts }, actions);
        }
    }

    /// A finish is cut by what is known now; a command of one key only waits for its turn. So does what the new
    /// cut leaves as it was: else a wrong map would send it round and round.
    fn on_moved(&mut self, step: Step, shards: &[KeyRange], actions: &mut Vec<Action>) {
        self.cut = Cut::new(shards);
        let Some(Request::Send { command: TxnCommand::Finish { span, decision }, .. }) = self.steps.get(step)
        else {
            return self.steps.failed(step);
        };
        let (span, decision) = (span.clone(), *decision);
        let pieces = self.cut.pieces(&span);
        if pieces.first() == Some(&span) {
            return self.steps.failed(step);
        }
        self.steps.end(step);
        for piece in pieces {
            self.send_finish(piece, decision, actions);
        }
    }
}
