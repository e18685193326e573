//! `kvorum export`: all rows, or those under a prefix, streamed to standard output in key order.

use std::ffi::OsString;
use std::io::Write;

use clap::ValueEnum;
use serde_json::Map;

use super::context::Context;
use super::failure::{Done, Failure};
use super::{input, output};
use crate::client::{Row, ScanOptions};
use crate::types::Timestamp;
use crate::{Error, Result};

const EXAMPLES: &str = "\
Examples:
  kvorum export > everything.ndjson
  kvorum export --prefix user/ --format lines > users.ndjson    the lines that were imported, in key order
  kvorum export --at $(kvorum timestamp) > now.ndjson            as of one instant of your choice
  kvorum export --hex > everything.ndjson                        all keys and values in hexadecimal

ndjson: {\"key\":…,\"value\":…} a row, or key_hex and value_hex where the bytes are not UTF-8; `import` without --key
reads it back. lines: each value and a line end, byte for byte. All rows are of one timestamp.";

/// What is written for a row.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum ExportFormat {
    /// An object with key and value.
    Ndjson,
    /// The value alone; refused where a value holds a line end itself.
    Lines,
}

#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// What is written for a row.
    #[arg(long, value_name = "FORMAT", default_value = "ndjson")]
    format: ExportFormat,
    /// Only keys that begin with this.
    #[arg(long, value_name = "KEY", default_value = "")]
    prefix: OsString,
    /// As of this timestamp instead of now.
    #[arg(long, value_name = "TIMESTAMP")]
    at: Option<Timestamp>,
}

pub async fn run(context: &Context, args: Args) -> Result<Done, Failure> {
    let options = ScanOptions {
        prefix: input::bound(&args.prefix, context.hex)?,
        at: args.at,
        ..ScanOptions::default()
    };
    let client = context.client().await?;
    let mut rows = client.scan(options);
    let mut out = output::stdout();
    while let Some(row) = rows.next().await {
        let row = row?;
        match args.format {
            ExportFormat::Ndjson => write_object(&mut out, &row, context.hex)?,
            ExportFormat::Lines => {
                check_line(&row)?;
                out.write_all(&row.record.value)?;
                out.write_all(b"\n")?;
            }
        }
    }
    out.flush()?;
    Ok(Done::Ok)
}

fn write_object(out: &mut impl Write, row: &Row, hex: bool) -> Result<(), Failure> {
    let mut object = Map::new();
    output::put_bytes(&mut object, "key", &row.key, hex);
    output::put_bytes(&mut object, "value", &row.record.value, hex);
    writeln!(out, "{}", serde_json::Value::from(object))?;
    Ok(())
}

fn check_line(row: &Row) -> Result<()> {
    if row.record.value.contains(&b'\n') {
        return Err(Error::invalid(format!(
            "the value of key {} holds a line end, so lines could not be told apart: use --format ndjson",
            output::line_bytes(&row.key, false)
        )));
    }
    Ok(())
}
