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
        let mut known = after;
        let mut looked_at = None;
        loop {
            if let Leadership::Stopped { .. } = self.group.leadership() {
                return Err(self.not_ready("has stopped"));
            }
            applied.borrow_and_update();
            // Before the timestamp: what is applied in between is looked at twice, not never.
            let state = self.group.state();
            let seen = (state.changes.entries, state.counts.locks);
            let closed = self.closed();
            let at_end = Instant::now() >= until;
            // Where nothing was written and no lock released since, nothing is there that was not.
            let is_same = looked_at == Some(seen);
            if is_same && state.counts.write_locks() == 0 {
                known = known.max(closed);
            }
            if closed > known && (at_end || !is_same) {
                let page = self.read_changes(look(range, known, closed)).await?;
                if !page.transactions.is_empty() {
                    return Ok(Waited { through: known, news: Some(page.through) });
                }
                let advanced = page.through > known;
                known = page.through;
                if advanced && known < closed && !at_end {
                    // There are more rows than a page looks at, or a lock is in the way, which the next look tells.
                    continue;
                }
                looked_at = Some(seen);
            }
            if at_end {
                return Ok(Waited { through: known, news: None });
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
