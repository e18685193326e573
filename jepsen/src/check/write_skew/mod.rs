//! Registers that transactions read and then write: no two of them decide on what the other changes.

mod collect;
mod depend;

use std::collections::HashMap;

use super::graph::{self, Class, Hop, Nodes, Told};
use super::verdict::Findings;
use super::{Checker, Options, Verdict, show};
use crate::history::History;
use collect::{Step, Txns};

const SKEW: &str = "write-skew";
const LOST_UPDATE: &str = "lost-update";
const INTERNAL: &str = "internal";
const UNWRITTEN: &str = "unwritten-value";
const G1A: &str = "G1a";
const G1B: &str = "G1b";

/// Checks transactions over registers that read each key before they write it, with values that are written to
/// a key once. So each write tells which version it replaced, and dependencies between transactions follow as
/// they do for lists.
///
/// A write of which nobody knows what it replaced, because its transaction's outcome is unknown, comes after all that
/// is known to follow on nothing, and after each version that was known before it began.
///
/// - `write-skew`: each of two transactions read what the other overwrote.
/// - `lost-update`: two transactions read the same version of a key, and both replaced it.
/// - `internal`: a transaction does not see its own write, or sees it too early, or sees a key change under it.
/// - `unwritten-value`: a read sees a value that nobody wrote.
/// - `G1a`: a read sees a write of a failed transaction; `G1b`: one that its transaction overwrote itself.
/// - `G0`, `G1c`, `G-single`, `G2-item`, and with `-realtime`: cycles of dependencies, as for lists. A
///   `G2-item` of two transactions is called `write-skew`.
#[derive(Clone, Debug)]
pub struct WriteSkew {
    options: Options,
}

impl WriteSkew {
    /// A checker under these options.
    pub fn new(options: Options) -> Self {
        WriteSkew { options }
    }
}

impl Checker for WriteSkew {
    fn name(&self) -> &'static str {
        "write-skew"
    }

    fn anomalies(&self) -> &'static [&'static str] {
        const NAMES: [&str; 14] = graph::with_cycles([SKEW, LOST_UPDATE, INTERNAL, UNWRITTEN, G1A, G1B]);
        &NAMES
    }

    fn check(&self, history: &History) -> Verdict {
        let mut findings = Findings::new(history, self.anomalies());
        let txns = Txns::new(history, &mut findings);
        check_values(&txns, &mut findings);
        let graph = depend::graph(&txns, &mut findings);
        let call = |node: u32| &txns.all[txns.committed[node as usize]].call;
        let nodes = Nodes { call, keys: &txns.keys };
        let name = |cycle: &[Hop]| match graph::name(cycle) {
            "G2-item" if cycle.len() == 2 => SKEW,
            other => other,
        };
        graph::report(&graph, self.options.max_search, &nodes, name, tell, &mut findings);
        let decided =
            txns.all.iter().filter(|txn| txn.call.is_ok() && txn.reads_more_than_it_writes()).count();
        findings.need_success(history);
        findings.need(
            "a successful transaction that writes a key and reads another",
            decided as u64,
            self.options.least_ok,
        );
        findings.verdict()
    }
}

/// Checks each read by itself.
fn check_values(txns: &Txns<'_>, findings: &mut Findings) {
    for txn in txns.all.iter().filter(|txn| txn.call.is_ok()) {
        let mut known: HashMap<&str, Option<i64>> = HashMap::new();
        for step in &txn.steps {
            let (key, value) = match *step {
                Step::Write { key, value } => {
                    known.insert(key, Some(value));
                    continue;
                }
                Step::Read { key, value } => (key, value),
            };
            match known.insert(key, value) {
                Some(before) if before != value => findings.anomaly(INTERNAL, || {
                    let text = format!(
                        "{}\nIt must read {key} as {}.",
                        show::call(&txn.call),
                        show::version(before)
                    );
                    (txn.call.indexes(), text)
                }),
                Some(_) => {}
                None => check_source(txns, txn, key, value, findings),
            }
        }
    }
}

/// Whether a value that a transaction read from others was written for good.
fn check_source(
    txns: &Txns<'_>,
    reader: &collect::Txn<'_>,
    key: &str,
    value: Option<i64>,
    findings: &mut Findings,
) {
    let Some(value) = value else { return };
    let Some(writer) = txns.writers.get(&(key, value)).map(|place| &txns.all[*place]) else {
        findings.anomaly(UNWRITTEN, || {
            (reader.call.indexes(), format!("{}\nNobody wrote {value} to {key}.", show::call(&reader.call)))
        });
        return;
    };
    if std::ptr::eq(writer, reader) {
        findings.anomaly(INTERNAL, || {
            let text =
                format!("{}\nIt read {key} as {value} before it wrote that.", show::call(&reader.call));
            (reader.call.indexes(), text)
        });
        return;
    }
    let (name, why) = if writer.failed() {
        (G1A, "the first failed".to_owned())
    } else {
        match writer.last_write(key) {
            Some(last) if last != value => (G1B, format!("the first went on to write {last}")),
            _ => return,
        }
    };
    findings.anomaly(name, || {
        let text = format!(
            "{}\n{}\nThe second read {key} as {value}, which the first wrote, and {why}.",
            show::call(&writer.call),
            show::call(&reader.call)
        );
        (writer.call.indexes().into_iter().chain(reader.call.indexes()).collect(), text)
    });
}

/// Why one transaction must come before another.
fn tell(Told { class, a, b, key, from, to }: &Told<'_>) -> String {
    match class {
        Class::Ww => format!("{b} wrote {to} to {key} after {from}, which {a} wrote (ww)"),
        Class::Wr => format!("{b} read {key} as {from}, which {a} wrote (wr)"),
        Class::Rw | Class::Realtime => {
            format!("{a} read {key} as {from}, and {b} wrote {to} to it after that (rw)")
        }
    }
}
