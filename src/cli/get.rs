//! `kvorum get`: read a value.

use std::ffi::OsString;
use std::io::Write;

use serde_json::Map;

use super::context::Context;
use super::failure::{Done, Failure};
use super::input;
use super::output::{self, Format, print_line};
use crate::types::{Record, Timestamp};

const EXAMPLES: &str = "\
Examples:
  kvorum get greeting
  kvorum get photo > photo.jpg
  kvorum --output json get greeting            with timestamps and version
  kvorum get greeting --at 244140625000000     as of a commit timestamp
  kvorum get greeting --at $ts                 as of an instant taken with `ts=$(kvorum timestamp)`

Exit code 1: there is no such key.";

#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The key.
    key: OsString,
    /// Read as of this timestamp instead of the newest.
    #[arg(long, value_name = "TIMESTAMP")]
    at: Option<Timestamp>,
}

pub async fn run(context: &Context, args: Args) -> Result<Done, Failure> {
    let key = input::key(&args.key, context.hex)?;
    let client = context.client().await?;
    let record = match args.at {
        None => client.get(key.clone()).await?,
        Some(at) => client.get_at(key.clone(), at).await?,
    };
    let Some(record) = record else {
        if context.output == Format::Json {
            print_line("null")?;
        } else {
            writeln!(std::io::stderr(), "no such key: {}", output::line_bytes(&key, context.hex))?;
        }
        return Ok(Done::No);
    };
    print(context, &key, &record)?;
    Ok(Done::Ok)
}

fn print(context: &Context, key: &[u8], record: &Record) -> Result<(), Failure> {
    match context.output {
        Format::Json => {
            let mut object = Map::new();
            output::put_bytes(&mut object, "key", key, context.hex);
            output::put_record(&mut object, record, context.hex);
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
