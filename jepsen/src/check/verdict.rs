//! What a checker says, and how it gathers it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::history::{Call, History, Kind};

/// Anomalies of one name that are explained at most; the others are only counted.
const EXPLAINED_EACH: u64 = 8;

/// The result of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Valid {
    /// A correct store could have answered so.
    Valid,
    /// No correct store could have answered so.
    Invalid,
    /// The history says too little, or the checker reached its bounds.
    Unknown,
}

/// Something that a correct store never does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Anomaly {
    /// The name, for example `G-single-realtime`.
    pub name: String,
    /// What happened, in sentences, one line each step.
    pub explanation: String,
    /// The indexes of the history's entries that show it.
    pub ops: Vec<u64>,
}

/// What a checker says about a history.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// The result.
    pub valid: Valid,
    /// Why the result is [`Valid::Unknown`], or what else a reader should know. One sentence each.
    pub notes: Vec<String>,
    /// What is wrong; not empty exactly if the result is [`Valid::Invalid`]. At most eight of each name.
    pub anomalies: Vec<Anomaly>,
    /// Counts, by name: operations (`ok read`, `info write`), anomalies (`anomaly G1a`: all of them, also those
    /// that are not explained), and what the checker worked with.
    pub stats: BTreeMap<String, u64>,
}

/// What a checker found so far.
#[derive(Debug)]
pub(crate) struct Findings {
    names: &'static [&'static str],
    anomalies: Vec<Anomaly>,
    notes: Vec<String>,
    stats: BTreeMap<String, u64>,
    /// What keeps a history without anomalies from being called valid.
    doubts: Vec<String>,
}

impl Findings {
    /// Counts the operations of a history. `names` are the anomalies that may be added.
    pub(crate) fn new(history: &History, names: &'static [&'static str]) -> Self {
        let mut stats = BTreeMap::new();
        for call in history.calls() {
            *stats.entry(format!("{} {}", call.outcome().name(), call.f())).or_insert(0) += 1;
        }
        Findings { names, anomalies: Vec::new(), notes: Vec::new(), stats, doubts: Vec::new() }
    }

    /// Adds an anomaly. `explain` gives the entries that show it and the explanation; it is called only as long
    /// as there are not too many of this name.
    pub(crate) fn anomaly(&mut self, name: &'static str, explain: impl FnOnce() -> (Vec<u64>, String)) {
        debug_assert!(self.names.contains(&name), "{name} is not in the list of this checker's anomalies");
        let count = self.stats.entry(format!("anomaly {name}")).or_insert(0);
        *count += 1;
        if *count <= EXPLAINED_EACH {
            let (mut ops, explanation) = explain();
            ops.sort_unstable();
            ops.dedup();
            self.anomalies.push(Anomaly { name: name.to_owned(), explanation, ops });
        }
    }

    /// Adds a sentence for the reader.
    pub(crate) fn note(&mut self, sentence: impl Into<String>) {
        self.notes.push(sentence.into());
    }

    /// Adds a reason why the history cannot be called valid.
    pub(crate) fn doubt(&mut self, sentence: impl Into<String>) {
        self.doubts.push(sentence.into());
    }

    /// Sets a number for the reader.
    pub(crate) fn stat(&mut self, name: &str, value: usize) {
        self.stats.insert(name.to_owned(), value as u64);
    }

    /// Adds to a number for the reader.
    pub(crate) fn add(&mut self, name: &str, more: u64) {
        *self.stats.entry(name.to_owned()).or_insert(0) += more;
    }

    /// Doubts the history if `what` happened fewer than `least` times.
    pub(crate) fn need(&mut self, what: &str, happened: u64, least: u64) {
        if happened < least {
            self.doubt(format!(
                "The history shows too little: {what} happened {happened} times, and must happen {least} times at least."
            ));
        } else {
            self.note(format!("{what}: {happened} (needed: {least})."));
        }
    }

    /// Doubts the history if it is empty, or if less than one operation in a hundred succeeded.
    pub(crate) fn need_success(&mut self, history: &History) {
        let all = history.calls().len();
        let ok = history.calls().filter(Call::is_ok).count();
        if all == 0 {
            self.doubt("The history is empty.");
        } else if ok * 100 < all {
            self.doubt(format!(
                "Almost nothing succeeded: {ok} of {all} operations, and it must be one in a hundred at least."
            ));
        }
    }

    /// How many operations of this function had this outcome.
    pub(crate) fn count(&self, outcome: Kind, f: crate::history::F) -> u64 {
        self.stats.get(&format!("{} {f}", outcome.name())).copied().unwrap_or(0)
    }

    /// The verdict: invalid with an anomaly, else unknown with a doubt, else valid.
    pub(crate) fn verdict(self) -> Verdict {
        let Findings { anomalies, mut notes, stats, doubts, .. } = self;
        let valid = match (anomalies.is_empty(), doubts.is_empty()) {
            (false, _) => Valid::Invalid,
            (true, false) => Valid::Unknown,
            (true, true) => Valid::Valid,
        };
        notes.splice(0..0, doubts);
        Verdict { valid, notes, anomalies, stats }
    }
}
