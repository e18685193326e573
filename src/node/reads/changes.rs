//! Reading a replica's changelog: pages of what was committed, and waiting until there is something to be read.

use std::time::Duration;

use tokio::time::Instant;

use super::local::{Instance, Ready, broken_off};
use crate::engine::View;
use crate::node::replica::Replica;
use crate::raft::Leadership;
use crate::shard::{self, ChangesPage, ChangesRequest, State};
use crate::types::{Error, KeyRange, Result, Timestamp, limits};

/// The most rows of the changelog that a page looks at, of keys that nobody asked for too.
const MAX_ROWS: usize = 20_000;
/// How often a busy shard is looked at for changes of a few keys.
const LOOK_EVERY: Duration = Duration::from_millis(2);

/// What a wait for changes has come to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Waited {
    /// No change was committed after what the reader knows, up to here.
    pub through: Timestamp,
    /// Up to where there is something to be read; `None` where nothing came.
    pub news: Option<Timestamp>,
}

impl Replica {
    /// What was committed in a part of this shard after `after`, up to `up_to` and no further than the resolved
    /// timestamp. Any replica answers.
    ///
    /// # Errors
    ///
    /// `TooOld` with [`oldest`](Error::oldest) where the changelog was cut past `after`; `Unavailable` where the replica
    /// can't know all up to `up_to` in time; `Invalid` where that was not handed out yet.
    pub async fn changes(
        &self,
        range: &KeyRange,
        (after, up_to): (Timestamp, Timestamp),
        before_images: bool,
        deadline: Instant,
    ) -> Result<(ChangesPage, Ready)> {
        if up_to > self.closed() {
            self.read_timestamp(up_to).await?;
        }
        let ready = self.ready_at(Instance { at: up_to, confirm: false }, deadline).await?;
        let request = ChangesRequest {
            range: range.clone(),
            after,
            up_to,
            before_images,
            max_bytes: limits::MAX_PAGE_BYTES,
            max_rows: MAX_ROWS,
            max_before_bytes: limits::MAX_BEFORE_BYTES,
        };
        Ok((self.read_changes(request).await?, ready))
    }

    /// How many changes of this shard were committed after `after`, nearly, as far as this replica knows.
    ///
    /// # Errors
    ///
    /// `TooOld` with [`oldest`](Error::oldest) where the changelog was cut past `after`.
    pub async fn count_changes(&self, after: Timestamp) -> Result<u64> {
        self.on_rows(after, move |state, view| {
            shard::changes_after(view, state.descriptor.id, state.changes, after)
        })
        .await
    }

    /// Waits until this replica has a change in a part of the shard that was committed after `after`, or for `most`.
    ///
    /// # Errors
    ///
    /// `TooOld` with [`oldest`](Error::oldest) where the changelog was cut past `after`.
    pub async fn wait_for_changes(
        &self,
        range: &KeyRange,
        after: Timestamp,
        most: Duration,
    ) -> Result<Waited> {
        let until = Instant::now() + most;
        let mut applied = self.group.watch_applied();
        let mut watch = Watch { known: after, looked_at: None };
        loop {
            if let Leadership::Stopped { .. } = self.group.leadership() {
                return Err(self.not_ready("has stopped"));
            }
            applied.borrow_and_update();
            // In this order; see `Watch`.
            let closed_before = self.closed();
            let state = self.group.state();
            let seen = Seen { entries: state.changes.entries, locks: state.counts.locks };
            let closed_after = self.closed();
            let at_end = Instant::now() >= until;
            if let Some(up_to) = watch.look(closed_before, seen, closed_after, at_end) {
                let page = self.read_changes(look(range, watch.known, up_to)).await?;
                if !page.transactions.is_empty() {
                    return Ok(Waited { through: watch.known, news: Some(page.through) });
                }
                if watch.looked(seen, up_to, page.through) && !at_end {
                    continue;
                }
            }
            if at_end {
                return Ok(Waited { through: watch.known, news: None });
            }
            let moves = async {
                if applied.changed().await.is_err() {
                    // The core was started again: what it applies now is told elsewhere.
                    std::future::pending::<()>().await;
                }
                tokio::time::sleep(LOOK_EVERY).await;
            };
            // At the end it looks once more.
            let _ = tokio::time::timeout_at(until, moves).await;
        }
    }

    async fn read_changes(&self, request: ChangesRequest) -> Result<ChangesPage> {
        if !self.group.state().descriptor.range.covers(&request.range) {
            return Err(self.moved(None));
        }
        self.on_rows(request.after, move |state, view| {
            shard::changes_page(view, state.descriptor.id, state.counts, &request)
        })
        .await
    }

    /// Reads what was committed after a timestamp, where that is kept: with a state and the rows then or later. The
    /// versions that rows point at stay until it is done.
    async fn on_rows<T: Send + 'static>(
        &self,
        after: Timestamp,
        read: impl FnOnce(&State, &dyn View) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let replica = self.group.replica();
        check_kept(&replica.state(), after)?;
        let hold = self.floors.hold(self.group.id(), after);
        let hold = hold.map_err(|error| check_kept(&replica.state(), after).err().unwrap_or(error))?;
        let read = tokio::task::spawn_blocking(move || {
            let _hold = hold;
            let state = replica.state();
            let view = replica.view()?;
            // A snapshot may have taken the place of everything in between.
            check_kept(&replica.state(), after)?;
            read(&state, &*view)
        });
        read.await.map_err(broken_off)?
    }
}

/// What of a replica's state tells that there may be something new to be seen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Seen {
    /// Rows that the changelog was ever given.
    entries: u64,
    /// Locks of all kinds that are held.
    locks: u64,
}

/// How far a wait for changes knows that there are none, and when it must look at the rows.
///
/// The replica goes on applying between any two looks at it. So what is passed over unread goes only up to what was
/// closed *before* the state was taken in which nothing is new: all of that is in the state. What is read may go up to
/// what is closed *after* it: the rows are read later still.
struct Watch {
    /// Nothing was committed up to here.
    known: Timestamp,
    /// What the state was before the last look.
    looked_at: Option<Seen>,
}

impl Watch {
    /// Up to where the rows are to be read now, if they are. `seen` is of a state that was taken after
    /// `closed_before` and before `closed_after`.
    fn look(
        &mut self,
        closed_before: Timestamp,
        seen: Seen,
        closed_after: Timestamp,
        at_end: bool,
    ) -> Option<Timestamp> {
        // Where nothing was written and no lock released since, nothing is there that was not.
        let is_same = self.looked_at == Some(seen);
        if is_same && seen.locks == 0 {
            self.known = self.known.max(closed_before);
        }
        (closed_after > self.known && (at_end || !is_same)).then_some(closed_after)
    }

    /// Notes that a look up to `up_to` found nothing as far as `through`. Answers whether the next look is due at once:
    /// there are more rows than a page looks at, or a lock is in the way, which the next look tells.
    fn looked(&mut self, seen: Seen, up_to: Timestamp, through: Timestamp) -> bool {
        let advanced = through > self.known;
        self.known = self.known.max(through);
        if advanced && through < up_to {
            return true;
        }
        self.looked_at = Some(seen);
        false
    }
}

/// A page with as little as can be: whether there is anything.
fn look(range: &KeyRange, after: Timestamp, up_to: Timestamp) -> ChangesRequest {
    ChangesRequest {
        range: range.clone(),
        after,
        up_to,
        before_images: false,
        max_bytes: 1,
        max_rows: MAX_ROWS,
        max_before_bytes: 0,
    }
}

/// Whether the changelog still has everything after a timestamp.
fn check_kept(state: &State, after: Timestamp) -> Result<()> {
    if after >= state.truncated {
        return Ok(());
    }
    Err(Error::truncated(
        format!(
            "changes committed after {after} were cut off: the changelog of shard {} begins after {}; start over with a \
             scan, and follow from its timestamp",
            state.descriptor.id, state.truncated
        ),
        state.truncated,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ts(ts: u64) -> Timestamp {
        Timestamp(ts)
    }

    #[test]
    fn what_is_applied_between_two_looks_is_never_passed_over() {
        let (empty, one) = (Seen { entries: 5, locks: 0 }, Seen { entries: 6, locks: 0 });
        let mut watch = Watch { known: ts(10), looked_at: None };
        assert_eq!(watch.look(ts(20), empty, ts(20), false), Some(ts(20)), "the first look is a look");
        assert!(!watch.looked(empty, ts(20), ts(20)));
        // A change at 25 is applied right after the state was taken: it is not in `seen`, but closed when that is asked.
        assert_eq!(watch.look(ts(20), empty, ts(25), false), None);
        assert_eq!(watch.known, ts(20), "what was not looked at is not known");
        assert_eq!(watch.look(ts(25), one, ts(25), false), Some(ts(25)), "the next look has it");
        // The same at the end of the wait.
        let mut watch = Watch { known: ts(20), looked_at: Some(empty) };
        assert_eq!(watch.look(ts(20), empty, ts(25), true), Some(ts(25)));
    }

    #[test]
    fn an_idle_shard_is_known_further_without_a_look() {
        let idle = Seen { entries: 5, locks: 0 };
        let mut watch = Watch { known: ts(20), looked_at: Some(idle) };
        assert_eq!(watch.look(ts(30), idle, ts(30), false), None);
        assert_eq!((watch.known, watch.look(ts(31), idle, ts(31), true)), (ts(30), None));
        // A lock may stage what is committed below the closed timestamp.
        let locked = Seen { entries: 5, locks: 1 };
        assert_eq!(watch.look(ts(40), locked, ts(40), false), Some(ts(40)));
        assert!(watch.looked(locked, ts(40), ts(35)), "more rows, or a lock: the next look tells");
        assert_eq!(watch.look(ts(40), locked, ts(40), false), Some(ts(40)));
        assert!(!watch.looked(locked, ts(40), ts(35)), "nothing more is to be seen before the lock is gone");
        assert_eq!((watch.look(ts(50), locked, ts(50), false), watch.known), (None, ts(35)));
        assert_eq!(watch.look(ts(50), Seen { entries: 6, locks: 0 }, ts(50), false), Some(ts(50)));
    }

    #[test]
    fn a_look_that_stopped_early_goes_on_at_once() {
        let seen = Seen { entries: 9, locks: 0 };
        let mut watch = Watch { known: ts(10), looked_at: None };
        assert_eq!(watch.look(ts(20), seen, ts(20), false), Some(ts(20)));
        assert!(watch.looked(seen, ts(20), ts(15)));
        assert_eq!(watch.look(ts(20), seen, ts(20), false), Some(ts(20)), "it was not all that was there");
    }
}
