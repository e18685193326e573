//! From a change of a user's row to changes of index rows.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::extract::{self, IndexRows, RowError};
use super::layout::{GroupValue, has_sum};
use super::{Definition, Fixed, OnError};
use crate::types::{Error, Result};

/// What one changed row changes in an index.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Delta {
    /// Entries, by their internal keys: what to write, or `None` to delete. No key twice.
    pub entries: Vec<(Bytes, Option<Bytes>)>,
    /// Changes of group rows, by their internal keys. No key twice.
    pub groups: Vec<(Bytes, GroupChange)>,
    /// Why the row is not in the index, where it can't be: only with `on_error` skip and dead-letter.
    pub rejected: Option<RowError>,
    /// Whether the value before could not be indexed either.
    pub rejected_before: bool,
}

impl Delta {
    /// About how many bytes of keys and values it writes.
    pub fn size_bytes(&self) -> usize {
        let of_entry =
            |(key, value): &(Bytes, Option<Bytes>)| key.len() + value.as_ref().map_or(0, Bytes::len);
        let of_group = |(key, _): &(Bytes, GroupChange)| key.len() + GroupValue::MAX_BYTES;
        self.entries.iter().map(of_entry).sum::<usize>() + self.groups.iter().map(of_group).sum::<usize>()
    }
}

/// What is added to a group row.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GroupChange {
    /// To its count.
    pub count: i64,
    /// To its sum; `None` in an index without sums.
    pub sum: Option<Fixed>,
}

impl GroupChange {
    fn is_zero(&self) -> bool {
        self.count == 0 && self.sum.is_none_or(|sum| sum == Fixed::ZERO)
    }

    fn plus(self, other: Self) -> Option<Self> {
        let sum = match (self.sum, other.sum) {
            (Some(a), Some(b)) => Some(a.checked_add(b)?),
            (None, None) => None,
            _ => return None,
        };
        Some(Self { count: self.count.checked_add(other.count)?, sum })
    }

    /// The value of a group row after the change, from the one stored before. `None` deletes the row: nobody is in
    /// the group any more.
    ///
    /// # Errors
    ///
    /// `Corrupt` where what is stored is no group row of such an index, or can't have had this change: fewer than
    /// nobody would be left, or a sum of nobody.
    pub fn apply(&self, stored: Option<&[u8]>) -> Result<Option<Bytes>> {
        let before = match stored {
            Some(stored) => GroupValue::decode(stored, self.sum.is_some())?,
            None => GroupValue { count: 0, sum: self.sum.map(|_| Fixed::ZERO) },
        };
        let wrong = |what: &str| {
            Error::corrupt(format!(
                "a group row of an index can't be changed by {}: {what}; it has {} rows; build the index anew",
                self.count, before.count
            ))
        };
        let count = before.count.checked_add_signed(self.count);
        let count = count.ok_or_else(|| wrong("it would count fewer than no rows, or more than 2^64"))?;
        let sum = match (before.sum, self.sum) {
            (Some(before), Some(change)) => {
                Some(before.checked_add(change).ok_or_else(|| wrong("its sum would not fit in 128 bits"))?)
            }
            _ => None,
        };
        match (count, sum) {
            (0, None | Some(Fixed::ZERO)) => Ok(None),
            (0, Some(_)) => Err(wrong("no row would be left, but a sum")),
            _ => Ok(Some(GroupValue { count, sum }.encode())),
        }
    }
}

/// What a change of the row `key`, as users know it, from `before` to `after` changes in the index: a pure function
/// of its arguments. A row with another prefix changes nothing. A value before that can't be indexed counts as not
/// in the index, since it was not put there.
///
/// # Errors
///
/// Why the value after can't be indexed, where the definition says halt.
pub fn delta(
    definition: &Definition,
    key: &[u8],
    before: Option<&[u8]>,
    after: Option<&[u8]>,
) -> Result<Delta, RowError> {
    let rows = |value: Option<&[u8]>| match value {
        Some(value) => extract::index_rows(definition, key, value),
        None => Ok(IndexRows::default()),
    };
    let mut delta = Delta::default();
    let after = match rows(after) {
        Ok(after) => after,
        Err(error) if definition.spec().on_error == OnError::Halt => return Err(error),
        Err(error) => {
            delta.rejected = Some(error);
            IndexRows::default()
        }
    };
    let before = rows(before);
    delta.rejected_before = before.is_err();
    let before = before.unwrap_or_default();
    if before.entry != after.entry {
        let replaced = before.entry.filter(|(key, _)| after.entry.as_ref().is_none_or(|(new, _)| new != key));
        delta.entries.extend(replaced.map(|(key, _)| (key, None)));
        delta.entries.extend(after.entry.map(|(key, value)| (key, Some(value))));
    }
    delta.groups = group_changes(before.group, after.group);
    Ok(delta)
}

/// What leaving one group and joining another changes. The same group is one change, or none.
fn group_changes(
    before: Option<(Bytes, Option<Fixed>)>,
    after: Option<(Bytes, Option<Fixed>)>,
) -> Vec<(Bytes, GroupChange)> {
    let joined = after.map(|(key, sum)| (key, GroupChange { count: 1, sum }));
    // A summand is at most 10^27 units, so it has a negative.
    let left = before.map(|(key, sum)| (key, GroupChange { count: -1, sum: sum.map(|sum| Fixed(-sum.0)) }));
    match (left, joined) {
        (Some((key, left)), Some((joined_key, joined))) if key == joined_key => {
            let change = left.plus(joined).filter(|change| !change.is_zero());
            change.map(|change| (key, change)).into_iter().collect()
        }
        (left, joined) => left.into_iter().chain(joined).collect(),
    }
}

/// The changes of several rows gathered, to be written together: a key once, a group once.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Batch {
    /// Entries, by their internal keys: what to write, or `None` to delete.
    pub entries: BTreeMap<Bytes, Option<Bytes>>,
    /// Changes of group rows, by their internal keys. None is zero.
    pub groups: BTreeMap<Bytes, GroupChange>,
    /// The rows that are not in the index because they can't be.
    pub rejected: Vec<RowError>,
}

impl Batch {
    /// Adds a change. Changes of one row are to be added in the order in which they were committed.
    ///
    /// # Errors
    ///
    /// `Invalid` where the gathered change of a group does not fit its numbers, or the deltas are of different
    /// indexes. Nothing was added then.
    pub fn add(&mut self, delta: Delta) -> Result<()> {
        let mut changed = Vec::with_capacity(delta.groups.len());
        for (key, change) in delta.groups {
            let sum = match self.groups.get(&key) {
                Some(before) => before.plus(change).ok_or_else(|| {
                    Error::invalid(
                        "the changes of a group are too large to be gathered: write them in smaller batches",
                    )
                })?,
                None => change,
            };
            changed.push((key, sum));
        }
        for (key, change) in changed {
            match change.is_zero() {
                true => self.groups.remove(&key),
                false => self.groups.insert(key, change),
            };
        }
        self.entries.extend(delta.entries);
        self.rejected.extend(delta.rejected);
        Ok(())
    }
}

impl Batch {
    /// Adds what was gathered later, all or nothing.
    ///
    /// # Errors
    ///
    /// As for [`add`](Self::add).
    pub fn join(&mut self, later: Batch) -> Result<()> {
        let Batch { entries, groups, rejected } = later;
        self.add(Delta {
            entries: entries.into_iter().collect(),
            groups: groups.into_iter().collect(),
            rejected: None,
            rejected_before: false,
        })?;
        self.rejected.extend(rejected);
        Ok(())
    }
}

/// The whole index of these rows (key as users know it, value), computed from nothing: what the index must be after
/// any history that ends in them. Keys are internal keys.
///
/// # Errors
///
/// `Invalid` where a row can't be indexed and the definition says halt; `Corrupt` where a sum does not fit in 128
/// bits.
pub fn from_scan<'r>(
    definition: &Definition,
    rows: impl IntoIterator<Item = (&'r [u8], &'r [u8])>,
) -> Result<BTreeMap<Bytes, Bytes>> {
    let mut index = BTreeMap::new();
    let mut groups: BTreeMap<Bytes, GroupValue> = BTreeMap::new();
    for (key, value) in rows {
        let found = match extract::index_rows(definition, key, value) {
            Ok(found) => found,
            Err(error) if definition.spec().on_error == OnError::Halt => return Err(error.into()),
            Err(_) => continue,
        };
        index.extend(found.entry);
        let Some((key, summand)) = found.group else { continue };
        let empty = GroupValue { count: 0, sum: has_sum(definition.spec().kind).then_some(Fixed::ZERO) };
        let group = groups.entry(key).or_insert(empty);
        group.count += 1;
        if let (Some(sum), Some(summand)) = (&mut group.sum, summand) {
            *sum = sum.checked_add(summand).ok_or_else(|| {
                Error::corrupt(format!("a sum of index {} does not fit in 128 bits", definition.name()))
            })?;
        }
    }
    index.extend(groups.into_iter().map(|(key, group)| (key, group.encode())));
    Ok(index)
}
