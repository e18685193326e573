//! One thing that happens to a saga: read where it is, ask the machine what comes of it, store that, and tell.
//!
//! All of a transition is one transaction in one shard: the saga's state, its history, what a step came to, and by what it
//! is found. It is refused where the saga is not as it was read, and then made anew. So each takes effect once, whoever
//! else believes to be the saga's engine.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::engine::{Engine, WITHIN};
use super::mistakes;
use super::queues::{Poller, Ready, Waiting};
use super::reads::payloads;
use super::wire::{Payloads, task_to_proto};
use crate::codec::{self, keyspace};
use crate::rpc::v1;
use crate::saga::{
    Change, Definition, Event, Refusal, State, TaskRef, Token, TxnDone, apply, closed_key, expires_ms,
    is_open_key, open_key, reads_of_change, started_key, writes_of_change,
};
use crate::types::{Error, ErrorKind, ReadAt, Result, Timestamp, TxnWrite};

/// A saga that was read or written longer ago than this is read anew: a transaction that began then would be old.
const START_AGE: Duration = Duration::from_secs(30);
/// How often a transition is made anew because something has changed meanwhile.
pub(super) const ATTEMPTS: usize = 20;

/// A saga as it was read or written last.
pub(super) struct Loaded {
    pub(super) state: State,
    pub(super) definition: Arc<Definition>,
    pub(super) payloads: Payloads,
    /// When it was stored.
    pub(super) stored: Timestamp,
    /// As of when it is that still.
    pub(super) as_of: Timestamp,
    /// When that was here.
    pub(super) at: Instant,
    /// Steps' transactions that are committed, and the saga does not know of yet.
    pub(super) done: Vec<(Bytes, TxnDone)>,
    /// A transaction has started it, and its engine has not noted that.
    pub(super) is_new: bool,
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

/// The same, with what the machine refused.
struct Answer {
    refusal: Option<Refusal>,
    happened: Happened,
}

impl Answer {
    /// It as whoever asked is told.
    fn told(self) -> Result<Happened> {
        match self.refusal {
            None | Some(Refusal::Already) => Ok(self.happened),
            Some(Refusal::Stale { why }) => Err(Error::denied(format!(
                "the attempt does not count any more: {why}; what it comes to is not recorded"
            ))),
            Some(Refusal::Unfit { why }) => Err(Error::invalid(why)),
        }
    }
}

/// A transition in the making.
pub(super) struct Plan {
    pub(super) state: State,
    pub(super) change: Change,
    /// Tasks that are handed out with it.
    pub(super) handed: Vec<(TaskRef, Poller)>,
    /// News that it takes note of.
    noted: Vec<Bytes>,
}

impl Plan {
    /// Whether it changes anything.
    fn is_stored(&self) -> bool {
        self.change.must_store || !self.noted.is_empty()
    }

    pub(super) fn new(state: State) -> Self {
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
        self.happen_to(&mut *self.lock(id).await, id, event, deadline).await?.told()
    }

    /// Takes in what a transaction of users has written for a saga.
    ///
    /// # Errors
    ///
    /// Those of a read and of a commit.
    pub(super) async fn take_in(&self, id: &str, news: &Bytes, deadline: Instant) -> Result<()> {
        let loaded = &mut *self.lock(id).await;
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
        self.happen_to(loaded, id, Event::Tick, deadline).await.map(drop)
    }

    /// Has a saga read anew when something next happens to it.
    pub async fn refresh(&self, id: &str) {
        let mut loaded = self.lock(id).await;
        *loaded = None;
        self.let_go(id);
    }

    async fn happen_to(
        &self,
        loaded: &mut Option<Loaded>,
        id: &str,
        event: Event,
        deadline: Instant,
    ) -> Result<Answer> {
        let mut before = None;
        for _ in 0..ATTEMPTS {
            let mut was_read = false;
            if loaded.as_ref().is_none_or(|loaded| loaded.at.elapsed() > START_AGE) {
                before = loaded.take().map(|loaded| loaded.state).or(before);
                *loaded = match self.load(id, before.as_ref(), deadline).await {
                    Ok(read) => read,
                    Err(error) => {
                        self.let_go(id);
                        if before.is_some() {
                            // It waits for something perhaps, which nobody here knows of now.
                            self.look_again(id);
                        }
                        return Err(error);
                    }
                };
                was_read = true;
            }
            let Some(now) = loaded.as_ref() else {
                self.let_go(id);
                return self.happen_to_closed(id, event, deadline).await;
            };
            let (plan, refusal) = self.plan(id, now, event.clone());
            // What is refused is told, though nothing is stored that would show whether this engine is behind another one.
            let is_told = refusal.is_some() && !plan.is_stored() && is_asked(&event);
            if is_told && !was_read && !self.is_current(id, now, deadline).await? {
                before = loaded.take().map(|loaded| loaded.state);
                continue;
            }
            let answer = answer(&plan.state, &now.payloads, &event, refusal);
            match self.store(loaded, id, plan, deadline).await {
                Ok(()) => return Ok(answer),
                Err(error) => {
                    before = loaded.take().map(|loaded| loaded.state);
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

    /// Whether a saga is still as it is known here.
    async fn is_current(&self, id: &str, now: &Loaded, deadline: Instant) -> Result<bool> {
        let keys = reads_of_change(id, &now.definition, &now.state);
        let (_, found) = self.rows.read(&keys, ReadAt::Latest, deadline).await?;
        let mut found = found.into_iter();
        let stored = found.next().flatten().map(|record| record.commit_ts);
        Ok(stored == Some(now.stored) && found.flatten().next().is_none())
    }

    fn plan(&self, id: &str, now: &Loaded, event: Event) -> (Plan, Option<Refusal>) {
        let now_ms = self.clock.now_ms();
        let mut plan = Plan::new(now.state.clone());
        if now.is_new {
            // Never refused.
            let _ = plan.apply(&now.definition, now_ms, Event::Begun);
            plan.noted.push(started_key(id));
        }
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
    pub(super) fn hand_out_with(&self, plan: &mut Plan, definition: &Definition, now_ms: u64) {
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
        loaded: &mut Option<Loaded>,
        id: &str,
        mut plan: Plan,
        deadline: Instant,
    ) -> Result<()> {
        let Some(now) = loaded.as_mut() else { return Ok(()) };
        if !plan.is_stored() {
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
    pub(super) async fn commit(
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
    pub(super) fn published(&self, id: &str, now: &Loaded, handed: Vec<(TaskRef, Poller)>) {
        let handed_out = (self.clock.now_ms(), now.as_of);
        for (at, poller) in handed {
            if let Some(task) = task_to_proto(id, &now.definition, &now.state, &now.payloads, at, handed_out)
            {
                self.deliver(task, poller);
            }
        }
        self.queues.set_ready(id, Ready::of(&now.state, &now.definition));
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
        let Waiting { id, task } = waiting;
        let loaded = &mut *self.lock(id).await;
        let event = Event::HandOut { task: *task, worker: worker.to_owned() };
        if self.happen_to(loaded, id, event, deadline).await?.refusal.is_some() {
            return Ok(None);
        }
        Ok(loaded.as_ref().and_then(|now| {
            let handed_out = (self.clock.now_ms(), now.as_of);
            task_to_proto(id, &now.definition, &now.state, &now.payloads, *task, handed_out)
        }))
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
    async fn happen_to_closed(&self, id: &str, event: Event, deadline: Instant) -> Result<Answer> {
        self.queues.set_ready(id, Vec::new());
        if event == Event::Tick {
            self.tell_end(id);
        }
        let (as_of, found) = self.rows.read(&[closed_key(id)], ReadAt::Latest, deadline).await?;
        let record = match found.into_iter().next().flatten() {
            Some(record) => record,
            None if event == Event::Tick => {
                return Ok(Answer { refusal: Some(Refusal::Already), happened: Happened::default() });
            }
            None => return Err(no_saga(id)),
        };
        let state = State::decode(&record.value)?;
        let definition = self.definition_of(&state).await?;
        // Perhaps this engine does not know that it has ended.
        self.note_expiry(expires_ms(&state, &definition));
        let refusal = apply(&state, &definition, self.clock.now_ms(), event.clone()).err();
        let payloads = match event.inner() {
            Event::Complete { .. } => payloads(&self.rows, id, as_of, WITHIN).await?,
            _ => Payloads::default(),
        };
        Ok(answer(&state, &payloads, &event, Some(refusal.unwrap_or(Refusal::Already))))
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

/// Whether somebody is told what comes of an event, who is not this engine itself.
fn is_asked(event: &Event) -> bool {
    !matches!(
        event,
        Event::Tick
            | Event::HandOut { .. }
            | Event::Return { .. }
            | Event::Delivered { .. }
            | Event::TakenOver
            | Event::Heartbeat { .. }
    )
}

fn answer(state: &State, payloads: &Payloads, event: &Event, refusal: Option<Refusal>) -> Answer {
    let is_action = |token: &Token| token.task.kind == crate::saga::TaskKind::Action;
    let is_halting = matches!(state.phase, crate::saga::Phase::Halting { .. });
    let mut happened = Happened { already: refusal == Some(Refusal::Already), ..Happened::default() };
    match event {
        Event::Heartbeat { token } => happened.cancel_requested = is_action(token) && is_halting,
        Event::Complete { token, .. } if happened.already && is_action(token) => {
            happened.recorded = payloads.outputs.get(&token.task.step).cloned().unwrap_or_default();
        }
        _ => {}
    }
    Answer { refusal, happened }
}

/// The error where there is no saga of an id.
pub(super) fn no_saga(id: &str) -> Error {
    Error::invalid(format!(
        "there is no saga {id:?}: it was never started, or ended so long ago that it is forgotten"
    ))
}
