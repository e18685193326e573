//! A view with a batch's writes laid over it: what apply reads while it writes.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::{Batch, Family, Rows, View};
use crate::types::{Direction, KeyRange, Result};

/// Reads see the writes made so far; the writes go into a batch at the end.
pub struct Overlay<'v> {
    base: &'v dyn View,
    written: BTreeMap<Family, BTreeMap<Bytes, Option<Bytes>>>,
    batch: Batch,
}

impl<'v> Overlay<'v> {
    /// An overlay with no writes yet.
    pub fn new(base: &'v dyn View) -> Self {
        Self { base, written: BTreeMap::new(), batch: Batch::new() }
    }

    /// Sets a key.
    pub fn put(&mut self, family: Family, key: impl Into<Bytes>, value: impl Into<Bytes>) {
        let (key, value) = (key.into(), value.into());
        self.written.entry(family).or_default().insert(key.clone(), Some(value.clone()));
        self.batch.put(family, key, value);
    }

    /// Removes a key.
    pub fn delete(&mut self, family: Family, key: impl Into<Bytes>) {
        let key = key.into();
        self.written.entry(family).or_default().insert(key.clone(), None);
        self.batch.delete(family, key);
    }

    /// The writes, in the order in which they were made.
    pub fn batch(&self) -> &Batch {
        &self.batch
    }

    /// Ends the overlay and gives its writes.
    pub fn into_batch(self) -> Batch {
        self.batch
    }
}

impl View for Overlay<'_> {
    fn get(&self, family: Family, key: &[u8]) -> Result<Option<Bytes>> {
        if let Some(written) = self.written.get(&family).and_then(|rows| rows.get(key)) {
            return Ok(written.clone());
        }
        self.base.get(family, key)
    }

    fn scan(&self, family: Family, range: &KeyRange, direction: Direction) -> Rows<'_> {
        let mut written: Vec<(Bytes, Option<Bytes>)> = match self.written.get(&family) {
            Some(rows) => rows
                .range(range.start.clone()..)
                .take_while(|(key, _)| range.contains(key))
                .map(|(key, value)| (key.clone(), value.clone()))
                .collect(),
            None => Vec::new(),
        };
        if written.is_empty() {
            return self.base.scan(family, range, direction);
        }
        if direction == Direction::Reverse {
            written.reverse();
        }
        Box::new(Merge {
            base: self.base.scan(family, range, direction).peekable(),
            written: written.into_iter().peekable(),
            direction,
        })
    }
}

/// Two ordered streams of rows, where a written row hides the row below it.
struct Merge<'a> {
    base: std::iter::Peekable<Rows<'a>>,
    written: std::iter::Peekable<std::vec::IntoIter<(Bytes, Option<Bytes>)>>,
    direction: Direction,
}

impl Iterator for Merge<'_> {
    type Item = Result<super::Row>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let Some((key, _)) = self.written.peek() else { return self.base.next() };
            let order = match self.base.peek() {
                None => std::cmp::Ordering::Less,
                Some(Err(_)) => return self.base.next(),
                Some(Ok((below, _))) => match self.direction {
                    Direction::Forward => key.cmp(below),
                    Direction::Reverse => below.cmp(key),
                },
            };
            if order.is_gt() {
                return self.base.next();
            }
            if order.is_eq() {
                self.base.next();
            }
            if let Some((key, Some(value))) = self.written.next() {
                return Some(Ok((key, value)));
            }
        }
    }
}
