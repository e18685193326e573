//! How a command ends: exit codes, and errors on standard error.

use std::io::{self, Write};
use std::process::ExitCode;

use serde_json::json;

use super::output::Format;
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
            Format::Json => {
                json!({ "error": { "kind": error.kind.name(), "message": error.message } }).to_string()
            }
        };
        // Where standard error is closed, the exit code still tells.
        let _ = writeln!(io::stderr(), "{text}");
        ExitCode::from(error.kind.exit_code())
    }
}

/// An `invalid` error about a file that the user named.
pub fn file_error(path: &std::path::Path, what: &str, error: &io::Error) -> Failure {
    Error::new(ErrorKind::Invalid, format!("{} can't be {what}: {error}", path.display())).into()
}
