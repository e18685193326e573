//! Checking histories, fresh ones and those of earlier runs.

use std::fs;
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
    Ok(checker.check(&history.relaxed()))
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

/// The history in a directory, from `history.jsonl`. A last line without an end is left out: the run was broken off
/// while it was written.
///
/// # Errors
/// Where there is none, or it is malformed.
pub fn read(directory: &Path) -> Result<History> {
    let path = directory.join("history.jsonl");
    let text =
        fs::read(&path).map_err(|source| Error::Io { what: format!("read {}", path.display()), source })?;
    let whole = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
    jsonl::read(&text[..whole]).map_err(|error| Error::Other(format!("{}: {error}", path.display())))
}

/// The exit code for a verdict: 0 valid, 1 invalid, 2 unknown.
pub fn exit_code(valid: Valid) -> u8 {
    match valid {
        Valid::Valid => 0,
        Valid::Invalid => 1,
        Valid::Unknown => 2,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hosts::Means;
    use crate::report::sample;
    use crate::run::{Run, write_results};

    fn run_in(directory: &Path) -> Run {
        let no = || Err("not in tests".to_owned());
        Run {
            parameters: sample().parameters,
            directory: directory.to_owned(),
            means: Means {
                namespaces: no(),
                disks: no(),
                power: no(),
                clocks: Err("not in tests".to_owned()),
            },
            keep_data: false,
        }
    }

    #[test]
    fn what_a_broken_off_run_left_can_be_checked() {
        let home = tempfile::tempdir().unwrap();
        write_results(home.path(), &run_in(home.path()).begun()).unwrap();
        let lines = [
            r#"{"process":1,"type":"invoke","f":"read","key":"r","value":null}"#,
            r#"{"process":1,"type":"ok","f":"read","key":"r","value":7}"#,
            r#"{"process":1,"type":"invoke","f":"re"#,
        ];
        fs::write(home.path().join("history.jsonl"), lines[..1].join("\n") + "\n").unwrap();
        let results = check_again(home.path()).unwrap();
        assert_eq!(results.valid, Valid::Unknown, "{:?}", results.doubts);
        fs::write(home.path().join("history.jsonl"), lines.join("\n")).unwrap();
        let results = check_again(home.path()).unwrap();
        assert_eq!(results.valid, Valid::Invalid);
        assert_eq!(results.verdict.anomalies[0].name, "unwritten-value");
        assert!(home.path().join("report.html").exists());
    }

    #[tokio::test]
    async fn a_run_that_does_not_start_leaves_what_it_was_asked_for() {
        let home = tempfile::tempdir().unwrap();
        let mut run = run_in(home.path());
        run.parameters.server = "/no/such/program".into();
        assert!(run.make(&crate::run::Progress::hidden()).await.is_err());
        let text = fs::read_to_string(home.path().join("results.json")).unwrap();
        let results: Results = serde_json::from_str(&text).unwrap();
        assert_eq!((results.valid, results.parameters), (Valid::Unknown, run.parameters));
    }
}
