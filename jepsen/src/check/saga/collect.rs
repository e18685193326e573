//! What a history says about each saga.

use std::collections::BTreeMap;

use super::plans::{Plan, plan};
use crate::history::saga::{Effect, Read, Saga, Start, Task, Tell};
use crate::history::{Call, F, History, Kind, Value};

/// All of it.
#[derive(Default)]
pub(super) struct Collected<'a> {
    /// By their ids: those that were started, or read.
    pub sagas: BTreeMap<&'a str, One<'a>>,
    /// All rows at the end.
    pub rows: Option<(Call<'a>, &'a BTreeMap<String, i64>)>,
    /// All lists of all sagas.
    pub lists: Vec<(Call<'a>, &'a BTreeMap<String, String>)>,
}

/// What was done to a saga, in the order in which it began.
#[derive(Default)]
pub(super) struct One<'a> {
    pub starts: Vec<(Call<'a>, &'a Start)>,
    pub cancels: Vec<Call<'a>>,
    /// Waits for its end that were answered, and where it was then.
    pub awaited: Vec<(Call<'a>, &'a str)>,
    /// Reads that were answered.
    pub reads: Vec<(Call<'a>, Option<&'a Read>)>,
    /// The read at the end.
    pub last: Option<(Call<'a>, Option<&'a Read>)>,
    /// Tasks that workers began.
    pub works: Vec<(Call<'a>, &'a Task)>,
    pub tells: Vec<(Call<'a>, &'a Tell)>,
    /// What the world did, or refused.
    pub effects: Vec<(Call<'a>, &'a Effect)>,
}

/// A saga as it was read at the end, with what it should be.
#[derive(Clone, Copy)]
pub(super) struct Ended<'a> {
    pub id: &'a str,
    pub call: Call<'a>,
    pub read: &'a Read,
    pub plan: &'static Plan,
}

impl<'a> Collected<'a> {
    pub(super) fn of(history: &'a History) -> Self {
        let mut collected = Self::default();
        let mut first_last = None;
        for call in history.calls() {
            match (call.f(), call.argument(), call.answer()) {
                (F::List, _, Some(Value::Saga(Saga::List(sagas)))) => collected.lists.push((call, sagas)),
                (F::Read, _, Some(Value::Balances(rows))) if first_last.is_some() => {
                    collected.rows = Some((call, rows));
                }
                (F::List | F::Read | F::Create, ..) => {}
                (_, argument, answer) => {
                    let one = collected.sagas.entry(call.key()).or_default();
                    one.take(call, argument, answer);
                    if one.last.is_some() {
                        first_last = first_last.or(Some(call.start));
                    }
                }
            }
        }
        // What was only asked for in vain is no saga.
        collected
            .sagas
            .retain(|_, one| !one.starts.is_empty() || one.reads.iter().any(|(_, read)| read.is_some()));
        collected
    }

    /// Sagas that were read at the end, and are there.
    pub(super) fn ended(&self) -> impl Iterator<Item = (Ended<'a>, &One<'a>)> {
        self.sagas.iter().filter_map(|(id, one)| {
            let (call, read) = one.last?;
            let read = read?;
            Some((Ended { id, call, read, plan: plan(&read.saga)? }, one))
        })
    }
}

impl<'a> One<'a> {
    fn take(&mut self, call: Call<'a>, argument: &'a Value, answer: Option<&'a Value>) {
        match (call.f(), argument, answer) {
            (F::Start, Value::Saga(Saga::Start(start)), _) => self.starts.push((call, start)),
            (F::Cancel, ..) => self.cancels.push(call),
            (F::Await, _, Some(Value::Saga(Saga::Status(status)))) => self.awaited.push((call, status)),
            (F::Inspect, argument, Some(answer)) => {
                let read = match answer {
                    Value::Saga(Saga::Read(read)) => Some(&**read),
                    _ => None,
                };
                self.reads.push((call, read));
                if matches!(argument, Value::Int(_)) {
                    self.last = Some((call, read));
                }
            }
            (F::Work, Value::Saga(Saga::Task(task)), _) => self.works.push((call, task)),
            (F::Tell, Value::Saga(Saga::Tell(tell)), _) => self.tells.push((call, tell)),
            (F::Effect, Value::Saga(Saga::Effect(effect)), _) if call.outcome() == Kind::Ok => {
                self.effects.push((call, effect));
            }
            _ => {}
        }
    }

    /// Whether a step stands in the world, by what was asked of it before a place of the history; and the entries that say
    /// so.
    pub(super) fn stands(&self, step: &str, before: usize) -> (bool, Vec<u64>) {
        let (mut stands, mut ops) = (false, Vec::new());
        for (call, effect) in self.effects.iter().filter(|(call, effect)| {
            effect.step == step && !effect.refused && effect.kind != "check" && call.start < before
        }) {
            let now = effect.kind == "action";
            if now != stands {
                ops.clear();
            }
            stands = now;
            ops.extend(call.indexes());
        }
        (stands, ops)
    }
}

/// Whether a status is one of a saga that has ended.
pub(super) fn is_closed(status: &str) -> bool {
    matches!(status, "completed" | "compensated" | "cancelled" | "terminated")
}
