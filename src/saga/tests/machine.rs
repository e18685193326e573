//! A saga that tests send events to. What must hold of every event is checked at every one.

use crate::saga::{
    Change, Definition, Event, Refusal, Start, State, TaskKind, TaskRef, TaskStatus, Token, Work, apply,
    start,
};

pub(super) struct Machine {
    pub(super) definition: Definition,
    pub(super) state: State,
    pub(super) now_ms: u64,
}

impl Machine {
    pub(super) fn new(definition: Definition, with: Start, now_ms: u64) -> (Self, Change) {
        let (state, change) = start(&definition, with, now_ms);
        assert_eq!(state.history_len, change.records.len() as u64);
        assert!(change.must_store, "a start is stored");
        (Self { definition, state, now_ms }, change)
    }

    /// What the event would make of the saga.
    pub(super) fn attempt(&self, now_ms: u64, event: Event) -> Result<(State, Change), Refusal> {
        let before = &self.state;
        let (after, change) = apply(before, &self.definition, now_ms, event.clone())?;
        assert!(change.records.iter().all(|record| record.at_ms == now_ms), "records say when");
        assert_eq!(after.history_len, before.history_len + change.records.len() as u64, "{event:?}");
        assert!(after.fence >= before.fence, "fences rise: {event:?}");
        assert!(after.last_letter >= before.last_letter, "letters' numbers rise: {event:?}");
        let only_heard = matches!(event, Event::Heartbeat { .. } | Event::TakenOver);
        assert!(change.must_store || only_heard || after == *before, "a change is stored: {event:?}");
        assert!(!only_heard || !change.must_store, "a sign of life is not stored");
        assert!(
            change.must_store || (change.records.is_empty() && change.outputs.is_empty()),
            "what is told is stored"
        );
        let stored = serde_json::to_string(&after).expect("a state can be written");
        assert_eq!(serde_json::from_str::<State>(&stored).expect("and read"), after);
        Ok((after, change))
    }

    pub(super) fn send(&mut self, event: Event) -> Result<Change, Refusal> {
        let is_tick = event == Event::Tick;
        let last_fence = self.state.fence;
        let hand_out = match &event {
            Event::HandOut { task, .. } => Some(*task),
            _ => None,
        };
        let sent = self.attempt(self.now_ms, event);
        let sent = sent.map(|(state, change)| {
            self.state = state;
            change
        });
        if let (Some(task), Ok(_)) = (hand_out, &sent) {
            assert!(self.token(task).fence > last_fence, "each hand-out has a fence of its own");
        }
        if is_tick && !self.has_empty_sleep() {
            let due_ms = self.state.next_due_ms(&self.definition);
            assert!(
                due_ms.is_none_or(|due_ms| due_ms > self.now_ms),
                "a tick does all that is due: {due_ms:?}"
            );
        }
        sent
    }

    /// A sleep of no time at all that begins in a tick ends with the next.
    fn has_empty_sleep(&self) -> bool {
        self.definition.steps().iter().any(|step| step.work == Work::Sleep { sleep_ms: 0 })
    }

    pub(super) fn token(&self, task: TaskRef) -> Token {
        Token { task, fence: self.state.task(task).expect("a task").fence }
    }

    pub(super) fn tasks(&self) -> impl Iterator<Item = TaskRef> + use<> {
        let steps = self.state.steps.len();
        (0..steps).flat_map(|step| TaskKind::ALL.into_iter().map(move |kind| TaskRef { step, kind }))
    }

    pub(super) fn status(&self, task: TaskRef) -> TaskStatus {
        self.state.task(task).expect("a task").status
    }

    pub(super) fn running(&self) -> Vec<TaskRef> {
        self.tasks().filter(|task| self.status(*task) == TaskStatus::Running).collect()
    }

    pub(super) fn work(&self, task: TaskRef) -> &Work {
        &self.definition.step(task.step).expect("a step").work
    }

    /// What willing workers, children and senders of signals do next, and at last time. `None` where nothing is left to do.
    pub(super) fn willing(&self) -> Option<(u64, Event)> {
        let now = |event| Some((self.now_ms, event));
        if self.state.is_closed() {
            return None;
        }
        if let Some((task, _)) = self.state.ready(&self.definition).next() {
            return now(Event::HandOut { task, worker: "w".to_owned() });
        }
        let running = self.running();
        for task in &running {
            let token = self.token(*task);
            let call = crate::saga::call_of(&self.definition, *task);
            if let Some(call) = call {
                let output = if task.kind == TaskKind::Check { "true".into() } else { "".into() };
                return now(Event::Complete { token, output, is_committed: call.is_txn });
            }
        }
        for task in &running {
            let token = self.token(*task);
            match self.work(*task) {
                Work::Child { .. } => {
                    let cancels = |letter: &crate::saga::Letter| {
                        letter.message == crate::saga::Message::CancelChild { token }
                    };
                    let outcome = match self.state.letters.iter().any(cancels) {
                        true => crate::saga::Outcome::Cancelled,
                        false => crate::saga::Outcome::Completed,
                    };
                    let created_ms = self.state.created_ms;
                    return now(Event::ChildClosed { token, created_ms, outcome, output: "".into() });
                }
                Work::Signal { signal, .. } if self.state.pause.is_none() => {
                    let id = u128::from(self.state.history_len) << 32;
                    let payload = "".into();
                    return now(Event::Signal(crate::saga::Signal { id, name: signal.clone(), payload }));
                }
                _ => {}
            }
        }
        let due_ms = self.state.next_due_ms(&self.definition)?;
        Some((self.now_ms.max(due_ms), Event::Tick))
    }
}
