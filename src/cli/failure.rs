//! How a command ends: exit codes, and errors on standard error.

use std::io::{self, Write};
use std::process::ExitCode;

use serde_json::{Map, Value, json};

use super::output::{self, Format};
use crate::{Error, ErrorKind};

/// A command that came to its end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Done {
    /// It did what was asked for: exit code 0.
    Ok,
    /// There is no such key, or a condition was not met: exit code 1.
    No,
}

impl From<Done> for ExitCode {
    fn from(done: Done) -> Self {
        match done {
            Done::Ok => ExitCode::SUCCESS,
            Done::No => ExitCode::from(1),
        }
    }
}

/// Why a command could not do what was asked for.
#[derive(Debug)]
pub enum Failure {
    /// An error to be told; its kind gives the exit code.
    Error(Error),
    /// Whoever read standard output has seen enough (`kvorum scan | head`): no error.
    ClosedPipe,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

/// Errors of standard output and standard error; those of files are told with the file's name instead.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::ClosedPipe,
            _ => Self::Error(Error::unavailable(format!("the output can't be written: {error}"))),
        }
    }
}

impl Failure {
    /// Writes the error to standard error and returns the exit code.
    pub fn report(self, format: Format) -> ExitCode {
        let error = match self {
            Self::Error(error) => error,
            Self::ClosedPipe => return ExitCode::SUCCESS,
        };
        let text = match format {
            Format::Text => format!("error: {} ({})", error.message, error.kind),
            Format::Json => json!({ "error": to_json(&error) }).to_string(),
        };
        // Where standard error is closed, the exit code still tells.
        let _ = writeln!(io::stderr(), "{text}");
        ExitCode::from(error.kind.exit_code())
    }
}

fn to_json(error: &Error) -> Map<String, Value> {
    let mut object = Map::new();
    object.insert("kind".to_owned(), error.kind.name().into());
    object.insert("message".to_owned(), error.message.as_str().into());
    if let Some(conflict) = &error.conflict {
        let mut told = Map::new();
        told.insert("reason".to_owned(), conflict.reason.name().into());
        if let Some(key) = &conflict.key {
            output::put_bytes(&mut told, "key", key, false);
        }
        if let Some(ts) = conflict.ts {
            told.insert("ts".to_owned(), ts.0.into());
        }
        object.insert("conflict".to_owned(), told.into());
    }
    if let Some(oldest) = error.oldest {
        object.insert("oldest_ts".to_owned(), oldest.0.into());
    }
    object
}

/// An `invalid` error about a file that the user named.
pub fn file_error(path: &std::path::Path, what: &str, error: &io::Error) -> Failure {
    Error::new(ErrorKind::Invalid, format!("{} can't be {what}: {error}", path.display())).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Conflict, ConflictReason, Timestamp};

    #[test]
    fn a_conflict_is_told_to_programs() {
        let conflict = Conflict {
            reason: ConflictReason::Changed,
            key: Some("k".into()),
            ts: Some(Timestamp(7)),
            is_final: true,
        };
        let told = Value::from(to_json(&Error::conflict("changed", conflict)));
        assert_eq!(told["kind"], "conflict");
        assert_eq!(told["conflict"], json!({ "reason": "changed", "key": "k", "ts": 7 }));
        assert_eq!(
            Value::from(to_json(&Error::invalid("no"))),
            json!({ "kind": "invalid", "message": "no" })
        );
    }
}
