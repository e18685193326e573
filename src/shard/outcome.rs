//! Retries: how an earlier attempt of a command is recognised, and what it is answered (rule R8).
//!
//! A command that wrote one key leaves its id in the version, and its outcome follows from that version.
//! Everything else (a failed condition, the removal of an absent key, a refusal that depends on what
//! keys hold, every batch that may write) leaves a marker that holds the outcome itself, in the same apply.
//! So an attempt leaves either, never both, and never neither once it was admitted. A batch without any
//! writing step leaves nothing: it has no effect that could happen twice, and a retry looks again. Nor does
//! a command that met a lock: it comes again after the release (rule R9).
//!
//! What recognising costs. A put reads `current`, which it needs anyway, and nothing else unless the key was
//! written since the caller last heard of the store: a put that is admitted always writes, so it never
//! leaves a marker, and none is looked for. Delete, compare-and-swap and add look for a marker besides, one
//! point read that nearly always finds nothing (which a filter on the family answers from memory). A
//! batch that may write looks for the marker only.

use super::apply::Context;
use super::record::{self, TxnRow};
use crate::engine::{Overlay, View};
use crate::mvcc::Version;
use crate::types::{Outcome, Result};

/// The outcome in the marker that an earlier attempt left, if one did. `routing_key` must be the same for
/// every attempt and whatever comes of it: the smallest key that the operation names.
pub(super) fn marked(view: &dyn View, routing_key: &[u8], context: Context<'_>) -> Result<Option<Outcome>> {
    let row = record::get(view, routing_key, context.id, context.safe_point)?;
    Ok(row.map(TxnRow::outcome))
}

/// Leaves a marker for later attempts, and gives the outcome back.
pub(super) fn mark(
    overlay: &mut Overlay<'_>,
    routing_key: &[u8],
    context: Context<'_>,
    outcome: Outcome,
) -> Outcome {
    record::put_outcome(overlay, routing_key, context.id, outcome.clone());
    outcome
}

/// The outcome of the put, delete or compare-and-swap that wrote `version`.
pub(super) fn of_version(version: &Version) -> Outcome {
    let commit_ts = version.commit_ts;
    match version.value {
        Some(_) => Outcome::Put { commit_ts, version: version.number, create_ts: version.create_ts },
        None => Outcome::Deleted { commit_ts, existed: true },
    }
}
