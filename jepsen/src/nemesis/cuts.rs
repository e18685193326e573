//! Which packets each kind of partition drops. Pure.

use crate::hosts::Cut;

/// Two groups: nobody of the one reaches anybody of the other.
pub fn between(one: &[usize], other: &[usize]) -> Cut {
    let mut cut = one_way(one, other);
    cut.extend(one_way(other, one));
    cut
}

/// What `from` sends to `to` is lost.
pub fn one_way(from: &[usize], to: &[usize]) -> Cut {
    from.iter().flat_map(|from| to.iter().map(move |to| (*from, *to))).collect()
}

/// One node alone.
pub fn alone(node: usize, nodes: usize) -> Cut {
    let others: Vec<usize> = (0..nodes).filter(|other| *other != node).collect();
    between(&[node], &others)
}

/// The nodes, in this order, stand in a ring and reach as many neighbours on both sides as make a majority. Of three
/// nodes the outer two don't reach each other.
pub fn ring(order: &[usize]) -> Cut {
    let count = order.len();
    if count <= 3 {
        return bridge(order);
    }
    let reach = (count / 2).div_ceil(2);
    let mut cut = Cut::new();
    for (at, from) in order.iter().enumerate() {
        for (other, to) in order.iter().enumerate() {
            let away = at.abs_diff(other);
            if away.min(count - away) > reach {
                cut.insert((*from, *to));
            }
        }
    }
    cut
}

/// Two groups that share the node in the middle of this order.
pub fn bridge(order: &[usize]) -> Cut {
    let middle = order.len() / 2;
    between(&order[..middle], &order[middle + 1..])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many nodes each reaches both ways, itself included.
    fn reached(cut: &Cut, nodes: usize) -> Vec<usize> {
        let both = |a: usize, b: usize| !cut.contains(&(a, b)) && !cut.contains(&(b, a));
        (0..nodes).map(|a| (0..nodes).filter(|b| both(a, *b)).count()).collect()
    }

    #[test]
    fn halves_are_cut_both_ways_and_one_way_only_one() {
        assert_eq!(between(&[0], &[1, 2]), Cut::from([(0, 1), (0, 2), (1, 0), (2, 0)]));
        assert_eq!(one_way(&[0], &[1, 2]), Cut::from([(0, 1), (0, 2)]));
        assert_eq!(reached(&alone(1, 3), 3), [2, 1, 2]);
    }

    #[test]
    fn in_a_ring_everybody_reaches_a_majority_and_not_all() {
        for nodes in [4, 5, 7] {
            let order: Vec<usize> = (0..nodes).collect();
            let reached = reached(&ring(&order), nodes);
            assert!(reached.iter().all(|count| *count > nodes / 2 && *count < nodes), "{nodes}: {reached:?}");
        }
        assert_eq!(reached(&ring(&[0, 1, 2]), 3), [2, 3, 2]);
    }

    #[test]
    fn a_bridge_joins_two_groups_that_do_not_reach_each_other() {
        assert_eq!(reached(&bridge(&[4, 3, 0, 1, 2]), 5), [5, 3, 3, 3, 3]);
    }
}
