//! The router's decisions.

use super::*;
use crate::codec::keyspace::{system_range, user_key};
use crate::types::{Epoch, LeaderHint};

fn descriptor(id: u64, start: &str, end: Option<&str>, epoch: u64) -> ShardDescriptor {
    let range = KeyRange::new(
        Bytes::copy_from_slice(start.as_bytes()),
        end.map(|end| Bytes::copy_from_slice(end.as_bytes())),
    );
    ShardDescriptor {
        id: ShardId(id),
        range: user_range(&range),
        epoch: Epoch(epoch),
        replicas: vec![NodeId(1), NodeId(2), NodeId(3)],
    }
}

fn map(shards: &[(ShardDescriptor, u64)]) -> v1::GetMapReply {
    let node = |id| v1::Node { id, grpc_addr: format!("n{id}:1"), ..Default::default() };
    v1::GetMapReply {
        nodes: (1..=3).map(node).collect(),
        shards: shards
            .iter()
            .map(|(shard, leader)| v1::Placement {
                shard: Some(convert::descriptor_to_proto(shard)),
                leader: *leader,
            })
            .collect(),
        ..Default::default()
    }
}

fn three() -> Router {
    let system = ShardDescriptor { range: system_range(), ..descriptor(0, "", None, 1) };
    let shards = [
        (system, 2),
        (descriptor(1, "", Some("h"), 1), 1),
        (descriptor(2, "h", Some("p"), 1), 2),
        (descriptor(3, "p", None, 1), 0),
    ];
    Router::from_map(&map(&shards), &Router::default()).expect("a proper map")
}

fn node(router: &Router, place: Place<'_>) -> u64 {
    router.pick(place, &[], 0).expect("the map says").node.0
}

fn shard(router: &Router, place: Place<'_>) -> u64 {
    router.pick(place, &[], 0).and_then(|target| target.shard).expect("the map says").0.0
}

#[test]
fn keys_and_bounds_find_their_shard() {
    let router = three();
    for (key, id) in [("a", 1), ("gzz", 1), ("h", 2), ("ozz", 2), ("p", 3), ("\u{7f}", 3)] {
        assert_eq!(shard(&router, Place::Key(key.as_bytes())), id, "{key}");
    }
    assert_eq!(shard(&router, Place::Key(b"")), 1);
    assert_eq!(shard(&router, Place::Key(&[0xff; 4])), 3);
    for (bound, id) in
        [(Some("a"), 1), (Some("h"), 1), (Some("h0"), 2), (Some("p"), 2), (Some("z"), 3), (None, 3)]
    {
        assert_eq!(shard(&router, Place::Below(bound.map(str::as_bytes))), id, "below {bound:?}");
    }
    assert_eq!(shard(&router, Place::System), 0);
    assert_eq!(node(&router, Place::System), 2);
}

#[test]
fn the_leader_first_then_the_others_then_all_again() {
    let router = three();
    let place = Place::Key(b"a");
    assert_eq!(node(&router, place), 1);
    let second = router.pick(place, &[NodeId(1)], 0).expect("a replica").node;
    let third = router.pick(place, &[NodeId(1), second], 0).expect("a replica").node;
    assert_eq!([1, second.0, third.0].iter().sum::<u64>(), 6, "all three in turn");
    assert!(router.pick(place, &[NodeId(1), NodeId(2), NodeId(3)], 7).is_some());
    // No leader is known: the salt spreads the first tries.
    let firsts: std::collections::BTreeSet<_> = (0..3)
        .filter_map(|salt| router.pick(Place::Key(b"z"), &[], salt))
        .map(|target| target.node)
        .collect();
    assert_eq!(firsts.len(), 3);
}

#[test]
fn an_empty_map_knows_no_one() {
    let router = Router::default();
    assert_eq!(router.pick(Place::Key(b"a"), &[], 3), None);
    assert_eq!(router.pick(Place::Any, &[], 3), None);
    assert_eq!(router.pick(Place::System, &[], 3), None);
    assert_eq!(router.pick(Place::Below(None), &[], 3), None);
}

#[test]
fn hints_change_leaders_and_bring_new_nodes() {
    let mut router = three();
    let hint = LeaderHint { node: NodeId(9), grpc_addr: "n9:1".into() };
    assert!(router.follow(Some(ShardId(1)), &Moved { shard: None, leader: Some(hint) }));
    let target = router.pick(Place::Key(b"a"), &[], 0).expect("the hint");
    assert_eq!((target.node, &*target.addr), (NodeId(9), "n9:1"));
    router.forget_leader(ShardId(1), NodeId(1));
    assert_eq!(node(&router, Place::Key(b"a")), 9, "only the leader itself is forgotten");
    router.forget_leader(ShardId(1), NodeId(9));
    assert_ne!(node(&router, Place::Key(b"a")), 9);
    assert!(!router.follow(Some(ShardId(1)), &Moved::default()));
}

#[test]
fn a_split_in_a_hint_cuts_the_old_shard() {
    let mut router = three();
    let child = descriptor(7, "k", Some("m"), 2);
    let hint = LeaderHint { node: NodeId(3), grpc_addr: "n3:1".into() };
    assert!(router.follow(Some(ShardId(2)), &Moved { shard: Some(child), leader: Some(hint) }));
    for (key, id) in [("h", 2), ("jz", 2), ("k", 7), ("lz", 7), ("m", 2), ("p", 3)] {
        assert_eq!(shard(&router, Place::Key(key.as_bytes())), id, "{key}");
    }
    assert_eq!(node(&router, Place::Key(b"l")), 3);
    assert_eq!(node(&router, Place::Key(b"n")), 2, "the parent's leader stays");
    // What is left of the parent in two parts is known under its id; its own word joins it again.
    let parent = descriptor(2, "h", Some("k"), 2);
    router.follow(None, &Moved { shard: Some(parent), leader: None });
    assert_eq!(shard(&router, Place::Key(b"j")), 2);
    assert_eq!(router.pick(Place::Key(b"n"), &[], 0), None, "a hole, until the next map");
}

#[test]
fn an_older_hint_changes_no_range() {
    let mut router = three();
    router.follow(None, &Moved { shard: Some(descriptor(2, "h", Some("k"), 5)), leader: None });
    router.follow(None, &Moved { shard: Some(descriptor(2, "h", Some("p"), 4)), leader: None });
    assert_eq!(router.shard_of(b"n"), None);
}

#[test]
fn a_new_map_keeps_what_is_known_better() {
    let mut old = three();
    let hint = LeaderHint { node: NodeId(2), grpc_addr: "n2:1".into() };
    old.follow(Some(ShardId(3)), &Moved { shard: None, leader: Some(hint) });
    old.follow(None, &Moved { shard: Some(descriptor(2, "h", Some("k"), 5)), leader: None });
    let shards = [
        (descriptor(1, "", Some("h"), 1), 3),
        (descriptor(2, "h", Some("p"), 1), 2),
        (descriptor(3, "p", None, 1), 0),
    ];
    let new = Router::from_map(&map(&shards), &old).expect("a proper map");
    assert_eq!(node(&new, Place::Key(b"a")), 3, "the map's leader");
    assert_eq!(node(&new, Place::Key(b"z")), 2, "the map names none: the old one");
    let range = new.shard_of(b"i").expect("known").1;
    assert_eq!(range.end, Some(user_key(b"k")), "the newer epoch");
}

#[test]
fn a_map_that_makes_no_sense_is_refused() {
    let backwards = v1::Shard { id: 1, start: "b".into(), end: Some("a".into()), ..Default::default() };
    let map = v1::GetMapReply {
        shards: vec![v1::Placement { shard: Some(backwards), leader: 1 }],
        ..Default::default()
    };
    assert!(Router::from_map(&map, &Router::default()).is_err());
}
