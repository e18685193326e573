//! What commands print: text for people, JSON for programs.

use std::io::{self, BufWriter, IsTerminal, Stdout, Write};

use clap::ValueEnum;
use comfy_table::{ContentArrangement, Table, presets};
use serde_json::{Map, Value};

use super::failure::Failure;
use crate::types::Record;

/// The form of the output.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// One JSON object; for scans one a line.
    Json,
}

/// Standard output, buffered.
pub fn stdout() -> BufWriter<Stdout> {
    BufWriter::with_capacity(64 * 1024, io::stdout())
}

/// Prints one line to standard output.
pub fn print_line(text: impl std::fmt::Display) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    writeln!(out, "{text}")?;
    out.flush()?;
    Ok(())
}

/// Whether a person reads standard output.
pub fn stdout_is_terminal() -> bool {
    io::stdout().is_terminal()
}

/// A table without lines that get in the way of `cut` and `awk`.
pub fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(header.iter().copied());
    table
}

/// Puts bytes into a JSON object: as text under `name`, or where they are not UTF-8 (or `hex` is set) in
/// hexadecimal under `name_hex`.
pub fn put_bytes(object: &mut Map<String, Value>, name: &str, bytes: &[u8], hex: bool) {
    match std::str::from_utf8(bytes) {
        Ok(text) if !hex => object.insert(name.to_owned(), text.into()),
        _ => object.insert(format!("{name}_hex"), hex::encode(bytes).into()),
    };
}

/// Puts a record into a JSON object: value, commit and create timestamp, version.
pub fn put_record(object: &mut Map<String, Value>, record: &Record, hex: bool) {
    put_bytes(object, "value", &record.value, hex);
    object.insert("commit_ts".to_owned(), record.commit_ts.0.into());
    object.insert("create_ts".to_owned(), record.create_ts.0.into());
    object.insert("version".to_owned(), record.version.into());
}

/// Bytes for one line of a terminal: hexadecimal where asked for, else text with everything that is not
/// printable escaped.
pub fn line_bytes(bytes: &[u8], hex: bool) -> String {
    if hex {
        return hex::encode(bytes);
    }
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for character in chunk.valid().chars() {
            match character {
                '\\' => text.push_str("\\\\"),
                character if character.is_control() => text.extend(character.escape_default()),
                character => text.push(character),
            }
        }
        for byte in chunk.invalid() {
            text.push_str(&format!("\\x{byte:02x}"));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_that_are_not_text_are_escaped_or_hexadecimal() {
        assert_eq!(line_bytes("straße\n\\".as_bytes(), false), "straße\\n\\\\");
        assert_eq!(line_bytes(b"a\xffb", false), "a\\xffb");
        assert_eq!(line_bytes(b"a\xff", true), "61ff");
        let mut object = Map::new();
        put_bytes(&mut object, "key", b"a", false);
        put_bytes(&mut object, "value", b"\xff", false);
        assert_eq!(Value::from(object).to_string(), r#"{"key":"a","value_hex":"ff"}"#);
    }
}
