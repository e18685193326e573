//! What a script's transaction prints.

use std::io::Write;

use bytes::Bytes;
use serde_json::{Map, Value, json};

use super::{Shown, Unmet};
use crate::cli::context::Context;
use crate::cli::failure::Failure;
use crate::cli::output::{self, Format, print_line};
use crate::client::{Committed, Row};
use crate::types::{Record, Timestamp};

/// Prints what a transaction read, and when it was committed.
pub fn committed(context: &Context, done: &Committed<Vec<Shown>>, wrote: bool) -> Result<(), Failure> {
    match context.output {
        Format::Json => {
            let results: Vec<Value> = done.value.iter().map(|shown| shown_json(shown, context.hex)).collect();
            let at = if wrote { "commit_ts" } else { "read_ts" };
            print_line(json!({
                "committed": true, at: done.commit_ts.0, "attempts": done.attempts, "results": results,
            }))
        }
        Format::Text => {
            let mut out = output::stdout();
            for shown in &done.value {
                shown_text(&mut out, shown, context.hex)?;
            }
            match (wrote, done.attempts) {
                (false, _) => writeln!(out, "read at {}", done.commit_ts)?,
                (true, 1) => writeln!(out, "committed at {}", done.commit_ts)?,
                (true, attempts) => writeln!(out, "committed at {}, in {attempts} attempts", done.commit_ts)?,
            }
            out.flush()?;
            Ok(())
        }
    }
}

/// Prints which expectation was not met.
pub fn unmet(context: &Context, unmet: &Unmet) -> Result<(), Failure> {
    let text = |value: Option<&Bytes>| match value {
        Some(value) => output::line_bytes(value, context.hex),
        None => "nothing".to_owned(),
    };
    print_line(match context.output {
        Format::Text => format!(
            "not committed: line {}: key {} holds {}, not {}",
            unmet.line,
            output::line_bytes(&unmet.key, context.hex),
            text(unmet.found.as_ref().map(|record| &record.value)),
            text(unmet.expected.as_ref())
        ),
        Format::Json => {
            let mut object = Map::new();
            object.insert("line".to_owned(), unmet.line.into());
            output::put_bytes(&mut object, "key", &unmet.key, context.hex);
            if let Some(expected) = &unmet.expected {
                output::put_bytes(&mut object, "expected", expected, context.hex);
            }
            let found = unmet.found.as_ref().map(|record| {
                let mut found = Map::new();
                put_record(&mut found, record, context.hex);
                found
            });
            object.insert("found".to_owned(), found.map_or(Value::Null, Value::from));
            json!({ "committed": false, "unmet": object }).to_string()
        }
    })
}

fn shown_text(out: &mut impl Write, shown: &Shown, hex: bool) -> Result<(), Failure> {
    match shown {
        Shown::Got { key, record: Some(record), .. } => line(out, key, &record.value, hex)?,
        Shown::Got { key, record: None, .. } => {
            writeln!(out, "no such key: {}", output::line_bytes(key, hex))?;
        }
        Shown::Scanned { rows, keys_only: true, .. } => {
            for row in rows {
                writeln!(out, "{}", output::line_bytes(&row.key, hex))?;
            }
        }
        Shown::Scanned { rows, .. } => {
            rows.iter().try_for_each(|row| line(out, &row.key, &row.record.value, hex))?;
        }
    }
    Ok(())
}

fn line(out: &mut impl Write, key: &Bytes, value: &Bytes, hex: bool) -> Result<(), Failure> {
    writeln!(out, "{}\t{}", output::line_bytes(key, hex), output::line_bytes(value, hex))?;
    Ok(())
}

fn shown_json(shown: &Shown, hex: bool) -> Value {
    match shown {
        Shown::Got { line, key, record } => {
            let mut object = Map::new();
            object.insert("line".to_owned(), (*line).into());
            output::put_bytes(&mut object, "key", key, hex);
            object.insert("found".to_owned(), record.is_some().into());
            if let Some(record) = record {
                put_record(&mut object, record, hex);
            }
            object.into()
        }
        Shown::Scanned { line, rows, keys_only } => {
            let row = |row: &Row| {
                let mut object = Map::new();
                output::put_bytes(&mut object, "key", &row.key, hex);
                put_record(&mut object, &row.record, hex);
                if *keys_only {
                    object.remove("value");
                    object.remove("value_hex");
                }
                Value::from(object)
            };
            json!({ "line": line, "rows": rows.iter().map(row).collect::<Vec<_>>() })
        }
    }
}

/// A record; what the transaction itself wrote has no timestamps yet.
fn put_record(object: &mut Map<String, Value>, record: &Record, hex: bool) {
    match record.commit_ts {
        Timestamp::ZERO => output::put_bytes(object, "value", &record.value, hex),
        _ => output::put_record(object, record, hex),
    }
}
