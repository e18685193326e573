//! The order inside a shard: waiting commands become one batch, the batch gets its timestamps, then it is
//! proposed as one log entry, fenced with the leadership under which it asked.
//!
//! Batches are proposed in the order in which their timestamps were asked for, so the timestamps of a
//! shard's log rise strictly, across leaders too; apply refuses an entry whose do not.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::time::Instant;

use super::barrier::{Barrier, Fate, Ticket, Touched};
use super::lock_queue::LockQueue;
use super::timestamps::Timestamps;
use crate::codec;
use crate::raft::{Group, Leadership, Proposal, ProposeError, Token};
use crate::shard::{Command, Entry};
use crate::types::{Error, LeaderHint, Moved, NodeId, Operation, Outcome, RequestId, Result, TxnId};

/// Commands in one entry, at most.
const MAX_BATCH_COMMANDS: usize = 1024;
/// Bytes of keys and values in one entry, at most (one command may be larger).
const MAX_ENTRY_BYTES: usize = 2 * 1024 * 1024;
/// Batches of one shard under way at once. What waits meanwhile makes the next batch larger, and an entry
/// costs far more than a command in it.
const MAX_BATCHES_UNDER_WAY: usize = 1;
/// The longest that a batch waits for the callers of the one before it, and the part of that one's time.
const MAX_LINGER: Duration = Duration::from_millis(5);
const LINGER_PART: u32 = 2;
/// The runtime's clock is no finer.
const MIN_LINGER: Duration = Duration::from_millis(1);
/// Commands that wait for a batch; more wait for a place.
const QUEUE_LENGTH: usize = 4096;
/// How often what waits is looked at while nothing moves.
const STUCK_INTERVAL: Duration = Duration::from_millis(500);
/// After so many looks in a row without word from a majority, callers are told rather than kept.
const LOOKS_UNTIL_DOUBT: u32 = 3;

/// Bytes of commands that may wait on a node at once, over all shards. Bounds memory under overload.
#[derive(Clone)]
pub struct Admission {
    units: Arc<Semaphore>,
    limit_units: usize,
}

impl Admission {
    const UNIT_BYTES: usize = 1024;

    /// Admits commands of up to so many bytes together.
    pub fn new(limit_bytes: usize) -> Self {
        let limit_units = (limit_bytes / Self::UNIT_BYTES).max(1);
        Self { units: Arc::new(Semaphore::new(limit_units)), limit_units }
    }

    async fn admit(&self, size_bytes: usize, deadline: Instant) -> Result<OwnedSemaphorePermit> {
        // A command larger than all that may wait goes alone, instead of never.
        let units = (size_bytes / Self::UNIT_BYTES + 1).min(self.limit_units);
        match tokio::time::timeout_at(deadline, self.units.clone().acquire_many_owned(units as u32)).await {
            Ok(Ok(permit)) => Ok(permit),
            _ => Err(Error::unavailable(
                "the node is overloaded: the command waited for a place until its deadline and was not \
                 taken; retry later, or with fewer requests at once",
            )),
        }
    }
}

struct Waiting {
    id: RequestId,
    operation: Operation,
    deadline: Instant,
    answer: oneshot::Sender<Result<Outcome>>,
    /// Whoever sets it first decides the command's fate: the sequencer that takes it into a batch, or the
    /// caller that gives it up in the queue.
    claimed: Arc<AtomicBool>,
    _admitted: OwnedSemaphorePermit,
}

impl Waiting {
    fn is_over(&self, now: Instant) -> bool {
        self.deadline <= now || self.answer.is_closed()
    }

    fn refuse(self, error: &Error) {
        // Whoever asked may have gone at its deadline.
        let _ = self.answer.send(Err(error.clone()));
    }
}

/// Takes the commands of one shard on this node.
pub struct Sequencer {
    queue: mpsc::Sender<Waiting>,
    admission: Admission,
    barrier: Arc<Barrier>,
}

impl Sequencer {
    /// Starts the shard's sequencing task; it ends when the sequencer is dropped.
    pub fn start(
        group: Arc<Group>,
        timestamps: Timestamps,
        admission: Admission,
        locks: Arc<LockQueue>,
        resolve: impl Fn(NodeId) -> Option<LeaderHint> + Send + Sync + 'static,
    ) -> Self {
        let (queue, waiting) = mpsc::channel(QUEUE_LENGTH);
        let barrier = Arc::new(Barrier::default());
        let task = Task {
            group,
            timestamps,
            locks,
            barrier: barrier.clone(),
            under_way: Arc::new(Semaphore::new(MAX_BATCHES_UNDER_WAY)),
            last: Arc::default(),
            resolve: Box::new(resolve),
        };
        tokio::spawn(task.run(waiting));
        Self { queue, admission, barrier }
    }

    /// What reads of this shard must wait for.
    pub fn barrier(&self) -> &Barrier {
        &self.barrier
    }

    /// Sequences a command and waits until it is applied.
    ///
    /// # Errors
    ///
    /// `Moved` where this node does not lead the shard, `Unavailable` where the command was certainly not
    /// proposed, `Undetermined` where it may have been.
    pub async fn execute(&self, id: RequestId, operation: Operation, deadline: Instant) -> Result<Outcome> {
        let admitted = self.admission.admit(operation.size_bytes(), deadline).await?;
        let (answer, answered) = oneshot::channel();
        let claimed = Arc::new(AtomicBool::new(false));
        let waiting =
            Waiting { id, operation, deadline, answer, claimed: claimed.clone(), _admitted: admitted };
        let stopping = || Error::unavailable("the node is stopping: ask another node");
        match tokio::time::timeout_at(deadline, self.queue.send(waiting)).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return Err(stopping()),
            Err(_) => return Err(overdue()),
        }
        match tokio::time::timeout_at(deadline, answered).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) if !claimed.swap(true, Ordering::AcqRel) => Err(overdue()),
            Ok(Err(_)) => Err(Error::undetermined("the node stopped before it learnt the command's outcome")),
            Err(_) if !claimed.swap(true, Ordering::AcqRel) => Err(overdue()),
            Err(_) => Err(Error::undetermined(
                "the deadline passed before the command's outcome was known: it may still take effect; retry \
                 with the same request id, or read before doing it again",
            )),
        }
    }
}

fn overdue() -> Error {
    Error::unavailable("the deadline passed before the command was proposed: nothing was done; retry")
}

struct Task {
    group: Arc<Group>,
    timestamps: Timestamps,
    locks: Arc<LockQueue>,
    barrier: Arc<Barrier>,
    under_way: Arc<Semaphore>,
    last: Arc<Mutex<LastBatch>>,
    resolve: Box<dyn Fn(NodeId) -> Option<LeaderHint> + Send + Sync>,
}

/// How the last batch went: how many callers may come back at once, and what waiting for them is worth.
#[derive(Clone, Copy, Default)]
struct LastBatch {
    commands: usize,
    took: Duration,
    settled: Option<Instant>,
}

impl LastBatch {
    /// Until when a batch waits for the callers of the last one. Callers that were just answered ask again
    /// at once; without the wait, half of them would always be in one batch and half in the next, for twice
    /// the entries.
    fn linger_until(&self) -> Option<Instant> {
        let linger = MAX_LINGER.min(self.took / LINGER_PART);
        self.settled.filter(|_| linger >= MIN_LINGER).map(|settled| settled + linger)
    }
}

impl Task {
    async fn run(self, mut queue: mpsc::Receiver<Waiting>) {
        let mut waiting = VecDeque::new();
        loop {
            // A place first, then the batch: what comes while all places are taken joins the next batch.
            let Some(place) = self.place(&mut queue, &mut waiting).await else { return };
            let Some(()) = self.linger(&mut queue, &mut waiting).await else { return };
            let Some(batch) = gather(&mut queue, &mut waiting).await else { return };
            self.propose(batch, place).await;
        }
    }

    /// Waits a moment for the callers of the last batch to come back, once somebody waits at all.
    async fn linger(
        &self,
        queue: &mut mpsc::Receiver<Waiting>,
        waiting: &mut VecDeque<Waiting>,
    ) -> Option<()> {
        while let Ok(next) = queue.try_recv() {
            waiting.push_back(next);
        }
        let last = *self.last.lock();
        let expected = (waiting.len() + last.commands).min(MAX_BATCH_COMMANDS);
        if waiting.is_empty() {
            waiting.push_back(queue.recv().await?);
        }
        let Some(until) = last.linger_until() else { return Some(()) };
        while waiting.len() < expected {
            match tokio::time::timeout_at(until, queue.recv()).await {
                Ok(next) => waiting.push_back(next?),
                Err(_) => break,
            }
        }
        Some(())
    }

    /// Waits for a place. A leader that is cut off keeps its batches under way for as long as it is: what
    /// waits behind them is told so, and what nobody waits for any more gives back its memory.
    async fn place(
        &self,
        queue: &mut mpsc::Receiver<Waiting>,
        waiting: &mut VecDeque<Waiting>,
    ) -> Option<OwnedSemaphorePermit> {
        let mut doubt = Doubt::default();
        loop {
            let place = self.under_way.clone().acquire_owned();
            if let Ok(place) = tokio::time::timeout(STUCK_INTERVAL, place).await {
                return place.ok();
            }
            while let Ok(next) = queue.try_recv() {
                waiting.push_back(next);
            }
            let now = Instant::now();
            waiting.retain(|waiting| !waiting.is_over(now));
            if doubt.look(&self.group).await {
                let doubtful = self.out_of_touch();
                waiting.drain(..).for_each(|waiting| waiting.refuse(&doubtful));
            }
        }
    }

    fn out_of_touch(&self) -> Error {
        Error::unavailable(format!(
            "this node leads shard {} but has lost touch with the majority of its replicas: nothing was done; \
             another node may lead it already, retry there",
            self.group.id()
        ))
    }

    async fn propose(&self, mut batch: Vec<Waiting>, place: OwnedSemaphorePermit) {
        let token = match self.group.leadership() {
            Leadership::Leading(token) => token,
            Leadership::Following { leader } => return refuse(batch, &self.moved(leader)),
            Leadership::Stopped { fault } => return refuse(batch, &stopped(&fault)),
        };
        let now = Instant::now();
        // A caller whose deadline is past tells itself that the command was still in the queue.
        batch.retain(|waiting| !waiting.is_over(now) && !waiting.claimed.swap(true, Ordering::AcqRel));
        if batch.is_empty() {
            return;
        }
        let mut touched = Touched::default();
        batch.iter().for_each(|waiting| touched.add(&waiting.operation));
        let mut ticket = self.barrier.open(touched);
        let first = match self.timestamps.take(batch.len() as u64).await {
            Ok(first) => first,
            Err(error) => return refuse(batch, &error),
        };
        ticket.stamped(first);
        let ended =
            batch.iter().filter(|waiting| waiting.operation.ends_txn()).map(|waiting| waiting.id).collect();
        let mut commands = Vec::with_capacity(batch.len());
        for (position, waiting) in batch.iter_mut().enumerate() {
            let operation =
                std::mem::replace(&mut waiting.operation, Operation::Delete { key: Bytes::new() });
            commands.push(Command { id: waiting.id, timestamp: first.plus(position as u64), operation });
        }
        let body = Bytes::from(codec::encode(&Entry::Commands(commands)));
        ticket.proposed();
        let proposal = self.group.submit(token, body).await;
        let following = Following {
            group: self.group.clone(),
            token,
            ticket,
            place,
            proposed: Instant::now(),
            last: self.last.clone(),
            locks: self.locks.clone(),
            ended,
        };
        let moved = self.moved(None);
        tokio::spawn(following.follow(proposal, batch, moved));
    }

    fn moved(&self, leader: Option<NodeId>) -> Error {
        let shard = self.group.state().descriptor.clone();
        let message = match leader {
            Some(node) => format!("shard {} is led by node {node}: send the request there", shard.id),
            None => format!("shard {} has no leader that this node knows of: retry", shard.id),
        };
        let leader = leader.and_then(|node| (self.resolve)(node));
        Error::moved(message, Moved { shard: Some(shard), leader })
    }
}

/// Takes what is waiting, up to the limits of an entry; `None` once the sequencer is gone.
async fn gather(
    queue: &mut mpsc::Receiver<Waiting>,
    waiting: &mut VecDeque<Waiting>,
) -> Option<Vec<Waiting>> {
    if waiting.is_empty() {
        waiting.push_back(queue.recv().await?);
    }
    let mut size_bytes = 0;
    let mut batch = Vec::new();
    while batch.len() < MAX_BATCH_COMMANDS {
        if waiting.is_empty() {
            let Ok(next) = queue.try_recv() else { break };
            waiting.push_back(next);
        }
        let Some(next) = waiting.front() else { break };
        size_bytes += next.operation.size_bytes();
        if size_bytes > MAX_ENTRY_BYTES && !batch.is_empty() {
            break;
        }
        batch.extend(waiting.pop_front());
    }
    Some(batch)
}

/// Whether a leader has been out of touch with the majority for too long to keep callers waiting.
#[derive(Default)]
struct Doubt {
    looks: u32,
}

impl Doubt {
    /// Looks once; true after several looks in a row without word from a majority.
    async fn look(&mut self, group: &Group) -> bool {
        match tokio::time::timeout(STUCK_INTERVAL, group.ensure_leader()).await {
            Ok(Ok(_)) => self.looks = 0,
            Ok(Err(_)) | Err(_) => self.looks += 1,
        }
        self.looks >= LOOKS_UNTIL_DOUBT
    }

    /// Returns once there is doubt.
    async fn arises(group: &Group) {
        let mut doubt = Self::default();
        loop {
            tokio::time::sleep(STUCK_INTERVAL).await;
            if doubt.look(group).await {
                return;
            }
        }
    }
}

/// A proposed batch until its outcomes are known.
struct Following {
    group: Arc<Group>,
    token: Token,
    ticket: Ticket,
    place: OwnedSemaphorePermit,
    proposed: Instant,
    last: Arc<Mutex<LastBatch>>,
    locks: Arc<LockQueue>,
    /// The transactions that the batch ends in this shard.
    ended: Vec<TxnId>,
}

impl Following {
    async fn follow(self, mut proposal: Proposal, mut batch: Vec<Waiting>, moved: Error) {
        let outcomes = tokio::select! {
            outcomes = &mut proposal => outcomes,
            () = Doubt::arises(&self.group) => {
                // The callers may find the next leader; the batch stays registered until its fate is known.
                refuse(std::mem::take(&mut batch), &unknown("it lost touch with the majority"));
                proposal.await
            }
        };
        match outcomes {
            Ok(outcomes) => {
                debug_assert!(
                    batch.is_empty() || batch.len() == outcomes.len(),
                    "apply answers every command"
                );
                let settled = Instant::now();
                *self.last.lock() = LastBatch {
                    commands: batch.len(),
                    took: settled - self.proposed,
                    settled: Some(settled),
                };
                self.ticket.settle(Fate::Settled);
                self.ended.iter().for_each(|txn| self.locks.released(*txn));
                for (waiting, outcome) in batch.into_iter().zip(outcomes) {
                    // Whoever asked may have gone at its deadline.
                    let _ = waiting.answer.send(Ok(outcome));
                }
            }
            Err(ProposeError::NotLeader { .. }) => {
                self.ticket.settle(Fate::Settled);
                refuse(batch, &moved);
            }
            Err(ProposeError::Unknown { reason }) => {
                refuse(batch, &unknown(&reason));
                self.hold().await;
            }
        }
    }

    /// Keeps a batch of unknown fate registered while this leadership lasts: it may still be applied
    /// under it, and no read may miss it until then (rule R1).
    async fn hold(self) {
        let mut leadership = self.group.watch_leadership();
        let over = |now: &Leadership| !matches!(now, Leadership::Leading(token) if *token == self.token);
        // An error means the group is gone, and its leadership with it.
        let _ = leadership.wait_for(over).await;
        drop(self.place);
        self.ticket.settle(Fate::Unknown);
    }
}

fn refuse(batch: Vec<Waiting>, error: &Error) {
    batch.into_iter().for_each(|waiting| waiting.refuse(error));
}

fn stopped(fault: &str) -> Error {
    Error::unavailable(format!("this replica has stopped ({fault}): ask another node"))
}

fn unknown(reason: &str) -> Error {
    Error::undetermined(format!(
        "the shard's leader changed while the command was under way ({reason}): it may have taken effect; \
         retry with the same request id, or read before doing it again"
    ))
}
