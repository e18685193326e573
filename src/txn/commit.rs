//! What a client sends to commit a transaction: checked, and put into the one order that every retry gives it.

use bytes::Bytes;

use crate::codec::keyspace::INDEX_HEADER_BYTES;
use crate::types::{Error, KeyRange, Result, Timestamp, TxnId, TxnPart, TxnWrite, limits};

/// The longest internal key: a user's key and its keyspace byte.
const MAX_INTERNAL_KEY_BYTES: usize = limits::MAX_KEY_BYTES + 1;

/// How much one transaction may be.
struct Most {
    keys: usize,
    key_bytes: usize,
    bytes: usize,
}

/// One of users.
const USERS: Most =
    Most { keys: limits::MAX_TXN_KEYS, key_bytes: MAX_INTERNAL_KEY_BYTES, bytes: limits::MAX_TXN_BYTES };

/// One of the cluster's own. A dead letter of an index has a user's key behind the index's.
const OWN: Most = Most {
    keys: limits::MAX_OWN_TXN_KEYS,
    key_bytes: INDEX_HEADER_BYTES + limits::MAX_KEY_BYTES,
    bytes: limits::MAX_OWN_TXN_BYTES,
};

/// A transaction that is to be committed: what it read at its start timestamp, and what it writes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TxnCommit {
    /// Names it. `id.seen` is the start timestamp.
    pub id: TxnId,
    /// All keys and ranges carry their keyspace byte in front.
    pub part: TxnPart,
}

/// How a transaction over several shards is committed. The content alone decides, never the shard map, so
/// that a retry takes the same path.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Path {
    /// One round: committed once every prepare is applied. Whoever meets a lock can find that out by asking
    /// for all the keys that the STAGING record lists.
    Parallel,
    /// Two rounds: committed by a decision at the primary. For commits that read ranges, or touch more keys
    /// than anybody should have to ask for.
    Classic,
}

impl TxnCommit {
    /// When it began to read.
    pub fn start_ts(&self) -> Timestamp {
        self.id.seen
    }

    /// Says whether it may be committed at all: its limits, something to write, no key twice in the same
    /// list, no empty or reversed range.
    ///
    /// # Errors
    ///
    /// `Invalid`, with what is wrong and what to do.
    pub fn check(&self) -> Result<()> {
        self.check_within(&USERS)
    }

    fn check_within(&self, most: &Most) -> Result<()> {
        let TxnPart { reads, ranges, writes } = &self.part;
        if writes.is_empty() {
            return Err(Error::invalid(
                "the commit writes nothing: a transaction that only reads is over once it has read, and needs \
                 no commit",
            ));
        }
        if reads.len() + writes.len() > most.keys {
            return Err(Error::invalid(format!(
                "the transaction reads {} keys and writes {}, over the limit of {} together: split it up, or \
                 read ranges in place of single keys",
                reads.len(),
                writes.len(),
                most.keys
            )));
        }
        if ranges.len() > limits::MAX_TXN_RANGES {
            return Err(Error::invalid(format!(
                "the transaction reads {} ranges, over the limit of {}: read fewer and larger ones",
                ranges.len(),
                limits::MAX_TXN_RANGES
            )));
        }
        reads
            .iter()
            .chain(writes.iter().map(TxnWrite::key))
            .try_for_each(|key| check_key(key, most.key_bytes))?;
        writes.iter().try_for_each(check_value)?;
        ranges.iter().try_for_each(check_range)?;
        check_size(&self.part, most.bytes)?;
        check_once("read", reads.iter())?;
        check_once("written", writes.iter().map(TxnWrite::key))
    }

    /// Checks it, then puts reads, ranges and writes into the order of keys and merges ranges that overlap or
    /// touch. The same content gives the same commands whatever its order was.
    ///
    /// # Errors
    ///
    /// Those of [`check`](Self::check).
    pub fn normalise(self) -> Result<Self> {
        self.check()?;
        Ok(self.in_order())
    }

    /// The same, for a transaction of the cluster's own, which may be larger.
    ///
    /// # Errors
    ///
    /// Those of [`check`](Self::check).
    pub fn normalise_own(self) -> Result<Self> {
        self.check_within(&OWN)?;
        Ok(self.in_order())
    }

    fn in_order(mut self) -> Self {
        self.part.reads.sort_unstable();
        self.part.writes.sort_unstable_by(|a, b| a.key().cmp(b.key()));
        self.part.ranges = merge(std::mem::take(&mut self.part.ranges));
        self
    }

    /// The primary key, where the record is: the smallest that is written. `None` where nothing is written,
    /// which [`check`](Self::check) refuses.
    pub fn primary(&self) -> Option<&Bytes> {
        self.part.writes.iter().map(TxnWrite::key).min()
    }

    /// Which path it takes where it touches several shards.
    pub fn path(&self) -> Path {
        let keys = self.part.keys();
        let few = keys.len() <= limits::MAX_LISTED_KEYS
            && keys.iter().map(Bytes::len).sum::<usize>() <= limits::MAX_LISTED_BYTES;
        if self.part.ranges.is_empty() && few { Path::Parallel } else { Path::Classic }
    }
}

fn check_key(key: &[u8], most_bytes: usize) -> Result<()> {
    if key.is_empty() {
        return Err(Error::invalid("the transaction names a key without a keyspace byte: put one in front"));
    }
    if key.len() > most_bytes {
        return Err(Error::invalid(format!(
            "the transaction names the key {} of {} bytes, over the limit of {most_bytes} with its \
             keyspace byte: shorten it",
            beginning(key),
            key.len()
        )));
    }
    Ok(())
}

fn check_value(write: &TxnWrite) -> Result<()> {
    match write {
        TxnWrite::Put { key, value } if value.len() > limits::MAX_VALUE_BYTES => {
            Err(Error::invalid(format!(
                "the transaction writes a value of {} bytes to the key {}, over the limit of {}: split it over \
             several keys",
                value.len(),
                beginning(key),
                limits::MAX_VALUE_BYTES
            )))
        }
        _ => Ok(()),
    }
}

fn check_range(range: &KeyRange) -> Result<()> {
    // A bound may be one byte longer than a key: the end of a range just past the longest key.
    let longest = range.start.len().max(range.end.as_ref().map_or(0, Bytes::len));
    if longest > MAX_INTERNAL_KEY_BYTES + 1 {
        return Err(Error::invalid(format!(
            "a range that the transaction read has a bound of {longest} bytes, over the limit of {}: no key is \
             that long; shorten it",
            MAX_INTERNAL_KEY_BYTES + 1
        )));
    }
    if range.start.is_empty() {
        return Err(Error::invalid(
            "a range that the transaction read begins without a keyspace byte: put one in front",
        ));
    }
    if let Some(end) = range.end.as_ref().filter(|end| **end <= range.start) {
        return Err(Error::invalid(format!(
            "a range that the transaction read is {}: it begins at {} and ends before {}; leave it out or mend it",
            if *end == range.start { "empty" } else { "reversed" },
            beginning(&range.start),
            beginning(end)
        )));
    }
    Ok(())
}

fn check_size(part: &TxnPart, most_bytes: usize) -> Result<()> {
    let size_bytes = part.size_bytes();
    if size_bytes > most_bytes {
        return Err(Error::invalid(format!(
            "the transaction has {size_bytes} bytes of keys and values, over the limit of {most_bytes}: split it up"
        )));
    }
    Ok(())
}

fn check_once<'k>(how: &str, keys: impl Iterator<Item = &'k Bytes>) -> Result<()> {
    let mut keys: Vec<&Bytes> = keys.collect();
    keys.sort_unstable();
    match keys.windows(2).find(|pair| pair[0] == pair[1]) {
        None => Ok(()),
        Some(pair) => Err(Error::invalid(format!(
            "the key {} is {how} twice in the same transaction: name it once{}",
            beginning(pair[0]),
            if how == "written" { ", with what it shall hold in the end" } else { "" }
        ))),
    }
}

/// The same keys as ranges in order that neither overlap nor touch.
pub(super) fn merge(mut ranges: Vec<KeyRange>) -> Vec<KeyRange> {
    ranges.sort_unstable_by(|a, b| a.start.cmp(&b.start));
    let mut merged: Vec<KeyRange> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match merged.last_mut() {
            Some(last) if last.end.as_ref().is_none_or(|end| range.start <= *end) => {
                last.end = match (last.end.take(), range.end) {
                    (Some(a), Some(b)) => Some(a.max(b)),
                    _ => None,
                };
            }
            _ => merged.push(range),
        }
    }
    merged
}

/// A key as messages show it: what can be printed of it, and not all of a long one.
fn beginning(key: &[u8]) -> String {
    const SHOWN_BYTES: usize = 64;
    match key.get(..SHOWN_BYTES) {
        Some(shown) if shown.len() < key.len() => format!("\"{}…\"", shown.escape_ascii()),
        _ => format!("\"{}\"", key.escape_ascii()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::ErrorKind;

    fn range(start: &'static str, end: &'static str) -> KeyRange {
        KeyRange::new(start, Some(end.into()))
    }

    fn put(key: impl Into<Bytes>) -> TxnWrite {
        TxnWrite::Put { key: key.into(), value: "v".into() }
    }

    fn commit(part: TxnPart) -> TxnCommit {
        TxnCommit { id: TxnId { seen: Timestamp(10), unique: 1 }, part }
    }

    fn refused(part: TxnPart, what: &str) {
        let error = commit(part).normalise().expect_err(what);
        assert_eq!(error.kind, ErrorKind::Invalid);
        assert!(error.message.contains(what), "{} should say {what:?}", error.message);
    }

    #[test]
    fn what_breaks_a_limit_is_refused_with_what_to_do() {
        let good = || TxnPart { writes: vec![put("\x01a")], ..TxnPart::default() };
        commit(good()).check().expect("within all limits");
        refused(TxnPart { writes: Vec::new(), ..good() }, "writes nothing");
        refused(TxnPart { writes: vec![put("\x01a"), put("\x01a")], ..good() }, "written twice");
        refused(TxnPart { reads: vec!["\x01b".into(), "\x01b".into()], ..good() }, "read twice");
        refused(TxnPart { ranges: vec![range("\x01b", "\x01b")], ..good() }, "is empty");
        refused(TxnPart { ranges: vec![range("\x01c", "\x01b")], ..good() }, "is reversed");
        refused(TxnPart { ranges: vec![KeyRange::all()], ..good() }, "keyspace byte");
        refused(TxnPart { reads: vec![Bytes::new()], ..good() }, "keyspace byte");
        refused(
            TxnPart { reads: vec![vec![1; limits::MAX_KEY_BYTES + 2].into()], ..good() },
            "limit of 4097",
        );
        let keys = |count: u32| (0..count).map(|n| Bytes::from(format!("\x01{n}"))).collect();
        refused(TxnPart { reads: keys(10_000), ..good() }, "limit of 10000");
        let ranges = vec![range("\x01b", "\x01c"); limits::MAX_TXN_RANGES + 1];
        refused(TxnPart { ranges, ..good() }, "limit of 1000");
        let value = Bytes::from(vec![0; limits::MAX_VALUE_BYTES + 1]);
        refused(TxnPart { writes: vec![TxnWrite::Put { key: "\x01a".into(), value }], ..good() }, "1048576");
        let value = Bytes::from(vec![0; limits::MAX_VALUE_BYTES]);
        let put = |n: u32| TxnWrite::Put { key: format!("\x01{n}").into(), value: value.clone() };
        refused(TxnPart { writes: (0..17).map(put).collect(), ..good() }, "limit of 16777216");
    }

    #[test]
    fn order_does_not_matter_and_ranges_are_merged() {
        let part = TxnPart {
            reads: vec!["\x01d".into(), "\x01b".into()],
            ranges: vec![
                range("\x01m", "\x01p"),
                range("\x01a", "\x01c"),
                range("\x01c", "\x01e"),
                range("\x01b", "\x01d"),
            ],
            writes: vec![put("\x01z"), put("\x01y")],
        };
        let commit = commit(part).normalise().expect("right");
        assert_eq!(commit.part.reads, ["\x01b", "\x01d"].map(Bytes::from));
        assert_eq!(commit.part.ranges, [range("\x01a", "\x01e"), range("\x01m", "\x01p")]);
        assert_eq!(commit.primary(), Some(&Bytes::from("\x01y")));
    }

    #[test]
    fn the_content_chooses_the_path() {
        let writes = |count: usize, pad: usize| {
            let key = |n: usize| Bytes::from(format!("\x01{n:0pad$}"));
            (0..count).map(|n| put(key(n))).collect::<Vec<_>>()
        };
        let path = |part| commit(part).path();
        let small = TxnPart { writes: writes(limits::MAX_LISTED_KEYS, 4), ..TxnPart::default() };
        assert_eq!(path(small.clone()), Path::Parallel);
        assert_eq!(path(TxnPart { reads: vec!["\x02".into()], ..small.clone() }), Path::Classic);
        assert_eq!(path(TxnPart { reads: vec!["\x010000".into()], ..small.clone() }), Path::Parallel);
        assert_eq!(path(TxnPart { writes: writes(64, 300), ..TxnPart::default() }), Path::Classic);
        assert_eq!(path(TxnPart { ranges: vec![range("\x01a", "\x01b")], ..small }), Path::Classic);
    }
}
