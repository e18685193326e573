//! The dependencies that follow from the orders of lists.

use super::collect::Txns;
use super::order::Orders;
use crate::check::graph::{Class, Graph, Why};
use crate::check::verdict::Findings;

/// Edges from reads of a whole list to appends that nobody saw, at most, over all lists.
const MAX_UNSEEN_EDGES: usize = 1_000_000;

/// The graph of the transactions that took effect, in the order of [`Txns::committed`].
pub(super) fn graph(txns: &Txns<'_>, orders: &Orders<'_>, findings: &mut Findings) -> Graph {
    let mut nodes = vec![None; txns.all.len()];
    for (node, place) in (0_u32..).zip(&txns.committed) {
        nodes[*place] = Some(node);
    }
    let mut builder = Builder { txns, orders, nodes, graph: Graph::new(txns.committed.len()) };
    for key in 0..txns.keys.len() as u32 {
        builder.add_writes(key);
        builder.add_reads(key);
    }
    if !builder.add_unseen() {
        findings.doubt(format!(
            "More than {MAX_UNSEEN_EDGES} dependencies on appends that nobody read were left out: let the run end with a read of each list."
        ));
    }
    let span = |place: &usize| (txns.all[*place].call.start, txns.all[*place].call.end);
    let spans: Vec<(usize, usize)> = txns.committed.iter().map(span).collect();
    builder.graph.add_real_time(&spans);
    builder.graph
}

struct Builder<'a> {
    txns: &'a Txns<'a>,
    orders: &'a Orders<'a>,
    /// Node by position in [`Txns::all`].
    nodes: Vec<Option<u32>>,
    graph: Graph,
}

impl Builder<'_> {
    /// The transaction that appended an element, if it took effect.
    fn writer(&self, key: u32, value: i64) -> Option<u32> {
        self.nodes[*self.txns.writers.get(&(key, value))?]
    }

    /// Each append comes after the one before it in the list.
    fn add_writes(&mut self, key: u32) {
        let order = &self.orders.by_key[key as usize];
        if order.broken {
            return;
        }
        for pair in order.elements.windows(2) {
            let [before, after] = *pair else { continue };
            if let (Some(from), Some(to)) = (self.writer(key, before), self.writer(key, after)) {
                self.graph.add(from, to, Class::Ww, Why { key, from: Some(before), to: Some(after) });
            }
        }
    }

    /// Each read comes after the last append that it saw, and before the first that it did not see.
    fn add_reads(&mut self, key: u32) {
        let order = &self.orders.by_key[key as usize];
        for read in &order.reads {
            let Some(reader) = self.nodes[read.txn] else { continue };
            let last = read.list.last().copied();
            if let Some(value) = last
                && let Some(writer) = self.writer(key, value)
            {
                self.graph.add(writer, reader, Class::Wr, Why { key, from: last, to: last });
            }
            if order.broken {
                continue;
            }
            if let Some(next) = order.elements.get(read.list.len())
                && let Some(writer) = self.writer(key, *next)
            {
                self.graph.add(reader, writer, Class::Rw, Why { key, from: last, to: Some(*next) });
            }
        }
    }

    /// An acknowledged append that nobody read comes after everything that was read. False if there are too
    /// many pairs.
    fn add_unseen(&mut self) -> bool {
        let mut unseen: Vec<Vec<(u32, i64)>> = vec![Vec::new(); self.txns.keys.len()];
        for place in &self.txns.committed {
            let Some(node) = self.nodes[*place] else { continue };
            for (key, value) in self.txns.all[*place].appends() {
                unseen[key as usize].push((node, value));
            }
        }
        let mut added = 0;
        for (key, appends) in (0_u32..).zip(unseen) {
            let order = &self.orders.by_key[key as usize];
            let seen: std::collections::HashSet<i64> = order.elements.iter().copied().collect();
            let last = order.elements.last().copied();
            let from = last.and_then(|value| self.writer(key, value));
            let readers: Vec<u32> = order
                .reads
                .iter()
                .filter(|read| read.list.len() == order.elements.len())
                .filter_map(|read| self.nodes[read.txn])
                .collect();
            for (to, value) in appends.into_iter().filter(|(_, value)| !order.broken && !seen.contains(value))
            {
                added += readers.len() + 1;
                if added > MAX_UNSEEN_EDGES {
                    return false;
                }
                let why = Why { key, from: last, to: Some(value) };
                if let Some(from) = from {
                    self.graph.add(from, to, Class::Ww, why);
                }
                readers.iter().for_each(|reader| self.graph.add(*reader, to, Class::Rw, why));
            }
        }
        true
    }
}
