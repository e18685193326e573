//! Where a page of a query ended, as opaque bytes that the client hands back for the next one.
//!
//! | bytes | what |
//! | --- | --- |
//! | 1 | format, 1 |
//! | 8, 4 | index id, version |
//! | 8 | digest of the query |
//! | 8 | timestamp at which all pages are read |
//! | 8 | timestamp of users' rows that the index was that of, then |
//! | rest | the bound: the first internal key that was not read, or backwards, the last that was |
//! | 8 | digest of all of the above |

use bytes::{BufMut, Bytes, BytesMut};
use xxhash_rust::xxh3::xxh3_64;

use super::{Definition, Query};
use crate::codec::ordered::take_u64;
use crate::types::limits::MAX_INDEX_KEY_BYTES;
use crate::types::{Error, Result, Timestamp};

const FORMAT: u8 = 1;
const HEADER_BYTES: usize = 1 + 8 + 4 + 8 + 8 + 8;
const DIGEST_BYTES: usize = 8;
/// A key and a zero byte behind it, where a scan goes on.
const MAX_BYTES: usize = HEADER_BYTES + MAX_INDEX_KEY_BYTES + 1 + DIGEST_BYTES;

/// Where a page ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct PageToken {
    pub read_ts: Timestamp,
    pub watermark: Timestamp,
    /// Forwards the first internal key that was not read, backwards the last that was.
    pub bound: Bytes,
}

impl PageToken {
    pub(super) fn encode(&self, definition: &Definition, query: u64) -> Bytes {
        let mut token = BytesMut::with_capacity(HEADER_BYTES + self.bound.len() + DIGEST_BYTES);
        token.put_u8(FORMAT);
        token.put_u64(definition.id());
        token.put_u32(definition.version());
        token.put_u64(query);
        token.put_u64(self.read_ts.0);
        token.put_u64(self.watermark.0);
        token.put_slice(&self.bound);
        let digest = xxh3_64(&token);
        token.put_u64(digest);
        token.freeze()
    }

    /// Reads a token of a query of this index.
    ///
    /// # Errors
    ///
    /// `Invalid` where it is no token, or one of another index, another version or another query.
    pub(super) fn decode(token: &[u8], definition: &Definition, query: u64) -> Result<Self> {
        let wrong = |why: String| {
            Error::invalid(format!("the page token {why}; ask without a token, from the first page on"))
        };
        if token.len() > MAX_BYTES {
            return Err(wrong(format!("has {} bytes: the most is {MAX_BYTES}", token.len())));
        }
        let read = || {
            let (body, mut digest) = token.split_at_checked(token.len().checked_sub(DIGEST_BYTES)?)?;
            let mut input = body.strip_prefix(&[FORMAT])?;
            let id = take_u64(&mut input)?;
            let (version, rest) = input.split_first_chunk::<4>()?;
            input = rest;
            let found = (id, u32::from_be_bytes(*version), take_u64(&mut input)?);
            let read_ts = Timestamp(take_u64(&mut input)?);
            let watermark = Timestamp(take_u64(&mut input)?);
            (take_u64(&mut digest)? == xxh3_64(body))
                .then(|| (found, Self { read_ts, watermark, bound: Bytes::copy_from_slice(input) }))
        };
        let Some(((id, version, found), token)) = read() else {
            return Err(wrong("is damaged, or none that this version gave".into()));
        };
        let name = definition.name();
        if id != definition.id() {
            return Err(wrong(format!("is of another index than {name}")));
        }
        if version != definition.version() {
            let now = definition.version();
            return Err(wrong(format!(
                "is of version {version} of index {name}, which is at version {now} now"
            )));
        }
        if found != query {
            return Err(wrong("is of a query with another filter, order or grouping".into()));
        }
        Ok(token)
    }
}

/// What a token remembers of its query.
pub(super) fn query_digest(query: &Query) -> u64 {
    xxh3_64(query.to_string().as_bytes())
}
