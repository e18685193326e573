//! `kvorum scan`: the rows of a range, in key order, at one timestamp over all shards.

use std::ffi::OsString;
use std::io::Write;
use std::time::Duration;

use serde_json::Map;

use super::context::Context;
use super::failure::{Done, Failure};
use super::input;
use super::output::{self, Format};
use super::reads::ReadArgs;
use crate::client::{Row, ScanOptions};
use crate::types::{ReadAt, Timestamp};

const EXAMPLES: &str = "\
Examples:
  kvorum scan --prefix user/
  kvorum scan --start b --end d --keys-only
  kvorum scan --prefix log/ --reverse --limit 20
  kvorum scan --prefix user/ --at $ts          as of an instant taken with `ts=$(kvorum timestamp)`
  kvorum scan --prefix user/ --level bounded   from any replica, also without a majority; at most 5 s old
  kvorum --output json scan --prefix user/     one JSON object a row

Rows are printed as they arrive, as key, tabulator, value; what is not printable is escaped. Use `export` for
the bytes as they are.";

#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Only keys that begin with this.
    #[arg(long, value_name = "KEY")]
    prefix: Option<OsString>,
    /// The first key.
    #[arg(long, value_name = "KEY")]
    start: Option<OsString>,
    /// The first key past the range.
    #[arg(long, value_name = "KEY")]
    end: Option<OsString>,
    /// Largest key first.
    #[arg(long)]
    reverse: bool,
    /// Leave the values out.
    #[arg(long)]
    keys_only: bool,
    /// Stop after so many rows.
    #[arg(long, value_name = "ROWS")]
    limit: Option<u64>,
    /// Stop before keys and values come to more bytes than this; one row at least.
    #[arg(long, value_name = "BYTES")]
    limit_bytes: Option<u64>,
    /// Read as of this timestamp instead of now.
    #[arg(long, value_name = "TIMESTAMP")]
    at: Option<Timestamp>,
    #[command(flatten)]
    reads: ReadArgs,
}

impl Args {
    fn options(&self, hex: bool) -> Result<ScanOptions, Failure> {
        let key =
            |argument: &Option<OsString>| argument.as_deref().map(|key| input::bound(key, hex)).transpose();
        Ok(ScanOptions {
            start: key(&self.start)?.unwrap_or_default(),
            end: key(&self.end)?,
            prefix: key(&self.prefix)?.unwrap_or_default(),
            reverse: self.reverse,
            keys_only: self.keys_only,
            limit_rows: self.limit,
            limit_bytes: self.limit_bytes,
            at: self.at,
        })
    }
}

pub async fn run(context: &Context, args: Args) -> Result<Done, Failure> {
    let options = args.options(context.hex)?;
    let at = args.reads.read_at(args.at)?;
    let client = args.reads.client(context).await?;
    let mut rows = match at {
        ReadAt::Latest | ReadAt::Snapshot(_) => client.scan(options),
        ReadAt::Bounded { max_staleness_ms } => {
            client.bounded(Duration::from_millis(max_staleness_ms)).scan(options)
        }
    };
    let mut out = output::stdout();
    let to_terminal = output::stdout_is_terminal();
    while let Some(row) = rows.next().await {
        let row = row?;
        print(&mut out, context, &row, args.keys_only)?;
        if to_terminal {
            out.flush()?;
        }
    }
    out.flush()?;
    Ok(Done::Ok)
}

fn print(out: &mut impl Write, context: &Context, row: &Row, keys_only: bool) -> Result<(), Failure> {
    match context.output {
        Format::Text if keys_only => writeln!(out, "{}", output::line_bytes(&row.key, context.hex))?,
        Format::Text => writeln!(
            out,
            "{}\t{}",
            output::line_bytes(&row.key, context.hex),
            output::line_bytes(&row.record.value, context.hex)
        )?,
        Format::Json => {
            let mut object = Map::new();
            output::put_bytes(&mut object, "key", &row.key, context.hex);
            output::put_record(&mut object, &row.record, context.hex);
            if keys_only {
                object.remove("value");
                object.remove("value_hex");
            }
            writeln!(out, "{}", serde_json::Value::from(object))?;
        }
    }
    Ok(())
}
