//! What the servers of the [`model`](super::model) tell each other of their stalls, and from when on which replies
//! list which servers as slow. Stalls depend on no read, so that all of it is known before the first one.
//!
//! It does what nodes do: a watchdog ticks every 10 ms and sees that it is late, five times a second every server
//! tells the others how much of the last two seconds it stood still, and whoever hears that compares. On the way
//! it takes [`LAG_US`] more than a message, as if servers were told by way of others, so that a list is as late
//! as it may be: a server that stands still half of the time is listed 2.0 to 2.3 s after this begins, and until
//! 2.1 to 2.4 s after it ends.

use super::model::{MS, SECOND, Server, node};
use crate::types::NodeId;

/// How often the watchdog looks, and how late a tick is a stall.
const TICK_US: u64 = 10 * MS;
const LATE_US: u64 = 10 * MS;
/// Over how long stalls are counted.
const WINDOW_US: u64 = 2 * SECOND;
/// What part of it makes a server slow, in thousandths ...
const SLOW_PERMILLE: u64 = 200;
/// ... if another stood still for at most one part in so many of that.
const BETTER_PART: u64 = 2;
/// How often servers tell, and how long it takes beside the way.
const TOLD_EVERY_US: u64 = 200 * MS;
const LAG_US: u64 = SECOND;

/// The lists of one server: from when on which servers are slow.
pub(super) struct Lists(Vec<(u64, Vec<NodeId>)>);

impl Lists {
    /// The same at all times.
    pub(super) fn always(slow: Vec<NodeId>) -> Self {
        Self(vec![(0, slow)])
    }

    /// What a reply of this time says.
    pub(super) fn at(&self, now_us: u64) -> &[NodeId] {
        let next = self.0.partition_point(|(from_us, _)| *from_us <= now_us);
        next.checked_sub(1).map_or(&[], |last| &self.0[last].1)
    }
}

/// A server's word of itself, when it comes to another one.
struct Word {
    at_us: u64,
    from: usize,
    to: usize,
    permille: u64,
}

/// The stalls that a server's watchdog sees: when each ended, and how long it was.
fn stalls(server: &Server, until_us: u64) -> Vec<(u64, u64)> {
    let (mut stalls, mut last_us) = (Vec::new(), 0);
    while last_us < until_us {
        let now_us = server.work(last_us + TICK_US, 0);
        let late_us = now_us - last_us - TICK_US;
        if late_us > LATE_US {
            stalls.push((now_us, late_us));
        }
        last_us = now_us;
    }
    stalls
}

/// How much of the last two seconds the stalls took, in thousandths.
fn permille(stalls: &[(u64, u64)], now_us: u64) -> u64 {
    let first = stalls.partition_point(|stall| stall.0 + WINDOW_US < now_us);
    let stood_us: u64 =
        stalls[first..].iter().take_while(|stall| stall.0 <= now_us).map(|stall| stall.1).sum();
    stood_us.min(WINDOW_US) * 1_000 / WINDOW_US
}

fn words(servers: &[Server], stalls: &[Vec<(u64, u64)>], until_us: u64) -> Vec<Word> {
    let mut words = Vec::new();
    for (from, server) in servers.iter().enumerate() {
        // They don't tell at the same moment.
        let mut due_us = TOLD_EVERY_US * (from as u64 + 1) / servers.len() as u64;
        while due_us < until_us {
            let told_us = server.work(due_us, 0);
            let permille = permille(&stalls[from], told_us);
            for (to, other) in servers.iter().enumerate().filter(|(to, _)| *to != from) {
                let at_us = other.work(told_us + server.rtt_us / 2 + LAG_US, 0);
                words.push(Word { at_us, from, to, permille });
            }
            due_us = told_us + TOLD_EVERY_US;
        }
    }
    words.sort_by_key(|word| word.at_us);
    words
}

/// What each server's replies list.
pub(super) fn lists(servers: &[Server], until_us: u64) -> Vec<Lists> {
    let stalls: Vec<_> = servers.iter().map(|server| stalls(server, until_us)).collect();
    let mut known = vec![vec![0; servers.len()]; servers.len()];
    let mut lists: Vec<Lists> = servers.iter().map(|_| Lists(Vec::new())).collect();
    for word in words(servers, &stalls, until_us) {
        let known = &mut known[word.to];
        known[word.from] = word.permille;
        known[word.to] = permille(&stalls[word.to], word.at_us);
        let slow = slow_among(known);
        if lists[word.to].at(word.at_us) != slow {
            lists[word.to].0.push((word.at_us, slow));
        }
    }
    lists
}

fn slow_among(known: &[u64]) -> Vec<NodeId> {
    let best = known.iter().copied().min().unwrap_or(0);
    let is_slow = |permille: &u64| *permille > SLOW_PERMILLE && best <= permille / BETTER_PART;
    (0..known.len()).filter(|server| is_slow(&known[*server])).map(node).collect()
}

#[cfg(test)]
mod tests {
    use super::super::model::{Bad, Load, Random, Setup};
    use super::*;

    /// Three servers that stall so often in the mean. The second is also paused from second 8 to 20.
    fn servers(seed: u64, stalls_us: u64) -> Vec<Server> {
        let setup = Setup::new(1, Load::Closed(1), 30).spell(1, 8..20, Bad::Paused(50 * MS));
        let (mut servers, mut random) = (setup.servers, Random(seed));
        servers.iter_mut().for_each(|server| server.stall(stalls_us, 30 * SECOND, &mut random));
        servers
    }

    #[test]
    fn a_paused_server_is_listed_by_all_after_two_seconds_and_an_ordinary_one_never() {
        for (seed, stalls_us) in (1..=12).flat_map(|seed| [(seed, SECOND), (seed, SECOND / 5)]) {
            for (server, list) in lists(&servers(seed, stalls_us), 30 * SECOND).into_iter().enumerate() {
                let changes = list.0;
                let nodes: Vec<_> = changes.iter().map(|(_, slow)| slow.clone()).collect();
                assert_eq!(nodes, [vec![node(1)], vec![]], "{seed}");
                let [from_us, to_us] = [0, 1].map(|place: usize| changes[place].0);
                // It knows of its own stalls at once.
                let lag_us = if server == 1 { 0 } else { LAG_US };
                for (time_us, begun_us) in [(from_us, 8 * SECOND), (to_us, 20 * SECOND)] {
                    let after_us = time_us - begun_us - lag_us;
                    assert!((700 * MS..1_500 * MS).contains(&after_us), "{seed}, {server}: {after_us}");
                }
            }
        }
    }

    #[test]
    fn where_all_are_paused_none_is_listed() {
        let mut servers = servers(1, SECOND);
        let spells = servers[1].spells.clone();
        servers.iter_mut().for_each(|server| server.spells = spells.clone());
        let listed: Vec<_> = lists(&servers, 30 * SECOND).into_iter().flat_map(|list| list.0).collect();
        assert!(listed.iter().all(|(_, slow)| slow.len() < 3), "{listed:?}");
    }
}
