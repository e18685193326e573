//! Workers: take tasks from a queue, do them, and tell what they came to.

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::future::{BoxFuture, FutureExt};
use futures::stream::{FuturesUnordered, StreamExt};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

use super::task::Task;
use super::{SagaTask, done, unfit};
use crate::client::{Client, Committed, Txn};
use crate::rpc::convert::failure_to_proto;
use crate::rpc::v1;
use crate::rpc::v1::saga_reply::What as Answer;
use crate::rpc::v1::saga_request::What as Ask;
use crate::rpc::v1::saga_task_end::What as End;
use crate::saga::{Failure, Token};
use crate::types::{Error, ErrorKind, Result, limits};

/// How long one poll waits at one shard.
const POLL: Duration = Duration::from_secs(10);
/// The pause after a poll that failed.
const PAUSE: Duration = Duration::from_millis(200);
/// How long one shard is asked for what is there now.
const ASK_FOR: Duration = Duration::from_secs(1);
/// How long the end of a task is told again and again, at least.
const TELL_FOR: Duration = Duration::from_secs(30);
/// How often is looked whether the shards are the same.
const LOOK_EVERY: Duration = Duration::from_secs(5);

type ActivityHandler = Arc<dyn Fn(Task) -> BoxFuture<'static, Result<Bytes, Failure>> + Send + Sync>;
type TxnHandler = Arc<dyn Fn(Task, Txn) -> BoxFuture<'static, Result<Bytes, Failure>> + Send + Sync>;

#[derive(Clone)]
enum Handler {
    Activity(ActivityHandler),
    Txn(TxnHandler),
}

/// A worker, made by [`Client::saga_worker`]: give it handlers, then [`run`](Self::run) it.
#[must_use]
pub struct SagaWorker {
    client: Client,
    queue: String,
    name: String,
    concurrency: usize,
    grace: Duration,
    handlers: HashMap<String, Handler>,
    stats: Arc<WorkerStats>,
}

fn unique_name(name: impl Into<String>) -> String {
    format!("{}#{:08x}", name.into(), rand::random::<u32>())
}

/// What a worker has done so far.
#[derive(Debug, Default)]
pub struct WorkerStats {
    /// Tasks that it was given.
    pub taken: AtomicU64,
    /// Tasks that were done.
    pub completed: AtomicU64,
    /// Attempts that were not successful.
    pub failed: AtomicU64,
    /// Ends that did not count any more.
    pub refused: AtomicU64,
}

impl Client {
    /// A worker for the tasks of a queue. Any number of workers may share one, in any number of programs.
    ///
    /// ```no_run
    /// # async fn example(client: kvorum::Client) -> kvorum::Result<()> {
    /// use kvorum::saga::Failure;
    ///
    /// let stop = tokio_util::sync::CancellationToken::new();
    /// client
    ///     .saga_worker("trip")
    ///     .activity("book-flight", |task| async move {
    ///         let city = String::from_utf8_lossy(task.input()).into_owned();
    ///         // Ask the airline, with `task.key()` as the idempotency key.
    ///         if city == "Atlantis" { Err(Failure::refused("nobody flies there")) } else { Ok("LH 1234".into()) }
    ///     })
    ///     .txn("count-trip", |task, txn| async move {
    ///         txn.add("trips", 1)?;
    ///         txn.put(format!("trip/{}", task.saga_id()), task.input().clone())?;
    ///         Ok("".into())
    ///     })
    ///     .run(stop)
    ///     .await
    /// # }
    /// ```
    pub fn saga_worker(&self, queue: impl Into<String>) -> SagaWorker {
        SagaWorker {
            client: self.clone(),
            queue: queue.into(),
            name: unique_name(std::process::id().to_string()),
            concurrency: 64,
            grace: Duration::from_secs(10),
            handlers: HashMap::new(),
            stats: Arc::default(),
        }
    }
}

impl SagaWorker {
    /// Its name, for people; by default the process's id. A random number is added, so that no two have the same.
    pub fn name(self, name: impl Into<String>) -> Self {
        Self { name: unique_name(name), ..self }
    }

    /// How many tasks it does at once, at most; 64 where nothing is said.
    pub fn concurrency(self, concurrency: usize) -> Self {
        Self { concurrency: concurrency.max(1), ..self }
    }

    /// How long [`run`](Self::run) waits, once it is to stop, for the tasks that are under way; 10 s where nothing is said.
    pub fn grace(self, grace: Duration) -> Self {
        Self { grace, ..self }
    }

    /// What does the tasks that name this handler. It may be called more than once for a task, by several workers: give
    /// [`Task::key`] to services that know what they did already.
    pub fn activity<F, Fut>(mut self, handler: impl Into<String>, run: F) -> Self
    where
        F: Fn(Task) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Bytes, Failure>> + Send + 'static,
    {
        let run = Arc::new(move |task| run(task).boxed());
        self.handlers.insert(handler.into(), Handler::Activity(run));
        self
    }

    /// What does the tasks that name this handler, in a transaction: what it writes, the step's output, and that the step is
    /// done are committed together, and only while this worker holds the step. It is run again where others were in the way.
    pub fn txn<F, Fut>(mut self, handler: impl Into<String>, run: F) -> Self
    where
        F: Fn(Task, Txn) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Bytes, Failure>> + Send + 'static,
    {
        let run = Arc::new(move |task, txn| run(task, txn).boxed());
        self.handlers.insert(handler.into(), Handler::Txn(run));
        self
    }

    /// What it has done so far; goes on counting while it runs.
    pub fn stats(&self) -> Arc<WorkerStats> {
        Arc::clone(&self.stats)
    }

    /// Takes and does tasks until it is stopped; then waits for those under way, until the [`grace`](Self::grace) is over.
    /// What is not done by then is told as failed
    /// (kind `stopped`), so that another worker may try.
    ///
    /// # Errors
    ///
    /// `Invalid` for a wrong name of the queue. What can't be reached is tried again.
    pub async fn run(self, stop: CancellationToken) -> Result<()> {
        crate::saga::check_name("the queue", &self.queue)?;
        let (grace, tracker) = (self.grace, TaskTracker::new());
        let hurry = CancellationToken::new();
        let worker = Arc::new(Running {
            slots: Arc::new(Semaphore::new(self.concurrency)),
            each: AtomicUsize::new(1),
            worker: self,
            tracker: tracker.clone(),
            hurry: hurry.clone(),
        });
        let polled = worker.clone().poll_all(&stop).await;
        tracker.close();
        if timeout(grace, tracker.wait()).await.is_err() {
            hurry.cancel();
            // They only have to say so.
            let _ = timeout(TELL_FOR, tracker.wait()).await;
        }
        polled
    }
}

/// A worker at work.
struct Running {
    worker: SagaWorker,
    /// Tasks that may be under way.
    slots: Arc<Semaphore>,
    /// How many of them one shard may take at once: no poll holds what another one should have.
    each: AtomicUsize,
    tracker: TaskTracker,
    /// Tasks that are under way are to be told as failed.
    hurry: CancellationToken,
}

impl Running {
    /// Polls every shard with sagas, each by a loop of its own; or all of them by one loop, where each could not have two
    /// slots: a slot that waits at one shard is none for what is at another one.
    async fn poll_all(self: Arc<Self>, stop: &CancellationToken) -> Result<()> {
        let mut loops: HashMap<Bytes, AbortOnDropHandle<()>> = HashMap::new();
        let ending = CancellationToken::new();
        loop {
            let places = tokio::select! {
                () = stop.cancelled() => break,
                places = self.worker.client.saga_places() => places,
            };
            match places {
                Ok(places) => {
                    let each = self.worker.concurrency / places.len().max(1);
                    self.each.store(each, Ordering::Relaxed);
                    // The empty place is all of them.
                    let places = if each >= 2 { places } else { vec![Bytes::new()] };
                    loops.retain(|place, handle| places.contains(place) && !handle.is_finished());
                    for place in places {
                        let (this, ending) = (self.clone(), ending.clone());
                        let polls = || {
                            let place = place.clone();
                            AbortOnDropHandle::new(tokio::spawn(async move {
                                match place.is_empty() {
                                    true => this.poll_everywhere(ending).await,
                                    false => this.poll(place, ending).await,
                                }
                            }))
                        };
                        loops.entry(place.clone()).or_insert_with(polls);
                    }
                }
                Err(error) => tracing::debug!(%error, "where sagas are is not known now; trying on"),
            }
            tokio::select! {
                () = stop.cancelled() => break,
                () = sleep(LOOK_EVERY) => {}
            }
        }
        // A poll that is under way may yet be given tasks, which are done then.
        ending.cancel();
        let mut ends: FuturesUnordered<_> = loops.into_values().collect();
        while ends.next().await.is_some() {}
        Ok(())
    }

    /// Waits until a slot is free, and takes up to so many of those that are. `None` at the end.
    async fn free_slots(&self, most: usize, ending: &CancellationToken) -> Option<OwnedSemaphorePermit> {
        let mut slot = tokio::select! {
            biased;
            () = ending.cancelled() => return None,
            slot = self.slots.clone().acquire_owned() => slot.ok()?,
        };
        while slot.num_permits() < most.min(limits::MAX_SAGA_TASKS) {
            match self.slots.clone().try_acquire_owned() {
                Ok(one) => slot.merge(one),
                Err(_) => break,
            }
        }
        Some(slot)
    }

    async fn poll(self: Arc<Self>, place: Bytes, ending: CancellationToken) {
        while let Some(slot) = self.free_slots(self.each.load(Ordering::Relaxed), &ending).await {
            match self.take(&place, slot.num_permits(), &ending).await {
                Ok(tasks) => self.begin(tasks, slot),
                Err(error) => self.pause(&error).await,
            }
        }
    }

    async fn poll_everywhere(self: Arc<Self>, ending: CancellationToken) {
        let SagaWorker { client, queue, name, concurrency, .. } = &self.worker;
        let client = client.with_deadline(POLL + Duration::from_secs(5));
        while let Some(slot) = self.free_slots(*concurrency, &ending).await {
            // Never dropped: it may be given a task.
            match client.take_saga_tasks_now(queue, name, slot.num_permits()).await {
                Ok(tasks) if tasks.is_empty() => {
                    tokio::select! {
                        () = ending.cancelled() => {}
                        looked = client.look_for_saga_tasks(queue, name, POLL) => if let Err(error) = looked {
                            self.pause(&error).await;
                        },
                    }
                }
                Ok(tasks) => self.begin(tasks, slot),
                Err(error) => self.pause(&error).await,
            }
        }
    }

    async fn pause(&self, error: &Error) {
        tracing::debug!(queue = self.worker.queue, %error, "tasks can't be taken now; trying on");
        sleep(PAUSE).await;
    }

    async fn take(&self, place: &Bytes, max: usize, ending: &CancellationToken) -> Result<Vec<SagaTask>> {
        let take = take_of(&self.worker.queue, &self.worker.name, max, POLL);
        let client = self.worker.client.with_deadline(POLL + Duration::from_secs(5));
        let mut took = std::pin::pin!(client.about_sagas_at(place, Ask::Take(take.clone())));
        let took = tokio::select! {
            // First, so that it is sent before anything else is.
            biased;
            took = &mut took => took?,
            () = ending.cancelled() => {
                // A poll that is only dropped might yet be given a task, which would be lost until its lease ends.
                let leave = v1::SagaTake { leave: true, ..take };
                let (_, took) = tokio::join!(client.about_sagas_at(place, Ask::Take(leave)), took);
                took?
            }
        };
        match took {
            Answer::Tasks(tasks) => Ok(tasks.tasks),
            _ => Err(unfit()),
        }
    }

    fn begin(self: &Arc<Self>, tasks: Vec<SagaTask>, mut slots: OwnedSemaphorePermit) {
        for task in tasks {
            let slot = slots.split(1);
            self.worker.stats.taken.fetch_add(1, Ordering::Relaxed);
            let running = self.clone();
            self.tracker.spawn(async move {
                running.execute(task).await;
                drop(slot);
            });
        }
    }

    /// Does a task and tells what it came to.
    async fn execute(&self, task: SagaTask) {
        let lease_end = Instant::now() + Duration::from_millis(task.lease_ms);
        let cancelled = CancellationToken::new();
        let handler = self.worker.handlers.get(&task.handler).cloned();
        let at_work = async {
            match handler {
                Some(Handler::Activity(run)) if !task.is_txn => {
                    run(Task::new(task.clone(), cancelled.clone())).await
                }
                Some(Handler::Txn(run)) if task.is_txn => {
                    self.commit(run, &task, &cancelled, lease_end).await
                }
                _ => {
                    let what = if task.is_txn { "transaction" } else { "activity" };
                    tracing::error!(
                        handler = task.handler,
                        queue = task.queue,
                        "a worker was given a task that it has no handler for"
                    );
                    Err(Failure::new(format!(
                        "worker {} has no {what} handler {:?}",
                        self.worker.name, task.handler
                    ))
                    .kind("no_handler")
                    .did_nothing())
                }
            }
        };
        // A handler that panics has failed, like one that says so.
        let at_work = std::panic::AssertUnwindSafe(at_work).catch_unwind();
        let ended = tokio::select! {
            ended = at_work => ended.unwrap_or_else(|_| Err(Failure::new("the handler panicked").kind("panic"))),
            () = self.heartbeat(&task, &cancelled) => return,
            () = self.hurry.cancelled() => Err(Failure::new("the worker stopped before it was done").kind("stopped")),
            () = tokio::time::sleep_until(lease_end) => {
                cancelled.cancel();
                Err(Failure::new("it took longer than its lease").kind("timeout"))
            }
        };
        self.tell(&task, ended).await;
    }

    /// Runs a step in its transaction.
    async fn commit(
        &self,
        run: TxnHandler,
        task: &SagaTask,
        cancelled: &CancellationToken,
        lease_end: Instant,
    ) -> Result<Bytes, Failure> {
        let client = self.worker.client.with_deadline_at(lease_end.into_std());
        let (run, cancelled) = (&run, cancelled);
        let committed: Result<Committed<()>, Failure> = client
            .transaction()
            .label(task.key.clone())
            .try_run(|txn| async move {
                let output = run(Task::new(task.clone(), cancelled.clone()), txn.clone()).await?;
                txn.set_step(v1::SagaStepDone { token: task.token.clone(), output });
                Ok(())
            })
            .await;
        // The output is with the commit.
        committed.map(|_| Bytes::new())
    }

    /// Says that the worker is still at it, as often as it has to. Returns where the attempt does not count any more.
    async fn heartbeat(&self, task: &SagaTask, cancelled: &CancellationToken) {
        if task.heartbeat_ms == 0 {
            return std::future::pending().await;
        }
        let every = Duration::from_millis((task.heartbeat_ms / 3).max(1));
        loop {
            sleep(every).await;
            let client = self.worker.client.with_deadline(Duration::from_millis(task.heartbeat_ms));
            match client.end_saga_task(&task.token, End::Heartbeat(true)).await {
                Ok(told) if told.cancel_requested => cancelled.cancel(),
                Ok(_) => {}
                Err(error) if error.kind == ErrorKind::Denied => {
                    self.worker.stats.refused.fetch_add(1, Ordering::Relaxed);
                    cancelled.cancel();
                    return;
                }
                Err(error) => tracing::debug!(%error, "a sign of life did not get through"),
            }
        }
    }

    /// Tells what a task came to, again until that is known to be recorded.
    async fn tell(&self, task: &SagaTask, ended: Result<Bytes, Failure>) {
        let stats = &self.worker.stats;
        if task.is_txn && ended.is_ok() {
            // That it is committed, the saga's engine has seen.
            stats.completed.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let what = match ended {
            Ok(output) => End::Output(output),
            Err(failure) => End::Failure(failure_to_proto(failure)),
        };
        let is_done = matches!(what, End::Output(_));
        let client = self.worker.client.with_deadline(TELL_FOR);
        match client.end_saga_task(&task.token, what).await {
            Ok(_) if is_done => stats.completed.fetch_add(1, Ordering::Relaxed),
            Ok(_) => stats.failed.fetch_add(1, Ordering::Relaxed),
            Err(error) if error.kind == ErrorKind::Denied => {
                tracing::debug!(saga = task.saga_id, step = task.step, %error, "a task's end did not count any more");
                stats.refused.fetch_add(1, Ordering::Relaxed)
            }
            Err(error) if error.kind == ErrorKind::Invalid && is_done => {
                // It is of no use to try that again: too large, or no answer of a check.
                let failure = failure_to_proto(Failure::new(error.message).kind("output").final_one());
                if let Err(error) = client.end_saga_task(&task.token, End::Failure(failure)).await {
                    tracing::warn!(saga = task.saga_id, step = task.step, %error, "a task's end can't be told");
                }
                stats.failed.fetch_add(1, Ordering::Relaxed)
            }
            Err(error) => {
                tracing::warn!(saga = task.saga_id, step = task.step, %error, "a task's end can't be told");
                stats.failed.fetch_add(1, Ordering::Relaxed)
            }
        };
    }
}

fn take_of(queue: &str, worker: &str, max: usize, wait: Duration) -> v1::SagaTake {
    v1::SagaTake {
        queue: queue.to_owned(),
        worker: worker.to_owned(),
        max: max.clamp(1, limits::MAX_SAGA_TASKS) as u32,
        wait_ms: wait.as_millis() as u64,
        ..v1::SagaTake::default()
    }
}

impl Client {
    /// Takes at most `max` tasks from a queue, for a worker that is not a [`SagaWorker`]; waits for the first one until the
    /// client's deadline. What comes by then may be nothing.
    ///
    /// # Errors
    ///
    /// `Invalid` for a wrong name of the queue; `Unavailable` where no shard with sagas answers.
    pub async fn poll_saga_tasks(&self, queue: &str, worker: &str, max: usize) -> Result<Vec<SagaTask>> {
        crate::saga::check_name("the queue", queue)?;
        let until = self.deadline.until()?;
        let asking = self.with_deadline_at(until.into_std());
        loop {
            let taken = asking.take_saga_tasks_now(queue, worker, max).await;
            if taken.as_ref().is_ok_and(|tasks| !tasks.is_empty()) {
                return taken;
            }
            let left = until.saturating_duration_since(Instant::now());
            let wait = left.saturating_sub(left / 10).min(POLL);
            if wait < Duration::from_millis(10) {
                return taken;
            }
            if asking.look_for_saga_tasks(queue, worker, wait).await.is_err() {
                sleep(PAUSE.min(wait)).await;
            }
        }
    }

    /// Takes tasks that are there now from the first shard that has some: what more than one had to give would be too much.
    async fn take_saga_tasks_now(&self, queue: &str, worker: &str, max: usize) -> Result<Vec<SagaTask>> {
        let mut places = self.saga_places().await?;
        let turn = rand::random::<u32>() as usize % places.len().max(1);
        places.rotate_left(turn);
        let take = take_of(queue, worker, max, Duration::ZERO);
        let (until, mut failed, mut has_answered) = (self.deadline.until()?, None, false);
        for place in &places {
            // One that does not answer keeps nobody from the others.
            let asking = self.with_deadline_at(until.min(Instant::now() + ASK_FOR).into_std());
            match asking.about_sagas_at(place, Ask::Take(take.clone())).await {
                Ok(Answer::Tasks(tasks)) if !tasks.tasks.is_empty() => return Ok(tasks.tasks),
                Ok(_) => has_answered = true,
                Err(error) if error.kind == ErrorKind::Invalid => return Err(error),
                Err(error) => failed = Some(error),
            }
        }
        failed.filter(|_| !has_answered).map_or(Ok(Vec::new()), Err)
    }

    /// Waits until some shard may have tasks of a queue.
    async fn look_for_saga_tasks(&self, queue: &str, worker: &str, wait: Duration) -> Result<()> {
        let places = self.saga_places().await?;
        if places.is_empty() {
            return Err(Error::unavailable("the cluster has no shard with sagas"));
        }
        let look = v1::SagaTake { look_only: true, ..take_of(queue, worker, 1, wait) };
        let looks = places.iter().map(|place| self.about_sagas_at(place, Ask::Take(look.clone())).boxed());
        let began = Instant::now();
        let (looked, _, _) = futures::future::select_all(looks).await;
        let is_there = matches!(looked?, Answer::Tasks(v1::SagaTasks { is_there: true, .. }));
        if !is_there && began.elapsed() < wait / 2 {
            // It was sent away, for one who came later.
            sleep(PAUSE.min(wait)).await;
        }
        Ok(())
    }

    /// Tells how a task ended, or that it goes on.
    pub(crate) async fn end_saga_task(&self, token: &str, what: End) -> Result<v1::SagaDone> {
        let (id, _) = Token::from_text(token)?;
        let end = v1::SagaTaskEnd { token: token.to_owned(), what: Some(what) };
        done(self.about_saga(&id, Ask::End(end)).await?)
    }

    /// Tells that a task is done, for a worker that is not a [`SagaWorker`]. Answers what is recorded where that was told
    /// before.
    ///
    /// # Errors
    ///
    /// `Denied` where the attempt does not count any more; `Invalid` for a wrong token or output.
    pub async fn complete_saga_task(&self, token: &str, output: impl Into<Bytes>) -> Result<Option<Bytes>> {
        let told = self.end_saga_task(token, End::Output(output.into())).await?;
        Ok(told.already.then_some(told.recorded))
    }

    /// Tells that a task's attempt was not successful.
    ///
    /// # Errors
    ///
    /// As for [`complete_saga_task`](Self::complete_saga_task).
    pub async fn fail_saga_task(&self, token: &str, failure: Failure) -> Result<()> {
        self.end_saga_task(token, End::Failure(failure_to_proto(failure))).await.map(drop)
    }

    /// Tells that a worker is still at a task. Answers whether it may stop: the saga goes back.
    ///
    /// # Errors
    ///
    /// As for [`complete_saga_task`](Self::complete_saga_task).
    pub async fn heartbeat_saga_task(&self, token: &str) -> Result<bool> {
        Ok(self.end_saga_task(token, End::Heartbeat(true)).await?.cancel_requested)
    }
}
