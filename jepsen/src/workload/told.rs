//! What followers are told, as histories have it.

use kvorum::Error;
use kvorum::client::{Before, Change, Event};

use super::Workload;
use crate::history::{Changed, Told};

/// An event that a follower was told, for the history.
///
/// # Errors
/// `Corrupt` where it tells of values that no client wrote.
pub fn told(workload: &dyn Workload, event: &Event) -> Result<Told, Error> {
    Ok(match event {
        Event::Row(row) => Told::Row { key: text(&row.key), value: workload.held(&row.record.value)? },
        Event::Changes(changes) => Told::Changes {
            at: changes.commit_ts.0,
            changes: changes
                .changes
                .iter()
                .map(|change| changed(workload, change))
                .collect::<Result<_, _>>()?,
        },
        Event::Progress(at) => Told::Progress { at: at.0 },
    })
}

fn changed(workload: &dyn Workload, change: &Change) -> Result<Changed, Error> {
    let before = match &change.before {
        // None here is large enough to be left out.
        Before::Unasked | Before::TooLarge => None,
        Before::Absent => Some(None),
        Before::Value(value) => Some(Some(workload.held(value)?)),
    };
    let value = change.value.as_deref().map(|value| workload.held(value)).transpose()?;
    Ok(Changed { key: text(&change.key), value, before })
}

fn text(key: &[u8]) -> String {
    String::from_utf8_lossy(key).into_owned()
}
