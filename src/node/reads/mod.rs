//! Reads on this node, at every level: by the leader's lease, by a read index that the leader gives a follower, or by
//! the closed timestamp without asking anybody. Where a read meets locks, what became of each holder is asked, and the
//! keys are read again in one view (rules R3 and R4).
//!
//! `changes` reads the changelog the same way.
//! `closed` and `words` know how far a replica may be trusted by itself, `read_index` asks leaders, `local` reads one
//! replica, and [`Reads`] here puts them together.

mod changes;
mod closed;
mod local;
mod read_index;
mod words;

use std::sync::{Arc, LazyLock};

use bytes::Bytes;
use tokio::time::{Duration, Instant};

use super::replica::Replica;
use super::txn::{Router, resolve};
use crate::shard::{Fates, Page, PageRequest};
use crate::types::{Error, Lock, NodeId, ReadAt, ReadLevel, Record, ReplicaRole, Result, Served, Timestamp};

pub use closed::ClosedWords;
use local::{Instance, Ready, Seen};
pub use read_index::{CALL as READ_INDEX_CALL, ReadIndexes, answer as answer_read_indexes};
pub use words::{CALL as WORDS_CALL, WordBook, answer as answer_words, run as run_words};

/// How long a bounded read tries for a fresh state where this replica has no closed one that is fresh enough. Another
/// replica may have one.
const FRESH_WITHIN: Duration = Duration::from_millis(500);

/// An answer, and how it came about.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Answered<T> {
    /// What was read.
    pub value: T,
    /// The timestamp that was read at. Of a latest read of one key: one that the shard had certainly reached.
    pub at: Timestamp,
    ready: Ready,
    level: ReadLevel,
    staleness_ms: u64,
}

impl<T> Answered<T> {
    /// A read of a snapshot that came about by other ways than those of [`Reads`].
    pub fn of_snapshot(value: T, at: Timestamp, ready: Ready) -> Self {
        Self { value, at, ready, level: ReadLevel::Snapshot, staleness_ms: 0 }
    }

    /// Who answered, and how; `load` is the number of reads under way on the node.
    pub fn served(&self, node: NodeId, load: u32) -> Served {
        count(self.level, self.ready.role);
        Served {
            node,
            role: self.ready.role,
            level: self.level,
            at_ts: self.at,
            staleness_ms: self.staleness_ms,
            asked_leader: self.ready.asked_leader,
            load,
        }
    }
}

/// Counts a read, for metrics.
fn count(level: ReadLevel, role: ReplicaRole) {
    // Looked up once: reads are many. The recorder is there before the first of them.
    static COUNTERS: LazyLock<Vec<metrics::Counter>> = LazyLock::new(|| {
        let kinds = ReadLevel::ALL.into_iter().flat_map(|level| ReplicaRole::ALL.map(|role| (level, role)));
        kinds
            .map(|(level, role)| {
                metrics::counter!("kvorum_reads_total", "level" => level.name(), "role" => role.name())
            })
            .collect()
    });
    let place = |level: ReadLevel, role: ReplicaRole| level as usize * ReplicaRole::ALL.len() + role as usize;
    if let Some(counter) = COUNTERS.get(place(level, role)) {
        counter.increment(1);
    }
}

/// What a read goes by: its timestamp, and how that may be moved.
struct Plan {
    instance: Instance,
    level: ReadLevel,
    /// For a bounded read: how old it may be, and is.
    bound: Option<(u64, u64)>,
}

/// Reads one replica, and asks others about the locks that are met.
pub struct Reads<'a> {
    /// The replica.
    pub replica: &'a Arc<Replica>,
    /// The way to the primaries' leaders.
    pub router: &'a Router,
    /// A timestamp that is closed on this node whatever the shard; zero where there is none.
    pub wide: Timestamp,
    /// Until when an answer is wanted.
    pub deadline: Instant,
}

impl Reads<'_> {
    /// One key.
    ///
    /// # Errors
    ///
    /// Those of [`Replica`]'s reads; `Unavailable` where a holder's fate could not be learnt in time.
    pub async fn one(&self, key: &Bytes, at: ReadAt) -> Result<Answered<Option<Record>>> {
        let keys = std::slice::from_ref(key);
        if at != ReadAt::Latest {
            return Ok(self.many(keys, at).await?.map(|mut records| records.pop().flatten()));
        }
        let (seen, ready) = self.replica.get_latest(key, self.deadline).await?;
        match seen {
            Seen::Read(value) => {
                let at = self.replica.closed();
                Ok(Answered { value, at, ready, level: ReadLevel::Linearizable, staleness_ms: 0 })
            }
            // The read goes on at a fresh timestamp: what is not committed at or below that may be left out (rule R3).
            Seen::Locked(_) => {
                Ok(Box::pin(self.many(keys, at)).await?.map(|mut records| records.pop().flatten()))
            }
        }
    }

    /// Several keys at one timestamp; the latest are read at one that is taken now (rule R2). There may be fewer records
    /// than keys.
    ///
    /// # Errors
    ///
    /// As for [`one`](Self::one), and `TooOld` below the safe point.
    pub async fn many(&self, keys: &[Bytes], at: ReadAt) -> Result<Answered<Vec<Option<Record>>>> {
        let mut plan = self.plan(at).await?;
        let mut fates = Fates::default();
        loop {
            let (seen, ready) = self.replica.get_at(keys, plan.instance, &fates, self.deadline).await?;
            match seen {
                Seen::Read(records) => return Ok(plan.answered(records, ready)),
                // Rare, and large: kept out of the read's own state.
                Seen::Locked(locks) => Box::pin(self.mind(&mut plan, &mut fates, locks)).await?,
            }
        }
    }

    /// One page of rows at one timestamp; `request.at` is set here.
    ///
    /// # Errors
    ///
    /// As for [`many`](Self::many).
    pub async fn page(&self, mut request: PageRequest, at: ReadAt) -> Result<Answered<Page>> {
        let mut plan = self.plan(at).await?;
        let mut fates = Fates::default();
        loop {
            request.at = plan.instance.at;
            let confirm = plan.instance.confirm;
            let (seen, ready) =
                self.replica.scan_page(request.clone(), confirm, &fates, self.deadline).await?;
            match seen {
                Seen::Read(page) => return Ok(plan.answered(page, ready)),
                // Rare, and large: kept out of the read's own state.
                Seen::Locked(locks) => Box::pin(self.mind(&mut plan, &mut fates, locks)).await?,
            }
        }
    }

    async fn plan(&self, at: ReadAt) -> Result<Plan> {
        let plan = |at, level, bound| Plan { instance: Instance { at, confirm: false }, level, bound };
        match at {
            ReadAt::Latest => {
                let now = self.replica.read_timestamp(Timestamp::ZERO).await?;
                Ok(plan(now, ReadLevel::Linearizable, None))
            }
            // What is closed here was handed out; nobody need be asked.
            ReadAt::Snapshot(at) if at <= self.replica.closed() => Ok(plan(at, ReadLevel::Snapshot, None)),
            ReadAt::Snapshot(at) => {
                let at = self.replica.read_timestamp(at).await?;
                Ok(plan(at, ReadLevel::Snapshot, None))
            }
            ReadAt::Bounded { max_staleness_ms } => {
                if let Some((at, age_ms)) = self.replica.closed_within(self.wide, max_staleness_ms) {
                    return Ok(plan(at, ReadLevel::Bounded, Some((max_staleness_ms, age_ms))));
                }
                // Nothing that is closed here is as fresh as that, but a leader may vouch for it.
                let fresh = self.replica.read_timestamp(Timestamp::ZERO);
                match tokio::time::timeout(FRESH_WITHIN, fresh).await {
                    Ok(Ok(now)) => Ok(plan(now, ReadLevel::Bounded, Some((max_staleness_ms, 0)))),
                    Ok(Err(_)) | Err(_) => Err(self.too_stale(max_staleness_ms)),
                }
            }
        }
    }

    fn too_stale(&self, max_staleness_ms: u64) -> Error {
        let group = self.replica.group();
        let age = match self.replica.age_ms(self.replica.closed()) {
            Some(age_ms) => format!("is {age_ms} ms old"),
            None => "is of unknown age".to_owned(),
        };
        Error::unavailable(format!(
            "the read may be {max_staleness_ms} ms old, and what the replica of shard {} on node {} has {age}, while no \
             fresh timestamp can be had: allow for more, or ask another replica",
            group.id(),
            group.node()
        ))
    }

    /// Does what lets a read go on that met locks: a bounded one goes back to before them, where it may; else their
    /// holders are asked about, each once. The answers hold for this timestamp only.
    async fn mind(&self, plan: &mut Plan, fates: &mut Fates, locks: Vec<Lock>) -> Result<()> {
        if let Some((most_ms, _)) = plan.bound
            && let Some(first) = locks.iter().map(|lock| lock.prepare_ts).min()
            && first <= plan.instance.at
        {
            let before = first.before();
            if let Some(age_ms) = self.replica.age_ms(before).filter(|age_ms| *age_ms <= most_ms) {
                *plan = Plan {
                    instance: Instance { at: before, confirm: false },
                    bound: Some((most_ms, age_ms)),
                    level: plan.level,
                };
                *fates = Fates::default();
                return Ok(());
            }
        }
        let mut holders: Vec<Lock> = Vec::new();
        for lock in locks {
            if !holders.iter().any(|known| known.txn == lock.txn) {
                holders.push(lock);
            }
        }
        let asked = holders.iter().map(|lock| resolve(self.router, lock, plan.instance.at, self.deadline));
        let answers = futures::future::try_join_all(asked).await?;
        // A follower may have looked at a lock whose release it has not applied yet (rule R6).
        plan.instance.confirm |= answers.iter().any(|learnt| learnt.confirm);
        fates.extend(holders.iter().map(|lock| lock.txn).zip(answers.iter().map(|learnt| learnt.fate)));
        Ok(())
    }
}

impl Plan {
    fn answered<T>(&self, value: T, ready: Ready) -> Answered<T> {
        let staleness_ms = self.bound.map_or(0, |(_, age_ms)| age_ms);
        Answered { value, at: self.instance.at, ready, level: self.level, staleness_ms }
    }
}

impl<T> Answered<T> {
    fn map<U>(self, change: impl FnOnce(T) -> U) -> Answered<U> {
        let Self { value, at, ready, level, staleness_ms } = self;
        Answered { value: change(value), at, ready, level, staleness_ms }
    }
}
