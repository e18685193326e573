//! Definitions of the workload's sagas, made of the checker's plans: how long things may take, and when they are tried again.

use kvorum::saga::{
    CallDocument, CompensationOrder, Definition, Document, Entry, Parallel, Retry, Saga, Step, Timeouts,
};

use crate::check::saga::{CHILD, Plan, Step as Planned, Work};

/// The queue of activities, and the one of transactions.
pub(super) const CALLS: &str = "calls";
pub(super) const TXNS: &str = "txns";
/// The handlers: each does what it does for all steps.
pub(super) const DO: &str = "do";
pub(super) const UNDO: &str = "undo";
pub(super) const CHECK: &str = "check";
/// The signal that some steps wait for, and how long they do.
pub(super) const SIGNAL: &str = "go";
const SIGNAL_WITHIN_MS: u64 = 1_500;
const NAP_MS: u64 = 150;

/// The definition of a plan.
///
/// # Errors
/// Where it makes no sense.
pub fn definition(plan: &Plan) -> Result<Definition, kvorum::Error> {
    let mut document = Saga::define(plan.name, 1);
    document.timeout_ms = plan.timeout_ms;
    if plan.is_parallel {
        document = document.compensation_order(CompensationOrder::Parallel);
    }
    let last = plan.steps.last().map_or(0, |step| step.stage);
    for stage in 0..=last {
        let together: Vec<Step> =
            plan.steps.iter().filter(|step| step.stage == stage).map(|step| of(plan, step)).collect();
        document = with(document, together);
    }
    document.check()
}

fn with(mut document: Document, together: Vec<Step>) -> Document {
    match <[Step; 1]>::try_from(together) {
        Ok([step]) => document.step(step),
        Err(together) => {
            document.steps.push(Entry::Parallel(Parallel { parallel: together }));
            document
        }
    }
}

fn of(plan: &Plan, planned: &Planned) -> Step {
    // Past the pivot, and backwards, there is no giving up.
    let attempts = if plan.is_past_pivot(planned) { 0 } else { 3 };
    let mut step = match planned.work {
        Work::Activity => call(Step::activity(planned.name).handler(DO), CALLS, planned.beats, attempts),
        Work::Txn => call(Step::txn(planned.name).handler(DO), TXNS, planned.beats, attempts),
        Work::Sleep => Step::sleep_ms(planned.name, NAP_MS),
        Work::Signal => Step::signal(planned.name, SIGNAL).timeout_ms(SIGNAL_WITHIN_MS),
        Work::Child => Step::child(planned.name, CHILD),
    };
    if planned.is_undone {
        let attempts = if planned.undo_stands { 2 } else { 0 };
        step = step.compensation(back(UNDO, planned.work == Work::Txn, attempts));
    }
    if planned.is_pivot {
        step = step.pivot();
    }
    if planned.is_checked {
        step.check = Some(back(CHECK, false, 0));
    }
    step
}

fn call(step: Step, queue: &str, beats: bool, attempts: u32) -> Step {
    step.queue(queue).retry(retry(attempts)).timeouts(timeouts(beats))
}

fn back(handler: &str, is_txn: bool, attempts: u32) -> CallDocument {
    let name = Some(handler.to_owned());
    let (activity, txn) = if is_txn { (None, name) } else { (name, None) };
    CallDocument {
        activity,
        txn,
        queue: Some(if is_txn { TXNS } else { CALLS }.to_owned()),
        retry: Some(retry(attempts)),
        timeouts: Some(timeouts(false)),
    }
}

fn retry(max_attempts: u32) -> Retry {
    Retry { initial_ms: 20, factor_percent: 150, max_ms: 200, max_attempts, ..Retry::default() }
}

/// One attempt's lease is short, so that attempts overlap.
fn timeouts(beats: bool) -> Timeouts {
    match beats {
        true => Timeouts { start_to_close_ms: 2_000, heartbeat_ms: Some(400), ..Timeouts::default() },
        false => Timeouts { start_to_close_ms: 700, ..Timeouts::default() },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::saga::PLANS;

    #[test]
    fn each_plan_makes_a_definition_of_the_same_shape() {
        for plan in &PLANS {
            let definition = definition(plan).expect("a definition");
            assert_eq!(definition.steps().len(), plan.steps.len(), "{}", plan.name);
            for (defined, planned) in definition.steps().iter().zip(plan.steps) {
                assert_eq!((&*defined.name, defined.stage), (planned.name, planned.stage));
                assert_eq!(defined.compensation.is_some(), planned.is_undone, "{}", planned.name);
                assert_eq!(defined.is_pivot, planned.is_pivot);
                assert_eq!(defined.check.is_some(), planned.is_checked);
            }
        }
    }
}
