//! Changes, pages of them, and the records of those who consume them.

use bytes::Bytes;

use super::error::printable;
use crate::codec::keyspace::{USER, strip_user, user_range};
use crate::rpc::{v1, validate};
use crate::types::{Before, Change, Changes, Error, KeyRange, Result, Timestamp, limits};

/// A checked request for a page of changes. Keys carry their keyspace byte in front.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ChangesAsk {
    /// The keys; not empty, within the users' keyspace.
    pub range: KeyRange,
    /// What was committed at or before it is known.
    pub after: Timestamp,
    /// How far to read; `None` to wait until there is anything to be read.
    pub up_to: Option<Timestamp>,
    /// How long to wait then, in milliseconds.
    pub wait_ms: u64,
    /// Whether to tell what keys held before.
    pub before_images: bool,
    /// Tell only how far behind the reader is.
    pub count_only: bool,
}

/// A request for a page of changes, checked.
pub fn changes_ask_from_proto(request: v1::ChangesPageRequest) -> Result<ChangesAsk> {
    let range = range_from_proto(request.range.unwrap_or_default())?;
    let up_to = match request.up_to_ts {
        0 => None,
        up_to => Some(validate::timestamp("up_to_ts", up_to)?),
    };
    let after = validate::timestamp("after_ts", request.after_ts)?;
    if let Some(up_to) = up_to.filter(|up_to| *up_to < after) {
        return Err(Error::invalid(format!(
            "up_to_ts is {up_to}, before after_ts {after}: there is nothing in between; swap them"
        )));
    }
    Ok(ChangesAsk {
        range: user_range(&range),
        after,
        up_to,
        wait_ms: u64::from(request.wait_ms).min(limits::MAX_CHANGES_WAIT_MS),
        before_images: request.before_images,
        count_only: request.count_only,
    })
}

/// A range of users' keys from a message, checked: not reversed, not empty.
pub fn range_from_proto(range: v1::KeyRange) -> Result<KeyRange> {
    let range = KeyRange::new(range.start, range.end);
    validate::full_range(&range)?;
    Ok(range)
}

/// A range of users' keys as a message.
pub fn range_to_proto(range: KeyRange) -> v1::KeyRange {
    v1::KeyRange { start: range.start, end: range.end }
}

/// An internal range as users see it: without keyspace bytes. It must lie in their keyspace.
pub fn user_part(range: &KeyRange) -> KeyRange {
    let start = strip_user(&range.start).unwrap_or_default();
    let end = range.end.as_ref().filter(|end| end.first() == Some(&USER));
    KeyRange { start, end: end.map(|end| end.slice(1..)) }
}

/// What a transaction changed as a message, keys as they are.
pub fn changes_to_proto(changes: Changes) -> v1::Changes {
    let commit_ts = changes.commit_ts.0;
    v1::Changes { commit_ts, changes: changes.changes.into_iter().map(change_to_proto).collect() }
}

/// What a transaction changed of users' keys, which lose their keyspace byte. `Corrupt` where one is not a user's.
pub fn user_changes(mut changes: Changes) -> Result<Changes> {
    for change in &mut changes.changes {
        change.key = strip_user(&change.key).ok_or_else(|| {
            Error::corrupt(format!("the key {} is not a user's: nobody must be told", printable(&change.key)))
        })?;
    }
    Ok(changes)
}

fn change_to_proto(change: Change) -> v1::Change {
    use v1::before::Before as Proto;
    let before = match change.before {
        Before::Unasked => None,
        Before::Absent => Some(Proto::Absent(true)),
        Before::Value(value) => Some(Proto::Value(value)),
        Before::TooLarge => Some(Proto::TooLarge(true)),
    };
    v1::Change {
        key: change.key,
        value: change.value,
        create_ts: change.create_ts.0,
        version: change.version,
        before: before.map(|before| v1::Before { before: Some(before) }),
    }
}

/// What a transaction changed from a message.
pub fn changes_from_proto(changes: v1::Changes) -> Changes {
    let commit_ts = Timestamp(changes.commit_ts);
    Changes { commit_ts, changes: changes.changes.into_iter().map(change_from_proto).collect() }
}

fn change_from_proto(change: v1::Change) -> Change {
    use v1::before::Before as Proto;
    let before = match change.before.and_then(|before| before.before) {
        None => Before::Unasked,
        Some(Proto::Absent(_)) => Before::Absent,
        Some(Proto::Value(value)) => Before::Value(value),
        Some(Proto::TooLarge(_)) => Before::TooLarge,
    };
    let (create_ts, version) = (Timestamp(change.create_ts), change.version);
    Change { key: change.key, value: change.value, create_ts, version, before }
}

/// The ranges that a follower names, and those of its prefixes, checked and joined: see [`validate::followed`].
pub fn followed(ranges: Vec<v1::KeyRange>, prefixes: Vec<Bytes>) -> Result<Vec<KeyRange>> {
    let named = ranges.into_iter().map(|range| KeyRange::new(range.start, range.end));
    let named: Vec<KeyRange> = named.chain(prefixes.into_iter().map(KeyRange::prefix)).collect();
    validate::followed(&named)
}
