//! `kvorum get`: read a value.

use std::ffi::OsString;
use std::io::Write;

use serde_json::{Map, Value};

use super::context::Context;
use super::failure::{Done, Failure};
use super::input;
use super::output::{self, Format, print_line};
use super::reads::ReadArgs;
use crate::client::Got;
use crate::types::{Record, Timestamp};

const EXAMPLES: &str = "\
Examples:
  kvorum get greeting
  kvorum get photo > photo.jpg
  kvorum --output json get greeting            with timestamps and version
  kvorum get greeting --at 244140625000000     as of a commit timestamp
  kvorum get greeting --at $ts                 as of an instant taken with `ts=$(kvorum timestamp)`
  kvorum get greeting --level bounded --max-staleness 2s
                                               from any replica, also without a majority; at most 2 s old
  kvorum get greeting --explain                which node answered, how, and why it was asked

Exit code 1: there is no such key.";

#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The key.
    key: OsString,
    /// Read as of this timestamp instead of the newest.
    #[arg(long, value_name = "TIMESTAMP")]
    at: Option<Timestamp>,
    #[command(flatten)]
    reads: ReadArgs,
    /// Tell on standard error which node answered, how, and why it was asked; with `--output json` in the object.
    #[arg(long)]
    explain: bool,
}

pub async fn run(context: &Context, args: Args) -> Result<Done, Failure> {
    let key = input::key(&args.key, context.hex)?;
    let at = args.reads.read_at(args.at)?;
    let client = args.reads.client(context).await?;
    let got = client.get_explained(key.clone(), at).await?;
    if args.explain && context.output == Format::Text {
        explain(&got)?;
    }
    let Some(record) = &got.record else {
        if context.output == Format::Json {
            print_line("null")?;
        } else {
            writeln!(std::io::stderr(), "no such key: {}", output::line_bytes(&key, context.hex))?;
        }
        return Ok(Done::No);
    };
    print(context, &key, record, args.explain.then_some(&got))?;
    Ok(Done::Ok)
}

/// Tells where a value came from, on standard error: standard output is for the value.
fn explain(got: &Got) -> Result<(), Failure> {
    let mut err = std::io::stderr();
    for step in &got.route {
        writeln!(err, "{step}")?;
    }
    if let Some(served) = &got.served {
        let asked =
            if served.asked_leader { "after asking the leader how far it must be" } else { "by itself" };
        let age = match served.staleness_ms {
            0 => String::new(),
            age_ms => format!(", at most {age_ms} ms old"),
        };
        writeln!(
            err,
            "node {}, a {}, answered {asked}: {} at {}{age}",
            served.node, served.role, served.level, served.at_ts
        )?;
    }
    Ok(())
}

fn explain_json(got: &Got) -> Map<String, Value> {
    let mut object = Map::new();
    if let Some(served) = &got.served {
        object.insert("node".to_owned(), served.node.0.into());
        object.insert("role".to_owned(), served.role.name().into());
        object.insert("level".to_owned(), served.level.name().into());
        object.insert("at_ts".to_owned(), served.at_ts.0.into());
        object.insert("staleness_ms".to_owned(), served.staleness_ms.into());
        object.insert("asked_leader".to_owned(), served.asked_leader.into());
    }
    object.insert("route".to_owned(), got.route.clone().into());
    object
}

fn print(context: &Context, key: &[u8], record: &Record, got: Option<&Got>) -> Result<(), Failure> {
    match context.output {
        Format::Json => {
            let mut object = Map::new();
            output::put_bytes(&mut object, "key", key, context.hex);
            output::put_record(&mut object, record, context.hex);
            if let Some(got) = got {
                object.insert("served".to_owned(), explain_json(got).into());
            }
            print_line(serde_json::Value::from(object))
        }
        Format::Text if context.hex => print_line(hex::encode(&record.value)),
        Format::Text => {
            let mut out = output::stdout();
            out.write_all(&record.value)?;
            // A prompt should not follow on the same line; a file gets the value's bytes and no more.
            if output::stdout_is_terminal() && !record.value.ends_with(b"\n") {
                out.write_all(b"\n")?;
            }
            out.flush()?;
            Ok(())
        }
    }
}
