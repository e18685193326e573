//! Where a workload's keys lie, and which of them are in use.

use rand::Rng;
use rand::rngs::SmallRng;

/// Buckets that keys are spread over.
const BUCKETS: u32 = 256;

/// A key as it is stored: with a bucket in front, so that keys that follow each other lie in different shards.
pub fn placed(key: &str) -> String {
    format!("{:02x}/{key}", hash(key) % BUCKETS)
}

/// Where the keyspace is cut so that each of `shards` shards gets about as many of the keys.
pub fn split_keys(shards: u32) -> Vec<String> {
    let shards = shards.clamp(1, BUCKETS);
    (1..shards).map(|at| format!("{:02x}", at * BUCKETS / shards)).collect()
}

/// Keys by number, some of them in use at a time. One that was used often enough is laid aside for the next: histories of
/// single keys stay short enough to be checked, and what is unknown does not pile up.
pub struct Rotation {
    width: usize,
    uses: u32,
    /// Numbers in use, and how often each was used.
    active: Vec<(u32, u32)>,
    next: u32,
}

impl Rotation {
    /// So many at a time, each so often.
    pub fn new(width: usize, uses: u32) -> Self {
        Self { width, uses, active: Vec::new(), next: 0 }
    }

    /// One of those in use, by its place, which holds until the next [`spend`](Self::spend).
    pub fn pick(&mut self, rng: &mut SmallRng) -> usize {
        while self.active.len() < self.width {
            self.active.push((self.next, 0));
            self.next += 1;
        }
        rng.random_range(0..self.width)
    }

    /// The number at a place.
    pub fn number(&self, place: usize) -> u32 {
        self.active[place].0
    }

    /// Uses the one at a place. Its number, and the how-manieth time that is, from 1 on.
    pub fn spend(&mut self, place: usize) -> (u32, u32) {
        let (number, used) = &mut self.active[place];
        *used += 1;
        let spent = (*number, *used);
        if spent.1 >= self.uses {
            self.active.remove(place);
        }
        spent
    }

    /// How many numbers were ever in use: all below.
    pub fn count(&self) -> u32 {
        self.next
    }

    /// A number in use.
    pub fn hot(&self) -> u32 {
        self.active.first().map_or(0, |(number, _)| *number)
    }
}

/// FNV-1a, its upper bits mixed into the lower ones: short keys that differ in one digit shall differ in all bits.
fn hash(key: &str) -> u32 {
    let hash =
        key.bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    (hash ^ (hash >> 15)).wrapping_mul(0x2c1b_3c6d) >> 16
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    #[test]
    fn a_number_is_used_so_often_and_another_takes_its_place() {
        let (mut rotation, mut rng) = (Rotation::new(2, 3), SmallRng::seed_from_u64(1));
        let mut used = std::collections::BTreeMap::<u32, u32>::new();
        for _ in 0..60 {
            let place = rotation.pick(&mut rng);
            let number = rotation.number(place);
            let (spent, times) = rotation.spend(place);
            let count = used.entry(number).or_default();
            *count += 1;
            assert_eq!((spent, times), (number, *count));
        }
        assert!(used.values().all(|times| *times <= 3) && used.len() >= 20, "{used:?}");
        assert!(
            used.keys().all(|number| *number < rotation.count())
                && rotation.hot() + 2 >= rotation.count() - 1
        );
    }

    #[test]
    fn shards_get_about_as_many_keys_each() {
        let cuts = split_keys(4);
        assert_eq!(cuts, ["40", "80", "c0"]);
        let mut counts = [0; 4];
        for key in 0..1000 {
            let key = placed(&format!("r{key}"));
            counts[cuts.iter().filter(|cut| **cut <= key).count()] += 1;
        }
        assert!(counts.iter().all(|count| (150..350).contains(count)), "{counts:?}");
        assert!(split_keys(1).is_empty());
    }
}
