//! Scans: a stream of rows, made of pages over shards in order, all at one timestamp.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures::Stream;
use parking_lot::Mutex;
use tokio_util::task::AbortOnDropHandle;

use super::request::{Asked, Reading, mismatched};
use super::router::{Place, Target};
use super::{Client, Deadline, Policy, Shared};
use crate::codec::keyspace::USER;
use crate::rpc::v1::session_reply::Reply;
use crate::rpc::v1::session_request::Request;
use crate::rpc::{convert, v1, validate};
use crate::types::{Error, KeyRange, NodeId, ReadAt, Record, Result, Served, Timestamp};

/// What to scan, and how. The default is everything, smallest key first, at a timestamp taken when the scan
/// begins.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
#[must_use]
pub struct ScanOptions {
    /// The first key; empty is before every key.
    pub start: Bytes,
    /// The first key past the range; `None` is past every key.
    pub end: Option<Bytes>,
    /// Only keys that begin with these bytes (`start` and `end` still hold).
    pub prefix: Bytes,
    /// Largest key first.
    pub reverse: bool,
    /// Leave the values out.
    pub keys_only: bool,
    /// Stop after so many rows; 0 is refused.
    pub limit_rows: Option<u64>,
    /// Stop before keys and values come to more than this (one row at least); 0 is refused.
    pub limit_bytes: Option<u64>,
    /// Read as of this timestamp.
    pub at: Option<Timestamp>,
}

impl ScanOptions {
    /// Every key.
    pub fn all() -> Self {
        Self::default()
    }

    /// The keys that begin with `prefix`.
    pub fn prefix(prefix: impl AsRef<[u8]>) -> Self {
        Self { prefix: Bytes::copy_from_slice(prefix.as_ref()), ..Self::default() }
    }

    /// The keys from `start` up to, not including, `end`.
    pub fn range(start: impl AsRef<[u8]>, end: impl AsRef<[u8]>) -> Self {
        let end = Some(Bytes::copy_from_slice(end.as_ref()));
        Self { start: Bytes::copy_from_slice(start.as_ref()), end, ..Self::default() }
    }

    /// The keys from `start` on.
    pub fn from(start: impl AsRef<[u8]>) -> Self {
        Self { start: Bytes::copy_from_slice(start.as_ref()), ..Self::default() }
    }

    /// Largest key first.
    pub fn reverse(mut self) -> Self {
        self.reverse = true;
        self
    }

    /// Leave the values out.
    pub fn keys_only(mut self) -> Self {
        self.keys_only = true;
        self
    }

    /// Stop after so many rows.
    pub fn limit_rows(mut self, rows: u64) -> Self {
        self.limit_rows = Some(rows);
        self
    }

    /// Stop before keys and values come to more than `bytes` (one row at least).
    pub fn limit_bytes(mut self, bytes: u64) -> Self {
        self.limit_bytes = Some(bytes);
        self
    }

    /// Read as of a timestamp.
    pub fn at(mut self, at: Timestamp) -> Self {
        self.at = Some(at);
        self
    }

    /// The range that bounds and prefix make together, or `None` where they do not meet; `Invalid` where bounds or
    /// limits are wrong.
    pub(super) fn meant(&self) -> Result<Option<KeyRange>> {
        validate::range(&self.start, self.end.as_deref())?;
        validate::bound("prefix", &self.prefix)?;
        validate::limit("limit_rows", self.limit_rows)?;
        validate::limit("limit_bytes", self.limit_bytes)?;
        let bounds = KeyRange::new(self.start.clone(), self.end.clone());
        Ok(bounds.intersect(&KeyRange::prefix(self.prefix.clone())))
    }
}

/// A row of a scan.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Row {
    /// The key.
    pub key: Bytes,
    /// What it holds; the value is empty where only keys were asked for.
    pub record: Record,
}

impl Row {
    fn bytes(&self) -> u64 {
        (self.key.len() + self.record.value.len()) as u64
    }
}

/// The rows of a scan, in order: a stream. While the consumer works on one page the next is fetched, and no
/// more than that, so that memory stays bounded however slow the consumer is. Each page has the client's
/// deadline. After an error the stream ends; a scan that starts past the last row, at
/// [`at_ts`](Scan::at_ts), goes on where it stopped.
pub struct Scan {
    rows: VecDeque<Row>,
    stage: Stage,
    at_ts: Option<Timestamp>,
    served: Option<Served>,
    more: bool,
}

enum Stage {
    /// Nothing was asked for yet.
    Ready(Box<Cursor>),
    /// A page is under way, or here and not yet taken.
    Fetching(AbortOnDropHandle<Result<Page>>),
    /// There is no more to ask for, or it is wrong to ask.
    Done(Option<Error>),
}

/// The part of a scan that is left.
#[derive(Clone)]
struct Cursor {
    shared: Arc<Shared>,
    deadline: Deadline,
    start: Bytes,
    end: Option<Bytes>,
    reverse: bool,
    keys_only: bool,
    rows_left: Option<u64>,
    bytes_left: Option<u64>,
    policy: Policy,
    at: ReadAt,
    /// Who answered the page before: at a timestamp that is closed there, nobody else need be asked.
    by: Option<NodeId>,
    /// Whether a row was returned already.
    begun: bool,
}

struct Page {
    rows: Vec<Row>,
    at_ts: Timestamp,
    served: Option<Served>,
    /// The part that is left; `None` at the end.
    left: Option<Box<Cursor>>,
    /// A limit ended the scan.
    limited: bool,
}

impl Client {
    /// Reads the rows of a range in order, at one timestamp over all shards. Wrong options are the stream's
    /// first item, as an error.
    pub fn scan(&self, options: ScanOptions) -> Scan {
        let at = options.at.map_or(Ok(ReadAt::Latest), super::reads::explicit);
        match at {
            Ok(at) => self.scan_as_of(options, at),
            Err(error) => Scan::failed(error),
        }
    }

    /// A scan at any level; what `options` say of a timestamp is ignored.
    pub(super) fn scan_as_of(&self, options: ScanOptions, at: ReadAt) -> Scan {
        match self.cursor(options, at) {
            Ok(Some(cursor)) => Scan::new(Stage::Ready(Box::new(cursor))),
            Ok(None) => Scan::new(Stage::Done(None)),
            Err(error) => Scan::failed(error),
        }
    }

    fn cursor(&self, options: ScanOptions, at: ReadAt) -> Result<Option<Cursor>> {
        let at = super::reads::checked(at)?;
        let Some(range) = options.meant()? else { return Ok(None) };
        Ok(Some(Cursor {
            shared: Arc::clone(&self.shared),
            deadline: self.deadline,
            start: range.start,
            end: range.end,
            reverse: options.reverse,
            keys_only: options.keys_only,
            rows_left: options.limit_rows,
            bytes_left: options.limit_bytes,
            policy: self.policy,
            at,
            by: None,
            begun: false,
        }))
    }
}

impl Scan {
    fn new(stage: Stage) -> Self {
        Self { rows: VecDeque::new(), stage, at_ts: None, served: None, more: false }
    }

    /// A scan that is only an error.
    pub(super) fn failed(error: Error) -> Self {
        Self::new(Stage::Done(Some(error)))
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

    /// The timestamp that is read at; known from the first row on.
    pub fn at_ts(&self) -> Option<Timestamp> {
        self.at_ts
    }

    /// Who answered for the newest page, and how.
    pub fn served(&self) -> Option<Served> {
        self.served
    }

    /// At the end: whether a limit ended the scan, so that there are or may be more rows.
    pub fn more(&self) -> bool {
        self.more
    }

    /// Takes in a page, and asks for the next while the consumer works on this one.
    fn take(&mut self, page: Page) {
        self.at_ts = Some(page.at_ts);
        self.served = page.served;
        self.rows.extend(page.rows);
        self.more = page.limited;
        self.stage = page.left.map_or(Stage::Done(None), |left| Stage::Fetching(left.fetch()));
    }
}

impl Stream for Scan {
    type Item = Result<Row>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if let Some(row) = self.rows.pop_front() {
                return Poll::Ready(Some(Ok(row)));
            }
            match &mut self.stage {
                Stage::Ready(cursor) => self.stage = Stage::Fetching(cursor.clone().fetch()),
                Stage::Fetching(page) => match ready!(Pin::new(page).poll(cx)) {
                    Ok(Ok(page)) => self.take(page),
                    Ok(Err(error)) => self.stage = Stage::Done(Some(error)),
                    Err(stopped) => {
                        let why = format!("the scan's task stopped: {stopped}; scan again");
                        self.stage = Stage::Done(Some(Error::unavailable(why)));
                    }
                },
                Stage::Done(error) => return Poll::Ready(error.take().map(Err)),
            }
        }
    }
}

impl Cursor {
    fn fetch(self: Box<Self>) -> AbortOnDropHandle<Result<Page>> {
        AbortOnDropHandle::new(tokio::spawn(async move { self.page().await }))
    }

    async fn page(mut self: Box<Self>) -> Result<Page> {
        let until = self.deadline.until()?;
        // The part that the last attempt asked for: what of the range its shard holds.
        let clip = Mutex::new((Bytes::new(), None));
        let build = |header, target: &Target| {
            let part = self.clip(target);
            *clip.lock() = part.clone();
            Ok(self.request(header, part))
        };
        let place = if self.reverse { Place::Below(self.end.as_deref()) } else { Place::Key(&self.start) };
        let read = Some(Reading { policy: self.policy, prefer: self.by, route: None, waits: false });
        let asked = Asked { place, build: &build, fresh: self.at == ReadAt::Latest, read };
        let reply = match self.shared.execute(asked, None, until).await? {
            Reply::ScanPage(reply) => reply,
            other => return Err(mismatched(&other)),
        };
        let clip = clip.into_inner();
        let at_ts = Timestamp(reply.at_ts);
        let served = reply.served.as_ref().and_then(convert::served_from_proto);
        self.by = served.map(|served| served.node);
        // A node that had nothing to read names no timestamp.
        if at_ts > Timestamp::ZERO {
            self.at = super::reads::explicit(at_ts)?;
        }
        let (rows, mut limited) = self.count(reply.rows)?;
        let done = !self.advance(clip, reply.next)?;
        limited |= reply.limited || (self.rows_left == Some(0) && !done);
        let left = (!done && !limited).then_some(self);
        Ok(Page { rows, at_ts, served, left, limited })
    }

    /// What of the range lies in the target's shard.
    fn clip(&self, target: &Target) -> (Bytes, Option<Bytes>) {
        let mine = KeyRange::new(self.start.clone(), self.end.clone());
        let Some((_, shard)) = &target.shard else { return (mine.start, mine.end) };
        let user = |bound: &Bytes| (bound.first() == Some(&USER)).then(|| bound.slice(1..));
        // A bound of another keyspace lies before or past all users' keys.
        let shard = KeyRange::new(user(&shard.start).unwrap_or_default(), shard.end.as_ref().and_then(user));
        let clip = mine.intersect(&shard).unwrap_or(mine);
        (clip.start, clip.end)
    }

    fn request(&self, header: v1::Header, (start, end): (Bytes, Option<Bytes>)) -> Request {
        let (at_ts, max_staleness_ms) = super::reads::on_the_wire(self.at);
        let scan = v1::ScanRequest {
            header: Some(header),
            start,
            end,
            prefix: Bytes::new(),
            reverse: self.reverse,
            keys_only: self.keys_only,
            limit_rows: self.rows_left,
            limit_bytes: self.bytes_left,
            at_ts,
            max_staleness_ms,
        };
        Request::ScanPage(v1::ScanPageRequest { scan: Some(scan) })
    }

    /// Counts a page's rows against the limits of the whole scan; answers whether one ends it here.
    fn count(&mut self, rows: Vec<v1::Row>) -> Result<(Vec<Row>, bool)> {
        let mut kept = Vec::with_capacity(rows.len());
        for row in rows {
            let (key, record) = convert::row_from_proto(row)?;
            let row = Row { key, record };
            // A page has one row at least, also where that row is larger than what is left.
            let too_large = self.bytes_left.is_some_and(|left| row.bytes() > left);
            if self.rows_left == Some(0) || (too_large && self.begun) {
                return Ok((kept, true));
            }
            self.begun = true;
            self.rows_left = self.rows_left.map(|left| left - 1);
            self.bytes_left = self.bytes_left.map(|left| left.saturating_sub(row.bytes()));
            kept.push(row);
        }
        // Asking on with nothing left would be refused as a limit of 0.
        let full = self.bytes_left == Some(0);
        Ok((kept, full))
    }

    /// Goes past what a page covered; false where that was the end of the range.
    fn advance(&mut self, clip: (Bytes, Option<Bytes>), next: Option<Bytes>) -> Result<bool> {
        let stuck = |next: &Bytes| {
            Error::corrupt(format!(
                "a node answered a page that goes on at {}, outside what was asked for",
                convert::printable(next)
            ))
        };
        if self.reverse {
            let next = match next {
                Some(next) if next < clip.0 || self.end.as_ref().is_some_and(|end| next >= *end) => {
                    return Err(stuck(&next));
                }
                Some(next) => next,
                None => clip.0,
            };
            let on = next > self.start;
            self.end = Some(next);
            Ok(on)
        } else {
            let next = match (next, clip.1) {
                (Some(next), clip_end)
                    if next <= self.start || clip_end.as_ref().is_some_and(|end| next > *end) =>
                {
                    return Err(stuck(&next));
                }
                (Some(next), _) => next,
                (None, Some(clip_end)) => clip_end,
                (None, None) => return Ok(false),
            };
            let on = self.end.as_ref().is_none_or(|end| next < *end);
            self.start = next;
            Ok(on)
        }
    }
}
