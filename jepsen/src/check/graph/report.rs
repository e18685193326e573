//! Cycles as findings: which there are, and in words why nothing can be so.

use super::{CYCLES, Class, Graph, Hop, find_cycles};
use crate::check::show;
use crate::check::verdict::Findings;
use crate::history::Call;

/// One step of a cycle, for a checker to put into words.
pub(crate) struct Told<'a> {
    /// Why `a` must come before `b`; never real time, which needs no words of a checker's own.
    pub class: Class,
    /// The names of the two transactions.
    pub a: &'a str,
    pub b: &'a str,
    /// The key that it is about.
    pub key: &'a str,
    /// What the first wrote or read, and the second; `nothing` where that is so.
    pub from: String,
    pub to: String,
}

/// What a checker knows of the nodes of its graph.
pub(crate) struct Nodes<'n, 'h, C> {
    /// The call behind a node.
    pub call: C,
    /// The keys, by number.
    pub keys: &'n [&'h str],
}

/// The anomalies of a checker that looks for cycles: its own, then those of [`CYCLES`].
pub(crate) const fn with_cycles<const OWN: usize, const ALL: usize>(
    own: [&'static str; OWN],
) -> [&'static str; ALL] {
    assert!(ALL == OWN + CYCLES.len());
    let mut names = [""; ALL];
    let mut place = 0;
    while place < ALL {
        names[place] = if place < OWN { own[place] } else { CYCLES[place - OWN] };
        place += 1;
    }
    names
}

/// Reports the cycles of a graph under the names that `name` gives them, each with its transactions and, in the words of
/// `tell`, why each must come before the next.
pub(crate) fn report<'h, C: Fn(u32) -> &'h Call<'h>>(
    graph: &Graph,
    max_search: u64,
    nodes: &Nodes<'_, '_, C>,
    name: impl Fn(&[Hop]) -> &'static str,
    tell: impl Fn(&Told<'_>) -> String,
    findings: &mut Findings,
) {
    findings.stat("dependencies", graph.len());
    let (cycles, cut) = find_cycles(graph, max_search);
    for cycle in &cycles {
        findings.anomaly(name(cycle), || explain(cycle, nodes, &tell));
    }
    if cut {
        // With a cycle found the verdict stands; without one, there is one that was not come to.
        findings.doubt(
            "The search for shortest cycles was cut off: there may be others, shorter ones, or of a stronger sort.",
        );
    }
}

/// The entries of a cycle, and the explanation: its transactions are called T1, T2 and so on.
fn explain<'h, C: Fn(u32) -> &'h Call<'h>>(
    cycle: &[Hop],
    nodes: &Nodes<'_, '_, C>,
    tell: &impl Fn(&Told<'_>) -> String,
) -> (Vec<u64>, String) {
    let name = |node: u32| {
        let place = cycle.iter().position(|hop| hop.from == node).unwrap_or_default();
        format!("T{}", place + 1)
    };
    let mut lines: Vec<String> = Vec::new();
    let mut ops = Vec::new();
    for hop in cycle {
        let call = (nodes.call)(hop.from);
        lines.push(format!("{} = {}", name(hop.from), show::call(call)));
        ops.extend(call.indexes());
    }
    for hop in cycle {
        let (a, b) = (&name(hop.from), &name(hop.to));
        let why = match hop.class {
            Class::Realtime => format!("{a} had ended before {b} began (real time)"),
            class => {
                let key = nodes.keys.get(hop.why.key as usize).copied().unwrap_or_default();
                let (from, to) = (show::version(hop.why.from), show::version(hop.why.to));
                tell(&Told { class, a, b, key, from, to })
            }
        };
        lines.push(format!("{a} must come before {b}: {why}."));
    }
    lines.push("So T1 must come before itself.".to_owned());
    (ops, lines.join("\n"))
}
