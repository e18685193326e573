//! Records read from a file: NDJSON, CSV or plain lines, one at a time, so that a file of any size fits.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use clap::ValueEnum;
use serde_json::Value;

use super::failure::{Failure, file_error};
use crate::Error;
use crate::types::limits::{MAX_KEY_BYTES, MAX_VALUE_BYTES};

/// The longest line that is looked at. A longer one is a bad line, and is skipped without being held.
const MAX_LINE_BYTES: usize = 3 * (MAX_VALUE_BYTES + MAX_KEY_BYTES);

/// The form of a file of records.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum FileFormat {
    /// One JSON object a line. The key is the field --key and the value is the line; without --key the
    /// objects are those that `export` writes.
    Ndjson,
    /// Comma-separated with a header line. The key is the column --key; the value is the row as a JSON object.
    Csv,
    /// The key is the line, and so is the value.
    Lines,
}

/// Where records come from and how they become keys and values.
#[derive(clap::Args, Debug, Clone)]
pub struct SourceArgs {
    /// The file; `-` is standard input.
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// The file's form.
    #[arg(long, value_name = "FORMAT", default_value = "ndjson")]
    pub format: FileFormat,
    /// The field (a path such as /address/city, for one inside another) or column that is the key.
    #[arg(long, value_name = "FIELD")]
    pub key: Option<String>,
    /// Put in front of every key.
    #[arg(long, value_name = "PREFIX", default_value = "")]
    pub prefix: OsString,
}

/// A key and its value, from one line.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pair {
    /// The key, with the prefix in front.
    pub key: Bytes,
    /// The value.
    pub value: Bytes,
}

/// A line that gives no record.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BadLine {
    /// Which line, counted from 1.
    pub line: u64,
    /// What is wrong with it.
    pub reason: String,
}

/// What the next line holds.
pub type Next = Result<(u64, Pair), BadLine>;

/// Reads the records of a file in order. Blocks; run it on a thread of its own.
pub struct Records {
    source: Source,
    args: SourceArgs,
}

enum Source {
    Lines { input: Box<dyn BufRead + Send>, line: u64 },
    Csv { input: Box<csv::Reader<Box<dyn BufRead + Send>>>, header: csv::StringRecord, column: usize },
}

impl Records {
    /// Opens the file.
    ///
    /// # Errors
    /// `Invalid` where it can't be opened, or where `--key` is missing or names no column.
    pub fn open(args: &SourceArgs) -> Result<Self, Failure> {
        let input: Box<dyn BufRead + Send> = if args.file == Path::new("-") {
            Box::new(BufReader::new(io::stdin()))
        } else {
            let file = File::open(&args.file).map_err(|error| file_error(&args.file, "opened", &error))?;
            Box::new(BufReader::with_capacity(256 * 1024, file))
        };
        Self::new(input, args)
    }

    fn new(input: Box<dyn BufRead + Send>, args: &SourceArgs) -> Result<Self, Failure> {
        if args.format == FileFormat::Lines && args.key.is_some() {
            return Err(Error::invalid(
                "--key has no meaning with --format lines: the line itself is the key",
            )
            .into());
        }
        let source = match args.format {
            FileFormat::Ndjson | FileFormat::Lines => Source::Lines { input, line: 0 },
            FileFormat::Csv => {
                let Some(key) = &args.key else {
                    return Err(
                        Error::invalid("--format csv needs --key COLUMN: which column is the key?").into()
                    );
                };
                let mut input = csv::ReaderBuilder::new().from_reader(input);
                let header = input
                    .headers()
                    .map_err(|error| {
                        Error::invalid(format!("the header of {} is not CSV: {error}", args.file.display()))
                    })?
                    .clone();
                let Some(column) = header.iter().position(|name| name == key) else {
                    let names = header.iter().collect::<Vec<_>>().join(", ");
                    return Err(Error::invalid(format!(
                        "there is no column {key:?}: the header has {names}"
                    ))
                    .into());
                };
                Source::Csv { input: Box::new(input), header, column }
            }
        };
        Ok(Self { source, args: args.clone() })
    }

    fn pair(&self, key: &[u8], value: impl Into<Bytes>) -> Result<Pair, String> {
        let value = value.into();
        let key = [self.args.prefix.as_bytes(), key].concat();
        if key.is_empty() || key.len() > MAX_KEY_BYTES {
            return Err(format!("the key has {} bytes: it must have 1 to {MAX_KEY_BYTES}", key.len()));
        }
        if value.len() > MAX_VALUE_BYTES {
            return Err(format!("the value has {} bytes: the limit is {MAX_VALUE_BYTES}", value.len()));
        }
        Ok(Pair { key: key.into(), value })
    }

    fn json_pair(&self, line: Bytes) -> Result<Pair, String> {
        let object: Value =
            serde_json::from_slice(&line).map_err(|error| format!("it is not JSON: {error}"))?;
        if !object.is_object() {
            return Err("it is not a JSON object".to_owned());
        }
        match &self.args.key {
            Some(field) => self.pair(key_text(&object, field)?.as_bytes(), line),
            None => self.pair(&exported_bytes(&object, "key")?, exported_bytes(&object, "value")?),
        }
    }

    fn next_line(&mut self) -> io::Result<Option<Next>> {
        let Source::Lines { input, line } = &mut self.source else { return Ok(None) };
        loop {
            let Some(bytes) = read_line(input)? else { return Ok(None) };
            *line += 1;
            let line = *line;
            let parsed = match bytes {
                Err(length) => Err(format!("it has {length} bytes: the limit is {MAX_LINE_BYTES}")),
                Ok(bytes) if bytes.trim_ascii().is_empty() && self.args.format == FileFormat::Ndjson => {
                    continue;
                }
                Ok(bytes) => match self.args.format {
                    FileFormat::Lines => self.pair(&bytes, bytes.clone()),
                    _ => self.json_pair(bytes),
                },
            };
            return Ok(Some(parsed.map(|pair| (line, pair)).map_err(|reason| BadLine { line, reason })));
        }
    }

    fn next_row(&mut self) -> io::Result<Option<Next>> {
        let Source::Csv { input, header, column } = &mut self.source else { return Ok(None) };
        let mut row = csv::StringRecord::new();
        let line = input.position().line();
        match input.read_record(&mut row) {
            Ok(false) => Ok(None),
            Ok(true) => {
                let line = row.position().map_or(line, csv::Position::line);
                let object: serde_json::Map<String, Value> = header
                    .iter()
                    .zip(row.iter())
                    .map(|(name, field)| (name.to_owned(), field.into()))
                    .collect();
                let key = row.get(*column).unwrap_or_default().to_owned();
                let pair = self.pair(key.as_bytes(), Value::from(object).to_string());
                Ok(Some(pair.map(|pair| (line, pair)).map_err(|reason| BadLine { line, reason })))
            }
            Err(error) => match error.into_kind() {
                csv::ErrorKind::Io(error) => Err(error),
                csv::ErrorKind::UnequalLengths { pos, expected_len, len } => Ok(Some(Err(BadLine {
                    line: pos.map_or(line, |pos| pos.line()),
                    reason: format!("it has {len} fields, the header {expected_len}"),
                }))),
                csv::ErrorKind::Utf8 { pos, err } => Ok(Some(Err(BadLine {
                    line: pos.map_or(line, |pos| pos.line()),
                    reason: format!("it is not UTF-8: {err}"),
                }))),
                other => Ok(Some(Err(BadLine { line, reason: format!("it is not CSV: {other:?}") }))),
            },
        }
    }
}

impl Iterator for Records {
    type Item = io::Result<Next>;

    fn next(&mut self) -> Option<Self::Item> {
        match &self.source {
            Source::Lines { .. } => self.next_line().transpose(),
            Source::Csv { .. } => self.next_row().transpose(),
        }
    }
}

/// The text of a field: a string or a number.
fn key_text(object: &Value, field: &str) -> Result<String, String> {
    let found = if field.starts_with('/') { object.pointer(field) } else { object.get(field) };
    match found {
        Some(Value::String(text)) => Ok(text.clone()),
        Some(Value::Number(number)) => Ok(number.to_string()),
        Some(_) => Err(format!("its field {field:?} is neither text nor a number")),
        None => Err(format!("it has no field {field:?}")),
    }
}

/// Bytes as `export` writes them: text under `name`, or hexadecimal under `name_hex`.
fn exported_bytes(object: &Value, name: &str) -> Result<Vec<u8>, String> {
    let hex_name = format!("{name}_hex");
    match (object.get(name), object.get(&hex_name)) {
        (Some(Value::String(text)), None) => Ok(text.clone().into_bytes()),
        (None, Some(Value::String(digits))) => {
            hex::decode(digits).map_err(|error| format!("its field {hex_name:?} is not hexadecimal: {error}"))
        }
        _ => Err(format!("without --key it must have the field {name:?} or {hex_name:?}, as text")),
    }
}

/// The next line without its end, or its length where it is longer than [`MAX_LINE_BYTES`].
fn read_line(input: &mut impl BufRead) -> io::Result<Option<Result<Bytes, usize>>> {
    let mut bytes = Vec::new();
    let read = input.by_ref().take(MAX_LINE_BYTES as u64 + 1).read_until(b'\n', &mut bytes)?;
    if read == 0 {
        return Ok(None);
    }
    if bytes.last() == Some(&b'\n') {
        bytes.pop();
    } else if bytes.len() > MAX_LINE_BYTES {
        return Ok(Some(Err(bytes.len() + skip_line(input)?)));
    }
    Ok(Some(Ok(bytes.into())))
}

fn skip_line(input: &mut impl BufRead) -> io::Result<usize> {
    let mut skipped = 0;
    loop {
        let buffer = input.fill_buf()?;
        let end = buffer.iter().position(|byte| *byte == b'\n');
        let used = end.map_or(buffer.len(), |at| at + 1);
        input.consume(used);
        skipped += used;
        if end.is_some() || used == 0 {
            return Ok(skipped);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(format: FileFormat, key: Option<&str>, text: impl Into<Vec<u8>>) -> Vec<Next> {
        let args = SourceArgs { file: "-".into(), format, key: key.map(str::to_owned), prefix: "p/".into() };
        let input = Box::new(io::Cursor::new(text.into()));
        Records::new(input, &args).expect("opened").map(|next| next.expect("read")).collect()
    }

    fn pair(line: u64, key: &str, value: &str) -> Next {
        Ok((line, Pair { key: Bytes::from(key.to_owned()), value: Bytes::from(value.to_owned()) }))
    }

    #[test]
    fn lines_keep_every_byte_but_their_end() {
        assert_eq!(
            read(FileFormat::Lines, None, "a \r\nb"),
            [pair(1, "p/a \r", "a \r"), pair(2, "p/b", "b")]
        );
    }

    #[test]
    fn ndjson_takes_the_field_as_key_and_the_line_as_value() {
        let text = "{\"id\": 7,  \"at\":{\"c\":\"x\"}}\n\nnonsense\n{\"no\":1}\n";
        let read_by_id = read(FileFormat::Ndjson, Some("id"), text);
        assert_eq!(read_by_id[0], pair(1, "p/7", "{\"id\": 7,  \"at\":{\"c\":\"x\"}}"));
        let bad: Vec<u64> =
            read_by_id.iter().filter_map(|next| next.as_ref().err()).map(|bad| bad.line).collect();
        assert_eq!(bad, [3, 4]);
        assert_eq!(read(FileFormat::Ndjson, Some("/at/c"), text)[0].as_ref().expect("a pair").1.key, "p/x");
    }

    #[test]
    fn exported_objects_come_back() {
        let text = "{\"key\":\"a\",\"value_hex\":\"ff00\"}\n{\"key\":\"a\"}";
        let records = read(FileFormat::Ndjson, None, text);
        assert_eq!(records[0].as_ref().expect("a pair").1.value, &b"\xff\x00"[..]);
        assert!(records[1].is_err());
    }

    #[test]
    fn csv_rows_become_objects() {
        let records = read(FileFormat::Csv, Some("code"), "name,code\n\"A, B\",ab\nshort\nC,c\n");
        assert_eq!(records[0], pair(2, "p/ab", r#"{"code":"ab","name":"A, B"}"#));
        assert_eq!(records[1].as_ref().expect_err("too short").line, 3);
        assert_eq!(records[2], pair(4, "p/c", r#"{"code":"c","name":"C"}"#));
    }

    #[test]
    fn a_line_past_the_limit_is_skipped_and_reported() {
        let mut text = vec![b'x'; MAX_LINE_BYTES + 10];
        text.extend_from_slice(b"\nshort\n");
        let records = read(FileFormat::Lines, None, text);
        assert!(records[0].as_ref().expect_err("too long").reason.contains("limit"));
        assert_eq!(records[1], pair(2, "p/short", "short"));
    }
}
