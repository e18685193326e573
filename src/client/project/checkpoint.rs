//! What a projection keeps of itself, beside what it writes: how far it is, and which run of it may go on.
//!
//! | bytes | what |
//! | --- | --- |
//! | 1 | the format, 1 |
//! | 16 | the run that owns the projection |
//! | 1 | the state: 1 follows or scans, 2 clears the read model |
//! | any | only in state 1: the cursor, which ends with a checksum of itself |

use bytes::{BufMut, Bytes, BytesMut};

use crate::changelog::{Cursor, CursorState};
use crate::rpc::convert;
use crate::types::{Error, Result, Timestamp};

const FORMAT: u8 = 1;
const AT: u8 = 1;
const CLEARING: u8 = 2;

/// How far a projection is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Place {
    /// Everything before the cursor is in the read model, once.
    At(Cursor),
    /// What an earlier beginning has left is being removed.
    Clearing,
}

impl Place {
    /// Everything up to here is in the read model; zero where that can't be said yet.
    pub(super) fn watermark(&self) -> Timestamp {
        match self {
            Self::At(cursor) => match cursor.state() {
                CursorState::Following { after } => *after,
                CursorState::Scanning { .. } => Timestamp::ZERO,
            },
            Self::Clearing => Timestamp::ZERO,
        }
    }

    /// Whether the scan at the beginning is not over.
    pub(super) fn is_scanning(&self) -> bool {
        matches!(self, Self::At(cursor) if matches!(cursor.state(), CursorState::Scanning { .. }))
    }
}

/// A checkpoint.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Checkpoint {
    /// Drawn by each start of a projection: the last one to start owns it.
    pub(super) run: u128,
    pub(super) place: Place,
}

impl Checkpoint {
    pub(super) fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(64);
        out.put_u8(FORMAT);
        out.put_u128(self.run);
        match &self.place {
            Place::At(cursor) => {
                out.put_u8(AT);
                out.put_slice(&cursor.encode());
            }
            Place::Clearing => out.put_u8(CLEARING),
        }
        out.freeze()
    }

    /// The checkpoint that `key` holds; `Invalid` where that is none.
    pub(super) fn decode(key: &[u8], bytes: &[u8]) -> Result<Self> {
        let parts = || {
            let (format, rest) = bytes.split_first()?;
            let (run, rest) = rest.split_first_chunk::<16>()?;
            let (state, rest) = rest.split_first()?;
            (*format == FORMAT).then_some((u128::from_be_bytes(*run), *state, rest))
        };
        let place = match parts() {
            Some((run, AT, rest)) => Cursor::decode(rest).ok().map(|cursor| (run, Place::At(cursor))),
            Some((run, CLEARING, [])) => Some((run, Place::Clearing)),
            _ => None,
        };
        let (run, place) = place.ok_or_else(|| {
            Error::invalid(format!(
                "the key {} holds {} bytes that are no checkpoint this version can read: something else has written it, \
                 or a newer version. Choose another key with `checkpoint`, or remove that one and have the projection \
                 `restart`",
                convert::printable(key),
                bytes.len()
            ))
        })?;
        Ok(Self { run, place })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{ClusterId, ErrorKind, KeyRange};

    fn at(state: CursorState) -> Place {
        Place::At(Cursor::new(ClusterId(7), &[KeyRange::all()], state))
    }

    #[test]
    fn a_checkpoint_is_read_as_it_was_written_and_nothing_else_is() {
        let following = at(CursorState::Following { after: Timestamp(9) });
        let scanning = at(CursorState::Scanning { at: Timestamp(9), next: "k".into() });
        assert_eq!((following.watermark(), scanning.watermark()), (Timestamp(9), Timestamp::ZERO));
        assert!(scanning.is_scanning() && !following.is_scanning() && !Place::Clearing.is_scanning());
        for place in [following, scanning, Place::Clearing] {
            let checkpoint = Checkpoint { run: 3, place };
            let bytes = checkpoint.encode();
            assert_eq!(Checkpoint::decode(b"k", &bytes), Ok(checkpoint));
            for cut in 0..bytes.len() {
                let error = Checkpoint::decode(b"k", &bytes[..cut]).expect_err("cut off");
                assert!(error.kind == ErrorKind::Invalid && error.message.contains("\"k\""), "{error}");
            }
            let mut newer = bytes.to_vec();
            newer[0] = 2;
            assert!(Checkpoint::decode(b"k", &newer).is_err());
            assert!(Checkpoint::decode(b"k", &[&bytes[..], b"x"].concat()).is_err());
        }
        assert!(Checkpoint::decode(b"k", b"").is_err());
    }
}
