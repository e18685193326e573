//! A consumer's place in the changelog, as bytes that it keeps.
//!
//! A transaction is delivered only when all of them up to its timestamp are known in all followed ranges, so a place
//! is one timestamp, whatever the shards are or become. There are no positions by shard in it.
//!
//! | bytes | what |
//! | --- | --- |
//! | 1 | the format, 1 |
//! | 16 | the cluster |
//! | 8 | a digest of the followed ranges |
//! | 1 | the state: 1 is following, 2 is scanning |
//! | 8 | a timestamp: following after it, or scanning at it |
//! | any | only when scanning: the key to go on at, escaped and ended |
//! | 8 | a checksum of all before; every format ends with it, so that damage and a newer format can be told apart |

use std::fmt;
use std::str::FromStr;

use bytes::{BufMut, Bytes, BytesMut};

use crate::codec::ordered;
use crate::types::limits::MAX_KEY_BYTES;
use crate::types::{ClusterId, Error, KeyRange, Result, Timestamp};

const FORMAT: u8 = 1;
const FOLLOWING: u8 = 1;
const SCANNING: u8 = 2;

/// The longest key to go on at: the one just behind the longest key.
const MAX_NEXT_BYTES: usize = MAX_KEY_BYTES + 1;

/// What a consumer is at.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum CursorState {
    /// It has all transactions up to a timestamp, and follows.
    Following {
        /// The next transaction is the first after this timestamp.
        after: Timestamp,
    },
    /// It reads what there was at a timestamp before it follows from there.
    Scanning {
        /// The timestamp that it reads at, and follows after once it has read all.
        at: Timestamp,
        /// It has the followed keys before this one.
        next: Bytes,
    },
}

/// A consumer's place. Its bytes ([`Cursor::encode`]) and its text, which is their hexadecimal form, are opaque: only
/// kvorum reads them. [`Cursor::check`] tells whether it fits what it is used for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Cursor {
    cluster: ClusterId,
    /// The digest of the followed ranges.
    followed: u64,
    state: CursorState,
}

impl Cursor {
    /// A place of a consumer that follows these ranges of a cluster. How the ranges are cut or ordered does not matter.
    pub fn new(cluster: ClusterId, followed: &[KeyRange], state: CursorState) -> Self {
        Self { cluster, followed: digest(followed), state }
    }

    /// Another place of the same consumer. Cheaper than [`new`](Self::new) where ranges are many.
    pub fn at(&self, state: CursorState) -> Self {
        Self { state, ..*self }
    }

    /// What the consumer is at.
    pub fn state(&self) -> &CursorState {
        &self.state
    }

    /// Whether the cursor may be used to follow these ranges of this cluster.
    ///
    /// One that scans must be used with the ranges it was made for: which keys were read already is known of those
    /// only. One that follows is a timestamp, which means the same for any ranges: everything after it.
    ///
    /// # Errors
    ///
    /// `Invalid`, where it belongs to another cluster, or scans and belongs to other ranges.
    pub fn check(&self, cluster: ClusterId, followed: &[KeyRange]) -> Result<()> {
        if self.cluster != cluster {
            return Err(Error::invalid(format!(
                "the cursor belongs to cluster {}, and this is cluster {cluster}, whose timestamps are others: connect \
                 to that cluster, or begin here without a cursor",
                self.cluster
            )));
        }
        match self.state {
            CursorState::Scanning { at, .. } if self.followed != digest(followed) => {
                Err(Error::invalid(format!(
                    "the cursor is in the middle of a scan at {at} of other ranges than the {} given: give the ranges that \
                 it was made with, or begin these without a cursor",
                    followed.len()
                )))
            }
            CursorState::Scanning { .. } | CursorState::Following { .. } => Ok(()),
        }
    }

    /// The cursor as bytes: 42, and when scanning the key besides. They last: every later version reads them.
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(48);
        out.put_u8(FORMAT);
        out.put_u128(self.cluster.0);
        out.put_u64(self.followed);
        match &self.state {
            CursorState::Following { after } => {
                out.put_u8(FOLLOWING);
                out.put_u64(after.0);
            }
            CursorState::Scanning { at, next } => {
                out.put_u8(SCANNING);
                out.put_u64(at.0);
                ordered::put_bytes(&mut out, next);
            }
        }
        let checksum = hash(&out);
        out.put_u64(checksum);
        out.freeze()
    }

    /// The cursor that [`Cursor::encode`] made these bytes of.
    ///
    /// # Errors
    ///
    /// `Invalid`, where they are none, are cut off or changed, or have a format of a newer version.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let damaged = || {
            Error::invalid(format!(
                "the {} bytes given are no cursor, or one that was cut off or changed: give it exactly as it was \
                 received, or begin without a cursor",
                bytes.len()
            ))
        };
        let (body, checksum) = bytes.split_last_chunk::<8>().ok_or_else(damaged)?;
        let (format, mut input) = body.split_first().ok_or_else(damaged)?;
        if hash(body) != u64::from_be_bytes(*checksum) {
            return Err(damaged());
        }
        if *format != FORMAT {
            return Err(Error::invalid(format!(
                "the cursor has format {format}, and this version of kvorum knows format {FORMAT} only: a newer version \
                 made it. Use that version, or begin without a cursor"
            )));
        }
        let cursor = Self::decode_body(&mut input).filter(|_| input.is_empty()).ok_or_else(damaged)?;
        cursor.check_limits()?;
        Ok(cursor)
    }

    fn decode_body(input: &mut &[u8]) -> Option<Self> {
        let cluster = ClusterId(ordered::take_u128(input)?);
        let followed = ordered::take_u64(input)?;
        let (state, rest) = input.split_first()?;
        *input = rest;
        let ts = Timestamp(ordered::take_u64(input)?);
        let state = match *state {
            FOLLOWING => CursorState::Following { after: ts },
            SCANNING => CursorState::Scanning { at: ts, next: ordered::take_bytes(input)? },
            _ => return None,
        };
        Some(Self { cluster, followed, state })
    }

    /// The checksum is no signature: anybody can make a cursor that passes it.
    fn check_limits(&self) -> Result<()> {
        let (ts, next) = match &self.state {
            CursorState::Following { after } => (*after, 0),
            CursorState::Scanning { at, next } => (*at, next.len()),
        };
        if ts > Timestamp::MAX {
            return Err(Error::invalid(format!(
                "the cursor stands at {ts}, past the largest timestamp, {}: no cluster made it. Begin without a cursor",
                Timestamp::MAX
            )));
        }
        if next > MAX_NEXT_BYTES {
            return Err(Error::invalid(format!(
                "the cursor goes on at a key of {next} bytes, and the most is {MAX_NEXT_BYTES}: no cluster made it. Begin \
                 without a cursor"
            )));
        }
        Ok(())
    }
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.encode()))
    }
}

impl FromStr for Cursor {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let bytes = hex::decode(text).map_err(|error| {
            Error::invalid(format!(
                "the {} characters given are no cursor, which is hexadecimal digits ({error}): give it exactly as it \
                 was printed, or begin without a cursor",
                text.chars().count()
            ))
        })?;
        Self::decode(&bytes)
    }
}

/// Tells sets of keys apart, however they are cut into ranges.
fn digest(ranges: &[KeyRange]) -> u64 {
    let mut out = BytesMut::new();
    for range in KeyRange::join(ranges.to_vec()) {
        ordered::put_bytes(&mut out, &range.start);
        out.put_u8(u8::from(range.end.is_some()));
        ordered::put_bytes(&mut out, range.end.as_deref().unwrap_or_default());
    }
    hash(&out)
}

/// FNV-1a. Each step is a bijection of what was before, so no change of a single byte goes unnoticed.
fn hash(bytes: &[u8]) -> u64 {
    const OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0000_0100_0000_01b3;
    bytes.iter().fold(OFFSET, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(PRIME))
}
