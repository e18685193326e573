//! `kvorum add`: add to a counter.

use std::ffi::OsString;

use serde_json::json;

use super::context::Context;
use super::failure::{Done, Failure};
use super::input;
use super::output::{Format, print_line};

const EXAMPLES: &str = "\
Examples:
  kvorum add visits                            one more
  kvorum add stock/apples -3

A counter is a decimal number from -2^63 to 2^63-1 as text; an absent key counts as 0. A sum that does not
fit, or a value that is not a number, is refused and nothing changes.";

#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The key.
    key: OsString,
    /// What to add; may be negative.
    #[arg(default_value_t = 1, allow_negative_numbers = true)]
    delta: i64,
}

pub async fn run(context: &Context, args: Args) -> Result<Done, Failure> {
    let key = input::key(&args.key, context.hex)?;
    let added = context.client().await?.add(key, args.delta).await?;
    print_line(match context.output {
        Format::Text => added.value.to_string(),
        Format::Json => json!({ "value": added.value, "commit_ts": added.commit_ts.0 }).to_string(),
    })?;
    Ok(Done::Ok)
}
