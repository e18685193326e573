//! Cycles of dependencies: no serial order can have them.

use std::collections::VecDeque;

use petgraph::algo::kosaraju_scc;
use petgraph::graph::{DiGraph, NodeIndex};

use super::{Class, Edge, Graph};

/// The names of all sorts of cycles, the strongest first: those that weaker isolation levels forbid too.
pub(crate) const CYCLES: [&str; 8] = [
    "G0",
    "G1c",
    "G-single",
    "G2-item",
    "G0-realtime",
    "G1c-realtime",
    "G-single-realtime",
    "G2-item-realtime",
];

const WW: u8 = Class::Ww as u8;
const WR: u8 = Class::Wr as u8;
const RW: u8 = Class::Rw as u8;
const RT: u8 = Class::Realtime as u8;

/// Where to look for a sort of cycle: one edge of class `first`, and a way back over edges in `back`.
struct Sort {
    first: u8,
    back: u8,
}

/// In the order of [`CYCLES`].
const SORTS: [Sort; 8] = [
    Sort { first: WW, back: WW },
    Sort { first: WR, back: WW | WR },
    Sort { first: RW, back: WW | WR },
    Sort { first: RW, back: WW | WR | RW },
    Sort { first: WW, back: WW | RT },
    Sort { first: WR, back: WW | WR | RT },
    Sort { first: RW, back: WW | WR | RT },
    Sort { first: RW, back: WW | WR | RW | RT },
];

/// One dependency of a cycle, from transaction to transaction.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Hop {
    pub from: u32,
    pub to: u32,
    pub class: Class,
    pub why: super::Why,
}

/// Finds a shortest cycle in each knot of transactions that depend on each other, of the strongest sort that
/// the knot has. The second value says whether the search was cut off after `max_search` edges.
pub(crate) fn find_cycles(graph: &Graph, max_search: u64) -> (Vec<Vec<Hop>>, bool) {
    if components(graph, WW | WR | RW | RT).is_empty() {
        return (Vec::new(), false);
    }
    let mut finder = Finder::new(graph);
    let mut cycles = Vec::new();
    let mut reported = vec![false; graph.nodes as usize];
    let mut cut = false;
    for sort in &SORTS {
        finder.left = max_search;
        for (number, members) in (1..).zip(components(graph, sort.first | sort.back)) {
            if members.iter().any(|node| reported[*node as usize]) {
                continue;
            }
            members.iter().for_each(|node| finder.component[*node as usize] = number);
            if let Some(cycle) = finder.shortest(&members, sort) {
                members
                    .iter()
                    .filter(|node| **node < graph.txns)
                    .for_each(|node| reported[*node as usize] = true);
                cycles.push(cycle);
            }
        }
        finder.component.fill(0);
        cut |= finder.left == 0;
    }
    (cycles, cut)
}

/// The name of a cycle's sort.
pub(crate) fn name(cycle: &[Hop]) -> &'static str {
    let count = |class| cycle.iter().filter(|hop| hop.class == class).count();
    let sort = match (count(Class::Rw), count(Class::Wr)) {
        (0, 0) => 0,
        (0, _) => 1,
        (1, _) => 2,
        _ => 3,
    };
    CYCLES[if count(Class::Realtime) > 0 { sort + 4 } else { sort }]
}

/// The knots over edges in `classes`: sets of nodes that all reach each other, with two transactions at least.
fn components(graph: &Graph, classes: u8) -> Vec<Vec<u32>> {
    let edges = graph.edges.iter().filter(|edge| edge.class as u8 & classes != 0);
    let mut digraph: DiGraph<(), ()> = DiGraph::from_edges(edges.map(|edge| (edge.from, edge.to)));
    while digraph.node_count() < graph.nodes as usize {
        digraph.add_node(());
    }
    let indexes = |members: Vec<NodeIndex>| members.into_iter().map(|node| node.index() as u32).collect();
    let mut knots: Vec<Vec<u32>> =
        kosaraju_scc(&digraph).into_iter().filter(|members| members.len() > 1).map(indexes).collect();
    knots.iter_mut().for_each(|members| members.sort_unstable());
    knots.sort_unstable();
    knots
}

/// Breadth-first searches over one graph.
struct Finder<'a> {
    graph: &'a Graph,
    /// Edges sorted by where they begin, and for each node where its edges are among them.
    sorted: Vec<Edge>,
    offsets: Vec<usize>,
    /// The number of the knot that a node is in, 0 for none.
    component: Vec<u32>,
    /// For each node the search that came to it last, the distance, and the edge on which it came.
    visits: Vec<(u64, u32, usize)>,
    search: u64,
    /// Edges that may still be followed.
    left: u64,
}

impl<'a> Finder<'a> {
    fn new(graph: &'a Graph) -> Self {
        let nodes = graph.nodes as usize;
        let mut sorted = graph.edges.clone();
        sorted.sort_by_key(|edge| edge.from);
        let offsets =
            (0..=nodes).map(|node| sorted.partition_point(|edge| (edge.from as usize) < node)).collect();
        Finder {
            graph,
            sorted,
            offsets,
            component: vec![0; nodes],
            visits: vec![(0, 0, 0); nodes],
            search: 0,
            left: 0,
        }
    }

    /// The shortest cycle of this sort in a knot.
    fn shortest(&mut self, members: &[u32], sort: &Sort) -> Option<Vec<Hop>> {
        let mut best: Option<(u32, Vec<Edge>)> = None;
        for node in members {
            for place in self.offsets[*node as usize]..self.offsets[*node as usize + 1] {
                let first = self.sorted[place];
                let inside = self.component[first.to as usize] == self.component[*node as usize];
                if first.class as u8 != sort.first || !inside {
                    continue;
                }
                let limit = best.as_ref().map_or(u32::MAX, |(length, _)| length - 1);
                if let Some((length, mut edges)) = self.way(first.to, first.from, sort.back, limit) {
                    edges.insert(0, first);
                    best = Some((length + 1, edges));
                }
                if self.left == 0 || best.as_ref().is_some_and(|(length, _)| *length <= 2) {
                    return best.map(|(_, edges)| self.hops(&edges));
                }
            }
        }
        best.map(|(_, edges)| self.hops(&edges))
    }

    /// A shortest way inside the knot of fewer than `limit` dependencies; steps from moments cost nothing.
    fn way(&mut self, from: u32, to: u32, classes: u8, limit: u32) -> Option<(u32, Vec<Edge>)> {
        self.search += 1;
        let knot = self.component[from as usize];
        let mut queue = VecDeque::from([(0, from)]);
        self.visits[from as usize] = (self.search, 0, usize::MAX);
        while let Some((length, node)) = queue.pop_front() {
            if node == to {
                return Some((length, self.edges_back(from, to)));
            }
            if self.visits[node as usize].1 < length {
                continue;
            }
            let cost = u32::from(node < self.graph.txns);
            if length + cost >= limit {
                continue;
            }
            for place in self.offsets[node as usize]..self.offsets[node as usize + 1] {
                self.left = self.left.checked_sub(1)?;
                let edge = self.sorted[place];
                let seen = self.visits[edge.to as usize];
                let better = seen.0 != self.search || seen.1 > length + cost;
                if edge.class as u8 & classes != 0 && self.component[edge.to as usize] == knot && better {
                    self.visits[edge.to as usize] = (self.search, length + cost, place);
                    if cost == 0 {
                        queue.push_front((length, edge.to));
                    } else {
                        queue.push_back((length + cost, edge.to));
                    }
                }
            }
        }
        None
    }

    fn edges_back(&self, from: u32, to: u32) -> Vec<Edge> {
        let mut edges = Vec::new();
        let mut node = to;
        while node != from {
            let edge = self.sorted[self.visits[node as usize].2];
            edges.push(edge);
            node = edge.from;
        }
        edges.reverse();
        edges
    }

    /// Leaves out the moments between transactions.
    fn hops(&self, edges: &[Edge]) -> Vec<Hop> {
        let mut hops: Vec<Hop> = Vec::new();
        let mut open: Option<u32> = None;
        for edge in edges {
            let from = *open.get_or_insert(edge.from);
            if edge.to < self.graph.txns {
                hops.push(Hop { from, to: edge.to, class: edge.class, why: edge.why });
                open = None;
            }
        }
        hops
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::graph::Why;

    type Edges<'a> = &'a [(u32, u32, Class)];

    fn graph(txns: usize, edges: Edges<'_>) -> Graph {
        let mut graph = Graph::new(txns);
        for (from, to, class) in edges {
            graph.add(*from, *to, *class, Why::default());
        }
        graph
    }

    fn found(graph: &Graph) -> Vec<(&'static str, Vec<u32>)> {
        let (cycles, cut) = find_cycles(graph, 1_000_000);
        assert!(!cut);
        cycles.iter().map(|cycle| (name(cycle), cycle.iter().map(|hop| hop.from).collect())).collect()
    }

    #[test]
    fn each_sort_is_named() {
        use Class::{Rw, Wr, Ww};
        let cases: [(&str, Edges<'_>); 4] = [
            ("G0", &[(0, 1, Ww), (1, 2, Ww), (2, 0, Ww)]),
            ("G1c", &[(0, 1, Ww), (1, 2, Wr), (2, 0, Ww)]),
            ("G-single", &[(0, 1, Ww), (1, 2, Wr), (2, 0, Rw)]),
            ("G2-item", &[(0, 1, Rw), (1, 2, Wr), (2, 0, Rw)]),
        ];
        for (name, edges) in cases {
            let found = found(&graph(4, edges));
            assert_eq!(found.len(), 1);
            assert_eq!((found[0].0, found[0].1.len()), (name, 3));
        }
        assert!(found(&graph(4, &[(0, 1, Ww), (1, 2, Wr), (0, 2, Rw)])).is_empty());
    }

    #[test]
    fn the_strongest_sort_and_the_shortest_cycle_win() {
        use Class::{Rw, Wr, Ww};
        let edges = [(0, 1, Rw), (1, 0, Rw), (1, 2, Wr), (2, 3, Ww), (3, 0, Ww), (3, 1, Wr)];
        assert_eq!(found(&graph(4, &edges)), [("G1c", vec![1, 2, 3])]);
    }

    #[test]
    fn real_time_is_one_dependency_however_long_ago() {
        let spans: Vec<(usize, usize)> = (0..50).map(|txn| (2 * txn, 2 * txn + 1)).collect();
        let mut graph = graph(50, &[(45, 3, Class::Rw)]);
        assert!(found(&graph).is_empty());
        graph.add_real_time(&spans);
        assert_eq!(found(&graph), [("G-single-realtime", vec![45, 3])]);
    }

    #[test]
    fn concurrent_and_unknown_transactions_have_no_order_in_time() {
        let mut graph = graph(3, &[(1, 0, Class::Rw), (2, 0, Class::Rw)]);
        graph.add_real_time(&[(0, 2), (1, 3), (4, usize::MAX)]);
        assert_eq!(found(&graph), [("G-single-realtime", vec![2, 0])]);
    }
}
