//! Reads of a shard's rows. When a replica may answer one is decided above; here, what it sees.

use bytes::Bytes;

use crate::engine::View;
use crate::mvcc;
use crate::types::{Direction, Error, KeyRange, Record, Result, Timestamp, limits};

/// The most keys that one page looks at. A page that walks over removed keys, or keys written after its
/// timestamp, ends there, perhaps without a row.
pub const MAX_EXAMINED_ROWS: usize = 50_000;

/// What `key` (an internal key) holds now.
///
/// # Errors
///
/// Those of the engine; `Corrupt` where a row is malformed. So for all functions here.
pub fn get_latest(view: &dyn View, key: &[u8]) -> Result<Option<Record>> {
    Ok(mvcc::latest(view, key)?.and_then(|row| row.version.record()))
}

/// What `key` held at `ts`.
pub fn get_at(view: &dyn View, key: &[u8], ts: Timestamp) -> Result<Option<Record>> {
    Ok(mvcc::at(view, key, ts)?.and_then(|row| row.version.record()))
}

/// Which rows a page of a scan is to hold.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PageRequest {
    /// The internal keys.
    pub range: KeyRange,
    /// From which end.
    pub direction: Direction,
    /// Leave values out.
    pub keys_only: bool,
    /// The timestamp to read at. [`Timestamp::MAX`] reads the newest versions.
    pub at: Timestamp,
    /// The page ends after so many rows. At least 1; counts as at most [`limits::MAX_PAGE_ROWS`].
    pub max_rows: usize,
    /// The page ends after the row that takes it to so many bytes of keys and values. Counts as at most
    /// [`limits::MAX_PAGE_BYTES`].
    pub max_bytes: usize,
}

impl PageRequest {
    /// The request for what comes after a page that said `next`.
    pub fn rest(&self, next: Bytes) -> Self {
        let range = match self.direction {
            Direction::Forward => KeyRange { start: next, end: self.range.end.clone() },
            Direction::Reverse => KeyRange { start: self.range.start.clone(), end: Some(next) },
        };
        Self { range, ..self.clone() }
    }
}

/// A page of a scan.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Page {
    /// Internal keys and what they hold, in the direction of the scan. Values are empty where only keys
    /// were asked for.
    pub rows: Vec<(Bytes, Record)>,
    /// Where to go on; `None` where the range is finished. Forward it is the first key of what is left, in
    /// reverse the key before which what is left ends. Rows may be none and `next` given: see
    /// [`MAX_EXAMINED_ROWS`].
    pub next: Option<Bytes>,
}

/// Reads a page. Holds a page's rows and no more, however long the range is.
///
/// # Errors
///
/// `Invalid` where no row is asked for, else see [`get_latest`].
pub fn scan_page(view: &dyn View, request: &PageRequest) -> Result<Page> {
    scan_page_examining(view, request, MAX_EXAMINED_ROWS)
}

pub(super) fn scan_page_examining(view: &dyn View, request: &PageRequest, most: usize) -> Result<Page> {
    if request.max_rows == 0 {
        return Err(Error::invalid("a page of 0 rows was asked for: ask for at least 1"));
    }
    let max_rows = request.max_rows.min(limits::MAX_PAGE_ROWS);
    let max_bytes = request.max_bytes.min(limits::MAX_PAGE_BYTES);
    let mut page = Page::default();
    let (mut bytes, mut examined) = (0, 0);
    let mut last = None;
    for found in mvcc::scan(view, &request.range, request.direction, request.at) {
        let found = found?;
        let full = !page.rows.is_empty() && (page.rows.len() >= max_rows || bytes >= max_bytes);
        if full || examined >= most {
            // `found` is the first key that is left; in reverse, what is left ends before the one before it.
            page.next = match request.direction {
                Direction::Forward => Some(found.key),
                Direction::Reverse => last,
            };
            return Ok(page);
        }
        examined += 1;
        if let Some(mut record) = found.row.and_then(|row| row.version.record()) {
            if request.keys_only {
                record.value = Bytes::new();
            }
            bytes += found.key.len() + record.value.len();
            page.rows.push((found.key.clone(), record));
        }
        last = Some(found.key);
    }
    Ok(page)
}
