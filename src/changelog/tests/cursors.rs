//! Cursors of all kinds, whole and damaged.

use bytes::{Bytes, BytesMut};
use proptest::prelude::*;

use crate::changelog::{Cursor, CursorState};
use crate::codec::ordered;
use crate::types::{ClusterId, ErrorKind, KeyRange, Timestamp};

fn states() -> impl Strategy<Value = CursorState> {
    let ts = || (0..=Timestamp::MAX.0).prop_map(Timestamp);
    let key = prop_oneof![
        proptest::collection::vec(prop_oneof![Just(0u8), Just(1), Just(255), any::<u8>()], 0..12),
        Just(vec![0; 4097]),
    ];
    prop_oneof![
        ts().prop_map(|after| CursorState::Following { after }),
        (ts(), key).prop_map(|(at, next)| CursorState::Scanning { at, next: next.into() }),
    ]
}

fn cursors() -> impl Strategy<Value = Cursor> {
    let ranges = [vec![], vec![KeyRange::all()], vec![KeyRange::prefix("a"), KeyRange::prefix("c")]];
    (any::<u128>(), proptest::sample::select(ranges.to_vec()), states())
        .prop_map(|(cluster, ranges, state)| Cursor::new(ClusterId(cluster), &ranges, state))
}

proptest! {
    #[test]
    fn cursors_round_trip(cursor in cursors()) {
        prop_assert_eq!(&Cursor::decode(&cursor.encode()).expect("its bytes"), &cursor);
        prop_assert_eq!(&cursor.to_string().parse::<Cursor>().expect("its text"), &cursor);
        prop_assert_eq!(&cursor.to_string().to_uppercase().parse::<Cursor>().expect("its text"), &cursor);
    }

    #[test]
    fn a_cursor_that_is_cut_off_or_changed_is_refused(cursor in cursors(), place: u16, change in 1..=255u8, more: u8) {
        let whole = cursor.encode();
        let mut changed = whole.to_vec();
        changed[usize::from(place) % whole.len()] ^= change;
        let longer = [&whole[..], &[more]].concat();
        for bytes in [&changed[..], &whole[..usize::from(place) % whole.len()], &longer] {
            let error = Cursor::decode(bytes).expect_err("damaged");
            prop_assert_eq!(error.kind, ErrorKind::Invalid);
            prop_assert!(error.message.contains("cut off or changed"), "{}", error);
        }
    }

    #[test]
    fn garbage_is_refused_not_panicked_on(
        bytes in proptest::collection::vec(any::<u8>(), 0..64),
        text in "\\PC{0,40}",
        first in prop_oneof![Just(1u8), any::<u8>()],
        state in prop_oneof![Just(1u8), Just(2), any::<u8>()],
    ) {
        prop_assert_eq!(Cursor::decode(&bytes).expect_err("garbage").kind, ErrorKind::Invalid);
        prop_assert_eq!(text.parse::<Cursor>().expect_err("garbage").kind, ErrorKind::Invalid);
        // What passes the checksum is still not believed: whatever is read means the same when written again.
        let mut body = bytes;
        body.insert(0, first);
        if let Some(byte) = body.get_mut(25) {
            *byte = state;
        }
        match Cursor::decode(&sealed(&body)) {
            Ok(cursor) => prop_assert_eq!(cursor.encode(), sealed(&body)),
            Err(error) => prop_assert_eq!(error.kind, ErrorKind::Invalid),
        }
    }
}

/// A body with the right checksum behind it. Written out here, since the checksum is part of the format.
fn sealed(body: &[u8]) -> Bytes {
    let mut checksum = 0xcbf2_9ce4_8422_2325_u64;
    for byte in body {
        checksum = (checksum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    }
    [body, &checksum.to_be_bytes()].concat().into()
}

fn body(format: u8, state: u8, ts: u64, next: Option<&[u8]>) -> Vec<u8> {
    let mut out = BytesMut::new();
    out.extend_from_slice(&[format]);
    out.extend_from_slice(&[0; 24]);
    out.extend_from_slice(&[state]);
    out.extend_from_slice(&ts.to_be_bytes());
    if let Some(next) = next {
        ordered::put_bytes(&mut out, next);
    }
    out.to_vec()
}

#[test]
fn what_no_cluster_made_is_refused_with_the_reason() {
    let refused = [
        (body(2, 1, 5, None), "format 2"),
        (body(0, 1, 5, None), "format 0"),
        (body(1, 0, 5, None), "cut off or changed"),
        (body(1, 3, 5, None), "cut off or changed"),
        (body(1, 1, 1 << 53, None), "past the largest timestamp"),
        (body(1, 2, 5, Some(&[b'k'; 4098])), "4098 bytes, and the most is 4097"),
        (body(1, 2, 5, None), "cut off or changed"),
        (body(1, 1, 5, Some(b"k")), "cut off or changed"),
    ];
    for (body, reason) in refused {
        let error = Cursor::decode(&sealed(&body)).expect_err(reason);
        assert_eq!(error.kind, ErrorKind::Invalid);
        assert!(error.message.contains(reason), "{error}");
    }
    for right in [body(1, 1, 5, None), body(1, 2, (1 << 53) - 1, Some(&[b'k'; 4097]))] {
        assert_eq!(Cursor::decode(&sealed(&right)).expect("right").encode(), sealed(&right));
    }
}

/// The bytes last, so they are written down; computed apart from this code.
#[test]
fn the_bytes_of_format_1() {
    let cursor = |ranges: &[KeyRange], state| Cursor::new(ClusterId(0xc0ffee), ranges, state).to_string();
    let all = [KeyRange::all()];
    let some = [KeyRange::new("a", Some("c".into())), KeyRange::new("x", None)];
    let (following, scanning) = (
        "0100000000000000000000000000c0ffee44c1a4d0cef62e710100000000000003e8a9d7e571a704b68d",
        "0100000000000000000000000000c0ffee68c11c4b8094e2160200000000000003e86200ff00019c5f9fb27514b1f4",
    );
    assert_eq!(cursor(&all, CursorState::Following { after: Timestamp(1_000) }), following);
    assert_eq!(cursor(&some, CursorState::Scanning { at: Timestamp(1_000), next: "b\0".into() }), scanning);
}

#[test]
fn a_scan_goes_on_with_its_own_ranges_only() {
    let range = |start: &'static str, end: &'static str| KeyRange::new(start, Some(end.into()));
    let cluster = ClusterId(1);
    let made = [range("a", "c"), range("x", "z")];
    let scanning = Cursor::new(cluster, &made, CursorState::Scanning { at: Timestamp(5), next: "b".into() });
    let following = Cursor::new(cluster, &made, CursorState::Following { after: Timestamp(5) });
    // The same keys, cut and ordered otherwise.
    scanning.check(cluster, &[range("x", "z"), range("b", "c"), range("a", "b")]).expect("the same keys");
    let others = [vec![], vec![range("a", "c")], vec![range("a", "z")], vec![KeyRange::all()]];
    for other in others {
        let error = scanning.check(cluster, &other).expect_err("other keys");
        assert_eq!(error.kind, ErrorKind::Invalid);
        assert!(error.message.contains("in the middle of a scan at 5 of other ranges"), "{error}");
        following.check(cluster, &other).expect("a timestamp means the same for any keys");
    }
    for cursor in [scanning, following] {
        let error = cursor.check(ClusterId(2), &made).expect_err("another cluster");
        assert_eq!(error.kind, ErrorKind::Invalid);
        assert!(error.message.contains("belongs to cluster 00000000000000000000000000000001"), "{error}");
    }
}
