//! Clients: what they want, and how the reads of theirs find their way through locks.

use std::collections::BTreeMap;

use kvorum::shard::{Fates, Look, PageLook};
use kvorum::txn::{Action, Event, Inquiry, Learnt, Step, TxnCommit, Verdict};
use kvorum::types::{
    Expect, Lock, Operation, Outcome, Record, Refusal, RequestId, Timestamp, TxnPart, TxnWrite,
};

use crate::history::{Kind, Operated, Seen};
use crate::message::{Address, Answer, How, Message, Query, Question};
use crate::world::{Task, World};

/// What a token stands for.
#[derive(Clone, Copy, Debug)]
enum Asked {
    Time,
    Read,
    /// A question of the inquiry at this place.
    Inquiry(usize, Step),
    Commit,
    Single,
}

/// The read under way.
#[derive(Debug)]
struct Reading {
    question: Question,
    at: Timestamp,
    fates: Fates,
    /// It has learnt of a transaction what must be confirmed behind a fresh read index.
    confirm: bool,
    inquiries: Vec<Option<Inquiry>>,
}

#[derive(Debug)]
pub struct Client {
    pub operation: usize,
    kind: Kind,
    task: usize,
    /// What is still to be read, the next one last.
    to_read: Vec<Question>,
    reading: Option<Reading>,
    at: Timestamp,
    part: TxnPart,
    asked: BTreeMap<u32, Asked>,
    last_token: u32,
    retries: u32,
}

impl World {
    /// A client begins an operation.
    pub fn start_operation(&mut self) {
        let weights = self.config.mix;
        let mut place = self.rng.below(weights.iter().sum());
        let mut kinds = Kind::ALL.into_iter().zip(weights);
        let kind = kinds.find_map(|(kind, weight)| {
            let found = place < weight;
            place = place.saturating_sub(weight);
            found.then_some(kind)
        });
        let kind = kind.unwrap_or(Kind::Transaction);
        let operation = self.history.len();
        let task = self.tasks.len();
        self.history.push(Operated::new(kind, self.now));
        self.tasks.push(Task::Gone);
        let mut client = Client {
            operation,
            kind,
            task,
            to_read: Vec::new(),
            reading: None,
            at: Timestamp::MAX,
            part: TxnPart::default(),
            asked: BTreeMap::new(),
            last_token: 0,
            retries: 0,
        };
        match kind {
            Kind::Transaction | Kind::Snapshot => self.plan_transaction(&mut client),
            Kind::Latest => client.to_read.push(Question::Key(self.some_key())),
            Kind::Single => self.plan_single(&mut client),
        }
        self.note(|| {
            format!(
                "client {task} begins op{operation} {kind:?}: reads {:?}, {:?}",
                client.to_read, client.part
            )
        });
        match kind {
            Kind::Transaction | Kind::Snapshot => client.ask_time(self),
            Kind::Latest => client.read_next(self),
            Kind::Single => client.send_single(self),
        }
        self.tasks[task] = Task::Client(Box::new(client));
    }

    fn plan_transaction(&mut self, client: &mut Client) {
        let count = if self.rng.percent(self.config.several_keys) { 2 + self.rng.below(2) } else { 1 };
        for _ in 0..count {
            let key = self.some_key();
            let known = client.part.reads.contains(&key)
                || client.part.writes.iter().any(|write| *write.key() == key);
            if known {
                continue;
            }
            let choice = if client.kind == Kind::Snapshot { 0 } else { self.rng.below(4) };
            if choice != 1 {
                client.part.reads.push(key.clone());
            }
            if choice != 0 {
                client.part.writes.push(self.some_write(key));
            }
        }
        if client.kind == Kind::Transaction && client.part.writes.is_empty() {
            let key = client.part.reads[0].clone();
            client.part.writes.push(self.some_write(key));
        }
        if self.rng.percent(self.config.ranges) {
            client.part.ranges.push(self.some_range());
        }
        let ranges = client.part.ranges.iter();
        let pages = ranges.flat_map(|range| self.cut.iter().filter_map(|shard| range.intersect(shard)));
        client.to_read.extend(pages.map(Question::Page));
        client.to_read.extend(client.part.reads.iter().cloned().map(Question::Key));
    }

    fn plan_single(&mut self, client: &mut Client) {
        let (key, number) = (self.some_key(), self.some_number());
        let value = number.to_string().into();
        let operation = match self.rng.below(6) {
            0 => Operation::Delete { key },
            1 => Operation::Add { key, delta: number },
            2 => Operation::CompareAndSwap { key, expect: Expect::Absent, value: Some(value) },
            3 => Operation::CompareAndSwap { key, expect: Expect::Present, value: Some(value) },
            _ => Operation::Put { key, value },
        };
        let seen = self.time.before(self.rng.pick(&[0, 0, 1, 20]));
        let operated = &mut self.history[client.operation];
        operated.id = Some(RequestId { seen, unique: client.operation as u128 + 1 });
        operated.operation = Some(operation);
    }

    fn some_write(&mut self, key: bytes::Bytes) -> TxnWrite {
        let number = self.some_number();
        match self.rng.below(8) {
            0 => TxnWrite::Delete { key },
            1 => TxnWrite::Add { key, delta: number },
            _ => TxnWrite::Put { key, value: number.to_string().into() },
        }
    }
}

impl Client {
    fn token(&mut self, asked: Asked) -> Address {
        self.last_token += 1;
        self.asked.insert(self.last_token, asked);
        Address { task: self.task, token: self.last_token }
    }

    fn ask_time(&mut self, world: &mut World) {
        let from = self.token(Asked::Time);
        world.send(Message::AskTime { from });
    }

    fn operated<'w>(&self, world: &'w mut World) -> &'w mut Operated {
        &mut world.history[self.operation]
    }

    /// The operation is over, for the client.
    fn over(&mut self) {
        self.asked.clear();
        self.reading = None;
        self.to_read.clear();
    }

    /// Whether it still waits for something.
    pub fn lives(&self) -> bool {
        !self.asked.is_empty()
    }

    fn done(&mut self, world: &mut World) {
        self.over();
        let now = world.now;
        self.operated(world).done = Some(now);
    }

    pub fn on_time(&mut self, world: &mut World, token: u32, ts: Timestamp) {
        if !matches!(self.asked.remove(&token), Some(Asked::Time)) {
            return;
        }
        if self.kind != Kind::Latest {
            self.at = ts;
            self.operated(world).at = ts;
            return self.read_next(world);
        }
        // A latest read that met a lock goes on as a snapshot (rule R3).
        if let Some(reading) = &mut self.reading {
            reading.at = ts;
            self.look(world);
        }
    }

    // ---- reads ----

    fn read_next(&mut self, world: &mut World) {
        let Some(question) = self.to_read.pop() else { return self.read_all(world) };
        let (at, fates) = (self.at, Fates::new());
        self.reading = Some(Reading { question, at, fates, confirm: false, inquiries: Vec::new() });
        self.look(world);
    }

    /// Asks for what is being read, with what is known of transactions by now.
    fn look(&mut self, world: &mut World) {
        let Some(reading) = &self.reading else { return };
        let how = match world.rng.percent(world.config.reads_follower) {
            false => How::Leader,
            true if reading.confirm || reading.at == Timestamp::MAX || world.rng.percent(50) => How::Index,
            true => How::Closed,
        };
        let shard = world.shard_of(reading.question.key());
        let (question, at, fates) = (reading.question.clone(), reading.at, reading.fates.clone());
        let query = Query { from: self.token(Asked::Read), question, at, fates, how };
        world.send(Message::Query { shard, query });
    }

    pub fn on_answer(&mut self, world: &mut World, token: u32, answer: Answer) {
        match (self.asked.remove(&token), answer) {
            (Some(Asked::Read), Answer::Failed) => self.look(world),
            (Some(Asked::Read | Asked::Inquiry(..)), Answer::TooOld) => self.over(),
            (Some(Asked::Read), Answer::Index { query, entries }) => {
                let shard = world.shard_of(query.question.key());
                let query = Query { from: self.token(Asked::Read), how: How::Follower { entries }, ..query };
                world.send(Message::Query { shard, query });
            }
            (Some(Asked::Read), Answer::Key(Look::Locked(lock))) => self.met(world, &[lock]),
            (Some(Asked::Read), Answer::Page(PageLook::Locked(locks))) => self.met(world, &locks),
            (Some(Asked::Read), Answer::Key(Look::Value(record))) => self.saw_key(world, record),
            (Some(Asked::Read), Answer::Page(PageLook::Page(page))) => {
                assert!(page.next.is_none(), "a page holds all");
                if let Some(Reading { question: Question::Page(range), .. }) = self.reading.take() {
                    world.note(|| format!("client {} read {range:?} = {:?}", self.task, page.rows));
                    self.operated(world).seen.push(Seen::Range { range, rows: page.rows });
                }
                self.read_next(world);
            }
            (Some(Asked::Inquiry(place, step)), answer) => self.inquiry(world, place, step, answer),
            _ => {}
        }
    }

    fn saw_key(&mut self, world: &mut World, record: Option<Record>) {
        if let Some(Reading { question: Question::Key(key), .. }) = self.reading.take() {
            world.note(|| format!("client {} read {key:?} = {record:?}", self.task));
            self.operated(world).seen.push(Seen::Key { key, record });
        }
        self.read_next(world);
    }

    /// Locks are in the way.
    fn met(&mut self, world: &mut World, locks: &[Lock]) {
        let Some(reading) = &mut self.reading else { return };
        for lock in locks {
            let old = world.time.before(world.config.lock_ttl_ms) > lock.prepare_ts;
            if old && world.rng.percent(30) {
                world.recover(lock);
            }
        }
        if reading.at == Timestamp::MAX {
            return self.ask_time(world);
        }
        let at = reading.at;
        let started: Vec<_> = locks.iter().map(|lock| Inquiry::start(lock, at)).collect();
        reading.inquiries.clear();
        for (place, (inquiry, actions)) in started.into_iter().enumerate() {
            if let Some(reading) = &mut self.reading {
                reading.inquiries.push(Some(inquiry));
            }
            self.carry_out(world, place, actions);
        }
    }

    fn carry_out(&mut self, world: &mut World, place: usize, actions: Vec<Action>) {
        let Some(txn) = self.inquiring(place).map(|inquiry| inquiry.id()) else { return };
        for action in actions {
            let (step, question, at) = match action {
                Action::Ask { step, primary, at } => (step, Question::Status { primary, txn }, at),
                Action::Look { step, key, at } => (step, Question::LockOf { key, txn }, at),
                other => panic!("an inquiry does nothing but ask, not {other:?}"),
            };
            let (from, at) = (self.token(Asked::Inquiry(place, step)), at.unwrap_or(Timestamp::MAX));
            let shard = world.shard_of(question.key());
            let query = Query { from, question, at, fates: Fates::new(), how: How::Leader };
            world.send(Message::Query { shard, query });
        }
    }

    fn inquiring(&mut self, place: usize) -> Option<&mut Inquiry> {
        self.reading.as_mut()?.inquiries.get_mut(place)?.as_mut()
    }

    fn inquiry(&mut self, world: &mut World, place: usize, step: Step, answer: Answer) {
        let Some(inquiry) = self.inquiring(place) else { return };
        let mut actions = Vec::new();
        let learnt = match answer {
            Answer::Status(status) => inquiry.on(Event::Status { step, status }, &mut actions),
            Answer::LockOf(locked) => inquiry.on(Event::Looked { step, locked }, &mut actions),
            _ => {
                let failed = inquiry.on(Event::Failed { step }, &mut actions);
                failed.or(inquiry.on(Event::Resend, &mut actions))
            }
        };
        self.carry_out(world, place, actions);
        if let Some(learnt) = learnt {
            self.learnt(world, place, learnt);
        }
    }

    fn learnt(&mut self, world: &mut World, place: usize, learnt: Learnt) {
        let Some(txn) = self.inquiring(place).map(|inquiry| inquiry.id()) else { return };
        world.note(|| format!("client {} learns of {txn}: {learnt:?}", self.task));
        let Some(reading) = &mut self.reading else { return };
        reading.inquiries[place] = None;
        reading.fates.insert(txn, learnt.fate);
        reading.confirm |= learnt.confirm;
        if reading.inquiries.iter().all(Option::is_none) {
            self.look(world);
        }
    }

    fn read_all(&mut self, world: &mut World) {
        match self.kind {
            Kind::Snapshot | Kind::Latest => self.done(world),
            Kind::Transaction => self.commit(world),
            Kind::Single => {}
        }
    }

    // ---- writes ----

    fn commit(&mut self, world: &mut World) {
        let id = RequestId { seen: self.at, unique: self.operation as u128 + 1 };
        let operated = self.operated(world);
        operated.id = Some(id);
        let commit = TxnCommit { id, part: self.part.clone() }.normalise().expect("a commit within limits");
        operated.part = commit.part.clone();
        let client = self.token(Asked::Commit);
        world.coordinate(commit, client);
    }

    fn send_single(&mut self, world: &mut World) {
        self.asked.clear();
        let from = self.token(Asked::Single);
        let operated = self.operated(world);
        let (Some(id), Some(operation)) = (operated.id, operated.operation.clone()) else { return };
        let shard = world.shard_of(operation.keys()[0]);
        world.send(Message::Command { shard, id, operation, from });
    }

    pub fn on_outcome(&mut self, world: &mut World, token: u32, outcome: Outcome) {
        if !matches!(self.asked.get(&token), Some(Asked::Single)) {
            return;
        }
        match outcome {
            // It comes again after the release (rule R9), or in a later entry.
            Outcome::Refused(Refusal::Locked(_) | Refusal::StaleTimestamp { .. }) => {}
            Outcome::Refused(Refusal::TooOld { .. }) => self.over(),
            outcome => {
                world.note(|| format!("client {} is told {outcome:?}", self.task));
                self.operated(world).outcome = Some(outcome);
                self.done(world);
            }
        }
    }

    pub fn on_verdict(&mut self, world: &mut World, token: u32, verdict: Verdict) {
        if !matches!(self.asked.get(&token), Some(Asked::Commit)) {
            return;
        }
        world.note(|| format!("client {} is told {verdict:?}", self.task));
        self.operated(world).verdict = Some(verdict);
        self.done(world);
    }

    /// Patience ends: whatever was asked is asked again, or given up.
    pub fn on_timeout(&mut self, world: &mut World, last: bool) {
        let committing = self.asked.values().any(|asked| matches!(asked, Asked::Commit));
        let wants_time = self.asked.values().any(|asked| matches!(asked, Asked::Time));
        if !self.lives() {
        } else if committing {
            self.on_slow_commit(world, last);
        } else if wants_time {
            self.asked.clear();
            self.ask_time(world);
        } else if self.kind == Kind::Single {
            self.send_single(world);
        } else {
            self.asked.clear();
            if let Some(reading) = &mut self.reading {
                reading.inquiries.clear();
            }
            self.look(world);
        }
    }
    /// The commit takes long: it is sent again, or the client gives up.
    fn on_slow_commit(&mut self, world: &mut World, last: bool) {
        if last {
            return self.over();
        }
        if !world.rng.percent(world.config.clients_hurry) {
            return;
        }
        match world.rng.below(10) {
            0 => self.over(),
            1..7 if self.retries == 0 => {
                self.retries += 1;
                let (Some(id), Some((&token, _))) = (self.operated(world).id, self.asked.first_key_value())
                else {
                    return;
                };
                world.note(|| format!("client {} sends its commit again", self.task));
                let commit = TxnCommit { id, part: self.operated(world).part.clone() };
                world.coordinate(commit, Address { task: self.task, token });
            }
            _ => world.give_up(self.task),
        }
    }
}
