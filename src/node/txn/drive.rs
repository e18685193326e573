//! Runs a machine of the commit protocol: carries out its actions and tells it what came of them.

use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt};
use tokio::time::{Instant, sleep_until};

use super::router::{Attempt, Router};
use super::wire::{Answer, Ask};
use crate::node::failpoint;
use crate::txn::{Action, Coordinator, Event, Recovery, Verdict};
use crate::types::{KeyRange, Outcome, TxnId};

/// The pause before what failed is sent again; it doubles with each failure in a row up to the longest.
const RESEND_MIN: Duration = Duration::from_millis(20);
const RESEND_MAX: Duration = Duration::from_millis(500);

/// What can be run.
pub trait Machine {
    /// Tells it what came of an action.
    fn on(&mut self, event: Event, actions: &mut Vec<Action>);

    /// Whether something waits to be sent again.
    fn waits(&self) -> bool;
}

impl Machine for Coordinator {
    fn on(&mut self, event: Event, actions: &mut Vec<Action>) {
        Coordinator::on(self, event, actions);
    }

    fn waits(&self) -> bool {
        Coordinator::waits(self)
    }
}

impl Machine for Recovery {
    fn on(&mut self, event: Event, actions: &mut Vec<Action>) {
        Recovery::on(self, event, actions);
    }

    fn waits(&self) -> bool {
        Recovery::waits(self)
    }
}

/// How long a machine is run.
pub struct Patience {
    /// When its client will soon wait no longer, so that what is not decided is to be undone.
    pub give_up: Instant,
    /// Until when it is run at all. What it leaves is found and ended by recovery.
    pub end: Instant,
}

/// Runs a machine until it has nothing left to do, or the node stops. `acknowledge` is told its verdict, at most once.
pub async fn drive<M: Machine>(
    router: &Router,
    txn: TxnId,
    machine: &mut M,
    first: Vec<Action>,
    patience: &Patience,
    mut acknowledge: impl FnMut(Verdict),
) {
    let mut under_way: FuturesUnordered<BoxFuture<'static, Event>> = FuturesUnordered::new();
    let mut actions = first;
    let mut pause = RESEND_MIN;
    let mut resend_at = None;
    let mut given_up = false;
    loop {
        for action in std::mem::take(&mut actions) {
            failpoint::before(&action);
            match action {
                Action::Acknowledge(verdict) => acknowledge(verdict),
                Action::Ended => return,
                request => under_way.extend(carry_out(router.clone(), txn, request)),
            }
        }
        let event = tokio::select! {
            Some(event) = under_way.next() => event,
            () = sleep_until(resend_at.unwrap_or(patience.end)), if resend_at.is_some() => Event::Resend,
            () = sleep_until(patience.give_up), if !given_up => Event::GiveUp,
            () = sleep_until(patience.end) => return,
            () = router.stopping().cancelled() => return,
        };
        match &event {
            Event::Resend => {
                resend_at = None;
                pause = (pause * 2).min(RESEND_MAX);
            }
            Event::GiveUp => given_up = true,
            Event::Failed { .. }
            | Event::Moved { .. }
            | Event::Outcome { outcome: Outcome::Refused(_), .. } => {}
            _ => pause = RESEND_MIN,
        }
        machine.on(event, &mut actions);
        if machine.waits() {
            resend_at.get_or_insert_with(|| Instant::now() + pause);
        } else {
            resend_at = None;
        }
    }
}

/// Sends a request and makes an event of what comes of it; `None` for what is no request.
pub(super) fn carry_out(router: Router, txn: TxnId, action: Action) -> Option<BoxFuture<'static, Event>> {
    let held_up = failpoint::delay(&action);
    let (step, to, ask) = match action {
        Action::Send { step, to, command } => (step, to, Ask::Command(command)),
        Action::Ask { step, primary, at } => (step, primary.clone(), Ask::Status { primary, at }),
        Action::Look { step, key, at } => (step, key.clone(), Ask::Look { key, at }),
        Action::Acknowledge(_) | Action::Ended => return None,
    };
    Some(Box::pin(async move {
        if let Some(delay) = held_up {
            tokio::time::sleep(delay).await;
        }
        match router.attempt(txn, &to, ask).await {
            Attempt::Answered(Answer::Outcome(outcome)) => Event::Outcome { step, outcome },
            Attempt::Answered(Answer::Status(status)) => Event::Status { step, status },
            Attempt::Answered(Answer::Looked(locked)) => Event::Looked { step, locked },
            Attempt::WrongShard => match router.cut(&[KeyRange::all()]).await {
                Ok(shards) => Event::Moved { step, shards },
                Err(error) => failed(txn, step, &error),
            },
            Attempt::Failed(error) => failed(txn, step, &error),
        }
    }))
}

fn failed(txn: TxnId, step: u32, error: &crate::types::Error) -> Event {
    tracing::debug!(%txn, step, %error, "a step of a commit failed and is tried again");
    Event::Failed { step }
}
