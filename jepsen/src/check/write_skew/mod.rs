//! Registers that transactions read and then write: no two of them decide on what the other changes.

mod collect;

use std::collections::{BTreeMap, HashMap};

use super::graph::{self, Class, Graph, Hop, Nodes, Told, Why};
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
/// - `write-skew`: each of two transactions read what the other overwrote.
/// - `lost-update`: two transactions read the same version of a key, and both replaced it.
/// - `internal`: a transaction does not see its own write, or sees a key change under it.
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
        let graph = dependencies(&txns, &mut findings);
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

/// The graph of the transactions that took effect. Also reports versions that were replaced twice.
fn dependencies(txns: &Txns<'_>, findings: &mut Findings) -> Graph {
    let mut nodes = vec![None; txns.all.len()];
    for (node, place) in (0_u32..).zip(&txns.committed) {
        nodes[*place] = Some(node);
    }
    let mut graph = Graph::new(txns.committed.len());
    let mut versions: BTreeMap<(u32, Option<i64>), Version> = BTreeMap::new();
    for (node, place) in (0_u32..).zip(&txns.committed) {
        for (key, read, written) in txns.all[*place].accesses() {
            let key = txns.numbers[key];
            versions.entry((key, read)).or_default().readers.push(node);
            if let Some(written) = written {
                versions.entry((key, read)).or_default().replaced.push((node, written));
            }
        }
    }
    for ((key, value), version) in &versions {
        let name = txns.keys[*key as usize];
        let writer = value.and_then(|value| nodes[*txns.writers.get(&(name, value))?]);
        if let Some(writer) = writer {
            for reader in &version.readers {
                graph.add(writer, *reader, Class::Wr, Why { key: *key, from: *value, to: *value });
            }
        }
        for (next, new) in &version.replaced {
            let why = Why { key: *key, from: *value, to: Some(*new) };
            if let Some(writer) = writer {
                graph.add(writer, *next, Class::Ww, why);
            }
            version.readers.iter().for_each(|reader| graph.add(*reader, *next, Class::Rw, why));
        }
        if let [(a, _), (b, _), ..] = version.replaced.as_slice() {
            report_lost_update(txns, name, *value, [*a, *b], findings);
        }
    }
    let span = |place: &usize| (txns.all[*place].call.start, txns.all[*place].call.end);
    graph.add_real_time(&txns.committed.iter().map(span).collect::<Vec<_>>());
    graph
}

/// A value of a key: who read it, and who read and replaced it.
#[derive(Default)]
struct Version {
    readers: Vec<u32>,
    replaced: Vec<(u32, i64)>,
}

fn report_lost_update(
    txns: &Txns<'_>,
    key: &str,
    value: Option<i64>,
    pair: [u32; 2],
    findings: &mut Findings,
) {
    findings.anomaly(LOST_UPDATE, || {
        let [a, b] = pair.map(|node| &txns.all[txns.committed[node as usize]].call);
        let text = format!(
            "{}\n{}\nBoth read {key} as {} and replaced it: the first to commit is overwritten unseen.",
            show::call(a),
            show::call(b),
            show::version(value)
        );
        (a.indexes().into_iter().chain(b.indexes()).collect(), text)
    });
}

/// Why one transaction must come before another.
fn tell(Told { class, a, b, key, from, to }: &Told<'_>) -> String {
    match class {
        Class::Ww => format!("{b} replaced {from}, which {a} wrote to {key}, by {to} (ww)"),
        Class::Wr => format!("{b} read {key} as {from}, which {a} wrote (wr)"),
        Class::Rw | Class::Realtime => {
            format!("{a} read {key} as {from}, and {b} replaced that by {to} (rw)")
        }
    }
}
