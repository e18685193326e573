//! The order of what happens in a saga, by its own history and by what workers and the world saw.

use std::collections::BTreeSet;

use super::collect::{Ended, One};
use super::plans::{Step, Work};
use super::{Findings, ORDER, PAST_PIVOT};
use crate::check::show;
use crate::history::saga::Line;

/// What a history has come to, line by line.
#[derive(Default)]
pub(super) struct Told<'a> {
    /// Tasks that somebody has, or that wait: steps and kinds.
    running: BTreeSet<(&'a str, &'a str)>,
    /// Steps that are done.
    pub done: BTreeSet<&'a str>,
    /// Steps that may have taken effect, and are not undone since.
    pub open: BTreeSet<&'a str>,
    /// Whether something was undone, or begun to be.
    goes_back: bool,
    is_closed: bool,
}

impl<'a> Told<'a> {
    /// Goes on by a line. Answers what is wrong with it.
    pub(super) fn take(&mut self, ended: &Ended<'_>, line: &'a Line) -> Option<(&'static str, String)> {
        let plan = ended.plan;
        let kind = if line.kind().is_empty() { "action" } else { line.kind() };
        let step = plan.step(line.step());
        let mut wrong = None;
        match (line.what(), step) {
            ("handed_out" | "waiting", Some(step)) => {
                wrong = self.begins(ended, step, kind);
                self.running.insert((step.name, kind));
            }
            ("completed", Some(step)) => {
                self.running.remove(&(step.name, kind));
                match kind {
                    "action" => {
                        self.done.insert(step.name);
                        self.open.insert(step.name);
                    }
                    "compensation" => drop(self.open.remove(step.name)),
                    _ => {}
                }
            }
            ("attempt_failed" | "failed", Some(step)) => {
                self.running.remove(&(step.name, kind));
                let did_nothing = line.detail().starts_with("nothing");
                if kind == "action" && step.work == Work::Activity && !did_nothing {
                    self.open.insert(step.name);
                }
            }
            ("returned" | "withdrawn", Some(step)) => drop(self.running.remove(&(step.name, kind))),
            // Of a compensation that gave up, somebody has undone the step; a pivot has none.
            ("resolved", Some(step)) if step.is_undone && line.detail() == "done" => {
                self.open.remove(step.name);
            }
            ("closed", _) => self.is_closed = true,
            _ => {}
        }
        wrong
    }

    fn begins(&mut self, ended: &Ended<'_>, step: &Step, kind: &str) -> Option<(&'static str, String)> {
        let plan = ended.plan;
        let wrong = |why: String| Some((ORDER, format!("{kind} of step {} begins, {why}", step.name)));
        if self.is_closed {
            return wrong("after the end".to_owned());
        }
        if kind == "compensation" {
            self.goes_back = true;
            if let Some(pivot) = plan.pivot().filter(|pivot| self.done.contains(pivot.name)) {
                let told = format!("step {} is undone, after the pivot {}", step.name, pivot.name);
                return Some((PAST_PIVOT, told));
            }
            if let Some((name, kind)) = self.running.iter().find(|(_, kind)| *kind != "compensation") {
                return wrong(format!("while {kind} of step {name} runs"));
            }
            let later = plan
                .steps
                .iter()
                .find(|other| other.stage > step.stage && other.is_undone && self.open.contains(other.name));
            return match later.filter(|_| !plan.is_parallel) {
                Some(later) => wrong(format!("before step {} is undone", later.name)),
                None => None,
            };
        }
        if kind == "check" {
            return None;
        }
        if self.goes_back {
            return wrong("after something was undone".to_owned());
        }
        let earlier =
            plan.steps.iter().find(|other| other.stage < step.stage && !self.done.contains(other.name));
        earlier.and_then(|earlier| wrong(format!("before step {} is done", earlier.name)))
    }
}

/// Looks through a saga's history. Answers what it comes to.
pub(super) fn check<'a>(ended: &Ended<'a>, findings: &mut Findings) -> Told<'a> {
    let mut told = Told::default();
    for (number, line) in ended.read.lines.iter().enumerate() {
        if let Some((name, why)) = told.take(ended, line) {
            findings.anomaly(name, || {
                let told = format!(
                    "By line {number} of the history of saga {} ({}), {why}.",
                    ended.id, ended.plan.name
                );
                (ended.call.indexes(), told)
            });
        }
    }
    if let Some(pivot) = ended.plan.pivot().filter(|pivot| told.done.contains(pivot.name))
        && ["compensated", "cancelled"].contains(&ended.read.status.as_str())
    {
        findings.anomaly(PAST_PIVOT, || {
            let told = format!(
                "The pivot {} of saga {} is done, and it ended {}.",
                pivot.name, ended.id, ended.read.status
            );
            (ended.call.indexes(), told)
        });
    }
    told
}

/// What workers were given, against what the world had come to by then.
pub(super) fn check_world(ended: &Ended<'_>, one: &One<'_>, findings: &mut Findings) {
    for (call, task) in &one.works {
        let Some(step) = ended.plan.step(&task.step) else { continue };
        for other in ended.plan.steps.iter().filter(|other| other.work == Work::Activity) {
            let is_wrong = match task.kind.as_str() {
                "action" if other.stage < step.stage => {
                    let acted = |(at, effect): &(crate::history::Call<'_>, &crate::history::saga::Effect)| {
                        effect.step == other.name
                            && effect.kind == "action"
                            && !effect.refused
                            && at.start < call.start
                    };
                    !one.effects.iter().any(acted)
                }
                "compensation" if other.stage > step.stage && other.is_undone && !ended.plan.is_parallel => {
                    one.stands(other.name, call.start).0
                }
                _ => false,
            };
            if is_wrong {
                findings.anomaly(ORDER, || {
                    let (verb, stands) = match task.kind.as_str() {
                        "action" => ("done", "had not been done in the world"),
                        _ => ("undone", "stood in the world"),
                    };
                    let told = format!(
                        "{}\nStep {} of saga {} was handed out to be {verb}, and step {} {stands}.",
                        show::call(call),
                        step.name,
                        ended.id,
                        other.name
                    );
                    ([call.indexes(), ended.call.indexes()].concat(), told)
                });
            }
        }
    }
}
