//! Applying one entry: the order of timestamps, whether a command is admitted, and which file runs it.

use bytes::Bytes;

use super::{Command, Entry, State, batch, checksum, counter, single};
use crate::codec::keyspace;
use crate::engine::Overlay;
use crate::mvcc::{self, Version};
use crate::types::{Operation, Outcome, Refusal, RequestId, Result, Timestamp, limits};

/// Who asks, and at which timestamp: what every operation needs to know besides itself.
#[derive(Clone, Copy)]
pub(super) struct Context {
    /// Recognises a retry (rule R8).
    pub id: RequestId,
    /// The timestamp that everything written bears.
    pub timestamp: Timestamp,
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
        Entry::Commands(commands) => apply_commands(state, overlay, commands)?,
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

fn apply_command(state: &State, overlay: &mut Overlay<'_>, command: &Command) -> Result<Outcome> {
    if let Some(refusal) = refuse(state, command) {
        return Ok(Outcome::Refused(refusal));
    }
    let context = Context { id: command.id, timestamp: command.timestamp };
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
    }
}

/// Why a command is not run at all, if it is not. These refusals leave no marker: none depends on what the
/// shard's keys hold, and a retry, which comes at a later timestamp, may well find the shard's range
/// changed. It then still takes effect at most once, since a refused attempt had none.
fn refuse(state: &State, command: &Command) -> Option<Refusal> {
    let range = &state.descriptor.range;
    if !command.operation.keys().into_iter().all(|key| range.contains(key)) {
        return Some(Refusal::OutOfRange);
    }
    // The search for an earlier attempt ends at `seen`, so an effect must lie above it.
    if command.id.seen >= command.timestamp {
        return Some(Refusal::FutureId { seen: command.id.seen });
    }
    let age_ms = command.timestamp.ms() - command.id.seen.ms();
    (age_ms > limits::MAX_COMMAND_AGE_MS).then_some(Refusal::TooOld { age_ms })
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
    let previous = mvcc::current(&*overlay, &key)?;
    let nobody = RequestId { seen: Timestamp::ZERO, unique: 0 };
    let version = Version::put(previous.as_ref(), state.closed, nobody, ceiling.to_string().into());
    mvcc::overwrite(overlay, &key, &version);
    Ok(())
}
