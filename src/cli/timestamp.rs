//! `kvorum timestamp`: a fresh timestamp, to read several things as of one instant.

use serde_json::json;

use super::context::Context;
use super::failure::{Done, Failure};
use super::output::{Format, print_line};

const EXAMPLES: &str = "\
Examples:
  ts=$(kvorum timestamp)
  kvorum export --at $ts > monday.ndjson       everything as it was then, whatever is written meanwhile
  kvorum get balance/ada --at $ts              as of the same instant
  kvorum --output json timestamp               with the time of day

The timestamp is above all that were handed out before: what is read at it sees every write that was acknowledged
before this command. Versions are kept for an hour unless the nodes are told otherwise, ten minutes at the least; a read at
an older timestamp is refused (exit code 6).";

#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {}

pub async fn run(context: &Context, _args: Args) -> Result<Done, Failure> {
    let ts = context.client().await?.timestamp().await?;
    print_line(match context.output {
        Format::Text => ts.to_string(),
        Format::Json => json!({ "ts": ts.0, "unix_ms": ts.unix_ms() }).to_string(),
    })?;
    Ok(Done::Ok)
}
