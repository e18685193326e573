//! What a world is like. Each seed draws its own, so that some worlds are hasty and others slow, some crash
//! often and others never: a bug that needs one kind of weather finds it in some of them.

use crate::rng::Rng;

/// Chances are in percent unless said otherwise.
#[derive(Debug)]
pub struct Config {
    pub shards: usize,
    /// Keys, over all shards.
    pub keys: usize,
    pub operations: usize,
    /// Operations at once.
    pub clients: usize,
    /// Weights of the kinds of operations, in the order of [`Kind`](crate::history::Kind).
    pub mix: [usize; 4],
    /// A transaction touches several keys.
    pub several_keys: usize,
    /// A transaction reads a range, so that its commit is classic.
    pub ranges: usize,
    /// A message arrives twice.
    pub duplicate: usize,
    /// A message is lost.
    pub lost: usize,
    /// A message takes long.
    pub slow: usize,
    /// Of 1,000 steps so many move the leadership of a shard.
    pub new_leader: usize,
    /// Of 1,000 steps so many end a coordinator or a recovery.
    pub crash: usize,
    /// Of 1,000 steps so many let the clock jump.
    pub jump: usize,
    /// Of 1,000 steps so many run into somebody's patience.
    pub timeout: usize,
    /// A client whose commit takes long sends it again, or gives up, when its patience is tried.
    pub clients_hurry: usize,
    /// Of 1,000 steps so many meet a lock that is older than its time-to-live.
    pub recovery: usize,
    /// After so many milliseconds a lock is old.
    pub lock_ttl_ms: u64,
    /// A follower applies when it is its turn.
    pub follower_applies: usize,
    /// A leader applies when it is its turn.
    pub leader_applies: usize,
    /// The oracle answers when it is its turn.
    pub oracle_answers: usize,
    /// The first shard's batches get on, when it is their turn: a shard may be much slower than the others.
    pub first_shard_gets_on: usize,
    /// Of 1,000 steps so many raise a safe point, or drop what lies below it.
    pub collect: usize,
    /// When all clients are done all nodes stop, nothing happens for longer than anything lives, and what is old is dropped.
    pub sleeps: usize,
    /// A coordinator knows a shard map in which shards are still one.
    pub old_map: usize,
    /// A read goes to a follower.
    pub reads_follower: usize,
}

impl Config {
    pub fn draw(rng: &mut Rng) -> Self {
        let any = Self::any(rng);
        match rng.below(8) {
            0 => any.slow_shard(),
            1 => any.hasty(rng),
            2 => any.old(),
            _ => any,
        }
    }

    /// One shard is slow and all else is quick: what was asked for early becomes visible late.
    fn slow_shard(self) -> Self {
        Self {
            shards: 2,
            keys: 2,
            operations: 18,
            clients: 6,
            mix: [0, 2, 4, 4],
            duplicate: 0,
            lost: 0,
            slow: 0,
            new_leader: 0,
            timeout: 2,
            leader_applies: 100,
            oracle_answers: 100,
            first_shard_gets_on: 4,
            reads_follower: self.reads_follower / 2,
            ..self
        }
    }

    /// Time flies, and what is old is dropped: what transactions leave behind outlives what tells of their end.
    fn old(self) -> Self {
        Self {
            keys: self.shards,
            mix: [5, 0, 0, 5],
            several_keys: 100,
            ranges: 0,
            operations: 14,
            clients: 3,
            new_leader: 0,
            lost: 8,
            crash: 4,
            timeout: 10,
            recovery: 1,
            lock_ttl_ms: 3000,
            sleeps: 100,
            ..self
        }
    }

    /// Everybody is impatient: commits are recovered and sent again while they are on their way.
    fn hasty(self, rng: &mut Rng) -> Self {
        Self {
            mix: [8, 1, 1, 0],
            several_keys: 100,
            ranges: 0,
            operations: 6,
            clients: 2,
            duplicate: rng.pick(&[8, 25]),
            lost: 4,
            slow: 8,
            new_leader: 0,
            crash: 0,
            jump: 0,
            timeout: rng.pick(&[4, 10]),
            clients_hurry: 5,
            recovery: 60,
            lock_ttl_ms: 0,
            ..self
        }
    }

    fn any(rng: &mut Rng) -> Self {
        let shards = 2 + rng.below(2);
        Self {
            shards,
            keys: shards + rng.below(3),
            operations: 4 + rng.below(14),
            clients: 2 + rng.below(5),
            mix: rng.pick(&[
                [5, 2, 2, 1],
                [5, 2, 2, 1],
                [8, 1, 1, 0],
                [2, 3, 4, 3],
                [4, 1, 0, 4],
                [0, 2, 5, 4],
            ]),
            several_keys: 40 + rng.below(60),
            ranges: rng.pick(&[0, 10, 40]),
            duplicate: rng.pick(&[0, 8, 25]),
            lost: rng.pick(&[0, 0, 4]),
            slow: rng.pick(&[0, 6, 25]),
            new_leader: rng.pick(&[0, 2, 6]),
            crash: rng.pick(&[0, 2, 8]),
            jump: rng.pick(&[0, 2, 6]),
            timeout: rng.pick(&[4, 10, 40]),
            clients_hurry: rng.pick(&[5, 40, 100]),
            recovery: rng.pick(&[4, 10, 40]),
            lock_ttl_ms: rng.pick(&[0, 3, 3000]),
            follower_applies: rng.pick(&[3, 15, 60]),
            leader_applies: rng.pick(&[20, 60, 100]),
            oracle_answers: rng.pick(&[20, 60, 100]),
            first_shard_gets_on: rng.pick(&[100, 100, 5]),
            collect: rng.pick(&[0, 0, 0, 6]),
            sleeps: 20,
            old_map: rng.pick(&[0, 0, 30]),
            reads_follower: rng.pick(&[0, 30, 60]),
        }
    }
}
