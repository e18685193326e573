//! A group: this node's replica of one shard, and everything the node does with it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use openraft::LinearizerOption;
use openraft::async_runtime::watch::WatchReceiver;
use openraft::errors::{LinearizableReadError, RaftError};
use openraft::impls::ProgressResponder;
use parking_lot::{Mutex, RwLock};
use tokio::sync::watch;

use super::core::{Core, Env};
use super::machine::{Progress, Replica};
use super::supervision;
use super::{GroupStatus, Leadership, Payload, Proposal, ProposeError, Role, Token};
use crate::engine::SharedEngine;
use crate::shard::State;
use crate::types::{Error, LeaderHint, Moved, NodeId, Result, ShardId};

/// A target that is behind by no more than so many entries has caught up enough to be handed the
/// leadership.
const TRANSFER_LAG_ENTRIES: u64 = 1000;
/// A new group that has no leader yet elects again after this, then after twice this, and so on.
const FIRST_ELECTION_PAUSE: Duration = Duration::from_millis(100);
/// How long a read waits at most for what is committed to be applied.
const READ_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a snapshot that is only noted may take before the log is cut.
const TRIM_TIMEOUT: Duration = Duration::from_secs(10);

/// A moment in a group's log that a read may be answered from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ReadPoint {
    /// The leadership that vouches for it.
    pub token: Token,
    /// A replica that has applied this index has everything that was acknowledged before the question.
    pub index: u64,
}

/// This node's replica of one shard. It survives its Raft core: a core that stops is started again after
/// a pause, behind the same `Group`.
pub struct Group {
    shard: ShardId,
    env: Arc<Env>,
    core: RwLock<Arc<Core>>,
    leadership: watch::Sender<Leadership>,
    /// Why the core stopped last; empty where it never did.
    fault: Mutex<String>,
    restarts: AtomicU64,
}

impl Group {
    /// Starts the replica that is on disk, and a task that keeps it running.
    pub(super) async fn start(env: Arc<Env>, shard: ShardId) -> Result<Arc<Self>> {
        let core = Arc::new(Core::start(&env, shard).await?);
        let group = Arc::new(Self {
            shard,
            env,
            core: RwLock::new(core),
            leadership: watch::Sender::new(Leadership::Following { leader: None }),
            fault: Mutex::new(String::new()),
            restarts: AtomicU64::new(0),
        });
        tokio::spawn(supervision::supervise(Arc::clone(&group)));
        Ok(group)
    }

    pub(super) fn env(&self) -> &Arc<Env> {
        &self.env
    }

    pub(super) fn core(&self) -> Arc<Core> {
        Arc::clone(&self.core.read())
    }

    pub(super) fn restarted(&self, core: Arc<Core>) {
        *self.core.write() = core;
        self.restarts.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn publish(&self, leadership: Leadership) {
        if let Leadership::Stopped { fault } = &leadership {
            fault.clone_into(&mut self.fault.lock());
        }
        self.leadership.send_if_modified(|current| {
            let changed = *current != leadership;
            *current = leadership;
            changed
        });
    }

    /// The shard.
    pub fn id(&self) -> ShardId {
        self.shard
    }

    /// The node this replica is on.
    pub fn node(&self) -> NodeId {
        self.env.own
    }

    /// The store that holds the replica's rows.
    pub fn engine(&self) -> &SharedEngine {
        &self.env.engine
    }

    /// The replica's rows, its state, and how far it is. It is another one after the core was started
    /// again: don't keep it for longer than a read.
    pub fn replica(&self) -> Arc<Replica> {
        Arc::clone(&self.core.read().replica)
    }

    /// The replica's state besides its rows, as of the last applied entry.
    pub fn state(&self) -> Arc<State> {
        self.core.read().replica.state()
    }

    /// Who leads, as known here now.
    pub fn leadership(&self) -> Leadership {
        self.leadership.borrow().clone()
    }

    /// Who leads, and every change of it.
    pub fn watch_leadership(&self) -> watch::Receiver<Leadership> {
        self.leadership.subscribe()
    }

    /// Hands an encoded `shard::Entry` to Raft under a leadership. Entries enter the log in the order in
    /// which the calls are made (await each before the next); when Raft has too much to do, the call
    /// waits. The returned [`Proposal`] resolves when the entry was applied here.
    ///
    /// An entry is proposed under `token`'s leadership or not at all. Dropping the call before it returns
    /// leaves unknown whether the entry was proposed.
    pub async fn submit(&self, token: Token, body: Bytes) -> Proposal {
        let core = self.core();
        let (responder, completion) = ProgressResponder::complete_only();
        let write = core.raft.write(Payload(body)).with_leader(token.0).responder(responder);
        match write.await {
            Ok(()) => Proposal::waiting(completion),
            // The core's queue was closed and has not taken it.
            Err(_) => Proposal::failed(ProposeError::NotLeader { leader: None }),
        }
    }

    /// Confirms by lease that this replica leads, and waits until it has applied everything that was
    /// acknowledged before the call. After it, a read of the replica's rows is linearizable.
    ///
    /// # Why the lease can be trusted
    ///
    /// Let a quorum have answered messages that this leader *sent* no earlier than t. Each of those
    /// replicas promised, when the message arrived, to vote for nobody else for `election_max` from then;
    /// it keeps the promise over a restart by the lease gate (`gate`). Any other leader needs a vote from
    /// one of them, so none is elected before t + `election_max`, as the clocks of those replicas measure
    /// it. The clocks are monotonic, only their speed counts, and reads stop at 0.8 of the time, so one
    /// clock may run a quarter faster than another. They stand still while a machine is suspended: a leader
    /// that wakes up would take its lease for as young as before. So a lease is void where the wall clock has
    /// moved much further than the monotonic one since (`wakefulness`), and a quorum is asked instead. What
    /// remains is a sleep that begins after this check and before the read it was for: whoever lets machines
    /// with leaders sleep must not rely on reads of that moment. A leader that hands its leadership over releases the
    /// others from their promise; so from before that is asked for until the leadership has gone, the
    /// question goes to the core, which then says no. The leader counts as such only once an entry of its
    /// own leadership is applied (so a restarted one, whose stored vote still names it, does not), and a
    /// leadership is a term *and* a node, since one term may have two.
    ///
    /// # What it covers
    ///
    /// Writes are acknowledged after the leader has applied them, so everything acknowledged before the
    /// call is here. Beyond that, it waits for what the core has published as committed. A write that
    /// was committed but not acknowledged may be seen on a follower an instant before; whoever answers
    /// reads waits for its own batches in flight that touch the keys (rule R1), which covers it.
    ///
    /// # Errors
    ///
    /// `Moved` where another node leads, with the hint; `Unavailable` where the lease can't be confirmed
    /// in time, or the replica does not run.
    pub async fn ensure_leader(&self) -> Result<ReadPoint> {
        let point = self.read_point().await?;
        if self.applied_index() < point.index {
            self.wait_applied(point.index, READ_TIMEOUT).await?;
        }
        Ok(point)
    }

    /// Like [`ensure_leader`](Self::ensure_leader), without waiting for this replica to apply: what a
    /// leader answers to a follower that asks for a read index. It covers everything that is applied here.
    ///
    /// # Errors
    ///
    /// As [`ensure_leader`](Self::ensure_leader).
    pub async fn read_point(&self) -> Result<ReadPoint> {
        // The core tells what is committed a moment after it was applied and acknowledged: a follower that went by
        // that alone could miss an acknowledged write.
        let applied = self.applied_index();
        let point = self.leading_point().await?;
        Ok(ReadPoint { index: point.index.max(applied), ..point })
    }

    async fn leading_point(&self) -> Result<ReadPoint> {
        let core = self.core();
        if let Some(point) = core.lease_point(&self.env) {
            return Ok(point);
        }
        // The core does not look at the wall clock: right after a sleep it must not go by its own lease.
        let slept = self.env.lease_trusted_for() < self.env.timing.read_lease();
        let age = if slept { Duration::ZERO } else { self.env.timing.read_lease() };
        let option = LinearizerOption::new(Some(age), true);
        // Rare, and large: kept out of what a read carries along.
        match Box::pin(core.raft.get_read_linearizer(option)).await {
            Ok(linearizer) => {
                let log_id = *linearizer.read_log_id().log_id();
                Ok(ReadPoint { token: Token(log_id.leader_id), index: log_id.index })
            }
            Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(forward))) => {
                Err(self.not_leader(forward.leader_id))
            }
            Err(error) => Err(Error::unavailable(format!(
                "shard {} on node {} can't confirm that it leads: {error}",
                self.shard, self.env.own
            ))),
        }
    }

    /// The error of a replica that does not lead.
    fn not_leader(&self, leader: Option<NodeId>) -> Error {
        let Some(leader) = leader.filter(|leader| *leader != self.env.own) else {
            return Error::unavailable(format!(
                "shard {} has no leader that node {} knows of: retry",
                self.shard, self.env.own
            ));
        };
        let hint = self.env.transport.peers().get(leader).map(|record| record.grpc_addr);
        let message = format!("node {leader} leads shard {}, not node {}", self.shard, self.env.own);
        let leader = LeaderHint { node: leader, grpc_addr: hint.unwrap_or_default() };
        Error::moved(message, Moved { shard: None, leader: Some(leader) })
    }

    /// For how long, up to now, the machine has certainly been awake: what was heard before that may be older than
    /// its own clock says.
    pub fn awake_for(&self) -> Duration {
        self.env.wakefulness.look(tokio::time::Instant::now(), std::time::SystemTime::now())
    }

    /// Waits until this replica has applied `index`.
    ///
    /// # Errors
    ///
    /// `Unavailable` after `timeout`.
    pub async fn wait_applied(&self, index: u64, timeout: Duration) -> Result<()> {
        let replica = self.replica();
        tokio::time::timeout(timeout, replica.wait_applied(index)).await.map_err(|_| {
            Error::unavailable(format!(
                "shard {} on node {} has applied {} and not {index} after {timeout:?}",
                self.shard,
                self.env.own,
                replica.applied().index()
            ))
        })
    }

    /// The last log index applied here.
    pub fn applied_index(&self) -> u64 {
        self.core.read().replica.applied().index()
    }

    /// How far the replica is, and every step of it. Ends when the core is started again; subscribe anew
    /// then.
    pub fn watch_applied(&self) -> watch::Receiver<Progress> {
        self.core.read().replica.watch()
    }

    /// The replica's place in its group.
    pub fn status(&self) -> GroupStatus {
        let core = self.core();
        let fault = self.fault.lock().clone();
        let restarts = self.restarts.load(Ordering::Relaxed);
        let metrics = core.metrics();
        let mut status = GroupStatus::of(self.shard, &metrics, core.log.size_bytes(), fault, restarts);
        if matches!(*self.leadership.borrow(), Leadership::Stopped { .. }) {
            status.role = Role::Stopped;
        }
        status
    }

    /// Bytes of the kept log.
    pub fn log_bytes(&self) -> u64 {
        self.core.read().log.size_bytes()
    }

    /// Stands for election at once, if a quorum would vote for it. A leader that lives keeps its
    /// leadership.
    ///
    /// # Errors
    ///
    /// `Unavailable` where the replica does not run, or started so recently that it must not stand yet.
    pub async fn elect(&self) -> Result<()> {
        self.stand(true).await
    }

    /// Stands for election. Without asking first, for a group that can have no leader yet.
    pub(super) async fn stand(&self, ask_first: bool) -> Result<()> {
        let core = self.core();
        if let Some(left) = core.gate.closed_for(tokio::time::Instant::now()) {
            return Err(Error::unavailable(format!(
                "shard {} on node {} has just been started and must not stand for election for {left:?}",
                self.shard, self.env.own
            )));
        }
        core.raft.trigger().elect(ask_first).await.map_err(|error| self.stopped(error))
    }

    /// Stands for election in a group that was just created, again and again until somebody leads: the
    /// other replicas may be created a moment later, and until then they don't vote.
    pub(super) async fn stand_first(self: Arc<Self>) {
        let mut leadership = self.watch_leadership();
        let led = leadership.wait_for(|leadership| match leadership {
            Leadership::Leading(_) | Leadership::Following { leader: Some(_) } => true,
            Leadership::Following { leader: None } => false,
            Leadership::Stopped { .. } => true,
        });
        let standing = async {
            for attempt in 1.. {
                if let Err(error) = self.stand(false).await {
                    tracing::warn!(shard = %self.shard, error = %error.message, "can't stand for election");
                    return;
                }
                tokio::time::sleep(FIRST_ELECTION_PAUSE * attempt).await;
            }
        };
        tokio::select! {
            // Ends with an error only when the group is gone.
            _ = led => {}
            () = standing => {}
            () = self.env.closing.cancelled() => {}
        }
    }

    fn stopped(&self, error: impl std::fmt::Display) -> Error {
        Error::unavailable(format!("shard {} on node {} does not run: {error}", self.shard, self.env.own))
    }

    /// Hands the leadership to another voter that lives and has caught up. Writes pause until it leads.
    /// Returns when this replica has let go, or `timeout` has passed (the transfer may still happen).
    ///
    /// # Errors
    ///
    /// `Moved` where this replica does not lead, `Invalid` where the target is no voter, `Unavailable`
    /// where it is not connected or lags (nothing was changed then), or has not taken over in time.
    pub async fn transfer_leader(self: &Arc<Self>, to: NodeId, timeout: Duration) -> Result<()> {
        let core = self.core();
        let metrics = core.metrics();
        if !metrics.state.is_leader() {
            return Err(self.not_leader(metrics.current_leader));
        }
        if to == self.env.own {
            return Ok(());
        }
        if !metrics.membership_config.membership().voter_ids().any(|voter| voter == to) {
            return Err(Error::invalid(format!("node {to} is no voter of shard {}", self.shard)));
        }
        if !self.env.transport.is_connected(to) {
            return Err(Error::unavailable(format!("node {to} is not connected: it would not take over")));
        }
        let matched = metrics.replication.as_ref().and_then(|replication| *replication.get(&to)?);
        let matched = matched.map_or(0, |log_id| log_id.index);
        let last = metrics.last_log_index.unwrap_or(0);
        if matched + TRANSFER_LAG_ENTRIES < last {
            return Err(Error::unavailable(format!(
                "node {to} has the log of shard {} up to {matched} of {last}: wait until it has caught up",
                self.shard
            )));
        }
        let released = tokio::spawn(Arc::clone(self).let_go(core, to));
        match tokio::time::timeout(timeout, released).await {
            Ok(Ok(result)) => result,
            Ok(Err(error)) => Err(self.stopped(error)),
            Err(_) => Err(Error::unavailable(format!(
                "node {to} has not taken over shard {} within {timeout:?}",
                self.shard
            ))),
        }
    }

    /// Asks for the transfer, and returns when this replica does not lead any more. Runs in a task of its
    /// own: as long as it may be under way, no read may trust the lease, whoever has given up waiting.
    async fn let_go(self: Arc<Self>, core: Arc<Core>, to: NodeId) -> Result<()> {
        core.transfers.fetch_add(1, Ordering::SeqCst);
        // An error means that the core is gone, and its last picture may say for ever that it leads.
        self.hand_over(&core, to).await.map_err(|error| self.stopped(error))?;
        core.transfers.fetch_sub(1, Ordering::SeqCst);
        Ok(())
    }

    async fn hand_over(
        &self,
        core: &Core,
        to: NodeId,
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        core.raft.trigger().transfer_leader(to).await?;
        let released_at = loop {
            // Asked in the core, behind the transfer, so that it can't be a picture from before.
            let (leads, vote) = core
                .raft
                .with_raft_state(|state| (state.server_state.is_leader(), *state.vote_ref()))
                .await?;
            if !leads {
                break vote;
            }
            tokio::time::sleep(self.env.timing.heartbeat / 10).await;
        };
        // The published picture, which reads trust, may be older than what the core has said.
        let mut metrics = core.metrics.clone();
        let caught_up = metrics.wait_until(|metrics| {
            metrics.vote > released_at || (metrics.vote == released_at && !metrics.state.is_leader())
        });
        caught_up.await?;
        Ok(())
    }

    /// Cuts the log up to and with `index`, or what was applied if that is less. A replica that still
    /// needs what was cut gets a snapshot.
    ///
    /// # Errors
    ///
    /// `Unavailable` where the replica does not run.
    pub async fn trim_log(&self, index: u64) -> Result<()> {
        let core = self.core();
        let index = index.min(core.replica.applied().index());
        let snapshot_index = |metrics: &openraft::RaftMetrics<super::TypeConfig>| {
            metrics.snapshot.as_ref().map_or(0, |log_id| log_id.index)
        };
        let mut metrics = core.metrics.clone();
        if snapshot_index(&metrics.borrow_watched()) < index {
            core.raft.trigger().snapshot().await.map_err(|error| self.stopped(error))?;
            let noted = metrics.wait_until(|metrics| snapshot_index(metrics) >= index);
            tokio::time::timeout(TRIM_TIMEOUT, noted)
                .await
                .map_err(|_| self.stopped("no snapshot was noted in time"))?
                .map_err(|error| self.stopped(error))?;
        }
        core.raft.trigger().purge_log(index).await.map_err(|error| self.stopped(error))
    }
}
