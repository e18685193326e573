//! `kvorum put`: write a value.

use std::ffi::OsString;

use serde_json::json;

use super::context::Context;
use super::failure::{Done, Failure};
use super::input;
use super::output::{Format, print_line};
use crate::rpc::validate;

const EXAMPLES: &str = "\
Examples:
  kvorum put greeting hello
  kvorum put photo @photo.jpg                  the bytes of a file
  generate | kvorum put report -               standard input
  kvorum --hex put 00ff 0102                   any bytes
  kvorum put at @@home                         a value that begins with @";

#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The key: 1 to 4,096 bytes.
    key: OsString,
    /// The value: at most 1 MiB; `-` reads standard input, `@FILE` a file.
    #[arg(allow_hyphen_values = true)]
    value: OsString,
}

pub async fn run(context: &Context, args: Args) -> Result<Done, Failure> {
    let key = input::key(&args.key, context.hex)?;
    let value = input::value(&args.value, context.hex)?;
    validate::value(&key, &value)?;
    let put = context.client().await?.put(key, value).await?;
    print_line(match context.output {
        Format::Text => format!("ok: version {}, committed at {}", put.version, put.commit_ts),
        Format::Json => json!({
            "commit_ts": put.commit_ts.0, "create_ts": put.create_ts.0, "version": put.version,
        })
        .to_string(),
    })?;
    Ok(Done::Ok)
}
