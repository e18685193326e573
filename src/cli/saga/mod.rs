//! `kvorum saga`: sagas, from their definitions to their ends. `show` is how they are told of, `definition` reads files,
//! `schedule` starts them again and again.

mod definition;
mod schedule;
mod show;

use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;

use bytes::Bytes;
use clap::Subcommand;
use serde_json::json;

use super::context::Context;
use super::failure::{Done, Failure};
use super::input;
use super::output::{self, Format, print_line, stdout};
use crate::client::{Client, SagaFilter, SagaStart, SagaView};
use crate::types::Error;

const EXAMPLES: &str = "\
Examples:
  kvorum saga define trip.yaml                          a definition in YAML or JSON; docs/SAGAS.md has what it may say
  kvorum saga start trip trip-17 --input '{\"to\":\"Rome\"}' --attribute customer=42 --wait
  kvorum saga list --status paused
  kvorum saga list --attribute customer=42
  kvorum saga show trip-17                              its steps, their attempts, what failed and what is undone
  kvorum saga history trip-17
  kvorum saga signal trip-17 approved '\"by Ada\"'
  kvorum saga cancel trip-17 --reason 'customer called'  undo what it did
  kvorum saga retry trip-17                             try now what waits for another attempt, or failed for good
  kvorum saga schedule put nightly --saga report --cron '30 2 * * *' --time-zone Europe/Berlin
  kvorum saga queue set mail --rate 50                  hand out at most 50 tasks a second

Workers are programs: see `Client::saga_worker` of the library, or `PollTasks` in proto/kvorum/v1/saga.proto.";

#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Add a version of a saga's definition; the same one again changes nothing.
    Define {
        /// A file in YAML or JSON; - for standard input.
        file: PathBuf,
        /// Only check it.
        #[arg(long)]
        check: bool,
    },
    /// List definitions, or print the versions of one.
    Definitions {
        /// Its name; without it all are listed.
        name: Option<String>,
    },
    /// Start a saga.
    Start {
        /// The name of its definition.
        name: String,
        /// Its id, which no other saga has; one is made up where it is left out. The same start again changes nothing.
        id: Option<String>,
        /// What workers get with each task; - reads standard input.
        #[arg(long, default_value = "")]
        input: OsString,
        /// What it is found by; may be given several times.
        #[arg(long = "attribute", value_name = "NAME=VALUE", value_parser = pair)]
        attributes: Vec<(String, String)>,
        /// The version of its definition; 0 is the newest.
        #[arg(long, default_value_t = 0)]
        version: u32,
        /// 0 to 9: where tasks wait for workers, those of larger ones go first.
        #[arg(long, default_value_t = 0)]
        priority: u32,
        /// Return once it has ended, or the deadline has come.
        #[arg(long)]
        wait: bool,
    },
    /// List sagas.
    List(ListArgs),
    /// Show a saga: its steps with their state and attempts.
    Show {
        /// Its id.
        id: String,
    },
    /// Print what has happened in a saga.
    History {
        /// Its id.
        id: String,
    },
    /// Wait until a saga has ended, or the deadline has come.
    Wait {
        /// Its id.
        id: String,
    },
    /// Send a signal to a saga; it is kept until a step waits for it.
    Signal {
        /// The saga's id.
        id: String,
        /// The signal's name.
        name: String,
        /// What it says; - reads standard input.
        #[arg(default_value = "")]
        payload: OsString,
    },
    /// End a saga and undo what it did.
    Cancel(WhyArgs),
    /// End a saga as it stands: what it did is NOT undone.
    Terminate(WhyArgs),
    /// Have a saga stand still: no task of it is handed out any more.
    Pause(WhyArgs),
    /// Have a saga go on that was paused.
    Resume {
        /// Its id.
        id: String,
    },
    /// Try now what waits for another attempt, or has failed for good and must be done or undone.
    Retry {
        /// Its id.
        id: String,
        /// Only this step.
        #[arg(long)]
        step: Option<String>,
    },
    /// Say what became of a step that the saga can't go on with.
    Resolve {
        /// The saga's id.
        id: String,
        /// The step.
        step: String,
        /// It is done: the pivot took effect, or somebody did by hand what had failed.
        #[arg(long, conflicts_with = "not_done", required_unless_present = "not_done")]
        done: bool,
        /// It is not: the pivot did not take effect.
        #[arg(long)]
        not_done: bool,
    },
    /// Undo what a saga did since a step, and that step, and have it go forward from there again.
    Reset {
        /// The saga's id.
        id: String,
        /// The step.
        step: String,
    },
    /// Sagas that are started again and again, by a cron expression.
    Schedule {
        #[command(subcommand)]
        command: schedule::Command,
    },
    /// How queues hand out tasks.
    Queue {
        #[command(subcommand)]
        command: QueueCommand,
    },
}

#[derive(clap::Args, Debug)]
struct WhyArgs {
    /// The saga's id.
    id: String,
    /// Why; for people.
    #[arg(long, default_value = "")]
    reason: String,
}

#[derive(clap::Args, Debug)]
struct ListArgs {
    /// running, paused, compensating, completed, compensated, cancelled, terminated; open or closed for several.
    #[arg(long)]
    status: Option<String>,
    /// The name of their definition.
    #[arg(long)]
    name: Option<String>,
    /// A step that is ready, runs or waits.
    #[arg(long, value_name = "STEP")]
    at: Option<String>,
    /// An attribute; may be given several times.
    #[arg(long = "attribute", value_name = "NAME=VALUE", value_parser = pair)]
    attributes: Vec<(String, String)>,
    /// Started at most so long ago: 10m, 2h, 30d.
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    since: Option<std::time::Duration>,
    /// At most so many.
    #[arg(long)]
    limit: Option<usize>,
}

#[derive(Subcommand, Debug)]
enum QueueCommand {
    /// Set how many tasks a second are handed out, over the whole cluster.
    Set {
        /// The queue.
        name: String,
        /// Tasks a second; 0 is no limit.
        #[arg(long)]
        rate: f64,
    },
    /// List the queues that have a limit.
    List,
}

/// `NAME=VALUE`.
fn pair(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("give NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}

pub async fn run(context: &Context, args: Args) -> Result<Done, Failure> {
    if let Command::Define { file, check } = &args.command {
        return define(context, file, *check).await;
    }
    let client = context.client().await?;
    match args.command {
        Command::Define { .. } => Ok(Done::Ok),
        Command::Definitions { name } => definitions(context, &client, name).await,
        Command::Start { name, id, input, attributes, version, priority, wait } => {
            let id = id.unwrap_or_else(|| format!("{name}-{:016x}", rand::random::<u64>()));
            let start = SagaStart {
                id,
                name,
                version,
                input: payload(context, &input)?,
                attributes: attributes.into_iter().collect(),
                priority,
            };
            begin(context, &client, start, wait).await
        }
        Command::List(list_args) => list(context, &client, list_args).await,
        Command::Show { id } => print_saga(context, &client.saga(&id).await?),
        Command::Wait { id } => ended(context, &client.wait_for_saga(&id).await?),
        Command::History { id } => history(context, &client, &id).await,
        Command::Signal { id, name, payload: said } => {
            client.signal_saga(&id, &name, payload(context, &said)?).await?;
            told(context, &id, true, &format!("signal {name} was sent to {id}"))
        }
        Command::Cancel(why) => {
            let changed = client.cancel_saga(&why.id, &why.reason).await?;
            told(context, &why.id, changed, &format!("{} is cancelled: what it did is being undone", why.id))
        }
        Command::Terminate(why) => {
            let changed = client.terminate_saga(&why.id, &why.reason).await?;
            let (mut last, mut next) = (None, Some(0));
            while let Some(from) = next {
                let (lines, after) = client.saga_history(&why.id, from).await?;
                last = lines.into_iter().last().or(last);
                next = after;
            }
            let ended = last.map(|line| line.detail).unwrap_or_default();
            told(context, &why.id, changed, &format!("{} is {ended}", why.id))
        }
        Command::Pause(why) => {
            let changed = client.pause_saga(&why.id, &why.reason).await?;
            told(context, &why.id, changed, &format!("{} stands still", why.id))
        }
        Command::Resume { id } => {
            let changed = client.resume_saga(&id).await?;
            told(context, &id, changed, &format!("{id} goes on"))
        }
        Command::Retry { id, step } => {
            client.retry_saga(&id, step.as_deref()).await?;
            told(context, &id, true, &format!("{id} tries again"))
        }
        Command::Resolve { id, step, done, .. } => {
            client.resolve_saga(&id, &step, done).await?;
            let what = if done { "done" } else { "not done" };
            told(context, &id, true, &format!("step {step} of {id} counts as {what}"))
        }
        Command::Reset { id, step } => {
            client.reset_saga(&id, &step).await?;
            told(context, &id, true, &format!("{id} goes back to step {step}"))
        }
        Command::Schedule { command } => schedule::run(context, &client, command).await,
        Command::Queue { command } => queue(context, &client, command).await,
    }
}

fn payload(context: &Context, said: &OsString) -> Result<Bytes, Failure> {
    input::value(said, context.hex)
}

/// Says what was done; or that nothing had to be.
fn told(context: &Context, id: &str, changed: bool, what: &str) -> Result<Done, Failure> {
    print_line(match context.output {
        Format::Text if changed => what.to_owned(),
        Format::Text => format!("nothing was to be done: {what} already"),
        Format::Json => json!({ "id": id, "changed": changed }).to_string(),
    })?;
    Ok(Done::Ok)
}

async fn define(context: &Context, file: &std::path::Path, check_only: bool) -> Result<Done, Failure> {
    let definition = definition::read(file)?;
    if !check_only {
        context.client().await?.define_saga(&definition).await?;
    }
    print_line(match context.output {
        Format::Text => {
            let done = if check_only { "is well-formed" } else { "is defined" };
            format!(
                "saga {} version {} {done}\n{}",
                definition.name(),
                definition.version(),
                show::outline(&definition)
            )
        }
        Format::Json => definition.to_json(),
    })?;
    Ok(Done::Ok)
}

async fn definitions(context: &Context, client: &Client, name: Option<String>) -> Result<Done, Failure> {
    let found = client.saga_definitions(name.as_deref().unwrap_or_default()).await?;
    let is_none = found.is_empty();
    match (context.output, &name) {
        (Format::Json, _) => {
            let all: Vec<_> = found.iter().map(show::definition_json).collect();
            print_line(json!({ "definitions": all }))?;
        }
        (Format::Text, Some(_)) => {
            for one in &found {
                let definition = crate::saga::Definition::from_json(&one.json)?;
                print_line(format!("{} version {}\n{}", one.name, one.version, show::outline(&definition)))?;
            }
        }
        (Format::Text, None) => print_line(show::definitions_table(&found))?,
    }
    Ok(if is_none && name.is_some() { Done::No } else { Done::Ok })
}

async fn begin(context: &Context, client: &Client, start: SagaStart, wait: bool) -> Result<Done, Failure> {
    let id = start.id.clone();
    let started = client.start_saga(start).await?;
    if wait {
        return ended(context, &client.wait_for_saga(&id).await?);
    }
    print_line(match context.output {
        Format::Text if started.already => {
            format!("saga {id} was started before (version {})", started.version)
        }
        Format::Text => format!("saga {id} is started (version {})", started.version),
        Format::Json => {
            json!({ "id": id, "version": started.version, "already": started.already }).to_string()
        }
    })?;
    Ok(Done::Ok)
}

fn print_saga(context: &Context, saga: &SagaView) -> Result<Done, Failure> {
    print_line(match context.output {
        Format::Text => show::drawn(saga),
        Format::Json => show::saga_json(saga, context.hex).to_string(),
    })?;
    Ok(Done::Ok)
}

/// Shows a saga that was waited for. One that is not completed is no success.
fn ended(context: &Context, saga: &SagaView) -> Result<Done, Failure> {
    print_saga(context, saga)?;
    if saga.closed_unix_ms == 0 {
        return Err(Error::unavailable(format!(
            "saga {} is {} still, and the deadline has come: wait longer with --deadline",
            saga.id, saga.status
        ))
        .into());
    }
    Ok(if saga.status == "completed" { Done::Ok } else { Done::No })
}

async fn history(context: &Context, client: &Client, id: &str) -> Result<Done, Failure> {
    let mut out = stdout();
    let mut from = Some(0);
    while let Some(line) = from.take() {
        let (records, next) = client.saga_history(id, line).await?;
        for record in records {
            match context.output {
                Format::Text => writeln!(out, "{}", show::record_line(&record))?,
                Format::Json => writeln!(out, "{}", show::record_json(&record))?,
            }
        }
        from = next;
    }
    out.flush()?;
    Ok(Done::Ok)
}

async fn list(context: &Context, client: &Client, args: ListArgs) -> Result<Done, Failure> {
    let from_unix_ms = match args.since {
        None => 0,
        Some(since) => {
            let now_ms = client.timestamp().await?.unix_ms();
            now_ms.saturating_sub(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
        }
    };
    let filter = SagaFilter {
        status: args.status.unwrap_or_default(),
        name: args.name.unwrap_or_default(),
        at: args.at.unwrap_or_default(),
        attributes: args.attributes.into_iter().collect(),
        from_unix_ms,
        to_unix_ms: None,
    };
    let mut sagas = client.sagas(filter);
    let mut left = args.limit.unwrap_or(usize::MAX);
    let mut out = stdout();
    if matches!(context.output, Format::Text) {
        writeln!(out, "{}", show::LIST_HEADER)?;
    }
    // Told as they come: there may be many.
    while left > 0
        && let Some(saga) = sagas.next().await?
    {
        left -= 1;
        match context.output {
            Format::Text => writeln!(out, "{}", show::list_line(&saga))?,
            Format::Json => writeln!(out, "{}", show::saga_json(&saga, context.hex))?,
        }
    }
    out.flush()?;
    Ok(Done::Ok)
}

async fn queue(context: &Context, client: &Client, command: QueueCommand) -> Result<Done, Failure> {
    match command {
        QueueCommand::Set { name, rate } => {
            client.set_saga_queue(&name, rate).await?;
            print_line(match context.output {
                Format::Text if rate > 0.0 => format!("queue {name} hands out at most {rate} tasks a second"),
                Format::Text => format!("queue {name} has no limit"),
                Format::Json => json!({ "name": name, "rate_per_s": rate }).to_string(),
            })?;
        }
        QueueCommand::List => {
            let queues = client.saga_queues().await?;
            print_line(match context.output {
                Format::Text => {
                    let mut table = output::table(&["QUEUE", "TASKS/S"]);
                    for queue in &queues {
                        table.add_row([queue.name.clone(), queue.rate_per_s.to_string()]);
                    }
                    table.to_string()
                }
                Format::Json => {
                    let one = |queue: &crate::client::SagaQueue| json!({ "name": queue.name, "rate_per_s": queue.rate_per_s });
                    json!({ "queues": queues.iter().map(one).collect::<Vec<_>>() }).to_string()
                }
            })?;
        }
    }
    Ok(Done::Ok)
}
