//! One value of a field, and bytes that sort like it, upwards or downwards.

use std::fmt;

use bytes::{BufMut, BytesMut};
use serde_json::Value;

use super::{DatumType, Number, Order};
use crate::codec::ordered;
use crate::types::KeyRange;

// What an encoded value begins with. In descending order every bit is turned, so none may be 0x00 or 0xff, which
// would leave no room for the end of a range.
const NULL: u8 = 0x10;
const FALSE: u8 = 0x20;
const TRUE: u8 = 0x21;
const NUMBER: u8 = 0x30;
const STRING: u8 = 0x40;

/// The most characters of a string that a message shows.
const SHOWN_CHARS: usize = 40;

/// A value that an index can order by: null < false < true < numbers < strings. Strings sort by their bytes.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Datum {
    /// JSON null, or what is missing where the definition says so.
    Null,
    /// A truth value.
    Bool(bool),
    /// A number, compared exactly.
    Number(Number),
    /// A string.
    String(String),
}

impl Datum {
    /// A value of JSON; `None` of arrays and objects, which no index orders by.
    pub fn from_json(value: &Value) -> Option<Self> {
        Some(match value {
            Value::Null => Self::Null,
            Value::Bool(value) => Self::Bool(*value),
            Value::Number(number) => Self::Number(Number::from_json(number)?),
            Value::String(text) => Self::String(text.clone()),
            Value::Array(_) | Value::Object(_) => return None,
        })
    }

    /// The value as JSON.
    pub fn to_json(&self) -> Value {
        match self {
            Self::Null => Value::Null,
            Self::Bool(value) => Value::from(*value),
            Self::Number(number) => number.to_json(),
            Self::String(text) => Value::from(text.as_str()),
        }
    }

    /// The value's type; null is of every type.
    pub fn datum_type(&self) -> Option<DatumType> {
        match self {
            Self::Null => None,
            Self::Bool(_) => Some(DatumType::Bool),
            Self::Number(_) => Some(DatumType::Number),
            Self::String(_) => Some(DatumType::String),
        }
    }

    /// Appends bytes that sort like the value, and that no other value's bytes begin with.
    pub fn encode(&self, order: Order, buffer: &mut BytesMut) {
        let start = buffer.len();
        match self {
            Self::Null => buffer.put_u8(NULL),
            Self::Bool(false) => buffer.put_u8(FALSE),
            Self::Bool(true) => buffer.put_u8(TRUE),
            Self::Number(number) => {
                buffer.put_u8(NUMBER);
                number.encode(buffer);
            }
            Self::String(text) => {
                buffer.put_u8(STRING);
                ordered::put_bytes(buffer, text.as_bytes());
            }
        }
        turn(order, &mut buffer[start..]);
    }

    /// Takes a value off the front of `input`; `None` where it is not one that [`Self::encode`] wrote in this order.
    pub fn take(order: Order, input: &mut &[u8]) -> Option<Self> {
        match order {
            Order::Asc => Self::take_ascending(input),
            Order::Desc => {
                let mut turned = input.to_vec();
                turn(order, &mut turned);
                let mut rest = turned.as_slice();
                let datum = Self::take_ascending(&mut rest)?;
                *input = &input[turned.len() - rest.len()..];
                Some(datum)
            }
        }
    }

    fn take_ascending(input: &mut &[u8]) -> Option<Self> {
        let (&tag, mut rest) = input.split_first()?;
        let datum = match tag {
            NULL => Self::Null,
            FALSE => Self::Bool(false),
            TRUE => Self::Bool(true),
            NUMBER => Self::Number(Number::take(&mut rest)?),
            STRING => Self::String(String::from_utf8(ordered::take_bytes(&mut rest)?.to_vec()).ok()?),
            _ => return None,
        };
        *input = rest;
        Some(datum)
    }
}

impl fmt::Display for Datum {
    /// As JSON.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.to_json())
    }
}

/// What a message says of a value that was found.
pub(super) fn describe(value: &Value) -> String {
    match value {
        Value::Null => "null".into(),
        Value::Bool(value) => format!("the bool {value}"),
        Value::Number(number) => format!("the number {number}"),
        Value::String(text) if text.chars().count() <= SHOWN_CHARS => format!("the string {text:?}"),
        Value::String(text) => {
            let shown: String = text.chars().take(SHOWN_CHARS).collect();
            format!("a string of {} bytes that begins with {shown:?}", text.len())
        }
        Value::Array(items) => format!("an array of {} items", items.len()),
        Value::Object(members) => format!("an object of {} members", members.len()),
    }
}

/// Turns every bit where the order is descending.
fn turn(order: Order, bytes: &mut [u8]) {
    if order == Order::Desc {
        bytes.iter_mut().for_each(|byte| *byte = !*byte);
    }
}

/// The keys that begin with `base` and go on with a value of this type.
pub(super) fn type_range(base: &[u8], order: Order, datum_type: DatumType) -> KeyRange {
    let (mut first, mut last) = match datum_type {
        DatumType::Bool => ([FALSE], [TRUE]),
        DatumType::Number => ([NUMBER], [NUMBER]),
        DatumType::String => ([STRING], [STRING]),
    };
    turn(order, &mut first);
    turn(order, &mut last);
    let (first, last) = (first.min(last), first.max(last));
    KeyRange { start: [base, &first].concat().into(), end: KeyRange::prefix([base, &last].concat()).end }
}

/// The keys that begin with `base` and go on with a string that begins with `prefix`.
pub(super) fn string_prefix_range(base: &[u8], order: Order, prefix: &str) -> KeyRange {
    let mut buffer = BytesMut::from(base);
    buffer.put_u8(STRING);
    ordered::put_bytes(&mut buffer, prefix.as_bytes());
    // Without the two bytes that end a string.
    buffer.truncate(buffer.len() - 2);
    turn(order, &mut buffer[base.len()..]);
    KeyRange::prefix(buffer)
}
