//! Small histories written by hand: each checker accepts and refuses those in `histories/` under its name.
//!
//! `accept-*` must be valid. `refuse-NAME` and `refuse-NAME--MORE` must show the anomaly of this name, and every
//! anomaly that a checker names has such a file.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::BufReader;
use std::path::{Path, PathBuf};

use kvorum_jepsen::check::{self, Options, Valid, Verdict, WORKLOADS};
use kvorum_jepsen::history::{History, edn, jsonl};

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/histories")
}

/// Each file of a workload with its history.
fn histories(workload: &str) -> Vec<(String, History)> {
    let mut files: Vec<PathBuf> = fs::read_dir(directory().join(workload))
        .unwrap_or_else(|error| panic!("histories of {workload}: {error}"))
        .map(|entry| entry.expect("a directory entry").path())
        .collect();
    files.sort();
    let name = |path: &Path| path.file_stem().expect("a file's name").to_string_lossy().into_owned();
    files.iter().map(|path| (name(path), read(path))).collect()
}

fn read(path: &Path) -> History {
    let file = BufReader::new(File::open(path).expect("a readable file"));
    let history = match path.extension().and_then(|extension| extension.to_str()) {
        Some("jsonl") => jsonl::read(file),
        Some("edn") => edn::read(file),
        _ => panic!("{} is neither .jsonl nor .edn", path.display()),
    };
    history.unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// One success of each needed sort is enough for these.
fn options() -> Options {
    Options { least_ok: 1, ..Options::default() }
}

fn judge(workload: &str, history: &History, options: Options) -> Verdict {
    check::with_options(workload, options).expect("a checker for each workload").check(history)
}

#[test]
fn accepted_histories_are_valid() {
    for workload in WORKLOADS {
        let accepted: Vec<_> =
            histories(workload).into_iter().filter(|(name, _)| name.starts_with("accept-")).collect();
        assert!(!accepted.is_empty(), "{workload} has no history that must be accepted");
        for (name, history) in accepted {
            let verdict = judge(workload, &history, options());
            assert_eq!(verdict.valid, Valid::Valid, "{workload}/{name}: {verdict:#?}");
        }
    }
}

#[test]
fn refused_histories_show_the_anomaly_of_their_name() {
    for workload in WORKLOADS {
        for (name, history) in histories(workload) {
            let Some(anomaly) = name.strip_prefix("refuse-") else {
                assert!(
                    name.starts_with("accept-"),
                    "{workload}/{name} begins neither with accept- nor refuse-"
                );
                continue;
            };
            let anomaly = anomaly.split("--").next().unwrap_or_default();
            let verdict = judge(workload, &history, options());
            let found = verdict.anomalies.iter().find(|found| found.name == anomaly);
            let found = found.unwrap_or_else(|| panic!("{workload}/{name}: {verdict:#?}"));
            assert_eq!(verdict.valid, Valid::Invalid);
            assert!(!found.ops.is_empty(), "{workload}/{name} names no operations");
            for index in &found.ops {
                assert!(history.at(*index).is_some(), "{workload}/{name}: there is no operation {index}");
            }
        }
    }
}

#[test]
fn every_anomaly_that_a_checker_names_has_a_history() {
    for workload in WORKLOADS {
        let shown: BTreeSet<String> = histories(workload)
            .into_iter()
            .filter_map(|(name, _)| Some(name.strip_prefix("refuse-")?.split("--").next()?.to_owned()))
            .collect();
        let checker = check::by_name(workload).expect("a checker for each workload");
        let named: BTreeSet<String> = checker.anomalies().iter().map(|name| (*name).to_owned()).collect();
        assert_eq!(shown, named, "{workload}");
    }
}

#[test]
fn cycles_are_of_their_sort_alone() {
    for (workload, name) in ["append", "write-skew"]
        .into_iter()
        .flat_map(|workload| histories(workload).into_iter().map(move |h| (workload, h)))
    {
        let (name, history) = name;
        let sort = name.trim_start_matches("refuse-").split("--").next().unwrap_or_default();
        if !["G0", "G1c", "G-single", "G2-item"].contains(&sort.trim_end_matches("-realtime")) {
            continue;
        }
        let verdict = judge(workload, &history, options());
        let found: Vec<&str> = verdict.anomalies.iter().map(|found| found.name.as_str()).collect();
        assert_eq!(found, [sort], "{workload}/{name}: {verdict:#?}");
    }
}

#[test]
fn explanations_tell_the_whole_cycle() {
    let history = read(&directory().join("append/refuse-G-single-realtime.edn"));
    let verdict = judge("append", &history, options());
    assert_eq!(
        verdict.anomalies[0].explanation,
        "T1 = [2..3] process 1 txn [[r x []]] (ok)\n\
         T2 = [0..1] process 0 txn [[append x 1]] (ok)\n\
         T1 must come before T2: T1 read x up to nothing, and T2 appended 1 after that (rw).\n\
         T2 must come before T1: T2 had ended before T1 began (real time).\n\
         So T1 must come before itself."
    );
    let history = read(&directory().join("register/refuse-nonlinearizable.jsonl"));
    let verdict = judge("register", &history, options());
    assert_eq!(
        verdict.anomalies[0].explanation,
        "Key \"k\": of 3 operations that took effect, 2 can be put in an order, and no more. It ends with:\n  \
         [0..1] process 0 write \"k\" 1 (ok)\n  \
         [2..3] process 0 write \"k\" 2 (ok)\n\
         Then the register holds 2. This operation cannot take effect before it completes:\n  \
         [4..5] process 1 read \"k\" 1 (ok)\n\
         The value was overwritten before the operation began:\n  \
         [0..1] process 0 write \"k\" 1 (ok)\n  \
         [2..3] process 0 write \"k\" 2 (ok)"
    );
}

#[test]
fn a_bank_may_be_told_its_total_and_that_it_gives_credit() {
    let history = read(&directory().join("bank/refuse-negative-balance.jsonl"));
    let credit = judge("bank", &history, Options { allow_negative: true, ..options() });
    assert_eq!(credit.valid, Valid::Valid, "{credit:#?}");
    let history = read(&directory().join("bank/accept-without-opening.jsonl"));
    let other = judge("bank", &history, Options { total: Some(7), ..options() });
    assert_eq!(other.valid, Valid::Invalid, "{other:#?}");
}
