//! The order of elements in each list.

use std::collections::BTreeMap;

use super::collect::{Step, Txns};
use super::{INCOMPATIBLE, LOST};
use crate::check::show;
use crate::check::verdict::Findings;

/// A read of a list by a successful transaction.
#[derive(Clone, Copy, Debug)]
pub(super) struct Read<'a> {
    /// Position in [`Txns::all`].
    pub txn: usize,
    pub list: &'a [i64],
}

/// What is known about one list.
#[derive(Debug, Default)]
pub(super) struct Order<'a> {
    /// The longest list that was read: all others must be beginnings of it.
    pub elements: &'a [i64],
    /// All reads, in the order of the transactions' invocations.
    pub reads: Vec<Read<'a>>,
    /// Whether two reads contradict each other; then there is no order.
    pub broken: bool,
}

/// The orders of all lists, by key.
#[derive(Debug)]
pub(super) struct Orders<'a> {
    pub by_key: Vec<Order<'a>>,
}

impl<'a> Orders<'a> {
    /// Finds each list's order and reports reads that contradict each other.
    pub fn new(txns: &Txns<'a>, findings: &mut Findings) -> Self {
        let mut by_key: Vec<Order<'_>> = txns.keys.iter().map(|_| Order::default()).collect();
        for (place, txn) in txns.all.iter().enumerate() {
            for step in &txn.steps {
                let Step::Read { key, list } = step else { continue };
                by_key[*key as usize].reads.push(Read { txn: place, list });
            }
        }
        for (key, order) in by_key.iter_mut().enumerate() {
            let Some(longest) = order.reads.iter().max_by_key(|read| read.list.len()).copied() else {
                continue;
            };
            order.elements = longest.list;
            for read in &order.reads {
                if longest.list.starts_with(read.list) {
                    continue;
                }
                order.broken = true;
                findings.anomaly(INCOMPATIBLE, || {
                    let (a, b) = (&txns.all[read.txn].call, &txns.all[longest.txn].call);
                    let text = format!(
                        "{}\n{}\nThey read {} as {} and as {}: neither is the beginning of the other.",
                        show::call(a),
                        show::call(b),
                        txns.keys[key],
                        show::list(read.list),
                        show::list(longest.list)
                    );
                    (a.indexes().into_iter().chain(b.indexes()).collect(), text)
                });
            }
        }
        let orders = Orders { by_key };
        orders.check_own(txns, findings);
        orders
    }

    /// What one transaction appended to a list stands there in the order in which it did so.
    fn check_own(&self, txns: &Txns<'_>, findings: &mut Findings) {
        for (key, order) in (0_u32..).zip(&self.by_key).filter(|(_, order)| !order.broken) {
            let mut by_writer: BTreeMap<usize, Vec<i64>> = BTreeMap::new();
            for value in order.elements {
                if let Some(writer) = txns.writers.get(&(key, *value)) {
                    by_writer.entry(*writer).or_default().push(*value);
                }
            }
            for (writer, seen) in by_writer {
                let call = &txns.all[writer].call;
                let of_key = txns.all[writer].appends().filter(|(other, _)| *other == key);
                let appended: Vec<i64> = of_key.map(|(_, value)| value).collect();
                if appended.starts_with(&seen) {
                    continue;
                }
                let reader = order.reads.iter().max_by_key(|read| read.list.len());
                let reader = reader.map_or(call, |read| &txns.all[read.txn].call);
                findings.anomaly(INCOMPATIBLE, || {
                    let text = format!(
                        "{}\n{}\nThe first appended {} to {} in this order, and of these the second read {}.",
                        show::call(call),
                        show::call(reader),
                        show::list(&appended),
                        txns.keys[key as usize],
                        show::list(&seen)
                    );
                    (call.indexes().into_iter().chain(reader.indexes()).collect(), text)
                });
            }
        }
    }
}

/// Finds acknowledged appends that no read sees that began after them, although there is one.
pub(super) fn check_lost(txns: &Txns<'_>, orders: &Orders<'_>, findings: &mut Findings) {
    // For each list, the longest of the reads from the n-th on.
    let longest: Vec<Vec<&[i64]>> = orders.by_key.iter().map(longest_from).collect();
    for txn in txns.all.iter().filter(|txn| txn.is_ok()) {
        for (key, value) in txn.appends() {
            let order = &orders.by_key[key as usize];
            let later = order.reads.partition_point(|read| txns.all[read.txn].call.start < txn.call.end);
            let Some(longest) = longest[key as usize].get(later).filter(|_| !order.broken) else { continue };
            if longest.contains(&value) {
                continue;
            }
            let reader = &txns.all[order.reads[later].txn];
            findings.anomaly(LOST, || {
                let text = format!(
                    "{}\n{}\nThe append of {value} to {} was acknowledged, and {} that began later do not see it; the first of them is shown.",
                    show::call(&txn.call),
                    show::call(&reader.call),
                    txns.keys[key as usize],
                    order.reads.len() - later,
                );
                (txn.call.indexes().into_iter().chain(reader.call.indexes()).collect(), text)
            });
        }
    }
}

fn longest_from<'a>(order: &Order<'a>) -> Vec<&'a [i64]> {
    let mut longest: Vec<&[i64]> = Vec::with_capacity(order.reads.len());
    for read in order.reads.iter().rev() {
        let best = longest.last().copied().filter(|best| best.len() > read.list.len());
        longest.push(best.unwrap_or(read.list));
    }
    longest.reverse();
    longest
}
