//! Encodings whose bytes sort like what they encode, so that several parts can follow one another in a
//! key: numbers big-endian, byte strings escaped and ended.

use bytes::{BufMut, Bytes, BytesMut};

const ESCAPE: u8 = 0x00;
const ESCAPED_ZERO: u8 = 0xff;
const END: u8 = 0x01;

/// Appends a byte string: a zero becomes `00 ff`, the end is `00 01`. Sorts like the string itself, also
/// where one string begins with the other.
pub fn put_bytes(buffer: &mut BytesMut, bytes: &[u8]) {
    buffer.reserve(bytes.len() + 2);
    for part in bytes.split_inclusive(|byte| *byte == ESCAPE) {
        buffer.put_slice(part);
        if part.last() == Some(&ESCAPE) {
            buffer.put_u8(ESCAPED_ZERO);
        }
    }
    buffer.put_slice(&[ESCAPE, END]);
}

/// Takes a byte string off the front of `input`; `None` where it is not one that [`put_bytes`] wrote.
pub fn take_bytes(input: &mut &[u8]) -> Option<Bytes> {
    let mut out = BytesMut::with_capacity(input.len());
    loop {
        let zero = input.iter().position(|byte| *byte == ESCAPE)?;
        out.put_slice(&input[..zero]);
        let mark = *input.get(zero + 1)?;
        *input = &input[zero + 2..];
        match mark {
            ESCAPED_ZERO => out.put_u8(ESCAPE),
            END => return Some(out.freeze()),
            _ => return None,
        }
    }
}

/// Takes a big-endian u64 off the front of `input`; `None` where fewer than eight bytes are left.
pub fn take_u64(input: &mut &[u8]) -> Option<u64> {
    let (number, rest) = input.split_first_chunk::<8>()?;
    *input = rest;
    Some(u64::from_be_bytes(*number))
}

/// Takes a big-endian u128 off the front of `input`; `None` where fewer than sixteen bytes are left.
pub fn take_u128(input: &mut &[u8]) -> Option<u128> {
    let (number, rest) = input.split_first_chunk::<16>()?;
    *input = rest;
    Some(u128::from_be_bytes(*number))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn encoded(bytes: &[u8]) -> BytesMut {
        let mut buffer = BytesMut::new();
        put_bytes(&mut buffer, bytes);
        buffer
    }

    proptest! {
        #[test]
        fn byte_strings_round_trip_and_keep_their_order(
            a in proptest::collection::vec(prop_oneof![Just(0u8), Just(1), Just(255), any::<u8>()], 0..12),
            b in proptest::collection::vec(prop_oneof![Just(0u8), Just(1), Just(255), any::<u8>()], 0..12),
        ) {
            let (left, right) = (encoded(&a), encoded(&b));
            prop_assert_eq!(a.cmp(&b), left.cmp(&right));
            let mut input = &left[..];
            prop_assert_eq!(take_bytes(&mut input).expect("well formed"), a);
            prop_assert!(input.is_empty());
        }

        #[test]
        fn malformed_input_is_refused_not_panicked_on(bytes in proptest::collection::vec(any::<u8>(), 0..24)) {
            let mut input = &bytes[..];
            while take_bytes(&mut input).is_some() {}
            let mut input = &bytes[..];
            while take_u64(&mut input).is_some() {}
        }
    }
}
