//! The script of a transaction: one command a line, in words like those of a shell.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStringExt;

use bytes::Bytes;
use clap::Parser;

use crate::cli::input;
use crate::client::ScanOptions;
use crate::rpc::validate;
use crate::{Error, Result};

/// One command of a script.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Statement {
    /// Its line, counted from 1.
    pub line: usize,
    /// What it does.
    pub command: Command,
}

/// What a line of a script does.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Command {
    /// Read a key.
    Get(Bytes),
    /// Write a value.
    Put(Bytes, Bytes),
    /// Remove a key.
    Delete(Bytes),
    /// Add to a counter.
    Add(Bytes, i64),
    /// Read a range.
    Scan(ScanOptions),
    /// Go on only where the key holds this value, or with `None` where it holds nothing.
    Expect(Bytes, Option<Bytes>),
}

impl Command {
    /// Whether it changes anything.
    pub fn writes(&self) -> bool {
        matches!(self, Self::Put(..) | Self::Delete(_) | Self::Add(..))
    }
}

/// A line's words.
#[derive(Parser, Debug)]
#[command(no_binary_name = true, disable_help_flag = true, disable_help_subcommand = true)]
enum Line {
    Get {
        key: OsString,
    },
    Put {
        key: OsString,
        #[arg(allow_hyphen_values = true)]
        value: OsString,
    },
    Delete {
        key: OsString,
    },
    Add {
        key: OsString,
        #[arg(default_value_t = 1, allow_negative_numbers = true)]
        delta: i64,
    },
    Scan {
        #[arg(long)]
        prefix: Option<OsString>,
        #[arg(long)]
        start: Option<OsString>,
        #[arg(long)]
        end: Option<OsString>,
        #[arg(long)]
        reverse: bool,
        #[arg(long)]
        keys_only: bool,
        #[arg(long)]
        limit: Option<u64>,
    },
    Expect {
        key: OsString,
        #[arg(allow_hyphen_values = true)]
        value: OsString,
    },
    ExpectAbsent {
        key: OsString,
    },
}

/// The commands of a script, all checked; with `hex`, keys and values are hexadecimal digits.
///
/// # Errors
/// `Invalid` for the first line that is wrong, or where there is no command at all.
pub fn parse(script: &[u8], hex: bool) -> Result<Vec<Statement>> {
    let mut statements = Vec::new();
    for (number, text) in script.split(|byte| *byte == b'\n').enumerate() {
        let line = number + 1;
        let told = |error: Error| Error { message: format!("line {line}: {}", error.message), ..error };
        let words = words(text).map_err(told)?;
        if !words.is_empty() {
            let command = command(words, hex).map_err(told)?;
            statements.push(Statement { line, command });
        }
    }
    if statements.is_empty() {
        return Err(Error::invalid(
            "the script has no commands: see `kvorum txn --help` for what a line can be",
        ));
    }
    Ok(statements)
}

/// The words of a line; none where it is empty or a comment.
fn words(text: &[u8]) -> Result<Vec<OsString>> {
    let text = text.strip_suffix(b"\r").unwrap_or(text);
    let mut words = shlex::bytes::Shlex::new(text);
    let found = words.by_ref().map(OsString::from_vec).collect();
    if words.had_error {
        return Err(Error::invalid(
            "a quote is not closed, or a backslash ends the line: close it; a value with line ends is given with --hex",
        ));
    }
    Ok(found)
}

fn command(words: Vec<OsString>, hex: bool) -> Result<Command> {
    let line = Line::try_parse_from(words).map_err(|error| {
        let text = error.render().to_string();
        let told: Vec<&str> = text.lines().map(str::trim).take_while(|line| !line.is_empty()).collect();
        let told = told.join(" ");
        let told = told.trim_start_matches("error: ");
        Error::invalid(format!(
            "{told}; a line is get, put, delete, add, scan, expect or expect-absent, see `kvorum txn --help`"
        ))
    })?;
    let key = |key: &OsStr| input::key(key, hex);
    let bound = |bound: Option<OsString>| bound.map(|bound| input::bound(&bound, hex)).transpose();
    Ok(match line {
        Line::Get { key: of } => Command::Get(key(&of)?),
        Line::Put { key: of, value } => {
            let (of, value) = (key(&of)?, literal(value, hex)?);
            validate::value(&of, &value)?;
            Command::Put(of, value)
        }
        Line::Delete { key: of } => Command::Delete(key(&of)?),
        Line::Add { key: of, delta } => Command::Add(key(&of)?, delta),
        Line::Scan { prefix, start, end, reverse, keys_only, limit } => {
            validate::limit("--limit", limit)?;
            let options = ScanOptions {
                prefix: bound(prefix)?.unwrap_or_default(),
                start: bound(start)?.unwrap_or_default(),
                end: bound(end)?,
                reverse,
                keys_only,
                limit_rows: limit,
                ..ScanOptions::default()
            };
            validate::range(&options.start, options.end.as_deref())?;
            validate::bound("prefix", &options.prefix)?;
            Command::Scan(options)
        }
        Line::Expect { key: of, value } => Command::Expect(key(&of)?, Some(literal(value, hex)?)),
        Line::ExpectAbsent { key: of } => Command::Expect(key(&of)?, None),
    })
}

/// A value as it stands: a script reads no files, and no standard input besides itself.
fn literal(value: OsString, hex: bool) -> Result<Bytes> {
    let bytes = value.into_vec();
    if hex { input::decode_hex(&bytes, "value") } else { Ok(bytes.into()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;

    fn commands(script: &str) -> Vec<(usize, Command)> {
        let statements = parse(script.as_bytes(), false).expect("a proper script");
        statements.into_iter().map(|statement| (statement.line, statement.command)).collect()
    }

    fn refused(script: &str, says: &[&str]) {
        let error = parse(script.as_bytes(), false).expect_err("must be refused");
        assert_eq!(error.kind, ErrorKind::Invalid);
        for part in says {
            assert!(error.message.contains(part), "{part:?} is not in {:?}", error.message);
        }
    }

    #[test]
    fn every_command_has_its_line() {
        let script = "# a transfer\n\nexpect a/1 '10 of them'  # as before\nadd a/1 -3\r\nadd a/2\n  put log \"a \\\"b\\\"\"\n\
                      delete old\nexpect-absent new\nget a/1\nput dash -\nscan --prefix a/ --limit 2 --reverse";
        let key = Bytes::from_static;
        assert_eq!(
            commands(script),
            [
                (3, Command::Expect(key(b"a/1"), Some("10 of them".into()))),
                (4, Command::Add(key(b"a/1"), -3)),
                (5, Command::Add(key(b"a/2"), 1)),
                (6, Command::Put(key(b"log"), "a \"b\"".into())),
                (7, Command::Delete(key(b"old"))),
                (8, Command::Expect(key(b"new"), None)),
                (9, Command::Get(key(b"a/1"))),
                (10, Command::Put(key(b"dash"), "-".into())),
                (11, Command::Scan(ScanOptions::prefix("a/").limit_rows(2).reverse())),
            ]
        );
    }

    #[test]
    fn bytes_that_are_not_text_pass() {
        let statements = parse(b"put k 'a\xff b'", false).expect("any bytes");
        assert_eq!(statements[0].command, Command::Put("k".into(), Bytes::from_static(b"a\xff b")));
        let statements = parse(b"put 6b 00ff", true).expect("hexadecimal");
        assert_eq!(statements[0].command, Command::Put("k".into(), Bytes::from_static(b"\x00\xff")));
        assert!(parse(b"put 6b 0", true).is_err());
    }

    #[test]
    fn what_is_wrong_is_told_with_its_line() {
        refused("", &["no commands"]);
        refused("# nothing\n", &["no commands"]);
        refused("get a\nput a\n", &["line 2", "VALUE"]);
        refused("get a\nget a b", &["line 2", "'b'"]);
        refused("frobnicate a", &["line 1", "frobnicate", "expect-absent"]);
        refused("get 'a", &["line 1", "quote"]);
        refused("get ''", &["line 1", "empty"]);
        refused("add a ten", &["line 1", "ten"]);
        refused("scan --limit 0", &["line 1", "--limit"]);
        refused("scan --start b --end a", &["line 1", "reversed"]);
    }
}
