//! Numbers of JSON in one exact order: integers of 64 bits with and without sign, and floating point numbers.

use std::cmp::Ordering;

use bytes::{BufMut, BytesMut};
use serde_json::Value;

/// Bytes of an encoded number.
const ENCODED_BYTES: usize = 8 + 2;
const SIGN: u64 = 1 << 63;
/// The integers that JSON values hold exactly.
const INTEGERS: std::ops::RangeInclusive<i128> = i64::MIN as i128..=u64::MAX as i128;

/// A number that JSON can hold: any integer from -2^63 to 2^64-1, or any finite f64. Equal where the numbers are:
/// 1 and 1.0, 0 and -0.
///
/// It is kept as the nearest f64, and for an integer how far it is from that one: never more than 1024. Rounding
/// keeps the order, so comparing the two one after the other is exact.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Number {
    /// Finite, never -0.
    rounded: f64,
    distance: i16,
}

impl Eq for Number {}

impl PartialOrd for Number {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Number {
    fn cmp(&self, other: &Self) -> Ordering {
        self.rounded.total_cmp(&other.rounded).then(self.distance.cmp(&other.distance))
    }
}

impl Number {
    /// A floating point number; `None` where it is not finite.
    pub fn from_f64(number: f64) -> Option<Self> {
        // Adding zero makes 0 of -0, and nothing else.
        number.is_finite().then_some(Self { rounded: number + 0.0, distance: 0 })
    }

    /// An integer; `None` outside -2^63..=2^64-1.
    pub fn from_integer(integer: i128) -> Option<Self> {
        if !INTEGERS.contains(&integer) {
            return None;
        }
        let rounded = integer as f64;
        let distance = i16::try_from(integer - rounded as i128).ok()?;
        Some(Self { rounded, distance })
    }

    /// A number of JSON.
    pub fn from_json(number: &serde_json::Number) -> Option<Self> {
        match (number.as_i64(), number.as_u64()) {
            (Some(integer), _) => Self::from_integer(integer.into()),
            (_, Some(integer)) => Self::from_integer(integer.into()),
            _ => Self::from_f64(number.as_f64()?),
        }
    }

    /// The integer that it is, where it is one from -2^63 to 2^64-1.
    pub fn as_integer(&self) -> Option<i128> {
        if self.rounded.fract() != 0.0 {
            return None;
        }
        // Saturates far outside, and so stays outside.
        Some((self.rounded as i128).saturating_add(self.distance.into())).filter(|n| INTEGERS.contains(n))
    }

    /// The nearest floating point number.
    pub fn as_f64(&self) -> f64 {
        self.rounded
    }

    /// The number as JSON: an integer where it is one.
    pub fn to_json(self) -> Value {
        match self.as_integer() {
            Some(integer) => match i64::try_from(integer) {
                Ok(integer) => Value::from(integer),
                Err(_) => u64::try_from(integer).map_or(Value::Null, Value::from),
            },
            None => Value::from(self.rounded),
        }
    }

    /// Appends ten bytes that sort like the number.
    pub(super) fn encode(&self, buffer: &mut BytesMut) {
        let bits = self.rounded.to_bits();
        buffer.put_u64(if bits & SIGN == 0 { bits | SIGN } else { !bits });
        buffer.put_u16((self.distance as u16) ^ 0x8000);
    }

    /// Takes a number off the front of `input`; `None` where it is not one that `encode` wrote.
    pub(super) fn take(input: &mut &[u8]) -> Option<Self> {
        let (bytes, rest) = input.split_first_chunk::<ENCODED_BYTES>()?;
        let (rounded, distance) = bytes.split_first_chunk::<8>()?;
        let bits = u64::from_be_bytes(*rounded);
        let rounded = f64::from_bits(if bits & SIGN == 0 { !bits } else { bits & !SIGN });
        let distance = (u16::from_be_bytes(distance.try_into().ok()?) ^ 0x8000) as i16;
        let number = Self { rounded, distance };
        let canonical = match number.as_integer() {
            Some(integer) => Self::from_integer(integer)?,
            None => Self::from_f64(rounded)?,
        };
        *input = rest;
        // Bits tell -0 from 0.
        (canonical.rounded.to_bits() == rounded.to_bits() && canonical.distance == distance).then_some(number)
    }
}
