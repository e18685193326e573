//! Where a workload's keys lie.

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

/// FNV-1a, its upper bits mixed into the lower ones: short keys that differ in one digit shall differ in all bits.
fn hash(key: &str) -> u32 {
    let hash =
        key.bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    (hash ^ (hash >> 15)).wrapping_mul(0x2c1b_3c6d) >> 16
}

#[cfg(test)]
mod tests {
    use super::*;

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
