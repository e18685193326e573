//! Where the keyspaces are cut into shards when a cluster is formed. Pure.

use bytes::Bytes;

use crate::codec::keyspace;
use crate::types::{Epoch, Error, KeyRange, NodeId, Result, ShardDescriptor, ShardId, limits};

/// How the users' keyspace is to be cut.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Cut {
    /// Before each of these keys.
    Before(Vec<Bytes>),
    /// Into so many shards with about equal numbers of the sample keys; where there are none, of the pairs
    /// of digits and lower-case letters that keys often begin with.
    Evenly {
        /// How many shards.
        shards: usize,
        /// Keys like those that will be stored.
        sample: Vec<Bytes>,
    },
}

/// The keys to cut before, rising.
///
/// # Errors
///
/// `Invalid` where keys don't rise, are empty or too long, where there are more shards than
/// [`limits::MAX_SHARDS`], or fewer different sample keys than shards.
pub fn split_keys(cut: Cut) -> Result<Vec<Bytes>> {
    let keys = match cut {
        Cut::Before(keys) => keys,
        Cut::Evenly { shards, sample } => even_keys(shards, sample)?,
    };
    if keys.len() >= limits::MAX_SHARDS {
        return Err(Error::invalid(format!(
            "{} shards were asked for, but a cluster has at most {}: ask for fewer",
            keys.len() + 1,
            limits::MAX_SHARDS
        )));
    }
    for key in &keys {
        if key.is_empty() || key.len() > limits::MAX_KEY_BYTES {
            return Err(Error::invalid(format!(
                "a split key has {} bytes: it must have 1 to {}",
                key.len(),
                limits::MAX_KEY_BYTES
            )));
        }
    }
    if let Some(pair) = keys.windows(2).find(|pair| pair[0] >= pair[1]) {
        return Err(Error::invalid(format!(
            "split keys must rise, but {:?} stands before {:?}: sort them and remove doubles",
            pair[0], pair[1]
        )));
    }
    Ok(keys)
}

fn even_keys(shards: usize, mut sample: Vec<Bytes>) -> Result<Vec<Bytes>> {
    if shards == 0 || shards > limits::MAX_SHARDS {
        return Err(Error::invalid(format!(
            "{shards} shards were asked for: ask for 1 to {}",
            limits::MAX_SHARDS
        )));
    }
    if sample.is_empty() {
        let common = || (b'0'..=b'9').chain(b'a'..=b'z');
        sample = common().flat_map(|a| common().map(move |b| Bytes::copy_from_slice(&[a, b]))).collect();
    }
    sample.sort_unstable();
    sample.dedup();
    if sample.len() < shards {
        return Err(Error::invalid(format!(
            "{} different sample keys can't be cut into {shards} shards: give more sample keys, or ask for fewer \
             shards",
            sample.len()
        )));
    }
    Ok((1..shards).map(|nth| sample[nth * sample.len() / shards].clone()).collect())
}

/// The shards of a new cluster: the system shard, then the users' keyspace cut before `split_keys`, then one for the
/// rows of query indexes, then those for sagas: one for each node, but not more than users' keys have. The last reaches
/// to the end of all keys. Replicas go round the nodes, and so do the first replicas, which stand for election first.
pub fn descriptors(split_keys: &[Bytes], nodes: &[NodeId], replicas: usize) -> Vec<ShardDescriptor> {
    let place = |nth: usize| -> Vec<NodeId> {
        (0..replicas.min(nodes.len())).map(|offset| nodes[(nth + offset) % nodes.len()]).collect()
    };
    let mut starts = vec![Bytes::from_static(&[keyspace::USER])];
    starts.extend(split_keys.iter().map(|key| keyspace::user_key(key)));
    starts.push(keyspace::index_range().start);
    starts.extend(keyspace::saga_starts(nodes.len().min(split_keys.len() + 1)));
    let mut shards = vec![ShardDescriptor {
        id: ShardId::SYSTEM,
        range: keyspace::system_range(),
        epoch: Epoch(1),
        replicas: place(0),
    }];
    for (nth, start) in starts.iter().enumerate() {
        shards.push(ShardDescriptor {
            id: ShardId(nth as u64 + 1),
            range: KeyRange { start: start.clone(), end: starts.get(nth + 1).cloned() },
            epoch: Epoch(1),
            replicas: place(nth),
        });
    }
    shards
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(list: &[&'static str]) -> Vec<Bytes> {
        list.iter().map(|key| Bytes::from_static(key.as_bytes())).collect()
    }

    #[test]
    fn shards_cover_every_key_once() {
        let nodes = [NodeId(1), NodeId(2), NodeId(3)];
        let cut = split_keys(Cut::Evenly { shards: 8, sample: vec![] }).expect("cut");
        let shards = descriptors(&cut, &nodes, 3);
        assert_eq!(shards.len(), 13);
        assert!(shards[0].range.start.is_empty());
        assert!(shards.windows(2).all(|pair| pair[0].range.end.as_ref() == Some(&pair[1].range.start)));
        assert_eq!(shards[8].range.end, Some(keyspace::index_range().start));
        assert_eq!(shards[9].range.end, Some(keyspace::saga_range().start));
        assert_eq!(shards[12].range.end, None);
        assert_eq!(descriptors(&[], &nodes, 3).len(), 4, "sagas have no more shards than users' keys");
        for first in nodes {
            assert!(shards.iter().filter(|shard| shard.replicas[0] == first).count() >= 2);
        }
    }

    #[test]
    fn sample_keys_are_cut_into_equal_parts() {
        let sample = (0..100).map(|n| Bytes::from(format!("k{n:03}"))).collect();
        let cut = split_keys(Cut::Evenly { shards: 4, sample }).expect("cut");
        assert_eq!(cut, keys(&["k025", "k050", "k075"]));
        assert_eq!(split_keys(Cut::Evenly { shards: 1, sample: vec![] }).expect("one"), keys(&[]));
    }

    #[test]
    fn bad_cuts_are_refused() {
        for cut in [
            Cut::Before(keys(&["b", "a"])),
            Cut::Before(keys(&["a", "a"])),
            Cut::Before(keys(&["", "a"])),
            Cut::Before(vec![Bytes::from(vec![b'k'; limits::MAX_KEY_BYTES + 1])]),
            Cut::Evenly { shards: 0, sample: vec![] },
            Cut::Evenly { shards: limits::MAX_SHARDS + 1, sample: vec![] },
            Cut::Evenly { shards: 3, sample: keys(&["a", "b", "b"]) },
        ] {
            assert!(split_keys(cut.clone()).is_err(), "{cut:?}");
        }
    }
}
