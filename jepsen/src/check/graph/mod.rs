//! Dependencies between transactions: who must come before whom, and why.

mod cycles;
mod report;

pub(crate) use cycles::{CYCLES, Hop, find_cycles, name};
pub(crate) use report::{Nodes, Told, report, with_cycles};

/// Why one transaction must come before another. The classes are Adya's, and real time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Class {
    /// The second overwrote what the first wrote.
    Ww = 1,
    /// The second read what the first wrote.
    Wr = 2,
    /// The second overwrote what the first read.
    Rw = 4,
    /// The first had ended before the second began.
    Realtime = 8,
}

/// The versions of a key that an edge is about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Why {
    /// The key, numbered by the checker.
    pub key: u32,
    /// What the first wrote or read; `None` for nothing.
    pub from: Option<i64>,
    /// What the second wrote or read.
    pub to: Option<i64>,
}

/// One dependency.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Edge {
    pub from: u32,
    pub to: u32,
    pub class: Class,
    pub why: Why,
}

/// Transactions and their dependencies. Nodes below `txns` are transactions. The others stand for moments:
/// all that ended before a moment leads to it, it leads to the next moment, and to all that began between the
/// two. So real time takes about as many edges as there are transactions, not their square.
#[derive(Debug)]
pub(crate) struct Graph {
    txns: u32,
    nodes: u32,
    edges: Vec<Edge>,
}

impl Graph {
    /// A graph of so many transactions without edges.
    pub(crate) fn new(txns: usize) -> Self {
        Graph { txns: txns as u32, nodes: txns as u32, edges: Vec::new() }
    }

    /// Adds a dependency; one of a transaction on itself says nothing and is left out.
    pub(crate) fn add(&mut self, from: u32, to: u32, class: Class, why: Why) {
        if from != to {
            self.edges.push(Edge { from, to, class, why });
        }
    }

    /// Adds real time. `spans` has the places of begin and end of each transaction, the end `usize::MAX` if
    /// its outcome is not known.
    pub(crate) fn add_real_time(&mut self, spans: &[(usize, usize)]) {
        let mut events: Vec<(usize, u32, bool)> = Vec::with_capacity(spans.len() * 2);
        for (txn, (start, end)) in (0..).zip(spans) {
            events.push((*start, txn, true));
            if *end != usize::MAX {
                events.push((*end, txn, false));
            }
        }
        events.sort_unstable();
        let mut moment: Option<u32> = None;
        let mut ended: Vec<u32> = Vec::new();
        for (_, txn, starts) in events {
            if !starts {
                ended.push(txn);
                continue;
            }
            if !ended.is_empty() {
                let new = self.nodes;
                self.nodes += 1;
                for before in moment.into_iter().chain(ended.drain(..)) {
                    self.add(before, new, Class::Realtime, Why::default());
                }
                moment = Some(new);
            }
            if let Some(moment) = moment {
                self.add(moment, txn, Class::Realtime, Why::default());
            }
        }
    }

    /// How many edges there are.
    pub(crate) fn len(&self) -> usize {
        self.edges.len()
    }
}
