//! A running Raft core of a group, and what is read from it without asking it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use openraft::Raft;
use openraft::async_runtime::watch::WatchReceiver;
use openraft::impls::{EmptyNode, EntryPayload};
use openraft::type_config::alias::WatchReceiverOf;
use openraft::{Instant, Membership, RaftMetrics};
use tokio_util::sync::CancellationToken;

use super::gate::Gate;
use super::group::ReadPoint;
use super::leadership::leading_token;
use super::log_reader::Log;
use super::log_store::{DEFAULT_CACHE_BYTES, LogStore};
use super::log_writer::LogWriter;
use super::machine::{Replica, ReplicaMachine};
use super::network::NetworkFactory;
use super::records::AppliedRecord;
use super::transfer::Courier;
use super::transport::Transport;
use super::wakefulness::Wakefulness;
use super::{Timing, TypeConfig};
use crate::bugs::{self, Bug};
use crate::engine::SharedEngine;
use crate::types::{Error, NodeId, Result, ShardId};

/// The log behind what was applied is searched in parts of about so many bytes.
const SEARCH_BYTES: u64 = 2 * 1024 * 1024;

/// What all groups of a node share.
pub(super) struct Env {
    pub engine: SharedEngine,
    pub writer: Arc<LogWriter>,
    pub transport: Arc<Transport>,
    pub courier: Arc<Courier>,
    pub own: NodeId,
    pub timing: Timing,
    pub wakefulness: Wakefulness,
    /// The node is shutting down: nothing is started again.
    pub closing: CancellationToken,
}

impl Env {
    /// How old the newest word of a quorum may be for a read: not from before the machine last slept. Ask
    /// this first, and for the age after it.
    pub fn lease_trusted_for(&self) -> Duration {
        let awake = self.wakefulness.look(tokio::time::Instant::now(), std::time::SystemTime::now());
        self.timing.read_lease().min(awake)
    }
}

pub(super) type GroupRaft = Raft<TypeConfig, ReplicaMachine>;
type Metrics = WatchReceiverOf<TypeConfig, RaftMetrics<TypeConfig>>;

/// A running Raft core.
pub(super) struct Core {
    pub raft: GroupRaft,
    pub metrics: Metrics,
    pub replica: Arc<Replica>,
    pub log: Arc<Log>,
    pub gate: Gate,
    /// Transfers of the leadership under way. Followers are released from their promise by one, so the
    /// lease is worth nothing then. One that ended with the core, who knows how, counts for ever.
    pub transfers: AtomicUsize,
    /// Is cancelled when the state machine is gone, and with it the last writer of the replica's rows.
    machine_gone: CancellationToken,
}

impl Core {
    /// Opens what is on disk and starts Raft on it.
    ///
    /// # Errors
    ///
    /// The log writer's where it has failed: it stays failed, so nothing starts until the node does.
    pub async fn start(env: &Arc<Env>, shard: ShardId) -> Result<Self> {
        // What a failed sync left is readable and not on disk. Raft takes everything that it finds in the
        // log for safe, so it must find nothing that was not synced.
        env.writer.write_synced(crate::engine::Batch::new()).await?;
        let opening = {
            let (engine, writer, own) = (Arc::clone(&env.engine), Arc::clone(&env.writer), env.own);
            tokio::task::spawn_blocking(move || {
                let machine = ReplicaMachine::open(Arc::clone(&engine), Arc::clone(&writer), shard)?;
                let log_store = LogStore::open(engine, writer, shard, DEFAULT_CACHE_BYTES)?;
                let only_voter = is_only_voter(own, &machine.replica().applied(), &log_store.log())?;
                Ok::<_, Error>((machine, log_store, only_voter))
            })
        };
        let (machine, log_store, only_voter) = opening
            .await
            .map_err(|error| Error::unavailable(format!("opening shard {shard} was cut short: {error}")))??;
        let (replica, log) = (machine.replica(), log_store.log());
        let machine_gone = machine.gone();
        let gate = Gate::at_start(
            log.state.lock().vote.is_some() && !bugs::on(Bug::LeaseReadWithoutGuards),
            only_voter,
            tokio::time::Instant::now(),
            env.timing.election_max,
        );
        let network = NetworkFactory {
            transport: Arc::clone(&env.transport),
            courier: Arc::clone(&env.courier),
            group: shard,
            own: env.own,
        };
        let config = env.timing.raft_config(gate.opens().is_none())?;
        let raft = Raft::new(env.own, config, network, log_store, machine)
            .await
            .map_err(|error| Error::unavailable(format!("Raft of shard {shard} can't start: {error}")))?;
        if let Some(opens) = gate.opens() {
            let (raft, closing) = (raft.clone(), env.closing.clone());
            tokio::spawn(async move {
                tokio::select! {
                    () = tokio::time::sleep_until(opens) => raft.runtime_config().elect(true),
                    () = closing.cancelled() => {}
                }
            });
        }
        let metrics = raft.metrics();
        Ok(Self { raft, metrics, replica, log, gate, transfers: AtomicUsize::new(0), machine_gone })
    }

    /// A copy of openraft's picture of the replica.
    pub fn metrics(&self) -> RaftMetrics<TypeConfig> {
        self.metrics.borrow_watched().clone()
    }

    /// Whether this replica leads by a lease that is certain to hold, and how far it must have applied.
    /// Costs no message to the core. See [`Group::ensure_leader`](super::Group::ensure_leader).
    pub fn lease_point(&self, env: &Env) -> Option<ReadPoint> {
        // Looked at before the picture. Whoever asks after another leader has acknowledged a write finds
        // either a transfer under way, or one that has ended, and then a picture that knows of its end. One
        // that begins after this look goes on beside the read, which may then be answered as of now.
        if self.transfers.load(Ordering::SeqCst) != 0 {
            return None;
        }
        let metrics = self.metrics.borrow_watched();
        // A core that died leaves its last picture behind.
        metrics.running_state.as_ref().ok()?;
        let token = leading_token(&metrics)?;
        // When the messages were sent that a quorum has answered.
        let trusted = env.lease_trusted_for();
        let fresh = metrics.last_quorum_acked.is_some_and(|sent| sent.elapsed() < trusted)
            || bugs::on(Bug::LeaseReadWithoutGuards);
        // The only voter of a group needs nobody's word.
        let sets = metrics.membership_config.membership().get_joint_config();
        let alone = || sets.iter().all(|set| set.len() == 1 && set.contains(&env.own));
        if !fresh && !alone() {
            return None;
        }
        let committed = metrics.local_committed.as_ref().map_or(0, |log_id| log_id.index);
        Some(ReadPoint { token, index: committed })
    }

    /// Stops Raft, and waits until nothing of it writes to the replica any more: only then may it be
    /// opened again.
    pub async fn stop(&self, writer: &LogWriter) {
        if let Err(error) = self.raft.shutdown().await {
            tracing::warn!(group = %self.replica.group(), %error, "the Raft core was stopped by force");
        }
        self.machine_gone.cancelled().await;
        // Behind everything the log store has queued. Where the writer has failed, nothing is queued.
        writer.write_synced(crate::engine::Batch::new()).await.ok();
    }
}

/// Whether no other node has a vote in the group. Raft goes by the last membership in its log, applied or
/// not; and as long as that is not committed, a truncation brings back the one before it. So all of them
/// count, from the applied one on.
pub(super) fn is_only_voter(own: NodeId, applied: &AppliedRecord, log: &Log) -> Result<bool> {
    let alone = |membership: &Membership<NodeId, EmptyNode>| membership.voter_ids().eq([own]);
    if !alone(applied.membership.membership()) {
        return Ok(false);
    }
    let mut next = applied.last_log_id.map_or(0, |log_id| log_id.index + 1);
    loop {
        let entries = log.read(next, u64::MAX, SEARCH_BYTES)?;
        let Some(last) = entries.last() else { return Ok(true) };
        next = last.log_id.index + 1;
        for entry in &entries {
            if let EntryPayload::Membership(membership) = &entry.payload
                && !alone(membership)
            {
                return Ok(false);
            }
        }
    }
}
