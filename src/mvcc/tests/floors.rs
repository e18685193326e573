//! Floors: which rows may be dropped where, and what reads under way keep.

use bytes::Bytes;

use crate::changelog::record;
use crate::engine::{DropRules, Family};
use crate::mvcc::{self, Floor, Floors};
use crate::types::{ErrorKind, KeyRange, ShardId, Timestamp};

/// A rule that shows the floor it is asked with: a row whose value is a number may go once that is reached.
fn by_value(_: Family, _: &[u8], value: &[u8], floor: Timestamp) -> bool {
    std::str::from_utf8(value).expect("a number").parse::<u64>().expect("a number") <= floor.0
}

/// Up to which number rows at `key` may be dropped in a compaction that begins now.
fn floor_at(floors: &Floors, family: Family, key: &'static [u8]) -> u64 {
    let Some(rule) = floors.begin(family) else { return 0 };
    // Families but `current` have rows that begin with the encoded key.
    let range = KeyRange { start: Bytes::from_static(key), end: None };
    let row = mvcc::family_range(family, &range).start;
    (1..=100).take_while(|number| rule(&row, number.to_string().as_bytes())).count() as u64
}

/// A floor whose changelog is cut further on than the versions.
fn floor(safe_point: u64) -> Floor {
    Floor { safe_point: Timestamp(safe_point), truncated: Timestamp(safe_point + 5) }
}

#[test]
fn each_shard_has_its_own_floor_in_every_family() {
    let floors = Floors::new(by_value);
    assert!(floors.begin(Family::History).is_none(), "no shard, no rule");
    floors.publish(ShardId(2), KeyRange::new("m", Some("t".into())), floor(20));
    floors.publish(ShardId(1), KeyRange::new("b", Some("m".into())), floor(10));
    for family in [Family::Current, Family::History, Family::Txn] {
        let floor = |key| floor_at(&floors, family, key);
        assert_eq!([floor(b"a"), floor(b"b"), floor(b"lz"), floor(b"m"), floor(b"t")], [0, 10, 10, 20, 0]);
    }
    for family in [Family::Lock, Family::Log, Family::Group] {
        assert!(floors.begin(family).is_none(), "{family:?} is never dropped from");
    }
    floors.publish(ShardId(1), KeyRange::new("b", Some("f".into())), floor(15));
    assert_eq!((floor_at(&floors, Family::Txn, b"c"), floor_at(&floors, Family::Txn, b"g")), (15, 0));
    floors.withdraw(ShardId(1));
    assert_eq!(floor_at(&floors, Family::Txn, b"c"), 0);
}

#[test]
fn a_changelog_is_cut_by_shard_and_not_below_a_read() {
    let floors = Floors::new(by_value);
    floors.publish(ShardId(1), KeyRange::new("b", Some("m".into())), floor(10));
    floors.publish(ShardId(2), KeyRange::new("m", Some("t".into())), floor(20));
    let rule = floors.begin(Family::Changelog).expect("a rule");
    let row = |shard, ts| record::key(ShardId(shard), Timestamp(ts), b"z");
    assert!(rule(&row(1, 3), b"15") && !rule(&row(1, 3), b"16"));
    assert!(rule(&row(2, 3), b"25") && !rule(&row(2, 3), b"26") && !rule(&row(3, 3), b"1"));
    let cut = |ts| floors.truncated().iter().any(|range| range.contains(&row(2, ts)));
    assert!(cut(25) && !cut(26));
    let _read = floors.hold(ShardId(1), Timestamp(22)).expect("holds");
    assert!(cut(22) && !cut(23), "a read keeps what was written after its timestamp");
}

#[test]
fn reads_under_way_keep_what_they_need() {
    let floors = Floors::new(by_value);
    floors.publish(ShardId(1), KeyRange::all(), floor(10));
    let (first, second) = (floors.hold(ShardId(1), Timestamp(10)), floors.hold(ShardId(1), Timestamp(30)));
    let third = floors.hold(ShardId(1), Timestamp(30)).expect("holds");
    floors.publish(ShardId(1), KeyRange::all(), floor(50));
    assert_eq!(floor_at(&floors, Family::History, b"k"), 10);
    drop(first.expect("holds"));
    assert_eq!(floor_at(&floors, Family::History, b"k"), 30);
    drop(second.expect("holds"));
    assert_eq!(floor_at(&floors, Family::History, b"k"), 30, "two reads at the same timestamp");
    // A rule that stands was made when the read was there.
    let rule = floors.begin(Family::Current).expect("a rule");
    drop(third);
    assert!(rule(b"k", b"30") && !rule(b"k", b"31"));
    assert_eq!(floor_at(&floors, Family::History, b"k"), 50);
    let error = floors.hold(ShardId(1), Timestamp(49)).err().expect("too old");
    assert_eq!(error.kind, ErrorKind::TooOld);
    assert!(
        floors.hold(ShardId(7), Timestamp(1)).is_ok(),
        "nothing was dropped from a shard that is not here"
    );
}
