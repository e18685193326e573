//! Runs `src/saga/testscripts`. A script defines a saga, sends it events, and sees what becomes of it. `100: EVENT`
//! happens at 100 ms; what has no time of its own happens when the one before did.

use std::collections::BTreeMap;
use std::path::Path;

use goldenscript::{Argument, ArgumentConsumer, Command, Context, Runner};

use super::machine::Machine;
use super::notation::{self, Parsed};
use crate::saga::{
    Definition, Event, Failure, Outcome, Parent, Record, RecordKind, Refusal, Signal, Start, State, TaskKind,
    TaskRef, Token, call_of,
};

#[derive(Default)]
struct Script {
    definition: Option<Definition>,
    machine: Option<Machine>,
    kept: Option<State>,
    now_ms: u64,
}

/// An argument as a word.
fn word(argument: &Argument) -> String {
    match argument {
        Argument::KeyValue(key, value) => format!("{key}={value}"),
        Argument::Positional(value) => value.clone(),
        other => other.to_string(),
    }
}

fn refused(refusal: &Refusal) -> String {
    match refusal {
        Refusal::Stale { why } => format!("stale: {why}"),
        Refusal::Already => "already".to_owned(),
        Refusal::Unfit { why } => format!("unfit: {why}"),
    }
}

/// What an event that changes something changes, in a line.
fn outcome_line(machine: &Machine, state: &State, records: &[Record]) -> String {
    let definition = &machine.definition;
    let tasks = notation::show_tasks(definition, state, Some(&machine.state));
    let records: Vec<String> =
        records.iter().map(|record| notation::show_record(definition, record)).collect();
    format!("{} [{tasks}] {}", notation::show_way(definition, state), records.join("; "))
}

/// Every kind of event there is, about every task and step there is, and about some that are not.
fn every_event(machine: &Machine) -> Vec<(String, u64, Event)> {
    let (definition, now_ms) = (&machine.definition, machine.now_ms);
    let mut events = Vec::new();
    let mut add = |name: String, event: Event| events.push((name, now_ms, event));
    let nowhere = TaskRef { step: 99, kind: TaskKind::Action };
    let name_of = |at: TaskRef| match at == nowhere {
        true => "nowhere".to_owned(),
        false => notation::show_task(definition, at),
    };
    let exists = |at: &TaskRef| at.kind == TaskKind::Action || call_of(definition, *at).is_some();
    let tasks: Vec<TaskRef> = machine.tasks().filter(exists).chain([nowhere]).collect();
    for task in &tasks {
        add(format!("hand {}", name_of(*task)), Event::HandOut { task: *task, worker: "w".to_owned() });
    }
    let complete = |token, output: &'static str, is_committed| Event::Complete {
        token,
        output: output.into(),
        is_committed,
    };
    let about_token = |token: Token| {
        let mut all = vec![
            ("return", Event::Return { token }),
            ("beat", Event::Heartbeat { token }),
            ("fail", Event::Fail { token, failure: Failure::default() }),
            (
                "fail nothing",
                Event::Fail { token, failure: Failure { did_nothing: true, ..Failure::default() } },
            ),
            ("fail final", Event::Fail { token, failure: Failure { is_final: true, ..Failure::default() } }),
            ("complete", complete(token, "", false)),
        ];
        match token.task.kind {
            TaskKind::Check => {
                all.push(("complete true", complete(token, "true", false)));
                all.push(("complete false", complete(token, "false", false)));
            }
            _ => all.push(("commit", complete(token, "", true))),
        }
        if token.task.kind == TaskKind::Action {
            for outcome in Outcome::ALL {
                let created_ms = machine.state.created_ms;
                let event = Event::ChildClosed { token, created_ms, outcome, output: "".into() };
                all.push((outcome.name(), event));
            }
        }
        all
    };
    for task in &tasks {
        let last = machine.state.task(*task).map_or(0, |task| task.fence);
        if last > 0 {
            for (name, event) in about_token(Token { task: *task, fence: last }) {
                add(format!("{name} {}", name_of(*task)), event);
            }
        }
    }
    // Tokens of nothing, of what is yet to come, and of another task.
    let first = |kind| TaskRef { step: 0, kind };
    let (action, undo) = (first(TaskKind::Action), first(TaskKind::Compensation));
    for (task, fence) in [(action, 0), (action, machine.state.fence + 1), (undo, 1), (nowhere, 1)] {
        for (name, event) in about_token(Token { task, fence }) {
            add(format!("{name} {}@{fence}", name_of(task)), event);
        }
    }
    let signal = |id, name: &str| Event::Signal(Signal { id, name: name.to_owned(), payload: "p".into() });
    add("signal go".to_owned(), signal(77, "go"));
    add("signal other".to_owned(), signal(77, "other"));
    if let Some(id) = machine.state.seen_requests.first() {
        add("signal again".to_owned(), signal(*id, "go"));
    }
    let reason = || "why-not".to_owned();
    add("cancel".to_owned(), Event::Cancel { reason: reason() });
    add("terminate".to_owned(), Event::Terminate { reason: reason() });
    add("pause".to_owned(), Event::Pause { reason: reason() });
    add("resume".to_owned(), Event::Resume);
    add("retry".to_owned(), Event::Retry { step: None });
    for at in tasks.iter().filter(|task| task.kind == TaskKind::Action) {
        let (step, name) = (at.step, name_of(*at));
        add(format!("retry {name}"), Event::Retry { step: Some(step) });
        add(format!("resolve {name}"), Event::Resolve { step, is_done: true });
        add(format!("resolve {name} undone"), Event::Resolve { step, is_done: false });
        add(format!("reset {name}"), Event::Reset { step });
    }
    add(
        "delivered first".to_owned(),
        Event::Delivered { letter: machine.state.letters.first().map_or(0, |l| l.number) },
    );
    add("delivered nothing".to_owned(), Event::Delivered { letter: 99 });
    add("takeover".to_owned(), Event::TakenOver);
    add("tick".to_owned(), Event::Tick);
    events.push(("tick in an hour".to_owned(), now_ms + 3_600_000, Event::Tick));
    events.push(("tick in a year".to_owned(), now_ms + 31_536_000_000, Event::Tick));
    events
}

/// A name that says which events it stands for, with those that are alike taken together.
fn together(names: &[String]) -> String {
    let mut by_verb: Vec<(String, Vec<String>)> = Vec::new();
    for name in names {
        let (verb, what) = name.rsplit_once(' ').unwrap_or((name, ""));
        match by_verb.iter_mut().find(|(known, _)| known == verb) {
            Some((_, all)) => all.push(what.to_owned()),
            None => by_verb.push((verb.to_owned(), vec![what.to_owned()])),
        }
    }
    let shown = by_verb.iter().map(|(verb, all)| format!("{verb} {}", all.join("|")).trim_end().to_owned());
    shown.collect::<Vec<_>>().join(", ")
}

impl Script {
    fn machine(&mut self) -> Parsed<&mut Machine> {
        Ok(self.machine.as_mut().ok_or("no saga was started")?)
    }

    fn define(&mut self, definition: Definition) -> String {
        let json = definition.to_json();
        assert_eq!(Definition::from_json(&json).expect("its own JSON"), definition);
        self.definition = Some(definition);
        self.machine = None;
        json
    }

    /// `start parent=ID`.
    fn start(&mut self, args: &mut ArgumentConsumer<'_>) -> Parsed<String> {
        let definition = self.definition.clone().ok_or("nothing is defined")?;
        let task = TaskRef { step: 0, kind: TaskKind::Action };
        let token = Token { task, fence: 1 };
        let parent = args.take_key("parent").map(|id| Parent { id: id.to_owned(), created_ms: 7, token });
        let (machine, change) = Machine::new(definition, Start { parent, ..Start::default() }, self.now_ms);
        let out = notation::show(&machine.definition, &machine.state, &change);
        self.machine = Some(machine);
        Ok(out)
    }

    fn send(&mut self, words: &[&str]) -> Parsed<String> {
        let now_ms = self.now_ms;
        let machine = self.machine()?;
        let event = notation::event(machine, words)?;
        machine.now_ms = now_ms;
        Ok(match machine.send(event) {
            Ok(change) => notation::show(&machine.definition, &machine.state, &change),
            Err(refusal) => refused(&refusal),
        })
    }

    /// What every event would do now. Those that do the same are in one line.
    fn every(&mut self) -> Parsed<String> {
        let machine = self.machine()?;
        let mut lines: Vec<String> = Vec::new();
        let mut refusals: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (name, now_ms, event) in every_event(machine) {
            match machine.attempt(now_ms, event) {
                Ok((state, _)) if state == machine.state => lines.push(format!("{name} => nothing")),
                Ok((state, change)) => {
                    lines.push(format!("{name} => {}", outcome_line(machine, &state, &change.records)));
                }
                Err(refusal) => refusals.entry(refused(&refusal)).or_default().push(name),
            }
        }
        lines.extend(refusals.iter().map(|(refusal, names)| format!("{refusal} <= {}", together(names))));
        Ok(lines.join("\n"))
    }

    /// `drive`: willing workers and the clock do all that is left. Its records, each with its time.
    fn drive(machine: &mut Machine) -> Vec<Record> {
        let mut records = Vec::new();
        for _ in 0..500 {
            let Some((now_ms, event)) = machine.willing() else { return records };
            machine.now_ms = now_ms;
            let change =
                machine.send(event.clone()).unwrap_or_else(|refusal| panic!("{event:?}: {refusal:?}"));
            records.extend(change.records);
        }
        panic!("it does not come to an end: {:?}", machine.state);
    }

    /// `sweep EVENT`: the event after each event of a saga that all are willing to do, and what comes of it.
    fn sweep(&mut self, words: &[&str]) -> Parsed<String> {
        let definition = self.definition.clone().ok_or("nothing is defined")?;
        let mut out = Vec::new();
        let (mut machine, _) = Machine::new(definition.clone(), Start::default(), 0);
        let mut last = "start".to_owned();
        loop {
            let (state, now_ms) = (machine.state.clone(), machine.now_ms);
            let event = notation::event(&machine, words)?;
            let came = match machine.send(event) {
                Err(refusal) => refused(&refusal),
                Ok(change) => {
                    let mut records = change.records;
                    records.extend(Self::drive(&mut machine));
                    let is_told = |record: &&Record| !matches!(record.what, RecordKind::HandedOut { .. });
                    let shown = records.iter().filter(is_told);
                    let shown: Vec<_> =
                        shown.map(|record| notation::show_record(&definition, record)).collect();
                    shown.join("; ")
                }
            };
            out.push(format!("{last} => {came}"));
            (machine.state, machine.now_ms) = (state, now_ms);
            let Some((now_ms, event)) = machine.willing() else { break };
            machine.now_ms = now_ms;
            let change = machine.send(event).map_err(|refusal| refused(&refusal))?;
            let what = change.records.iter().map(|record| notation::show_record(&definition, record));
            last = what.collect::<Vec<_>>().join("; ");
        }
        Ok(out.join("\n"))
    }
}

impl Runner for Script {
    type Command = Command;

    fn run(&mut self, command: &Command, context: &Context) -> Parsed<String> {
        if let Some(prefix) = &context.prefix {
            self.now_ms = prefix.parse()?;
        }
        if command.name.starts_with('{') {
            return Ok(self.define(Definition::from_json(&command.name)?));
        }
        let mut args = command.consume_args();
        let words: Vec<String> = command.args.iter().map(word).collect();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        match command.name.as_str() {
            "define" => {
                let definition = notation::document(&words)?.check()?;
                self.define(definition);
                Ok(String::new())
            }
            "start" => self.start(&mut args),
            "keep" => {
                self.kept = Some(self.machine()?.state.clone());
                Ok(String::new())
            }
            // The state that was kept: what came after it was never stored.
            "back" => {
                self.machine()?.state = self.kept.clone().ok_or("nothing was kept")?;
                Ok(String::new())
            }
            "every" => self.every(),
            "sweep" => self.sweep(&words),
            "drive" => {
                let now_ms = self.now_ms;
                let machine = self.machine()?;
                machine.now_ms = now_ms;
                let records = Self::drive(machine);
                let show = |record: &Record| {
                    format!("{}: {}", record.at_ms, notation::show_record(&machine.definition, record))
                };
                let shown: Vec<_> = records.iter().map(show).collect();
                self.now_ms = machine.now_ms;
                Ok(shown.join("\n"))
            }
            name => {
                let words: Vec<&str> = std::iter::once(name).chain(words).collect();
                self.send(&words)
            }
        }
    }
}

#[test]
fn scripts() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/saga/testscripts");
    let entries = std::fs::read_dir(&dir).expect("the directory of scripts");
    let mut paths: Vec<_> = entries.map(|entry| entry.expect("an entry").path()).collect();
    paths.sort();
    assert!(!paths.is_empty(), "no scripts in {}", dir.display());
    for path in paths {
        let mut script = Script::default();
        goldenscript::run(&mut script, &path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }
}
