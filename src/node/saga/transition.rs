//! One thing that happens to a saga: read where it is, ask the machine what comes of it, store that, and tell.
//!
//! All of a transition is one transaction in one shard: the saga's state, its history, what a step came to, and by what it
//! is found. It is refused where the saga is not as it was read, and then made anew. So each takes effect once, whoever
//! else believes to be the saga's engine.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Mutex, MutexGuard};
use tokio::time::Instant;

use super::engine::{Engine, WITHIN};
use super::mistakes;
use super::queues::{Poller, Waiting};
use super::reads::payloads;
use super::wire::{Payloads, task_to_proto};
use crate::codec::{self, keyspace};
use crate::rpc::v1;
use crate::saga::{
    Change, Definition, Event, Parent, Refusal, Start, State, TaskRef, Token, TxnDone, apply, closed_key,
    expires_ms, is_open_key, open_key, reads_of_change, start, started_key, writes_of_change,
    writes_of_start,
};
use crate::types::{Error, ErrorKind, ReadAt, Result, Timestamp, TxnWrite, limits};

/// A saga that was read or written longer ago than this is read anew: a transaction that began then would be old.
const START_AGE: Duration = Duration::from_secs(30);
/// A start looks at a moment at most so long ago.
const RECENT: Duration = Duration::from_secs(5);
/// How often a transition is made anew because something has changed meanwhile.
const ATTEMPTS: usize = 20;

/// A saga in memory.
#[derive(Default)]
pub struct Held {
    /// What is known of it; `None` where it is to be read. One thing happens at a time.
    loaded: Mutex<Option<Loaded>>,
}

/// A saga as it was read or written last.
pub(super) struct Loaded {
    pub(super) state: State,
    pub(super) definition: Arc<Definition>,
    pub(super) payloads: Payloads,
    /// When it was stored.
    stored: Timestamp,
    /// As of when it is that still.
    as_of: Timestamp,
    /// When that was here.
    at: Instant,
    /// Steps' transactions that are committed, and the saga does not know of yet.
    done: Vec<(Bytes, TxnDone)>,
    /// A transaction has started it, and its engine has not noted that.
    is_new: bool,
}

/// What came of something that happened.
#[derive(Debug, Default)]
pub struct Happened {
    /// It was so before.
    pub already: bool,
    /// To a worker's sign of life: its attempt is wanted no more.
    pub cancel_requested: bool,
    /// To an end that was told before: what is recorded.
    pub recorded: Bytes,
}

/// A transition in the making.
struct Plan {
    state: State,
    change: Change,
    /// Tasks that are handed out with it.
    handed: Vec<(TaskRef, Poller)>,
    /// News that it takes note of.
    noted: Vec<Bytes>,
}

impl Plan {
    fn new(state: State) -> Self {
        Self { state, change: Change::default(), handed: Vec::new(), noted: Vec::new() }
    }

    fn apply(&mut self, definition: &Definition, now_ms: u64, event: Event) -> Result<(), Refusal> {
        let (state, change) = apply(&self.state, definition, now_ms, event)?;
        self.state = state;
        self.change.must_store |= change.must_store;
        self.change.records.extend(change.records);
        for (step, output) in change.outputs {
            self.change.outputs.retain(|(other, _)| *other != step);
            self.change.outputs.push((step, output));
        }
        Ok(())
    }
}

impl Engine {
    /// Lets something happen to a saga.
    ///
    /// # Errors
    ///
    /// `Invalid` where there is none of the id, or it does not go with where the saga is; `Denied` for a worker's attempt
    /// that does not count any more; those of a read and of a commit.
    pub async fn happen(&self, id: &str, event: Event, deadline: Instant) -> Result<Happened> {
        let held = self.held(id);
        let mut loaded = held.loaded.lock().await;
        self.happen_to(&mut loaded, id, event, deadline).await
    }

    /// Takes in what a transaction of users has written for a saga.
    ///
    /// # Errors
    ///
    /// Those of a read and of a commit.
    pub(super) async fn take_in(&self, id: &str, news: &Bytes, deadline: Instant) -> Result<()> {
        let held = self.held(id);
        let mut loaded = held.loaded.lock().await;
        if let Some(now) = loaded.as_mut() {
            let at = Instant::now();
            // Of all transactions that may be committed meanwhile, not only of the one that was heard of: what is known is
            // all that there is as of the moment that it is said to be of.
            let keys = reads_of_change(id, &now.definition, &now.state);
            let (as_of, found) = self.rows.read(&keys, ReadAt::Latest, deadline).await?;
            let mut found = keys.iter().zip(found);
            let stored = found.next().and_then(|(_, record)| record).map(|record| record.commit_ts);
            if stored == Some(now.stored) && !is_open_key(news) && *news != started_key(id) {
                now.done.clear();
                for (key, record) in found {
                    if let Some(record) = record {
                        now.done.push((key.clone(), decode_done(&record.value)?));
                    }
                }
                (now.as_of, now.at) = (as_of, at);
            } else {
                *loaded = None;
            }
        }
        self.happen_to(&mut loaded, id, Event::Tick, deadline).await.map(drop)
    }

    /// Has a saga read anew when something next happens to it.
    pub async fn refresh(&self, id: &str) {
        *self.held(id).loaded.lock().await = None;
    }

    async fn happen_to(
        &self,
        loaded: &mut MutexGuard<'_, Option<Loaded>>,
        id: &str,
        event: Event,
        deadline: Instant,
    ) -> Result<Happened> {
        for _ in 0..ATTEMPTS {
            if loaded.as_ref().is_none_or(|loaded| loaded.at.elapsed() > START_AGE) {
                let before = loaded.take().map(|loaded| loaded.state);
                **loaded = self.load(id, before.as_ref(), deadline).await?;
            }
            let Some(now) = loaded.as_ref() else {
                self.let_go(id);
                return self.happen_to_closed(id, event, deadline).await;
            };
            let (plan, refusal) = self.plan(id, now, event.clone());
            let happened = happened(&plan.state, &now.payloads, &event, refusal);
            match self.store(loaded, id, plan, deadline).await {
                Ok(()) => return happened,
                Err(error) => {
                    **loaded = None;
                    // Somebody else has written: a step's transaction, or another engine.
                    if error.kind != ErrorKind::Conflict {
                        // It may be stored all the same, and then wait for workers and times that nobody here knows of.
                        self.let_go(id);
                        self.look_again(id);
                        return Err(error);
                    }
                }
            }
        }
        self.look_again(id);
        Err(Error::unavailable(format!("saga {id} was changed by others all the time: try again")))
    }

    fn plan(&self, id: &str, now: &Loaded, event: Event) -> (Plan, Option<Refusal>) {
        let now_ms = self.clock.now_ms();
        let mut plan = Plan::new(now.state.clone());
        for (key, done) in &now.done {
            let complete =
                Event::Complete { token: done.token, output: done.output.clone(), is_committed: true };
            // One that is not expected any more is only taken away: its lease was there when it was committed, so its step
            // was known to be done before.
            if let Err(refusal) = plan.apply(&now.definition, now_ms, complete) {
                tracing::warn!(id, ?refusal, "a step's transaction is committed that was not waited for");
            }
            plan.noted.push(key.clone());
        }
        if now.is_new {
            plan.noted.push(started_key(id));
        }
        for event in mistakes::before(&plan.state, &now.definition, now_ms, &event) {
            // What can't happen does not.
            let _ = plan.apply(&now.definition, now_ms, event);
        }
        let event = mistakes::instead(&plan.state, event);
        let refusal = plan.apply(&now.definition, now_ms, event).err();
        self.hand_out_with(&mut plan, &now.definition, now_ms);
        (plan, refusal)
    }

    /// Hands out what has become ready to workers that wait for it: that costs no transition of its own.
    fn hand_out_with(&self, plan: &mut Plan, definition: &Definition, now_ms: u64) {
        let ready: Vec<(TaskRef, String)> =
            plan.state.ready(definition).map(|(task, call)| (task, call.queue.clone())).collect();
        for (task, queue) in ready {
            let Some(poller) = self.queues.take_poller(&queue) else { continue };
            let event = Event::HandOut { task, worker: poller.worker.clone() };
            match plan.apply(definition, now_ms, event) {
                Ok(()) => plan.handed.push((task, poller)),
                Err(_) => self.queues.put_back(poller),
            }
        }
    }

    /// Stores a transition, and tells of it.
    async fn store(
        &self,
        loaded: &mut MutexGuard<'_, Option<Loaded>>,
        id: &str,
        mut plan: Plan,
        deadline: Instant,
    ) -> Result<()> {
        let Some(now) = loaded.as_mut() else { return Ok(()) };
        if !plan.change.must_store && plan.noted.is_empty() {
            now.state = plan.state;
            self.published(id, now, Vec::new());
            return Ok(());
        }
        let mut writes = writes_of_change(id, &now.definition, Some(&now.state), &plan.state, &plan.change);
        writes.extend(plan.noted.drain(..).map(|key| TxnWrite::Delete { key }));
        let reads = reads_of_change(id, &now.definition, &now.state);
        let committed = self.commit(id, now.as_of, (reads, writes), &mut plan.handed, deadline).await?;
        now.payloads.outputs.extend(plan.change.outputs);
        now.state = plan.state;
        (now.stored, now.as_of, now.at) = (committed, committed, Instant::now());
        (now.done, now.is_new) = (Vec::new(), false);
        self.published(id, now, plan.handed);
        Ok(())
    }

    /// Commits what writes the row that says where a saga is. Where that fails, workers that were to get tasks with it go on
    /// waiting.
    async fn commit(
        &self,
        id: &str,
        as_of: Timestamp,
        (reads, writes): (Vec<Bytes>, Vec<TxnWrite>),
        handed: &mut Vec<(TaskRef, Poller)>,
        deadline: Instant,
    ) -> Result<Timestamp> {
        self.own_writes.begin(id);
        let committed = self.rows.commit(as_of, reads, writes, deadline).await;
        match &committed {
            Ok(committed) => self.clock.note(*committed),
            Err(_) => {
                self.own_writes.failed(id);
                handed.drain(..).for_each(|(_, poller)| self.queues.put_back(poller));
            }
        }
        committed
    }

    /// Tells of a saga as it is stored now: workers, timers, other sagas, and who waits for its end.
    fn published(&self, id: &str, now: &Loaded, handed: Vec<(TaskRef, Poller)>) {
        let handed_out = (self.clock.now_ms(), now.as_of);
        for (at, poller) in handed {
            if let Some(task) = task_to_proto(id, &now.definition, &now.state, &now.payloads, at, handed_out)
            {
                self.deliver(task, poller);
            }
        }
        for (task, call) in now.state.ready(&now.definition) {
            self.queues.push(&call.queue, now.state.priority, Waiting { id: id.to_owned(), task });
        }
        self.timers.set(id, now.state.next_due_ms(&now.definition));
        if !now.state.letters.is_empty() {
            self.deliver_letters(id, now);
        }
        if now.state.is_settled() {
            self.note_expiry(expires_ms(&now.state, &now.definition));
            self.tell_end(id);
        }
        self.keep(id, &now.definition, &now.state);
    }

    /// Hands a task out to a worker; `None` where it is not to be handed out any more.
    pub(super) async fn hand_out(
        &self,
        waiting: &Waiting,
        worker: &str,
        deadline: Instant,
    ) -> Result<Option<v1::SagaTask>> {
        let held = self.held(&waiting.id);
        let mut loaded = held.loaded.lock().await;
        let event = Event::HandOut { task: waiting.task, worker: worker.to_owned() };
        match self.happen_to(&mut loaded, &waiting.id, event, deadline).await {
            Ok(_) => Ok(loaded.as_ref().and_then(|now| {
                let handed_out = (self.clock.now_ms(), now.as_of);
                task_to_proto(
                    &waiting.id,
                    &now.definition,
                    &now.state,
                    &now.payloads,
                    waiting.task,
                    handed_out,
                )
            })),
            Err(error) if error.kind == ErrorKind::Invalid => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Starts a saga.
    ///
    /// # Errors
    ///
    /// `Invalid` where the request is wrong, or the id is another saga's; those of a read and of a commit.
    pub async fn start(
        &self,
        asked: &v1::SagaStart,
        parent: Option<Parent>,
        deadline: Instant,
    ) -> Result<v1::SagaStarted> {
        check_start(asked)?;
        let definition = self.definitions.get(&self.client, &asked.name, asked.version).await?;
        let (id, held) = (asked.id.as_str(), self.held(&asked.id));
        let mut loaded = held.loaded.lock().await;
        let started = self.start_in(&mut loaded, asked, parent, &definition, deadline).await;
        if started.is_err() || loaded.is_none() {
            self.let_go(id);
        }
        if started.is_err() {
            // It may be started all the same.
            self.look_again(id);
        }
        started
    }

    async fn start_in(
        &self,
        loaded: &mut MutexGuard<'_, Option<Loaded>>,
        asked: &v1::SagaStart,
        parent: Option<Parent>,
        definition: &Arc<Definition>,
        deadline: Instant,
    ) -> Result<v1::SagaStarted> {
        let id = asked.id.as_str();
        for _ in 0..ATTEMPTS {
            let as_of = self.rows.recent(RECENT).await?;
            let keys = [open_key(id), closed_key(id)];
            let (_, found) = self.rows.read(&keys, ReadAt::Snapshot(as_of), deadline).await?;
            if let Some(record) = found.into_iter().flatten().next() {
                let there = State::decode(&record.value)?;
                check_same(asked, &there)?;
                return Ok(v1::SagaStarted { version: there.version, already: true });
            }
            let now_ms = self.clock.now_ms();
            let (state, change) = start(definition, start_of(asked, parent.clone()), now_ms);
            let mut plan = Plan { state, change, handed: Vec::new(), noted: Vec::new() };
            self.hand_out_with(&mut plan, definition, now_ms);
            let writes = writes_of_start(id, definition, &plan.state, &plan.change, asked.input.clone());
            let written = (keys.to_vec(), writes);
            let committed = match self.commit(id, as_of, written, &mut plan.handed, deadline).await {
                Ok(committed) => committed,
                Err(error) if error.kind == ErrorKind::Conflict => continue,
                Err(error) => return Err(error),
            };
            let now = Loaded {
                state: plan.state,
                definition: definition.clone(),
                payloads: Payloads { input: asked.input.clone(), ..Payloads::default() },
                stored: committed,
                as_of: committed,
                at: Instant::now(),
                done: Vec::new(),
                is_new: false,
            };
            self.published(id, &now, plan.handed);
            **loaded = Some(now);
            return Ok(v1::SagaStarted { version: definition.version(), already: false });
        }
        Err(Error::unavailable(format!("saga {id} was started by others at the same time: try again")))
    }

    /// A saga as it is stored; `None` where there is none that has not ended. What was heard of its workers is known from
    /// `before`, or else each counts as heard of just now.
    async fn load(&self, id: &str, before: Option<&State>, deadline: Instant) -> Result<Option<Loaded>> {
        let keys = [open_key(id), started_key(id)];
        let at = Instant::now();
        let (as_of, found) = self.rows.read(&keys, ReadAt::Latest, deadline).await?;
        let mut found = found.into_iter();
        let Some(record) = found.next().flatten() else { return Ok(None) };
        let is_new = found.next().flatten().is_some();
        let (state, stored) = (State::decode(&record.value)?, record.commit_ts);
        let definition = self.definition_of(&state).await?;
        let payloads = payloads(&self.rows, id, as_of, WITHIN).await?;
        let mut done = Vec::new();
        let news = keyspace::saga_rows_of(id, keyspace::SAGA_NEWS);
        for (key, record) in self.rows.all(&news, ReadAt::Snapshot(as_of), WITHIN).await? {
            done.push((key, decode_done(&record.value)?));
        }
        let state = match before {
            Some(before) => state.with_leases_of(before),
            None => apply(&state, &definition, self.clock.now_ms(), Event::TakenOver)
                .map_or(state, |(state, _)| state),
        };
        Ok(Some(Loaded { state, definition, payloads, stored, as_of, at, done, is_new }))
    }

    /// The same for a saga that has ended, or is not there: nothing changes any more.
    async fn happen_to_closed(&self, id: &str, event: Event, deadline: Instant) -> Result<Happened> {
        if event == Event::Tick {
            self.tell_end(id);
            return Ok(Happened { already: true, ..Happened::default() });
        }
        let (as_of, found) = self.rows.read(&[closed_key(id)], ReadAt::Latest, deadline).await?;
        let record = found.into_iter().next().flatten().ok_or_else(|| no_saga(id))?;
        let state = State::decode(&record.value)?;
        let definition = self.definition_of(&state).await?;
        let refusal = apply(&state, &definition, self.clock.now_ms(), event.clone()).err();
        let payloads = match &event {
            Event::Complete { .. } => payloads(&self.rows, id, as_of, WITHIN).await?,
            _ => Payloads::default(),
        };
        happened(&state, &payloads, &event, Some(refusal.unwrap_or(Refusal::Already)))
    }

    /// Whether there is no saga of the id that has not ended.
    pub(super) async fn has_ended(&self, id: &str, deadline: Instant) -> Result<bool> {
        let deadline = deadline.max(Instant::now() + WITHIN);
        let (_, found) = self.rows.read(&[open_key(id)], ReadAt::Latest, deadline).await?;
        Ok(found.into_iter().flatten().next().is_none())
    }
}

fn decode_done(value: &[u8]) -> Result<TxnDone> {
    codec::decode(value, "what a step's transaction came to")
}

/// What is answered.
fn happened(state: &State, payloads: &Payloads, event: &Event, refusal: Option<Refusal>) -> Result<Happened> {
    let is_action = |token: &Token| token.task.kind == crate::saga::TaskKind::Action;
    match refusal {
        None => {
            let cancel_requested = match event {
                Event::Heartbeat { token } => {
                    is_action(token) && matches!(state.phase, crate::saga::Phase::Halting { .. })
                }
                _ => false,
            };
            Ok(Happened { cancel_requested, ..Happened::default() })
        }
        Some(Refusal::Already) => {
            let recorded = match event {
                Event::Complete { token, .. } if is_action(token) => {
                    payloads.outputs.get(&token.task.step).cloned().unwrap_or_default()
                }
                _ => Bytes::new(),
            };
            Ok(Happened { already: true, recorded, ..Happened::default() })
        }
        Some(Refusal::Stale { why }) => Err(Error::denied(format!(
            "the attempt does not count any more: {why}; what it comes to is not recorded"
        ))),
        Some(Refusal::Unfit { why }) => Err(Error::invalid(why)),
    }
}

/// The error where there is no saga of an id.
pub(super) fn no_saga(id: &str) -> Error {
    Error::invalid(format!(
        "there is no saga {id:?}: it was never started, or ended so long ago that it is forgotten"
    ))
}

/// Refuses a wrong start.
///
/// # Errors
///
/// `Invalid`: says what is wrong.
pub(super) fn check_start(start: &v1::SagaStart) -> Result<()> {
    crate::saga::check_id(&start.id)?;
    crate::saga::check_name("the saga", &start.name)?;
    if start.input.len() > limits::MAX_SAGA_PAYLOAD_BYTES {
        return Err(Error::invalid(format!(
            "the input of saga {} has {} bytes, over the limit of {}: store it under a key of its own, and give the key",
            start.id,
            start.input.len(),
            limits::MAX_SAGA_PAYLOAD_BYTES
        )));
    }
    if start.priority > limits::MAX_SAGA_PRIORITY {
        return Err(Error::invalid(format!(
            "the priority of saga {} is {}: say 0 to {}",
            start.id,
            start.priority,
            limits::MAX_SAGA_PRIORITY
        )));
    }
    if start.attributes.len() > limits::MAX_SAGA_ATTRIBUTES {
        return Err(Error::invalid(format!(
            "saga {} has {} attributes, over the limit of {}",
            start.id,
            start.attributes.len(),
            limits::MAX_SAGA_ATTRIBUTES
        )));
    }
    for (name, value) in &start.attributes {
        crate::saga::check_name("an attribute", name)?;
        if value.len() > limits::MAX_SAGA_ATTRIBUTE_BYTES || value.chars().any(char::is_control) {
            return Err(Error::invalid(format!(
                "attribute {name} of saga {} has a value of {} bytes: it has at most {}, without control characters",
                start.id,
                value.len(),
                limits::MAX_SAGA_ATTRIBUTE_BYTES
            )));
        }
    }
    Ok(())
}

/// What the machine starts a saga with.
pub(super) fn start_of(start: &v1::SagaStart, parent: Option<Parent>) -> Start {
    Start {
        priority: start.priority as u8,
        attributes: start.attributes.clone().into_iter().collect(),
        parent,
        input_hash: hash_of(&start.input),
        input_bytes: start.input.len() as u64,
    }
}

fn hash_of(input: &[u8]) -> u64 {
    xxhash_rust::xxh3::xxh3_64(input)
}

/// Refuses a start whose id is that of another saga.
///
/// # Errors
///
/// `Invalid` then.
pub(super) fn check_same(start: &v1::SagaStart, there: &State) -> Result<()> {
    let is_same = there.name == start.name
        && (start.version == 0 || there.version == start.version)
        && there.input_hash == hash_of(&start.input);
    if is_same {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "there is a saga {:?} already, of {} version {}, with another definition or input: take another id",
        start.id, there.name, there.version
    )))
}
