//! The edge of coordinators and recoveries: carries out what the real machines ask for, over a bad network.

use std::collections::BTreeSet;

use kvorum::shard::{self, Fates, Unfinished};
use kvorum::txn::{Action, Coordinator, Event, Recovery, Step, TxnCommit};
use kvorum::types::{Lock, Operation, Outcome, Refusal, Timestamp, TxnId};

use crate::message::{Address, Answer, How, Message, Query, Question};
use crate::world::{Task, World};

#[derive(Debug)]
enum Machine {
    Coordinator(Coordinator),
    Recovery(Recovery),
}

/// A machine at work.
#[derive(Debug)]
pub struct Carrier {
    machine: Machine,
    pub txn: TxnId,
    task: usize,
    /// Who is told.
    client: Option<Address>,
    /// Requests that have not been answered.
    under_way: BTreeSet<Step>,
    pub ended: bool,
}

impl World {
    /// A node begins to coordinate a commit; perhaps by an old shard map.
    pub fn coordinate(&mut self, commit: TxnCommit, client: Address) {
        let mut shards = self.cut.clone();
        if self.rng.percent(self.config.old_map) && shards.len() > 1 {
            let at = self.rng.below(shards.len() - 1);
            let second = shards.remove(at + 1);
            shards[at].end = second.end;
        }
        let txn = commit.id;
        let task = self.tasks.len();
        self.note(|| format!("task {task} coordinates {txn}"));
        let (machine, actions) = Coordinator::start(commit, &shards);
        self.carry(Machine::Coordinator(machine), txn, Some(client), actions);
    }

    /// Somebody has met a lock that is old enough.
    pub fn recover(&mut self, lock: &Lock) {
        if self.recoveries_of(lock.txn) < 2 {
            let task = self.tasks.len();
            self.note(|| format!("task {task} recovers {} from {lock:?}", lock.txn));
            let (machine, actions) = Recovery::start(lock, &self.cut);
            self.carry(Machine::Recovery(machine), lock.txn, None, actions);
        }
    }

    /// A leader has found a record of a commit that may not be finished everywhere.
    pub fn resume(&mut self, unfinished: Unfinished) {
        let Unfinished { txn, primary, commit_ts, spans } = unfinished;
        if self.recoveries_of(txn) < 2 {
            let task = self.tasks.len();
            self.note(|| format!("task {task} resumes {txn}"));
            let (machine, actions) = Recovery::resume(txn, primary, commit_ts, spans, &self.cut);
            self.carry(Machine::Recovery(machine), txn, None, actions);
        }
    }

    fn recoveries_of(&self, txn: TxnId) -> usize {
        let recovers = |task: &&Task| match task {
            Task::Carrier(carrier) => {
                carrier.txn == txn && !carrier.ended && matches!(carrier.machine, Machine::Recovery(_))
            }
            _ => false,
        };
        self.tasks.iter().filter(recovers).count()
    }

    fn carry(&mut self, machine: Machine, txn: TxnId, client: Option<Address>, actions: Vec<Action>) {
        let task = self.tasks.len();
        let mut carrier = Carrier { machine, txn, task, client, under_way: BTreeSet::new(), ended: false };
        carrier.carry_out(self, actions);
        self.tasks.push(Task::Carrier(Box::new(carrier)));
    }

    /// The coordinators of a client hear that it waits no longer.
    pub fn give_up(&mut self, client: usize) {
        for task in 0..self.tasks.len() {
            let of_client = match &self.tasks[task] {
                Task::Carrier(carrier) => carrier.client.is_some_and(|to| to.task == client),
                _ => false,
            };
            if of_client {
                self.with_carrier(task, |carrier, world| carrier.tell(world, Event::GiveUp));
            }
        }
    }

    /// Everything a leader looks after unasked: locks older than their time, and records of commits.
    pub fn look_after(&mut self, shard: usize, before: Timestamp) {
        let leader = self.shards[shard].leading();
        let range = self.shards[shard].range();
        let expired = shard::expired_locks(leader.view(), range, before, 10, |_| false).expect("locks");
        let unfinished = shard::unfinished(leader.view(), range, 10, |_| false).expect("records");
        for lock in expired {
            self.recover(&lock);
        }
        for unfinished in unfinished {
            self.resume(unfinished);
        }
    }
}

impl Carrier {
    fn carry_out(&mut self, world: &mut World, actions: Vec<Action>) {
        let txn = self.txn;
        for action in actions {
            match action {
                Action::Send { step, to, command } => {
                    self.under_way.insert(step);
                    let from = Address { task: self.task, token: step };
                    let (shard, operation) = (world.shard_of(&to), Operation::Txn(command));
                    world.send(Message::Command { shard, id: txn, operation, from });
                }
                Action::Ask { step, primary, at } => {
                    self.ask(world, step, Question::Status { primary, txn }, at);
                }
                Action::Look { step, key, at } => self.ask(world, step, Question::LockOf { key, txn }, at),
                Action::Acknowledge(verdict) => {
                    if let Some(to) = self.client {
                        world.note(|| format!("task {} acknowledges {verdict:?}", self.task));
                        world.send(Message::Verdict { to, verdict });
                    }
                }
                Action::Ended => self.ended = true,
            }
        }
    }

    fn ask(&mut self, world: &mut World, step: Step, question: Question, at: Option<Timestamp>) {
        self.under_way.insert(step);
        let from = Address { task: self.task, token: step };
        let at = at.unwrap_or(Timestamp::MAX);
        let shard = world.shard_of(question.key());
        let query = Query { from, question, at, fates: Fates::new(), how: How::Leader };
        world.send(Message::Query { shard, query });
    }

    pub fn tell(&mut self, world: &mut World, event: Event) {
        let mut actions = Vec::new();
        match &mut self.machine {
            Machine::Coordinator(machine) => machine.on(event, &mut actions),
            Machine::Recovery(machine) => machine.on(event, &mut actions),
        }
        self.carry_out(world, actions);
    }

    fn waits(&self) -> bool {
        match &self.machine {
            Machine::Coordinator(machine) => machine.waits(),
            Machine::Recovery(machine) => machine.waits(),
        }
    }

    pub fn on_outcome(&mut self, world: &mut World, step: Step, outcome: Outcome) {
        self.under_way.remove(&step);
        let event = match outcome {
            Outcome::Refused(Refusal::OutOfRange) => Event::Moved { step, shards: world.cut.clone() },
            outcome => Event::Outcome { step, outcome },
        };
        self.tell(world, event);
    }

    pub fn on_not_done(&mut self, world: &mut World, step: Step) {
        self.under_way.remove(&step);
        self.tell(world, Event::Failed { step });
    }

    pub fn on_answer(&mut self, world: &mut World, step: Step, answer: Answer) {
        self.under_way.remove(&step);
        let event = match answer {
            Answer::Status(status) => Event::Status { step, status },
            Answer::LockOf(locked) => Event::Looked { step, locked },
            _ => Event::Failed { step },
        };
        self.tell(world, event);
    }

    /// Patience ends: what is under way is given up, and sent again.
    pub fn on_timeout(&mut self, world: &mut World) {
        for step in std::mem::take(&mut self.under_way) {
            self.tell(world, Event::Failed { step });
        }
        if self.waits() {
            self.tell(world, Event::Resend);
        }
    }
}
