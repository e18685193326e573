//! `results.json`.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use crate::check::{Anomaly, Valid, Verdict};
use crate::history::{History, Kind as OpKind};
use crate::nemesis::{Happened, Nemesis};
use crate::workload::{Kind, ReadLevel};

/// The version of `results.json`. It rises when a program that reads it has to change.
pub const FORMAT: u32 = 1;

/// Slower operations count as this slow: an hour.
const SLOWEST_MICROS: u64 = 3_600_000_000;

/// What a run was asked to do. The same parameters give the same requests and the same faults at the same times; what
/// the store makes of them differs from run to run.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Parameters {
    /// What clients do.
    pub workload: Kind,
    /// The faults.
    pub nemeses: Vec<Nemesis>,
    /// Those of them that were asked for by their own names: without them the run is not what was wanted.
    #[serde(default)]
    pub named: Vec<Nemesis>,
    /// How long clients work while faults strike.
    pub seconds: u64,
    /// How many nodes.
    pub nodes: usize,
    /// Requests a second of all clients together, at most.
    pub rate: u32,
    /// How many clients work at a time.
    pub clients: usize,
    /// Decides requests and faults.
    pub seed: u64,
    /// How many shards keys are spread over.
    pub shards: u32,
    /// When a client's call ends at the latest.
    pub deadline_ms: u64,
    /// What reads promise.
    pub read_level: ReadLevel,
    /// The program that nodes ran.
    pub server: PathBuf,
    /// What nodes had in their environment besides.
    pub environment: Vec<(String, String)>,
}

/// Operations of one function, by outcome.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct Counts {
    /// Took effect.
    pub ok: u64,
    /// Had no effect.
    pub fail: u64,
    /// Nobody knows.
    pub info: u64,
}

/// How long operations took that succeeded, in milliseconds.
#[derive(Clone, Copy, PartialEq, Default, Debug, Serialize, Deserialize)]
pub struct Latency {
    /// Half were faster.
    pub p50_ms: f64,
    /// Of a hundred, ninety-five were faster.
    pub p95_ms: f64,
    /// Of a hundred, ninety-nine were faster.
    pub p99_ms: f64,
    /// The slowest.
    pub max_ms: f64,
}

/// A node that ended of its own accord.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct CrashTold {
    /// Its number, from 1.
    pub node: usize,
    /// When, on the clock of the history.
    pub at_ns: u64,
    /// How it exited.
    pub status: String,
    /// Whether its disk was full then, or just before.
    pub disk_full: bool,
}

/// Everything in `results.json`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Results {
    /// [`FORMAT`].
    pub format: u32,
    /// The verdict on the whole run.
    pub valid: Valid,
    /// What was asked for.
    pub parameters: Parameters,
    /// When the history began, in milliseconds since 1970.
    pub began_unix_ms: u64,
    /// What the checker says of the history.
    pub verdict: Verdict,
    /// What the run showed besides: nodes that crashed, did not recover, or hold different data.
    pub findings: Vec<Anomaly>,
    /// Why the run says less than it was meant to: each makes a run that is not invalid unknown.
    pub doubts: Vec<String>,
    /// What else a reader should know.
    pub notes: Vec<String>,
    /// Operations by function and outcome.
    pub counts: BTreeMap<String, Counts>,
    /// Latencies by function.
    pub latencies: BTreeMap<String, Latency>,
    /// The faults as they were done.
    pub faults: Vec<Happened>,
    /// Nodes that ended of their own accord.
    pub crashes: Vec<CrashTold>,
}

impl fmt::Display for CrashTold {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (node, at_s) = (self.node, self.at_ns as f64 / 1e9);
        let why = if self.disk_full {
            ", its disk was full, and it was started again when there was room"
        } else {
            ""
        };
        write!(
            out,
            "node {node} ended of its own accord after {at_s:.1} s: {}{why} (see nodes/{node}.log)",
            self.status
        )
    }
}

impl Results {
    /// The verdict on the whole run, from its parts.
    pub fn conclude(&mut self) {
        let is_invalid = self.verdict.valid == Valid::Invalid || !self.findings.is_empty();
        self.valid = match (is_invalid, self.verdict.valid) {
            (true, _) => Valid::Invalid,
            (false, Valid::Valid) if self.doubts.is_empty() => Valid::Valid,
            _ => Valid::Unknown,
        };
    }

    /// Everything that is wrong: the findings of the run, then the checker's.
    pub fn anomalies(&self) -> impl Iterator<Item = &Anomaly> {
        self.findings.iter().chain(&self.verdict.anomalies)
    }

    /// How many faults there were, in words for people.
    pub fn count_faults(&self) -> String {
        let not_done = self.faults.iter().filter(|fault| fault.error.is_some()).count();
        match not_done {
            0 => format!("{} faults", self.faults.len()),
            _ => format!("{} faults, {not_done} not done", self.faults.len()),
        }
    }

    /// All operations, by outcome.
    pub fn total(&self) -> Counts {
        let add = |sum: Counts, one: &Counts| Counts {
            ok: sum.ok + one.ok,
            fail: sum.fail + one.fail,
            info: sum.info + one.info,
        };
        self.counts.values().fold(Counts::default(), add)
    }
}

/// Counts and latencies of a history, by function.
pub fn latencies(history: &History) -> (BTreeMap<String, Counts>, BTreeMap<String, Latency>) {
    let mut counts: BTreeMap<String, Counts> = BTreeMap::new();
    let mut times: BTreeMap<String, Histogram<u64>> = BTreeMap::new();
    for call in history.calls() {
        let name = call.f().name().to_owned();
        let of = counts.entry(name.clone()).or_default();
        match call.outcome() {
            OpKind::Ok => of.ok += 1,
            OpKind::Fail => of.fail += 1,
            OpKind::Info | OpKind::Invoke => of.info += 1,
        }
        if let Some(complete) = call.complete.filter(|op| op.kind == OpKind::Ok) {
            let micros = complete.time_ns.saturating_sub(call.invoke.time_ns) / 1000;
            let times = times.entry(name).or_insert_with(|| {
                Histogram::new_with_bounds(1, SLOWEST_MICROS, 3)
                    .unwrap_or_else(|error| unreachable!("these bounds are allowed: {error}"))
            });
            times.saturating_record(micros.max(1));
        }
    }
    let told = |times: &Histogram<u64>| {
        let ms = |micros: u64| micros as f64 / 1000.0;
        Latency {
            p50_ms: ms(times.value_at_quantile(0.50)),
            p95_ms: ms(times.value_at_quantile(0.95)),
            p99_ms: ms(times.value_at_quantile(0.99)),
            max_ms: ms(times.max()),
        }
    };
    (counts, times.iter().map(|(name, times)| (name.clone(), told(times))).collect())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::history::{F, Op, Value};

    /// A history of one write a millisecond that succeeds, and one that nobody knows of.
    fn history() -> History {
        let mut ops = Vec::new();
        for at in 0..100_u64 {
            let mut invoke = Op::invoke(0, F::Write, Value::Int(at as i64));
            (invoke.index, invoke.time_ns) = (at * 2, at * 1_000_000);
            let mut done = invoke.ok(invoke.value.clone());
            (done.index, done.time_ns) = (at * 2 + 1, at * 1_000_000 + at * 1000);
            ops.extend([invoke, done]);
        }
        let mut open = Op::invoke(1, F::Write, Value::Int(100));
        open.index = 200;
        ops.push(open);
        History::new(ops).unwrap()
    }

    #[test]
    fn outcomes_are_counted_and_only_successes_are_timed() {
        let (counts, latencies) = latencies(&history());
        assert_eq!(counts["write"], Counts { ok: 100, fail: 0, info: 1 });
        let latency = latencies["write"];
        assert!((0.045..0.055).contains(&latency.p50_ms), "{latency:?}");
        assert!((0.098..0.1).contains(&latency.max_ms), "{latency:?}");
    }

    #[test]
    fn one_finding_makes_a_run_invalid_and_one_doubt_makes_it_unknown() {
        let mut results = sample();
        results.conclude();
        assert_eq!(results.valid, Valid::Valid);
        results.doubts.push("nothing was read at the end".into());
        results.conclude();
        assert_eq!(results.valid, Valid::Unknown);
        results.findings.push(Anomaly { name: "crash".into(), explanation: "node 1".into(), ops: vec![] });
        results.conclude();
        assert_eq!(results.valid, Valid::Invalid);
        let text = serde_json::to_string(&results).unwrap();
        assert_eq!(serde_json::from_str::<Results>(&text).unwrap(), results);
    }

    #[test]
    fn faults_that_were_not_done_are_counted_apart() {
        let mut results = sample();
        let fault = |error: Option<&str>| Happened {
            nemesis: Nemesis::Kill,
            what: String::new(),
            begin_ns: 0,
            end_ns: 1,
            error: error.map(str::to_owned),
        };
        results.faults = vec![fault(None), fault(None)];
        assert_eq!(results.count_faults(), "2 faults");
        results.faults.push(fault(Some("nobody led")));
        assert_eq!(results.count_faults(), "3 faults, 1 not done");
    }

    /// The results of a run of nothing.
    pub(crate) fn sample() -> Results {
        let verdict =
            Verdict { valid: Valid::Valid, notes: vec![], anomalies: vec![], stats: BTreeMap::new() };
        Results {
            format: FORMAT,
            valid: Valid::Valid,
            parameters: Parameters {
                workload: Kind::Register,
                nemeses: vec![Nemesis::Kill],
                named: vec![Nemesis::Kill],
                seconds: 1,
                nodes: 3,
                rate: 10,
                clients: 2,
                seed: 1,
                shards: 4,
                deadline_ms: 1000,
                read_level: ReadLevel::LinearizableBalanced,
                server: "kvorum".into(),
                environment: vec![],
            },
            began_unix_ms: 0,
            verdict,
            findings: vec![],
            doubts: vec![],
            notes: vec![],
            counts: BTreeMap::new(),
            latencies: BTreeMap::new(),
            faults: vec![],
            crashes: vec![],
        }
    }
}
