//! A store for tests: users' rows, an index over them that deltas keep, and the reading of it.

use std::collections::BTreeMap;
use std::ops::Bound;

use bytes::Bytes;

use crate::index::{Batch, Definition, Item, Next, Plan, Query, Reader, RowError, delta, from_scan, plan};
use crate::types::{Direction, KeyRange, Result, Timestamp, key_after};

/// The timestamp at which tests read.
pub(super) const WATERMARK: Timestamp = Timestamp(77);
pub(super) const READ_TS: Timestamp = Timestamp(99);

pub(super) struct Store {
    pub definition: Definition,
    pub users: BTreeMap<Bytes, Bytes>,
    pub index: BTreeMap<Bytes, Bytes>,
}

/// A page of results.
pub(super) struct Page {
    pub items: Vec<Item>,
    pub token: Option<Bytes>,
    /// How many index rows were pushed.
    pub examined: usize,
}

impl Store {
    pub(super) fn new(definition: Definition) -> Self {
        Self { definition, users: BTreeMap::new(), index: BTreeMap::new() }
    }

    /// Writes a user's row and adds what that changes in the index to the batch.
    pub(super) fn write(
        &mut self,
        key: &Bytes,
        value: Option<Bytes>,
        batch: &mut Batch,
    ) -> Result<(), RowError> {
        let before = self.users.get(key).cloned();
        let delta = delta(&self.definition, key, before.as_deref(), value.as_deref())?;
        batch.add(delta).expect("gathers");
        match value {
            Some(value) => self.users.insert(key.clone(), value),
            None => self.users.remove(key),
        };
        Ok(())
    }

    /// Writes a batch to the index.
    pub(super) fn apply(&mut self, batch: Batch) -> Result<()> {
        for (key, value) in batch.entries {
            put(&mut self.index, key, value);
        }
        for (key, change) in batch.groups {
            let value = change.apply(self.index.get(&key).map(|value| &value[..]))?;
            put(&mut self.index, key, value);
        }
        Ok(())
    }

    /// The index of the users' rows as they are, computed from nothing.
    pub(super) fn scanned(&self) -> Result<BTreeMap<Bytes, Bytes>> {
        from_scan(&self.definition, self.users.iter().map(|(key, value)| (&key[..], &value[..])))
    }

    /// Reads a page, in several ways that must come to the same.
    pub(super) fn page(&self, query: &Query) -> Result<Page> {
        let plan = plan(&self.definition, query)?;
        let page = self.read(plan.clone(), usize::MAX);
        for rows_together in [1, 2, 5] {
            let paged = self.read_by_pages(plan.clone(), rows_together);
            assert_eq!(
                (&paged.items, &paged.token),
                (&page.items, &page.token),
                "{rows_together} rows together"
            );
        }
        Ok(page)
    }

    /// Reads a page by scans that give so many rows at a time; between them come some that give none.
    fn read_by_pages(&self, plan: Plan, rows_together: usize) -> Page {
        let direction = plan.direction();
        let (mut reader, mut next) = Reader::start(plan);
        let mut page = Page { items: Vec::new(), token: None, examined: 0 };
        let mut scans = 0;
        while let Next::SeekTo(range) = next {
            scans += 1;
            let found = self.scan(&range, direction);
            let rows: Vec<_> =
                if scans % 3 == 0 { Vec::new() } else { found.iter().take(rows_together).cloned().collect() };
            page.examined += rows.len();
            let rest = found.get(rows.len()).map(|(key, _)| match direction {
                Direction::Forward => key.clone(),
                Direction::Reverse => key_after(key),
            });
            next = reader.push_page(range, rows, rest).expect("rows of the index");
            page.items.extend(reader.take_items());
        }
        page.token = reader.page_token(READ_TS, WATERMARK);
        page
    }

    /// Reads a page, and stops it after so many index rows.
    pub(super) fn read(&self, plan: Plan, most_rows: usize) -> Page {
        let direction = plan.direction();
        let (mut reader, mut next) = Reader::start(plan);
        let mut page = Page { items: Vec::new(), token: None, examined: 0 };
        let mut rows = Vec::new().into_iter();
        loop {
            next = match next {
                Next::SeekTo(range) => {
                    rows = self.scan(&range, direction).into_iter();
                    Next::Continue
                }
                Next::Continue if page.examined >= most_rows => {
                    reader.stop();
                    Next::Done
                }
                Next::Continue => match rows.next() {
                    Some((key, value)) => {
                        page.examined += 1;
                        reader.push(&key, &value).expect("a row of the index")
                    }
                    None => reader.end_of_range().expect("sums fit"),
                },
                Next::Done => break,
            };
            page.items.extend(reader.take_items());
        }
        page.token = reader.page_token(READ_TS, WATERMARK);
        page
    }

    fn scan(&self, range: &KeyRange, direction: Direction) -> Vec<(Bytes, Bytes)> {
        let end = range.end.clone().map_or(Bound::Unbounded, Bound::Excluded);
        let rows = self.index.range((Bound::Included(range.start.clone()), end));
        let rows = rows.map(|(key, value)| (key.clone(), value.clone()));
        match direction {
            Direction::Forward => rows.collect(),
            Direction::Reverse => rows.rev().collect(),
        }
    }
}

fn put(rows: &mut BTreeMap<Bytes, Bytes>, key: Bytes, value: Option<Bytes>) {
    match value {
        Some(value) => rows.insert(key, value),
        None => rows.remove(&key),
    };
}
