//! The engine of one shard's sagas, while this node leads the shard: what happens to a saga goes through here, one thing
//! after the other, and is told only once it is stored.
//!
//! All that an engine knows is what is stored, or can be read anew: another node that leads the shard goes on from there.
//! Two that believe to lead do no harm: what each writes is refused where the saga is not as it believed, and
//! what one writes behind the other's takeover is heard of.

use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard, Semaphore, mpsc, oneshot};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::clock::Clock;
use super::definitions::Definitions;
use super::own_writes::OwnWrites;
use super::queues::{Poll, Poller, Queues, Ready, Waiting};
use super::schedules;
use super::timers::Timers;
use super::transition::Loaded;
use crate::client::Client;
use crate::codec::keyspace;
use crate::node::replica::Replica;
use crate::node::rows::Rows;
use crate::raft::Heard;
use crate::rpc::v1;
use crate::saga::{Definition, Event, State, id_of, is_open_key, is_schedule_key};
use crate::types::{Error, ErrorKind, KeyRange, ReadAt, Result, limits};

/// How long one transition, and the reading before it, may take.
pub(super) const WITHIN: Duration = Duration::from_secs(10);
/// After a failure the saga is looked at again after this.
const AGAIN_MS: u64 = 500;
/// A saga that waits longer than this is not kept in memory meanwhile.
const KEEP_MS: u64 = 10_000;
/// Sagas that are looked at at the same time, because they are due or something has happened to them.
const AT_ONCE: usize = 256;
/// Sagas whose ends are waited for are looked through for those that nobody waits for any more, once there are so many.
const MANY_ENDS: usize = 1_000;
/// The pause before a takeover is tried again.
const PAUSE: Duration = Duration::from_millis(200);

/// A saga in memory: what is known of it; `None` where it is to be read. One thing happens at a time.
type Held = Arc<AsyncMutex<Option<Loaded>>>;

/// The engine of a shard.
pub struct Engine {
    pub(super) rows: Rows,
    pub(super) client: Client,
    pub(super) definitions: Arc<Definitions>,
    pub(super) clock: Clock,
    pub(super) queues: Queues,
    pub(super) timers: Timers,
    /// Sagas in memory.
    sagas: Mutex<HashMap<String, Held>>,
    /// Who waits for the end of a saga.
    ends: Mutex<HashMap<String, Vec<oneshot::Sender<()>>>>,
    /// Sagas whose letters are being delivered.
    pub(super) delivering: Mutex<HashSet<String>>,
    /// Schedules that are being looked at.
    pub(super) scheduling: Mutex<HashSet<String>>,
    at_once: Arc<Semaphore>,
    /// What this engine writes itself, and has not heard of yet.
    pub(super) own_writes: OwnWrites,
    /// Nothing is to be forgotten before, as far as is known.
    first_expiry_ms: AtomicU64,
    replica: Arc<Replica>,
    this: Weak<Engine>,
    stopping: CancellationToken,
}

impl Engine {
    /// The engine of a replica's shard. [`run`](Self::run) makes it go.
    pub fn new(
        rows: Rows,
        client: Client,
        definitions: Arc<Definitions>,
        clock: Clock,
        replica: Arc<Replica>,
    ) -> Arc<Self> {
        Arc::new_cyclic(|this| Self {
            rows,
            client,
            definitions,
            clock,
            queues: Queues::default(),
            timers: Timers::default(),
            sagas: Mutex::default(),
            ends: Mutex::default(),
            delivering: Mutex::default(),
            scheduling: Mutex::default(),
            at_once: Arc::new(Semaphore::new(AT_ONCE)),
            own_writes: OwnWrites::default(),
            first_expiry_ms: AtomicU64::new(0),
            replica,
            this: this.clone(),
            stopping: CancellationToken::new(),
        })
    }

    /// Ends it: what is under way comes to nothing, or is found by whoever leads next.
    pub fn stop(&self) {
        self.stopping.cancel();
        // Whoever waits here asks again, and is told where to go.
        self.queues.end_waits();
        self.ends.lock().clear();
    }

    /// Takes the shard's sagas over and looks after them, until it is stopped.
    pub async fn run(self: Arc<Self>) {
        let stopping = self.stopping.clone();
        let all = async {
            // Before anything is read: what is written meanwhile is heard of.
            let news = self.replica.group().replica().listen(crate::saga::is_heard);
            while let Err(error) = self.take_over().await {
                tracing::warn!(shard = %self.replica.group().id(), %error, "sagas can't be taken over yet; trying on");
                sleep(PAUSE).await;
            }
            tokio::join!(self.keep_time(), self.hear(news), self.match_up());
        };
        tokio::select! {
            () = stopping.cancelled() => {}
            () = all => {}
        }
    }

    /// Reads where all sagas of the shard are that have not ended.
    async fn take_over(&self) -> Result<()> {
        self.clock.note(self.rows.now().await?);
        let began = Instant::now();
        let shard = self.replica.group().state().descriptor.range.clone();
        let mut sagas = 0_usize;
        let part = |partition, rows| shard.intersect(&KeyRange::prefix(keyspace::saga_rows(partition, rows)));
        for partition in 0..=u8::MAX {
            let latest = ReadAt::Latest;
            if let Some(open) = part(partition, keyspace::SAGA_OPEN) {
                let mut from = Some(open.start.clone());
                while let Some(rows) = self.rows.next(&open, &mut from, latest, WITHIN).await? {
                    sagas += rows.len();
                    for (key, record) in rows {
                        match self.take_over_one(&key, &record.value).await {
                            // The others go on without it.
                            Err(error) if error.kind == ErrorKind::Corrupt => {
                                tracing::error!(%error, "a saga can't be taken over: it stands until it is mended");
                            }
                            taken => taken?,
                        }
                    }
                }
            }
            if let Some(news) = part(partition, keyspace::SAGA_NEWS) {
                for (key, _) in self.rows.all(&news, latest, WITHIN).await? {
                    self.timers.set(&id_of(&key)?, Some(0));
                }
            }
            if let Some(schedules) = part(partition, keyspace::SAGA_SCHEDULE) {
                for (key, _) in self.rows.all(&schedules, latest, WITHIN).await? {
                    self.look_at_schedule_soon(&id_of(&key)?);
                }
            }
        }
        tracing::info!(shard = %self.replica.group().id(), sagas, took = ?began.elapsed(), "sagas were taken over");
        Ok(())
    }

    async fn take_over_one(&self, key: &[u8], value: &[u8]) -> Result<()> {
        let (id, state) = (id_of(key)?, State::decode(value)?);
        let definition = self.definition_of(&state).await?;
        self.expect(&id, &definition, &state);
        Ok(())
    }

    /// What a saga that was not in memory waits for: a worker, a time, or others to be told.
    fn expect(&self, id: &str, definition: &Definition, state: &State) {
        let known = crate::saga::apply(state, definition, self.clock.now_ms(), Event::TakenOver);
        let state = known.as_ref().map_or(state, |(state, _)| state);
        // Something has happened to it perhaps since the page was read: what it has is left.
        for ready in Ready::of(state, definition) {
            self.queues.push(id, ready);
        }
        // What has happened since the page was read has set its own.
        let letters_ms = (!state.letters.is_empty()).then_some(0);
        if let Some(due_ms) = letters_ms.or(state.next_due_ms(definition)) {
            self.timers.set_at_most(id, due_ms);
        }
    }

    /// Hears of what others have written: transactions of users, and another engine of the shard, whose last transitions may
    /// come in behind the takeover.
    async fn hear(&self, mut news: mpsc::UnboundedReceiver<Heard>) {
        while let Some(Heard { key, is_removed }) = news.recv().await {
            match id_of(&key) {
                Ok(id) if is_open_key(&key) && self.own_writes.heard(&id) => {}
                // It was taken note of: by this engine, which does nothing more then; or by another one together with the row
                // that is heard of too.
                Ok(_) if is_removed && !is_open_key(&key) => {}
                Ok(name) if is_schedule_key(&key) => self.look_at_schedule_soon(&name),
                Ok(id) => {
                    self.soon(|engine| async move { engine.take_in_or_look(&id, &key).await }).await;
                }
                Err(error) => tracing::error!(%error, "a saga has a malformed row"),
            }
        }
    }

    /// Looks at sagas that are due.
    async fn keep_time(&self) {
        loop {
            while let Some(id) = self.timers.pop_due(self.clock.now_ms()) {
                self.soon(|engine| async move { engine.look(&id).await }).await;
            }
            let first_ms = self.timers.first_ms();
            let wait = async {
                match first_ms {
                    Some(first_ms) if self.clock.skips() => self.skip_to(first_ms).await,
                    Some(first_ms) => sleep(self.clock.until(first_ms).max(Duration::from_millis(1))).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = wait => {}
                () = self.timers.earlier() => {}
            }
        }
    }

    /// Puts the clock forward to when something is due, once nobody is at work.
    async fn skip_to(&self, at_ms: u64) {
        sleep(Duration::from_millis(1)).await;
        if self.is_idle() {
            self.clock.advance_to(at_ms);
        }
    }

    /// Whether no worker has a task, none waits for one, nothing is being written, and no saga tells another one.
    fn is_idle(&self) -> bool {
        self.sagas.lock().is_empty()
            && self.queues.ready() == 0
            && self.at_once.available_permits() == AT_ONCE
            && self.delivering.lock().is_empty()
    }

    /// Does something in the background; waits while much is done there.
    async fn soon<Fut>(&self, work: impl FnOnce(Arc<Self>) -> Fut)
    where
        Fut: Future<Output = ()> + Send + 'static,
    {
        let (Some(engine), Ok(permit)) = (self.shared(), self.at_once.clone().acquire_owned().await) else {
            return;
        };
        let work = work(engine);
        tokio::spawn(async move {
            work.await;
            drop(permit);
        });
    }

    /// Gives back a task that did not reach its worker, in the background.
    pub(super) fn give_back_soon(&self, task: v1::SagaTask) {
        let Some(engine) = self.shared() else { return };
        tokio::spawn(async move { engine.give_back(&task).await });
    }

    /// Has a saga take in what others have written for it.
    async fn take_in_or_look(&self, id: &str, news: &Bytes) {
        if let Err(error) = self.take_in(id, news, Instant::now() + WITHIN).await {
            tracing::debug!(id, %error, "a saga can't take in now what was committed for it; trying on");
            self.refresh(id).await;
            self.look_again(id);
        }
    }

    /// Lets happen to a saga what is due.
    async fn look(&self, id: &str) {
        let deadline = Instant::now() + WITHIN;
        let looked = match schedules::name_of(id) {
            Some(schedule) => self.look_at_schedule(schedule, deadline).await,
            None => self.happen(id, Event::Tick, deadline).await.map(drop),
        };
        if let Err(error) = looked {
            tracing::debug!(id, %error, "a saga can't be looked at now; trying on");
            self.look_again(id);
        }
    }

    /// Has a saga looked at again after a while.
    pub(super) fn look_again(&self, id: &str) {
        self.timers.set_at_most(id, self.clock.now_ms().saturating_add(AGAIN_MS));
    }

    /// Brings together tasks and workers that wait for each other.
    async fn match_up(&self) {
        loop {
            let (pairs, again) = self.queues.matched();
            for (waiting, poller) in pairs {
                self.soon(|engine| async move { engine.hand_to(waiting, poller).await }).await;
            }
            let wait = async {
                match again {
                    Some(again) => sleep(again).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = wait => {}
                () = self.queues.wait_for_match() => {}
            }
        }
    }

    async fn hand_to(&self, waiting: Waiting, poller: Poller) {
        let deadline = Instant::now() + WITHIN;
        match self.hand_out(&waiting, &poller.worker, deadline).await {
            Ok(Some(task)) => self.deliver(task, poller),
            // It is not wanted any more.
            Ok(None) => self.queues.put_back(poller),
            Err(error) => {
                tracing::debug!(id = waiting.id, %error, "a task can't be handed out now");
                self.look_again(&waiting.id);
                self.queues.put_back(poller);
            }
        }
    }

    /// Gives a task that was handed out to its worker. One that has gone does not get it: another one will.
    pub(super) fn deliver(&self, task: v1::SagaTask, poller: Poller) {
        if let Err(task) = poller.send.send(task) {
            self.queues.refund(&poller.queue, 1);
            self.give_back_soon(task);
        }
    }

    /// A task that was handed out has not reached its worker.
    async fn give_back(&self, task: &v1::SagaTask) {
        let Ok((id, token)) = crate::saga::Token::from_text(&task.token) else { return };
        let deadline = Instant::now() + WITHIN;
        if let Err(error) = self.happen(&id, Event::Return { token }, deadline).await {
            tracing::debug!(id, %error, "a task that did not reach its worker waits for the end of its lease");
        }
    }

    /// Takes tasks for a worker: those that are there, or the first one that comes.
    ///
    /// # Errors
    ///
    /// `Unavailable` where too many wait on the queue.
    pub async fn take(&self, take: &v1::SagaTake, deadline: Instant) -> Result<v1::SagaTasks> {
        let until = deadline.min(Instant::now() + Duration::from_millis(take.wait_ms));
        if take.worker.len() > limits::MAX_SAGA_ID_BYTES {
            return Err(Error::invalid(format!(
                "the worker's name has {} bytes, over the limit of {}",
                take.worker.len(),
                limits::MAX_SAGA_ID_BYTES
            )));
        }
        if take.look_only {
            let there = tokio::time::timeout_at(until, self.queues.look(&take.queue)).await;
            return Ok(v1::SagaTasks { tasks: Vec::new(), is_there: matches!(there, Ok(Ok(()))) });
        }
        if take.leave {
            self.queues.leave(&take.queue, &take.worker);
            return Ok(v1::SagaTasks::default());
        }
        let max = (take.max as usize).clamp(1, limits::MAX_SAGA_TASKS);
        loop {
            match self.queues.poll(&take.queue, &take.worker, max, take.wait_ms > 0) {
                Poll::Ready(waiting) => {
                    let wanted = waiting.len();
                    let tasks = self.hand_out_all(waiting, take.worker.clone(), deadline).await;
                    self.queues.refund(&take.queue, wanted - tasks.len());
                    if !tasks.is_empty() {
                        return Ok(v1::SagaTasks { tasks, is_there: false });
                    }
                }
                Poll::Wait(mut task) => {
                    let task = match tokio::time::timeout_at(until, &mut task).await {
                        Ok(task) => task.ok(),
                        Err(_) => {
                            // It may have come just now.
                            task.close();
                            task.try_recv().ok()
                        }
                    };
                    return Ok(v1::SagaTasks { tasks: task.into_iter().collect(), is_there: false });
                }
                Poll::Nothing => return Ok(v1::SagaTasks::default()),
                Poll::Full => {
                    return Err(Error::overloaded(format!(
                        "too many workers wait on queue {} already: let each take more tasks at once",
                        take.queue
                    )));
                }
            }
            if Instant::now() >= until {
                return Ok(v1::SagaTasks::default());
            }
        }
    }

    /// Hands out tasks. Where the worker goes away meanwhile, they are given back.
    async fn hand_out_all(
        &self,
        waiting: Vec<Waiting>,
        worker: String,
        deadline: Instant,
    ) -> Vec<v1::SagaTask> {
        let (Some(engine), (send, handed)) = (self.shared(), oneshot::channel()) else { return Vec::new() };
        tokio::spawn(async move {
            let tasks = engine.hand_out_each(&waiting, &worker, deadline).await;
            if let Err(tasks) = send.send(tasks) {
                for task in tasks {
                    engine.give_back(&task).await;
                }
            }
        });
        handed.await.unwrap_or_default()
    }

    async fn hand_out_each(&self, waiting: &[Waiting], worker: &str, deadline: Instant) -> Vec<v1::SagaTask> {
        let handed = waiting.iter().map(|waiting| self.hand_out(waiting, worker, deadline));
        let mut tasks = Vec::new();
        for (waiting, handed) in waiting.iter().zip(futures::future::join_all(handed).await) {
            match handed {
                Ok(task) => tasks.extend(task),
                Err(error) => {
                    tracing::debug!(id = waiting.id, %error, "a task can't be handed out now");
                    self.look_again(&waiting.id);
                }
            }
        }
        tasks
    }

    /// Waits until a saga has ended, or the time is over.
    pub async fn wait_for_end(&self, id: &str, until: Instant) -> Result<()> {
        let (tell, told) = oneshot::channel();
        {
            let mut ends = self.ends.lock();
            if ends.len() >= MANY_ENDS {
                ends.retain(|_, waiting| waiting.iter().any(|one| !one.is_closed()));
            }
            let waiting = ends.entry(id.to_owned()).or_default();
            waiting.retain(|one| !one.is_closed());
            waiting.push(tell);
        }
        // An engine that has stopped tells nobody.
        if self.stopping.is_cancelled() || self.has_ended(id, until).await? {
            return Ok(());
        }
        // That the time is over, or the engine has gone, is no error: the saga is looked at then.
        let _ = tokio::time::timeout_at(until, told).await;
        Ok(())
    }

    /// Tells those who wait for a saga's end.
    pub(super) fn tell_end(&self, id: &str) {
        for waiting in self.ends.lock().remove(id).into_iter().flatten() {
            // Whoever waited may have gone.
            let _ = waiting.send(());
        }
    }

    /// A saga in memory, perhaps not read yet, for as long as nothing else is to happen to it.
    pub(super) async fn lock(&self, id: &str) -> OwnedMutexGuard<Option<Loaded>> {
        loop {
            let held = self.sagas.lock().entry(id.to_owned()).or_default().clone();
            let guard = held.clone().lock_owned().await;
            // It may have been let go of meanwhile, and another one may be in its place.
            if self.sagas.lock().get(id).is_some_and(|now| Arc::ptr_eq(now, &held)) {
                return guard;
            }
        }
    }

    /// Keeps a saga in memory only while something is expected of it soon. For who has locked it.
    pub(super) fn keep(&self, id: &str, definition: &Definition, state: &State) {
        let soon_ms = self.clock.now_ms().saturating_add(if self.clock.skips() { 0 } else { KEEP_MS });
        let is_at_work = state.is_at_work(definition);
        let is_soon = state.next_due_ms(definition).is_some_and(|due_ms| due_ms <= soon_ms);
        if state.is_settled() || !(is_at_work || is_soon) {
            self.let_go(id);
        }
    }

    /// Keeps a saga in memory no longer: it is read anew when it is needed. For who has locked it.
    pub(super) fn let_go(&self, id: &str) {
        self.sagas.lock().remove(id);
    }

    /// Refuses what is about a saga, or a schedule, of another shard.
    ///
    /// # Errors
    ///
    /// `Invalid` then.
    pub fn check_holds(&self, name: &str) -> Result<()> {
        if self.range().contains(&crate::saga::open_key(name)) {
            return Ok(());
        }
        Err(Error::invalid(format!(
            "{name:?} is not of the shard that the request was sent to: route it by its id"
        )))
    }

    /// The keys of the shard.
    pub(super) fn range(&self) -> KeyRange {
        self.replica.group().state().descriptor.range.clone()
    }

    /// When the first saga is to be forgotten, as far as is known.
    pub(super) fn first_expiry_ms(&self) -> u64 {
        self.first_expiry_ms.load(Ordering::Relaxed)
    }

    /// Nothing that had ended when it was looked at last is to be forgotten before.
    pub(super) fn set_first_expiry_ms(&self, at_ms: u64) {
        self.first_expiry_ms.store(at_ms, Ordering::Relaxed);
    }

    /// A saga that has ended is to be forgotten then.
    pub(super) fn note_expiry(&self, at_ms: u64) {
        self.first_expiry_ms.fetch_min(at_ms, Ordering::Relaxed);
    }

    /// How many sagas are in memory, how many wait for a time, and how many tasks wait for workers.
    pub fn counts(&self) -> (usize, usize, usize) {
        (self.sagas.lock().len(), self.timers.len(), self.queues.ready())
    }

    pub(super) async fn definition_of(&self, state: &State) -> Result<Arc<Definition>> {
        self.definitions.get(&self.client, &state.name, state.version).await
    }

    /// It, for what goes on in the background; `None` once it is gone.
    pub(super) fn shared(&self) -> Option<Arc<Self>> {
        self.this.upgrade()
    }
}
