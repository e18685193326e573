//! Runs `src/shard/testscripts`: each entry and each read on both engines.

use std::fmt::Write as _;

use goldenscript::{ArgumentConsumer, Command as Line, Context, Runner};

use super::*;
use crate::codec;
use crate::engine::{Batch, Family, Overlay};
use crate::mvcc::testing::{self, Engines, ScriptResult, bytes, show};
use crate::shard::{self, Fates, Page, PageRequest, read::scan_page_examining};
use crate::types::{Condition, Direction, Expect, Outcome, Record, Result, Step};

/// One replica, on two engines.
struct Shard {
    engines: Engines,
    state: State,
    /// Commands of lines with the tag `more`: they go into the entry of the next line without it.
    waiting: Vec<Command>,
    next_unique: u128,
}

impl Shard {
    fn new() -> Self {
        Self { engines: Engines::new(), state: new_state(), waiting: Vec::new(), next_unique: 1 }
    }

    /// Applies an entry on both engines, and shows outcomes, and writes where asked for.
    fn apply(&mut self, entry: &Entry, raw: bool) -> ScriptResult<String> {
        let (state, batch, outcomes) =
            self.engines.on_both(|engine| -> Result<(State, Batch, Vec<Outcome>)> {
                let view = engine.view();
                let mut overlay = Overlay::new(view.as_ref());
                let mut state = self.state.clone();
                let outcomes = shard::apply(&mut state, &mut overlay, entry)?;
                Ok((state, overlay.into_batch(), outcomes))
            })?;
        self.engines.write(&batch);
        self.state = state;
        let mut out = String::new();
        for outcome in outcomes {
            writeln!(out, "{outcome:?}")?;
        }
        if raw {
            out += &show_writes(&batch);
        }
        Ok(out)
    }

    /// `OPERATION... ts=N [id=SEEN.UNIQUE]`: without an id, a new one that has seen all that was applied.
    fn command(&mut self, name: &str, args: &mut ArgumentConsumer<'_>) -> ScriptResult<Command> {
        let timestamp = testing::optional_ts(args, "ts")?.ok_or("no ts")?;
        let id = match args.take_key("id") {
            Some(id) => testing::request_id(id)?,
            None => {
                self.next_unique += 1;
                RequestId { seen: self.state.closed, unique: 1000 + self.next_unique }
            }
        };
        Ok(Command { id, timestamp, operation: operation(name, args)? })
    }

    /// `get KEY [at=N]`.
    fn get(&self, args: &mut ArgumentConsumer<'_>) -> ScriptResult<String> {
        let at = testing::optional_ts(args, "at")?;
        let key = bytes(args.next_pos().ok_or("no key")?);
        let record = self.engines.on_both(|engine| {
            let at = at.unwrap_or(Timestamp::MAX);
            shard::look(engine.view().as_ref(), self.state.counts, &key, at, &Fates::new())?.unlocked()
        })?;
        Ok(format!("{} → {}", show(&key), record.map_or("nothing".into(), |record| show_record(&record))))
    }

    /// `scan [FROM [TO]] [at=N] [reverse=true] [keys=true] [rows=N] [bytes=N] [examine=N] [all=true]`: a page,
    /// or all of them.
    fn scan(&self, args: &mut ArgumentConsumer<'_>) -> ScriptResult<String> {
        let mut request = PageRequest {
            at: testing::optional_ts(args, "at")?.unwrap_or(Timestamp::MAX),
            direction: testing::direction(args)?,
            keys_only: testing::optional(args, "keys")?.unwrap_or(false),
            max_rows: testing::optional(args, "rows")?.unwrap_or(usize::MAX),
            max_bytes: testing::optional(args, "bytes")?.unwrap_or(usize::MAX),
            range: KeyRange::all(),
        };
        let examine = testing::optional(args, "examine")?.unwrap_or(shard::MAX_EXAMINED_ROWS);
        let all = testing::optional(args, "all")?.unwrap_or(false);
        request.range = testing::key_range(args);
        let mut out = String::new();
        loop {
            let page = self.engines.on_both(|engine| {
                let (view, fates) = (engine.view(), Fates::new());
                scan_page_examining(view.as_ref(), self.state.counts, &request, &fates, examine)?.unlocked()
            })?;
            show_page(&mut out, &page, request.direction)?;
            match page.next {
                Some(next) if all => request = request.rest(next),
                _ => return Ok(out),
            }
        }
    }

    fn show_state(&self) -> String {
        let State { closed, ceiling, checksum, .. } = &self.state;
        format!("closed {closed} ceiling {ceiling} checksum {checksum:016x}")
    }
}

pub(super) fn operation(name: &str, args: &mut ArgumentConsumer<'_>) -> ScriptResult<Operation> {
    if name == "batch" {
        return batch(args);
    }
    let key = bytes(args.next_pos().ok_or("no key")?);
    Ok(match name {
        "put" => Operation::Put { key, value: bytes(args.next_pos().ok_or("no value")?) },
        "delete" => Operation::Delete { key },
        "add" => Operation::Add { key, delta: args.next_pos().ok_or("no delta")?.parse()? },
        "cas" => {
            let value = args.next_pos().map(bytes);
            let (expect, with) = args.next_key().ok_or("nothing expected")?;
            Operation::CompareAndSwap { key, expect: expected(expect, with)?, value }
        }
        name => return Err(format!("no command {name}").into()),
    })
}

/// `absent=`, `present=`, `version=N`, `commit=N`, `value=V`.
fn expected(what: &str, with: &str) -> ScriptResult<Expect> {
    Ok(match what {
        "absent" => Expect::Absent,
        "present" => Expect::Present,
        "version" => Expect::Version(with.parse()?),
        "commit" => Expect::CommitTs(testing::timestamp(with)?),
        "value" => Expect::Value(bytes(with)),
        other => return Err(format!("can't expect {other}").into()),
    })
}

/// `if="KEY EXPECT=WITH" then="put KEY VALUE" else="get KEY"`, each as often as wanted.
fn batch(args: &mut ArgumentConsumer<'_>) -> ScriptResult<Operation> {
    let (mut conditions, mut then, mut otherwise) = (Vec::new(), Vec::new(), Vec::new());
    while let Some((part, text)) = args.next_key() {
        match part {
            "if" => {
                let (key, expect) = text.split_once(' ').ok_or("a condition is KEY EXPECT=WITH")?;
                let (what, with) = expect.split_once('=').ok_or("a condition is KEY EXPECT=WITH")?;
                conditions.push(Condition { key: bytes(key), expect: expected(what, with)? });
            }
            "then" => then.push(step(text)?),
            "else" => otherwise.push(step(text)?),
            other => return Err(format!("a batch has no {other}").into()),
        }
    }
    Ok(Operation::Batch { conditions, then, otherwise })
}

fn step(text: &str) -> ScriptResult<Step> {
    let words: Vec<_> = text.split(' ').collect();
    Ok(match words[..] {
        ["put", key, value] => Step::Put { key: bytes(key), value: bytes(value) },
        ["delete", key] => Step::Delete { key: bytes(key) },
        ["add", key, delta] => Step::Add { key: bytes(key), delta: delta.parse()? },
        ["get", key] => Step::Get { key: bytes(key) },
        _ => return Err(format!("no step {text:?}").into()),
    })
}

pub(super) fn show_record(record: &Record) -> String {
    let Record { value, commit_ts, create_ts, version } = record;
    format!("{} @{commit_ts} created {create_ts} v{version}", show(value))
}

fn show_page(out: &mut String, page: &Page, direction: Direction) -> std::fmt::Result {
    for (key, record) in &page.rows {
        writeln!(out, "{} → {}", show(key), show_record(record))?;
    }
    match (&page.next, direction) {
        (None, _) => writeln!(out, "end"),
        (Some(next), Direction::Forward) => writeln!(out, "next from {}", show(next)),
        (Some(next), Direction::Reverse) => writeln!(out, "next before {}", show(next)),
    }
}

/// Writes, with the lengths of markers in the place of their bytes.
fn show_writes(batch: &Batch) -> String {
    let shown = testing::show_batch(batch.entries());
    let lines = shown.lines().map(|line| match line.strip_prefix("write txn ") {
        Some(marker) => format!("mark {}\n", marker.split(" = ").next().unwrap_or_default()),
        None => format!("{line}\n"),
    });
    lines.collect()
}

impl Runner for Shard {
    type Command = Line;

    fn run(&mut self, line: &Line, context: &Context) -> ScriptResult<String> {
        let mut args = line.consume_args();
        let raw = context.tags.contains("raw");
        let out = match line.name.as_str() {
            "get" => self.get(&mut args)?,
            "scan" => self.scan(&mut args)?,
            "state" => self.show_state(),
            "dump" => self.engines.on_both(|engine| testing::dump(engine.view().as_ref())),
            "sum" => {
                let mut state = self.state.clone();
                state.descriptor.range = testing::key_range(&mut args);
                let sum =
                    self.engines.on_both(|engine| shard::checksum_rows(engine.view().as_ref(), &state))?;
                format!("{} rows {:016x}", sum.rows, sum.hash)
            }
            "range" => {
                self.state.descriptor.range = testing::key_range(&mut args);
                String::new()
            }
            "raise" => {
                let ceiling = testing::timestamp(args.next_pos().ok_or("no ceiling")?)?;
                self.apply(&Entry::RaiseCeiling { ceiling }, raw)?
            }
            "markers" => self.markers()?,
            name => {
                let command = self.command(name, &mut args)?;
                self.waiting.push(command);
                if context.tags.contains("more") {
                    return Ok(String::new());
                }
                let commands = std::mem::take(&mut self.waiting);
                self.apply(&Entry::Commands(commands), raw)?
            }
        };
        args.reject_next()?;
        Ok(out)
    }
}

impl Shard {
    /// The keys of all markers, with their ids.
    fn markers(&self) -> ScriptResult<String> {
        self.engines
            .on_both(|engine| {
                let view = engine.view();
                let mut out = String::new();
                for row in view.scan(Family::Txn, &KeyRange::all(), Direction::Forward) {
                    let (key, _) = row.map_err(|error| error.message)?;
                    let mut input = &key[..];
                    let parts = (
                        codec::ordered::take_bytes(&mut input),
                        codec::ordered::take_u64(&mut input),
                        codec::ordered::take_u128(&mut input),
                    );
                    let (Some(key), Some(seen), Some(unique)) = parts else { return Err("malformed".into()) };
                    writeln!(out, "{} {seen}.{unique}", show(&key)).map_err(|error| error.to_string())?;
                }
                Ok::<_, String>(out)
            })
            .map_err(Into::into)
    }
}

#[test]
fn scripts() {
    testing::run_scripts("src/shard/testscripts", Shard::new);
}
