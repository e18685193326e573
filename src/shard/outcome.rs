//! Retries: how an earlier attempt of a command is recognised, and what it is answered (rule R8).
//!
//! A command that wrote one key leaves its id in the version, and its outcome follows from that version.
//! Everything else (a failed condition, the removal of an absent key, a refusal that depends on what
//! keys hold, every batch that may write) leaves a marker that holds the outcome itself, in the same apply.
//! So an attempt leaves either, never both, and never neither once it was admitted. A batch without any
//! writing step leaves nothing: it has no effect that could happen twice, and a retry looks again.
//!
//! What recognising costs. A put reads `current`, which it needs anyway, and nothing else unless the key was
//! written since the caller last heard of the store: a put that is admitted always writes, so it never
//! leaves a marker, and none is looked for. Delete, compare-and-swap and add look for a marker besides, one
//! point read that nearly always finds nothing (which a filter on the family answers from memory). A
//! batch that may write looks for the marker only.

use bytes::{BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};

use super::apply::Context;
use crate::codec::{self, ordered};
use crate::engine::{Family, Overlay, View};
use crate::mvcc::Version;
use crate::types::{Outcome, RequestId, Result};

/// What a row of `txn` holds.
#[derive(Serialize, Deserialize)]
enum TxnRow {
    /// What came of a command that can't be told from a version.
    Outcome(Outcome),
}

/// The marker's key. `routing_key` must be the same for every attempt and whatever comes of it: the
/// smallest key that the operation names.
fn marker_key(routing_key: &[u8], id: RequestId) -> Bytes {
    let mut key = BytesMut::with_capacity(routing_key.len() + 2 + 8 + 16);
    ordered::put_bytes(&mut key, routing_key);
    key.put_u64(id.seen.0);
    key.put_u128(id.unique);
    key.freeze()
}

/// The outcome in the marker that an earlier attempt left, if one did.
pub(super) fn marked(view: &dyn View, routing_key: &[u8], id: RequestId) -> Result<Option<Outcome>> {
    let Some(row) = view.get(Family::Txn, &marker_key(routing_key, id))? else { return Ok(None) };
    let TxnRow::Outcome(outcome) = codec::decode(&row, "an outcome marker")?;
    Ok(Some(outcome))
}

/// Leaves a marker for later attempts, and gives the outcome back.
pub(super) fn mark(
    overlay: &mut Overlay<'_>,
    routing_key: &[u8],
    context: Context,
    outcome: Outcome,
) -> Outcome {
    let row = TxnRow::Outcome(outcome);
    overlay.put(Family::Txn, marker_key(routing_key, context.id), codec::encode(&row));
    let TxnRow::Outcome(outcome) = row;
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
