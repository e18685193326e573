//! Runs `src/shard/txn_testscripts`: transactions over several shards, each entry and each read on both
//! engines. The oracle counts up by ten: every command and every `begin` takes the next timestamp.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use goldenscript::{ArgumentConsumer, Command as Line, Context, Runner};

use super::scripts::{operation, show_record};
use super::*;
use crate::engine::{Batch, DropRules, Family, View};
use crate::mvcc::testing::{self, Engines, ScriptResult, bytes, show};
use crate::mvcc::{self, Floors};
use crate::shard::lock::{self, Kind};
use crate::shard::{self, Fate, PageLook, PageRequest, record};
use crate::types::{
    Decision, Direction, Lock, Result, TxnCommand, TxnId, TxnOutcome, TxnPart, TxnStatus, TxnWrite,
};

/// A transaction as its client and its coordinator know it.
struct Txn {
    id: TxnId,
    part: TxnPart,
    /// The largest timestamp of its prepares.
    prepared: Option<Timestamp>,
    /// When it was committed, as its coordinator has heard.
    committed: Option<Timestamp>,
}

impl Txn {
    /// The smallest written key.
    fn primary(&self) -> ScriptResult<Bytes> {
        Ok(self.part.writes.iter().map(TxnWrite::key).min().ok_or("it writes nothing")?.clone())
    }

    fn read(&mut self, key: Bytes) {
        self.part.reads.push(key);
        self.part.reads.sort();
        self.part.reads.dedup();
    }

    fn write(&mut self, write: TxnWrite) {
        self.part.writes.retain(|other| other.key() != write.key());
        self.part.writes.push(write);
        self.part.writes.sort_by(|a, b| a.key().cmp(b.key()));
    }
}

/// Shards side by side on one node, as on a store's engine.
struct Shards {
    engines: Engines,
    states: Vec<State>,
    txns: BTreeMap<String, Txn>,
    fates: Fates,
    floors: std::sync::Arc<Floors>,
    holds: Vec<mvcc::Hold>,
    now: Timestamp,
    next_unique: u128,
}

impl Shards {
    fn new() -> Self {
        let engines = Engines::new();
        let floors = Floors::new(shard::may_drop);
        engines.on_both(|engine| engine.set_drop_rules(floors.clone()));
        Self {
            engines,
            states: vec![new_state()],
            txns: BTreeMap::new(),
            fates: Fates::new(),
            floors,
            holds: Vec::new(),
            now: Timestamp(0),
            next_unique: 100,
        }
    }

    /// `ts=N` sets the oracle on; else the next timestamp.
    fn tick(&mut self, args: &mut ArgumentConsumer<'_>) -> ScriptResult<Timestamp> {
        self.now = testing::optional_ts(args, "ts")?.unwrap_or(self.now.plus(10));
        Ok(self.now)
    }

    /// `shards CUT...`: cuts the keyspace. Before anything is applied.
    fn cut(&mut self, args: &mut ArgumentConsumer<'_>) {
        let mut start = Bytes::new();
        self.states.clear();
        loop {
            let end = args.next_pos().map(bytes);
            let mut state = new_state();
            state.descriptor.id = ShardId(self.states.len() as u64);
            state.descriptor.range = KeyRange { start, end: end.clone() };
            self.states.push(state);
            match end {
                Some(end) => start = end,
                None => return,
            }
        }
    }

    fn shard_of(&self, key: &[u8]) -> usize {
        let holds = |state: &State| state.descriptor.range.contains(key);
        self.states.iter().position(holds).expect("the shards cover all keys")
    }

    /// Applies a command to a shard, on both engines.
    fn apply(&mut self, shard: usize, command: Command) -> ScriptResult<Outcome> {
        let entry = Entry::Commands(vec![command]);
        let (state, batch, mut outcomes) =
            self.engines.on_both(|engine| -> Result<(State, Batch, Vec<Outcome>)> {
                let view = engine.view();
                let mut overlay = Overlay::new(view.as_ref());
                let mut state = self.states[shard].clone();
                let outcomes = shard::apply(&mut state, &mut overlay, &entry)?;
                Ok((state, overlay.into_batch(), outcomes))
            })?;
        self.engines.write(&batch);
        self.states[shard] = state;
        self.check_counts(shard);
        Ok(outcomes.pop().ok_or("no outcome")?)
    }

    /// The counts are those of the rows.
    fn check_counts(&self, shard: usize) {
        let state = &self.states[shard];
        let range = &state.descriptor.range;
        let (locks, read_locks, range_locks) = self.engines.on_both(|engine| {
            let view = engine.view();
            let locks: Vec<_> = lock::scan(view.as_ref(), range, Direction::Forward)
                .map(|held| held.expect("a lock"))
                .collect();
            let ranges = locks.iter().filter(|held| matches!(held.kind, Kind::Range { .. })).count();
            let reads = locks.iter().filter(|held| held.kind == Kind::Read).count();
            (locks.len() as u64, reads as u64, ranges as u64)
        });
        let committed = self
            .engines
            .on_both(|engine| shard::unfinished(engine.view().as_ref(), range, usize::MAX, |_| false));
        let committed = committed.expect("reads").len() as u64;
        assert_eq!(state.counts, Counts { locks, read_locks, range_locks, committed });
    }

    fn run_txn(
        &mut self,
        txn: &str,
        shard: usize,
        command: TxnCommand,
        args: &mut ArgumentConsumer<'_>,
    ) -> ScriptResult<Outcome> {
        let timestamp = self.tick(args)?;
        let id = self.txn(txn)?.id;
        let outcome = self.apply(shard, Command { id, timestamp, operation: Operation::Txn(command) })?;
        match &outcome {
            Outcome::Txn(TxnOutcome::Prepared { prepare_ts }) => {
                let prepared = &mut self.txn(txn)?.prepared;
                *prepared = (*prepared).max(Some(*prepare_ts));
            }
            Outcome::Txn(TxnOutcome::Committed { commit_ts }) => self.txn(txn)?.committed = Some(*commit_ts),
            _ => {}
        }
        Ok(outcome)
    }

    fn txn(&mut self, name: &str) -> ScriptResult<&mut Txn> {
        Ok(self.txns.get_mut(name).ok_or_else(|| format!("no transaction {name}"))?)
    }

    fn name(&self, id: TxnId) -> String {
        let name = self.txns.iter().find(|(_, txn)| txn.id == id).map(|(name, _)| name.clone());
        name.unwrap_or_else(|| id.to_string())
    }

    /// The shards that hold a part of a transaction, that of the primary first.
    fn participants(&mut self, name: &str) -> ScriptResult<Vec<usize>> {
        let primary = self.txn(name)?.primary()?;
        let home = self.shard_of(&primary);
        let part = self.txn(name)?.part.clone();
        let others = (0..self.states.len())
            .filter(|shard| *shard != home && !part.within(&self.states[*shard].descriptor.range).is_empty());
        Ok(std::iter::once(home).chain(others).collect())
    }

    fn spans(&mut self, name: &str) -> ScriptResult<Vec<KeyRange>> {
        let shards = self.participants(name)?;
        let part = self.txn(name)?.part.clone();
        let span = |shard: &usize| part.within(&self.states[*shard].descriptor.range).span();
        Ok(shards.iter().filter_map(span).collect())
    }

    /// `T: prepare [shard=N] [staging=true]`.
    fn prepare(
        &mut self,
        name: &str,
        shard: usize,
        staging: bool,
        args: &mut ArgumentConsumer<'_>,
    ) -> ScriptResult<Outcome> {
        let range = self.states[shard].descriptor.range.clone();
        let txn = self.txn(name)?;
        let primary = txn.primary()?;
        let listed = (staging && range.contains(&primary)).then(|| txn.part.keys());
        let part = txn.part.within(&range);
        self.run_txn(name, shard, TxnCommand::Prepare { primary, part, listed }, args)
    }

    /// `T: commit`: all that its coordinator does, by the path that its content asks for.
    fn commit(&mut self, name: &str, args: &mut ArgumentConsumer<'_>) -> ScriptResult<String> {
        let shards = self.participants(name)?;
        let primary = self.txn(name)?.primary()?;
        let part = self.txn(name)?.part.clone();
        if let [shard] = shards[..] {
            let outcome = self.run_txn(name, shard, TxnCommand::Commit { primary, part }, args)?;
            return Ok(self.show(&outcome));
        }
        let parallel = part.ranges.is_empty();
        let mut refused = None;
        for shard in &shards {
            match self.prepare(name, *shard, parallel, args)? {
                Outcome::Txn(TxnOutcome::Prepared { .. }) => {}
                outcome => refused = refused.or(Some(outcome)),
            }
        }
        let spans = self.spans(name)?;
        let decide = match refused {
            None => TxnCommand::Decide {
                primary,
                commit_ts: self.txn(name)?.prepared.filter(|_| parallel),
                spans: spans.clone(),
            },
            Some(_) => TxnCommand::Abort { primary, certain: true, spans: spans.clone() },
        };
        let decided = self.run_txn(name, shards[0], decide, args)?;
        let decision = match decided {
            Outcome::Txn(TxnOutcome::Committed { commit_ts }) => Decision::Committed { commit_ts },
            _ => Decision::Aborted,
        };
        for (shard, span) in shards.iter().zip(spans).skip(1) {
            self.run_txn(name, *shard, TxnCommand::Finish { span, decision }, args)?;
        }
        let primary = self.txn(name)?.primary()?;
        self.run_txn(name, shards[0], TxnCommand::Forget { primary }, args)?;
        Ok(self.show(&refused.unwrap_or(decided)))
    }

    /// A step of the protocol on its own. `decide parallel=true` commits at the largest prepare timestamp, a
    /// plain one at its own. `finish` ends it as its coordinator knows that it ended.
    fn step(&mut self, name: &str, step: &str, args: &mut ArgumentConsumer<'_>) -> ScriptResult<Outcome> {
        let shard: Option<usize> = testing::optional(args, "shard")?;
        let commit_ts = testing::optional_ts(args, "commit")?;
        if step == "mark" {
            let key = bytes(args.next_pos().ok_or("no key")?);
            return self.run_txn(name, self.shard_of(&key), TxnCommand::Mark { key }, args);
        }
        let primary = self.txn(name)?.primary()?;
        let home = self.shard_of(&primary);
        let shard = shard.unwrap_or(home);
        let part = self.txn(name)?.part.clone();
        let command = match step {
            "prepare" => {
                let staging = testing::optional(args, "staging")?.unwrap_or(false);
                return self.prepare(name, shard, staging, args);
            }
            "commit-here" => TxnCommand::Commit { primary, part },
            "decide" => {
                let parallel = testing::optional(args, "parallel")?.unwrap_or(false);
                let commit_ts = commit_ts.or(self.txn(name)?.prepared.filter(|_| parallel));
                TxnCommand::Decide { primary, commit_ts, spans: self.spans(name)? }
            }
            "abort" => {
                let certain = testing::optional(args, "certain")?.unwrap_or(false);
                let spans = self.spans(name)?;
                TxnCommand::Abort { primary, certain, spans }
            }
            "finish" => {
                let part = part.within(&self.states[shard].descriptor.range);
                let span = part.span().ok_or("nothing in this shard")?;
                let commit_ts = commit_ts.or(self.txn(name)?.committed);
                let decision =
                    commit_ts.map_or(Decision::Aborted, |commit_ts| Decision::Committed { commit_ts });
                TxnCommand::Finish { span, decision }
            }
            "forget" => TxnCommand::Forget { primary },
            step => return Err(format!("no step {step}").into()),
        };
        self.run_txn(name, shard, command, args)
    }

    /// What a key holds at a timestamp, with what is known of transactions.
    fn look(&self, key: &Bytes, at: Timestamp) -> ScriptResult<String> {
        let state = &self.states[self.shard_of(key)];
        if let Err(error) = shard::check_readable(state, at) {
            return Ok(format!("{}: {}", error.kind, error.message));
        }
        let seen = self
            .engines
            .on_both(|engine| shard::look(engine.view().as_ref(), state.counts, key, at, &self.fates))?;
        Ok(match seen {
            Look::Value(None) => format!("{} → nothing", show(key)),
            Look::Value(Some(record)) => format!("{} → {}", show(key), show_record(&record)),
            Look::Locked(lock) => format!("{} → {}", show(key), self.show_lock(&lock)),
        })
    }

    /// Pages over all shards.
    fn scan(
        &self,
        range: &KeyRange,
        at: Timestamp,
        direction: Direction,
        rows: usize,
    ) -> ScriptResult<String> {
        let mut out = String::new();
        let mut states: Vec<_> = self.states.iter().collect();
        if direction == Direction::Reverse {
            states.reverse();
        }
        for state in states {
            let Some(range) = state.descriptor.range.intersect(range) else { continue };
            let mut request =
                PageRequest { range, direction, keys_only: false, at, max_rows: rows, max_bytes: usize::MAX };
            loop {
                let look = self.engines.on_both(|engine| {
                    shard::scan_page(engine.view().as_ref(), state.counts, &request, &self.fates)
                })?;
                let page = match look {
                    PageLook::Page(page) => page,
                    PageLook::Locked(locks) => {
                        for lock in locks {
                            writeln!(out, "{} {}", show(&lock.key), self.show_lock(&lock))?;
                        }
                        break;
                    }
                };
                for (key, record) in &page.rows {
                    writeln!(out, "{} → {}", show(key), show_record(record))?;
                }
                match page.next {
                    Some(next) => request = request.rest(next),
                    None => break,
                }
            }
        }
        Ok(out)
    }

    fn show_lock(&self, lock: &Lock) -> String {
        let Lock { txn, primary, prepare_ts, .. } = lock;
        format!("locked by {} @{prepare_ts}, primary {}", self.name(*txn), show(primary))
    }

    /// An outcome, with names for transactions.
    fn show(&self, outcome: &Outcome) -> String {
        let mut shown = format!("{outcome:?}\n");
        for (name, txn) in &self.txns {
            shown = shown.replace(&format!("{:?}", txn.id), name);
        }
        shown
    }

    /// Every lock row.
    fn locks(&self) -> ScriptResult<String> {
        let locks = self.engines.on_both(|engine| {
            let view = engine.view();
            lock::scan(view.as_ref(), &KeyRange::all(), Direction::Forward).collect::<Result<Vec<_>>>()
        })?;
        let mut out = String::new();
        for held in locks {
            let kind = match &held.kind {
                Kind::Read => "read".to_owned(),
                Kind::Write { value: None } => "removed".to_owned(),
                Kind::Write { value: Some(value) } => format!("written {}", show(value)),
                Kind::Range { end: None } => "range to the end".to_owned(),
                Kind::Range { end: Some(end) } => format!("range to {}", show(end)),
            };
            writeln!(out, "{} {kind}, {}", show(&held.key), self.show_lock(&held.lock()))?;
        }
        Ok(out)
    }

    /// Every record and marker.
    fn records(&self) -> ScriptResult<String> {
        let rows = self.engines.on_both(|engine| {
            let view: Box<dyn View> = engine.view();
            let rows = view.scan(Family::Txn, &KeyRange::all(), Direction::Forward);
            rows.collect::<Result<Vec<_>>>()
        })?;
        let mut out = String::new();
        for (row, value) in rows {
            let (key, id) = record::parse_key(&row).ok_or("malformed")?;
            writeln!(out, "{} {} {:?}", show(&key), self.name(id), record::decode(&value)?)?;
        }
        Ok(out)
    }

    fn status(&mut self, name: &str) -> ScriptResult<String> {
        let (id, primary) = (self.txn(name)?.id, self.txn(name)?.primary()?);
        let state = &self.states[self.shard_of(&primary)];
        let status: TxnStatus =
            self.engines.on_both(|engine| shard::txn_status(engine.view().as_ref(), state, &primary, id))?;
        Ok(format!("{status:?}\n"))
    }

    /// `T: begin`, then reads that are kept in the read set, and writes that are kept until the commit.
    fn client(&mut self, name: &str, line: &str, args: &mut ArgumentConsumer<'_>) -> ScriptResult<String> {
        if line == "begin" {
            let seen = self.tick(args)?;
            let unique = self.txns.len() as u128 + 1;
            let (id, part) = (TxnId { seen, unique }, TxnPart::default());
            let txn = Txn { id, part, prepared: None, committed: None };
            self.txns.insert(name.to_owned(), txn);
            return Ok(String::new());
        }
        let at = self.txn(name)?.id.seen;
        if line == "scan" {
            let range = testing::key_range(args);
            self.txn(name)?.part.ranges.push(range.clone());
            return self.scan(&range, at, Direction::Forward, usize::MAX);
        }
        let key = bytes(args.next_pos().ok_or("no key")?);
        match line {
            "get" => {
                self.txn(name)?.read(key.clone());
                return self.look(&key, at);
            }
            "put" => {
                let value = bytes(args.next_pos().ok_or("no value")?);
                self.txn(name)?.write(TxnWrite::Put { key, value });
            }
            "delete" => self.txn(name)?.write(TxnWrite::Delete { key }),
            "add" => {
                let delta = args.next_pos().ok_or("no delta")?.parse()?;
                self.txn(name)?.write(TxnWrite::Add { key, delta });
            }
            line => return Err(format!("no command {line}").into()),
        }
        Ok(String::new())
    }

    fn transaction(
        &mut self,
        name: &str,
        line: &Line,
        args: &mut ArgumentConsumer<'_>,
    ) -> ScriptResult<String> {
        Ok(match line.name.as_str() {
            "commit" => self.commit(name, args)?,
            "status" => self.status(name)?,
            "lock" => {
                let key = bytes(args.next_pos().ok_or("no key")?);
                let id = self.txn(name)?.id;
                let held = self.engines.on_both(|engine| shard::lock_of(engine.view().as_ref(), &key, id))?;
                format!("{held:?}\n")
            }
            "fate" => {
                let fate = match testing::optional_ts(args, "commit")? {
                    Some(commit_ts) => Fate::Committed { commit_ts },
                    None => Fate::NotBelow,
                };
                let id = self.txn(name)?.id;
                self.fates.insert(id, fate);
                String::new()
            }
            step @ ("prepare" | "commit-here" | "decide" | "abort" | "mark" | "finish" | "forget") => {
                let outcome = self.step(name, step, args)?;
                self.show(&outcome)
            }
            line => self.client(name, line, args)?,
        })
    }

    /// A command of no transaction, under a new id or `id=SEEN.UNIQUE`.
    fn plain(&mut self, name: &str, args: &mut ArgumentConsumer<'_>) -> ScriptResult<String> {
        let (timestamp, id) = (self.tick(args)?, args.take_key("id").map(testing::request_id).transpose()?);
        let operation = match name {
            "safepoint" => {
                let safe_point = testing::timestamp(args.next_pos().ok_or("no timestamp")?)?;
                Operation::AdvanceSafePoint { safe_point, truncated: safe_point }
            }
            name => operation(name, args)?,
        };
        self.next_unique += 1;
        let new = RequestId { seen: Timestamp(timestamp.0 - 1), unique: self.next_unique };
        let id = id.unwrap_or(new);
        let shards = match operation.keys().first() {
            Some(key) => vec![self.shard_of(key)],
            None => (0..self.states.len()).collect(),
        };
        let mut out = String::new();
        for shard in shards {
            let outcome = self.apply(shard, Command { id, timestamp, operation: operation.clone() })?;
            out += &self.show(&outcome);
        }
        Ok(out)
    }

    /// `expired before=N [limit=N]`: what a leader recovers, shard by shard.
    fn expired(&self, args: &mut ArgumentConsumer<'_>) -> ScriptResult<String> {
        let before = testing::optional_ts(args, "before")?.unwrap_or(Timestamp::MAX);
        let limit = testing::optional(args, "limit")?.unwrap_or(usize::MAX);
        let mut out = String::new();
        for state in &self.states {
            let range = &state.descriptor.range;
            let locks = self.engines.on_both(|engine| {
                shard::expired_locks(engine.view().as_ref(), range, before, limit, |_| false)
            })?;
            for lock in locks {
                writeln!(out, "{} {}", show(&lock.key), self.show_lock(&lock))?;
            }
        }
        Ok(out)
    }

    /// Drops what may be dropped, in files and memory. What reads and checksums see stays the same.
    fn compact(&mut self) -> ScriptResult<String> {
        let sums = |shards: &Self| -> Vec<_> {
            let states = shards.states.iter();
            states
                .map(|state| {
                    shards.engines.on_both(|engine| shard::checksum_rows(engine.view().as_ref(), state))
                })
                .collect()
        };
        let before = sums(self);
        for state in &self.states {
            self.floors.publish(state.descriptor.id, state.descriptor.range.clone(), state.floor());
        }
        assert!(self.floors.begin(Family::Lock).is_none(), "locks are never dropped");
        self.engines.on_both(|engine| engine.compact_all())?;
        assert_eq!(before, sums(self));
        Ok(String::new())
    }
}

impl Runner for Shards {
    type Command = Line;

    fn run(&mut self, line: &Line, context: &Context) -> ScriptResult<String> {
        let mut args = line.consume_args();
        if let Some(name) = &context.prefix {
            let out = self.transaction(name, line, &mut args)?;
            args.reject_next()?;
            return Ok(out);
        }
        let out = match line.name.as_str() {
            "shards" => {
                self.cut(&mut args);
                String::new()
            }
            "get" => {
                let at = testing::optional_ts(&mut args, "at")?.unwrap_or(Timestamp::MAX);
                let key = bytes(args.next_pos().ok_or("no key")?);
                self.look(&key, at)?
            }
            "scan" => {
                let at = testing::optional_ts(&mut args, "at")?.unwrap_or(Timestamp::MAX);
                let direction = testing::direction(&mut args)?;
                let rows = testing::optional(&mut args, "rows")?.unwrap_or(usize::MAX);
                self.scan(&testing::key_range(&mut args), at, direction, rows)?
            }
            "forget-fates" => {
                self.fates.clear();
                String::new()
            }
            "locks" => self.locks()?,
            "records" => self.records()?,
            "expired" => self.expired(&mut args)?,
            "dump" => self.engines.on_both(|engine| testing::dump(engine.view().as_ref())),
            "hold" => {
                let at = testing::optional_ts(&mut args, "at")?.ok_or("no timestamp")?;
                match self.floors.hold(ShardId(0), at) {
                    Ok(hold) => self.holds.push(hold),
                    Err(error) => return Ok(format!("{}: {}", error.kind, error.message)),
                }
                String::new()
            }
            "let-go" => {
                self.holds.clear();
                String::new()
            }
            "compact" => self.compact()?,
            name => self.plain(name, &mut args)?,
        };
        args.reject_next()?;
        Ok(out)
    }
}

#[test]
fn scripts() {
    testing::run_scripts("src/shard/txn_testscripts", Shards::new);
}
