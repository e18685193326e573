//! Those who work at sagas: workers that are killed and come again, and an operator who looks after what stands still.
//!
//! A worker has a runtime, and with it clients and connections, of its own: dropped, all of it is gone at once, as where a
//! process is killed. What it had asked of the world is still on its way.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use kvorum::Client;
use kvorum::client::{SagaFilter, SagaTask};
use kvorum::rpc::v1::{SagaStepView, SagaTaskView};
use kvorum::saga::Failure;
use parking_lot::Mutex;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::definitions::{CALLS, CHECK, DO, TXNS, UNDO};
use super::tasks;
use super::world::World;
use crate::check::saga::{CHILD, plan};
use crate::history::saga::Saga;
use crate::history::{F, Kind, Op, Recorder, Value};
use crate::hosts::Cluster;

/// Workers of each sort.
const EACH: usize = 2;
/// How long a worker lives, and how long until there is another one in its place, in milliseconds.
const LIVES_MS: (u64, u64) = (800, 7_000);
const GONE_MS: (u64, u64) = (0, 800);
/// How long a worker of ours waits for tasks, and how many it takes at once.
const POLL: Duration = Duration::from_secs(2);
const TASKS: usize = 4;
/// How long a client may take to connect, and how long one is kept.
const CONNECT_WITHIN: Duration = Duration::from_millis(1500);
const KEPT: Duration = Duration::from_secs(3);
/// How long what a worker or the operator asks may take.
const WITHIN: Duration = Duration::from_secs(4);
/// How often the operator looks.
const LOOK_EVERY: Duration = Duration::from_millis(400);
/// How long all sagas may take to end, once the cluster is healed and all workers are willing.
const ENDED_WITHIN: Duration = Duration::from_secs(120);
/// How long those who were killed may take until they are gone, and what they had told until it is answered.
const GONE_WITHIN: Duration = Duration::from_secs(10);
/// Above all fences: what the operator asks of the world is the last word.
const LAST: u64 = i64::MAX as u64;

/// What all who work at sagas have in common.
pub(super) struct Shared {
    cluster: Arc<Cluster>,
    recorder: Arc<Recorder>,
    pub(super) world: World,
    /// The runtime of what does not die with a worker.
    pub(super) main: Handle,
    /// Whether all goes well from here on.
    calm: AtomicBool,
    /// A client of the main runtime.
    client: Mutex<Option<Client>>,
    /// Processes that have no operation open.
    processes: Mutex<Vec<u64>>,
}

impl Shared {
    pub(super) fn is_calm(&self) -> bool {
        self.calm.load(Ordering::Relaxed)
    }

    pub(super) fn client(&self) -> Option<Client> {
        self.client.lock().clone()
    }

    /// Whether a task may say that it can't be done.
    pub(super) fn may_refuse(&self, task: &SagaTask) -> bool {
        let plan = plan(&task.saga);
        let step = plan.and_then(|plan| plan.step(&task.step));
        task.kind == "action" && plan.zip(step).is_some_and(|(plan, step)| !plan.is_past_pivot(step))
    }

    pub(super) fn process(&self) -> u64 {
        self.processes.lock().pop().unwrap_or_else(|| self.recorder.new_process())
    }

    /// Writes an entry down. Where that fails, it does for clients too, who end the run.
    pub(super) fn write(&self, op: Op) {
        let _ = self.recorder.record(op);
    }

    /// Writes down how an operation ended.
    pub(super) fn complete(&self, op: Op) {
        let (process, is_known) = (op.process, op.kind != Kind::Info);
        self.write(op);
        if is_known {
            self.processes.lock().push(process);
        }
    }

    /// A worker begins with a task. Killed, it leaves that open.
    pub(super) fn begins(&self, task: &SagaTask) -> Op {
        let value = Value::Saga(Saga::Task(tasks::task_of(task)));
        let invoke = Op::invoke(self.process(), F::Work, value).with_key(&task.saga_id);
        self.write(invoke.clone());
        invoke
    }

    /// It has come to something.
    pub(super) fn ends(&self, invoke: Op, done: &Result<String, Failure>) {
        self.complete(invoke.ok(Value::Saga(Saga::Came(tasks::came(done)))));
    }

    async fn connect(&self) -> Client {
        loop {
            let first = rand::rng().random_range(0..self.cluster.len());
            if let Ok(client) = self.cluster.client(first, CONNECT_WITHIN).await {
                return client.with_deadline(WITHIN);
            }
            sleep(Duration::from_millis(100)).await;
        }
    }
}

/// The crew of a run.
pub struct Crew {
    shared: Arc<Shared>,
    at_work: JoinSet<()>,
    children: Arc<Mutex<Vec<String>>>,
}

impl Crew {
    /// Has all begin. `children` gets the ids of sagas that are steps of others, at the end.
    pub(super) fn start(
        cluster: &Arc<Cluster>,
        recorder: &Arc<Recorder>,
        seed: u64,
        children: Arc<Mutex<Vec<String>>>,
    ) -> Self {
        let shared = Arc::new(Shared {
            cluster: Arc::clone(cluster),
            recorder: Arc::clone(recorder),
            world: World::new(Arc::clone(recorder)),
            main: Handle::current(),
            calm: AtomicBool::new(false),
            client: Mutex::default(),
            processes: Mutex::default(),
        });
        let mut at_work = JoinSet::new();
        for (sort, number) in (0..EACH).flat_map(|_| Sort::ALL).zip(2_000_000_u64..) {
            let rng = SmallRng::seed_from_u64(seed.wrapping_mul(1_000_003).wrapping_add(number));
            at_work.spawn(again_and_again(Arc::clone(&shared), sort, rng));
        }
        at_work.spawn(operate(Arc::clone(&shared)));
        Self { shared, at_work, children }
    }

    /// Has all go well until every saga has ended, for some time, and nothing is on its way to the world any more.
    pub async fn finish(&self) {
        self.shared.calm.store(true, Ordering::Relaxed);
        let until = Instant::now() + ENDED_WITHIN;
        while Instant::now() < until {
            let open = match self.shared.client() {
                Some(client) => ids(&client, "open", "").await,
                None => None,
            };
            if open.is_some_and(|open| open.is_empty()) && !self.shared.world.is_expecting() {
                break;
            }
            sleep(LOOK_EVERY).await;
        }
        while Instant::now() < until + WITHIN {
            let Some(client) = self.shared.client() else { return };
            if let Some(children) = ids(&client, "", CHILD).await {
                *self.children.lock() = children;
                return;
            }
            sleep(LOOK_EVERY).await;
        }
    }

    /// Ends all, and waits until nobody writes anything down any more.
    pub async fn end(mut self) {
        self.at_work.shutdown().await;
        let until = Instant::now() + GONE_WITHIN;
        while Arc::strong_count(&self.shared) > 1 && Instant::now() < until {
            sleep(Duration::from_millis(20)).await;
        }
    }
}

/// The ids of sagas of a status and of a name; `None` where there is no answer.
async fn ids(client: &Client, status: &str, name: &str) -> Option<Vec<String>> {
    let filter = SagaFilter { status: status.to_owned(), name: name.to_owned(), ..SagaFilter::default() };
    let found = client.sagas(filter).all().await.ok()?;
    Some(found.into_iter().map(|saga| saga.id).collect())
}

/// A worker's sort.
#[derive(Clone, Copy, Debug)]
enum Sort {
    /// The library's, for activities.
    Calls,
    /// One that takes and tells by itself.
    ByHand,
    /// The library's, for transactions.
    Txns,
}

impl Sort {
    const ALL: [Self; 3] = [Self::Calls, Self::ByHand, Self::Txns];
}

/// A worker, killed, and another one in its place.
async fn again_and_again(shared: Arc<Shared>, sort: Sort, mut rng: SmallRng) {
    let mut drawn = |(from, to): (u64, u64)| Duration::from_millis(rng.random_range(from..to));
    loop {
        let (kill, killed) = oneshot::channel::<()>();
        let (theirs, (over, is_over)) = (Arc::clone(&shared), oneshot::channel::<()>());
        let thread = std::thread::Builder::new().name("saga-worker".to_owned());
        let begun = thread.spawn(move || {
            if let Ok(runtime) = Builder::new_current_thread().enable_all().build() {
                runtime.block_on(async {
                    tokio::select! {
                        // Also where its sender is dropped, with all of the crew.
                        _ = killed => {}
                        () = work(&theirs, sort) => {}
                    }
                });
                runtime.shutdown_background();
            }
            drop(over);
        });
        if begun.is_err() {
            return;
        }
        sleep(drawn(LIVES_MS)).await;
        while shared.is_calm() {
            sleep(LOOK_EVERY).await;
        }
        drop(kill);
        let _ = is_over.await;
        sleep(drawn(GONE_MS)).await;
    }
}

async fn work(shared: &Arc<Shared>, sort: Sort) {
    let client = shared.connect().await;
    // Nobody stops it: it is killed.
    let stop = CancellationToken::new();
    let activity = || {
        let shared = Arc::clone(shared);
        move |task: kvorum::client::Task| tasks::activity(Arc::clone(&shared), task.info().clone())
    };
    let in_txn = || {
        let shared = Arc::clone(shared);
        move |task: kvorum::client::Task, txn| tasks::in_txn(Arc::clone(&shared), task.info().clone(), txn)
    };
    let worked = match sort {
        Sort::Calls => {
            let worker = client.saga_worker(CALLS).concurrency(16);
            let worker = worker.activity(DO, activity()).activity(UNDO, activity());
            worker.activity(CHECK, activity()).run(stop).await
        }
        Sort::Txns => {
            let worker = client.saga_worker(TXNS).concurrency(16);
            worker.txn(DO, in_txn()).txn(UNDO, in_txn()).run(stop).await
        }
        Sort::ByHand => loop {
            match client.with_deadline(POLL).poll_saga_tasks(CALLS, "by-hand", TASKS).await {
                Ok(tasks) => {
                    for task in tasks {
                        tokio::spawn(tasks::by_hand(Arc::clone(shared), client.clone(), task));
                    }
                }
                Err(_) => sleep(Duration::from_millis(100)).await,
            }
        },
    };
    // Its queue's name is right: there is nothing else that it ends for.
    debug_assert!(worked.is_ok(), "{worked:?}");
}

/// Looks after sagas that stand still, and keeps a client for the others.
async fn operate(shared: Arc<Shared>) {
    let mut kept = Instant::now();
    loop {
        if shared.client().is_none() || kept.elapsed() > KEPT {
            let client = shared.connect().await;
            *shared.client.lock() = Some(client);
            kept = Instant::now();
        }
        if let Some(client) = shared.client() {
            for id in ids(&client, "paused", "").await.into_iter().flatten() {
                // One that can't be looked after now is so the next time.
                let _ = timeout(WITHIN, look_after(&shared, &client, &id)).await;
            }
        }
        sleep(LOOK_EVERY).await;
    }
}

/// Gets a saga going that stands still: looks whether its pivot took effect, or undoes by hand what could not be undone, or
/// has that tried again.
async fn look_after(shared: &Shared, client: &Client, id: &str) {
    let Ok(view) = client.saga(id).await else { return };
    for step in &view.steps {
        let is_failed =
            |task: &Option<SagaTaskView>| task.as_ref().is_some_and(|task| task.status == "failed");
        let SagaStepView { action, compensation, .. } = step;
        if step.is_pivot && is_failed(action) && action.as_ref().is_some_and(|action| action.unsure) {
            let is_done = shared.world.ask(id, &step.name, "check", LAST);
            steer(shared, client, id, &step.name, if is_done { "done" } else { "not-done" }).await;
        } else if is_failed(compensation) && step.work == "activity" && rand::random() {
            shared.world.ask(id, &step.name, "compensation", LAST);
            steer(shared, client, id, &step.name, "done").await;
        } else if is_failed(compensation) {
            steer(shared, client, id, &step.name, "retry").await;
        }
    }
}

async fn steer(shared: &Shared, client: &Client, id: &str, step: &str, action: &str) {
    let value = Saga::Steer { action: action.to_owned(), step: step.to_owned() };
    let invoke = Op::invoke(shared.process(), F::Steer, Value::Saga(value)).with_key(id);
    shared.write(invoke.clone());
    let steered = match action {
        "retry" => client.retry_saga(id, Some(step)).await,
        _ => client.resolve_saga(id, step, action == "done").await,
    };
    shared.complete(match steered {
        Ok(()) => invoke.ok(Value::Nil),
        Err(error) if error.kind == kvorum::ErrorKind::Invalid => invoke.fail(&error.message),
        Err(error) => invoke.info(&error.message),
    });
}
