//! Sagas of real processes: workers in this one, nodes in others that are killed.

mod basics;
mod command;
mod control;
mod costs;
mod limits;
mod starts;
mod takeover;
mod timers;

use std::sync::Arc;

use kvorum::Client;
use kvorum::client::{SagaStart, SagaView, SagaWorker, Task};
use kvorum::saga::{Failure, Saga, Step};
use parking_lot::Mutex;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::support::eventually;

/// What handlers were called for, in the order of it.
type Log = Arc<Mutex<Vec<String>>>;

fn note(log: &Log, task: &Task) {
    let kind = if task.info().kind == "action" { "" } else { "undo " };
    log.lock().push(format!("{kind}{}", task.step()));
}

/// A worker at work.
struct Worker {
    stop: CancellationToken,
    running: JoinHandle<kvorum::Result<()>>,
}

impl Worker {
    async fn stop(self) {
        self.stop.cancel();
        self.running.await.expect("it runs").expect("it stopped");
    }
}

/// A worker of a queue whose handlers `do` and `undo` only note that they were called.
fn noting(client: &Client, queue: &str, log: &Log) -> SagaWorker {
    let handler = |log: Log| {
        move |task: Task| {
            note(&log, &task);
            async { Ok("".into()) }
        }
    };
    client.saga_worker(queue).activity("do", handler(log.clone())).activity("undo", handler(log.clone()))
}

/// Runs a worker until it is stopped.
fn spawn(worker: SagaWorker) -> Worker {
    let stop = CancellationToken::new();
    let running = tokio::spawn(worker.run(stop.clone()));
    Worker { stop, running }
}

/// A worker of queue `trip` with a handler `do`, which fails for good where the input names the step, `undo`, and a
/// transaction `count`.
fn work(client: &Client, log: &Log) -> Worker {
    let (doing, undoing, counting) = (log.clone(), log.clone(), log.clone());
    let worker = client
        .saga_worker("trip")
        .activity("do", move |task| {
            note(&doing, &task);
            async move {
                match task.input() == task.step().as_bytes() {
                    true => Err(Failure::refused("it is to fail")),
                    false => Ok(format!("did {}", task.step()).into()),
                }
            }
        })
        .activity("undo", move |task| {
            note(&undoing, &task);
            async move { Ok("".into()) }
        })
        .txn("count", move |task, txn| {
            note(&counting, &task);
            async move {
                txn.add("count", if task.info().kind == "action" { 1 } else { -1 })?;
                Ok("counted".into())
            }
        });
    spawn(worker)
}

/// Defines a trip of five stages, of which the second has two steps and the fourth is the pivot.
async fn define(client: &Client) {
    let activity = |name: &str| Step::activity(name).handler("do").compensate_with("undo");
    let trip = Saga::define("trip", 1)
        .step(activity("flight"))
        .parallel([activity("hotel"), activity("car")])
        .step(Step::txn("tally").handler("count").compensate_with_txn("count"))
        .step(Step::activity("payment").handler("do").pivot())
        .step(Step::activity("mail").handler("do"));
    client.define_saga(&trip.check().expect("a definition")).await.expect("defined");
}

/// Waits until a saga is at a step, and at no other one.
async fn wait_at(client: &Client, id: &str, step: &str) {
    eventually(&format!("{id} is at {step}"), async || {
        let saga = client.saga(id).await.map_err(|error| error.to_string())?;
        if saga.at == [step] { Ok(()) } else { Err(format!("{:?}", saga.at)) }
    })
    .await;
}

async fn run(client: &Client, id: &str, input: &str) -> SagaView {
    client.start_saga(SagaStart::new("trip", id).input(input.to_owned())).await.expect("started");
    client.wait_for_saga(id).await.expect("waited")
}
