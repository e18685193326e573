//! What a transaction has read and written so far, and how its own writes show in what it reads. No I/O.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use crate::codec::keyspace::user_key;
use crate::rpc::{convert, v1, validate};
use crate::types::{Error, KeyRange, Record, Refusal, Result, Timestamp};

/// What a transaction does with one key: one write, however many calls it took.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Write {
    /// Writes a value.
    Put(Bytes),
    /// Removes the key.
    Delete,
    /// Adds to a counter.
    Add(i64),
}

impl Write {
    /// Whether what the key then holds depends on what it held before.
    pub(super) fn needs_base(&self) -> bool {
        matches!(self, Self::Add(_))
    }

    /// This write, and then an addition.
    fn plus(&self, key: &Bytes, delta: i64) -> Result<Self> {
        match self {
            Self::Put(value) => Ok(Self::Put(sum(key, Some(value), delta)?)),
            Self::Delete => Ok(Self::Put(sum(key, None, delta)?)),
            Self::Add(before) => before.checked_add(delta).map(Self::Add).ok_or_else(|| {
                let refusal = Refusal::CounterOverflow { key: user_key(key), value: *before, delta };
                convert::refusal_to_error(&refusal)
            }),
        }
    }

    fn size_bytes(&self) -> usize {
        match self {
            Self::Put(value) => value.len(),
            Self::Delete => 0,
            Self::Add(_) => 8,
        }
    }

    fn to_proto(&self, key: Bytes) -> v1::Write {
        use v1::write::Write;
        let write = match self {
            Self::Put(value) => Write::Put(v1::PutStep { key, value: value.clone() }),
            Self::Delete => Write::Delete(key),
            Self::Add(delta) => Write::Add(v1::AddStep { key, delta: *delta }),
        };
        v1::Write { write: Some(write) }
    }
}

/// What the transaction sees of a key: its own write over what the key held at the start timestamp. A value that
/// the transaction itself wrote has no timestamps and no version number yet: they are 0.
pub(super) fn seen(key: &Bytes, own: Option<&Write>, base: Option<Record>) -> Result<Option<Record>> {
    let value = match own {
        None => return Ok(base),
        Some(Write::Delete) => return Ok(None),
        Some(Write::Put(value)) => value.clone(),
        Some(Write::Add(delta)) => sum(key, base.as_ref().map(|record| &record.value), *delta)?,
    };
    Ok(Some(Record { value, commit_ts: Timestamp::ZERO, create_ts: Timestamp::ZERO, version: 0 }))
}

/// A counter's value after an addition, as text; `Invalid` where that is not possible.
fn sum(key: &Bytes, held: Option<&Bytes>, delta: i64) -> Result<Bytes> {
    let refuse = |refusal| convert::refusal_to_error(&refusal);
    let value = match held {
        None => 0,
        Some(held) => std::str::from_utf8(held)
            .ok()
            .and_then(|text| text.parse::<i64>().ok())
            .ok_or_else(|| refuse(Refusal::NotACounter { key: user_key(key) }))?,
    };
    match value.checked_add(delta) {
        Some(sum) => Ok(sum.to_string().into()),
        None => Err(refuse(Refusal::CounterOverflow { key: user_key(key), value, delta })),
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum Phase {
    /// Reads are remembered, writes are kept.
    #[default]
    Open,
    /// Reads are not remembered, writes are refused.
    ReadOnly,
    /// The closure has returned.
    Ended,
}

/// Everything that a transaction has read and written so far. Keys are the user's.
#[derive(Debug, Default)]
pub(super) struct Buffer {
    phase: Phase,
    writes: BTreeMap<Bytes, Write>,
    reads: BTreeSet<Bytes>,
    /// What of its range each scan has handed out so far.
    ranges: Vec<KeyRange>,
    /// Sagas that are started with it.
    starts: Vec<v1::SagaStart>,
    /// The step of a saga that it is.
    step: Option<v1::SagaStepDone>,
    /// Bytes of keys and values, without the ranges.
    bytes: usize,
}

impl Buffer {
    /// Refuses writes and remembers no reads from here on; `Invalid` where something was written already.
    pub(super) fn read_only(&mut self) -> Result<()> {
        self.check_open()?;
        if !self.writes.is_empty() {
            return Err(Error::invalid(
                "the transaction has written already, so it can't become read-only: say so before the first write",
            ));
        }
        *self = Self { phase: Phase::ReadOnly, ..Self::default() };
        Ok(())
    }

    /// `Invalid` once the transaction has ended.
    pub(super) fn check_open(&self) -> Result<()> {
        match self.phase {
            Phase::Open | Phase::ReadOnly => Ok(()),
            Phase::Ended => Err(Error::invalid(
                "the transaction has ended: its closure has returned; what outlives that can't use it",
            )),
        }
    }

    /// Keeps a write, on top of what the transaction wrote to the key before.
    pub(super) fn write(&mut self, key: &[u8], write: Write) -> Result<()> {
        self.check_open()?;
        if self.phase == Phase::ReadOnly {
            return Err(Error::invalid(format!(
                "a read-only transaction can't write key {}: use `transact`",
                convert::printable(key)
            )));
        }
        validate::key(key)?;
        if let Write::Put(value) = &write {
            validate::value(key, value)?;
        }
        let key = Bytes::copy_from_slice(key);
        let write = match (self.writes.get(&key), &write) {
            (Some(before), Write::Add(delta)) => before.plus(&key, *delta)?,
            _ => write,
        };
        self.bytes += write.size_bytes();
        match self.writes.insert(key.clone(), write) {
            Some(before) => self.bytes -= before.size_bytes(),
            None => self.bytes += key.len(),
        }
        self.check_limits()
    }

    /// Starts a saga with it.
    pub(super) fn start_saga(&mut self, start: v1::SagaStart) -> Result<()> {
        self.check_open()?;
        if self.phase == Phase::ReadOnly {
            return Err(Error::invalid("a read-only transaction can't start a saga: use `transact`"));
        }
        self.bytes += start.id.len() + start.input.len();
        self.starts.push(start);
        self.check_limits()
    }

    /// It is the step of a saga, and comes to this.
    pub(super) fn set_step(&mut self, step: v1::SagaStepDone) {
        self.bytes += step.output.len();
        self.step = Some(step);
    }

    /// What the transaction itself did to each of the keys.
    pub(super) fn own(&self, keys: &[Bytes]) -> Result<Vec<Option<Write>>> {
        self.check_open()?;
        Ok(keys.iter().map(|key| self.writes.get(key).cloned()).collect())
    }

    /// What the transaction itself did to keys in a range, in key order.
    pub(super) fn own_within(&self, range: &KeyRange) -> Vec<(Bytes, Write)> {
        let from = self.writes.range::<Bytes, _>(&range.start..);
        from.take_while(|(key, _)| range.contains(key))
            .map(|(key, write)| (key.clone(), write.clone()))
            .collect()
    }

    /// Remembers keys that were read.
    pub(super) fn note_reads(&mut self, keys: &[Bytes]) -> Result<()> {
        if self.phase != Phase::Open {
            return Ok(());
        }
        for key in keys {
            if self.reads.insert(key.clone()) {
                self.bytes += key.len();
            }
        }
        self.check_limits()
    }

    /// A place for what a scan hands out.
    pub(super) fn begin_scan(&mut self) -> usize {
        self.ranges.push(KeyRange::new(Bytes::new(), Some(Bytes::new())));
        self.ranges.len() - 1
    }

    /// Remembers what of its range a scan has handed out so far.
    pub(super) fn note_scanned(&mut self, scan: usize, range: KeyRange) {
        // A transaction that has ended has taken its ranges with it.
        if self.phase == Phase::Open
            && let Some(scanned) = self.ranges.get_mut(scan)
        {
            *scanned = range;
        }
    }

    /// A transaction that does not write may read as much as it likes.
    fn check_limits(&self) -> Result<()> {
        if self.writes.is_empty() {
            return Ok(());
        }
        validate::txn_counts(self.reads.len(), 0, self.writes.len())?;
        validate::txn_bytes(self.bytes)
    }

    /// Whether the limits would let it be committed, with one write at least. Ranges count here, which
    /// [`check_limits`](Self::check_limits) leaves to the commit.
    pub(super) fn check_commit(&self) -> Result<()> {
        let ranges = KeyRange::join(self.ranges.clone());
        validate::txn_counts(self.reads.len(), ranges.len(), self.writes.len().max(1))?;
        let bound = |range: &KeyRange| range.start.len() + range.end.as_ref().map_or(0, Bytes::len);
        validate::txn_bytes(self.bytes + ranges.iter().map(bound).sum::<usize>())
    }

    /// Ends the transaction: what there is to commit, without its start timestamp; `None` where nothing was
    /// written.
    pub(super) fn end(&mut self) -> Option<v1::CommitRequest> {
        let Self { writes, reads, ranges, starts, step, .. } =
            std::mem::replace(self, Self { phase: Phase::Ended, ..Self::default() });
        if writes.is_empty() && starts.is_empty() && step.is_none() {
            return None;
        }
        let ranges = KeyRange::join(ranges);
        // A key in a range that was read is watched with it.
        let alone = |key: &Bytes| !ranges.iter().any(|range| range.contains(key));
        Some(v1::CommitRequest {
            header: None,
            start_ts: 0,
            read_keys: reads.into_iter().filter(alone).collect(),
            read_ranges: ranges
                .iter()
                .map(|range| v1::KeyRange { start: range.start.clone(), end: range.end.clone() })
                .collect(),
            writes: writes.into_iter().map(|(key, write)| write.to_proto(key)).collect(),
            saga_starts: starts,
            saga_step: step,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{ErrorKind, limits};

    fn key(name: &'static str) -> Bytes {
        name.into()
    }

    fn written(buffer: &Buffer, name: &'static str) -> Option<Write> {
        buffer.own(&[key(name)]).expect("open").pop().flatten()
    }

    #[test]
    fn writes_to_one_key_become_one() {
        let mut buffer = Buffer::default();
        let put = |value: &'static str| Write::Put(value.into());
        buffer.write(b"a", Write::Add(2)).expect("kept");
        buffer.write(b"a", Write::Add(3)).expect("kept");
        assert_eq!(written(&buffer, "a"), Some(Write::Add(5)));
        buffer.write(b"a", put("7")).expect("kept");
        buffer.write(b"a", Write::Add(-9)).expect("kept");
        assert_eq!(written(&buffer, "a"), Some(put("-2")));
        buffer.write(b"a", Write::Delete).expect("kept");
        buffer.write(b"a", Write::Add(4)).expect("kept");
        assert_eq!(written(&buffer, "a"), Some(put("4")));
        buffer.write(b"a", put("text")).expect("kept");
        assert_eq!(buffer.write(b"a", Write::Add(1)).expect_err("no counter").kind, ErrorKind::Invalid);
        buffer.write(b"b", Write::Add(i64::MAX)).expect("kept");
        assert_eq!(buffer.write(b"b", Write::Add(1)).expect_err("too large").kind, ErrorKind::Invalid);
        let commit = buffer.end().expect("two writes");
        assert_eq!(commit.writes.len(), 2);
        assert_eq!(buffer.write(b"c", Write::Delete).expect_err("ended").kind, ErrorKind::Invalid);
    }

    #[test]
    fn own_writes_show_over_what_was_there() {
        let base = Record { value: "5".into(), commit_ts: Timestamp(3), create_ts: Timestamp(2), version: 4 };
        let show = |own: Option<Write>, base: Option<&Record>| {
            seen(&key("k"), own.as_ref(), base.cloned()).map(|record| record.map(|record| record.value))
        };
        assert_eq!(show(None, Some(&base)), Ok(Some("5".into())));
        assert_eq!(show(Some(Write::Delete), Some(&base)), Ok(None));
        assert_eq!(show(Some(Write::Put("x".into())), None), Ok(Some("x".into())));
        assert_eq!(show(Some(Write::Add(2)), Some(&base)), Ok(Some("7".into())));
        assert_eq!(show(Some(Write::Add(2)), None), Ok(Some("2".into())));
        let text = Record { value: "five".into(), ..base };
        assert!(show(Some(Write::Add(2)), Some(&text)).expect_err("no counter").message.contains("\"k\""));
    }

    #[test]
    fn what_is_committed_is_joined_and_in_order() {
        let mut buffer = Buffer::default();
        buffer.note_reads(&[key("x"), key("b"), key("x")]).expect("noted");
        let (one, two, three) = (buffer.begin_scan(), buffer.begin_scan(), buffer.begin_scan());
        let range = |start, end| KeyRange::new(key(start), Some(key(end)));
        buffer.note_scanned(two, range("c", "d"));
        buffer.note_scanned(one, range("a", "b"));
        buffer.note_scanned(one, range("a", "c"));
        assert_eq!((one, two, three), (0, 1, 2));
        for name in [&b"z"[..], b"y"] {
            buffer.write(name, Write::Delete).expect("kept");
        }
        let commit = buffer.end().expect("there are writes");
        assert_eq!(commit.read_keys, [key("x")], "b lies in a range");
        assert_eq!(commit.read_ranges, [v1::KeyRange { start: key("a"), end: Some(key("d")) }]);
        assert_eq!(commit.writes[0], Write::Delete.to_proto(key("y")));
        assert!(buffer.end().is_none());
    }

    #[test]
    fn limits_hold_for_transactions_that_write() {
        let keys: Vec<Bytes> = (0..=limits::MAX_TXN_KEYS).map(|n| Bytes::from(format!("k{n:05}"))).collect();
        let mut buffer = Buffer::default();
        buffer.note_reads(&keys).expect("it does not write");
        let error = buffer.write(b"w", Write::Delete).expect_err("over the limit");
        assert!(error.kind == ErrorKind::Invalid && error.message.contains("10001"), "{error}");
        let mut buffer = Buffer::default();
        let value = Bytes::from(vec![0; limits::MAX_VALUE_BYTES]);
        for n in 0..15 {
            buffer.write(format!("{n}").as_bytes(), Write::Put(value.clone())).expect("15 MiB");
        }
        for _ in 0..20 {
            buffer.write(b"0", Write::Put(value.clone())).expect("instead of the first");
        }
        assert!(buffer.write(b"z", Write::Put(value)).is_err(), "16 MiB and keys");
    }

    #[test]
    fn a_read_only_transaction_remembers_nothing_and_refuses_writes() {
        let mut buffer = Buffer::default();
        buffer.write(b"a", Write::Delete).expect("kept");
        assert_eq!(buffer.read_only().expect_err("written already").kind, ErrorKind::Invalid);
        let mut buffer = Buffer::default();
        buffer.note_reads(&[key("a")]).expect("noted");
        buffer.read_only().expect("nothing written");
        buffer.note_reads(&[key("b")]).expect("ignored");
        assert!(buffer.reads.is_empty() && buffer.bytes == 0);
        let error = buffer.write(b"a", Write::Delete).expect_err("read-only");
        assert!(error.kind == ErrorKind::Invalid && error.message.contains("\"a\""), "{error}");
    }
}
