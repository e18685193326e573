//! `kvorum saga schedule`: sagas that are started again and again.

use std::ffi::OsString;

use clap::Subcommand;
use clap::builder::PossibleValuesParser;
use serde_json::{Value, json};

use super::{pair, payload, show};
use crate::cli::context::Context;
use crate::cli::failure::{Done, Failure};
use crate::cli::output::{self, Format, print_line};
use crate::client::{Client, SagaSchedule, SagaStart};
use crate::saga::Overlap;

#[derive(Subcommand, Debug)]
pub enum Command {
    /// Make a schedule, or change it.
    Put(PutArgs),
    /// List the schedules.
    List,
    /// Drop a schedule; what it has started goes on.
    Drop {
        /// Its name.
        name: String,
    },
    /// Start a run now, whatever its time.
    Trigger {
        /// The schedule's name.
        name: String,
    },
}

#[derive(clap::Args, Debug)]
pub struct PutArgs {
    /// Its name; the ids of its sagas are made of it and the time.
    name: String,
    /// The saga that is started.
    #[arg(long)]
    saga: String,
    /// Minute, hour, day of the month, month, day of the week; seconds may stand in front.
    #[arg(long, value_name = "EXPRESSION")]
    cron: String,
    /// As the IANA names them, such as Europe/Berlin; UTC where it is left out.
    #[arg(long, value_name = "ZONE", default_value = "")]
    time_zone: String,
    /// What becomes of a run whose time has come while the one before has not ended: there is none; it waits, one at most;
    /// both run; the one before is cancelled.
    #[arg(long, default_value = Overlap::Skip.name(), value_parser = PossibleValuesParser::new(Overlap::ALL.map(Overlap::name)))]
    overlap: String,
    /// What workers get with each task; - reads standard input.
    #[arg(long, default_value = "")]
    input: OsString,
    /// What the sagas are found by; may be given several times.
    #[arg(long = "attribute", value_name = "NAME=VALUE", value_parser = pair)]
    attributes: Vec<(String, String)>,
    /// The version of the saga's definition; 0 is the newest at the time.
    #[arg(long, default_value_t = 0)]
    version: u32,
    /// Start nothing until it is put again without this.
    #[arg(long)]
    paused: bool,
}

pub async fn run(context: &Context, client: &Client, command: Command) -> Result<Done, Failure> {
    match command {
        Command::Put(args) => {
            let schedule = SagaSchedule {
                name: args.name,
                cron: args.cron,
                time_zone: args.time_zone,
                start: Some(SagaStart {
                    name: args.saga,
                    version: args.version,
                    input: payload(context, &args.input)?,
                    attributes: args.attributes.into_iter().collect(),
                    ..SagaStart::default()
                }),
                overlap: args.overlap,
                paused: args.paused,
                ..SagaSchedule::default()
            };
            let put = client.put_saga_schedule(schedule).await?;
            print_line(match context.output {
                Format::Text => format!("schedule {} is next {}", put.name, next(&put)),
                Format::Json => as_json(&put).to_string(),
            })?;
            Ok(Done::Ok)
        }
        Command::List => {
            let schedules = client.saga_schedules().await?;
            print_line(match context.output {
                Format::Text => table(&schedules),
                Format::Json => {
                    json!({ "schedules": schedules.iter().map(as_json).collect::<Vec<_>>() }).to_string()
                }
            })?;
            Ok(Done::Ok)
        }
        Command::Drop { name } => {
            let existed = client.drop_saga_schedule(&name).await?;
            print_line(match context.output {
                Format::Text if existed => format!("schedule {name} is dropped"),
                Format::Text => format!("there is no schedule {name}"),
                Format::Json => json!({ "existed": existed }).to_string(),
            })?;
            Ok(if existed { Done::Ok } else { Done::No })
        }
        Command::Trigger { name } => {
            client.trigger_saga_schedule(&name).await?;
            print_line(match context.output {
                Format::Text => format!("a run of schedule {name} is started"),
                Format::Json => json!({ "name": name }).to_string(),
            })?;
            Ok(Done::Ok)
        }
    }
}

fn next(schedule: &SagaSchedule) -> String {
    match schedule.next_unix_ms {
        0 => "never".to_owned(),
        at_ms => show::time(at_ms),
    }
}

fn table(schedules: &[SagaSchedule]) -> String {
    let mut table = output::table(&["SCHEDULE", "CRON", "ZONE", "SAGA", "NEXT", "RUNS", "SKIPPED", "LAST"]);
    for one in schedules {
        let zone = if one.time_zone.is_empty() { "UTC" } else { one.time_zone.as_str() };
        table.add_row([
            one.name.clone(),
            one.cron.clone(),
            zone.to_owned(),
            one.start.as_ref().map(|start| start.name.clone()).unwrap_or_default(),
            if one.paused { "PAUSED".to_owned() } else { next(one) },
            one.runs.to_string(),
            one.skipped.to_string(),
            one.last_id.clone(),
        ]);
    }
    table.to_string()
}

fn as_json(schedule: &SagaSchedule) -> Value {
    let start = schedule.start.clone().unwrap_or_default();
    json!({
        "name": schedule.name,
        "cron": schedule.cron,
        "time_zone": schedule.time_zone,
        "saga": start.name,
        "version": start.version,
        "overlap": schedule.overlap,
        "paused": schedule.paused,
        "next_unix_ms": schedule.next_unix_ms,
        "last_id": schedule.last_id,
        "runs": schedule.runs,
        "skipped": schedule.skipped,
    })
}
