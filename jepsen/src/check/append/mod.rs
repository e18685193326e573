//! Lists that transactions append to and read: strictly serializable, or what is wrong.

mod collect;
mod depend;
mod order;
mod values;

use super::graph::{self, Class, Nodes, Told};
use super::verdict::Findings;
use super::{Checker, Options, Verdict};
use crate::history::History;
use collect::Txns;
use order::Orders;

const INTERNAL: &str = "internal";
const DUPLICATE: &str = "duplicate-elements";
const UNWRITTEN: &str = "unwritten-element";
const LOST: &str = "lost-append";
const INCOMPATIBLE: &str = "incompatible-order";
const DIRTY: &str = "dirty-update";
const G1A: &str = "G1a";
const G1B: &str = "G1b";

/// Checks transactions of appends to lists and reads of whole lists. Each element is appended to its list once,
/// so a read tells the order of all appends before it, and from these orders the dependencies between
/// transactions follow: who overwrote (ww) or read (wr) what somebody wrote, who overwrote what somebody read
/// (rw), and who had ended before somebody began. A cycle of them is impossible in a strictly serializable
/// store.
///
/// - `internal`: a transaction does not see its own appends, or sees a list change under it.
/// - `duplicate-elements`: a read has an element twice.
/// - `unwritten-element`: a read has an element that nobody appended.
/// - `lost-append`: an append was acknowledged, and no read that began later sees it.
/// - `incompatible-order`: two reads of a list, neither of which is the beginning of the other; or a read that
///   has the appends of one transaction in another order, or without one of them in between.
/// - `dirty-update`: an element that is to stay was appended after one of a failed transaction.
/// - `G1a`: a read sees an append of a failed transaction.
/// - `G1b`: a read ends in the middle of what one transaction appended.
/// - `G0`: a cycle of ww; `G1c`: of ww and wr; `G-single`: with exactly one rw; `G2-item`: with more.
/// - The same with `-realtime`: the cycle needs that one transaction ended before another began.
///
/// A transaction with unknown outcome counts as committed if somebody saw an element of it, else it is left
/// out. Of cycles that share transactions the strongest sort is reported, and of that a shortest cycle.
#[derive(Clone, Debug)]
pub struct Append {
    options: Options,
}

impl Append {
    /// A checker under these options.
    pub fn new(options: Options) -> Self {
        Append { options }
    }
}

impl Checker for Append {
    fn name(&self) -> &'static str {
        "append"
    }

    fn anomalies(&self) -> &'static [&'static str] {
        const NAMES: [&str; 16] =
            graph::with_cycles([INTERNAL, DUPLICATE, UNWRITTEN, LOST, INCOMPATIBLE, DIRTY, G1A, G1B]);
        &NAMES
    }

    fn check(&self, history: &History) -> Verdict {
        let mut findings = Findings::new(history, self.anomalies());
        let txns = Txns::new(history, &mut findings);
        values::check(&txns, &mut findings);
        let orders = Orders::new(&txns, &mut findings);
        order::check_lost(&txns, &orders, &mut findings);
        let graph = depend::graph(&txns, &orders, &mut findings);
        findings.stat("keys", txns.keys.len());
        let call = |node: u32| &txns.all[txns.committed[node as usize]].call;
        let nodes = Nodes { call, keys: &txns.keys };
        graph::report(&graph, self.options.max_search, &nodes, graph::name, tell, &mut findings);
        let reads = txns.all.iter().filter(|txn| txn.is_ok() && txn.sees_something()).count();
        let appends = txns.all.iter().filter(|txn| txn.is_ok() && txn.appends_something()).count();
        findings.need_success(history);
        findings.need("a successful transaction that appends", appends as u64, self.options.least_ok);
        findings.need("a successful transaction that reads an element", reads as u64, self.options.least_ok);
        findings.verdict()
    }
}

/// Why one transaction must come before another.
fn tell(Told { class, a, b, key, from, to }: &Told<'_>) -> String {
    match class {
        Class::Ww => format!("{b} appended {to} to {key} after {from}, which {a} appended (ww)"),
        Class::Wr => format!("{b} read {key} up to {from}, which {a} appended (wr)"),
        Class::Rw | Class::Realtime => {
            format!("{a} read {key} up to {from}, and {b} appended {to} after that (rw)")
        }
    }
}
