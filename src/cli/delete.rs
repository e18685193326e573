//! `kvorum delete`: remove a key.

use std::ffi::OsString;

use serde_json::json;

use super::context::Context;
use super::failure::{Done, Failure};
use super::input;
use super::output::{Format, print_line};

const EXAMPLES: &str = "\
Examples:
  kvorum delete greeting

Exit code 1: there was no such key; that it is absent is certain all the same.";

#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The key.
    key: OsString,
}

pub async fn run(context: &Context, args: Args) -> Result<Done, Failure> {
    let key = input::key(&args.key, context.hex)?;
    let deleted = context.client().await?.delete(key).await?;
    print_line(match (context.output, deleted.existed) {
        (Format::Text, true) => format!("ok: deleted, committed at {}", deleted.commit_ts),
        (Format::Text, false) => format!("no such key at {}", deleted.commit_ts),
        (Format::Json, existed) => {
            json!({ "existed": existed, "commit_ts": deleted.commit_ts.0 }).to_string()
        }
    })?;
    Ok(if deleted.existed { Done::Ok } else { Done::No })
}
