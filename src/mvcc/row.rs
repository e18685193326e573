//! The value of a row in `current` and `history`: a fixed header, then the value's bytes, so that reading
//! slices the value out of the row instead of copying it.
//!
//! | bytes | what |
//! | --- | --- |
//! | 1 | format of the row, 1 |
//! | 1 | flags: 1 tombstone, 2 a lease follows the header |
//! | 8 | commit timestamp |
//! | 8, 16 | id of the request that wrote it: seen, unique |
//! | 8 | create timestamp, 0 in a tombstone |
//! | 8 | version number, 0 in a tombstone |
//! | 8 | lease, only with its flag |
//! | rest | value, empty in a tombstone |

use bytes::{BufMut, Bytes, BytesMut};

use crate::codec::ordered::{take_u64, take_u128};
use crate::types::{Error, Record, RequestId, Result, Timestamp};

const FORMAT: u8 = 1;
const TOMBSTONE: u8 = 1;
const LEASE: u8 = 2;
const HEADER_BYTES: usize = 2 + 8 + 8 + 16 + 8 + 8;

/// One version of a key: a value, or the tombstone of its removal.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Version {
    /// When it was committed.
    pub commit_ts: Timestamp,
    /// The request that wrote it (rule R8).
    pub id: RequestId,
    /// When the key was created: the commit timestamp of the first version since it was last absent.
    /// Zero in a tombstone.
    pub create_ts: Timestamp,
    /// Counts the versions since the key was created, from 1. Zero in a tombstone.
    pub number: u64,
    /// The lease the key lives by. Room in the format only: nothing grants leases yet.
    pub lease: Option<u64>,
    /// The value; `None` in a tombstone.
    pub value: Option<Bytes>,
}

impl Version {
    /// The version that a write of `value` makes over `previous`: the next one of a key that holds
    /// something, else the first.
    pub fn put(previous: Option<&Row>, commit_ts: Timestamp, id: RequestId, value: Bytes) -> Self {
        let (create_ts, number) = match previous.map(|row| &row.version) {
            Some(version) if version.value.is_some() => (version.create_ts, version.number + 1),
            _ => (commit_ts, 1),
        };
        Self { commit_ts, id, create_ts, number, lease: None, value: Some(value) }
    }

    /// The version that removes a key.
    pub fn tombstone(commit_ts: Timestamp, id: RequestId) -> Self {
        Self { commit_ts, id, create_ts: Timestamp::ZERO, number: 0, lease: None, value: None }
    }

    /// What a reader gets; `None` of a tombstone.
    pub fn record(&self) -> Option<Record> {
        self.value.as_ref().map(|value| Record {
            value: value.clone(),
            commit_ts: self.commit_ts,
            create_ts: self.create_ts,
            version: self.number,
        })
    }

    pub(super) fn encode(&self) -> Bytes {
        let value = self.value.as_deref().unwrap_or_default();
        let mut buffer = BytesMut::with_capacity(HEADER_BYTES + 8 + value.len());
        buffer.put_u8(FORMAT);
        let tombstone = if self.value.is_none() { TOMBSTONE } else { 0 };
        buffer.put_u8(tombstone | if self.lease.is_some() { LEASE } else { 0 });
        buffer.put_u64(self.commit_ts.0);
        buffer.put_u64(self.id.seen.0);
        buffer.put_u128(self.id.unique);
        buffer.put_u64(self.create_ts.0);
        buffer.put_u64(self.number);
        if let Some(lease) = self.lease {
            buffer.put_u64(lease);
        }
        buffer.put_slice(value);
        buffer.freeze()
    }
}

/// A version as it is stored.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Row {
    /// What the row says. Its value is a slice of the row.
    pub version: Version,
    /// The bytes of the row, to move it as it is.
    pub(super) raw: Bytes,
}

impl Row {
    /// Reads a row of `current` or `history`.
    ///
    /// # Errors
    ///
    /// `Corrupt` where the format is unknown or the row is malformed.
    pub fn decode(raw: Bytes) -> Result<Self> {
        match raw.first() {
            Some(&FORMAT) => {}
            Some(format) => {
                return Err(Error::corrupt(format!(
                    "a version has row format {format}, but this build reads only format {FORMAT}: start a \
                     build at least as new as the one that wrote it"
                )));
            }
            None => return Err(Error::corrupt("a version is an empty row: it has no format")),
        }
        let version = decode_body(&raw).ok_or_else(|| {
            Error::corrupt(format!(
                "a version's row of {} bytes is malformed: rebuild this replica",
                raw.len()
            ))
        })?;
        Ok(Self { version, raw })
    }
}

/// When the version in a row of `current` or `history` was committed. Reads no more than that.
///
/// # Errors
///
/// `Corrupt` where the format is unknown or the row is malformed.
pub fn commit_ts(raw: &Bytes) -> Result<Timestamp> {
    match &raw[..] {
        [FORMAT, _flags, rest @ ..] if rest.len() >= 8 => {
            let mut rest = rest;
            Ok(take_u64(&mut rest).map(Timestamp).unwrap_or_default())
        }
        _ => Row::decode(raw.clone()).map(|row| row.version.commit_ts),
    }
}

/// Whether a row of the current family says that its key was removed. Reads no more than that.
///
/// # Errors
///
/// `Corrupt` where it is no row.
pub fn is_tombstone(raw: &[u8]) -> Result<bool> {
    tombstone_ts(raw).map(|removed_at| removed_at.is_some())
}

/// When a row's key was removed, if the row is a tombstone. Reads no more than that.
pub(super) fn tombstone_ts(raw: &[u8]) -> Result<Option<Timestamp>> {
    match raw {
        [FORMAT, flags, rest @ ..] if flags & TOMBSTONE == 0 || rest.len() >= 8 => {
            let mut rest = rest;
            Ok(if flags & TOMBSTONE == 0 { None } else { take_u64(&mut rest).map(Timestamp) })
        }
        _ => Row::decode(Bytes::copy_from_slice(raw)).map(|_| None),
    }
}

/// The version in a row of the known format; `None` where it is malformed.
fn decode_body(raw: &Bytes) -> Option<Version> {
    let mut input = &raw[1..];
    let (&flags, rest) = input.split_first()?;
    input = rest;
    if flags & !(TOMBSTONE | LEASE) != 0 {
        return None;
    }
    let commit_ts = Timestamp(take_u64(&mut input)?);
    let id = RequestId { seen: Timestamp(take_u64(&mut input)?), unique: take_u128(&mut input)? };
    let create_ts = Timestamp(take_u64(&mut input)?);
    let number = take_u64(&mut input)?;
    let lease = if flags & LEASE == 0 { None } else { Some(take_u64(&mut input)?) };
    let value = raw.slice(raw.len() - input.len()..);
    let value = match flags & TOMBSTONE {
        0 => Some(value),
        _ if value.is_empty() => None,
        _ => return None,
    };
    Some(Version { commit_ts, id, create_ts, number, lease, value })
}
