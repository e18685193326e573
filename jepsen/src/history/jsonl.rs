//! Histories as JSON, one operation a line.

use std::io::{self, BufRead, Write};

use serde_json::Value as Json;

use super::form::Form;
use super::read::{ReadError, read_lines};
use super::{History, Op, shape};

/// Writes one operation and ends the line.
pub fn write_op(out: &mut impl Write, op: &Op) -> io::Result<()> {
    serde_json::to_writer(&mut *out, &shape::to_form(op)).map_err(io::Error::from)?;
    out.write_all(b"\n")
}

/// Reads a whole history. Operations of a process named `nemesis` are left out.
pub fn read(from: impl BufRead) -> Result<History, ReadError> {
    read_lines(from, parse)
}

fn parse(line: &str) -> Result<Option<Form>, String> {
    if line.trim().is_empty() {
        return Ok(None);
    }
    let json: Json = serde_json::from_str(line).map_err(|error| format!("no JSON: {error}"))?;
    to_form(json).map(Some)
}

fn to_form(json: Json) -> Result<Form, String> {
    Ok(match json {
        Json::Null => Form::Nil,
        Json::Bool(value) => Form::Bool(value),
        Json::Number(number) => match number.as_i128() {
            Some(number) => Form::Int(number),
            None => return Err(format!("{number} must be a whole number")),
        },
        Json::String(text) => Form::Str(text),
        Json::Array(elements) => Form::List(elements.into_iter().map(to_form).collect::<Result<_, _>>()?),
        Json::Object(entries) => {
            let entry = |(key, value)| Ok::<_, String>((Form::Str(key), to_form(value)?));
            Form::Map(entries.into_iter().map(entry).collect::<Result<_, _>>()?)
        }
    })
}
