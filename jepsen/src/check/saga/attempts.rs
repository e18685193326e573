//! Attempts and their ends: each was recorded, was one worker's, and ended once.

use std::collections::BTreeMap;

use super::collect::{Ended, One, is_closed};
use super::plans::Work;
use super::{CHANGED, Findings, STALE_END, TWICE_HANDED, UNRECORDED, WRONG_END};
use crate::check::show;
use crate::history::saga::{Line, Saga};
use crate::history::{Call, Value};

/// Tasks that workers were given.
pub(super) fn check_works(ended: &Ended<'_>, one: &One<'_>, findings: &mut Findings) {
    let mut by_fence: BTreeMap<u64, &Call<'_>> = BTreeMap::new();
    for (call, task) in &one.works {
        let is_line = |line: &&Line| {
            line.what() == "handed_out"
                && (line.step(), line.kind(), line.attempt()) == (&task.step, &task.kind, task.attempt)
        };
        if !ended.read.lines.iter().any(|line| is_line(&line)) {
            findings.anomaly(UNRECORDED, || {
                let told = format!(
                    "{}\nA worker was given an attempt that the history of saga {} does not have.",
                    show::call(call),
                    ended.id
                );
                ([call.indexes(), ended.call.indexes()].concat(), told)
            });
        }
        // A transaction is run again by its own worker where others were in its way.
        let is_txn = ended.plan.step(&task.step).is_some_and(|step| step.work == Work::Txn);
        if let Some(other) = by_fence.insert(task.fence, call).filter(|_| !is_txn) {
            findings.anomaly(TWICE_HANDED, || {
                let told = format!(
                    "{}\n{}\nOne attempt was given to two workers.",
                    show::call(other),
                    show::call(call)
                );
                ([other.indexes(), call.indexes()].concat(), told)
            });
        }
    }
}

/// Ends that were told.
pub(super) fn check_tells(ended: &Ended<'_>, one: &One<'_>, findings: &mut Findings) {
    let mut accepted: BTreeMap<(&str, &str, u64), &Call<'_>> = BTreeMap::new();
    let mut successful: BTreeMap<(&str, &str), &Call<'_>> = BTreeMap::new();
    for (call, tell) in &one.tells {
        let Some(Value::Saga(Saga::Told { already, recorded })) = call.answer() else { continue };
        let task = &tell.task;
        let later = one.works.iter().find(|(work, other)| {
            (&other.step, &other.kind) == (&task.step, &task.kind)
                && other.fence > task.fence
                && work.start < call.start
        });
        let closed = one.reads.iter().find(|(read, found)| {
            !already && read.end < call.start && found.is_some_and(|found| is_closed(&found.status))
        });
        if let Some(before) = later.map(|(work, _)| work).or(closed.map(|(read, _)| read)) {
            findings.anomaly(STALE_END, || {
                let told = format!(
                    "{}\n{}\nThe end of an attempt of saga {} was taken that did not count any more.",
                    show::call(before),
                    show::call(call),
                    ended.id
                );
                ([before.indexes(), call.indexes()].concat(), told)
            });
        }
        let mut wrong = |other: Option<&Call<'_>>, why: String| {
            findings.anomaly(WRONG_END, || {
                let told = format!("{}\nOf saga {}, {why}.", show::call(call), ended.id);
                let other = other.map(Call::indexes).unwrap_or_default();
                ([other, call.indexes(), ended.call.indexes()].concat(), told)
            });
        };
        if !already {
            if let Some(other) = accepted.insert((&task.step, &task.kind, task.fence), call) {
                wrong(Some(other), format!("one attempt at step {} was taken to end twice", task.step));
            } else if tell.output.is_some()
                && let Some(other) = successful.insert((&task.step, &task.kind), call)
            {
                wrong(Some(other), format!("two attempts at step {} were taken to be successful", task.step));
            }
        }
        let told = match (&tell.output, already) {
            (Some(_), true) => recorded,
            (Some(output), false) => output,
            (None, _) => continue,
        };
        let kept = ended.read.outputs.get(&task.step);
        if task.kind == "action" && kept != Some(told) {
            let kept = kept.map_or("nothing", String::as_str);
            wrong(None, format!("step {} came to {told:?} by this, and to {kept:?} at the end", task.step));
        }
    }
}

/// What was read of a saga: its history only grows, and its end stays.
pub(super) fn check_reads(ended: &Ended<'_>, one: &One<'_>, findings: &mut Findings) {
    let mut changed = |call: &Call<'_>, why: String| {
        findings.anomaly(CHANGED, || {
            let told = format!("{}\nOf saga {}, {why}.", show::call(call), ended.id);
            ([call.indexes(), ended.call.indexes()].concat(), told)
        });
    };
    let mut before: Option<(&Call<'_>, &[Line])> = None;
    for (call, read) in &one.reads {
        if call.start >= ended.call.start {
            continue;
        }
        let Some(read) = read else { continue };
        if !ended.read.lines.starts_with(&read.lines) {
            changed(call, "the history at the end does not begin with this".to_owned());
        }
        if let Some((_, lines)) = before.filter(|(earlier, _)| earlier.end < call.start)
            && read.lines.len() < lines.len()
        {
            changed(call, "more of its history had been read before".to_owned());
        }
        if is_closed(&read.status) && read.status != ended.read.status {
            changed(call, format!("the end was {}, and is {}", read.status, ended.read.status));
        }
        before = Some((call, &read.lines));
    }
    for (call, status) in one.awaited.iter().filter(|(_, status)| is_closed(status)) {
        if *status != ended.read.status {
            changed(call, format!("the end was {status}, and is {}", ended.read.status));
        }
    }
    let closed = ended.read.lines.iter().rfind(|line| line.what() == "closed");
    if is_closed(&ended.read.status) && closed.is_none_or(|line| line.detail() != ended.read.status) {
        changed(&ended.call, format!("it is {}, and its history does not end so", ended.read.status));
    }
}
