//! Ends transactions that nobody ends: their client or coordinator has died, or their shard has a new leader.
//!
//! Each leader looks through its shards for locks past their time to live and for COMMITTED records whose
//! locks may not all be released (rules R5 and R11), by oracle time, and runs a recovery for each transaction.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::drive::{Patience, drive};
use super::router::Router;
use crate::node::member::Member;
use crate::node::replica::Replica;
use crate::raft::Token;
use crate::shard;
use crate::txn::{Action, Recovery};
use crate::types::{Error, KeyRange, Lock, Result, ShardId, Timestamp, TxnId, limits};

/// How often leaders look.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);
/// How often a leader walks over its records, besides once at the start of its leadership: the coordinators of this
/// node finish what they can themselves.
const RECORDS_INTERVAL: Duration = Duration::from_secs(10);
/// The most transactions that one look at a shard takes up, besides those that are being recovered already.
const MAX_FOUND: usize = 256;
/// Recoveries of this node at once.
const MAX_RECOVERIES: usize = 64;
/// How long one recovery is run; what it leaves is found again.
const RECOVERY_PATIENCE: Duration = Duration::from_secs(10);

/// Looks after the shards that this node leads, until it stops.
pub async fn run(member: Weak<Member>, router: Router) {
    let stopping = router.stopping().clone();
    let mut recoveries = Recoveries {
        router,
        running: Arc::default(),
        places: Arc::new(Semaphore::new(MAX_RECOVERIES)),
        walked: HashMap::new(),
    };
    let mut every = tokio::time::interval(LOOK_INTERVAL);
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stopping.cancelled() => return,
            _ = every.tick() => {}
        }
        let Some(member) = member.upgrade() else { return };
        if let Err(error) = recoveries.look(&member).await {
            tracing::debug!(%error, "could not look for transactions to recover; trying again");
        }
    }
}

struct Recoveries {
    router: Router,
    running: Arc<Mutex<HashSet<TxnId>>>,
    places: Arc<Semaphore>,
    /// Under which leadership, and when, the records of a shard were walked over last.
    walked: HashMap<ShardId, (Option<Token>, Instant)>,
}

impl Recoveries {
    async fn look(&mut self, member: &Member) -> Result<()> {
        let led: Vec<_> =
            member.replicas().all().into_iter().filter(|replica| replica.may_hold_locks()).collect();
        if led.is_empty() {
            return Ok(());
        }
        let now = member.timestamps().take(1).await?;
        let before = Timestamp::from_ms(now.ms().saturating_sub(limits::LOCK_TTL_MS));
        for replica in led {
            // One shard whose replica is being replaced must not keep the others from it.
            if let Err(error) = self.look_at(&replica, before).await {
                tracing::debug!(shard = %replica.group().id(), %error, "could not look through it; trying again");
            }
        }
        Ok(())
    }

    async fn look_at(&mut self, replica: &Arc<Replica>, before: Timestamp) -> Result<()> {
        let group = replica.group();
        let leadership = group.leadership().token();
        let due = self.records_are_due(group.id(), leadership);
        let records = due && group.state().counts.committed > 0;
        let locks = group.state().counts.locks > 0;
        if !records && !locks {
            return Ok(());
        }
        let running = self.running.lock().clone();
        for (txn, found) in find(replica, before, records, running).await? {
            self.begin(txn, found).await?;
        }
        if due {
            self.walked.insert(group.id(), (leadership, Instant::now()));
        }
        Ok(())
    }

    fn records_are_due(&self, shard: ShardId, leadership: Option<Token>) -> bool {
        match self.walked.get(&shard) {
            Some((walked, at)) => *walked != leadership || at.elapsed() >= RECORDS_INTERVAL,
            None => true,
        }
    }

    async fn begin(&self, txn: TxnId, found: Found) -> Result<()> {
        if !self.running.lock().insert(txn) {
            return Ok(());
        }
        let running = Running { txn, all: self.running.clone() };
        let shards = self.router.cut(&[KeyRange::all()]).await?;
        let (recovery, first) = found.start(txn, &shards);
        let (router, places) = (self.router.clone(), self.places.clone());
        tokio::spawn(async move {
            let _running = running;
            // Never closed.
            let Ok(_place) = places.acquire().await else { return };
            tracing::info!(%txn, "ending a transaction that nobody ends");
            metrics::counter!("kvorum_txn_recoveries_total").increment(1);
            let end = Instant::now() + RECOVERY_PATIENCE;
            let mut recovery = recovery;
            drive(&router, txn, &mut recovery, first, &Patience { give_up: end, end }, |_| {}).await;
        });
        Ok(())
    }
}

/// A transaction is in recovery for as long as this is held.
struct Running {
    txn: TxnId,
    all: Arc<Mutex<HashSet<TxnId>>>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.all.lock().remove(&self.txn);
    }
}

/// What was found of a transaction that wants an end.
enum Found {
    Lock(Lock),
    Committed(shard::Unfinished),
}

impl Found {
    fn start(self, txn: TxnId, shards: &[KeyRange]) -> (Recovery, Vec<Action>) {
        match self {
            Self::Lock(lock) => Recovery::start(&lock, shards),
            Self::Committed(record) => {
                Recovery::resume(txn, record.primary, record.commit_ts, record.spans, shards)
            }
        }
    }
}

/// The transactions with a lock in the shard that is older than `before`; with `records`, also those with a
/// COMMITTED record there.
async fn find(
    replica: &Arc<Replica>,
    before: Timestamp,
    records: bool,
    running: HashSet<TxnId>,
) -> Result<HashMap<TxnId, Found>> {
    let group = replica.group().clone();
    let search = move || -> Result<HashMap<TxnId, Found>> {
        let range = group.state().descriptor.range.clone();
        let replica = group.replica();
        let view = replica.view()?;
        let mut found = HashMap::new();
        let known = |txn: TxnId| running.contains(&txn);
        for lock in shard::expired_locks(&*view, &range, before, MAX_FOUND, known)? {
            found.entry(lock.txn).or_insert(Found::Lock(lock));
        }
        let unfinished =
            if records { shard::unfinished(&*view, &range, MAX_FOUND, known)? } else { Vec::new() };
        for record in unfinished {
            found.insert(record.txn, Found::Committed(record));
        }
        Ok(found)
    };
    tokio::task::spawn_blocking(search)
        .await
        .map_err(|error| Error::unavailable(format!("the search was cut short: {error}")))?
}
