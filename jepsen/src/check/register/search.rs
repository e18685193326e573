//! The search for an order: Wing and Gong's, with Lowe's memory.
//!
//! The events of the operations that are not in the order yet stand in a linked list. Those invoked before the
//! first completion of the list may come next. After each choice the pair of what is in the order and what the
//! register holds is remembered, so that it is not tried again. On top of that:
//!
//! - A read that may come next and sees what the register holds comes next: it changes nothing.
//! - A write whose value nobody needs any more is *silent*. Silent writes that may come next are put just
//!   before the next other write, for which they make no difference.
//! - An operation whose outcome is unknown, and that somebody needs, comes right before one that needs it and may
//!   come next. Of such operations that do the same, the one invoked first comes first. So they are looked up by
//!   the value that they write, and only certain operations stand in the list.
//! - A value that is overwritten while somebody still needs it, and that nobody can write again, ends the try.
//!   This looks ahead, so the tries of such a search end before the place at which people see what is wrong; a
//!   search for an explanation goes on to there.

use std::collections::HashSet;

use super::model::{Action, NIL, Register, Step, ValueId};

/// The last steps of an order that are kept for an explanation.
const KEPT: usize = 6;

/// How a search ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// There is an order.
    Linearizable,
    /// There is none.
    Impossible,
    /// There were more states than allowed.
    Bound,
}

/// The longest order of certain operations that was found, and what comes after it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Stuck {
    /// How many certain operations are in it.
    pub certain: usize,
    /// Its last steps.
    pub last: Vec<usize>,
    /// What the register holds after it.
    pub state: ValueId,
    /// The step that must come before anything that was invoked later, and cannot.
    pub blocked: Option<usize>,
    /// Steps that could come next as to real time, the blocked one among them.
    pub open: Vec<usize>,
}

/// How a search ended, and what it took.
#[derive(Clone, Debug)]
pub(super) struct SearchResult {
    pub outcome: Outcome,
    /// The furthest that it got without an end.
    pub stuck: Stuck,
    pub states: usize,
}

/// Looks for an order, keeping `max_states` states at most. `ahead` says whether it ends a try as soon as it can
/// only fail, which is fast, or where it fails, which explains more.
pub(super) fn search(register: &Register, max_states: usize, ahead: bool) -> SearchResult {
    let mut search = Search::new(register);
    search.ahead = ahead;
    let mut seen: HashSet<(u128, ValueId)> = HashSet::new();
    let mut frames: Vec<Frame> = Vec::new();
    let mut stuck = Stuck::default();
    let outcome = loop {
        search.take_reads();
        if search.certain_left == 0 {
            break Outcome::Linearizable;
        }
        if seen.len() >= max_states {
            break Outcome::Bound;
        }
        if seen.insert(search.fingerprint()) {
            if seen.len() == 1 || stuck.certain < search.certain_taken() {
                stuck = search.stuck();
            }
            let (taken, state, choices) = (search.order.len(), search.state, search.choices());
            frames.push(Frame { taken, state, choices, next: 0 });
        }
        if !search.try_next(&mut frames) {
            break Outcome::Impossible;
        }
    };
    SearchResult { outcome, stuck, states: seen.len() }
}

/// A state to come back to, and what is still to be tried there.
struct Frame {
    taken: usize,
    state: ValueId,
    choices: Vec<Choice>,
    next: usize,
}

#[derive(Clone, Copy, Debug)]
enum Choice {
    /// This step; before a write, also all silent writes.
    Step(usize),
    /// All silent writes.
    Silent,
}

/// Before the first event of the list.
const HEAD: usize = 0;

/// What is in the order, and what is not yet. The invocation of the certain step `i` is event `2 i + 1`, its
/// completion event `2 i + 2`.
struct Search<'a> {
    steps: &'a [Step],
    next: Vec<usize>,
    previous: Vec<usize>,
    /// Steps in the order.
    order: Vec<usize>,
    /// Whether a step is in the order.
    taken: Vec<bool>,
    /// By value: steps that may never take effect and set it, in the order of invocations.
    unknown: Vec<Vec<usize>>,
    /// The sum of the random numbers of the steps in the order: two sets have the same with a chance of
    /// 2^-128.
    set: u128,
    state: ValueId,
    certain: usize,
    certain_left: usize,
    observers: Vec<u32>,
    producers: Vec<u32>,
    maybe_observed: &'a [bool],
    /// Whether a choice is refused as soon as it can only fail.
    ahead: bool,
}

impl<'a> Search<'a> {
    fn new(register: &'a Register) -> Self {
        let steps = register.steps.as_slice();
        let mut events: Vec<(usize, usize)> = Vec::with_capacity(steps.len() * 2);
        let mut unknown = vec![Vec::new(); register.values.len()];
        for (place, step) in steps.iter().enumerate() {
            match step.action {
                _ if step.is_certain() => {
                    events.extend([(step.start, 2 * place + 1), (step.end, 2 * place + 2)]);
                }
                Action::Write(new) | Action::Cas(_, new) => unknown[new as usize].push(place),
                Action::Read(_) => {}
            }
        }
        events.sort_unstable();
        let mut next = vec![HEAD; 2 * steps.len() + 1];
        let mut previous = next.clone();
        let mut last = HEAD;
        for (_, event) in events {
            next[last] = event;
            previous[event] = last;
            last = event;
        }
        next[last] = HEAD;
        previous[HEAD] = last;
        let certain = steps.iter().filter(|step| step.is_certain()).count();
        Search {
            steps,
            next,
            previous,
            order: Vec::with_capacity(steps.len()),
            taken: vec![false; steps.len()],
            unknown,
            set: 0,
            state: NIL,
            certain,
            certain_left: certain,
            observers: register.observers.clone(),
            producers: register.producers.clone(),
            maybe_observed: &register.maybe_observed,
            ahead: true,
        }
    }

    fn certain_taken(&self) -> usize {
        self.certain - self.certain_left
    }

    /// Whether nobody who is not in the order needs this value.
    fn is_silent(&self, value: ValueId) -> bool {
        self.observers[value as usize] == 0 && !self.maybe_observed[value as usize]
    }

    /// What tells this state from others. Values that nobody needs are all alike.
    fn fingerprint(&self) -> (u128, ValueId) {
        (self.set, if self.is_silent(self.state) { ValueId::MAX } else { self.state })
    }

    /// The certain steps that may come next as to real time.
    fn open(&self) -> impl Iterator<Item = usize> {
        let mut event = self.next[HEAD];
        std::iter::from_fn(move || {
            let found = (event % 2 == 1).then_some(event / 2)?;
            event = self.next[event];
            Some(found)
        })
    }

    /// The step of the first completion in the list: it must come before everything invoked after it.
    fn blocked(&self) -> Option<usize> {
        let mut event = self.next[HEAD];
        while event % 2 == 1 {
            event = self.next[event];
        }
        (event != HEAD).then(|| event / 2 - 1)
    }

    fn stuck(&self) -> Stuck {
        Stuck {
            certain: self.certain_taken(),
            last: self.order[self.order.len().saturating_sub(KEPT)..].to_vec(),
            state: self.state,
            blocked: self.blocked(),
            open: self.open().collect(),
        }
    }

    /// Makes the next choice that is left, going back as far as needed. False if none is left.
    fn try_next(&mut self, frames: &mut Vec<Frame>) -> bool {
        while let Some(frame) = frames.last_mut() {
            self.undo(frame.taken, frame.state);
            let Some(choice) = frame.choices.get(frame.next) else {
                frames.pop();
                continue;
            };
            frame.next += 1;
            if self.choose(*choice) {
                return true;
            }
        }
        false
    }

    /// Puts all reads into the order that may come next and see what the register holds.
    fn take_reads(&mut self) {
        let mut before = HEAD;
        loop {
            let event = self.next[before];
            if event.is_multiple_of(2) {
                return;
            }
            if self.steps[event / 2].action == Action::Read(self.state) {
                self.take(event / 2);
            } else {
                before = event;
            }
        }
    }

    /// What can be tried: steps that complete early come first.
    fn choices(&self) -> Vec<Choice> {
        let mut silent = false;
        let mut steps = Vec::new();
        let mut needed = Vec::new();
        for place in self.open() {
            match self.steps[place].action {
                Action::Read(value) => needed.push(value),
                Action::Write(value) if self.is_silent(value) => silent = true,
                Action::Write(_) => steps.push(place),
                Action::Cas(old, _) if old == self.state => steps.push(place),
                Action::Cas(old, _) => needed.push(old),
            }
        }
        steps.sort_by_key(|place| self.steps[*place].end);
        steps.extend(self.unknown_choices(needed));
        steps.into_iter().map(Choice::Step).chain(silent.then_some(Choice::Silent)).collect()
    }

    /// Steps with unknown outcome that lead to one of the needed values.
    fn unknown_choices(&self, mut needed: Vec<ValueId>) -> Vec<usize> {
        let Some(limit) = self.blocked().map(|place| self.steps[place].end) else { return Vec::new() };
        let mut steps = Vec::new();
        let mut next = 0;
        while let Some(value) = needed.get(next) {
            next += 1;
            if needed[..next - 1].contains(value) {
                continue;
            }
            let mut actions: Vec<Action> = Vec::new();
            for place in &self.unknown[*value as usize] {
                let Step { action, start, .. } = self.steps[*place];
                if start > limit {
                    break;
                }
                if self.taken[*place] || actions.contains(&action) {
                    continue;
                }
                actions.push(action);
                if !matches!(action, Action::Cas(old, _) if old != self.state) {
                    steps.push(*place);
                }
            }
            // A swap may come after another unknown step that writes what it expects.
            needed.extend(actions.into_iter().filter_map(|action| match action {
                Action::Cas(old, _) if old != self.state => Some(old),
                _ => None,
            }));
        }
        steps
    }

    /// Puts a choice into the order. False if it cannot lead to an end; then [`Search::undo`] is due.
    fn choose(&mut self, choice: Choice) -> bool {
        let before = self.state;
        match choice {
            Choice::Silent => self.take_silent(),
            Choice::Step(place) => {
                if matches!(self.steps[place].action, Action::Write(_)) {
                    self.take_silent();
                }
                self.take(place);
            }
        }
        let gone = before as usize;
        !self.ahead || before == self.state || self.observers[gone] == 0 || self.producers[gone] > 0
    }

    /// Puts all silent writes into the order that may come next.
    fn take_silent(&mut self) {
        let silent: Vec<usize> = self
            .open()
            .filter(
                |place| matches!(self.steps[*place].action, Action::Write(value) if self.is_silent(value)),
            )
            .collect();
        silent.into_iter().for_each(|place| self.take(place));
    }

    fn take(&mut self, place: usize) {
        let step = self.steps[place];
        self.taken[place] = true;
        if step.is_certain() {
            self.unlink(2 * place + 1);
            self.unlink(2 * place + 2);
            self.certain_left -= 1;
        }
        self.count(&step, u32::wrapping_sub);
        match step.action {
            Action::Read(_) => {}
            Action::Write(new) | Action::Cas(_, new) => self.state = new,
        }
        self.set ^= number_of(place);
        self.order.push(place);
    }

    /// Goes back to an order of `taken` steps, after which the register held `state`.
    fn undo(&mut self, taken: usize, state: ValueId) {
        while self.order.len() > taken {
            let Some(place) = self.order.pop() else { return };
            let step = self.steps[place];
            self.taken[place] = false;
            if step.is_certain() {
                self.link(2 * place + 2);
                self.link(2 * place + 1);
                self.certain_left += 1;
            }
            self.count(&step, u32::wrapping_add);
            self.set ^= number_of(place);
        }
        self.state = state;
    }

    /// Takes a step out of the numbers of those that need and write values, or puts it back.
    fn count(&mut self, step: &Step, change: fn(u32, u32) -> u32) {
        match step.action {
            Action::Read(value) => self.observers[value as usize] = change(self.observers[value as usize], 1),
            Action::Write(value) => {
                self.producers[value as usize] = change(self.producers[value as usize], 1)
            }
            Action::Cas(old, new) => {
                let observers = &mut self.observers[old as usize];
                *observers = change(*observers, u32::from(step.is_certain()));
                self.producers[new as usize] = change(self.producers[new as usize], 1);
            }
        }
    }

    fn unlink(&mut self, event: usize) {
        let (before, after) = (self.previous[event], self.next[event]);
        self.next[before] = after;
        self.previous[after] = before;
    }

    fn link(&mut self, event: usize) {
        let (before, after) = (self.previous[event], self.next[event]);
        self.next[before] = event;
        self.previous[after] = event;
    }
}

/// A number for a step, the same in each run, that looks random.
fn number_of(place: usize) -> u128 {
    let half = |seed: u64| {
        let mut mixed = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    };
    let place = place as u64;
    (u128::from(half(2 * place + 1)) << 64) | u128::from(half(2 * place + 2))
}
