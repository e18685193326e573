//! The one shard that reads of one shard go to, and which nodes have which part in it.

use std::ops::Range;
use std::time::Duration;

use kvorum::codec::keyspace;
use kvorum::rpc::v1;

use crate::{KEYS, Result, load};

/// The id of the shard that keeps the map of all shards, and hands out timestamps.
const SYSTEM_SHARD: u64 = 0;
/// How often the map is asked for until it says who leads.
const ASK_TIMES: u32 = 50;
const ASK_EVERY: Duration = Duration::from_millis(200);

/// A shard, and the keys of it.
#[derive(Clone, Debug)]
pub struct HotShard {
    /// Its id.
    pub id: u64,
    /// The numbers of the load's keys that are in it: they follow each other.
    pub keys: Range<u64>,
}

/// Who leads what.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Leaders {
    /// The leader of the hot shard.
    pub hot: u64,
    /// The leader of the system shard.
    pub system: u64,
}

impl HotShard {
    /// Chooses the shard that has the most of the load's keys.
    pub async fn choose(client: &kvorum::Client) -> Result<Self> {
        let map = client.map().await?;
        let shards = map.shards.into_iter().filter_map(|placement| placement.shard);
        let held = shards.map(|shard| Self { id: shard.id, keys: keys_in(&shard) });
        let hot = held.max_by_key(|shard| (shard.keys.end - shard.keys.start, shard.id));
        hot.filter(|shard| !shard.keys.is_empty()).ok_or_else(|| "no shard has any of the keys".into())
    }

    /// Who leads it now, and who the system shard.
    pub async fn leaders(&self, client: &kvorum::Client) -> Result<Leaders> {
        for _ in 0..ASK_TIMES {
            let map = client.map().await?;
            if let (Some(hot), Some(system)) = (leader(&map, self.id), leader(&map, SYSTEM_SHARD)) {
                return Ok(Leaders { hot, system });
            }
            tokio::time::sleep(ASK_EVERY).await;
        }
        Err(format!("the map does not say who leads shard {} or the system shard", self.id).into())
    }
}

impl Leaders {
    /// A node that leads neither.
    pub fn a_follower(self, nodes: &[u64]) -> Result<u64> {
        let leads = |node: u64| node == self.hot || node == self.system;
        nodes
            .iter()
            .copied()
            .find(|node| !leads(*node))
            .ok_or_else(|| "every node leads one of the two".into())
    }
}

/// The leader of a shard, where the map knows it.
fn leader(map: &v1::GetMapReply, id: u64) -> Option<u64> {
    let is_it = |placement: &&v1::Placement| placement.shard.as_ref().is_some_and(|shard| shard.id == id);
    map.shards.iter().find(is_it).map(|placement| placement.leader).filter(|node| *node != 0)
}

/// The numbers of the load's keys that a shard holds. Keys are in the order of their numbers.
fn keys_in(shard: &v1::Shard) -> Range<u64> {
    let is_in = |number: &u64| {
        let key = keyspace::user_key(load::key(*number).as_bytes());
        key >= shard.start && shard.end.as_ref().is_none_or(|end| key < *end)
    };
    match (0..KEYS).find(is_in) {
        Some(first) => first..first + (first..KEYS).take_while(is_in).count() as u64,
        None => 0..0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shard(id: u64, start: &str, end: Option<&str>) -> v1::Shard {
        let internal = |key: &str| keyspace::user_key(key.as_bytes());
        v1::Shard { id, start: internal(start), end: end.map(internal), ..Default::default() }
    }

    #[test]
    fn a_shard_holds_the_keys_of_its_range() {
        let first = shard(1, "", Some(&load::key(70)));
        let last = shard(2, &load::key(70), None);
        assert_eq!((keys_in(&first), keys_in(&last)), (0..70, 70..KEYS));
        assert!(keys_in(&shard(3, "x", None)).is_empty());
        let system = v1::Shard { start: [0].to_vec().into(), end: Some([1].to_vec().into()), ..first };
        assert!(keys_in(&system).is_empty());
    }

    #[test]
    fn the_slow_node_leads_neither_shard() {
        for (leaders, slow) in [((1, 1), 2), ((1, 2), 3), ((2, 1), 3), ((3, 1), 2)] {
            let leaders = Leaders { hot: leaders.0, system: leaders.1 };
            assert_eq!(leaders.a_follower(&[1, 2, 3]).expect("there is one"), slow);
        }
        assert!(Leaders { hot: 1, system: 2 }.a_follower(&[1, 2]).is_err());
    }
}
