//! `kvorum cas`: write where the key holds what is expected.

use std::ffi::OsString;

use serde_json::{Map, Value, json};

use super::context::Context;
use super::failure::{Done, Failure};
use super::input;
use super::output::{self, Format, print_line};
use crate::client::Swap;
use crate::types::{Expect, Timestamp};

const EXAMPLES: &str = "\
Examples:
  kvorum cas lock/printer me --absent          only where there is no such key
  kvorum cas greeting hi --value hello         only where it holds exactly `hello`
  kvorum cas greeting hi --version 3           only where it is the third version
  kvorum cas lock/printer --delete --value me  remove it only where it is mine

Exit code 1: the key held something else; what it held is printed.";

#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The key.
    key: OsString,
    /// The new value; `-` reads standard input, `@FILE` a file.
    #[arg(required_unless_present = "delete", conflicts_with = "delete", allow_hyphen_values = true)]
    new: Option<OsString>,
    /// Remove the key instead of writing.
    #[arg(long)]
    delete: bool,
    #[command(flatten)]
    expect: ExpectArgs,
}

#[derive(clap::Args, Debug)]
#[group(required = true, multiple = false)]
struct ExpectArgs {
    /// The key must hold nothing.
    #[arg(long)]
    absent: bool,
    /// The key must hold something.
    #[arg(long)]
    present: bool,
    /// The key must hold exactly this value; `@FILE` reads a file.
    #[arg(long, value_name = "VALUE", allow_hyphen_values = true)]
    value: Option<OsString>,
    /// The key must hold its n-th version since it was created.
    #[arg(long, value_name = "N")]
    version: Option<u64>,
    /// The key's newest version must have been committed at this timestamp.
    #[arg(long, value_name = "TIMESTAMP")]
    commit_ts: Option<Timestamp>,
}

impl ExpectArgs {
    fn expect(&self, hex: bool) -> Result<Expect, Failure> {
        Ok(match self {
            Self { value: Some(value), .. } => Expect::Value(input::value(value, hex)?),
            Self { version: Some(version), .. } => Expect::Version(*version),
            Self { commit_ts: Some(at), .. } => Expect::CommitTs(*at),
            Self { absent: true, .. } => Expect::Absent,
            _ => Expect::Present,
        })
    }
}

pub async fn run(context: &Context, args: Args) -> Result<Done, Failure> {
    let key = input::key(&args.key, context.hex)?;
    let expect = args.expect.expect(context.hex)?;
    let new = args.new.as_deref().map(|new| input::value(new, context.hex)).transpose()?;
    let swap = context.client().await?.compare_and_swap(key, expect, new).await?;
    print_line(match context.output {
        Format::Text => text(&swap, context.hex),
        Format::Json => json(&swap, context.hex).to_string(),
    })?;
    Ok(if swap.swapped() { Done::Ok } else { Done::No })
}

fn text(swap: &Swap, hex: bool) -> String {
    match swap {
        Swap::Written(written) => {
            format!("ok: version {}, committed at {}", written.version, written.commit_ts)
        }
        Swap::Removed { commit_ts } => format!("ok: removed, committed at {commit_ts}"),
        Swap::Differs { current: None, .. } => "not swapped: there is no such key".to_owned(),
        Swap::Differs { current: Some(found), .. } => {
            format!("not swapped: version {} holds {}", found.version, output::line_bytes(&found.value, hex))
        }
    }
}

fn json(swap: &Swap, hex: bool) -> Value {
    match swap {
        Swap::Written(written) => json!({
            "swapped": true, "commit_ts": written.commit_ts.0, "version": written.version,
            "create_ts": written.create_ts.0,
        }),
        Swap::Removed { commit_ts } => json!({ "swapped": true, "commit_ts": commit_ts.0 }),
        Swap::Differs { commit_ts, current } => {
            let found = current.as_ref().map(|record| {
                let mut found = Map::new();
                output::put_record(&mut found, record, hex);
                Value::from(found)
            });
            json!({ "swapped": false, "commit_ts": commit_ts.0, "current": found })
        }
    }
}
