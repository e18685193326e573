//! Values that last: one byte of format version, then bincode. The only file that names bincode.

use serde::{Serialize, de::DeserializeOwned};

use crate::types::{Error, Result};

/// The format this build writes. A build reads every format up to its own and refuses newer ones.
pub const FORMAT_VERSION: u8 = 1;

const CONFIG: bincode::config::Configuration = bincode::config::standard();

/// The most bytes that one value may claim to take. Lengths stand in front of what they count, and memory
/// is taken for them before it is known whether so much follows.
const MAX_DECODED_BYTES: usize = 64 * 1024 * 1024;

/// Encodes a value behind the format version.
pub fn encode<T: Serialize + ?Sized>(value: &T) -> Vec<u8> {
    let mut buffer = Vec::with_capacity(64);
    encode_into(value, &mut buffer);
    buffer
}

/// Appends the format version and the encoded value to `buffer`.
pub fn encode_into<T: Serialize + ?Sized>(value: &T, buffer: &mut Vec<u8>) {
    buffer.push(FORMAT_VERSION);
    // Writing to memory can't fail, and every type that is encoded is our own and derives Serialize.
    bincode::serde::encode_into_std_write(value, buffer, CONFIG).expect("our own types encode into memory");
}

/// Decodes what [`encode`] wrote. `what` names it in the error.
///
/// # Errors
///
/// `Corrupt` where the format version is unknown, the bytes are malformed, or some are left over.
pub fn decode<T: DeserializeOwned>(bytes: &[u8], what: &str) -> Result<T> {
    let (value, used) = decode_prefix(bytes, what)?;
    if used != bytes.len() {
        return Err(Error::corrupt(format!(
            "{what} has {} bytes left over after its {used}",
            bytes.len() - used
        )));
    }
    Ok(value)
}

/// Decodes what [`encode`] wrote at the front of `bytes`, and says how many bytes it took. For a head
/// that is followed by bytes as they are.
///
/// # Errors
///
/// `Corrupt` where the format version is unknown or the bytes are malformed.
pub fn decode_prefix<T: DeserializeOwned>(bytes: &[u8], what: &str) -> Result<(T, usize)> {
    let Some((version, body)) = bytes.split_first() else {
        return Err(Error::corrupt(format!("{what} is empty: it has no format version")));
    };
    if *version == 0 || *version > FORMAT_VERSION {
        return Err(Error::corrupt(format!(
            "{what} has format version {version}, but this build reads versions 1 to {FORMAT_VERSION}: \
             start a build at least as new as the one that wrote it"
        )));
    }
    match bincode::serde::decode_from_slice(body, CONFIG.with_limit::<MAX_DECODED_BYTES>()) {
        Ok((value, used)) => Ok((value, used + 1)),
        Err(error) => Err(Error::corrupt(format!("{what} can't be decoded: {error}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trips_and_refuses_what_it_does_not_know() {
        let bytes = encode(&(7u64, "seven"));
        assert_eq!(decode::<(u64, String)>(&bytes, "pair").expect("decodes"), (7, "seven".to_string()));
        let newer = [&[FORMAT_VERSION + 1], &bytes[1..]].concat();
        let error = decode::<(u64, String)>(&newer, "pair").expect_err("newer format");
        assert!(error.message.contains("format version 2"), "{error}");
        for cut in 0..bytes.len() {
            assert!(decode::<(u64, String)>(&bytes[..cut], "pair").is_err(), "cut at {cut}");
        }
        assert!(decode::<(u64, String)>(&[bytes, vec![0]].concat(), "pair").is_err());
        // A length of 2^63 - 1, and nothing behind it.
        let huge = [&[FORMAT_VERSION, 253][..], &(u64::MAX >> 1).to_le_bytes()].concat();
        assert!(decode::<bytes::Bytes>(&huge, "bytes").is_err());
    }
}
