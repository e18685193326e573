//! The transactions of a projection: what events do to the read model, and the place behind them, in one step.

use std::time::Duration;

use bytes::Bytes;

use super::Projection;
use super::checkpoint::{Checkpoint, Place};
use crate::changelog::Cursor;
use crate::client::changes::{Event, FollowOptions};
use crate::client::{Client, Transaction, Txn};
use crate::rpc::convert;
use crate::types::{ClusterId, Error, ErrorKind, KeyRange, Result};

/// Attempts at one transaction before it is tried with fewer events.
const ATTEMPTS: u32 = 5;

/// An event, and the place behind it.
#[derive(Clone, Debug)]
pub(super) struct Item {
    pub(super) event: Event,
    pub(super) place: Cursor,
}

impl Item {
    pub(super) fn size_bytes(&self) -> usize {
        match &self.event {
            Event::Row(row) => row.key.len() + row.record.value.len(),
            Event::Changes(changes) => changes.size_bytes(),
            Event::Progress(_) => 0,
        }
    }
}

/// Why a transaction was not committed, or not known to be.
#[derive(Debug)]
pub(super) enum Failed {
    /// An earlier transaction of this run, of which that was not known, has moved the place to here.
    Moved(Checkpoint),
    /// It is over the limits of a transaction.
    TooLarge(Error),
    Error(Error),
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

/// One run of a projection: what it is, and where it believes to be.
pub(super) struct Writer<P> {
    pub(super) client: Client,
    pub(super) projection: P,
    pub(super) name: String,
    /// Where the checkpoint is kept.
    pub(super) key: Bytes,
    pub(super) options: FollowOptions,
    pub(super) followed: Vec<KeyRange>,
    pub(super) cluster: ClusterId,
    /// What the checkpoint holds, as far as this run knows.
    pub(super) believed: Checkpoint,
    /// How long one transaction may take.
    pub(super) deadline: Duration,
}

impl<P: Projection> Writer<P> {
    /// Takes the projection over from whoever ran it before, or begins it.
    pub(super) async fn open(&mut self, restart: bool) -> Result<()> {
        let run = self.believed.run;
        let this = &*self;
        let opened = this.transaction().max_attempts(u32::MAX).run(|txn| async move {
            let held = txn.get(&this.key).await?;
            let place = match held {
                _ if restart => Place::Clearing,
                Some(record) => this.checked(Checkpoint::decode(&this.key, &record.value)?.place)?,
                None => this.beginning().await?,
            };
            let checkpoint = Checkpoint { run, place };
            txn.put(&this.key, checkpoint.encode())?;
            Ok(checkpoint)
        });
        self.believed = opened.await?.value;
        Ok(())
    }

    /// Where the projection begins when nothing of it is there. Whatever `since` says is a place from here on.
    async fn beginning(&self) -> Result<Place> {
        let state = self.client.place(&self.followed, &self.options.since).await?;
        Ok(Place::At(Cursor::new(self.cluster, &self.followed, state)))
    }

    /// Refuses a place that belongs to other keys: of those that it did not follow, changes would be missing.
    fn checked(&self, place: Place) -> Result<Place> {
        if let Place::At(cursor) = &place {
            cursor.check(self.cluster, &self.followed)?;
            if *cursor != Cursor::new(self.cluster, &self.followed, cursor.state().clone()) {
                return Err(Error::invalid(format!(
                    "the projection {:?} has followed other keys until now, so what it made lacks some of these: follow \
                     the keys that it followed, run it under another name, or have it `restart`",
                    self.name
                )));
            }
        }
        Ok(place)
    }

    /// Applies events and keeps the place behind the last, in one transaction. Nothing to do where there are none.
    pub(super) async fn write(&mut self, items: &[Item]) -> Result<(), Failed> {
        let Some(last) = items.last() else { return Ok(()) };
        let next = Checkpoint { run: self.believed.run, place: Place::At(last.place.clone()) };
        let (this, then) = (&*self, &next);
        let written = this.transaction().try_run(|txn| async move {
            this.check_place(&txn).await?;
            for item in items {
                if let Err(error) = this.projection.apply(&item.event, &txn).await {
                    // Where the limits are the reason, fewer events may do, whatever `apply` makes of it.
                    txn.check_limits().map_err(Failed::TooLarge)?;
                    return Err(Failed::Error(this.of_event(item, error)));
                }
            }
            this.keep(&txn, then)
        });
        written.await?;
        self.believed = next;
        Ok(())
    }

    /// Removes some of the read model. When nothing is left of it, the projection begins anew.
    pub(super) async fn clear(&mut self) -> Result<(), Failed> {
        let this = &*self;
        let cleared = this.transaction().try_run(|txn| async move {
            this.check_place(&txn).await?;
            let more = this.projection.clear(&txn).await?;
            let place = if more { Place::Clearing } else { this.beginning().await? };
            let next = Checkpoint { run: this.believed.run, place };
            this.keep(&txn, &next).map_err(|failed| match failed {
                Failed::TooLarge(error) => Failed::Error(Error {
                    message: format!(
                        "`clear` of the projection {:?} does too much at a time: let it remove less and answer that there \
                         is more ({})",
                        this.name, error.message
                    ),
                    ..error
                }),
                failed => failed,
            })?;
            Ok::<_, Failed>(next)
        });
        self.believed = cleared.await?.value;
        Ok(())
    }

    /// Looks where the projection is, after a commit whose outcome is not known.
    pub(super) async fn look(&mut self) -> Result<()> {
        let held = self.client.with_deadline(self.deadline).get(&self.key).await?;
        self.believed = self.own(held.map(|record| record.value))?;
        Ok(())
    }

    /// The place must be what this run believes: what it is about to do goes on from there, and nowhere else. It is read
    /// in the transaction, so the commit is refused where somebody moves it meanwhile.
    async fn check_place(&self, txn: &Txn) -> Result<(), Failed> {
        let held = txn.get(&self.key).await?.map(|record| record.value);
        let held = self.own(held)?;
        if held == self.believed { Ok(()) } else { Err(Failed::Moved(held)) }
    }

    /// What the checkpoint's key holds, if it is of this run.
    fn own(&self, held: Option<Bytes>) -> Result<Checkpoint> {
        let lost = |why: &str| {
            Error::denied(format!(
                "the projection {:?} is not this process's any more: {why} (the checkpoint is the key {}). What this process \
                 has applied stands. Stop here, or start it again if this process shall have it",
                self.name,
                convert::printable(&self.key)
            ))
        };
        let Some(held) = held else { return Err(lost("its checkpoint was removed")) };
        let held = Checkpoint::decode(&self.key, &held)?;
        if held.run != self.believed.run {
            return Err(lost("another process has started it"));
        }
        Ok(held)
    }

    /// Writes the checkpoint, last of all, and refuses what must not be committed.
    fn keep(&self, txn: &Txn, next: &Checkpoint) -> Result<(), Failed> {
        if let Some(key) = self.followed.iter().find_map(|range| txn.written_within(range)) {
            return Err(Failed::Error(Error::invalid(format!(
                "the projection {:?} writes the key {}, which lies in what it follows, so it would follow itself without \
                 end: write outside of the followed ranges",
                self.name,
                convert::printable(&key)
            ))));
        }
        // The limits are asked about below: an error of this write may be about them.
        let put = txn.put(&self.key, next.encode());
        txn.check_limits().map_err(Failed::TooLarge)?;
        Ok(put?)
    }

    fn transaction(&self) -> Transaction {
        let label = format!("projection {}", self.name);
        self.client.transaction().label(label).deadline(self.deadline).max_attempts(ATTEMPTS)
    }

    /// An error that says which event it is about.
    pub(super) fn of_event(&self, item: &Item, error: Error) -> Error {
        let event = match &item.event {
            Event::Row(row) => format!("the row {}", convert::printable(&row.key)),
            Event::Changes(changes) => format!("the transaction at {}", changes.commit_ts),
            Event::Progress(ts) => format!("progress up to {ts}"),
        };
        let message = format!("the projection {:?} can't apply {event}: {}", self.name, error.message);
        Error { message, ..error }
    }
}

/// Whether trying the same again may help.
pub(super) fn may_pass(error: &Error) -> bool {
    matches!(
        error.kind,
        ErrorKind::Conflict | ErrorKind::Unavailable | ErrorKind::Moved | ErrorKind::Undetermined
    )
}
