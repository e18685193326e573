//! A shard of the simulated world: the real machine on two replicas, one log, and a model of the leader's
//! sequencer and barrier.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use kvorum::bugs::{self, Bug};
use kvorum::engine::{BatchEntry, Family, Overlay, Rows, View};
use kvorum::mvcc::Row;
use kvorum::shard::{self as machine, Command, Entry, PageRequest, State};
use kvorum::types::{
    Direction, Epoch, KeyRange, NodeId, Operation, Outcome, RequestId, Result, ShardDescriptor, ShardId,
    Timestamp,
};

use crate::message::{Address, Answer, How, Query, Question};

/// The rows of one replica: the plainest view there is.
#[derive(Default)]
struct Tables([BTreeMap<Bytes, Bytes>; Family::ALL.len()]);

impl View for Tables {
    fn get(&self, family: Family, key: &[u8]) -> Result<Option<Bytes>> {
        Ok(self.0[family as usize].get(key).cloned())
    }

    fn scan(&self, family: Family, range: &KeyRange, direction: Direction) -> Rows<'_> {
        let (table, range) = (&self.0[family as usize], range.clone());
        if table.is_empty() || range.is_empty() {
            return Box::new(std::iter::empty());
        }
        let start = std::ops::Bound::Included(range.start);
        let end = range.end.map_or(std::ops::Bound::Unbounded, std::ops::Bound::Excluded);
        let rows = table.range((start, end)).map(|(key, value)| Ok((key.clone(), value.clone())));
        match direction {
            Direction::Forward => Box::new(rows),
            Direction::Reverse => Box::new(rows.rev()),
        }
    }
}

/// A version that a log entry wrote.
pub struct Written {
    pub key: Bytes,
    pub row: Row,
}

pub struct Replica {
    pub state: State,
    tables: Tables,
    /// Entries applied.
    pub applied: usize,
}

impl Replica {
    fn new(descriptor: ShardDescriptor) -> Self {
        Self { state: State::new(descriptor), tables: Tables::default(), applied: 0 }
    }

    pub fn view(&self) -> &dyn View {
        &self.tables
    }

    /// Applies an entry; its outcomes, and the versions it wrote.
    fn apply(&mut self, entry: &Entry) -> Result<(Vec<Outcome>, Vec<Written>)> {
        let mut overlay = Overlay::new(&self.tables);
        let outcomes = machine::apply(&mut self.state, &mut overlay, entry)?;
        let batch = overlay.into_batch();
        let mut written = Vec::new();
        for entry in batch {
            match entry {
                BatchEntry::Put(family, key, value) => {
                    if family == Family::Current {
                        written.push(Written { key: key.clone(), row: Row::decode(value.clone())? });
                    }
                    self.tables.0[family as usize].insert(key, value);
                }
                BatchEntry::Delete(family, key) => {
                    self.tables.0[family as usize].remove(&key);
                }
                BatchEntry::DeleteRange(family, range) => {
                    self.tables.0[family as usize].retain(|key, _| !range.contains(key));
                }
            }
        }
        self.applied += 1;
        Ok((outcomes, written))
    }

    /// Drops what nobody needs any more, as compaction does.
    pub fn compact(&mut self) {
        let safe_point = self.state.safe_point;
        for family in Family::SHARD_DATA {
            self.tables.0[family as usize]
                .retain(|key, value| !machine::may_drop(family, key, value, safe_point));
        }
    }

    fn answer(&self, query: &Query) -> Result<Answer> {
        if query.at != Timestamp::MAX && machine::check_readable(&self.state, query.at).is_err() {
            return Ok(Answer::TooOld);
        }
        let (view, counts) = (self.view(), self.state.counts);
        Ok(match &query.question {
            Question::Key(key) => Answer::Key(machine::look(view, counts, key, query.at, &query.fates)?),
            Question::Page(range) => {
                let request = PageRequest {
                    range: range.clone(),
                    direction: Direction::Forward,
                    keys_only: false,
                    at: query.at,
                    max_rows: usize::MAX,
                    max_bytes: usize::MAX,
                };
                Answer::Page(machine::scan_page(view, counts, &request, &query.fates)?)
            }
            Question::Status { primary, txn } => {
                Answer::Status(machine::txn_status(view, &self.state, primary, *txn)?)
            }
            Question::LockOf { key, txn } => Answer::LockOf(machine::lock_of(view, key, *txn)?),
        })
    }

    /// Whether two replicas hold the same, what may be dropped aside.
    pub fn same(&mut self, other: &mut Self) -> bool {
        self.compact();
        other.compact();
        self.state == other.state && self.tables.0 == other.tables.0
    }
}

/// A command that waits for its place in the log.
pub struct Pending {
    pub id: RequestId,
    pub operation: Operation,
    pub from: Address,
}

/// How far a batch has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    /// The oracle has been asked.
    Asked,
    /// The oracle has cut the block, but its answer is on its way.
    Assigned(Timestamp),
    /// The leader knows the timestamps.
    Answered(Timestamp),
}

struct Batch {
    number: u64,
    /// The leadership under which the oracle was asked.
    term: u64,
    commands: Vec<Pending>,
    /// What a latest read of one of these waits for.
    keys: BTreeSet<Bytes>,
    stage: Stage,
}

/// An entry of the log, and where its outcomes go.
struct Logged {
    entry: Entry,
    term: u64,
    from: Vec<Address>,
}

/// A read at the leader.
struct Waiting {
    query: Waited,
    at: Timestamp,
    /// The batches that it waits for.
    batches: Vec<u64>,
    /// Once they are in the log: so many entries must be applied.
    entries: Option<usize>,
}

enum Waited {
    Query(Query),
    /// The closed timestamp is published.
    Publish,
}

/// What comes out of a shard.
pub enum Output {
    Outcome {
        to: Address,
        outcome: Outcome,
    },
    NotDone {
        to: Address,
    },
    Answer {
        to: Address,
        answer: Answer,
    },
    Closed {
        ts: Timestamp,
        entries: usize,
    },
    Written(Written),
    /// An entry was applied by the leader: what it was and what came of it.
    Applied {
        command: Command,
        outcome: Outcome,
    },
}

pub struct Shard {
    pub replicas: [Replica; 2],
    pub leader: usize,
    term: u64,
    waiting: Vec<Pending>,
    batches: VecDeque<Batch>,
    /// Batches of leaders that were replaced, which do not know it yet.
    orphans: Vec<Batch>,
    last_batch: u64,
    log: Vec<Logged>,
    /// Entries whose versions have been reported.
    reported: usize,
    reads: Vec<Waiting>,
    follower_reads: Vec<Query>,
    /// What leaders have published: the closed timestamp of a replica that has applied so many entries.
    closed: Vec<(Timestamp, usize)>,
}

impl Shard {
    pub fn new(number: usize, range: KeyRange) -> Self {
        let descriptor = ShardDescriptor {
            id: ShardId(number as u64 + 1),
            range,
            epoch: Epoch(1),
            replicas: vec![NodeId(1), NodeId(2)],
        };
        Self {
            replicas: [Replica::new(descriptor.clone()), Replica::new(descriptor)],
            leader: 0,
            term: 1,
            waiting: Vec::new(),
            batches: VecDeque::new(),
            orphans: Vec::new(),
            last_batch: 0,
            log: Vec::new(),
            reported: 0,
            reads: Vec::new(),
            follower_reads: Vec::new(),
            closed: Vec::new(),
        }
    }

    pub fn range(&self) -> &KeyRange {
        &self.replicas[0].state.descriptor.range
    }

    pub fn leading(&self) -> &Replica {
        &self.replicas[self.leader]
    }

    /// Whether anything is under way.
    pub fn busy(&self) -> bool {
        !self.waiting.is_empty()
            || !self.batches.is_empty()
            || !self.orphans.is_empty()
            || self.replicas.iter().any(|replica| replica.applied < self.log.len())
    }

    /// Whether a follower's reader waits for a closed timestamp.
    pub fn wants_closed(&self) -> bool {
        self.follower_reads.iter().any(|query| query.how == How::Closed)
    }

    // ---- the sequencer ----

    pub fn submit(&mut self, pending: Pending) {
        self.waiting.push(pending);
    }

    /// Closes the batch and asks the oracle, unless an answer is awaited.
    pub fn ask(&mut self) {
        let awaited = self.batches.iter().any(|batch| !matches!(batch.stage, Stage::Answered(_)));
        if self.waiting.is_empty() || awaited {
            return;
        }
        self.last_batch += 1;
        let commands = std::mem::take(&mut self.waiting);
        let keys = commands.iter().flat_map(|pending| pending.operation.keys()).cloned().collect();
        let (number, term) = (self.last_batch, self.term);
        self.batches.push_back(Batch { number, term, commands, keys, stage: Stage::Asked });
    }

    fn open(&mut self) -> impl Iterator<Item = &mut Batch> {
        self.batches.iter_mut().chain(&mut self.orphans)
    }

    /// The oracle cuts a block for a batch that asked.
    pub fn assign(&mut self, mut cut: impl FnMut(usize) -> Timestamp) {
        if let Some(batch) = self.open().find(|batch| batch.stage == Stage::Asked) {
            batch.stage = Stage::Assigned(cut(batch.commands.len()));
        }
    }

    /// The oracle's answer arrives.
    pub fn answered(&mut self) {
        if let Some(batch) = self.open().find(|batch| matches!(batch.stage, Stage::Assigned(_)))
            && let Stage::Assigned(first) = batch.stage
        {
            batch.stage = Stage::Answered(first);
        }
    }

    /// Proposes the oldest batch, which the log takes at once.
    pub fn propose(&mut self) {
        let ready = |batch: &Batch| matches!(batch.stage, Stage::Answered(_));
        if self.batches.front().is_some_and(ready)
            && let Some(batch) = self.batches.pop_front()
        {
            self.append(batch);
        }
    }

    /// A leader that was replaced proposes what it still has: refused, since the leadership is not the one
    /// under which it asked.
    pub fn propose_orphan(&mut self, output: &mut Vec<Output>) {
        let ready = |batch: &Batch| matches!(batch.stage, Stage::Answered(_));
        let Some(at) = self.orphans.iter().position(ready) else { return };
        let batch = self.orphans.remove(at);
        if batch.term == self.term || bugs::on(Bug::StaleLeadership) {
            return self.append(batch);
        }
        output.extend(batch.commands.iter().map(|pending| Output::NotDone { to: pending.from }));
    }

    fn append(&mut self, batch: Batch) {
        let Stage::Answered(first) = batch.stage else { return };
        let from = batch.commands.iter().map(|pending| pending.from).collect();
        let stamped = batch.commands.into_iter().zip(0..).map(|(pending, place)| Command {
            id: pending.id,
            timestamp: first.plus(place),
            operation: pending.operation,
        });
        let entry = Entry::Commands(stamped.collect());
        self.log.push(Logged { entry, term: self.term, from });
    }

    /// Another replica, or the same one, leads from now on. What waited is lost, and reads fail.
    pub fn elect(&mut self, leader: usize, output: &mut Vec<Output>) {
        self.leader = leader;
        self.term += 1;
        self.waiting.clear();
        self.orphans.extend(self.batches.drain(..));
        for waiting in self.reads.drain(..) {
            if let Waited::Query(query) = waiting.query {
                output.push(Output::Answer { to: query.from, answer: Answer::Failed });
            }
        }
    }

    /// A replica applies the next entry, if there is one.
    pub fn apply(&mut self, replica: usize, output: &mut Vec<Output>) -> Result<()> {
        let at = self.replicas[replica].applied;
        let Some(logged) = self.log.get(at) else { return Ok(()) };
        let (outcomes, written) = self.replicas[replica].apply(&logged.entry)?;
        if at >= self.reported {
            self.reported = at + 1;
            output.extend(written.into_iter().map(Output::Written));
            if let Entry::Commands(commands) = &logged.entry {
                output.extend(commands.iter().zip(&outcomes).map(|(command, outcome)| Output::Applied {
                    command: command.clone(),
                    outcome: outcome.clone(),
                }));
            }
        }
        if replica == self.leader && logged.term == self.term {
            let answers = logged.from.iter().zip(outcomes);
            output.extend(answers.map(|(to, outcome)| Output::Outcome { to: *to, outcome }));
        }
        Ok(())
    }

    // ---- reads ----

    /// A read comes to the leader or to the follower.
    pub fn query(&mut self, query: Query) {
        match query.how {
            How::Leader | How::Index => {
                let (at, key) = (query.at, query.question.key().clone());
                let batches = self.barrier(at, Some(&key));
                self.reads.push(Waiting { query: Waited::Query(query), at, batches, entries: None });
            }
            How::Follower { .. } | How::Closed => self.follower_reads.push(query),
        }
    }

    /// The leader begins to publish a closed timestamp, which was handed out just now.
    pub fn publish(&mut self, ts: Timestamp) {
        let batches = self.barrier(ts, None);
        self.reads.push(Waiting { query: Waited::Publish, at: ts, batches, entries: None });
    }

    /// The batches under way that a read which comes now waits for (rule R1).
    fn barrier(&self, at: Timestamp, key: Option<&Bytes>) -> Vec<u64> {
        let waits = |batch: &&Batch| match (at, batch.stage) {
            (Timestamp::MAX, _) => {
                key.is_none_or(|key| batch.keys.contains(key)) && !bugs::on(Bug::LatestDoesNotWait)
            }
            (at, Stage::Answered(first)) => first <= at,
            (_, Stage::Asked | Stage::Assigned(_)) => !bugs::on(Bug::BarrierForgetsAsked),
        };
        self.batches.iter().filter(waits).map(|batch| batch.number).collect()
    }

    /// Answers what can be answered.
    pub fn serve(&mut self, output: &mut Vec<Output>) -> Result<()> {
        let entries = self.log.len();
        for mut waiting in std::mem::take(&mut self.reads) {
            let under_way = |number: &u64| {
                self.batches.iter().any(|batch| {
                    let above = matches!(batch.stage, Stage::Answered(first) if first > waiting.at);
                    batch.number == *number && !above
                })
            };
            waiting.batches.retain(under_way);
            if waiting.batches.is_empty() {
                waiting.entries.get_or_insert(entries);
            }
            if !self.answer_leader(&mut waiting, output)? {
                self.reads.push(waiting);
            }
        }
        for query in std::mem::take(&mut self.follower_reads) {
            let follower = &self.replicas[1 - self.leader];
            let published = self.closed.iter().filter(|(_, entries)| *entries <= follower.applied);
            let closed = published.map(|(ts, _)| *ts).max().max(Some(follower.state.closed));
            let ready = match query.how {
                How::Follower { entries } => follower.applied >= entries,
                _ => closed >= Some(query.at),
            };
            if ready {
                output.push(Output::Answer { to: query.from, answer: follower.answer(&query)? });
            } else {
                self.follower_reads.push(query);
            }
        }
        Ok(())
    }

    fn answer_leader(&self, waiting: &mut Waiting, output: &mut Vec<Output>) -> Result<bool> {
        let Some(entries) = waiting.entries else { return Ok(false) };
        match &waiting.query {
            Waited::Publish => output.push(Output::Closed { ts: waiting.at, entries }),
            Waited::Query(query) if query.how == How::Index => {
                let answer = Answer::Index { query: query.clone(), entries };
                output.push(Output::Answer { to: query.from, answer });
            }
            Waited::Query(query) => {
                if self.leading().applied < entries {
                    return Ok(false);
                }
                output.push(Output::Answer { to: query.from, answer: self.leading().answer(query)? });
            }
        }
        Ok(true)
    }

    /// A closed timestamp was received.
    pub fn closed(&mut self, ts: Timestamp, entries: usize) {
        self.closed.push((ts, entries));
    }
}
