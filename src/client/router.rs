//! Where a request goes: a map and hints in, a decision out. No I/O, no clock, no randomness.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;

use super::balance::Candidate;
use crate::codec::keyspace::{USER, user_range};
use crate::rpc::{convert, v1};
use crate::types::{KeyRange, Moved, NodeId, Result, ShardDescriptor, ShardId};

/// What a request is about.
#[derive(Clone, Copy, Debug)]
pub(super) enum Place<'a> {
    /// The shard of this user's key.
    Key(&'a [u8]),
    /// The shard of the largest user's keys below this bound; `None` is past every user's key.
    Below(Option<&'a [u8]>),
    /// The shard of this key, which has its keyspace byte in front.
    Internal(&'a [u8]),
    /// The system shard.
    System,
    /// Any node.
    Any,
}

/// A node to send a request to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Target {
    /// The node; 0 where only its address is known.
    pub(super) node: NodeId,
    /// Its address.
    pub(super) addr: Arc<str>,
    /// The shard that is meant, and its range; unset for a place that names none.
    pub(super) shard: Option<(ShardId, KeyRange)>,
}

#[derive(Clone, Debug)]
struct Route {
    shard: ShardDescriptor,
    leader: Option<NodeId>,
}

/// The shard map as a client knows it. It may lag: a node that is asked in vain says so.
#[derive(Clone, Debug, Default)]
pub(super) struct Router {
    nodes: BTreeMap<NodeId, Arc<str>>,
    /// The zones of the nodes that are in one.
    zones: BTreeMap<NodeId, Arc<str>>,
    /// In key order; no two overlap.
    routes: Vec<Route>,
}

impl Router {
    /// The router of a map, which keeps what `old` knows better: shards of a newer epoch, and leaders that the
    /// map does not name.
    pub(super) fn from_map(map: &v1::GetMapReply, old: &Router) -> Result<Self> {
        let mut router = Self::default();
        for node in &map.nodes {
            router.nodes.insert(NodeId(node.id), node.grpc_addr.as_str().into());
            if !node.zone.is_empty() {
                router.zones.insert(NodeId(node.id), node.zone.as_str().into());
            }
        }
        for placement in &map.shards {
            let Some(shard) = placement.shard.clone() else { continue };
            let shard = convert::descriptor_from_proto(shard)?;
            let leader = match placement.leader {
                0 => old.route(shard.id).and_then(|route| route.leader),
                node => Some(NodeId(node)),
            };
            router.insert(Route { shard, leader });
        }
        for route in &old.routes {
            if router.route(route.shard.id).is_some_and(|new| new.shard.epoch < route.shard.epoch) {
                router.insert(route.clone());
            }
        }
        Ok(router)
    }

    /// Every node.
    pub(super) fn nodes(&self) -> Vec<NodeId> {
        self.nodes.keys().copied().collect()
    }

    /// The replicas that a read of this place may go to, for a client in `zone`; empty where the map does not say.
    pub(super) fn candidates(&self, place: Place<'_>, zone: &str) -> Vec<Candidate> {
        let Some(route) = self.locate(place) else { return Vec::new() };
        let known = route.shard.replicas.iter().filter(|node| self.nodes.contains_key(node));
        known
            .map(|node| Candidate {
                node: *node,
                is_leader: route.leader == Some(*node),
                is_near: !zone.is_empty() && self.zones.get(node).is_some_and(|other| **other == *zone),
            })
            .collect()
    }

    /// A node as the target of a request about a place.
    pub(super) fn target(&self, place: Place<'_>, node: NodeId) -> Option<Target> {
        let addr = Arc::clone(self.nodes.get(&node)?);
        let shard = self.locate(place).map(|route| (route.shard.id, route.shard.range.clone()));
        Some(Target { node, addr, shard })
    }

    /// Every node's address.
    pub(super) fn addresses(&self) -> impl Iterator<Item = &Arc<str>> {
        self.nodes.values()
    }

    /// The range of the shard that holds a user's key, with its keyspace byte; `None` where the map has a hole.
    pub(super) fn shard_of(&self, key: &[u8]) -> Option<(ShardId, &KeyRange)> {
        self.locate(Place::Key(key)).map(|route| (route.shard.id, &route.shard.range))
    }

    /// Where to send a request: to the shard's leader, or, where that is unknown or in `tried`, to a replica
    /// that is not, or, where all were tried, to any. `salt` chooses among equals. `None` where the map does
    /// not say.
    pub(super) fn pick(&self, place: Place<'_>, tried: &[NodeId], salt: usize) -> Option<Target> {
        let (candidates, leader, shard) = match place {
            Place::Any => (self.nodes.keys().copied().collect(), None, None),
            _ => {
                let route = self.locate(place)?;
                let shard = (route.shard.id, route.shard.range.clone());
                (route.shard.replicas.clone(), route.leader, Some(shard))
            }
        };
        if let Some(leader) = leader.filter(|leader| !tried.contains(leader))
            && let Some(addr) = self.nodes.get(&leader)
        {
            return Some(Target { node: leader, addr: Arc::clone(addr), shard });
        }
        let known: Vec<NodeId> =
            candidates.into_iter().filter(|node: &NodeId| self.nodes.contains_key(node)).collect();
        let fresh: Vec<NodeId> = known.iter().copied().filter(|node| !tried.contains(node)).collect();
        let among = if fresh.is_empty() { &known } else { &fresh };
        let node = *among.get(salt.checked_rem(among.len())?)?;
        Some(Target { node, addr: Arc::clone(self.nodes.get(&node)?), shard })
    }

    /// Takes in what a node said that could not serve a request for `shard`. Answers whether it named a leader
    /// to go to.
    pub(super) fn follow(&mut self, shard: Option<ShardId>, moved: &Moved) -> bool {
        let mut about = shard;
        if let Some(hinted) = &moved.shard {
            about = Some(hinted.id);
            let known = self.route(hinted.id).map(|route| (route.shard.epoch, route.leader));
            if known.is_none_or(|(epoch, _)| epoch < hinted.epoch) {
                let leader = known.and_then(|(_, leader)| leader);
                self.insert(Route { shard: hinted.clone(), leader });
            }
        }
        let Some(hint) = &moved.leader else { return false };
        self.nodes.insert(hint.node, hint.grpc_addr.as_str().into());
        match about.and_then(|about| self.routes.iter_mut().find(|route| route.shard.id == about)) {
            Some(route) => {
                route.leader = Some(hint.node);
                true
            }
            None => false,
        }
    }

    /// Forgets that `node` leads `shard`: it could not be reached, or says that it does not.
    pub(super) fn forget_leader(&mut self, shard: ShardId, node: NodeId) {
        if let Some(route) = self.routes.iter_mut().find(|route| route.shard.id == shard)
            && route.leader == Some(node)
        {
            route.leader = None;
        }
    }

    /// A range of users' keys, cut where shards begin and end as far as the map knows them.
    pub(super) fn pieces(&self, range: &KeyRange) -> Vec<KeyRange> {
        let internal = user_range(range);
        let starts = self.routes.iter().map(|route| &route.shard.range.start);
        let inside = |start: &&Bytes| **start > internal.start && internal.contains(start);
        let mut pieces = Vec::new();
        let mut from = internal.start.clone();
        for start in starts.filter(inside) {
            pieces.push(KeyRange::new(from, Some(start.clone())));
            from = start.clone();
        }
        pieces.push(KeyRange::new(from, internal.end.clone()));
        pieces.iter().map(convert::user_part).collect()
    }

    /// Where the parts of a range begin that are in different shards, as far as the map knows them. The range has its
    /// keyspace byte.
    pub(super) fn starts_in(&self, range: &KeyRange) -> Vec<Bytes> {
        let inside = self.routes.iter().filter_map(|route| route.shard.range.intersect(range));
        inside.map(|part| part.start).collect()
    }

    fn route(&self, shard: ShardId) -> Option<&Route> {
        self.routes.iter().find(|route| route.shard.id == shard)
    }

    fn locate(&self, place: Place<'_>) -> Option<&Route> {
        // The last shard that starts at or before the key (or, for a bound, before it) is the only one that
        // can hold it.
        let count = match place {
            Place::Key(key) => {
                self.routes.partition_point(|route| starts_at_or_before(&route.shard.range, key))
            }
            Place::Below(bound) => {
                let end = user_range(&KeyRange::new(Bytes::new(), bound.map(Bytes::copy_from_slice))).end?;
                self.routes.partition_point(|route| route.shard.range.start < end)
            }
            Place::Internal(key) => self.routes.partition_point(|route| route.shard.range.start <= key),
            Place::System => return self.route(ShardId::SYSTEM),
            Place::Any => return None,
        };
        let route = self.routes.get(count.checked_sub(1)?)?;
        let holds = match (place, &route.shard.range.end) {
            (_, None) => true,
            (Place::Key(key), Some(end)) => !starts_at_or_before(&KeyRange::new(end.clone(), None), key),
            (Place::Internal(key), Some(end)) => *key < **end,
            (Place::Below(bound), Some(end)) => {
                let internal =
                    user_range(&KeyRange::new(Bytes::new(), bound.map(Bytes::copy_from_slice))).end?;
                *end >= internal
            }
            _ => true,
        };
        holds.then_some(route)
    }

    /// Puts a shard in: it replaces what the map had under its id, and cuts off what others had of its range.
    fn insert(&mut self, new: Route) {
        let range = new.shard.range.clone();
        let mut routes = Vec::with_capacity(self.routes.len() + 1);
        for route in self.routes.drain(..).filter(|route| route.shard.id != new.shard.id) {
            if route.shard.range.intersect(&range).is_none() {
                routes.push(route);
                continue;
            }
            let old = route.shard.range.clone();
            let mut parts = vec![KeyRange::new(old.start.clone(), Some(range.start.clone()))];
            parts.extend(range.end.clone().map(|end| KeyRange::new(end, old.end.clone())));
            for part in parts.into_iter().filter_map(|part| part.intersect(&old)) {
                let mut left = route.clone();
                left.shard.range = part;
                routes.push(left);
            }
        }
        routes.push(new);
        routes.sort_by(|a, b| a.shard.range.start.cmp(&b.shard.range.start));
        self.routes = routes;
    }
}

/// Whether a range starts at or before a user's key; spares making the internal key.
fn starts_at_or_before(range: &KeyRange, key: &[u8]) -> bool {
    match range.start.split_first() {
        None => true,
        Some((&USER, rest)) => rest <= key,
        Some((space, _)) => *space < USER,
    }
}

#[cfg(test)]
#[path = "router_tests.rs"]
mod tests;
