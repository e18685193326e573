//! The dependencies that follow from what each write replaced.

use std::collections::{BTreeMap, BTreeSet};

use super::LOST_UPDATE;
use super::collect::{Step, Txns};
use crate::check::graph::{Class, Graph, Why};
use crate::check::show;
use crate::check::verdict::Findings;

/// Dependencies on writes of which nobody knows what they replaced, at most, over all keys.
const MAX_INFERRED_EDGES: usize = 1_000_000;

/// A value of a key: who read it, and who read and replaced it.
#[derive(Default)]
struct Version {
    readers: Vec<u32>,
    replaced: Vec<(u32, i64)>,
}

/// What is known of one key.
#[derive(Default)]
struct Register {
    versions: BTreeMap<Option<i64>, Version>,
    /// Writes of which nobody knows what they replaced: by a transaction of unknown outcome, or one that did not read.
    heads: Vec<(u32, i64)>,
}

/// Versions of a key that follow each other without one between: from nothing, or from a head, as far as is known.
struct Run {
    head: Option<(u32, i64)>,
    last: Option<i64>,
    /// From here on everybody knew that one of its versions was there.
    known_at: usize,
    /// The latest beginning of a transaction that wrote or read one of its versions.
    latest: usize,
}

/// The graph of the transactions that took effect. Also reports versions that were replaced twice.
pub(super) fn graph(txns: &Txns<'_>, findings: &mut Findings) -> Graph {
    let mut nodes = vec![None; txns.all.len()];
    for (node, place) in (0_u32..).zip(&txns.committed) {
        nodes[*place] = Some(node);
    }
    let mut builder = Builder { txns, nodes, graph: Graph::new(txns.committed.len()), inferred: 0 };
    let registers = registers(txns);
    for (key, register) in &registers {
        builder.add_known(*key, register, findings);
    }
    if !registers.iter().all(|(key, register)| builder.add_inferred(*key, register)) {
        findings.doubt(format!(
            "More than {MAX_INFERRED_EDGES} dependencies on writes that replaced nobody knows what were left out."
        ));
    }
    let span = |place: &usize| (txns.all[*place].call.start, txns.all[*place].call.end);
    builder.graph.add_real_time(&txns.committed.iter().map(span).collect::<Vec<_>>());
    builder.graph
}

/// Who read, replaced and wrote what, by key.
fn registers(txns: &Txns<'_>) -> BTreeMap<u32, Register> {
    let mut registers: BTreeMap<u32, Register> = BTreeMap::new();
    for (node, place) in (0_u32..).zip(&txns.committed) {
        let txn = &txns.all[*place];
        let mut written: BTreeSet<&str> = BTreeSet::new();
        for step in &txn.steps {
            written.extend(if let Step::Write { key, .. } = step { Some(*key) } else { None });
        }
        for (key, read, left) in txn.accesses() {
            written.remove(key);
            let version = registers.entry(txns.numbers[key]).or_default().versions.entry(read).or_default();
            version.readers.push(node);
            version.replaced.extend(left.map(|left| (node, left)));
        }
        for key in written {
            let left = txn.last_write(key).map(|left| (node, left));
            registers.entry(txns.numbers[key]).or_default().heads.extend(left);
        }
    }
    registers
}

struct Builder<'a> {
    txns: &'a Txns<'a>,
    /// Node by position in [`Txns::all`].
    nodes: Vec<Option<u32>>,
    graph: Graph,
    inferred: usize,
}

impl Builder<'_> {
    /// The transaction that wrote a value, if it took effect.
    fn writer(&self, key: u32, value: Option<i64>) -> Option<u32> {
        self.nodes[*self.txns.writers.get(&(self.txns.keys[key as usize], value?))?]
    }

    /// Each version's readers come after its writer, and both before whoever replaced it.
    fn add_known(&mut self, key: u32, register: &Register, findings: &mut Findings) {
        for (value, version) in &register.versions {
            let writer = self.writer(key, *value);
            for (from, reader) in
                writer.iter().flat_map(|writer| version.readers.iter().map(|to| (*writer, *to)))
            {
                self.graph.add(from, reader, Class::Wr, Why { key, from: *value, to: *value });
            }
            for (next, new) in &version.replaced {
                let why = Why { key, from: *value, to: Some(*new) };
                if let Some(writer) = writer {
                    self.graph.add(writer, *next, Class::Ww, why);
                }
                version.readers.iter().for_each(|reader| self.graph.add(*reader, *next, Class::Rw, why));
            }
            if let [(a, _), (b, _), ..] = version.replaced.as_slice() {
                report_lost_update(self.txns, self.txns.keys[key as usize], *value, [*a, *b], findings);
            }
        }
    }

    /// The runs of a key stand in some order, that of nothing first. One of which something was known before another
    /// was last written or read comes before that. False if there are too many dependencies.
    fn add_inferred(&mut self, key: u32, register: &Register) -> bool {
        if register.heads.is_empty() {
            return true;
        }
        let heads = register.heads.iter().map(|head| Some(*head));
        let runs: Vec<Run> =
            [None].into_iter().chain(heads).map(|head| self.run(key, register, head)).collect();
        let none = Version::default();
        for before in &runs {
            let readers = &register.versions.get(&before.last).unwrap_or(&none).readers;
            let writer = self.writer(key, before.last);
            for (at, (head, value)) in runs.iter().filter_map(|run| Some((run, run.head?))) {
                if before.head == at.head || (before.head.is_some() && before.known_at >= at.latest) {
                    continue;
                }
                self.inferred += readers.len() + 1;
                if self.inferred > MAX_INFERRED_EDGES {
                    return false;
                }
                let why = Why { key, from: before.last, to: Some(value) };
                writer.iter().for_each(|writer| self.graph.add(*writer, head, Class::Ww, why));
                readers.iter().for_each(|reader| self.graph.add(*reader, head, Class::Rw, why));
            }
        }
        true
    }

    /// Follows what replaced what from a head, or from nothing.
    fn run(&self, key: u32, register: &Register, head: Option<(u32, i64)>) -> Run {
        let mut run = Run { head, last: head.map(|(_, value)| value), known_at: usize::MAX, latest: 0 };
        let mut passed = BTreeSet::new();
        loop {
            let none = Version::default();
            let version = register.versions.get(&run.last).unwrap_or(&none);
            for node in self.writer(key, run.last).iter().chain(&version.readers) {
                let call = &self.txns.all[self.txns.committed[*node as usize]].call;
                run.known_at = run.known_at.min(call.end);
                run.latest = run.latest.max(call.start);
            }
            // What was replaced twice is wrong already, and so is a value that leads back to itself.
            match version.replaced.first() {
                Some((_, next)) if passed.insert(*next) => run.last = Some(*next),
                _ => return run,
            }
        }
    }
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
