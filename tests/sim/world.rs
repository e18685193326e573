//! The world: shards, clients, coordinators and recoveries, a network between them, and a seeded scheduler that
//! lets one of them take a step at a time.

use std::collections::BTreeMap;

use bytes::Bytes;
use kvorum::mvcc::Version;
use kvorum::types::{KeyRange, Operation, RequestId, limits};

use crate::carrier::Carrier;
use crate::client::Client;
use crate::config::Config;
use crate::history::Operated;
use crate::message::{Address, Message};
use crate::rng::Rng;
use crate::shard::{Output, Pending, Shard};
use crate::time::Time;

/// A run that has not come to its end by then is ended: what is under way is lost.
const MAX_STEPS: u64 = 8_000;
/// So often is everything that is stuck sent again, at the end.
const MAX_ROUNDS: usize = 60;
/// Longer than any id is recognised.
const LIFE_MS: u64 = limits::MAX_COMMAND_AGE_MS + 1_000;
/// The task that hears of commands nobody waits for.
const NOBODY: usize = usize::MAX;

pub enum Task {
    Client(Box<Client>),
    Carrier(Box<Carrier>),
    Gone,
}

struct Travelling {
    message: Message,
    slow: bool,
}

pub struct World {
    pub rng: Rng,
    pub config: Config,
    /// Steps so far: the real time of the history.
    pub now: u64,
    pub time: Time,
    pub shards: Vec<Shard>,
    /// The shards' ranges.
    pub cut: Vec<KeyRange>,
    keys: Vec<Bytes>,
    pub tasks: Vec<Task>,
    network: Vec<Travelling>,
    pub history: Vec<Operated>,
    /// Every version that was ever written, in the order of the log.
    pub truth: BTreeMap<Bytes, Vec<Version>>,
    /// Nothing is lost, late or repeated any more.
    draining: bool,
    numbers: i64,
    pub trace: Option<Vec<String>>,
}

impl World {
    pub fn new(seed: u64, traced: bool) -> Self {
        let mut rng = Rng::new(seed);
        let config = Config::draw(&mut rng);
        let keys: Vec<Bytes> = (0..config.keys).map(|n| Bytes::from(vec![1, b'a' + n as u8])).collect();
        let mut cut = Vec::new();
        let mut start = Bytes::from_static(&[1]);
        for shard in 1..=config.shards {
            let end = match shard * config.keys / config.shards {
                at if shard < config.shards => keys[at].clone(),
                _ => Bytes::from_static(&[2]),
            };
            cut.push(KeyRange::new(start, Some(end.clone())));
            start = end;
        }
        let shards = cut.iter().enumerate().map(|(n, range)| Shard::new(n, range.clone())).collect();
        Self {
            rng,
            config,
            now: 0,
            time: Time::new(),
            shards,
            cut,
            keys,
            tasks: Vec::new(),
            network: Vec::new(),
            history: Vec::new(),
            truth: BTreeMap::new(),
            draining: false,
            numbers: 0,
            trace: traced.then(Vec::new),
        }
    }

    /// Adds a line to the trace, where there is one.
    pub fn note(&mut self, line: impl FnOnce() -> String) {
        if let Some(trace) = &mut self.trace {
            trace.push(format!("{:>5} {}", self.now, line()));
        }
    }

    pub fn some_key(&mut self) -> Bytes {
        let at = self.rng.below(self.keys.len());
        self.keys[at].clone()
    }

    /// A range that begins and ends at keys.
    pub fn some_range(&mut self) -> KeyRange {
        let (a, b) = (self.rng.below(self.keys.len()), self.rng.below(self.keys.len()));
        let end = self.keys.get(a.max(b) + 1).cloned().unwrap_or_else(|| Bytes::from_static(&[2]));
        KeyRange::new(self.keys[a.min(b)].clone(), Some(end))
    }

    /// A number that was not used before.
    pub fn some_number(&mut self) -> i64 {
        self.numbers += 1;
        self.numbers * 1000
    }

    pub fn shard_of(&self, key: &[u8]) -> usize {
        self.cut.iter().position(|range| range.contains(key)).unwrap_or(0)
    }

    pub fn send(&mut self, message: Message) {
        if !self.draining && self.rng.percent(self.config.lost) {
            return;
        }
        let slow = !self.draining && self.rng.percent(self.config.slow);
        self.network.push(Travelling { message, slow });
    }

    // ---- the run ----

    /// Runs to the end: all operations, then whatever is left of them.
    pub fn run(&mut self) -> Result<(), String> {
        while self.history.len() < self.config.operations || self.clients().count() > 0 {
            self.now += 1;
            if self.now > MAX_STEPS {
                break;
            }
            self.step()?;
        }
        self.drain()
    }

    fn clients(&self) -> impl Iterator<Item = usize> {
        let lives = |task: &Task| matches!(task, Task::Client(client) if client.lives());
        self.tasks.iter().enumerate().filter(move |(_, task)| lives(task)).map(|(place, _)| place)
    }

    fn step(&mut self) -> Result<(), String> {
        let shard = self.rng.below(self.shards.len());
        let mut choice = self.rng.below(1_000);
        let config = &self.config;
        let weights = [
            400,
            270,
            80,
            60,
            config.new_leader,
            config.crash,
            config.jump,
            config.timeout,
            config.recovery,
            15,
            30,
            config.collect,
        ];
        let mut what = 0;
        while what < weights.len() && choice >= weights[what] {
            choice -= weights[what];
            what += 1;
        }
        match what {
            0 => self.deliver_one()?,
            1 => self.shard_step(shard)?,
            2 => self.serve(shard)?,
            3 => {
                if self.history.len() < self.config.operations && self.clients().count() < self.config.clients
                {
                    self.start_operation();
                }
            }
            4 => self.new_leader(shard)?,
            5 => self.crash(),
            6 => self.jump(),
            7 => self.timeout(),
            8 => {
                let before = self.time.before(self.config.lock_ttl_ms);
                self.look_after(shard, before);
            }
            9 => {
                let ts = self.time.cut(1).first;
                self.shards[shard].publish(ts);
            }
            10 => {
                let ms = self.rng.below(3) as u64;
                self.time.pass(ms);
            }
            11 => self.collect(shard),
            _ => self.shard_step(shard)?,
        }
        Ok(())
    }

    fn shard_step(&mut self, shard: usize) -> Result<(), String> {
        let what = self.rng.below(100);
        if (20..68).contains(&what) && shard == 0 && !self.rng.percent(self.config.first_shard_gets_on) {
            return Ok(());
        }
        match what {
            0..20 => self.shards[shard].ask(),
            20..40 => {
                if self.rng.percent(self.config.oracle_answers) {
                    self.assign(shard);
                }
            }
            40..55 => {
                if self.rng.percent(self.config.oracle_answers) {
                    self.shards[shard].answered();
                }
            }
            55..68 => self.shards[shard].propose(),
            68..70 => self.with_output(shard, |shard, output| {
                shard.propose_orphan(output);
                Ok(())
            })?,
            70..88 => {
                if self.rng.percent(self.config.leader_applies) {
                    let leader = self.shards[shard].leader;
                    self.apply(shard, leader)?;
                }
            }
            _ => {
                if self.rng.percent(self.config.follower_applies) {
                    let follower = 1 - self.shards[shard].leader;
                    self.apply(shard, follower)?;
                }
            }
        }
        Ok(())
    }

    fn assign(&mut self, shard: usize) {
        let time = &mut self.time;
        self.shards[shard].assign(|count| time.cut(count).first);
    }

    fn apply(&mut self, shard: usize, replica: usize) -> Result<(), String> {
        self.with_output(shard, |shard, output| shard.apply(replica, output))
    }

    fn serve(&mut self, shard: usize) -> Result<(), String> {
        self.with_output(shard, Shard::serve)
    }

    /// Lets a shard do something, and sends what comes out of it.
    fn with_output(
        &mut self,
        at: usize,
        act: impl FnOnce(&mut Shard, &mut Vec<Output>) -> kvorum::Result<()>,
    ) -> Result<(), String> {
        let mut output = Vec::new();
        act(&mut self.shards[at], &mut output).map_err(|error| format!("corrupt: {error}"))?;
        for output in output {
            match output {
                Output::Outcome { to, outcome } => self.send_to(to, Message::Outcome { to, outcome }),
                Output::NotDone { to } => self.send_to(to, Message::NotDone { to }),
                Output::Answer { to, answer } => {
                    self.note(|| format!("  shard {at} answers {to:?} {answer:?}"));
                    self.send(Message::Answer { to, answer });
                }
                Output::Closed { ts, entries } => self.send(Message::Closed { shard: at, ts, entries }),
                Output::Written(written) => {
                    self.truth.entry(written.key).or_default().push(written.row.version);
                }
                Output::Applied { command, outcome } => self.note(|| {
                    let (id, ts) = (command.id.unique, command.timestamp);
                    format!("shard {at} applies @{ts} X{id} {:?} -> {outcome:?}", command.operation)
                }),
            }
        }
        Ok(())
    }

    fn send_to(&mut self, to: Address, message: Message) {
        if to.task != NOBODY {
            self.send(message);
        }
    }

    // ---- the network ----

    fn deliver_one(&mut self) -> Result<(), String> {
        if self.network.is_empty() {
            return Ok(());
        }
        let at = self.rng.below(self.network.len());
        if self.network[at].slow && !self.draining && !self.rng.percent(3) {
            return Ok(());
        }
        let message = self.network.swap_remove(at).message;
        if !self.draining && self.rng.percent(self.config.duplicate) {
            let slow = self.rng.percent(50);
            self.network.push(Travelling { message: message.clone(), slow });
        }
        self.deliver(message);
        Ok(())
    }

    fn deliver(&mut self, message: Message) {
        match message {
            Message::Command { shard, id, operation, from } => {
                self.shards[shard].submit(Pending { id, operation, from });
            }
            Message::Query { shard, query } => self.shards[shard].query(query),
            Message::Closed { shard, ts, entries } => self.shards[shard].closed(ts, entries),
            Message::AskTime { from } => {
                let ts = self.time.cut(1).first;
                self.send(Message::Time { to: from, ts });
            }
            Message::Time { to, ts } => {
                self.with_client(to.task, |client, world| client.on_time(world, to.token, ts));
            }
            Message::Verdict { to, verdict } => {
                self.with_client(to.task, |client, world| client.on_verdict(world, to.token, verdict));
            }
            Message::Outcome { to, outcome } => match self.tasks[to.task] {
                Task::Client(_) => {
                    self.with_client(to.task, |client, world| client.on_outcome(world, to.token, outcome));
                }
                _ => {
                    self.with_carrier(to.task, |carrier, world| carrier.on_outcome(world, to.token, outcome))
                }
            },
            // A client asks again when its patience ends.
            Message::NotDone { to } => {
                self.with_carrier(to.task, |carrier, world| carrier.on_not_done(world, to.token));
            }
            Message::Answer { to, answer } => match self.tasks[to.task] {
                Task::Client(_) => {
                    self.with_client(to.task, |client, world| client.on_answer(world, to.token, answer));
                }
                _ => self.with_carrier(to.task, |carrier, world| carrier.on_answer(world, to.token, answer)),
            },
        }
    }

    /// Takes a client out of its place while it acts.
    fn with_client(&mut self, task: usize, act: impl FnOnce(&mut Client, &mut Self)) {
        match std::mem::replace(&mut self.tasks[task], Task::Gone) {
            Task::Client(mut client) => {
                act(&mut client, self);
                self.tasks[task] = Task::Client(client);
            }
            other => self.tasks[task] = other,
        }
    }

    /// Takes a carrier out of its place while it acts; one that has ended does not come back.
    pub fn with_carrier(&mut self, task: usize, act: impl FnOnce(&mut Carrier, &mut Self)) {
        match std::mem::replace(&mut self.tasks[task], Task::Gone) {
            Task::Carrier(mut carrier) => {
                act(&mut carrier, self);
                if !carrier.ended {
                    self.tasks[task] = Task::Carrier(carrier);
                }
            }
            other => self.tasks[task] = other,
        }
    }

    // ---- what goes wrong ----

    fn new_leader(&mut self, shard: usize) -> Result<(), String> {
        if self.rng.percent(20) {
            let node = 1 - self.time.leader();
            self.note(|| format!("node {node} leads the oracle"));
            self.time.lead(node);
            return Ok(());
        }
        let replica = self.rng.below(2);
        self.note(|| format!("replica {replica} leads shard {shard}"));
        self.with_output(shard, |shard, output| {
            shard.elect(replica, output);
            Ok(())
        })
    }

    /// A coordinator or a recovery ends where it stands. Half of what it sent may be lost with it.
    fn crash(&mut self) {
        let carriers: Vec<usize> =
            (0..self.tasks.len()).filter(|place| matches!(self.tasks[*place], Task::Carrier(_))).collect();
        if carriers.is_empty() {
            return;
        }
        let task = self.rng.pick(&carriers);
        self.note(|| format!("task {task} crashes"));
        self.stop_carrier(task);
    }

    fn stop_carrier(&mut self, task: usize) {
        if !matches!(self.tasks[task], Task::Carrier(_)) {
            return;
        }
        self.tasks[task] = Task::Gone;
        let rng = &mut self.rng;
        self.network.retain(|travelling| match &travelling.message {
            Message::Command { from, .. } => from.task != task || rng.percent(50),
            _ => true,
        });
    }

    fn jump(&mut self) {
        let ms = self.rng.pick(&[50, 2_900, 3_100, 3_100, LIFE_MS]);
        self.note(|| format!("the oracle's clock jumps by {ms} ms"));
        if self.rng.percent(25) {
            self.time.jump_back(ms);
        } else {
            self.time.jump(ms);
        }
    }

    fn timeout(&mut self) {
        let waits = |place: &usize| match &self.tasks[*place] {
            Task::Client(client) => client.lives(),
            Task::Carrier(_) => true,
            Task::Gone => false,
        };
        let waiting: Vec<usize> = (0..self.tasks.len()).filter(waits).collect();
        if !waiting.is_empty() {
            let task = self.rng.pick(&waiting);
            self.time_out(task, false);
        }
    }

    fn time_out(&mut self, task: usize, last: bool) {
        match self.tasks[task] {
            Task::Client(_) => self.with_client(task, |client, world| client.on_timeout(world, last)),
            Task::Carrier(_) => self.with_carrier(task, Carrier::on_timeout),
            Task::Gone => {}
        }
    }

    /// The safe point rises, or a replica drops what lies below it.
    fn collect(&mut self, shard: usize) {
        if self.rng.percent(50) {
            let replica = self.rng.below(2);
            return self.shards[shard].replicas[replica].compact();
        }
        self.raise_safe_point(shard);
    }

    fn raise_safe_point(&mut self, shard: usize) {
        let safe_point = self.time.before(limits::RETENTION_MS);
        let id = RequestId { seen: safe_point, unique: 0 };
        let from = Address { task: NOBODY, token: 0 };
        self.shards[shard].submit(Pending {
            id,
            operation: Operation::AdvanceSafePoint { safe_point, truncated: safe_point },
            from,
        });
    }

    // ---- the end ----

    /// Lets everything come to rest: nothing is lost any more, locks grow old, patience ends.
    fn drain(&mut self) -> Result<(), String> {
        self.draining = true;
        self.note(|| "what is left comes to rest".into());
        if self.rng.percent(self.config.sleeps) {
            self.sleep()?;
        }
        for _ in 0..MAX_ROUNDS {
            self.settle()?;
            let at_rest = self.clients().count() == 0 && self.shards.iter().all(at_rest);
            if at_rest {
                return Ok(());
            }
            self.time.pass(limits::LOCK_TTL_MS + 1);
            let now = self.time.cut(1).first;
            for shard in 0..self.shards.len() {
                self.look_after(shard, now);
            }
            for task in 0..self.tasks.len() {
                self.time_out(task, true);
            }
        }
        Err("stuck: locks, records or operations are left after recovery".into())
    }

    /// All nodes stop; nothing happens for longer than anything lives, and what is old is dropped.
    fn sleep(&mut self) -> Result<(), String> {
        for task in 0..self.tasks.len() {
            self.stop_carrier(task);
        }
        self.settle()?;
        self.time.pass(LIFE_MS);
        self.time.cut(1);
        for shard in 0..self.shards.len() {
            self.raise_safe_point(shard);
        }
        self.settle()?;
        for shard in &mut self.shards {
            shard.replicas[0].compact();
        }
        Ok(())
    }

    /// Runs until nothing is under way.
    fn settle(&mut self) -> Result<(), String> {
        for _ in 0..1_000 {
            self.now += 1;
            let mut quiet = self.network.is_empty();
            for travelling in std::mem::take(&mut self.network) {
                self.deliver(travelling.message);
            }
            for shard in 0..self.shards.len() {
                quiet &= !self.shards[shard].busy();
                self.shards[shard].ask();
                self.assign(shard);
                self.shards[shard].answered();
                self.shards[shard].propose();
                self.with_output(shard, |shard, output| {
                    shard.propose_orphan(output);
                    Ok(())
                })?;
                self.apply(shard, 0)?;
                self.apply(shard, 1)?;
                if self.shards[shard].wants_closed() {
                    let ts = self.time.cut(1).first;
                    self.shards[shard].publish(ts);
                }
                self.serve(shard)?;
            }
            if quiet && self.network.is_empty() {
                return Ok(());
            }
        }
        Err("restless: messages go round and round".into())
    }
}

fn at_rest(shard: &Shard) -> bool {
    shard.replicas.iter().all(|replica| replica.state.counts == kvorum::shard::Counts::default())
}
