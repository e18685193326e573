//! Sums that do not depend on the order of adding: fixed point, 128 bits, in units of 10^-9.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Number;

/// Decimal digits after the point.
const DIGITS: u32 = 9;
/// Units in 1.
const ONE: i128 = 10_i128.pow(DIGITS);
/// The largest absolute value of what is added, in units: 10^18. A sum has room for 10^11 of them.
const MAX_UNITS: i128 = 10_i128.pow(18) * ONE;

/// A decimal number with at most nine digits after the point, exactly.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Fixed(
    /// The number, in units of 10^-9.
    pub i128,
);

impl Fixed {
    /// Nothing.
    pub const ZERO: Self = Self(0);

    /// The number exactly as JSON writes it: of an f64, its shortest decimal form. `None` where that has more than
    /// nine digits after the point, or is beyond 10^18 either way.
    pub fn from_number(number: Number) -> Option<Self> {
        let units = match number.as_integer() {
            Some(integer) => integer.checked_mul(ONE)?,
            None => units_of(number.as_f64())?,
        };
        (units.abs() <= MAX_UNITS).then_some(Self(units))
    }

    /// The sum; `None` where it does not fit in 128 bits.
    pub fn checked_add(self, other: Self) -> Option<Self> {
        self.0.checked_add(other.0).map(Self)
    }

    /// As JSON: a number where JSON's numbers hold it exactly, else a string with all digits.
    pub fn to_json(self) -> Value {
        if self.0 % ONE == 0
            && let Some(number) = Number::from_integer(self.0 / ONE)
        {
            return number.to_json();
        }
        let text = self.to_string();
        let number = text.parse().ok().and_then(Number::from_f64);
        match number {
            Some(number) if Self::from_number(number) == Some(self) => number.to_json(),
            _ => Value::from(text),
        }
    }
}

impl fmt::Display for Fixed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = self.0.unsigned_abs();
        let (whole, part) = (units / ONE.unsigned_abs(), units % ONE.unsigned_abs());
        let sign = if self.0 < 0 { "-" } else { "" };
        if part == 0 {
            return write!(f, "{sign}{whole}");
        }
        let part = format!("{part:09}");
        write!(f, "{sign}{whole}.{}", part.trim_end_matches('0'))
    }
}

/// The shortest decimal form of a finite number, in units; `None` where it is no whole number of them, or too many.
fn units_of(number: f64) -> Option<i128> {
    // `{:e}` writes the fewest digits that read back as the same number: `-1.25e-3`.
    let text = format!("{number:e}");
    let (mantissa, exponent) = text.split_once('e')?;
    let (whole, part) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let digits: i128 = format!("{whole}{part}").parse().ok()?;
    let exponent = exponent.parse::<i32>().ok()? - i32::try_from(part.len()).ok()?;
    let scale = u32::try_from(exponent + i32::try_from(DIGITS).ok()?).ok()?;
    digits.checked_mul(10_i128.checked_pow(scale)?)
}
