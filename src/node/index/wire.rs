//! Indexes as messages.

use crate::index::{Catalogued, Checkpoint, Definition, State, Version};
use crate::rpc::convert::{index_spec_from_proto, index_spec_to_proto};
use crate::rpc::v1;
use crate::types::{Error, Result, Timestamp};

/// An index as a message.
pub(super) fn record_to_proto(name: &str, index: &Catalogued) -> v1::IndexRecord {
    let version = |version: &Version| v1::IndexVersion {
        number: version.number,
        spec: Some(index_spec_to_proto(&version.spec)),
    };
    v1::IndexRecord {
        name: name.to_owned(),
        id: index.id,
        created_ts: index.created.0,
        active: index.active.as_ref().map(version),
        building: index.building.as_ref().map(version),
        swap_when_built: index.swap_when_built,
        is_built: index.is_built && index.building.is_some(),
        doomed: index.doomed.clone(),
        dropped: index.dropped,
        restarted: index.restarted.clone(),
    }
}

/// The definitions of an index's versions that are to be kept up, from a message.
///
/// # Errors
///
/// `Invalid` where one is wrong: another build of kvorum made it.
pub(super) fn definitions(record: &v1::IndexRecord) -> Result<Vec<Definition>> {
    let versions = record.active.iter().chain(&record.building);
    versions
        .map(|version| {
            let spec =
                version.spec.clone().ok_or_else(|| Error::corrupt("an index came without its definition"))?;
            Definition::new(record.id, version.number, index_spec_from_proto(spec)?)
        })
        .collect()
}

/// How far a version of an index is, as a message.
pub(super) fn progress_to_proto(version: u32, checkpoint: &Checkpoint) -> v1::IndexProgress {
    let mut progress = v1::IndexProgress {
        version,
        watermark: checkpoint.watermark.0,
        scanned_rows: checkpoint.scanned_rows,
        changed_rows: checkpoint.changed_rows,
        dead_letters: checkpoint.dead_letters,
        ..Default::default()
    };
    progress.state = match &checkpoint.state {
        State::Building => "building".to_owned(),
        State::Ready => "ready".to_owned(),
        State::Halted { key, commit_ts, reason } => {
            progress.halted_key = key.clone();
            progress.halted_ts = commit_ts.0;
            progress.halted_reason = reason.clone();
            "halted".to_owned()
        }
    };
    progress
}

/// Where and why an index has halted, for people.
pub(super) fn halted(key: &[u8], commit_ts: Timestamp, reason: &str) -> String {
    let when = match commit_ts {
        Timestamp::ZERO => "as it was when the index was built".to_owned(),
        at => format!("as written at {at}"),
    };
    format!("it has halted before the row \"{}\" {when}: {reason}", key.escape_ascii())
}
