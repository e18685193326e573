//! Histories as EDN, one operation map a line, as Jepsen's own checkers read them.
//!
//! Of EDN the reader knows nil, booleans, whole numbers, strings, keywords and symbols, vectors, lists, sets,
//! maps, comments and tags (which it passes over): all that histories are made of.

mod parse;

use std::io::{self, BufRead, Write};

use super::form::Form;
use super::read::{ReadError, read_lines};
use super::{History, Op, shape};

pub use parse::parse;

/// Writes one operation and ends the line.
pub fn write_op(out: &mut impl Write, op: &Op) -> io::Result<()> {
    let mut line = String::with_capacity(128);
    print(&shape::to_form(op), &mut line);
    line.push('\n');
    out.write_all(line.as_bytes())
}

/// Reads a whole history. Operations of the process `:nemesis` are left out.
pub fn read(from: impl BufRead) -> Result<History, ReadError> {
    read_lines(from, parse)
}

/// Appends a form to `out`.
pub fn print(form: &Form, out: &mut String) {
    match form {
        Form::Nil => out.push_str("nil"),
        Form::Bool(value) => out.push_str(if *value { "true" } else { "false" }),
        Form::Int(number) => out.push_str(&number.to_string()),
        Form::Str(text) => print_string(text, out),
        Form::Keyword(name) => {
            out.push(':');
            out.push_str(name);
        }
        Form::List(forms) => {
            out.push('[');
            for (place, form) in forms.iter().enumerate() {
                if place > 0 {
                    out.push(' ');
                }
                print(form, out);
            }
            out.push(']');
        }
        Form::Map(entries) => {
            out.push('{');
            for (place, (key, value)) in entries.iter().enumerate() {
                if place > 0 {
                    out.push_str(", ");
                }
                print(key, out);
                out.push(' ');
                print(value, out);
            }
            out.push('}');
        }
    }
}

fn print_string(text: &str, out: &mut String) {
    out.push('"');
    for letter in text.chars() {
        match letter {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            other => out.push(other),
        }
    }
    out.push('"');
}
