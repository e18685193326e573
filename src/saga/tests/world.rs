//! The world as a saga's workers see it: who got what, what was told, and what may have taken effect because of that. It
//! knows nothing of how the machine comes to what it says, and checks all of it.

use super::machine::Machine;
use crate::saga::{
    Call, Change, CompensationOrder, DefinedStep, Definition, Event, Message, Outcome, Pause, Phase, Record,
    RecordKind, Refusal, Start, State, TaskKind, TaskRef, TaskStatus, Token, Work, call_of,
};

/// A hand-out that counts.
#[derive(Clone, Copy, PartialEq, Debug)]
struct Live {
    token: Token,
    started_ms: u64,
    lease_end_ms: u64,
}

/// What is known of a step since it was begun, or begun again.
#[derive(Clone, Default, Debug)]
struct Facts {
    is_done: bool,
    /// An attempt ended of which nobody said that it did nothing.
    is_unsure: bool,
    is_undone: bool,
    action: Option<Live>,
    compensation: Option<Live>,
    check: Option<Live>,
}

impl Facts {
    fn live(&mut self, kind: TaskKind) -> &mut Option<Live> {
        match kind {
            TaskKind::Action => &mut self.action,
            TaskKind::Compensation => &mut self.compensation,
            TaskKind::Check => &mut self.check,
        }
    }
}

/// All that is known of a saga.
#[derive(Clone, Default, Debug)]
struct Model {
    steps: Vec<Facts>,
    last_fence: u64,
    last_letter: u64,
    is_cancelled: bool,
    is_reset: bool,
    is_terminated: bool,
    /// It was told to go back, or said that it does, and has not begun again since.
    goes_back: bool,
    has_compensated: bool,
    /// Requests that were done: none is done twice.
    requests: Vec<u128>,
}

pub(super) struct World {
    pub(super) machine: Machine,
    model: Model,
    /// What a crash leaves: the state that was stored last, and what was known then.
    stored: (State, Model),
    /// All that was ever handed out, also what does not count any more.
    pub(super) tokens: Vec<Token>,
    /// Those of them that were completed, and still count as that.
    pub(super) completed: Vec<Event>,
    pub(super) resolves: u32,
}

fn token_of(event: &Event) -> Option<Token> {
    match event {
        Event::Return { token }
        | Event::Complete { token, .. }
        | Event::Fail { token, .. }
        | Event::Heartbeat { token }
        | Event::ChildClosed { token, .. } => Some(*token),
        _ => None,
    }
}

impl World {
    pub(super) fn new(definition: Definition) -> Self {
        let (machine, change) = Machine::new(definition, Start::default(), 0);
        let steps = vec![Facts::default(); machine.state.steps.len()];
        let model = Model { steps, ..Model::default() };
        let stored = (machine.state.clone(), model.clone());
        let mut world =
            Self { machine, model, stored, tokens: Vec::new(), completed: Vec::new(), resolves: 0 };
        world.follow(&change.records);
        world.check();
        world.stored = (world.machine.state.clone(), world.model.clone());
        world
    }

    fn step(&self, step: usize) -> &DefinedStep {
        self.machine.definition.step(step).expect("a step")
    }

    fn call(&self, task: TaskRef) -> Option<Call> {
        call_of(&self.machine.definition, task).cloned()
    }

    fn is_txn(&self, step: usize) -> bool {
        matches!(&self.step(step).work, Work::Call(call) if call.is_txn)
    }

    fn may_have_effect(&self, step: usize) -> bool {
        self.model.steps[step].is_done || self.model.steps[step].is_unsure
    }

    fn must_be_undone(&self, step: usize) -> bool {
        self.step(step).compensation.is_some() && self.may_have_effect(step)
    }

    fn is_past_pivot(&self) -> bool {
        self.machine.definition.pivot().is_some_and(|pivot| self.model.steps[pivot].is_done)
    }

    fn is_live(&self, token: Token) -> bool {
        let mut facts = self.model.steps[token.task.step].clone();
        facts.live(token.task.kind).is_some_and(|live| live.token == token) && !self.machine.state.is_closed()
    }

    /// An event whose result could not be stored: it has not been.
    pub(super) fn lose(&self, event: Event) {
        let _ = self.machine.attempt(self.machine.now_ms, event);
    }

    /// Who looked after the saga is no more; another one does from what was stored.
    pub(super) fn crash(&mut self) {
        (self.machine.state, self.model) = self.stored.clone();
        self.send(Event::TakenOver).expect("never refused");
    }

    pub(super) fn send(&mut self, event: Event) -> Result<(), Refusal> {
        let (request, event) = match event {
            Event::Once { request, event } => (Some(request), *event),
            event => (None, event),
        };
        let was_done = request.is_some_and(|request| self.model.requests.contains(&request));
        let before = self.machine.state.clone();
        let is_live = token_of(&event).map(|token| self.is_live(token));
        if let Event::HandOut { task, .. } = &event
            && self.machine.status(*task) == TaskStatus::Ready
            && self.machine.state.pause.is_none()
            && !self.machine.state.is_closed()
        {
            self.may_begin(*task);
        }
        let sent = self.machine.send(match request {
            Some(request) => Event::Once { request, event: Box::new(event.clone()) },
            None => event.clone(),
        });
        match &sent {
            Err(refusal) if was_done => assert_eq!(*refusal, Refusal::Already, "{event:?}"),
            Err(refusal) => {
                assert_eq!(self.machine.state, before, "what is refused changes nothing");
                self.was_refused(&event, is_live, refusal);
            }
            Ok(change) => {
                assert!(!was_done, "a request was done twice: {event:?}");
                assert!(request.is_none() || change.must_store, "that it was done is kept");
                self.model.requests.extend(request);
                assert_ne!(
                    is_live,
                    Some(false),
                    "a hand-out that does not count changed something: {event:?}"
                );
                self.happened(&event, &before, change);
                self.follow(&change.records);
                if change.must_store {
                    self.stored = (self.machine.state.clone(), self.model.clone());
                }
            }
        }
        self.check();
        sent.map(|_| ())
    }

    fn was_refused(&self, event: &Event, is_live: Option<bool>, refusal: &Refusal) {
        let Some(token) = token_of(event) else { return };
        let facts = &self.model.steps[token.task.step];
        match event {
            // Workers of what counts are always heard.
            Event::Return { .. } | Event::Heartbeat { .. } | Event::Fail { .. } => {
                assert!(is_live == Some(false) || self.call(token.task).is_none(), "{event:?}: {refusal:?}");
            }
            Event::Complete { is_committed, .. } => {
                let is_unfit = token.task.kind == TaskKind::Check
                    || self.call(token.task).is_none_or(|call| call.is_txn && !is_committed);
                assert!(is_live == Some(false) || is_unfit, "{event:?}: {refusal:?}");
            }
            Event::ChildClosed { .. } => assert_eq!(is_live, Some(false), "{event:?}: {refusal:?} {facts:?}"),
            _ => {}
        }
        assert!(
            is_live == Some(true)
                || !matches!(refusal, Refusal::Unfit { .. })
                || self.call(token.task).is_none(),
            "{event:?}: {refusal:?}"
        );
    }

    /// Whether the task may be handed out, by what the world knows.
    fn may_begin(&self, task: TaskRef) {
        let definition = &self.machine.definition;
        let own = self.step(task.step);
        let facts = &self.model.steps[task.step];
        let all = || self.model.steps.iter().enumerate();
        match task.kind {
            TaskKind::Action => {
                assert!(!self.model.goes_back, "nothing new is begun on the way back: {task:?}");
                assert!(!facts.is_done && facts.action.is_none(), "nothing is begun twice: {task:?}");
                let mut earlier = all().filter(|(step, _)| self.step(*step).stage < own.stage);
                assert!(
                    earlier.all(|(_, facts)| facts.is_done && !facts.is_undone),
                    "all before is done: {task:?}"
                );
                assert!(all().all(|(_, facts)| facts.compensation.is_none()), "nothing is being undone");
            }
            TaskKind::Compensation => {
                assert!(self.must_be_undone(task.step), "it had no effect: {task:?} {facts:?}");
                assert!(
                    !facts.is_undone && facts.compensation.is_none(),
                    "nothing is undone twice: {task:?}"
                );
                assert!(!self.is_past_pivot(), "there is no way back: {task:?}");
                assert!(all().all(|(_, facts)| facts.action.is_none()), "what runs is waited for: {task:?}");
                if definition.compensation_order() == CompensationOrder::Reverse {
                    let mut later = all().filter(|(step, _)| self.step(*step).stage > own.stage);
                    let is_undone =
                        |(step, facts): (usize, &Facts)| facts.is_undone || !self.must_be_undone(step);
                    assert!(later.all(is_undone), "what came later is undone first: {task:?}");
                }
            }
            TaskKind::Check => {
                assert!(facts.is_unsure && !facts.is_done, "there is something to find out: {facts:?}");
                assert!(facts.action.is_none() && facts.check.is_none(), "its attempt has ended: {facts:?}");
            }
        }
    }

    /// What is known after an event that was accepted.
    fn happened(&mut self, event: &Event, before: &State, change: &Change) {
        let now_ms = self.machine.now_ms;
        match event {
            Event::HandOut { task, .. } => {
                let call = self.call(*task).expect("a worker's task");
                assert!(
                    before.pause.is_none() && !before.is_closed(),
                    "nothing is begun while it stands still"
                );
                let token = self.machine.token(*task);
                assert!(token.fence > self.model.last_fence, "fences rise");
                let whole = now_ms + call.timeouts.start_to_close_ms;
                let lease_end_ms =
                    call.timeouts.heartbeat_ms.map_or(whole, |heartbeat_ms| whole.min(now_ms + heartbeat_ms));
                let live = Live { token, started_ms: now_ms, lease_end_ms };
                *self.model.steps[task.step].live(task.kind) = Some(live);
                self.model.has_compensated |= task.kind == TaskKind::Compensation;
                self.tokens.push(token);
            }
            Event::Return { token } => *self.live(*token) = None,
            Event::Complete { token, output, is_committed } => {
                let is_txn = self.call(token.task).is_some_and(|call| call.is_txn);
                assert!(!is_txn || *is_committed, "a transaction is done once it is committed");
                *self.live(*token) = None;
                let facts = &mut self.model.steps[token.task.step];
                match (token.task.kind, &**output) {
                    (TaskKind::Action, _) => facts.is_done = true,
                    (TaskKind::Compensation, _) => facts.is_undone = true,
                    (TaskKind::Check, b"true") => facts.is_done = true,
                    (TaskKind::Check, _) => facts.is_unsure = false,
                }
                self.completed.push(event.clone());
            }
            Event::Fail { token, failure } => self.ended(*token, failure.did_nothing),
            Event::Heartbeat { token } => self.heard(*token),
            Event::Tick => {
                for task in self.machine.tasks() {
                    if let Some(live) = *self.model.steps[task.step].live(task.kind)
                        && live.lease_end_ms <= now_ms
                    {
                        self.ended(live.token, false);
                    }
                }
            }
            Event::TakenOver => {
                for task in self.machine.tasks() {
                    if let Some(live) = *self.model.steps[task.step].live(task.kind) {
                        self.heard(live.token);
                    }
                }
            }
            Event::Cancel { .. } => {
                assert!(!self.is_past_pivot(), "it can't be cancelled any more");
                (self.model.is_cancelled, self.model.goes_back) = (true, true);
            }
            Event::Terminate { .. } => self.model.is_terminated = true,
            Event::Reset { step } => {
                let pivot = self.machine.definition.pivot();
                assert!(
                    !self.is_past_pivot() || pivot.is_none_or(|pivot| *step > pivot),
                    "there is no way back"
                );
                (self.model.is_reset, self.model.goes_back) = (true, true);
            }
            Event::Resolve { step, is_done } => {
                let facts = &mut self.model.steps[*step];
                let is_pivot = self.machine.definition.pivot() == Some(*step) && !facts.is_done;
                match (is_pivot, before.phase) {
                    (true, _) if *is_done => facts.is_done = true,
                    (true, _) => facts.is_unsure = false,
                    (false, Phase::Compensating { .. }) => facts.is_undone = true,
                    (false, _) => facts.is_done = true,
                }
                assert!(is_pivot || *is_done, "what must get done is not given up");
            }
            Event::ChildClosed { token, outcome, .. } => {
                *self.live(*token) = None;
                let facts = &mut self.model.steps[token.task.step];
                match outcome {
                    Outcome::Completed => facts.is_done = true,
                    Outcome::Compensated | Outcome::Cancelled => {}
                    Outcome::Terminated => facts.is_unsure = true,
                }
            }
            Event::Signal(_)
            | Event::Pause { .. }
            | Event::Resume
            | Event::Retry { .. }
            | Event::Delivered { .. } => {}
            Event::Begun => {}
            Event::Once { .. } => unreachable!("it was taken apart"),
        }
        self.model.last_fence = self.machine.state.fence;
        let is_told = |step: usize| change.outputs.iter().any(|(told, _)| *told == step);
        if let Event::Complete { token, .. } = event
            && token.task.kind == TaskKind::Action
        {
            assert!(is_told(token.task.step), "what it came to is told");
        }
    }

    fn live(&mut self, token: Token) -> &mut Option<Live> {
        self.model.steps[token.task.step].live(token.task.kind)
    }

    /// An attempt of a worker has ended without success.
    fn ended(&mut self, token: Token, did_nothing: bool) {
        *self.live(token) = None;
        let is_unsure = token.task.kind == TaskKind::Action && !did_nothing && !self.is_txn(token.task.step);
        self.model.steps[token.task.step].is_unsure |= is_unsure;
    }

    /// A sign of life, or what counts as one.
    fn heard(&mut self, token: Token) {
        let now_ms = self.machine.now_ms;
        let Some(call) = self.call(token.task) else { return };
        let (whole_ms, heartbeat_ms) = (call.timeouts.start_to_close_ms, call.timeouts.heartbeat_ms);
        if let (Some(live), Some(heartbeat_ms)) = (self.live(token), heartbeat_ms) {
            let end_ms = (live.started_ms + whole_ms).min(now_ms + heartbeat_ms);
            live.lease_end_ms = live.lease_end_ms.max(end_ms);
        }
    }

    /// What follows by itself, as history tells it.
    fn follow(&mut self, records: &[Record]) {
        for record in records {
            match &record.what {
                RecordKind::Completed { kind: TaskKind::Action, .. } => {
                    let step = record.step.expect("of a step");
                    if matches!(self.step(step).work, Work::Sleep { .. } | Work::Signal { .. }) {
                        self.model.steps[step].is_done = true;
                    }
                }
                RecordKind::Compensating { .. } => self.model.goes_back = true,
                RecordKind::TooLateToGoBack => {
                    assert!(self.is_past_pivot(), "only the pivot is too late for");
                    self.model.goes_back = false;
                }
                RecordKind::WentBack => self.went_back(record.step.expect("from a step on")),
                RecordKind::Closed { outcome, not_undone } => self.closed(*outcome, not_undone),
                _ => {}
            }
        }
        for letter in self.machine.state.letters.clone() {
            if letter.number <= self.model.last_letter {
                continue;
            }
            self.model.last_letter = letter.number;
            if let Message::StartChild { token } = letter.message {
                let started_ms = self.machine.now_ms;
                *self.live(token) = Some(Live { token, started_ms, lease_end_ms: u64::MAX });
                self.tokens.push(token);
            }
        }
    }

    fn all_is_undone(&self, from: usize) {
        for (step, facts) in self.model.steps.iter().enumerate().skip(from) {
            assert!(facts.action.is_none() && facts.compensation.is_none(), "nothing runs: {facts:?}");
            assert!(!self.must_be_undone(step) || facts.is_undone, "step {step} was not undone: {facts:?}");
        }
    }

    fn went_back(&mut self, first: usize) {
        assert!(self.model.is_reset, "somebody wanted that");
        self.all_is_undone(first);
        for facts in self.model.steps.iter_mut().skip(first) {
            *facts = Facts::default();
        }
        let gone = |event: &Event| token_of(event).is_some_and(|token| token.task.step >= first);
        self.completed.retain(|event| !gone(event));
        (self.model.is_reset, self.model.goes_back, self.model.has_compensated) = (false, false, false);
    }

    fn closed(&mut self, outcome: Outcome, not_undone: &[String]) {
        let all = || self.model.steps.iter().enumerate();
        match outcome {
            Outcome::Completed => {
                assert!(
                    all().all(|(_, facts)| facts.is_done && !facts.is_undone),
                    "all is done: {:?}",
                    self.model
                );
                assert!(!self.model.has_compensated && not_undone.is_empty());
            }
            Outcome::Compensated | Outcome::Cancelled => {
                self.all_is_undone(0);
                assert!(outcome != Outcome::Cancelled || self.model.is_cancelled, "somebody wanted that");
                let pivot = self.machine.definition.pivot();
                assert!(pivot.is_none_or(|pivot| !self.may_have_effect(pivot)), "there was a way back");
                assert!(not_undone.is_empty());
            }
            Outcome::Terminated => {
                assert!(self.model.is_terminated, "somebody wanted that");
                let stands = |(step, facts): &(usize, &Facts)| {
                    let is_wait = matches!(self.step(*step).work, Work::Sleep { .. } | Work::Signal { .. });
                    // What is not committed by then can't be any more.
                    let is_txn = matches!(&self.step(*step).work, Work::Call(call) if call.is_txn);
                    let may_come = facts.action.is_some() && !is_txn;
                    (self.may_have_effect(*step) || may_come) && !facts.is_undone && !is_wait
                };
                let expected: Vec<_> =
                    all().filter(stands).map(|(step, _)| self.step(step).name.clone()).collect();
                assert_eq!(not_undone, expected);
            }
        }
    }

    /// Whether the machine says the same as the world knows.
    fn check(&self) {
        let state = &self.machine.state;
        for (step, facts) in self.model.steps.iter().enumerate() {
            let status = |kind| self.machine.status(TaskRef { step, kind });
            let action = status(TaskKind::Action);
            let is_wait = matches!(self.step(step).work, Work::Sleep { .. } | Work::Signal { .. });
            let shown = || format!("step {step}: {facts:?} {:?}", state.steps[step]);
            assert_eq!(action == TaskStatus::Done, facts.is_done, "{}", shown());
            let has_output = state.steps[step].output_bytes > 0;
            assert!(facts.is_done || !has_output, "what was gone back over does not count: {}", shown());
            assert!(is_wait || (action == TaskStatus::Running) == facts.action.is_some(), "{}", shown());
            assert_eq!(status(TaskKind::Compensation) == TaskStatus::Done, facts.is_undone, "{}", shown());
            let runs = |kind| status(kind) == TaskStatus::Running;
            assert_eq!(runs(TaskKind::Compensation), facts.compensation.is_some(), "{}", shown());
            assert_eq!(runs(TaskKind::Check), facts.check.is_some(), "{}", shown());
            assert_eq!(state.steps[step].may_have_effect(), self.may_have_effect(step), "{}", shown());
            for live in [facts.action, facts.compensation, facts.check].into_iter().flatten() {
                let task = state.task(live.token.task).expect("a task");
                assert_eq!((task.fence, task.due_ms), (live.token.fence, live.lease_end_ms), "{}", shown());
            }
        }
        let is_compensated = matches!(state.outcome(), Some(Outcome::Compensated | Outcome::Cancelled));
        assert!(!self.is_past_pivot() || !is_compensated, "there was no way back");
        let ready: Vec<TaskRef> = state.ready(&self.machine.definition).map(|(task, _)| task).collect();
        assert!(ready.is_empty() || (state.pause.is_none() && !state.is_closed()));
        // It stands still only where somebody is told to see to it, and else somebody or time can go on with it.
        let waits = |task: TaskRef| {
            call_of(&self.machine.definition, task).is_none()
                && self.machine.status(task) == TaskStatus::Running
        };
        assert!(
            state.is_closed()
                || state.pause.is_some()
                || !ready.is_empty()
                || state.next_due_ms(&self.machine.definition).is_some()
                || self.machine.tasks().any(waits),
            "it is stuck: {state:?}"
        );
    }

    /// What was completed is told to be so already, as long as that counts.
    pub(super) fn repeat(&mut self) {
        for event in self.completed.clone() {
            assert_eq!(self.send(event.clone()), Err(Refusal::Already), "{event:?}");
        }
    }

    /// All are willing: workers succeed, and people see to what stands still. So it comes to its end.
    pub(super) fn settle(&mut self, choices: u32) {
        for round in 0..1_000 {
            if self.machine.state.is_closed() {
                return self.repeat();
            }
            self.resolves += 1;
            let is_odd = (choices >> (self.resolves % 32)) & 1 == 1;
            let pause = self.machine.state.pause.clone();
            let seen_to = match pause {
                Some(Pause::Asked { .. }) => self.send(Event::Resume),
                Some(Pause::Exhausted { .. }) if is_odd => self.send(Event::Retry { step: None }),
                Some(Pause::Exhausted { step }) => self.send(Event::Resolve { step, is_done: true }),
                Some(Pause::Unknown { .. }) if round % 3 == 0 => {
                    let _ = self.send(Event::Retry { step: None });
                    Ok(())
                }
                Some(Pause::Unknown { step }) => self.send(Event::Resolve { step, is_done: is_odd }),
                None => Ok(()),
            };
            assert_eq!(seen_to, Ok(()), "what is said to help does");
            let (now_ms, event) = match self.machine.willing() {
                Some(next) => next,
                None if self.machine.state.pause.is_some() => continue,
                None if self.machine.state.is_closed() => continue,
                None => panic!("it is stuck: {:?}", self.machine.state),
            };
            self.machine.now_ms = now_ms;
            let event = match event {
                Event::Complete { token, .. } if token.task.kind == TaskKind::Check && !is_odd => {
                    Event::Complete { token, output: "false".into(), is_committed: false }
                }
                event => event,
            };
            assert_eq!(self.send(event.clone()), Ok(()), "{event:?} {:?}", self.machine.state);
        }
        panic!("it does not come to an end: {:?}", self.machine.state);
    }
}
