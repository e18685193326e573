//! Following changes: one stream of whole transactions over all shards, in commit order.
//!
//! `follow` asks the shards' replicas and puts their answers together (`crate::changelog::Merge`); `consumer` keeps
//! cursors in the cluster under a name.

mod consumer;
mod follow;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, watch};
use tokio_util::task::AbortOnDropHandle;

use super::{Client, Row};
use crate::changelog::{Cursor, CursorState};
use crate::rpc::validate;
use crate::types::{Change, Changes, ClusterId, Error, KeyRange, Result, Timestamp};

pub use consumer::{Consumer, ConsumerStatus};

/// Batches of events that wait for whoever follows, at most.
const BATCHES_WAITING: usize = 2;

/// How long one of the calls behind a stream may take before it is made again.
const CALL_DEADLINE: Duration = Duration::from_secs(10);

/// Where following begins.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum Since {
    /// With what is committed after the call.
    #[default]
    Now,
    /// With what is committed after a timestamp.
    Timestamp(Timestamp),
    /// Right behind the event that bore this cursor.
    Cursor(Cursor),
    /// With the rows as they are, at one timestamp over all shards, then with what is committed after it: no gap, and
    /// nothing twice.
    Scan,
    /// With the oldest change that is kept.
    Oldest,
}

/// What to follow, and how. The default is every key, from now on.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
#[must_use]
pub struct FollowOptions {
    /// The keys; none is all of them.
    pub ranges: Vec<KeyRange>,
    /// Where to begin.
    pub since: Since,
    /// Tell what keys held before they were changed.
    pub before_images: bool,
}

impl FollowOptions {
    /// Every key, from now on.
    pub fn all() -> Self {
        Self::default()
    }

    /// The keys that begin with `prefix`, from now on.
    pub fn prefix(prefix: impl AsRef<[u8]>) -> Self {
        Self::all().and_prefix(prefix)
    }

    /// These keys too: those that begin with `prefix`.
    pub fn and_prefix(self, prefix: impl AsRef<[u8]>) -> Self {
        self.and_range(KeyRange::prefix(Bytes::copy_from_slice(prefix.as_ref())))
    }

    /// These keys too.
    pub fn and_range(mut self, range: KeyRange) -> Self {
        self.ranges.push(range);
        self
    }

    /// Begin elsewhere than now.
    pub fn since(mut self, since: Since) -> Self {
        self.since = since;
        self
    }

    /// Tell what keys held before they were changed.
    pub fn before_images(mut self) -> Self {
        self.before_images = true;
        self
    }

    /// The ranges, joined and checked.
    pub(crate) fn followed(&self) -> Result<Vec<KeyRange>> {
        validate::followed(&self.ranges)
    }
}

/// Something that whoever follows is told.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// A row of the scan at the beginning.
    Row(Row),
    /// A transaction: all that it changed of the followed keys. A single write is one too.
    Changes(Changes),
    /// Nothing more is committed at or before this timestamp. Right after a scan it is the one that was read at.
    Progress(Timestamp),
}

/// An event, and where to go on behind it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Followed {
    /// What happened.
    pub event: Event,
    place: CursorState,
    origin: Arc<Origin>,
}

/// What all cursors of a stream say.
#[derive(PartialEq, Eq, Debug)]
struct Origin {
    /// At some place.
    cursor: Cursor,
    followed: Vec<KeyRange>,
}

impl Followed {
    /// Goes on right behind the event: keep it once the event is done with.
    pub fn cursor(&self) -> Cursor {
        self.origin.cursor.at(self.place.clone())
    }
}

/// A stream of changes: every committed transaction once, whole, in the order of commit timestamps. It waits for the
/// next one and ends only with an error; while shards can't be reached it goes on trying. Whoever follows sets the pace:
/// little is fetched ahead. Dropped, it stops.
pub struct ChangeStream {
    events: VecDeque<Followed>,
    batches: mpsc::Receiver<Result<Vec<Followed>>>,
    reach: watch::Sender<Timestamp>,
    _task: AbortOnDropHandle<()>,
}

impl Client {
    /// Follows what is committed.
    ///
    /// ```no_run
    /// # async fn example(client: kvorum::Client) -> kvorum::Result<()> {
    /// use kvorum::client::{Event, FollowOptions, Since};
    ///
    /// let mut changes = client.changes(FollowOptions::prefix("order/").since(Since::Scan))?;
    /// loop {
    ///     let followed = changes.next().await?;
    ///     match &followed.event {
    ///         Event::Row(row) => println!("there is {:?}", row.key),
    ///         Event::Changes(changes) => println!("{} keys changed at {}", changes.changes.len(), changes.commit_ts),
    ///         Event::Progress(ts) => println!("that is all up to {ts}"),
    ///     }
    ///     std::fs::write("cursor", followed.cursor().encode()).expect("kept");
    /// }
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// `Invalid` for ranges that hold no key, and for a cursor of another cluster, or of a scan of other ranges.
    pub fn changes(&self, options: FollowOptions) -> Result<ChangeStream> {
        let followed = options.followed()?;
        let cluster = self.cluster()?;
        if let Since::Cursor(cursor) = &options.since {
            cursor.check(cluster, &followed)?;
        }
        let (sender, batches) = mpsc::channel(BATCHES_WAITING);
        let (reach, reached) = watch::channel(Timestamp::ZERO);
        let cursor = Cursor::new(cluster, &followed, CursorState::Following { after: Timestamp::ZERO });
        let follower = follow::Follower {
            // It goes on for as long as it is wanted: the client's deadline is not about it.
            client: self.with_deadline(CALL_DEADLINE),
            origin: Arc::new(Origin { cursor, followed }),
            before_images: options.before_images,
            sender,
            reach: reached,
            future: Timestamp::ZERO,
        };
        let task = tokio::spawn(follower.run(options.since));
        Ok(ChangeStream { events: VecDeque::new(), batches, reach, _task: AbortOnDropHandle::new(task) })
    }

    /// The place in the changelog that is meant.
    pub(super) async fn place(&self, followed: &[KeyRange], since: &Since) -> Result<CursorState> {
        Ok(match since {
            Since::Now => CursorState::Following { after: self.timestamp().await? },
            Since::Timestamp(after) => CursorState::Following { after: *after },
            Since::Scan => CursorState::Scanning { at: self.timestamp().await?, next: Bytes::new() },
            Since::Oldest => CursorState::Following { after: self.oldest_change(followed).await? },
            Since::Cursor(cursor) => {
                cursor.check(self.cluster()?, followed)?;
                cursor.state().clone()
            }
        })
    }

    pub(crate) fn cluster(&self) -> Result<ClusterId> {
        let cluster = self.cluster_id().parse();
        cluster.map_err(|_| Error::unavailable("the client does not know its cluster yet: try again"))
    }

    /// What a key held before it was changed, where the change does not tell
    /// ([`Before::TooLarge`](crate::types::Before::TooLarge)).
    ///
    /// # Errors
    ///
    /// Those of a read; `TooOld` once the versions of that time are gone.
    pub async fn value_before(&self, commit_ts: Timestamp, change: &Change) -> Result<Option<Bytes>> {
        Ok(self.get_at(&change.key, commit_ts.before()).await?.map(|record| record.value))
    }
}

impl ChangeStream {
    /// The next event. Cancel-safe: nothing is lost where it is dropped.
    ///
    /// # Errors
    ///
    /// `TooOld` with [`oldest`](Error::oldest) where the changelog was cut past the place to go on from: start over with
    /// [`Since::Scan`]. `Invalid` for a place in the future. After an error the stream gives only that it has ended.
    pub async fn next(&mut self) -> Result<Followed> {
        loop {
            if let Some(followed) = self.events.pop_front() {
                return Ok(followed);
            }
            match self.batches.recv().await {
                Some(Ok(batch)) => self.events.extend(batch),
                Some(Err(error)) => return Err(error),
                None => {
                    return Err(Error::unavailable(
                        "the stream of changes has ended: follow again from the last cursor",
                    ));
                }
            }
        }
    }

    /// The next event, where it is there already.
    ///
    /// # Errors
    ///
    /// As for [`next`](Self::next).
    pub fn try_next(&mut self) -> Option<Result<Followed>> {
        if self.events.is_empty()
            && let Ok(batch) = self.batches.try_recv()
        {
            match batch {
                Ok(batch) => self.events.extend(batch),
                Err(error) => return Some(Err(error)),
            }
        }
        self.events.pop_front().map(Ok)
    }

    /// Has the stream tell soon of everything up to `ts`, also where nothing is changed: the next
    /// [`Event::Progress`] at or above it comes as soon as that is known. One in the future comes when its time has come.
    pub fn reach(&self, ts: Timestamp) {
        self.reach.send_if_modified(|reach| {
            let is_later = ts > *reach;
            *reach = ts.max(*reach);
            is_later
        });
    }
}
