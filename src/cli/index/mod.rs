//! `kvorum index`: query indexes, from their making to their end. `show` is how they are told of, `verify` compares
//! one with its rows.

mod show;
mod verify;

use std::ffi::OsString;
use std::io::Write;
use std::time::Duration;

use bytes::Bytes;
use clap::{Subcommand, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Map, Value, json};
use tokio::time::sleep;

use super::context::Context;
use super::failure::{Done, Failure};
use super::input;
use super::output::{self, Format, print_line};
use crate::client::{Client, IndexProgress, IndexSpec, IndexStatus};
use crate::rpc::v1::IndexRecord;
use crate::types::{Error, ErrorKind};

const EXAMPLES: &str = "\
Examples:
  kvorum index create by_team --prefix user/ --kind value --on '$.team' --on '$.name' --covering '$.mail'
  kvorum index create per_team --prefix user/ --kind count --on '$.team' --wait
  kvorum index create spent --prefix order/ --kind sum --on '$.customer' --measure '$.amount'
  kvorum index create by_part --prefix log/ --kind value --on 'day=key-part:0' --on '$.level desc'
  kvorum index list
  kvorum index status by_team
  kvorum query by_team --where 'team = \"blue\"'

A field is `[NAME=]SOURCE[:TYPE][ asc| desc]`. A source is a JSON path into the value (`$.address.city`), a part of the key
behind the prefix (`key-part:0`, `key-part:1(-)`), or all of that (`key`). A row without a field is not in the index
(`--missing null` puts it there); one with a field of a wrong kind halts the index, unless --on-error says otherwise.";

/// How often is looked whether something is done that was waited for.
const LOOK_EVERY: Duration = Duration::from_millis(100);

#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Make an index; it is built in the background from the rows that are there.
    Create {
        /// Its name: 1 to 64 of a-z, 0-9, _ and -.
        name: String,
        #[command(flatten)]
        definition: Definition,
        /// Return once it is built.
        #[arg(long)]
        wait: bool,
    },
    /// List the indexes.
    List,
    /// Show what an index is, how far it is, and how far behind.
    Status {
        /// Its name.
        name: String,
    },
    /// Drop an index, and clear its rows away.
    Drop {
        /// Its name.
        name: String,
        /// Return once its rows are cleared away, and its name is free.
        #[arg(long)]
        wait: bool,
    },
    /// Build an index anew beside the one that answers, which it replaces when it is built.
    Rebuild {
        /// Its name.
        name: String,
        #[command(flatten)]
        definition: NewDefinition,
        /// Once it is built, keep it beside the one that answers until `index swap`.
        #[arg(long)]
        hold: bool,
        /// Return once it is built.
        #[arg(long)]
        wait: bool,
    },
    /// Let the version that was built and held answer from now on.
    Swap {
        /// The index's name.
        name: String,
    },
    /// Give up building a version.
    Cancel {
        /// The index's name.
        name: String,
    },
    /// Go on with an index that has halted at a row.
    Resume {
        /// The index's name.
        name: String,
        /// Without the row that it halted at, which counts as a dead letter.
        #[arg(long)]
        without: bool,
    },
    /// List the rows that could not be indexed.
    DeadLetters {
        /// The index's name.
        name: String,
    },
    /// Compare an index, byte by byte, with what its rows come to.
    Verify {
        /// The index's name.
        name: String,
    },
    /// Try once more to index the rows that could not be.
    Replay {
        /// The index's name.
        name: String,
    },
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Kind {
    /// Which rows have these fields.
    Value,
    /// The same, and which values several rows have.
    Unique,
    /// How many rows have these fields.
    Count,
    /// How many, and the sum of a measure.
    Sum,
    /// The smallest measure of the rows with these fields.
    Min,
    /// The largest measure of the rows with these fields.
    Max,
}

#[derive(clap::Args, Debug)]
struct Definition {
    /// What it answers.
    #[arg(long)]
    kind: Kind,
    #[command(flatten)]
    more: NewDefinition,
}

#[derive(clap::Args, Debug)]
struct NewDefinition {
    /// Only rows whose keys begin with this.
    #[arg(long, value_name = "KEY")]
    prefix: Option<OsString>,
    /// A field that it is ordered or grouped by; up to 8 of them.
    #[arg(long, value_name = "FIELD")]
    on: Vec<String>,
    /// What is summed or compared, of sum, min and max.
    #[arg(long, value_name = "FIELD")]
    measure: Option<String>,
    /// A field that entries hold besides; up to 16 of them.
    #[arg(long, value_name = "FIELD")]
    covering: Vec<String>,
    /// What becomes of a row without a field: skip or null. [default: skip]
    #[arg(long, value_name = "RULE")]
    missing: Option<String>,
    /// What becomes of a row that can't be indexed: halt, dead-letter or skip. [default: halt]
    #[arg(long, value_name = "RULE")]
    on_error: Option<String>,
}

impl NewDefinition {
    fn is_empty(&self) -> bool {
        self.prefix.is_none()
            && self.on.is_empty()
            && self.measure.is_none()
            && self.covering.is_empty()
            && self.missing.is_none()
            && self.on_error.is_none()
    }

    /// A definition with what is said here, the rest as it was.
    fn over(self, old: IndexSpec, hex: bool) -> Result<IndexSpec, Failure> {
        let prefix = self.prefix.as_deref().map(|prefix| input::bound(prefix, hex)).transpose()?;
        Ok(IndexSpec {
            prefix: prefix.unwrap_or(old.prefix),
            on: if self.on.is_empty() { old.on } else { self.on },
            measure: self.measure.unwrap_or(old.measure),
            covering: if self.covering.is_empty() { old.covering } else { self.covering },
            missing: self.missing.unwrap_or(old.missing),
            on_error: self.on_error.unwrap_or(old.on_error),
            ..old
        })
    }
}

pub async fn run(context: &Context, args: Args) -> Result<Done, Failure> {
    let client = context.client().await?;
    match args.command {
        Command::Create { name, definition, wait } => {
            let kind = definition.kind.to_possible_value();
            let kind = kind.as_ref().map_or("", |kind| kind.get_name());
            let spec = definition.more.over(IndexSpec::new(&name, kind), context.hex)?;
            let mut record = client.create_index(spec).await?;
            if wait {
                record = wait_until_built(&client, &name, 1).await?;
            }
            let said = if wait { "is built" } else { "is being built" };
            tell(context, &format!("index {name} {said}"), show::record(&record))?;
        }
        Command::List => {
            let indexes = client.indexes().await?;
            print_line(match context.output {
                Format::Text => show::table(&indexes),
                Format::Json => {
                    json!({ "indexes": indexes.iter().map(show::record).collect::<Vec<_>>() }).to_string()
                }
            })?;
        }
        Command::Status { name } => return status(context, &client, &name).await,
        Command::Drop { name, wait } => return drop(context, &client, &name, wait).await,
        Command::Rebuild { name, definition, hold, wait } => {
            rebuild(context, &client, name, definition, (hold, wait)).await?;
        }
        Command::Swap { name } => {
            let record = client.swap_index(&name).await?;
            let number = record.active.as_ref().map_or(0, |active| active.number);
            tell(context, &format!("version {number} of index {name} answers now"), show::record(&record))?;
        }
        Command::Cancel { name } => {
            let record = client.cancel_index_build(&name).await?;
            tell(context, &format!("index {name} is not built anew"), show::record(&record))?;
        }
        Command::Resume { name, without } => {
            let progress = client.resume_index(&name, without).await?;
            tell(context, &show::line(&progress), show::progress(&progress))?;
        }
        Command::Verify { name } => return verify::run(context, &client, &name).await,
        Command::DeadLetters { name } => dead_letters(context, &client, &name).await?,
        Command::Replay { name } => {
            let progress = client.replay_dead_letters(&name).await?;
            let said = format!("{} rows still can't be indexed", progress.dead_letters);
            tell(context, &said, show::progress(&progress))?;
        }
    }
    Ok(Done::Ok)
}

fn tell(context: &Context, text: &str, json: Value) -> Result<(), Failure> {
    match context.output {
        Format::Text => print_line(text),
        Format::Json => print_line(json),
    }
}

async fn status(context: &Context, client: &Client, name: &str) -> Result<Done, Failure> {
    match client.index(name).await? {
        Some(status) => {
            tell(context, &show::status(&status), show::status_json(&status))?;
            Ok(Done::Ok)
        }
        None => no_index(context, name),
    }
}

fn no_index(context: &Context, name: &str) -> Result<Done, Failure> {
    tell(context, &format!("there is no index {name}"), json!({ "existed": false }))?;
    Ok(Done::No)
}

async fn drop(context: &Context, client: &Client, name: &str, wait: bool) -> Result<Done, Failure> {
    let found = client.index(name).await?.and_then(|status| status.record);
    if !client.drop_index(name).await? {
        return no_index(context, name);
    }
    let id = found.map(|record| record.id);
    let is_there = async || -> Result<bool, Error> {
        let record = client.index(name).await?.and_then(|status| status.record);
        Ok(record.is_some_and(|record| Some(record.id) == id))
    };
    while wait && is_there().await? {
        sleep(LOOK_EVERY).await;
    }
    let said = if wait { "is dropped" } else { "is dropped; its rows are being cleared away" };
    tell(context, &format!("index {name} {said}"), json!({ "existed": true }))?;
    Ok(Done::Ok)
}

async fn rebuild(
    context: &Context,
    client: &Client,
    name: String,
    definition: NewDefinition,
    (hold, wait): (bool, bool),
) -> Result<(), Failure> {
    let spec = match definition.is_empty() {
        true => None,
        false => {
            let found = client.index(&name).await?.and_then(|status| status.record);
            let active = found.and_then(|record| record.active).and_then(|active| active.spec);
            let active = active
                .ok_or_else(|| Error::invalid(format!("there is no index {name}, or it is not built yet")))?;
            Some(definition.over(active, context.hex)?)
        }
    };
    let mut record = client.rebuild_index(&name, spec, hold).await?;
    let built_already = record.active.as_ref().map_or(0, |active| active.number);
    let number = record.building.as_ref().map_or(built_already, |building| building.number);
    if wait {
        record = wait_until_built(client, &name, number).await?;
    }
    let said = if wait { "is built" } else { "is being built" };
    tell(context, &format!("version {number} of index {name} {said}"), show::record(&record))
}

/// Waits until a version of an index is built, or one that has taken its place, and shows how far it is.
async fn wait_until_built(client: &Client, name: &str, number: u32) -> Result<IndexRecord, Failure> {
    let bar = ProgressBar::new_spinner();
    let style = ProgressStyle::with_template("{spinner} {msg} [{elapsed}]");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
    loop {
        let (record, progress) = match client.index(name).await {
            Ok(Some(IndexStatus { record: Some(record), progress })) => (record, progress),
            Ok(_) => return Err(Error::invalid(format!("index {name} was dropped meanwhile")).into()),
            // It goes on being built whoever can't be asked at the moment.
            Err(error) if error.kind == ErrorKind::Unavailable => {
                bar.set_message(error.message);
                bar.tick();
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        let building = match &record.building {
            Some(building) if !record.is_built => building.number,
            _ if record.is_built || record.active.as_ref().is_some_and(|active| active.number >= number) => {
                bar.finish_and_clear();
                return Ok(record);
            }
            _ => {
                return Err(Error::invalid(format!(
                    "version {number} of index {name} was cancelled meanwhile"
                ))
                .into());
            }
        };
        let of: Option<&IndexProgress> = progress.iter().find(|one| one.version == building);
        if let Some(halted) = of.filter(|one| one.state == "halted") {
            return Err(halted_while_built(name, halted).into());
        }
        bar.set_message(format!("{} rows read", of.map_or(0, |one| one.scanned_rows)));
        bar.tick();
        sleep(LOOK_EVERY).await;
    }
}

fn halted_while_built(name: &str, halted: &IndexProgress) -> Error {
    Error::invalid(format!(
        "index {name} has halted at the row \"{}\": {}; correct the row and rebuild, or go on without it \
         (`kvorum index resume {name} --without`)",
        halted.halted_key.escape_ascii(),
        halted.halted_reason
    ))
}

async fn dead_letters(context: &Context, client: &Client, name: &str) -> Result<(), Failure> {
    let mut out = output::stdout();
    let mut next_from = Some(Bytes::new());
    while let Some(from) = next_from.take() {
        let (letters, next) = client.dead_letters(name, from).await?;
        for letter in letters {
            match context.output {
                Format::Text => writeln!(
                    out,
                    "{}\t{}\t{}",
                    letter.commit_ts,
                    output::line_bytes(&letter.key, context.hex),
                    letter.reason
                )?,
                Format::Json => {
                    let mut object = Map::new();
                    output::put_bytes(&mut object, "key", &letter.key, context.hex);
                    object.insert("commit_ts".into(), letter.commit_ts.into());
                    object.insert("reason".into(), letter.reason.into());
                    writeln!(out, "{}", Value::from(object))?;
                }
            }
        }
        next_from = next;
    }
    out.flush()?;
    Ok(())
}
