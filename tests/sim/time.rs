//! The oracle in the simulated world: the real machine, on two nodes whose clocks differ.

use kvorum::oracle::{Block, CEILING_AHEAD_MS, Oracle, PhysicalClock, PhysicalMs};
use kvorum::types::Timestamp;

pub struct Time {
    /// Milliseconds since the world began, which no node knows.
    true_ms: u64,
    /// How far the clock of each node is ahead.
    ahead_ms: [u64; 2],
    leader: usize,
    clock: PhysicalClock,
    oracle: Oracle,
    /// The highest ceiling that was raised: what a new leader finds.
    ceiling: Timestamp,
}

impl Time {
    pub fn new() -> Self {
        let mut time = Self {
            true_ms: 0,
            ahead_ms: [1_000_000, 1_000_200],
            leader: 0,
            clock: PhysicalClock::new(0, 0),
            oracle: Oracle::new(Timestamp::ZERO),
            ceiling: Timestamp::ZERO,
        };
        time.lead(0);
        time
    }

    fn wall(&self) -> u64 {
        Timestamp::UNIX_OFFSET_MS + self.ahead_ms[self.leader] + self.true_ms
    }

    /// A node takes the oracle over.
    pub fn lead(&mut self, node: usize) {
        self.leader = node;
        self.clock = PhysicalClock::new(self.wall(), self.true_ms);
        let shown = PhysicalMs(self.ceiling.ms().saturating_sub(CEILING_AHEAD_MS));
        self.clock.not_before(shown, self.true_ms);
        self.oracle = Oracle::new(self.ceiling);
    }

    pub fn leader(&self) -> usize {
        self.leader
    }

    pub fn pass(&mut self, ms: u64) {
        self.true_ms += ms;
    }

    /// The wall clock of the oracle's node jumps ahead.
    pub fn jump(&mut self, ms: u64) {
        self.ahead_ms[self.leader] += ms;
    }

    /// The wall clock of the oracle's node jumps back.
    pub fn jump_back(&mut self, ms: u64) {
        let ahead = &mut self.ahead_ms[self.leader];
        *ahead = ahead.saturating_sub(ms);
    }

    /// Cuts a block, raising the ceiling first where that is due.
    pub fn cut(&mut self, count: usize) -> Block {
        let now = self.clock.read(self.wall(), self.true_ms).now;
        let count = count as u64;
        loop {
            if let Some(to) = self.oracle.next_ceiling(now) {
                self.ceiling = self.ceiling.max(to);
                self.oracle.raised(to);
            }
            if let Ok(block) = self.oracle.cut(now, count) {
                return block;
            }
        }
    }

    /// A timestamp `ms` milliseconds before the highest handed out.
    pub fn before(&self, ms: u64) -> Timestamp {
        Timestamp::from_ms(self.oracle.last().ms().saturating_sub(ms))
    }
}
