//! The work behind a stream of changes: asks each shard for its changes, and gives on what is complete.
//!
//! While there are changes, rounds follow one another: each takes a timestamp and asks every shard for all up to it. Once
//! a round brings nothing, a wait stands at each shard, and the first that has news begins the next round. So an idle
//! stream costs a wait for each shard, and a busy one a page, however many changes there are.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, sleep_until};

use super::{Event, Followed, Origin, Since};
use crate::changelog::{Ask, CursorState, Merge, Page};
use crate::client::request::{Asked, Reading, mismatched};
use crate::client::router::{Place, Target};
use crate::client::{Client, ScanOptions};
use crate::rpc::v1::session_reply::Reply;
use crate::rpc::v1::session_request::Request;
use crate::rpc::{convert, v1};
use crate::types::{Epoch, Error, ErrorKind, KeyRange, ReadAt, Result, Timestamp, key_after};

/// What shards may be ahead of others, in bytes of changes that wait: all of them together, and each by its part.
const BUFFER_BYTES: usize = 32 * 1024 * 1024;
/// Shards that are asked at a time.
const SHARDS_AT_A_TIME: usize = 16;
/// The pause between two rounds: what is committed meanwhile travels together.
const ROUND_PAUSE: Duration = Duration::from_millis(2);
/// It is longer where there are many shards: a round asks each.
const PAUSE_A_SHARD: Duration = Duration::from_micros(250);
/// The first pause where a lock holds a shard back, and the longest.
const LOCKED_PAUSE: Duration = Duration::from_millis(2);
const LONGEST_PAUSE: Duration = Duration::from_millis(100);
/// How long a replica waits for a change before it answers that there is none. Progress is told about so often.
const WAIT_MS: u32 = 500;
/// The pause after a wait that failed: the next one may fail at once.
const FAILED_PAUSE: Duration = Duration::from_millis(20);
/// The pause after a failure that may pass.
const RETRY_PAUSE: Duration = Duration::from_millis(200);
/// A failure that lasts is logged so often.
const WARN_EVERY: Duration = Duration::from_secs(10);
/// Events that travel together, at most.
const EVENTS_TOGETHER: usize = 512;
/// And bytes of keys and values, but for the last event.
const BYTES_TOGETHER: usize = 256 * 1024;

/// The task behind a stream.
pub(super) struct Follower {
    pub(super) client: Client,
    pub(super) origin: Arc<Origin>,
    pub(super) before_images: bool,
    pub(super) sender: mpsc::Sender<Result<Vec<Followed>>>,
    pub(super) reach: watch::Receiver<Timestamp>,
    /// What is wanted of the future; zero where nothing is.
    pub(super) future: Timestamp,
}

/// What waiting has come to.
enum Waited {
    /// There is something to be read, up to here.
    News(Timestamp),
    /// Progress is wanted.
    Wanted,
    Nothing,
}

/// Why the task ends.
enum End {
    /// Nobody listens any more.
    Dropped,
    Failed(Error),
}

impl From<Error> for End {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

impl Follower {
    pub(super) async fn run(mut self, since: Since) {
        if let Err(End::Failed(error)) = self.follow(since).await {
            // Whoever is gone by now misses nothing.
            let _ = self.sender.send(Err(error)).await;
        }
    }

    async fn follow(&mut self, since: Since) -> Result<(), End> {
        let is_oldest = since == Since::Oldest;
        let place = self.persist(|| self.client.place(&self.origin.followed, &since)).await?;
        let mut after = match place {
            CursorState::Following { after } => after,
            CursorState::Scanning { at, next } => self.scan(at, next).await?,
        };
        loop {
            let mut merge = Merge::new(self.origin.followed.clone(), after)?;
            match self.follow_on(&mut merge, after).await {
                // It was cut again before anything was told: the oldest is another one now.
                Err(End::Failed(Error { oldest: Some(cut), .. }))
                    if is_oldest && merge.watermark() == after =>
                {
                    after = cut;
                }
                ended => return ended,
            }
        }
    }

    async fn follow_on(&mut self, merge: &mut Merge, after: Timestamp) -> Result<(), End> {
        let mut waits = Waits::default();
        loop {
            let now = self.timestamp().await?;
            // What is wanted of the future comes by itself.
            let wanted = *self.reach.borrow();
            self.future = if wanted > now { wanted } else { Timestamp::ZERO };
            if after > now {
                return Err(Error::invalid(format!(
                    "timestamp {after} is in the future: the newest is {now}; follow from that or an earlier one"
                ))
                .into());
            }
            if self.round(merge, now).await? {
                let pieces = self.pieces(merge.wanted(usize::MAX).into_iter()).len();
                sleep(ROUND_PAUSE.max(PAUSE_A_SHARD * u32::try_from(pieces).unwrap_or(u32::MAX))).await;
                continue;
            }
            loop {
                let before = merge.watermark();
                match self.wait(merge, &mut waits).await? {
                    // What is known to be there is asked for at once; a fresh timestamp would cost a trip more.
                    Waited::News(news) => {
                        self.round(merge, news).await?;
                        break;
                    }
                    Waited::Wanted => break,
                    Waited::Nothing => self.progress(merge).await?,
                }
                if merge.watermark() == before {
                    // A replica that hears of nobody knows of no progress: a round asks until one does.
                    break;
                }
            }
        }
    }

    /// Asks until all is known up to `target`, and gives on what is complete. Answers whether there was anything.
    async fn round(&self, merge: &mut Merge, target: Timestamp) -> Result<bool, End> {
        let mut told = false;
        let mut warned = Instant::now();
        let mut pause = LOCKED_PAUSE;
        while merge.watermark() < target {
            let share = BUFFER_BYTES / merge.parts().len().max(1);
            let wanted = merge.wanted(share).into_iter().filter(|ask| ask.after < target);
            let asks = self.pieces(wanted);
            let mut pages = futures::stream::iter(asks)
                .map(|ask| self.page(ask, target))
                .buffer_unordered(SHARDS_AT_A_TIME);
            let before = merge.watermark();
            let (mut advanced, mut failed) = (false, None);
            while let Some(page) = pages.next().await {
                match page {
                    Ok(page) => {
                        let held_back = page.after == page.through;
                        advanced |= merge.accept(page)?.advanced && !held_back;
                    }
                    Err(error) if may_pass(&error) => failed = Some(error),
                    Err(error) => return Err(error.into()),
                }
            }
            drop(pages);
            told |= self.deliver(merge).await?;
            if let Some(error) = failed {
                warn_at_times(&mut warned, &error);
                sleep(RETRY_PAUSE).await;
            } else if advanced {
                pause = LOCKED_PAUSE;
            } else {
                // Transactions under way: they end soon, or are ended.
                sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
            if merge.watermark() > before {
                self.progress(merge).await?;
            }
        }
        Ok(told)
    }

    /// Gives on all transactions that are complete.
    async fn deliver(&self, merge: &mut Merge) -> Result<bool, End> {
        let mut told = false;
        loop {
            let (mut batch, mut size_bytes) = (Vec::new(), 0);
            while batch.len() < EVENTS_TOGETHER
                && size_bytes < BYTES_TOGETHER
                && let Some(changes) = merge.next()
            {
                size_bytes += changes.size_bytes();
                let place = CursorState::Following { after: changes.commit_ts };
                batch.push(self.followed(Event::Changes(changes), place));
            }
            if batch.is_empty() {
                return Ok(told);
            }
            told = true;
            self.send(batch).await?;
        }
    }

    async fn progress(&self, merge: &Merge) -> Result<(), End> {
        let after = merge.delivered();
        self.send(vec![self.followed(Event::Progress(after), CursorState::Following { after })]).await
    }

    fn followed(&self, event: Event, place: CursorState) -> Followed {
        Followed { event, place, origin: Arc::clone(&self.origin) }
    }

    async fn send(&self, batch: Vec<Followed>) -> Result<(), End> {
        self.sender.send(Ok(batch)).await.map_err(|_| End::Dropped)
    }

    /// Waits at every shard for a change, until progress is wanted, or for a while. Waits that are under way stay so: a node
    /// can't be told that nobody waits any more.
    async fn wait(&mut self, merge: &mut Merge, waits: &mut Waits) -> Result<Waited, End> {
        // A shard that can't be reached must not keep the others' news back, nor theirs of what it has told.
        let until = Instant::now() + Duration::from_millis(WAIT_MS.into());
        let future = self.future;
        loop {
            // Also one that has just ended without news: the next change may be there already.
            self.arm(merge, waits);
            tokio::select! {
                Some((range, waited)) = waits.under_way.next() => {
                    waits.armed.remove(&range);
                    match waited {
                        Ok((page, news)) => {
                            merge.accept(page)?;
                            // What came by a round meanwhile is no news.
                            if news > merge.watermark() {
                                return Ok(Waited::News(news));
                            }
                        }
                        // It began to wait before what is known by now, and that much was cut since.
                        Err(Error { oldest: Some(cut), .. }) if cut <= merge.watermark() => {}
                        Err(error) if may_pass(&error) => {
                            tracing::debug!(%error, "a shard can't be waited at now; asking again");
                        }
                        Err(error) => return Err(error.into()),
                    }
                }
                reached = self.reach.wait_for(|reach| *reach > merge.watermark() && *reach != future) => {
                    return reached.map(|_| Waited::Wanted).map_err(|_| End::Dropped);
                }
                () = sleep_until(until) => return Ok(Waited::Nothing),
            }
        }
    }

    /// Begins to wait wherever nobody waits.
    fn arm(&self, merge: &Merge, waits: &mut Waits) {
        for ask in self.pieces(merge.wanted(usize::MAX).into_iter()) {
            if waits.armed.insert(ask.range.clone()) {
                waits.under_way.push(wait_at(self.client.clone(), ask));
            }
        }
    }

    async fn page(&self, ask: Ask, up_to: Timestamp) -> Result<Page> {
        let before_images = self.before_images;
        let request = v1::ChangesPageRequest { up_to_ts: up_to.0, before_images, ..request(&ask) };
        page_of(&ask, self.client.changes_page(request).await?)
    }

    /// Cuts what is asked for at the bounds of shards, as the map has them. A shard that was cut meanwhile answers for
    /// its part, and the rest is asked for again.
    fn pieces(&self, asks: impl Iterator<Item = Ask>) -> Vec<Ask> {
        let router = self.client.shared.map.router();
        let cut = |ask: Ask| {
            let ranges = router.pieces(&ask.range);
            ranges.into_iter().map(move |range| Ask { range, ..ask.clone() })
        };
        asks.flat_map(cut).collect()
    }

    /// A fresh timestamp, however long that takes.
    async fn timestamp(&self) -> Result<Timestamp, End> {
        self.persist(|| self.client.timestamp()).await
    }

    /// Does something until it is done, or fails for good.
    async fn persist<T, F: Future<Output = Result<T>>>(&self, what: impl Fn() -> F) -> Result<T, End> {
        let mut warned = Instant::now();
        loop {
            match what().await {
                Ok(done) => return Ok(done),
                Err(error) if may_pass(&error) => {
                    warn_at_times(&mut warned, &error);
                    if self.sender.is_closed() {
                        return Err(End::Dropped);
                    }
                    sleep(RETRY_PAUSE).await;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Gives on all rows as of `at`, from the key `next` on. Answers `at`: what comes after follows.
    async fn scan(&self, at: Timestamp, mut next: Bytes) -> Result<Timestamp, End> {
        for range in &self.origin.followed {
            if range.end.as_ref().is_some_and(|end| *end <= next) {
                continue;
            }
            let mut start = range.start.clone().max(next.clone());
            // A scan that failed goes on behind its last row.
            while let Err(error) = self.scan_range(at, &mut start, range.end.clone()).await {
                match error {
                    End::Failed(error) if may_pass(&error) => sleep(RETRY_PAUSE).await,
                    end => return Err(end),
                }
            }
            next = start;
        }
        let place = CursorState::Following { after: at };
        self.send(vec![self.followed(Event::Progress(at), place)]).await?;
        Ok(at)
    }

    async fn scan_range(&self, at: Timestamp, start: &mut Bytes, end: Option<Bytes>) -> Result<(), End> {
        let options = ScanOptions { start: start.clone(), end, ..ScanOptions::default() };
        let mut scan = self.client.scan_as_of(options, ReadAt::Snapshot(at));
        let (mut batch, mut size_bytes) = (Vec::new(), 0);
        while let Some(row) = scan.next().await {
            let row = match row {
                Ok(row) => row,
                Err(error) => {
                    self.send(batch).await?;
                    return Err(error.into());
                }
            };
            *start = key_after(&row.key);
            let place = CursorState::Scanning { at, next: start.clone() };
            size_bytes += row.key.len() + row.record.value.len();
            batch.push(self.followed(Event::Row(row), place));
            if batch.len() >= EVENTS_TOGETHER || size_bytes >= BYTES_TOGETHER {
                size_bytes = 0;
                self.send(std::mem::take(&mut batch)).await?;
            }
        }
        self.send(batch).await
    }
}

/// A wait at one shard: which keys it is about, what it came to, and up to where there is something to be read.
type WaitAt = BoxFuture<'static, (KeyRange, Result<(Page, Timestamp)>)>;

/// Waits under way.
#[derive(Default)]
struct Waits {
    under_way: FuturesUnordered<WaitAt>,
    /// What they are about.
    armed: HashSet<KeyRange>,
}

fn wait_at(client: Client, ask: Ask) -> WaitAt {
    Box::pin(async move {
        let waited = async {
            let reply =
                client.changes_page(v1::ChangesPageRequest { wait_ms: WAIT_MS, ..request(&ask) }).await?;
            let news = Timestamp(reply.news_ts);
            Ok((page_of(&ask, reply)?, news))
        };
        let waited = waited.await;
        if waited.is_err() {
            sleep(FAILED_PAUSE).await;
        }
        (ask.range, waited)
    })
}

fn request(ask: &Ask) -> v1::ChangesPageRequest {
    v1::ChangesPageRequest {
        range: Some(convert::range_to_proto(ask.range.clone())),
        after_ts: ask.after.0,
        ..v1::ChangesPageRequest::default()
    }
}

/// Says that something fails which may go on failing.
fn warn_at_times(warned: &mut Instant, error: &Error) {
    if warned.elapsed() >= WARN_EVERY {
        tracing::warn!(%error, "changes can't be followed now; trying on");
        *warned = Instant::now();
    }
}

/// Whether trying again may help.
fn may_pass(error: &Error) -> bool {
    matches!(
        error.kind,
        ErrorKind::Unavailable | ErrorKind::Moved | ErrorKind::Undetermined | ErrorKind::Conflict
    )
}

/// A reply as a page, checked as far as `Merge` does not.
fn page_of(ask: &Ask, reply: v1::ChangesPageReply) -> Result<Page> {
    let range = convert::range_from_proto(reply.range.unwrap_or_default())?;
    Ok(Page {
        range,
        epoch: Epoch(reply.epoch),
        after: ask.after,
        through: Timestamp(reply.through_ts),
        transactions: reply.transactions.into_iter().map(convert::changes_from_proto).collect(),
    })
}

impl Client {
    /// After which timestamp changes are kept, in all shards of these ranges.
    pub(super) async fn oldest_change(&self, ranges: &[KeyRange]) -> Result<Timestamp> {
        let mut oldest = Timestamp::ZERO;
        loop {
            match self.changes_after(ranges, oldest).await {
                Ok(_) => return Ok(oldest),
                Err(Error { oldest: Some(cut), .. }) if cut > oldest => oldest = cut,
                Err(error) => return Err(error),
            }
        }
    }

    /// How many changes of the shard that holds the range's first key were committed after a timestamp, nearly.
    pub(super) async fn count_changes(&self, range: &KeyRange, after: Timestamp) -> Result<u64> {
        let request = v1::ChangesPageRequest {
            range: Some(convert::range_to_proto(range.clone())),
            after_ts: after.0,
            count_only: true,
            ..v1::ChangesPageRequest::default()
        };
        Ok(self.changes_page(request).await?.behind)
    }

    /// Asks a replica of the shard that holds the range's first key, and for no more than that shard holds.
    async fn changes_page(&self, request: v1::ChangesPageRequest) -> Result<v1::ChangesPageReply> {
        let range = convert::range_from_proto(request.range.clone().unwrap_or_default())?;
        let build = |header, target: &Target| {
            let shard = target.shard.as_ref().map(|(_, shard)| convert::user_part(shard));
            let part = shard.and_then(|shard| shard.intersect(&range)).unwrap_or_else(|| range.clone());
            let range = Some(convert::range_to_proto(part));
            Ok(Request::ChangesPage(v1::ChangesPageRequest {
                header: Some(header),
                range,
                ..request.clone()
            }))
        };
        let waits = request.up_to_ts == 0 && !request.count_only;
        let read = Some(Reading { policy: self.policy, prefer: None, route: None, waits });
        let place = Place::Key(&range.start);
        match self.ask(Asked { place, build: &build, fresh: false, read }).await? {
            Reply::ChangesPage(reply) => Ok(*reply),
            other => Err(mismatched(&other)),
        }
    }
}
