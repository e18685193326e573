//! Timestamps of the oracle: milliseconds since 2025-01-01 UTC, and a logical part.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{Error, Result};

/// A moment in the one order of all commits: `milliseconds since 2025-01-01 UTC << 12 | logical`.
///
/// Stays below 2^53 until 2094, so JSON and JavaScript carry it exactly. Zero is before everything.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Timestamp(pub u64);

impl Timestamp {
    /// Bits of the logical part: 4,096 timestamps a millisecond.
    pub const LOGICAL_BITS: u32 = 12;
    /// 2025-01-01T00:00:00Z in Unix milliseconds.
    pub const UNIX_OFFSET_MS: u64 = 1_735_689_600_000;
    /// Before every commit.
    pub const ZERO: Timestamp = Timestamp(0);
    /// The largest timestamp that JSON numbers carry exactly; the oracle never reaches it.
    pub const MAX: Timestamp = Timestamp((1 << 53) - 1);

    /// The first timestamp of a millisecond (counted since 2025-01-01 UTC).
    pub const fn from_ms(ms: u64) -> Self {
        Self(ms << Self::LOGICAL_BITS)
    }

    /// Milliseconds since 2025-01-01 UTC.
    pub const fn ms(self) -> u64 {
        self.0 >> Self::LOGICAL_BITS
    }

    /// Milliseconds since 1970-01-01 UTC.
    pub const fn unix_ms(self) -> u64 {
        self.ms() + Self::UNIX_OFFSET_MS
    }

    /// The logical part, 0 to 4095.
    pub const fn logical(self) -> u64 {
        self.0 & ((1 << Self::LOGICAL_BITS) - 1)
    }

    /// The timestamp `count` places later.
    pub const fn plus(self, count: u64) -> Self {
        Self(self.0 + count)
    }

    /// The timestamp just before this one (zero stays zero).
    pub const fn before(self) -> Self {
        Self(self.0.saturating_sub(1))
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl fmt::Debug for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ts:{}", self.0)
    }
}

impl FromStr for Timestamp {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text.parse() {
            Ok(raw) if raw <= Self::MAX.0 => Ok(Self(raw)),
            _ => Err(Error::invalid(format!(
                "{text:?} is not a timestamp: it must be a whole number from 0 to {}",
                Self::MAX.0
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_round_trip() {
        let ts = Timestamp::from_ms(1234).plus(7);
        assert_eq!((ts.ms(), ts.logical()), (1234, 7));
        assert_eq!(ts.unix_ms(), Timestamp::UNIX_OFFSET_MS + 1234);
        assert_eq!("9007199254740991".parse::<Timestamp>().expect("in range"), Timestamp::MAX);
        assert!("9007199254740992".parse::<Timestamp>().is_err());
    }
}
