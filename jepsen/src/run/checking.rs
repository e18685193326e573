//! Checking histories, fresh ones and those of earlier runs.

use std::fs::{self, File};
use std::io::BufReader;
use std::path::Path;

use super::write;
use crate::check::{self, Valid, Verdict};
use crate::history::{History, jsonl};
use crate::hosts::{Error, Result};
use crate::report::{FORMAT, Results, latencies};
use crate::workload::Kind;

/// What the workload's checker says.
///
/// # Errors
/// Where it has none.
pub fn check(workload: Kind, history: &History) -> Result<Verdict> {
    let checker = check::by_name(workload.name());
    let checker =
        checker.ok_or_else(|| Error::Other(format!("there is no checker for the workload {workload}")))?;
    Ok(checker.check(history))
}

/// Checks the history in the directory of an earlier run again, and writes its results and report anew. What the run
/// itself found stays.
///
/// # Errors
/// Where the directory holds no run that can be read.
pub fn check_again(directory: &Path) -> Result<Results> {
    let path = directory.join("results.json");
    let text = fs::read_to_string(&path)
        .map_err(|source| Error::Io { what: format!("read {}", path.display()), source })?;
    let results: Result<Results, _> = serde_json::from_str(&text);
    let mut results = results.map_err(|error| {
        Error::Other(format!("{} is not of this version (format {FORMAT}): {error}", path.display()))
    })?;
    let history = read(directory)?;
    results.verdict = check(results.parameters.workload, &history)?;
    (results.counts, results.latencies) = latencies(&history);
    results.conclude();
    write(directory, &results, &history)?;
    Ok(results)
}

/// The history in a directory, from `history.jsonl`.
///
/// # Errors
/// Where there is none, or it is malformed.
pub fn read(directory: &Path) -> Result<History> {
    let path = directory.join("history.jsonl");
    let file =
        File::open(&path).map_err(|source| Error::Io { what: format!("open {}", path.display()), source })?;
    jsonl::read(BufReader::new(file)).map_err(|error| Error::Other(format!("{}: {error}", path.display())))
}

/// The exit code for a verdict: 0 valid, 1 invalid, 2 unknown.
pub fn exit_code(valid: Valid) -> u8 {
    match valid {
        Valid::Valid => 0,
        Valid::Invalid => 1,
        Valid::Unknown => 2,
    }
}
