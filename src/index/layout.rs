//! The rows of an index: how their keys and values are made of fields, and read back.
//!
//! | row | key, behind the header | value |
//! | --- | --- | --- |
//! | entry of value, unique | fields, user's key | format, covering fields |
//! | entry of min, max | fields, measure, user's key | format, covering fields |
//! | group of unique, count | fields | format, count (8 bytes) |
//! | group of sum | fields | format, count (8 bytes), sum (16 bytes) |
//!
//! The header is keyspace, index id, version, and which of the two it is (`codec::keyspace`). Fields are encoded as
//! [`Datum::encode`] does, each in its order; what is covered, in ascending order.

use bytes::{BufMut, Bytes, BytesMut};

use super::{Datum, Definition, Fixed, Kind, Order};
use crate::codec::keyspace::{INDEX_ENTRY, INDEX_GROUP, index_rows};
use crate::types::{Error, Result};

/// The format of the values of index rows.
const FORMAT: u8 = 1;
/// How messages call a group row.
const GROUP_ROW: &str = "a group row of an index";

/// What lies behind the keys of one kind of rows of an index.
#[derive(Clone, Debug)]
pub(super) struct Layout {
    header: Bytes,
    /// The orders of the fields in the key.
    orders: Vec<Order>,
    index: String,
}

/// The fields in the key of an index row.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct RowKey {
    pub fields: Vec<Datum>,
    /// Where in the key each field ends; before them, where the header does.
    pub ends: Vec<usize>,
}

/// What a group row holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct GroupValue {
    pub count: u64,
    /// Of a sum index.
    pub sum: Option<Fixed>,
}

impl Layout {
    pub(super) fn entries(definition: &Definition) -> Self {
        let orders = definition.entry_columns().map(|field| field.order).collect();
        Self::new(definition, INDEX_ENTRY, orders)
    }

    pub(super) fn groups(definition: &Definition) -> Self {
        let orders = definition.spec().on.iter().map(|field| field.order).collect();
        Self::new(definition, INDEX_GROUP, orders)
    }

    fn new(definition: &Definition, rows: u8, orders: Vec<Order>) -> Self {
        let header = index_rows(definition.id(), definition.version(), rows).freeze();
        Self { header, orders, index: definition.name().to_owned() }
    }

    /// What all keys begin with.
    pub(super) fn header(&self) -> &Bytes {
        &self.header
    }

    /// The order of the n-th field.
    pub(super) fn order(&self, field: usize) -> Order {
        self.orders.get(field).copied().unwrap_or_default()
    }

    /// The key of a row with these fields; `rest` is an entry's user key.
    pub(super) fn key<'d>(&self, fields: impl IntoIterator<Item = &'d Datum>, rest: &[u8]) -> Bytes {
        let mut key = BytesMut::from(&self.header[..]);
        for (datum, order) in fields.into_iter().zip(&self.orders) {
            datum.encode(*order, &mut key);
        }
        key.put_slice(rest);
        key.freeze()
    }

    /// The fields of a key. Behind the last one follows an entry's user key.
    ///
    /// # Errors
    ///
    /// `Corrupt` where it is not a key of such a row.
    pub(super) fn read_key(&self, key: &[u8]) -> Result<RowKey> {
        self.parse(key).ok_or_else(|| {
            Error::corrupt(format!(
                "index {} has a row whose key is malformed, \"{}\": build the index anew",
                self.index,
                key.escape_ascii()
            ))
        })
    }

    fn parse(&self, key: &[u8]) -> Option<RowKey> {
        let mut input = key.strip_prefix(&self.header[..])?;
        let (mut fields, mut ends) = (Vec::with_capacity(self.orders.len()), vec![self.header.len()]);
        for order in &self.orders {
            fields.push(Datum::take(*order, &mut input)?);
            ends.push(key.len() - input.len());
        }
        Some(RowKey { fields, ends })
    }
}

impl RowKey {
    /// The end of the key's first `fields` fields.
    pub(super) fn end_of(&self, fields: usize) -> usize {
        self.ends.get(fields).or(self.ends.last()).copied().unwrap_or_default()
    }
}

/// The value of an entry.
pub(super) fn entry_value(covering: &[Datum]) -> Bytes {
    let mut value = BytesMut::new();
    value.put_u8(FORMAT);
    for datum in covering {
        datum.encode(Order::Asc, &mut value);
    }
    value.freeze()
}

/// The covering fields in the value of an entry.
///
/// # Errors
///
/// `Corrupt` where it is not the value of an entry of the index, or of an unknown format.
pub(super) fn read_entry_value(definition: &Definition, value: &[u8]) -> Result<Vec<Datum>> {
    let what = format!("an entry of index {}", definition.name());
    let mut input = checked_format(&what, value)?;
    let covering: Option<Vec<_>> =
        definition.spec().covering.iter().map(|_| Datum::take(Order::Asc, &mut input)).collect();
    covering.filter(|_| input.is_empty()).ok_or_else(|| malformed(&what, value.len()))
}

impl GroupValue {
    /// The most bytes that one takes: format, count, sum.
    pub(super) const MAX_BYTES: usize = 1 + 8 + 16;

    pub(super) fn encode(&self) -> Bytes {
        let mut value = BytesMut::with_capacity(1 + 8 + 16);
        value.put_u8(FORMAT);
        value.put_u64(self.count);
        if let Some(sum) = self.sum {
            value.put_i128(sum.0);
        }
        value.freeze()
    }

    /// # Errors
    ///
    /// `Corrupt` where it is not the value of a group, of an unknown format, or has no sum where one is expected.
    pub(super) fn decode(value: &[u8], has_sum: bool) -> Result<Self> {
        let body = checked_format(GROUP_ROW, value)?;
        let read = || {
            let (count, sum) = body.split_first_chunk::<8>()?;
            let sum = match has_sum {
                true => Some(Fixed(i128::from_be_bytes(sum.try_into().ok()?))),
                false if sum.is_empty() => None,
                false => return None,
            };
            let count = u64::from_be_bytes(*count);
            // A group that nobody is in has no row.
            (count > 0).then_some(Self { count, sum })
        };
        read().ok_or_else(|| malformed(GROUP_ROW, value.len()))
    }
}

/// Whether group rows of the kind hold a sum.
pub(super) fn has_sum(kind: Kind) -> bool {
    kind == Kind::Sum
}

fn checked_format<'v>(what: &str, value: &'v [u8]) -> Result<&'v [u8]> {
    match value.split_first() {
        Some((&FORMAT, body)) => Ok(body),
        Some((format, _)) => Err(Error::corrupt(format!(
            "{what} has format {format}, but this build reads only format {FORMAT}: start a build at least as new as \
             the one that wrote it"
        ))),
        None => Err(Error::corrupt(format!("{what} is empty, without a format: build the index anew"))),
    }
}

fn malformed(what: &str, bytes: usize) -> Error {
    Error::corrupt(format!("{what} is malformed in its {bytes} bytes: build the index anew"))
}
