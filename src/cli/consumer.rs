//! `kvorum consumer`: the named consumers of the changelog.

use clap::Subcommand;
use serde_json::{Value, json};

use super::context::Context;
use super::failure::{Done, Failure};
use super::output::{self, Format, print_line};
use crate::client::ConsumerStatus;

const EXAMPLES: &str = "\
Examples:
  kvorum consumer list
  kvorum consumer drop billing

A consumer is made by `kvorum watch --consumer NAME`, or by a program that opens one. One that is TRUNCATED was slower than
the changelog's retention: it must start over with a scan (`--restart --since scan`).";

#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// List the consumers, and how far behind each is.
    List,
    /// Forget a consumer and its place.
    Drop {
        /// Its name.
        name: String,
    },
}

pub async fn run(context: &Context, args: Args) -> Result<Done, Failure> {
    let client = context.client().await?;
    match args.command {
        Command::List => {
            let consumers = client.consumers().await?;
            print_line(match context.output {
                Format::Text => table(&consumers),
                Format::Json => {
                    json!({ "consumers": consumers.iter().map(as_json).collect::<Vec<_>>() }).to_string()
                }
            })?;
            Ok(Done::Ok)
        }
        Command::Drop { name } => {
            let existed = client.drop_consumer(&name).await?;
            print_line(match context.output {
                Format::Text if existed => format!("consumer {name} is forgotten"),
                Format::Text => format!("there is no consumer {name}"),
                Format::Json => json!({ "existed": existed }).to_string(),
            })?;
            Ok(if existed { Done::Ok } else { Done::No })
        }
    }
}

fn table(consumers: &[ConsumerStatus]) -> String {
    let mut table = output::table(&["CONSUMER", "EPOCH", "DONE", "BEHIND", "CHANGES", "STATE"]);
    for consumer in consumers {
        let record = &consumer.record;
        let behind =
            consumer.lag_ms.map_or_else(|| "-".to_owned(), |ms| format!("{:.1} s", ms as f64 / 1000.0));
        table.add_row([
            record.name.clone(),
            record.epoch.to_string(),
            if record.done_ts == 0 { "-".to_owned() } else { record.done_ts.to_string() },
            behind,
            consumer.lag_entries.map_or_else(|| "-".to_owned(), |entries| entries.to_string()),
            if consumer.truncated { "TRUNCATED" } else { "ok" }.to_owned(),
        ]);
    }
    table.to_string()
}

fn as_json(consumer: &ConsumerStatus) -> Value {
    let record = &consumer.record;
    json!({
        "name": record.name,
        "epoch": record.epoch,
        "done_ts": record.done_ts,
        "created_ts": record.created_ts,
        "acknowledged_ts": record.acknowledged_ts,
        "cursor": hex::encode(&record.cursor),
        "lag_ms": consumer.lag_ms,
        "lag_entries": consumer.lag_entries,
        "truncated": consumer.truncated,
    })
}
