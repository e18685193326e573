//! The world in which sagas do things: one service that is idempotent by step, and that refuses, once something is undone or
//! was found not to be done, whatever was handed out before that. So nothing that comes late stays.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;

use crate::history::saga::{Effect, Saga};
use crate::history::{F, Op, Recorder, Value};

/// The world of a run.
pub(super) struct World {
    recorder: Arc<Recorder>,
    process: u64,
    places: Mutex<HashMap<(String, String), Place>>,
    /// Requests that are on their way to it.
    flying: AtomicUsize,
}

/// What the world knows of a saga's step.
#[derive(Default)]
struct Place {
    stands: bool,
    /// Attempts of this fence and older ones are refused.
    barred: u64,
}

impl World {
    pub(super) fn new(recorder: Arc<Recorder>) -> Self {
        let process = recorder.new_process();
        Self { recorder, process, places: Mutex::default(), flying: AtomicUsize::new(0) }
    }

    /// Asks for something. Answers whether it was done; of a check, whether the step is done.
    pub(super) fn ask(&self, saga: &str, step: &str, kind: &str, fence: u64) -> bool {
        let mut places = self.places.lock();
        let place = places.entry((saga.to_owned(), step.to_owned())).or_default();
        let refused = kind == "action" && fence <= place.barred;
        match kind {
            "action" if !refused => place.stands = true,
            "compensation" => {
                place.stands = false;
                place.barred = place.barred.max(fence);
            }
            "check" if !place.stands => place.barred = place.barred.max(fence),
            _ => {}
        }
        let answer = if kind == "check" { place.stands } else { !refused };
        let effect = Effect { step: step.to_owned(), kind: kind.to_owned(), fence, refused };
        let invoke = Op::invoke(self.process, F::Effect, Value::Saga(Saga::Effect(effect))).with_key(saga);
        // Written down before anybody else asks, so that the order of the history is that of the world. Where it can't be
        // written, clients, who can't write either, end the run.
        let done = invoke.ok(invoke.value.clone());
        let _ = self.recorder.record(invoke).and_then(|_| self.recorder.record(done));
        answer
    }

    /// A request sets out.
    pub(super) fn sets_out(&self) {
        self.flying.fetch_add(1, Ordering::SeqCst);
    }

    /// It has arrived.
    pub(super) fn arrives(&self) {
        self.flying.fetch_sub(1, Ordering::SeqCst);
    }

    /// Whether requests are on their way.
    pub(super) fn is_expecting(&self) -> bool {
        self.flying.load(Ordering::SeqCst) > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_late_is_refused_and_stands_no_more() {
        let world = World::new(Arc::new(Recorder::in_memory()));
        assert!(world.ask("s", "a", "action", 1));
        assert!(world.ask("s", "a", "check", 2));
        assert!(world.ask("s", "a", "compensation", 3));
        assert!(!world.ask("s", "a", "action", 2) && !world.ask("s", "a", "check", 4));
        assert!(!world.ask("s", "a", "action", 4) && world.ask("s", "a", "action", 5));
        assert!(world.ask("s", "b", "action", 1));
        assert_eq!(world.recorder.len(), 16);
    }
}
