//! Reads of this node's replica of a shard, leader or not: what they wait for, and the rows.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::closed::Word;
use super::read_index::Need;
use crate::bugs::{self, Bug};
use crate::node::barrier::Wait;
use crate::node::replica::Replica;
use crate::raft::{self, Leadership};
use crate::shard::{self, Fates, Look, Page, PageLook, PageRequest};
use crate::types::{Error, ErrorKind, Lock, NodeId, Record, ReplicaRole, Result, ShardId, Timestamp, limits};

/// How long a follower may take to catch up with what the leader said. One that is further behind is not worth waiting
/// for: another replica answers sooner.
const CATCH_UP: Duration = Duration::from_secs(2);

/// What a read of rows has come to.
pub enum Seen<T> {
    /// What was asked for.
    Read(T),
    /// Locks whose holders' fate the reader must know first.
    Locked(Vec<Lock>),
}

/// How a replica came to be able to answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ready {
    /// What it is.
    pub role: ReplicaRole,
    /// Whether the leader was asked how far the replica must be.
    pub asked_leader: bool,
}

/// A read at one timestamp.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Instance {
    /// The timestamp. The caller made sure that it is not in the future.
    pub at: Timestamp,
    /// Whether a leader must vouch for this replica, although the timestamp may be closed here: it is asked, by the
    /// read, after what was learnt about a lock (rule R6).
    pub confirm: bool,
}

impl Replica {
    /// Takes in what a leader said about the shard's closed timestamp.
    pub fn heard(&self, word: Word) {
        self.words.lock().heard(word);
    }

    /// Everything at or below it is in this replica, and nothing will be added there.
    pub fn closed(&self) -> Timestamp {
        let applied = *self.group.watch_applied().borrow();
        self.words.lock().closed(applied)
    }

    /// How old the state as of `at` is at most, in milliseconds; `None` where this node has heard of no leader.
    pub fn age_ms(&self, at: Timestamp) -> Option<u64> {
        // The clock first: the look at both clocks comes after it, and covers it.
        let now = Instant::now();
        let age = self.book.age(at, now, self.group.awake_for())?;
        // Timestamps that were handed out within a millisecond show the same one.
        Some(age.as_millis() as u64 + 1)
    }

    /// The newest timestamp that this replica can be read at without asking anybody, and how old it is at most, where
    /// that is not more than `max_staleness_ms`. `wide` is preferred: other shards can be read at it too.
    pub fn closed_within(&self, wide: Timestamp, max_staleness_ms: u64) -> Option<(Timestamp, u64)> {
        let closed = self.closed();
        let fresh = |at: &Timestamp| *at > Timestamp::ZERO && *at <= closed;
        [wide, closed].into_iter().filter(fresh).find_map(|at| {
            let age_ms = self.age_ms(at).filter(|age_ms| *age_ms <= max_staleness_ms)?;
            Some((at, age_ms))
        })
    }

    /// How far a replica of this shard must have applied to see what is needed: the answer to a follower. It holds for
    /// reads that came before this was asked.
    ///
    /// # Errors
    ///
    /// `Moved` or `Unavailable` where this node does not lead, or does not know a batch's fate in time.
    pub async fn read_index(&self, need: &Need, deadline: Instant) -> Result<u64> {
        let token = self.leads_under()?;
        self.wait_for(need).wait(deadline).await?;
        // After the wait, so that it covers what was settled.
        let point = self.group.read_point().await.map_err(|error| self.with_hint(error))?;
        self.check_same(token, &point)?;
        Ok(point.index)
    }

    fn wait_for(&self, need: &Need) -> Wait {
        match need {
            Need::Latest(keys) => self.barrier().before_latest(keys),
            Need::Snapshot(at) => self.barrier().before_snapshot(*at),
        }
    }

    /// Waits until this replica can answer a read that came before the call.
    ///
    /// # Errors
    ///
    /// `Unavailable` where that can't be known by the deadline: another replica may be better off.
    pub async fn ready(&self, need: Need, deadline: Instant) -> Result<Ready> {
        let began = Instant::now();
        let ready = match self.group.leadership() {
            Leadership::Leading(_) => self.ready_as_leader(need, deadline).await,
            Leadership::Following { leader } => {
                Box::pin(self.ready_as_follower(leader, need, deadline)).await
            }
            Leadership::Stopped { .. } => Err(self.not_ready("has stopped")),
        };
        if let Ok(Ready { asked_leader: true, .. }) = ready {
            metrics::histogram!("kvorum_read_index_wait_seconds").record(began.elapsed().as_secs_f64());
        }
        ready
    }

    async fn ready_as_leader(&self, need: Need, deadline: Instant) -> Result<Ready> {
        match self.serve(self.wait_for(&need), deadline).await {
            Ok(()) => Ok(Ready { role: ReplicaRole::Leader, asked_leader: false }),
            // It leads no more; whoever does can still vouch for it.
            Err(error) if error.kind == ErrorKind::Moved => {
                let leader = self.group.leadership().leader_elsewhere();
                Box::pin(self.ready_as_follower(leader, need, deadline)).await
            }
            Err(error) => Err(error),
        }
    }

    async fn ready_as_follower(
        &self,
        leader: Option<NodeId>,
        need: Need,
        deadline: Instant,
    ) -> Result<Ready> {
        let ready = Ready { role: ReplicaRole::Follower, asked_leader: true };
        if bugs::on(Bug::FollowerReadWithoutReadIndex) {
            return Ok(ready);
        }
        let leader = leader.ok_or_else(|| self.not_ready("knows of no leader"))?;
        let index = self.read_indexes.ask(leader, self.group.id(), need, deadline).await?;
        if self.group.applied_index() < index {
            let left = deadline.saturating_duration_since(Instant::now());
            self.group.wait_applied(index, left.min(CATCH_UP)).await?;
        }
        Ok(ready)
    }

    /// Waits until this replica can answer a read at a timestamp. Where that is closed here, nobody is asked.
    pub(super) async fn ready_at(&self, instance: Instance, deadline: Instant) -> Result<Ready> {
        if !instance.confirm && instance.at <= self.closed() {
            let leads = matches!(self.group.leadership(), Leadership::Leading(_));
            let role = if leads { ReplicaRole::Leader } else { ReplicaRole::Follower };
            return Ok(Ready { role, asked_leader: false });
        }
        self.ready(Need::Snapshot(instance.at), deadline).await
    }

    pub(super) fn not_ready(&self, why: &str) -> Error {
        let (shard, node): (ShardId, NodeId) = (self.group.id(), self.group.node());
        Error::unavailable(format!("the replica of shard {shard} on node {node} {why}: ask another one"))
    }

    /// The newest version of a key, linearizable: it sees every write acknowledged before it came, and what
    /// an earlier snapshot may have shown (rule R1).
    ///
    /// # Errors
    ///
    /// As [`ready`](Self::ready); `Moved` where the shard does not hold the key.
    pub async fn get_latest(&self, key: &Bytes, deadline: Instant) -> Result<(Seen<Option<Record>>, Ready)> {
        let ready = self.ready(Need::Latest(vec![key.clone()]), deadline).await?;
        self.check_holds(key)?;
        let replica = self.group.replica();
        // After the wait: it counts every lock that the read must mind.
        let counts = replica.state().counts;
        let seen = match shard::look(&*replica.view()?, counts, key, Timestamp::MAX, &Fates::new())? {
            Look::Value(record) => Seen::Read(record),
            Look::Locked(lock) => Seen::Locked(vec![lock]),
        };
        Ok((seen, ready))
    }

    /// Versions of keys as of a timestamp. Where all would be too large for one reply there are fewer than keys, at
    /// least one: the caller asks for the rest.
    ///
    /// # Errors
    ///
    /// As [`get_latest`](Self::get_latest), and `TooOld` below the safe point.
    pub async fn get_at(
        &self,
        keys: &[Bytes],
        instance: Instance,
        fates: &Fates,
        deadline: Instant,
    ) -> Result<(Seen<Vec<Option<Record>>>, Ready)> {
        let ready = self.ready_at(instance, deadline).await?;
        keys.iter().try_for_each(|key| self.check_holds(key))?;
        let at = instance.at;
        let hold = self.floors.hold(self.group.id(), at)?;
        let replica = self.group.replica();
        if keys.len() == 1 {
            return Ok((get_all(&replica, keys, at, fates)?, ready));
        }
        let (keys, fates) = (keys.to_vec(), fates.clone());
        // Many keys may mean many reads from disk: not on a thread that serves others.
        let seen = tokio::task::spawn_blocking(move || {
            let _hold = hold;
            get_all(&replica, &keys, at, &fates)
        });
        Ok((seen.await.map_err(broken_off)??, ready))
    }

    /// One page of rows as of `request.at`.
    ///
    /// # Errors
    ///
    /// As [`get_at`](Self::get_at).
    pub async fn scan_page(
        &self,
        request: PageRequest,
        confirm: bool,
        fates: &Fates,
        deadline: Instant,
    ) -> Result<(Seen<Page>, Ready)> {
        let ready = self.ready_at(Instance { at: request.at, confirm }, deadline).await?;
        if !self.group.state().descriptor.range.covers(&request.range) {
            return Err(self.moved(None));
        }
        let replica = self.group.replica();
        let fates = fates.clone();
        let hold = self.floors.hold(self.group.id(), request.at)?;
        // A page may read many rows from disk: not on a thread that serves others.
        let seen = tokio::task::spawn_blocking(move || {
            let _hold = hold;
            let state = replica.state();
            shard::check_readable(&state, request.at)?;
            let view = replica.view()?;
            // A snapshot may have taken the place of everything in between.
            shard::check_readable(&replica.state(), request.at)?;
            shard::scan_page(&*view, state.counts, &request, &fates)
        });
        let seen = match seen.await.map_err(broken_off)?? {
            PageLook::Page(page) => Seen::Read(page),
            PageLook::Locked(locks) => Seen::Locked(locks),
        };
        Ok((seen, ready))
    }
}

pub(super) fn broken_off(error: tokio::task::JoinError) -> Error {
    Error::unavailable(format!("the read was ended before it was done ({error}): retry"))
}

/// The versions of the keys from the front, at least one, as long as they fit into one reply: the caller
/// asks for the rest at the same timestamp.
fn get_all(
    replica: &Arc<raft::Replica>,
    keys: &[Bytes],
    at: Timestamp,
    fates: &Fates,
) -> Result<Seen<Vec<Option<Record>>>> {
    // After the wait: it counts every lock that the read must mind.
    let state = replica.state();
    shard::check_readable(&state, at)?;
    let view = replica.view()?;
    // A snapshot may have taken the place of everything in between.
    shard::check_readable(&replica.state(), at)?;
    let mut size_bytes = 0;
    let mut records = Vec::with_capacity(keys.len());
    let mut locks = Vec::new();
    for key in keys {
        let record = match shard::look(&*view, state.counts, key, at, fates)? {
            Look::Value(record) => record,
            Look::Locked(lock) => {
                locks.push(lock);
                continue;
            }
        };
        size_bytes += record.as_ref().map_or(0, |record| record.value.len());
        if size_bytes > limits::MAX_BATCH_BYTES && !records.is_empty() {
            break;
        }
        records.push(record);
    }
    Ok(if locks.is_empty() { Seen::Read(records) } else { Seen::Locked(locks) })
}
