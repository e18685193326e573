//! Reading a history line by line, the same for both formats.

use std::io::{self, BufRead};

use super::form::Form;
use super::{Builder, History, Malformed, shape};

/// Why a file is no history. Lines count from 1.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The file cannot be read.
    #[error("line {line}: cannot read: {source}")]
    Io {
        /// The line that was to be read.
        line: usize,
        /// What the system said.
        source: io::Error,
    },
    /// The line is not in the format.
    #[error("line {line}: {problem}")]
    Syntax {
        /// The line.
        line: usize,
        /// What is wrong with it.
        problem: String,
    },
    /// The line is well written, but not an operation that can stand there.
    #[error("line {line}: {source}")]
    Malformed {
        /// The line.
        line: usize,
        /// What is wrong with it.
        source: Malformed,
    },
}

/// Reads a history whose lines `parse` understands. Empty lines and lines of the nemesis are left out.
pub fn read_lines(
    from: impl BufRead,
    parse: impl Fn(&str) -> Result<Option<Form>, String>,
) -> Result<History, ReadError> {
    let mut builder = Builder::default();
    for (place, text) in from.lines().enumerate() {
        let line = place + 1;
        let text = text.map_err(|source| ReadError::Io { line, source })?;
        let syntax = |problem| ReadError::Syntax { line, problem };
        let Some(form) = parse(&text).map_err(syntax)? else { continue };
        let Some(op) = shape::from_form(&form, builder.next_index()).map_err(syntax)? else { continue };
        builder.push(op).map_err(|source| ReadError::Malformed { line, source })?;
    }
    Ok(builder.finish())
}
