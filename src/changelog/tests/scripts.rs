//! Runs `src/changelog/testscripts`. A script has a store and one consumer of it, and plays what lies between: it says
//! which shard is asked, when, and what becomes of the answer.
//!
//! Of the store: `shards KEY…`, `write TS k=v…`, `prepare TXN TS k=v…`, `finish TXN TS [shard=N]`, `abort TXN`,
//! `close TS [shard=N]`, `cut SHARD KEY`, `join SHARD SHARD`, `lag SHARD` (from now on a replica of it stands still).
//! Of the consumer: `follow [RANGE…] [after=TS]`, `page SHARD [of=RANGE] [after=TS] [most=N] [lagging=yes] [keep=NAME]
//! [send=no]`, `again NAME`, `raw RANGE AFTER THROUGH "TS k=v,…"…`, `next [N]`, `watermark`, `parts`, `wanted LIMIT`,
//! `save`, `resume`. Of cursors: `cursor`, `scan TS KEY [cluster=N]`, `decode HEX`, `check HEX [RANGE…] [cluster=N]`.

use std::collections::BTreeMap;
use std::error::Error as StdError;
use std::fmt::Write as _;
use std::path::Path;

use bytes::Bytes;
use goldenscript::{ArgumentConsumer, Command, Context, Runner};

use super::store::{Holding, Shard, Store, Writes};
use crate::changelog::{Ask, Cursor, CursorState, Merge, Page, Part};
use crate::types::{Before, Change, Changes, ClusterId, Epoch, KeyRange, Timestamp};

type ScriptResult<T> = Result<T, Box<dyn StdError>>;

const CLUSTER: ClusterId = ClusterId(0xc0ffee);

struct Script {
    store: Store,
    lagging: BTreeMap<usize, Shard>,
    kept: BTreeMap<String, Page>,
    followed: Vec<KeyRange>,
    merge: Merge,
    saved: Option<String>,
}

impl Script {
    fn new() -> Self {
        let followed = vec![KeyRange::all()];
        Self {
            store: Store::new([]),
            lagging: BTreeMap::new(),
            kept: BTreeMap::new(),
            merge: Merge::new(followed.clone(), Timestamp::ZERO).expect("keys"),
            followed,
            saved: None,
        }
    }
}

/// Each character is one byte.
fn bytes(text: &str) -> ScriptResult<Bytes> {
    let byte = |c: char| u8::try_from(u32::from(c)).map_err(|_| "a character above 0xff");
    Ok(text.chars().map(byte).collect::<Result<Bytes, _>>()?)
}

fn ts(text: Option<&str>) -> ScriptResult<Timestamp> {
    Ok(Timestamp(text.ok_or("no timestamp")?.parse()?))
}

/// Scripts count shards from 1.
fn shard(text: Option<&str>) -> ScriptResult<usize> {
    let number: usize = text.ok_or("no shard")?.parse()?;
    Ok(number.checked_sub(1).ok_or("shards are counted from 1")?)
}

/// `a..c`; `..` is every key.
fn range(text: &str) -> ScriptResult<KeyRange> {
    let (start, end) = text.split_once("..").ok_or("a range is START..END")?;
    let end = if end.is_empty() { None } else { Some(bytes(end)?) };
    Ok(KeyRange::new(bytes(start)?, end))
}

fn ranges(args: &mut ArgumentConsumer<'_>) -> ScriptResult<Vec<KeyRange>> {
    std::iter::from_fn(|| args.next_pos()).map(range).collect()
}

/// `a=1`; `a=none` removes.
fn write_of(key: &str, value: &str) -> ScriptResult<(Bytes, Option<Bytes>)> {
    Ok((bytes(key)?, if value == "none" { None } else { Some(bytes(value)?) }))
}

fn writes(args: &mut ArgumentConsumer<'_>) -> ScriptResult<Writes> {
    std::iter::from_fn(|| args.next_key()).map(|(key, value)| write_of(key, value)).collect()
}

/// `10 a=1,b=2`.
fn transaction(text: &str) -> ScriptResult<Changes> {
    let (commit_ts, changes) = text.split_once(' ').unwrap_or((text, ""));
    let change = |text: &str| {
        let (key, value) = write_of(text.split_once('=').ok_or("no value")?.0, "v")?;
        Ok(Change { key, value, create_ts: Timestamp(1), version: 1, before: Before::Unasked })
    };
    let changes =
        changes.split(',').filter(|text| !text.is_empty()).map(change).collect::<ScriptResult<_>>()?;
    Ok(Changes { commit_ts: ts(Some(commit_ts))?, changes })
}

fn show_range(range: &KeyRange) -> String {
    let end = range.end.as_ref().map_or(String::new(), |end| end.escape_ascii().to_string());
    format!("{}..{end}", range.start.escape_ascii())
}

fn show_transaction(transaction: &Changes) -> String {
    let show = |change: &Change| {
        let value = change.value.as_ref().map_or("none".into(), |value| value.escape_ascii().to_string());
        format!(" {}={value}", change.key.escape_ascii())
    };
    format!("@{}{}", transaction.commit_ts, transaction.changes.iter().map(show).collect::<String>())
}

fn show_page(page: &Page) -> String {
    let mut out =
        format!("page {} epoch {}: ({}, {}]", show_range(&page.range), page.epoch, page.after, page.through);
    for transaction in &page.transactions {
        write!(out, " {}", show_transaction(transaction)).expect("a string");
    }
    out
}

fn show_ask(ask: &Ask) -> String {
    let epoch = ask.epoch.map_or("any".into(), |epoch| epoch.to_string());
    format!("{} after {} epoch {epoch}", show_range(&ask.range), ask.after)
}

fn show_state(cursor: &Cursor) -> String {
    match cursor.state() {
        CursorState::Following { after } => format!("following after {after}"),
        CursorState::Scanning { at, next } => format!("scanning at {at} from {:?}", next),
    }
}

impl Script {
    /// What happens in the store; `None` where the command is not about it.
    fn in_store(&mut self, name: &str, args: &mut ArgumentConsumer<'_>) -> ScriptResult<Option<String>> {
        let one = args.take_key("shard").map(|text| shard(Some(text))).transpose()?;
        match name {
            "shards" => {
                let cuts =
                    std::iter::from_fn(|| args.next_pos()).map(bytes).collect::<ScriptResult<Vec<_>>>()?;
                *self = Self { store: Store::new(cuts), ..Self::new() };
            }
            "write" => self.store.write(ts(args.next_pos())?, &writes(args)?),
            "prepare" => {
                let txn = args.next_pos().ok_or("no transaction")?;
                self.store.prepare(txn, ts(args.next_pos())?, &writes(args)?);
            }
            "finish" | "abort" => {
                let txn = args.next_pos().ok_or("no transaction")?;
                let committed = if name == "finish" { Some(ts(args.next_pos())?) } else { None };
                let shards = one.map_or_else(|| self.store.locked(txn), |one| vec![one]);
                if !shards.iter().all(|shard| self.store.locked(txn).contains(shard)) || shards.is_empty() {
                    return Err("no lock of it there".into());
                }
                shards.into_iter().for_each(|shard| self.store.finish(txn, committed, shard));
            }
            "close" => {
                let ts = ts(args.next_pos())?;
                let shards = one.map_or(0..self.store.shards.len(), |one| one..one + 1);
                shards.for_each(|shard| self.store.close(shard, ts));
            }
            "cut" => {
                let parent = shard(args.next_pos())?;
                let (child, r) = self.store.cut(parent, bytes(args.next_pos().ok_or("no key")?)?);
                return Ok(Some(format!("shard {} begins at r={r}\n", child + 1)));
            }
            "join" => {
                let (into, other) = (shard(args.next_pos())?, shard(args.next_pos())?);
                let r = self.store.join(into, other);
                return Ok(Some(format!("shard {} ends at r={r}\n", other + 1)));
            }
            "lag" => {
                let index = shard(args.next_pos())?;
                self.lagging.insert(index, self.store.shards[index].clone());
            }
            _ => return Ok(None),
        }
        Ok(Some(String::new()))
    }

    /// Asks a shard for a page: unless said otherwise of all its keys, after what the consumer knows of the first.
    fn ask(&mut self, args: &mut ArgumentConsumer<'_>) -> ScriptResult<String> {
        let index = shard(args.next_pos())?;
        let asked = args.take_key("of").map(range).transpose()?.unwrap_or_else(KeyRange::all);
        let after = args.take_key("after").map(|text| ts(Some(text))).transpose()?;
        let most = args.take_key("most").map(str::parse).transpose()?.unwrap_or(usize::MAX);
        let shard = match args.take_key("lagging") {
            Some(_) => self.lagging.get(&index).ok_or("no replica of it lags")?,
            None => self.store.shards.get(index).ok_or("no such shard")?,
        };
        // What it holds now before what it held once; the rest a script names with a range.
        let mut holdings: Vec<&Holding> = shard.holdings.iter().collect();
        holdings.sort_by_key(|held| (held.through.is_some(), held.range.start.clone()));
        let within = |held: &&&Holding| held.range.intersect(&asked).is_some();
        let holding = holdings.iter().find(within).ok_or("it never held such a key")?;
        let start = holding.range.intersect(&asked).map(|range| range.start).unwrap_or_default();
        let known = self.merge.parts().iter().find(|part| part.range.contains(&start));
        let after = after.or(known.map(|part| part.position)).unwrap_or_default();
        let Some(page) = shard.page(holding, &asked, after, most) else {
            return Ok("it has nothing after that\n".into());
        };
        if let Some(name) = args.take_key("keep") {
            self.kept.insert(name.to_owned(), page.clone());
        }
        match args.take_key("send") {
            Some(_) => Ok(format!("{}\n", show_page(&page))),
            None => self.accept(page),
        }
    }

    fn accept(&mut self, page: Page) -> ScriptResult<String> {
        let mut out = format!("{}\n", show_page(&page));
        let before = self.merge.clone();
        match self.merge.accept(page) {
            Ok(accepted) => {
                if !accepted.advanced {
                    writeln!(out, "nothing new")?;
                }
                for gap in &accepted.gaps {
                    writeln!(out, "gap: {}", show_ask(gap))?;
                }
            }
            Err(error) => {
                assert_eq!(before.parts(), self.merge.parts(), "nothing was taken");
                writeln!(out, "{}: {error}", error.kind)?;
            }
        }
        self.merge.assert_sound(&self.followed);
        Ok(out)
    }

    fn follow(&mut self, args: &mut ArgumentConsumer<'_>) -> ScriptResult<String> {
        let after = ts(Some(args.take_key("after").unwrap_or("0")))?;
        let mut followed = ranges(args)?;
        if followed.is_empty() {
            followed.push(KeyRange::all());
        }
        self.merge = match Merge::new(followed.clone(), after) {
            Ok(merge) => merge,
            Err(error) => return Ok(format!("{}: {error}\n", error.kind)),
        };
        self.followed = followed;
        Ok(String::new())
    }

    fn show_parts(&self) -> String {
        let show = |part: &Part| {
            let epoch = part.epoch.map_or("any".into(), |epoch| epoch.to_string());
            let range = show_range(&part.range);
            format!("{range} up to {} epoch {epoch}, {} bytes\n", part.position, part.buffered)
        };
        self.merge.parts().iter().map(show).collect()
    }

    fn cursor(&self) -> Cursor {
        Cursor::new(CLUSTER, &self.followed, CursorState::Following { after: self.merge.delivered() })
    }

    /// What has to do with cursors; `None` where the command has not.
    fn with_cursors(&mut self, name: &str, args: &mut ArgumentConsumer<'_>) -> ScriptResult<Option<String>> {
        let cluster = args.take_key("cluster").map(str::parse).transpose()?.map_or(CLUSTER, ClusterId);
        let shown = match name {
            "save" => {
                self.saved = Some(self.cursor().to_string());
                show_state(&self.cursor())
            }
            // The consumer died, and has what it saved.
            "resume" => {
                let cursor: Cursor = self.saved.as_ref().ok_or("nothing was saved")?.parse()?;
                cursor.check(CLUSTER, &self.followed)?;
                let CursorState::Following { after } = *cursor.state() else { return Err("it scans".into()) };
                self.merge = Merge::new(self.followed.clone(), after)?;
                show_state(&cursor)
            }
            "cursor" => self.cursor().to_string(),
            "scan" => {
                let (at, next) = (ts(args.next_pos())?, bytes(args.next_pos().ok_or("no key")?)?);
                Cursor::new(cluster, &self.followed, CursorState::Scanning { at, next }).to_string()
            }
            "decode" => match args.next_pos().unwrap_or_default().parse::<Cursor>() {
                Ok(cursor) => show_state(&cursor),
                Err(error) => format!("{}: {error}", error.kind),
            },
            "check" => {
                let cursor: Cursor = args.next_pos().ok_or("no cursor")?.parse()?;
                match cursor.check(cluster, &ranges(args)?) {
                    Ok(()) => format!("{}: may go on", show_state(&cursor)),
                    Err(error) => format!("{}: {error}", error.kind),
                }
            }
            _ => return Ok(None),
        };
        Ok(Some(format!("{shown}\n")))
    }

    fn at_consumer(&mut self, name: &str, args: &mut ArgumentConsumer<'_>) -> ScriptResult<String> {
        match name {
            "follow" => self.follow(args),
            "page" => self.ask(args),
            "again" => {
                let page = self.kept.get(args.next_pos().ok_or("no name")?).ok_or("no such page")?;
                self.accept(page.clone())
            }
            "raw" => {
                let range = range(args.next_pos().ok_or("no range")?)?;
                let (after, through) = (ts(args.next_pos())?, ts(args.next_pos())?);
                let texts = std::iter::from_fn(|| args.next_pos());
                let transactions = texts.map(transaction).collect::<ScriptResult<_>>()?;
                self.accept(Page { range, epoch: Epoch(1), after, through, transactions })
            }
            "next" => {
                let most = args.next_pos().map(str::parse).transpose()?.unwrap_or(usize::MAX);
                let mut out = String::new();
                while let Some(transaction) =
                    (out.lines().count() < most).then(|| self.merge.next()).flatten()
                {
                    writeln!(out, "{}", show_transaction(&transaction))?;
                }
                self.merge.assert_sound(&self.followed);
                Ok(if out.is_empty() { "none yet\n".into() } else { out })
            }
            "watermark" => Ok(format!(
                "watermark {}, delivered up to {}, {} bytes\n",
                self.merge.watermark(),
                self.merge.delivered(),
                self.merge.buffered()
            )),
            "parts" => Ok(self.show_parts()),
            "wanted" => {
                let asks = self.merge.wanted(args.next_pos().ok_or("no limit")?.parse()?);
                Ok(asks.iter().map(|ask| format!("{}\n", show_ask(ask))).collect())
            }
            name => Err(format!("no command {name}").into()),
        }
    }
}

impl Runner for Script {
    type Command = Command;

    fn run(&mut self, command: &Command, _context: &Context) -> ScriptResult<String> {
        let mut args = command.consume_args();
        let name = command.name.as_str();
        let mut out = self.in_store(name, &mut args)?;
        if out.is_none() {
            out = self.with_cursors(name, &mut args)?;
        }
        let out = match out {
            Some(out) => out,
            None => self.at_consumer(name, &mut args)?,
        };
        args.reject_next()?;
        Ok(out)
    }
}

#[test]
fn scripts() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/changelog/testscripts");
    let entries = std::fs::read_dir(&dir).expect("the directory of scripts");
    let mut paths: Vec<_> = entries.map(|entry| entry.expect("an entry").path()).collect();
    paths.sort();
    assert!(!paths.is_empty(), "no scripts in {}", dir.display());
    for path in paths {
        goldenscript::run(&mut Script::new(), &path)
            .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }
}
