//! Keys are bytes in their natural order; ranges are half open.

use std::fmt;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::limits;

/// The order in which a scan returns rows.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// Smallest key first.
    #[default]
    Forward,
    /// Largest key first.
    Reverse,
}

/// The keys from `start` (inclusive) up to `end` (exclusive; `None` is past every key).
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct KeyRange {
    /// The first key of the range. Empty is before every key.
    pub start: Bytes,
    /// The first key past the range, or `None` where it is unbounded.
    pub end: Option<Bytes>,
}

impl KeyRange {
    /// A range from `start` up to, not including, `end`.
    pub fn new(start: impl Into<Bytes>, end: Option<Bytes>) -> Self {
        Self { start: start.into(), end }
    }

    /// Every key.
    pub fn all() -> Self {
        Self { start: Bytes::new(), end: None }
    }

    /// Every key that begins with `prefix`.
    pub fn prefix(prefix: impl Into<Bytes>) -> Self {
        let start = prefix.into();
        let end = prefix_end(&start);
        Self { start, end }
    }

    /// Whether `key` lies in the range.
    pub fn contains(&self, key: &[u8]) -> bool {
        key >= self.start.as_ref() && self.end.as_ref().is_none_or(|end| key < end.as_ref())
    }

    /// Whether every key of `other` lies in this range.
    pub fn covers(&self, other: &KeyRange) -> bool {
        other.start >= self.start
            && match (&self.end, &other.end) {
                (None, _) => true,
                (Some(_), None) => false,
                (Some(mine), Some(theirs)) => theirs <= mine,
            }
    }

    /// The keys that lie in both, or `None` where there are none.
    pub fn intersect(&self, other: &KeyRange) -> Option<KeyRange> {
        let start = self.start.clone().max(other.start.clone());
        let end = match (&self.end, &other.end) {
            (None, end) | (end, None) => end.clone(),
            (Some(a), Some(b)) => Some(a.min(b).clone()),
        };
        let range = KeyRange { start, end };
        (!range.is_empty()).then_some(range)
    }

    /// The same keys in as few ranges as can be: in order, none empty, no two overlapping or touching.
    pub fn join(mut ranges: Vec<KeyRange>) -> Vec<KeyRange> {
        ranges.retain(|range| !range.is_empty());
        ranges.sort_unstable_by(|a, b| a.start.cmp(&b.start));
        let mut joined: Vec<KeyRange> = Vec::with_capacity(ranges.len());
        for range in ranges {
            match joined.last_mut() {
                Some(last) if last.end.as_ref().is_none_or(|end| *end >= range.start) => {
                    last.end = match (last.end.take(), range.end) {
                        (Some(a), Some(b)) => Some(a.max(b)),
                        _ => None,
                    };
                }
                _ => joined.push(range),
            }
        }
        joined
    }

    /// Whether no key can lie in the range (its end is not past its start).
    pub fn is_empty(&self) -> bool {
        self.end.as_ref().is_some_and(|end| *end <= self.start)
    }
}

impl fmt::Debug for KeyRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.end {
            Some(end) => write!(f, "[{:?}, {:?})", self.start, end),
            None => write!(f, "[{:?}, end)", self.start),
        }
    }
}

/// Whether a text is a name, as consumers, projections and indexes have them: 1 to [`limits::MAX_NAME_BYTES`] of a-z, 0-9,
/// _ and -.
pub fn is_name(text: &str) -> bool {
    let is_proper =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_' || byte == b'-';
    (1..=limits::MAX_NAME_BYTES).contains(&text.len()) && text.bytes().all(is_proper)
}

/// The first key after `key`.
pub fn key_after(key: &[u8]) -> Bytes {
    [key, &[0]].concat().into()
}

/// The first key past all keys that begin with `prefix`; `None` where there is none (only 0xff).
pub fn prefix_end(prefix: &[u8]) -> Option<Bytes> {
    let keep = prefix.iter().rposition(|byte| *byte != 0xff)?;
    let mut end = prefix[..=keep].to_vec();
    end[keep] += 1;
    Some(end.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefix_end_carries_over_0xff() {
        assert_eq!(prefix_end(b"ab"), Some(Bytes::from_static(b"ac")));
        assert_eq!(prefix_end(b"a\xff\xff"), Some(Bytes::from_static(b"b")));
        assert_eq!(prefix_end(b"\xff"), None);
        assert_eq!(prefix_end(b""), None);
    }

    #[test]
    fn ranges_are_joined_where_they_overlap_or_touch() {
        let range =
            |start: &'static str, end: Option<&'static str>| KeyRange::new(start, end.map(Bytes::from));
        let joined = KeyRange::join(vec![
            range("m", Some("m")),
            range("d", Some("e")),
            range("a", Some("c")),
            range("b", Some("d")),
            range("f", Some("k")),
            range("g", Some("h")),
        ]);
        assert_eq!(joined, [range("a", Some("e")), range("f", Some("k"))]);
        assert_eq!(KeyRange::join(vec![range("z", None), range("a", None)]), [range("a", None)]);
        assert!(KeyRange::join(Vec::new()).is_empty());
    }

    #[test]
    fn ranges_intersect_and_cover() {
        let whole = KeyRange::all();
        let left = KeyRange::new("a", Some("m".into()));
        let right = KeyRange::new("m", None);
        assert!(whole.covers(&left) && whole.covers(&right) && !left.covers(&whole));
        assert_eq!(left.intersect(&right), None);
        assert_eq!(whole.intersect(&left), Some(left.clone()));
        assert!(left.contains(b"a") && !left.contains(b"m") && right.contains(b"m"));
    }
}
