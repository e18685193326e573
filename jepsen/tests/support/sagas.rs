//! Histories of sagas that the real machine has run, with workers that fail and come late, in a world that is idempotent.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use kvorum::saga::{
    Change, DefinedStep, Definition, Event, Failure, Outcome, Pause, RecordKind, Refusal, Signal,
    Start as Begin, State, Status, TaskKind, TaskRef, Token, apply, start,
};
use kvorum_jepsen::check::saga::{CHILD, PLANS, Plan, UNDONE, Work, count_key, row_key};
use kvorum_jepsen::history::saga::{Came, Effect, Line, Read, Saga, Start, Task, Tell};
use kvorum_jepsen::history::{F, Op, Value};
use kvorum_jepsen::workload::saga_definition;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

const LAST: u64 = i64::MAX as u64;

struct One {
    id: String,
    plan: &'static Plan,
    definition: Definition,
    state: State,
    lines: Vec<Line>,
    outputs: BTreeMap<String, String>,
}

/// An attempt that a worker has.
struct Out {
    saga: usize,
    token: Token,
    task: Task,
    is_txn: bool,
    invoke: Op,
}

/// All of it.
struct Sim {
    rng: SmallRng,
    ops: Vec<Op>,
    processes: u64,
    now_ms: u64,
    sagas: Vec<One>,
    out: Vec<Out>,
    /// What is on its way to the world, and attempts that do not count any more.
    late: Vec<(usize, Task)>,
    stale: Vec<(usize, Token, Task)>,
    world: HashMap<(usize, String), (bool, u64)>,
    rows: BTreeMap<String, i64>,
}

/// A history of so many sagas.
pub fn generate(seed: u64, sagas: usize) -> Vec<Op> {
    let mut sim = Sim {
        rng: SmallRng::seed_from_u64(seed),
        ops: Vec::new(),
        processes: 1,
        now_ms: 1_000,
        sagas: Vec::new(),
        out: Vec::new(),
        late: Vec::new(),
        stale: Vec::new(),
        world: HashMap::new(),
        rows: BTreeMap::new(),
    };
    while sim.sagas.len() < sagas || sim.sagas.iter().any(|one| !one.state.is_closed()) {
        sim.turn(sagas);
    }
    for (saga, task) in std::mem::take(&mut sim.late) {
        sim.ask(saga, &task.step, &task.kind, task.fence);
    }
    sim.close();
    for (index, op) in (0..).zip(&mut sim.ops) {
        op.index = index;
        op.time_ns = index * 1_000;
    }
    sim.ops
}

fn line(one: &One, step: Option<usize>, what: RecordKind) -> Line {
    let step = step.and_then(|step| one.definition.step(step)).map(|step: &DefinedStep| step.name.clone());
    let (what, kind, attempt, detail) = match what {
        RecordKind::Started => ("started", None, 0, String::new()),
        RecordKind::Waiting => ("waiting", None, 0, String::new()),
        RecordKind::HandedOut { kind, attempt, worker } => ("handed_out", Some(kind), attempt, worker),
        RecordKind::Completed { kind, attempt } => ("completed", Some(kind), attempt, String::new()),
        RecordKind::AttemptFailed { kind, attempt, failure, .. } => {
            ("attempt_failed", Some(kind), attempt, failure.message)
        }
        RecordKind::Failed { kind, attempts, failure } => ("failed", Some(kind), attempts, failure.message),
        RecordKind::Withdrawn { kind } => ("withdrawn", Some(kind), 0, String::new()),
        RecordKind::CancelRequested { reason } => ("cancel_requested", None, 0, reason),
        RecordKind::TooLateToGoBack => ("too_late_to_go_back", None, 0, String::new()),
        RecordKind::Resolved { is_done } => {
            ("resolved", None, 0, if is_done { "done" } else { "not done" }.to_owned())
        }
        RecordKind::Closed { outcome, .. } => ("closed", None, 0, outcome.name().to_owned()),
        _ => ("other", None, 0, String::new()),
    };
    let kind = kind.map(TaskKind::name).unwrap_or_default().to_owned();
    Line(step.unwrap_or_default(), what.to_owned(), kind, attempt, detail)
}

impl Sim {
    fn turn(&mut self, most: usize) {
        match self.rng.random_range(0..100) {
            0..8 if self.sagas.len() < most => self.begin(),
            0..40 => self.hand_out(),
            40..70 => self.end(),
            70..78 => self.tick(),
            78..80 => self.cancel(),
            80..84 => self.signal(),
            84..87 => self.arrive(),
            87..90 => self.tell_stale(),
            90..94 => self.look(),
            94..96 => self.list(),
            _ => self.operate(),
        }
    }

    fn op(&mut self, f: F, saga: Option<usize>, asked: Value, answer: Result<Value, &str>) {
        self.processes += 1;
        let mut invoke = Op::invoke(self.processes, f, asked);
        invoke.key = saga.map(|saga| self.sagas[saga].id.clone());
        let done = match answer {
            Ok(answer) => invoke.ok(answer),
            Err(why) => invoke.fail(why),
        };
        self.ops.extend([invoke, done]);
    }

    fn open(&mut self) -> Option<usize> {
        let open: Vec<usize> =
            (0..self.sagas.len()).filter(|saga| !self.sagas[*saga].state.is_closed()).collect();
        (!open.is_empty()).then(|| open[self.rng.random_range(0..open.len())])
    }

    fn begin(&mut self) {
        let plans: Vec<&'static Plan> =
            PLANS.iter().filter(|plan| plan.steps.iter().all(|step| step.work != Work::Child)).collect();
        let plan = plans[self.rng.random_range(0..plans.len())];
        let definition = saga_definition(plan).expect("a definition");
        let (state, change) = start(&definition, Begin::default(), self.now_ms);
        let saga = self.sagas.len();
        let id = format!("s{saga}");
        let row = self.rng.random_ratio(1, 3).then_some(7);
        if let Some(row) = row {
            self.rows.insert(row_key(&id, row), 1);
        }
        let one = One { id, plan, definition, state, lines: Vec::new(), outputs: BTreeMap::new() };
        self.sagas.push(one);
        self.note(saga, change);
        let asked = Value::Saga(Saga::Start(Start { saga: plan.name.to_owned(), input: 1, row }));
        self.op(F::Start, Some(saga), asked, Ok(Value::Saga(Saga::Started { already: false })));
    }

    fn note(&mut self, saga: usize, change: Change) {
        let one = &mut self.sagas[saga];
        for record in change.records {
            let line = line(one, record.step, record.what);
            one.lines.push(line);
        }
        for (step, output) in change.outputs {
            let name = one.definition.step(step).expect("a step").name.clone();
            one.outputs.insert(name, String::from_utf8(output.to_vec()).expect("a text"));
        }
    }

    fn apply(&mut self, saga: usize, event: Event) -> Result<(), Refusal> {
        let one = &mut self.sagas[saga];
        let (state, change) = apply(&one.state, &one.definition, self.now_ms, event)?;
        one.state = state;
        self.note(saga, change);
        Ok(())
    }

    fn hand_out(&mut self) {
        let Some(saga) = self.open() else { return };
        let one = &self.sagas[saga];
        let ready: Vec<(TaskRef, bool)> =
            one.state.ready(&one.definition).map(|(at, call)| (at, call.is_txn)).collect();
        let Some((at, is_txn)) = ready.first().copied() else { return };
        self.apply(saga, Event::HandOut { task: at, worker: "w".to_owned() }).expect("it is ready");
        let one = &self.sagas[saga];
        let task = one.state.task(at).expect("a task");
        let token = Token { task: at, fence: task.fence };
        let task = Task {
            step: one.definition.step(at.step).expect("a step").name.clone(),
            kind: at.kind.name().to_owned(),
            attempt: task.attempts,
            fence: task.fence,
        };
        self.processes += 1;
        let invoke =
            Op::invoke(self.processes, F::Work, Value::Saga(Saga::Task(task.clone()))).with_key(&one.id);
        self.ops.push(invoke.clone());
        self.out.push(Out { saga, token, task, is_txn, invoke });
    }

    fn ask(&mut self, saga: usize, step: &str, kind: &str, fence: u64) -> bool {
        let (stands, barred) = self.world.entry((saga, step.to_owned())).or_default();
        let refused = kind == "action" && fence <= *barred;
        match kind {
            "action" if !refused => *stands = true,
            "compensation" => (*stands, *barred) = (false, fence.max(*barred)),
            "check" if !*stands => *barred = fence.max(*barred),
            _ => {}
        }
        let answer = if kind == "check" { *stands } else { !refused };
        let effect = Saga::Effect(Effect { step: step.to_owned(), kind: kind.to_owned(), fence, refused });
        self.op(F::Effect, Some(saga), Value::Saga(effect.clone()), Ok(Value::Saga(effect)));
        answer
    }

    /// An attempt comes to something, or to nothing.
    fn end(&mut self) {
        if self.out.is_empty() {
            return;
        }
        let Out { saga, token, task, is_txn, invoke } =
            self.out.swap_remove(self.rng.random_range(0..self.out.len()));
        let plan = self.sagas[saga].plan;
        let step = plan.step(&task.step).expect("a step");
        let may_refuse = task.kind == "action" && !plan.is_past_pivot(step);
        let (message, is_final, did_nothing) = match self.rng.random_range(0..100) {
            0..60 => return self.succeed(saga, token, &task, is_txn, &invoke),
            60..70 => {
                if self.rng.random() && !is_txn {
                    self.late.push((saga, task.clone()));
                }
                return self.stale.push((saga, token, task));
            }
            70..80 if !is_txn => {
                self.ask(saga, &task.step, &task.kind, task.fence);
                ("unknown what was done", false, false)
            }
            80..88 if may_refuse => ("nothing can be done", true, true),
            _ => ("nothing was done", false, true),
        };
        let came = if did_nothing { Came::Nothing } else { Came::Unknown };
        self.ops.push(invoke.ok(Value::Saga(Saga::Came(came))));
        let failure = Failure { message: message.to_owned(), is_final, did_nothing, ..Failure::default() };
        // One whose lease has ended comes to nothing.
        let _ = self.apply(saga, Event::Fail { token, failure });
    }

    fn succeed(&mut self, saga: usize, token: Token, task: &Task, is_txn: bool, invoke: &Op) {
        let did = is_txn || self.ask(saga, &task.step, &task.kind, task.fence);
        let output = if task.kind == "check" { did.to_string() } else { format!("fence-{}", task.fence) };
        let bytes = Bytes::from(output.clone());
        let told = self.apply(saga, Event::Complete { token, output: bytes, is_committed: is_txn });
        self.ops.push(invoke.ok(Value::Saga(Saga::Came(Came::Done))));
        if is_txn {
            if told.is_ok() {
                let count = if task.kind == "action" { 1 } else { UNDONE };
                *self.rows.entry(count_key(&self.sagas[saga].id, &task.step)).or_default() += count;
            }
            return;
        }
        self.told(saga, task, output, told);
        self.stale.push((saga, token, task.clone()));
    }

    fn told(&mut self, saga: usize, task: &Task, output: String, told: Result<(), Refusal>) {
        let recorded = self.sagas[saga].outputs.get(&task.step).cloned();
        let recorded = if task.kind == "action" { recorded.unwrap_or_default() } else { String::new() };
        let answer = match told {
            Ok(()) => Ok(Saga::Told { already: false, recorded: String::new() }),
            Err(Refusal::Already) => Ok(Saga::Told { already: true, recorded }),
            Err(_) => Err("denied"),
        };
        let tell = Value::Saga(Saga::Tell(Tell { task: task.clone(), output: Some(output) }));
        self.op(F::Tell, Some(saga), tell, answer.map(Value::Saga));
    }

    fn tell_stale(&mut self) {
        if self.stale.is_empty() {
            return;
        }
        let (saga, token, task) = self.stale.swap_remove(self.rng.random_range(0..self.stale.len()));
        let one = &self.sagas[saga];
        let is_txn = one.plan.step(&task.step).is_some_and(|step| step.work == Work::Txn);
        if is_txn || task.kind == "check" {
            return;
        }
        self.ask(saga, &task.step, &task.kind, task.fence);
        let output = format!("again-{}", task.fence);
        let bytes = Bytes::from(output.clone());
        let told = self.apply(saga, Event::Complete { token, output: bytes, is_committed: false });
        self.told(saga, &task, output, told);
    }

    fn tick(&mut self) {
        self.now_ms += self.rng.random_range(20..300);
        for saga in 0..self.sagas.len() {
            // Nothing may be due.
            let _ = self.apply(saga, Event::Tick);
        }
    }

    fn cancel(&mut self) {
        let Some(saga) = self.open() else { return };
        let answer = match self.apply(saga, Event::Cancel { reason: "x".to_owned() }) {
            Ok(()) => Ok(Value::Int(1)),
            Err(Refusal::Already) => Ok(Value::Int(0)),
            Err(_) => Err("invalid"),
        };
        self.op(F::Cancel, Some(saga), Value::Nil, answer);
    }

    fn signal(&mut self) {
        let Some(saga) = self.open() else { return };
        let signal = Signal { id: self.rng.random(), name: "go".to_owned(), payload: Bytes::from("go") };
        let answer = self.apply(saga, Event::Signal(signal));
        self.op(F::Signal, Some(saga), Value::Nil, answer.map(|()| Value::Nil).map_err(|_| "invalid"));
    }

    fn arrive(&mut self) {
        if !self.late.is_empty() {
            let (saga, task) = self.late.swap_remove(self.rng.random_range(0..self.late.len()));
            self.ask(saga, &task.step, &task.kind, task.fence);
        }
    }

    fn operate(&mut self) {
        for saga in 0..self.sagas.len() {
            let one = &self.sagas[saga];
            let step = match one.state.pause {
                Some(Pause::Unknown { step } | Pause::Exhausted { step }) => step,
                _ => continue,
            };
            let name = one.definition.step(step).expect("a step").name.clone();
            if matches!(one.state.pause, Some(Pause::Unknown { .. })) {
                let is_done = self.ask(saga, &name, "check", LAST);
                self.apply(saga, Event::Resolve { step, is_done }).expect("it waits for that");
            } else if self.rng.random() {
                self.ask(saga, &name, "compensation", LAST);
                self.apply(saga, Event::Resolve { step, is_done: true }).expect("it waits for that");
            } else {
                self.apply(saga, Event::Retry { step: Some(step) }).expect("it waits for that");
            }
        }
    }

    fn read(&self, saga: usize) -> Value {
        let one = &self.sagas[saga];
        Value::Saga(Saga::Read(Box::new(Read {
            saga: one.plan.name.to_owned(),
            status: one.state.status().name().to_owned(),
            input: 1,
            parent: String::new(),
            outputs: one.outputs.clone(),
            lines: one.lines.clone(),
        })))
    }

    fn look(&mut self) {
        let Some(saga) = self.open() else { return };
        self.op(F::Inspect, Some(saga), Value::Nil, Ok(self.read(saga)));
        let status = self.sagas[saga].state.status().name().to_owned();
        self.op(F::Await, Some(saga), Value::Nil, Ok(Value::Saga(Saga::Status(status))));
    }

    fn list(&mut self) {
        if self.sagas.len() > 200 {
            return;
        }
        let sagas = self.sagas.iter().map(|one| (one.id.clone(), one.state.status().name().to_owned()));
        let list = Value::Saga(Saga::List(sagas.collect()));
        self.op(F::List, None, Value::Nil, Ok(list));
    }

    fn close(&mut self) {
        for saga in 0..self.sagas.len() {
            self.op(F::Inspect, Some(saga), Value::Int(1), Ok(self.read(saga)));
        }
        let sagas = self.sagas.iter().map(|one| (one.id.clone(), one.state.status().name().to_owned()));
        let list = Value::Saga(Saga::List(sagas.collect()));
        self.op(F::List, None, Value::Nil, Ok(list));
        let rows = Value::Balances(self.rows.clone());
        self.op(F::Read, None, Value::Nil, Ok(rows));
        let ends =
            |outcome: Outcome| self.sagas.iter().filter(|one| one.state.outcome() == Some(outcome)).count();
        assert!(self.sagas.len() < 20 || (ends(Outcome::Completed) > 0 && ends(Outcome::Compensated) > 0));
        assert!(self.sagas.iter().all(|one| one.plan.name != CHILD || one.state.status() != Status::Paused));
    }
}
