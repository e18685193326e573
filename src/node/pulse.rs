//! How a node and its peers are: a watchdog notices when the process stands still, nodes tell each other, and clients
//! are told whom to spare.
//!
//! A node that is paused now and then, or whose machine has too much to do, answers most reads well and some very late.
//! A client that reads rarely can't notice that; the node itself can.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use crate::types::NodeId;

/// How often the watchdog looks.
const TICK: Duration = Duration::from_millis(10);
/// A tick that comes later than this is a stall: schedulers are late by less.
const LATE: Duration = Duration::from_millis(10);
/// Over how long stalls are counted.
const WINDOW: Duration = Duration::from_secs(2);
/// A node that stood still for more of the window than this, in thousandths, is slow...
const SLOW_PERMILLE: u32 = 200;
/// ...if another node stood still for at most one part in so many of that: where all are slow, none is to be spared.
const BETTER_PART: u32 = 2;
/// What a node said of itself is forgotten after this time.
const FRESH: Duration = Duration::from_secs(3);

/// The stalls of this process: pure, the clock is an argument.
#[derive(Default, Debug)]
struct Stalls {
    last: Option<Instant>,
    /// When each stall ended, and how long it was.
    recent: VecDeque<(Instant, Duration)>,
}

impl Stalls {
    /// A tick of the watchdog.
    fn tick(&mut self, now: Instant) {
        if let Some(last) = self.last {
            let late = now.saturating_duration_since(last).saturating_sub(TICK);
            if late > LATE {
                self.recent.push_back((now, late));
            }
        }
        self.last = Some(now);
        while self.recent.front().is_some_and(|(at, _)| now.saturating_duration_since(*at) > WINDOW) {
            self.recent.pop_front();
        }
    }

    /// How much of the window the process stood still, in thousandths.
    fn permille(&self, now: Instant) -> u32 {
        let counted = self.recent.iter().filter(|(at, _)| now.saturating_duration_since(*at) <= WINDOW);
        let stood: Duration = counted.map(|(_, late)| *late).sum();
        let permille = stood.min(WINDOW).as_millis() * 1000 / WINDOW.as_millis();
        u32::try_from(permille).unwrap_or(1000)
    }
}

/// What nodes say of themselves: thousandths of the last seconds for which each stood still.
pub type Pulses = Vec<(NodeId, u32)>;

/// What this node has heard of another.
#[derive(Clone, Copy)]
struct Heard {
    permille: u32,
    at: Instant,
    /// Whether the node said so itself. Only that is told to others: what was told on and on would never be forgotten.
    at_first_hand: bool,
}

impl Heard {
    fn is_fresh(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.at) <= FRESH
    }
}

/// What this node knows of all nodes.
pub struct Pulse {
    own: NodeId,
    stalls: Mutex<Stalls>,
    others: Mutex<BTreeMap<NodeId, Heard>>,
    slow: Mutex<Arc<[u64]>>,
}

impl Pulse {
    /// Nothing is known yet.
    pub fn new(own: NodeId) -> Self {
        Self { own, stalls: Mutex::default(), others: Mutex::default(), slow: Mutex::new(Arc::new([])) }
    }

    /// What this node says: of itself, and what others have told it of themselves.
    pub fn tell(&self) -> Pulses {
        self.known(|heard| heard.at_first_hand)
    }

    fn known(&self, which: impl Fn(&Heard) -> bool) -> Pulses {
        let now = Instant::now();
        let others = self.others.lock();
        let told = others.iter().filter(|(_, heard)| heard.is_fresh(now) && which(heard));
        let mut pulses: Pulses = told.map(|(node, heard)| (*node, heard.permille)).collect();
        pulses.push((self.own, self.stalls.lock().permille(now)));
        pulses
    }

    /// Takes in what `from` said. What it says of itself counts; what it says of others where they have not said it
    /// themselves lately.
    pub fn hear(&self, from: NodeId, pulses: &Pulses) {
        let at = Instant::now();
        {
            let mut others = self.others.lock();
            for (node, permille) in pulses.iter().filter(|(node, _)| *node != self.own) {
                let at_first_hand = *node == from;
                let knows_better =
                    others.get(node).is_some_and(|heard| heard.at_first_hand && heard.is_fresh(at));
                if at_first_hand || !knows_better {
                    others.insert(*node, Heard { permille: *permille, at, at_first_hand });
                }
            }
            others.retain(|_, heard| heard.is_fresh(at));
        }
        self.refresh();
    }

    /// Looks again at who is slow: what was said long ago counts no more.
    pub fn refresh(&self) {
        let slow = slow_among(&self.known(|_| true));
        *self.slow.lock() = slow.iter().map(|node| node.0).collect();
    }

    /// The nodes that clients should spare now.
    pub fn slow(&self) -> Arc<[u64]> {
        Arc::clone(&self.slow.lock())
    }
}

/// Which nodes are slow, compared with the best.
fn slow_among(pulses: &Pulses) -> Vec<NodeId> {
    let best = pulses.iter().map(|(_, permille)| *permille).min().unwrap_or(0);
    let is_slow = |permille: u32| permille > SLOW_PERMILLE && best <= permille / BETTER_PART;
    pulses.iter().filter(|(_, permille)| is_slow(*permille)).map(|(node, _)| *node).collect()
}

/// The watchdog. Runs until the node stops.
pub async fn run(pulse: Arc<Pulse>, stopping: CancellationToken) {
    let mut every = tokio::time::interval(TICK);
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stopping.cancelled() => return,
            _ = every.tick() => pulse.stalls.lock().tick(Instant::now()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[tokio::test]
    async fn a_process_that_is_paused_half_of_the_time_says_so_and_a_late_scheduler_does_not() {
        let start = Instant::now();
        let mut paused = Stalls::default();
        let mut busy = Stalls::default();
        for round in 0..40 {
            for tick in 0..5 {
                paused.tick(start + ms(round * 100 + tick * 10));
            }
            for tick in 0..10 {
                busy.tick(start + ms(round * 100 + tick * 10 + tick % 2 * 7));
            }
        }
        let now = start + ms(4_000);
        assert!((400..=600).contains(&paused.permille(now)), "{}", paused.permille(now));
        assert_eq!(busy.permille(now), 0);
        assert_eq!(paused.permille(now + WINDOW * 2), 0, "it is forgotten");
    }

    #[test]
    fn only_who_is_clearly_worse_than_another_is_slow() {
        let (a, b, c) = (NodeId(1), NodeId(2), NodeId(3));
        assert_eq!(slow_among(&vec![(a, 10), (b, 500), (c, 20)]), [b]);
        assert!(slow_among(&vec![(a, 400), (b, 500), (c, 450)]).is_empty(), "all are slow alike");
        assert!(slow_among(&vec![(a, 0), (b, 150)]).is_empty(), "not slow enough");
        assert!(slow_among(&Vec::new()).is_empty());
    }

    #[tokio::test]
    async fn what_a_node_says_of_itself_beats_what_others_say_of_it() {
        let pulse = Pulse::new(NodeId(1));
        pulse.hear(NodeId(2), &vec![(NodeId(2), 0), (NodeId(3), 600)]);
        assert_eq!(*pulse.slow(), [3], "heard of at second hand");
        pulse.hear(NodeId(3), &vec![(NodeId(3), 0), (NodeId(2), 600)]);
        assert!(pulse.slow().is_empty(), "both know themselves best");
        pulse.hear(NodeId(2), &vec![(NodeId(1), 900)]);
        assert!(pulse.slow().is_empty(), "so does this node");
        pulse.hear(NodeId(2), &vec![(NodeId(4), 700)]);
        assert!(pulse.tell().iter().all(|(node, _)| *node != NodeId(4)), "rumours are not told on");
    }
}
