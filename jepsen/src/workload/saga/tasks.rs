//! What workers do with a task: what they should, or something else.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use kvorum::client::{SagaTask, Txn};
use kvorum::saga::Failure;
use kvorum::{Client, ErrorKind};
use rand::Rng;
use tokio::time::{Instant, sleep, sleep_until};

use super::crew::Shared;
use crate::check::saga::{UNDONE, count_key};
use crate::history::saga::{Came, Saga, Task, Tell};
use crate::history::{F, Op, Value};
use crate::workload::placed;

/// How long something takes that goes well.
const WORK_MS: (u64, u64) = (0, 40);
/// How late something may come that its worker does not wait for.
const LATE_MS: (u64, u64) = (100, 2_500);
/// How long before the end of its lease a slow transaction is to be committed, at most.
const CLOSE_MS: (u64, u64) = (0, 30);
/// After what time the end of a task is told again.
const AGAIN_MS: (u64, u64) = (1, 1_500);

/// How an attempt goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Way {
    /// As it should.
    Well,
    /// It fails, and did nothing, and says so.
    FailsBefore,
    /// It fails, and did what it should, and does not know.
    FailsAfter,
    /// It fails, and did nothing, and does not know.
    FailsBlind,
    /// It can't be done.
    Refuses,
    /// It is done late: its request is long on its way. Of a transaction: just before the lease ends.
    Late,
    /// Nothing comes of it.
    Hangs,
}

impl Way {
    /// How an attempt of this kind goes. Backwards, and past the pivot, nothing is refused.
    fn draw(may_refuse: bool) -> Self {
        match rand::rng().random_range(0..100) {
            0..7 => Self::FailsBefore,
            7..15 => Self::FailsAfter,
            15..20 => Self::FailsBlind,
            20..24 if may_refuse => Self::Refuses,
            24..33 => Self::Late,
            33..37 => Self::Hangs,
            _ => Self::Well,
        }
    }
}

pub(super) fn task_of(task: &SagaTask) -> Task {
    Task { step: task.step.clone(), kind: task.kind.clone(), attempt: task.attempt, fence: task.fence }
}

/// What a task comes to that goes well: each attempt to something else.
fn output_of(task: &SagaTask, did: bool) -> String {
    match task.kind.as_str() {
        "check" => did.to_string(),
        _ => format!("fence-{}", task.fence),
    }
}

fn nothing() -> Failure {
    Failure::new("nothing was done").did_nothing()
}

fn unknown() -> Failure {
    Failure::new("unknown what was done")
}

/// An activity, as a handler of a worker of the library.
pub(super) async fn activity(shared: Arc<Shared>, task: SagaTask) -> Result<Bytes, Failure> {
    let invoke = shared.begins(&task);
    let done = attempt(&shared, &task).await;
    shared.ends(invoke, &done);
    if rand::rng().random_ratio(1, 5) {
        // Somebody tells the end besides the worker, as where a message is doubled.
        let (shared, task, again) = (Arc::clone(&shared), task.clone(), again(&task, &done));
        shared.main.clone().spawn(async move {
            sleep(drawn(AGAIN_MS)).await;
            if let Some(client) = shared.client() {
                tell(&shared, &client, &task, again).await;
            }
        });
    }
    done.map(Bytes::from)
}

/// An activity, by a worker that takes and tells by itself: it also tells what comes after its lease.
pub(super) async fn by_hand(shared: Arc<Shared>, client: Client, task: SagaTask) {
    let invoke = shared.begins(&task);
    let beats = task.heartbeat_ms > 0 && rand::rng().random_ratio(4, 5);
    let done = {
        let heart = async {
            if !beats {
                return std::future::pending::<()>().await;
            }
            loop {
                sleep(Duration::from_millis(task.heartbeat_ms / 3)).await;
                let asking = client.with_deadline(Duration::from_millis(task.heartbeat_ms));
                // Where it is of no use any more, the end that is told shows.
                let _ = asking.heartbeat_saga_task(&task.token).await;
            }
        };
        let most = Duration::from_millis(task.lease_ms) + drawn(AGAIN_MS);
        tokio::select! {
            done = attempt(&shared, &task) => done,
            () = heart => return,
            () = sleep(most) => Err(unknown()),
        }
    };
    shared.ends(invoke, &done);
    if rand::rng().random_ratio(1, 12) {
        sleep(Duration::from_millis(task.lease_ms)).await;
    }
    let again = again(&task, &done);
    tell(&shared, &client, &task, done).await;
    if rand::rng().random_ratio(1, 4) {
        sleep(drawn(AGAIN_MS)).await;
        tell(&shared, &client, &task, again).await;
    }
}

/// The same end as it is told again: in other words, so that it shows which of the two counts.
fn again(task: &SagaTask, done: &Result<String, Failure>) -> Result<String, Failure> {
    match done {
        Ok(_) if task.kind != "check" => Ok(format!("again-{}", task.fence)),
        other => other.clone(),
    }
}

async fn attempt(shared: &Arc<Shared>, task: &SagaTask) -> Result<String, Failure> {
    let ask = |shared: &Shared| shared.world.ask(&task.saga_id, &task.step, &task.kind, task.fence);
    let way = if shared.is_calm() { Way::Well } else { Way::draw(shared.may_refuse(task)) };
    match way {
        Way::Well => {
            if !shared.is_calm() {
                sleep(drawn(WORK_MS)).await;
            }
            let did = ask(shared);
            match did || task.kind == "check" {
                true => Ok(output_of(task, did)),
                false => Err(unknown()),
            }
        }
        Way::FailsBefore => Err(nothing()),
        Way::FailsAfter => {
            ask(shared);
            Err(unknown())
        }
        Way::FailsBlind => Err(unknown()),
        Way::Refuses => Err(Failure::refused("nothing can be done")),
        Way::Late => {
            shared.world.sets_out();
            let (theirs, task) = (Arc::clone(shared), task.clone());
            shared.main.spawn(async move {
                sleep(drawn(LATE_MS)).await;
                theirs.world.ask(&task.saga_id, &task.step, &task.kind, task.fence);
                theirs.world.arrives();
            });
            std::future::pending().await
        }
        Way::Hangs => std::future::pending().await,
    }
}

/// A step, or what undoes it, in its transaction.
pub(super) async fn in_txn(shared: Arc<Shared>, task: SagaTask, txn: Txn) -> Result<Bytes, Failure> {
    let lease_end = Instant::now() + Duration::from_millis(task.lease_ms);
    let invoke = shared.begins(&task);
    let way = if shared.is_calm() { Way::Well } else { Way::draw(shared.may_refuse(&task)) };
    let done = match way {
        Way::Well | Way::FailsAfter => Ok(()),
        Way::Late => {
            // What is sent now may arrive when the lease has ended.
            let before = drawn(CLOSE_MS);
            sleep_until(lease_end - before).await;
            Ok(())
        }
        Way::FailsBefore => Err(nothing()),
        Way::FailsBlind => Err(unknown()),
        Way::Refuses => Err(Failure::refused("nothing can be done")),
        Way::Hangs => std::future::pending().await,
    };
    let count = if task.kind == "action" { 1 } else { UNDONE };
    let done = done.and_then(|()| {
        txn.add(placed(&count_key(&task.saga_id, &task.step)), count)?;
        Ok(output_of(&task, true))
    });
    // Where it is committed, the store says so: done is no more than tried.
    shared.ends(invoke, &done);
    if way == Way::FailsAfter && done.is_ok() && rand::rng().random_ratio(1, 2) {
        // It has written, and fails before it commits: nothing of that may stay.
        return Err(unknown());
    }
    done.map(Bytes::from)
}

/// Tells how a task ended, and writes down what is answered.
async fn tell(shared: &Shared, client: &Client, task: &SagaTask, done: Result<String, Failure>) {
    let output = done.as_ref().ok().cloned();
    let tell = Tell { task: task_of(task), output: output.clone() };
    let invoke = Op::invoke(shared.process(), F::Tell, Value::Saga(Saga::Tell(tell))).with_key(&task.saga_id);
    shared.write(invoke.clone());
    let told = match done {
        Ok(output) => client.complete_saga_task(&task.token, output).await,
        // Whether a failure had been told before, or the task is done, is not answered: so it may have been.
        Err(failure) => client.fail_saga_task(&task.token, failure).await.map(|()| Some(Bytes::new())),
    };
    let text = |bytes: Bytes| String::from_utf8_lossy(&bytes).into_owned();
    let complete = match told {
        Ok(recorded) => invoke.ok(Value::Saga(Saga::Told {
            already: recorded.is_some(),
            recorded: recorded.map(text).unwrap_or_default(),
        })),
        Err(error) if matches!(error.kind, ErrorKind::Denied | ErrorKind::Invalid) => {
            invoke.fail(format!("{}: {}", error.kind, error.message))
        }
        Err(error) => invoke.info(format!("{}: {}", error.kind, error.message)),
    };
    shared.complete(complete);
}

/// What an attempt came to, as its worker would say.
pub(super) fn came(done: &Result<String, Failure>) -> Came {
    match done {
        Ok(_) => Came::Done,
        Err(failure) if failure.did_nothing => Came::Nothing,
        Err(_) => Came::Unknown,
    }
}

fn drawn((from, to): (u64, u64)) -> Duration {
    Duration::from_millis(rand::rng().random_range(from..to))
}
