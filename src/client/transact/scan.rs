//! Scans inside a transaction: the stored rows at its start timestamp and its own writes, merged in order.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::Stream;

use super::buffer::{self, Write};
use super::txn::Inner;
use crate::client::{Row, ScanOptions};
use crate::types::{Error, KeyRange, Result, key_after};

/// The rows of a scan inside a transaction, in order: a stream. Made by [`Txn::scan`](super::Txn::scan). Pages are
/// fetched as those of [`Scan`](crate::client::Scan) are; after an error the stream ends.
pub struct TxnScan {
    rows: Pin<Box<dyn Stream<Item = Result<Row>> + Send>>,
}

impl TxnScan {
    pub(super) fn new(inner: Arc<Inner>, options: ScanOptions) -> Self {
        Self { rows: Box::pin(rows(inner, options)) }
    }

    /// The next row; `None` at the end.
    pub async fn next(&mut self) -> Option<Result<Row>> {
        futures::StreamExt::next(self).await
    }

    /// All rows that are left, in memory. Only for scans that are known to be small.
    pub async fn collect_rows(mut self) -> Result<Vec<Row>> {
        let mut rows = Vec::new();
        while let Some(row) = self.next().await {
            rows.push(row?);
        }
        Ok(rows)
    }
}

impl Stream for TxnScan {
    type Item = Result<Row>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.rows.as_mut().poll_next(cx)
    }
}

/// Where a scan begins: what it is over, its place among the scans of the transaction, and the own writes that it
/// shows. `None` where bounds and prefix do not meet: it finds nothing, whatever happens.
fn begin(inner: &Inner, options: &ScanOptions) -> Result<Option<(KeyRange, usize, Merge)>> {
    if options.at.is_some() {
        return Err(Error::invalid(
            "a scan inside a transaction reads at the transaction's start timestamp: leave `at` out, or use `snapshot` \
             for another time",
        ));
    }
    let range = options.meant()?;
    let mut buffer = inner.buffer.lock();
    buffer.check_open()?;
    let Some(range) = range else { return Ok(None) };
    let merge = Merge::new(buffer.own_within(&range), options);
    Ok(Some((range, buffer.begin_scan(), merge)))
}

fn rows(inner: Arc<Inner>, options: ScanOptions) -> impl Stream<Item = Result<Row>> + Send {
    let begun = begin(&inner, &options);
    async_stream::try_stream! {
        let Some((range, place, mut merge)) = begun? else { return };
        let at = inner.start_ts().await?;
        let wanted = merge.stored_rows();
        let stored = ScanOptions { at: Some(at), limit_rows: wanted, limit_bytes: None, ..options.clone() };
        let mut stored = inner.client.scan(stored);
        while merge.wants_rows() {
            if merge.wants_stored() {
                match stored.next().await {
                    Some(row) => merge.stored = Some(row?),
                    None => merge.stored_done = true,
                }
                continue;
            }
            if merge.is_done() {
                inner.buffer.lock().note_scanned(place, range.clone());
                break;
            }
            let Some(row) = merge.take()? else { continue };
            // Also where the row does not fit: that there is one, the end of the scan tells too.
            let scanned = handed_out(&range, &row.key, options.reverse);
            inner.buffer.lock().note_scanned(place, scanned);
            if !merge.fits(&row) {
                break;
            }
            yield row;
        }
    }
}

/// What of a range was handed out once the row of `last` was.
fn handed_out(range: &KeyRange, last: &Bytes, reverse: bool) -> KeyRange {
    if reverse {
        return KeyRange::new(last.clone(), range.end.clone());
    }
    KeyRange::new(range.start.clone(), Some(key_after(last)))
}

/// Two lists in the order of the scan become one; an own write hides the stored row of its key.
struct Merge {
    own: VecDeque<(Bytes, Write)>,
    stored: Option<Row>,
    stored_done: bool,
    reverse: bool,
    keys_only: bool,
    rows_left: Option<u64>,
    bytes_left: Option<u64>,
    begun: bool,
}

impl Merge {
    fn new(own: Vec<(Bytes, Write)>, options: &ScanOptions) -> Self {
        let own = if options.reverse { own.into_iter().rev().collect() } else { own.into() };
        Self {
            own,
            stored: None,
            stored_done: false,
            reverse: options.reverse,
            keys_only: options.keys_only,
            rows_left: options.limit_rows,
            bytes_left: options.limit_bytes,
            begun: false,
        }
    }

    /// How many stored rows are enough: each own write hides one at most.
    fn stored_rows(&self) -> Option<u64> {
        self.rows_left.map(|rows| rows.saturating_add(self.own.len() as u64))
    }

    fn wants_rows(&self) -> bool {
        self.rows_left != Some(0)
    }

    fn wants_stored(&self) -> bool {
        self.stored.is_none() && !self.stored_done
    }

    fn is_done(&self) -> bool {
        self.own.is_empty() && self.stored.is_none() && self.stored_done
    }

    /// The next row; `None` where the next key is one that the transaction removed.
    fn take(&mut self) -> Result<Option<Row>> {
        use std::cmp::Ordering;
        let order = match (self.own.front(), &self.stored) {
            (None, _) => Ordering::Greater,
            (Some(_), None) => Ordering::Less,
            (Some((own, _)), Some(stored)) if self.reverse => stored.key.cmp(own),
            (Some((own, _)), Some(stored)) => own.cmp(&stored.key),
        };
        if order == Ordering::Greater {
            return Ok(self.stored.take());
        }
        let Some((key, write)) = self.own.pop_front() else { return Ok(None) };
        let base = if order == Ordering::Equal { self.stored.take() } else { None };
        let record = match (self.keys_only, &write) {
            // Without its value the base can't be added to, and nothing of it is wanted.
            (true, Write::Add(_)) => buffer::seen(&key, Some(&Write::Put(Bytes::new())), None)?,
            _ => buffer::seen(&key, Some(&write), base.map(|row| row.record))?,
        };
        Ok(record.map(|mut record| {
            if self.keys_only {
                record.value = Bytes::new();
            }
            Row { key, record }
        }))
    }

    /// Counts a row against the limits; false where it is one too many. The first always fits.
    fn fits(&mut self, row: &Row) -> bool {
        let bytes = (row.key.len() + row.record.value.len()) as u64;
        if self.begun && self.bytes_left.is_some_and(|left| bytes > left) {
            return false;
        }
        self.begun = true;
        self.rows_left = self.rows_left.map(|left| left - 1);
        self.bytes_left = self.bytes_left.map(|left| left.saturating_sub(bytes));
        true
    }
}
