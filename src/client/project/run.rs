//! The task of a projection: takes events from the changelog and hands them to the writer, as many at a time as go well.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use super::Projection;
use super::checkpoint::Place;
use super::handle::Shared;
use super::writer::{Failed, Item, Writer, may_pass};
use crate::changelog::Cursor;
use crate::client::changes::{ChangeStream, Event, Followed, Since};
use crate::types::{Error, ErrorKind, Result, Timestamp};

/// The first pause after a failure that may pass, and the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// A failure that lasts is logged so often.
const WARN_EVERY: Duration = Duration::from_secs(10);

/// How much goes into one transaction, and how often a place is kept though nothing has happened.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    pub(super) events: usize,
    pub(super) bytes: usize,
    pub(super) idle: Duration,
}

/// A projection that runs.
pub(super) struct Run<P> {
    pub(super) writer: Writer<P>,
    pace: Pace,
    shared: Arc<Shared>,
    watermark: watch::Sender<Timestamp>,
    wanted: watch::Receiver<Timestamp>,
    /// Events that one transaction may take now: fewer where they were too many, and after failures that may pass.
    events: usize,
    pause: Duration,
    /// When the place was kept last.
    kept: Instant,
    warned: Option<Instant>,
}

/// What a transaction came to.
#[derive(PartialEq, Eq, Debug)]
pub(super) enum Done {
    /// So many events are in the read model.
    Kept(usize),
    /// Nothing was done: once more.
    Again,
    /// The place is another than was believed: follow from there.
    Elsewhere,
}

impl<P: Projection> Run<P> {
    /// A run of a projection that was opened just now.
    pub(super) fn new(
        writer: Writer<P>,
        pace: Pace,
        shared: Arc<Shared>,
        watermark: watch::Sender<Timestamp>,
        wanted: watch::Receiver<Timestamp>,
    ) -> Self {
        let (events, pause, kept) = (pace.events, FIRST_PAUSE, Instant::now());
        Self { writer, pace, shared, watermark, wanted, events, pause, kept, warned: None }
    }

    /// Runs until something is wrong that does not pass by itself.
    pub(super) async fn run(mut self) {
        let error = loop {
            let ended = match &self.writer.believed.place {
                Place::Clearing => self.clear().await,
                Place::At(cursor) => {
                    let cursor = cursor.clone();
                    self.follow(cursor).await
                }
            };
            if let Err(error) = ended {
                break error;
            }
        };
        tracing::warn!(projection = self.writer.name, %error, "a projection has ended");
        self.shared.end(error);
    }

    /// Removes what an earlier beginning has left.
    async fn clear(&mut self) -> Result<()> {
        while self.writer.believed.place == Place::Clearing {
            match self.writer.clear().await {
                Ok(()) => self.went_well(0),
                Err(Failed::TooLarge(error)) => return Err(error),
                Err(failed) => {
                    self.failed(failed).await?;
                }
            }
        }
        Ok(())
    }

    /// Follows from a place on, for as long as the place that is kept is the one that is believed.
    async fn follow(&mut self, cursor: Cursor) -> Result<()> {
        let options = self.writer.options.clone().since(Since::Cursor(cursor));
        let mut stream = self.writer.client.changes(options)?;
        self.tell(self.writer.believed.place.watermark());
        stream.reach(*self.wanted.borrow_and_update());
        let mut queue = VecDeque::new();
        loop {
            if queue.is_empty() {
                match self.next(&mut stream).await {
                    Ok(followed) => queue.push_back(item(followed)),
                    Err(error) if may_pass(&error) => {
                        self.wait_after(error).await;
                        return Ok(());
                    }
                    Err(error) => return Err(error),
                }
            }
            // What is there already goes along. An error waits for its turn: the stream gives it, or that it has ended.
            let failed = self.fill(&mut stream, &mut queue);
            while !queue.is_empty() {
                match self.work(queue.make_contiguous()).await? {
                    Done::Kept(count) => drop(queue.drain(..count)),
                    Done::Again => {}
                    Done::Elsewhere => return Ok(()),
                }
            }
            match failed {
                Some(error) if may_pass(&error) => {
                    self.wait_after(error).await;
                    return Ok(());
                }
                Some(error) => return Err(error),
                None => {}
            }
        }
    }

    /// The next event; meanwhile the stream learns what is waited for.
    async fn next(&mut self, stream: &mut ChangeStream) -> Result<Followed> {
        loop {
            tokio::select! {
                followed = stream.next() => return followed,
                changed = self.wanted.changed() => match changed {
                    Ok(()) => stream.reach(*self.wanted.borrow_and_update()),
                    Err(_) => return Err(Error::denied("nobody holds the projection any more")),
                },
            }
        }
    }

    fn fill(&mut self, stream: &mut ChangeStream, queue: &mut VecDeque<Item>) -> Option<Error> {
        stream.reach(*self.wanted.borrow_and_update());
        let mut bytes: usize = queue.iter().map(Item::size_bytes).sum();
        while queue.len() < self.pace.events && bytes < self.pace.bytes {
            match stream.try_next() {
                Some(Ok(followed)) => {
                    let item = item(followed);
                    bytes += item.size_bytes();
                    queue.push_back(item);
                }
                Some(Err(error)) => return Some(error),
                None => break,
            }
        }
        None
    }

    /// One transaction with the first events of the queue; or none, where they only say that time has passed.
    pub(super) async fn work(&mut self, queue: &[Item]) -> Result<Done> {
        let idle = queue.iter().all(|item| matches!(item.event, Event::Progress(_)));
        if idle && !self.writer.believed.place.is_scanning() && self.kept.elapsed() < self.pace.idle {
            if let Some(last) = queue.last() {
                self.tell(Place::At(last.place.clone()).watermark());
            }
            return Ok(Done::Kept(queue.len()));
        }
        let count = self.events.clamp(1, queue.len().max(1));
        let Some(batch) = queue.get(..count) else { return Ok(Done::Kept(0)) };
        match self.writer.write(batch).await {
            Ok(()) => {
                self.went_well(count);
                Ok(Done::Kept(count))
            }
            Err(Failed::TooLarge(error)) if count == 1 => {
                let error = self.writer.of_event(&batch[0], error);
                let message = format!(
                    "{}. It is one event, and applied in one transaction: let `apply` read and write less for it",
                    error.message
                );
                Err(Error { message, ..error })
            }
            Err(Failed::TooLarge(_)) => {
                self.events = count / 2;
                Ok(Done::Again)
            }
            Err(failed) => {
                // Fewer have less in their way, and are done sooner: it may have run out of time.
                if matches!(&failed, Failed::Error(error) if may_pass(error)) {
                    self.events = (count / 2).max(1);
                }
                self.failed(failed).await
            }
        }
    }

    /// What to do after a failure; the error where it does not pass.
    async fn failed(&mut self, failed: Failed) -> Result<Done> {
        match failed {
            Failed::Moved(checkpoint) => {
                self.writer.believed = checkpoint;
                Ok(Done::Elsewhere)
            }
            Failed::Error(error) if error.kind == ErrorKind::Undetermined => {
                self.wait_after(error).await;
                // Whatever it shows, a commit under way may still move the place, once: the next transaction sees that, or
                // has it refused.
                while let Err(error) = self.writer.look().await {
                    if !may_pass(&error) {
                        return Err(error);
                    }
                    self.wait_after(error).await;
                }
                Ok(Done::Elsewhere)
            }
            Failed::Error(error) if may_pass(&error) => {
                self.wait_after(error).await;
                Ok(Done::Again)
            }
            Failed::TooLarge(error) | Failed::Error(error) => Err(error),
        }
    }

    fn went_well(&mut self, events: usize) {
        self.kept = Instant::now();
        self.pause = FIRST_PAUSE;
        self.events = (self.events * 2).min(self.pace.events);
        self.shared.kept(events);
        self.tell(self.writer.believed.place.watermark());
    }

    /// Nothing that was told is taken back: it is in the read model, also where no place behind it is kept.
    fn tell(&self, watermark: Timestamp) {
        self.watermark.send_if_modified(|told| {
            let is_later = watermark > *told;
            *told = watermark.max(*told);
            is_later
        });
    }

    /// Another rhythm of keeping places while nothing happens.
    #[cfg(test)]
    pub(super) fn pace_for_tests(&mut self, idle: Duration) {
        self.pace.idle = idle;
    }

    async fn wait_after(&mut self, error: Error) {
        if self.warned.is_none_or(|warned| warned.elapsed() >= WARN_EVERY) {
            tracing::warn!(projection = self.writer.name, %error, "a projection can't go on now; trying on");
            self.warned = Some(Instant::now());
        }
        self.shared.trying(error);
        sleep(self.pause).await;
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
    }
}

fn item(followed: Followed) -> Item {
    Item { place: followed.cursor(), event: followed.event }
}
