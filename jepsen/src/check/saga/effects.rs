//! What sagas have done and undone, in the world and in the store, against how they ended.

use std::collections::BTreeMap;

use super::collect::{Collected, Ended, One};
use super::order::Told;
use super::plans::{Step, UNDONE, Work, count_key};
use super::{DOUBLED, Findings, MISSING, MISSING_UNDOING, NOT_UNDONE};
use crate::history::Call;

/// By the saga's own history: all that was done is done, and all that may have been is undone.
pub(super) fn check_told(ended: &Ended<'_>, told: &Told<'_>, findings: &mut Findings) {
    for step in ended.plan.steps {
        let (name, why) = match ended.read.status.as_str() {
            "completed" if !told.done.contains(step.name) => (MISSING, "is completed, and never did"),
            "compensated" | "cancelled" if step.is_undone && told.open.contains(step.name) => {
                (MISSING_UNDOING, "went back, and did not undo, after it did or may have done,")
            }
            _ => continue,
        };
        findings.anomaly(name, || {
            let told =
                format!("By its history saga {} ({}) {why} step {}.", ended.id, ended.plan.name, step.name);
            (ended.call.indexes(), told)
        });
    }
}

/// By the world: what stands.
pub(super) fn check_world(ended: &Ended<'_>, one: &One<'_>, findings: &mut Findings) {
    for step in ended.plan.steps.iter().filter(|step| step.work == Work::Activity) {
        let (stands, ops) = one.stands(step.name, usize::MAX);
        let (name, why) = match ended.read.status.as_str() {
            "completed" if !stands => (MISSING, "does not stand in the world"),
            "compensated" | "cancelled" if stands && may_not_stand(ended, step) => {
                (NOT_UNDONE, "stands in the world")
            }
            _ => continue,
        };
        findings.anomaly(name, || {
            let told =
                format!("Saga {} ended {}, and its step {} {why}.", ended.id, ended.read.status, step.name);
            ([ops, ended.call.indexes()].concat(), told)
        });
    }
}

/// Whether a step's effect may not be there, once its saga has gone back.
fn may_not_stand(ended: &Ended<'_>, step: &Step) -> bool {
    step.is_undone || step.is_pivot || ended.plan.is_past_pivot(step)
}

/// By the store: how often transactions took effect.
pub(super) fn check_store(
    ended: &Ended<'_>,
    (rows, held): (&Call<'_>, &BTreeMap<String, i64>),
    findings: &mut Findings,
) {
    for step in ended.plan.steps.iter().filter(|step| step.work == Work::Txn) {
        let count = held.get(&count_key(ended.id, step.name)).copied().unwrap_or_default();
        let (done, undone) = (count.rem_euclid(UNDONE), count.div_euclid(UNDONE));
        let name = match ended.read.status.as_str() {
            _ if done > 1 || undone > 1 || undone > done => DOUBLED,
            "completed" if (done, undone) != (1, 0) => MISSING,
            "compensated" | "cancelled" if done > undone && may_not_stand(ended, step) => NOT_UNDONE,
            _ => continue,
        };
        findings.anomaly(name, || {
            let told = format!(
                "Saga {} ended {}; its step {}, a transaction, was done {done} times and undone {undone} times.",
                ended.id, ended.read.status, step.name
            );
            ([rows.indexes(), ended.call.indexes()].concat(), told)
        });
    }
}

/// A saga that is a step of another one ended as the other one was told.
pub(super) fn check_children(collected: &Collected<'_>, findings: &mut Findings) {
    for (parent, _) in collected.ended() {
        let Some(step) = parent.plan.steps.iter().find(|step| step.work == Work::Child) else { continue };
        let children: Vec<Ended<'_>> = collected
            .ended()
            .map(|(ended, _)| ended)
            .filter(|child| child.read.parent == parent.id)
            .collect();
        let told = parent.read.lines.iter().find(|line| line.what() == "child_closed");
        let prefix = format!("{}/", parent.id);
        let is_listed =
            collected.lists.last().is_some_and(|(_, listed)| listed.keys().any(|id| id.starts_with(&prefix)));
        let why = match (told, &children[..]) {
            (_, [_, _, ..]) => format!("has {} children", children.len()),
            (Some(told), [child]) if told.detail() != child.read.status => {
                format!("was told that its child ended {}, which is {}", told.detail(), child.read.status)
            }
            (None, [child]) if child.read.status == "completed" && parent.read.status == "completed" => {
                "is completed, and was not told of its child's end".to_owned()
            }
            // One that is listed was only not read.
            (Some(_), []) if !is_listed && !collected.lists.is_empty() => {
                "was told of the end of a child that is not there".to_owned()
            }
            _ => continue,
        };
        findings.anomaly(super::CHILD_WRONG, || {
            let ops = children.iter().flat_map(|child| child.call.indexes());
            let told = format!("Saga {} {why}: step {}.", parent.id, step.name);
            (ops.chain(parent.call.indexes()).collect(), told)
        });
    }
}
