//! Applying one entry: the order of timestamps, whether a command is admitted, and which file runs it.

use bytes::Bytes;

use super::{
    Command, Counts, Entry, State, batch, changes, checksum, commit, counter, decide, finish, gc, mark,
    prepare, single,
};
use crate::codec::keyspace;
use crate::engine::Overlay;
use crate::mvcc::{self, Version};
use crate::types::{
    Decision, KeyRange, Operation, Outcome, Refusal, RequestId, Result, Timestamp, TxnCommand, TxnId,
    TxnWrite, limits,
};

/// Who asks, at which timestamp, and what a shard knows besides its rows: what every operation needs to
/// know besides itself.
#[derive(Clone, Copy)]
pub(super) struct Context<'s> {
    /// Recognises a retry (rule R8).
    pub id: RequestId,
    /// The timestamp that everything written bears.
    pub timestamp: Timestamp,
    /// What was superseded or removed at or before it counts as gone.
    pub safe_point: Timestamp,
    /// How many locks there are: none cost nothing.
    pub counts: Counts,
    /// The shard's range.
    pub range: &'s KeyRange,
    /// Whose locks don't stand in its way: only a prepare may come again over its own.
    pub passes: Option<TxnId>,
}

impl Context<'_> {
    /// Why the id is too old to do anything new under it, if it is: an earlier attempt would no longer be
    /// recognised, and of a transaction the versions it read may be gone (rule R7).
    pub(super) fn too_old(&self) -> Option<Refusal> {
        let age_ms = self.timestamp.ms().saturating_sub(self.id.seen.ms());
        (age_ms > limits::MAX_COMMAND_AGE_MS || self.id.seen < self.safe_point)
            .then_some(Refusal::TooOld { age_ms })
    }
}

/// A command of a transaction at work: what it reads and writes through, and what it keeps count of.
pub(super) struct Work<'a, 'v> {
    pub overlay: &'a mut Overlay<'v>,
    pub counts: &'a mut Counts,
    pub range: &'a KeyRange,
    pub context: Context<'a>,
}

impl<'a> Work<'a, '_> {
    /// The context, with the counts as they are now.
    pub(super) fn context(&self) -> Context<'a> {
        Context { counts: *self.counts, ..self.context }
    }
}

/// Applies an entry: reads through `overlay`, leaves its writes there, and brings `state` up to date.
/// Answers an outcome for each command, in their order; none for a raise of the ceiling.
///
/// The same entry over the same rows and the same state gives the same on every replica, and does not
/// depend on how many entries share an overlay.
///
/// # Errors
///
/// Those of the engine, and `Corrupt` where rows are not what they must be. Then `overlay` and `state` are
/// of no use any more and the replica stops. Whatever all replicas meet alike is an outcome, not an error.
pub fn apply(state: &mut State, overlay: &mut Overlay<'_>, entry: &Entry) -> Result<Vec<Outcome>> {
    let written_before = overlay.batch().entries().len();
    let outcomes = match entry {
        Entry::Commands(commands) => {
            let outcomes = apply_commands(state, overlay, commands)?;
            changes::record(state, overlay, written_before)?;
            outcomes
        }
        Entry::RaiseCeiling { ceiling } => {
            raise_ceiling(state, overlay, *ceiling)?;
            Vec::new()
        }
    };
    let written = &overlay.batch().entries()[written_before..];
    state.checksum = checksum::chain(state.checksum, state.closed, written);
    Ok(outcomes)
}

/// Applies a sequencer's batch. If any timestamp does not rise, the whole entry is void: its batch was
/// fenced and ordered as one, so one wrong timestamp means that the fence has failed for all of it, and a
/// part of it must not take effect out of its order.
fn apply_commands(
    state: &mut State,
    overlay: &mut Overlay<'_>,
    commands: &[Command],
) -> Result<Vec<Outcome>> {
    let mut last = state.closed;
    for command in commands {
        if command.timestamp <= last {
            let refused = Outcome::Refused(Refusal::StaleTimestamp { closed: state.closed });
            return Ok(vec![refused; commands.len()]);
        }
        last = command.timestamp;
    }
    let mut outcomes = Vec::with_capacity(commands.len());
    for command in commands {
        outcomes.push(apply_command(state, overlay, command)?);
    }
    state.closed = last;
    Ok(outcomes)
}

fn apply_command(state: &mut State, overlay: &mut Overlay<'_>, command: &Command) -> Result<Outcome> {
    if let Operation::AdvanceSafePoint { safe_point, truncated } = command.operation {
        // It has no effect that a retry could repeat: no id is looked at.
        return gc::advance_safe_point(state, &*overlay, command.timestamp, safe_point, truncated);
    }
    let State { descriptor, safe_point, counts, .. } = state;
    let range = &descriptor.range;
    let (id, timestamp, safe_point) = (command.id, command.timestamp, *safe_point);
    let prepares = matches!(command.operation, Operation::Txn(TxnCommand::Prepare { .. }));
    let passes = prepares.then_some(id);
    let context = Context { id, timestamp, safe_point, counts: *counts, range, passes };
    if let Some(refusal) = refuse(context, &command.operation) {
        return Ok(Outcome::Refused(refusal));
    }
    match &command.operation {
        Operation::Put { key, value } => single::put(overlay, context, key, value),
        Operation::Delete { key } => single::delete(overlay, context, key),
        Operation::CompareAndSwap { key, expect, value } => {
            single::compare_and_swap(overlay, context, key, expect, value.as_ref())
        }
        Operation::Add { key, delta } => counter::add(overlay, context, key, *delta),
        Operation::Batch { conditions, then, otherwise } => {
            batch::run(overlay, context, batch::Body { conditions, then, otherwise })
        }
        Operation::Txn(command) => run_txn(&mut Work { overlay, counts, range, context }, command),
        Operation::AdvanceSafePoint { .. } => Ok(Outcome::SafePoint { safe_point }),
    }
}

fn run_txn(work: &mut Work<'_, '_>, command: &TxnCommand) -> Result<Outcome> {
    match command {
        TxnCommand::Commit { primary, part } => commit::commit(work, primary, part),
        TxnCommand::Prepare { primary, part, listed } => {
            prepare::prepare(work, prepare::Body { primary, part, listed: listed.as_ref() })
        }
        TxnCommand::Decide { primary, commit_ts, spans } => decide::decide(work, primary, *commit_ts, spans),
        TxnCommand::Abort { primary, certain, spans } => decide::abort(work, primary, *certain, spans),
        TxnCommand::Mark { key } => mark::mark(work, key),
        TxnCommand::Finish { span, decision } => finish::finish(work, span, *decision),
        TxnCommand::Forget { primary } => decide::forget(work, primary),
    }
}

/// Why a command is not run at all, if it is not. These refusals leave no marker: none depends on what the
/// shard's keys hold, and a retry, which comes at a later timestamp, may well find the shard's range
/// changed. It then still takes effect at most once, since a refused attempt had none.
fn refuse(context: Context<'_>, operation: &Operation) -> Option<Refusal> {
    if !in_range(context.range, operation) {
        return Some(Refusal::OutOfRange);
    }
    // The search for an earlier attempt ends at `seen`, so an effect must lie above it.
    if context.id.seen >= context.timestamp {
        return Some(Refusal::FutureId { seen: context.id.seen });
    }
    match operation {
        // A commit or a prepare looks for its own trace before its age; the others end what was begun in
        // time, however late they come (rule R7).
        Operation::Txn(command) => {
            let decided = decided_at(command).filter(|commit_ts| *commit_ts >= context.timestamp);
            decided.map(|commit_ts| Refusal::FutureId { seen: commit_ts })
        }
        _ => context.too_old(),
    }
}

/// Whether the shard holds all that the operation names. Ranges that are to be locked must lie in it whole: the
/// rest would be locked nowhere.
fn in_range(range: &KeyRange, operation: &Operation) -> bool {
    let named = operation.keys().into_iter().all(|key| range.contains(key));
    let covered = |read: &KeyRange| !read.is_empty() && range.covers(read);
    named
        && match operation {
            Operation::Txn(TxnCommand::Commit { part, .. }) => part.ranges.iter().all(covered),
            Operation::Txn(TxnCommand::Prepare { primary, part, listed }) => {
                // A STAGING record stands only where the primary key is locked.
                let staged =
                    listed.is_none() || part.writes.iter().map(TxnWrite::key).any(|key| key == primary);
                part.ranges.iter().all(covered) && staged && !part.is_empty()
            }
            _ => true,
        }
}

/// The commit timestamp that a command bears. It was handed out before the command came.
fn decided_at(command: &TxnCommand) -> Option<Timestamp> {
    match command {
        TxnCommand::Decide { commit_ts, .. } => *commit_ts,
        TxnCommand::Finish { decision: Decision::Committed { commit_ts }, .. } => Some(*commit_ts),
        _ => None,
    }
}

/// Raises the ceiling in the state, which is the authority, and in the row by which it can be read like any
/// other key. The row keeps no history: a raise has no timestamp of its own to keep it under. Ignored
/// where it raises nothing, and in a shard that does not hold the ceiling.
fn raise_ceiling(state: &mut State, overlay: &mut Overlay<'_>, ceiling: Timestamp) -> Result<()> {
    if ceiling <= state.ceiling || !state.descriptor.range.contains(keyspace::TIMESTAMP_CEILING) {
        return Ok(());
    }
    state.ceiling = ceiling;
    let key = Bytes::from_static(keyspace::TIMESTAMP_CEILING);
    let previous = mvcc::current(&*overlay, &key, state.safe_point)?;
    let nobody = RequestId { seen: Timestamp::ZERO, unique: 0 };
    let version = Version::put(previous.as_ref(), state.closed, nobody, ceiling.to_string().into());
    mvcc::overwrite(overlay, &key, &version);
    Ok(())
}
