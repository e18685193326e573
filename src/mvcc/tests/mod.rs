//! Tests of versions: scripts on both engines, and a plain model.

mod floors;
mod model;
mod scripts;

use bytes::Bytes;

use super::*;
use crate::types::{ErrorKind, RequestId, Timestamp};

fn version(value: Option<&'static str>, lease: Option<u64>) -> Version {
    Version {
        commit_ts: Timestamp(7),
        id: RequestId { seen: Timestamp(5), unique: 1 << 100 },
        create_ts: Timestamp(3),
        number: 2,
        lease,
        value: value.map(Bytes::from),
    }
}

#[test]
fn rows_round_trip_and_slice_their_value() {
    for version in [version(Some("value"), None), version(Some(""), Some(9)), version(None, None)] {
        let raw = version.encode();
        let row = Row::decode(raw.clone()).expect("decodes");
        assert_eq!(row.version, version);
        if let Some(value) = row.version.value {
            assert_eq!(value.as_ptr_range().end, raw.as_ptr_range().end, "a slice of the row, not a copy");
        }
    }
}

#[test]
fn malformed_rows_are_refused() {
    let raw = version(None, Some(9)).encode();
    for cut in 0..raw.len() {
        assert_eq!(Row::decode(raw.slice(..cut)).expect_err("cut").kind, ErrorKind::Corrupt);
    }
    let longer: Bytes = [&raw[..], b"x"].concat().into();
    assert_eq!(Row::decode(longer).expect_err("a tombstone with a value").kind, ErrorKind::Corrupt);
    for (place, byte, says) in [(0, 2, "row format 2"), (1, 4, "malformed")] {
        let mut raw = raw.to_vec();
        raw[place] = byte;
        let error = Row::decode(raw.into()).expect_err("unknown");
        assert!(error.message.contains(says), "{error}");
    }
}
