//! What is checked of every request before anything else sees it. Each refusal says what was wrong, the
//! value, the limit, and what to do. The client library runs the same checks before it sends anything.

use std::collections::HashSet;
use std::time::Duration;

use bytes::Bytes;

use super::{convert, v1};
use crate::types::{ClusterId, Error, KeyRange, ReadAt, RequestId, Result, Timestamp, is_name, limits};

/// A user's key: 1 to [`limits::MAX_KEY_BYTES`] bytes.
pub fn key(key: &[u8]) -> Result<()> {
    if key.is_empty() {
        return Err(Error::invalid(format!(
            "the key is empty: a key has 1 to {} bytes; name one",
            limits::MAX_KEY_BYTES
        )));
    }
    if key.len() > limits::MAX_KEY_BYTES {
        return Err(Error::invalid(format!(
            "the key {} has {} bytes, over the limit of {}: shorten it, or keep the long part in the value",
            convert::printable(key),
            key.len(),
            limits::MAX_KEY_BYTES
        )));
    }
    Ok(())
}

/// A value: at most [`limits::MAX_VALUE_BYTES`] bytes.
pub fn value(key: &[u8], value: &[u8]) -> Result<()> {
    if value.len() > limits::MAX_VALUE_BYTES {
        return Err(Error::invalid(format!(
            "the value for key {} has {} bytes, over the limit of {}: split it over several keys",
            convert::printable(key),
            value.len(),
            limits::MAX_VALUE_BYTES
        )));
    }
    Ok(())
}

/// A bound of a scan: any bytes up to one more than a key may have, so that a scan can go on just past
/// the longest key.
pub fn bound(name: &str, bound: &[u8]) -> Result<()> {
    if bound.len() > limits::MAX_KEY_BYTES + 1 {
        return Err(Error::invalid(format!(
            "the scan's {name} has {} bytes, over the limit of {}: no key is that long; shorten it",
            bound.len(),
            limits::MAX_KEY_BYTES + 1
        )));
    }
    Ok(())
}

/// A range of a scan: neither bound too long, the start not past the end.
pub fn range(start: &[u8], end: Option<&[u8]>) -> Result<()> {
    bound("start", start)?;
    let Some(end) = end else { return Ok(()) };
    bound("end", end)?;
    if start > end {
        return Err(Error::invalid(format!(
            "the range is reversed: its start {} is past its end {}; swap them, and ask for reverse order \
             where the largest key shall come first",
            convert::printable(start),
            convert::printable(end)
        )));
    }
    Ok(())
}

/// A range that holds keys: as [`range`], and the end is past the start.
pub fn full_range(full: &KeyRange) -> Result<()> {
    range(&full.start, full.end.as_deref())?;
    if full.is_empty() {
        return Err(Error::invalid(format!(
            "the range from {} is empty: its end must be past its start",
            convert::printable(&full.start)
        )));
    }
    Ok(())
}

/// The ranges that somebody follows, joined; none are all keys. At most [`limits::MAX_FOLLOWED_RANGES`], each with keys.
pub fn followed(ranges: &[KeyRange]) -> Result<Vec<KeyRange>> {
    if ranges.len() > limits::MAX_FOLLOWED_RANGES {
        return Err(Error::invalid(format!(
            "{} ranges and prefixes are to be followed, over the limit of {}: follow wider ones, and leave out what is not \
             wanted",
            ranges.len(),
            limits::MAX_FOLLOWED_RANGES
        )));
    }
    ranges.iter().try_for_each(full_range)?;
    Ok(if ranges.is_empty() { vec![KeyRange::all()] } else { KeyRange::join(ranges.to_vec()) })
}

/// A name of something that is kept by name: 1 to [`limits::MAX_NAME_BYTES`] of a-z, 0-9, _ and -.
pub fn name(what: &str, name: &str) -> Result<()> {
    if is_name(name) {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "{} is not the name of {what}: it has 1 to {} characters of a-z, 0-9, _ and -",
        convert::printable(name.as_bytes()),
        limits::MAX_NAME_BYTES
    )))
}

/// A limit of rows or bytes: absent is none, 0 is refused.
pub fn limit(name: &str, limit: Option<u64>) -> Result<()> {
    if limit == Some(0) {
        return Err(Error::invalid(format!(
            "{name} is 0, which would return nothing: give at least 1, or leave it out for no limit"
        )));
    }
    Ok(())
}

/// The keys of one `get_many`: 1 to [`limits::MAX_GET_KEYS`], each a proper key.
pub fn keys(keys: &[Bytes]) -> Result<()> {
    if keys.is_empty() {
        return Err(Error::invalid(format!(
            "no keys are named: name 1 to {} keys to read",
            limits::MAX_GET_KEYS
        )));
    }
    if keys.len() > limits::MAX_GET_KEYS {
        return Err(Error::invalid(format!(
            "{} keys are named, over the limit of {}: read them in several calls, with the first reply's \
             at_ts for one instant over all",
            keys.len(),
            limits::MAX_GET_KEYS
        )));
    }
    keys.iter().try_for_each(|one| key(one))
}

/// What a `get_many` has read so far, in bytes of keys and values: at most [`limits::MAX_GET_BYTES`].
pub fn read_bytes(bytes: usize) -> Result<()> {
    if bytes > limits::MAX_GET_BYTES {
        return Err(Error::invalid(format!(
            "the keys that are named and their values come to more than {} bytes, the limit of one call: read fewer \
             at once, with the first reply's at_ts for one instant over all",
            limits::MAX_GET_BYTES
        )));
    }
    Ok(())
}

/// A timestamp from outside; at most [`Timestamp::MAX`].
pub fn timestamp(name: &str, raw: u64) -> Result<Timestamp> {
    if raw > Timestamp::MAX.0 {
        return Err(Error::invalid(format!(
            "{name} is {raw}, past the largest timestamp {}: pass a timestamp that a reply gave",
            Timestamp::MAX
        )));
    }
    Ok(Timestamp(raw))
}

/// What a read shall see: at a timestamp, where that is not 0, or as old as it says.
pub fn read_at(at_ts: u64, max_staleness_ms: Option<u32>) -> Result<ReadAt> {
    match (timestamp("at_ts", at_ts)?, max_staleness_ms) {
        (Timestamp::ZERO, None) => Ok(ReadAt::Latest),
        (at, None) => Ok(ReadAt::Snapshot(at)),
        (Timestamp::ZERO, Some(most)) => {
            staleness(most.into()).map(|max_staleness_ms| ReadAt::Bounded { max_staleness_ms })
        }
        (at, Some(most)) => Err(Error::invalid(format!(
            "the read names at_ts {at} and max_staleness_ms {most}: name the one or the other"
        ))),
    }
}

/// How old a bounded read may be, in milliseconds: 1 to [`limits::MAX_STALENESS_MS`].
pub fn staleness(max_staleness_ms: u64) -> Result<u64> {
    if !(1..=limits::MAX_STALENESS_MS).contains(&max_staleness_ms) {
        return Err(Error::invalid(format!(
            "max_staleness_ms is {max_staleness_ms}: it must be 1 to {}, since older versions are not kept; leave it out \
             for a linearizable read",
            limits::MAX_STALENESS_MS
        )));
    }
    Ok(max_staleness_ms)
}

/// A request id: its unique part has 16 bytes, its `seen_ts` is a timestamp.
pub fn request_id(id: &v1::RequestId) -> Result<RequestId> {
    let unique: [u8; 16] = id.unique.as_ref().try_into().map_err(|_| {
        Error::invalid(format!(
            "request_id.unique has {} bytes: it must be 16 random bytes, or leave request_id out",
            id.unique.len()
        ))
    })?;
    Ok(RequestId { seen: timestamp("request_id.seen_ts", id.seen_ts)?, unique: u128::from_be_bytes(unique) })
}

/// A header, checked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CallHeader {
    /// The cluster that the caller means, if it says.
    pub cluster: Option<ClusterId>,
    /// How long the caller will wait, counted from arrival: the default where it doesn't say, cut to the
    /// longest there is.
    pub deadline: Duration,
    /// The id of the write, if it has one.
    pub id: Option<RequestId>,
}

impl Default for CallHeader {
    fn default() -> Self {
        Self { cluster: None, deadline: Duration::from_millis(limits::DEFAULT_DEADLINE_MS), id: None }
    }
}

impl CallHeader {
    /// Refuses (as `Denied`) a caller that means another cluster.
    pub fn check_cluster(&self, ours: ClusterId) -> Result<()> {
        match self.cluster {
            Some(meant) if meant != ours => Err(Error::denied(format!(
                "the request means cluster {meant}, but this node belongs to cluster {ours}: connect to a node \
                 of the cluster that is meant"
            ))),
            _ => Ok(()),
        }
    }
}

/// A header: a well-formed cluster id and request id where there are any, and the deadline that holds.
pub fn header(header: Option<&v1::Header>) -> Result<CallHeader> {
    let Some(header) = header else { return Ok(CallHeader::default()) };
    let cluster = match header.cluster_id.as_str() {
        "" => None,
        text => Some(text.parse()?),
    };
    let deadline_ms = match u64::from(header.deadline_ms) {
        0 => limits::DEFAULT_DEADLINE_MS,
        asked => asked.min(limits::MAX_DEADLINE_MS),
    };
    let id = header.request_id.as_ref().map(request_id).transpose()?;
    Ok(CallHeader { cluster, deadline: Duration::from_millis(deadline_ms), id })
}

/// A batch: some steps, no more than the limits allow, every key and value within its own limit.
pub fn batch(batch: &v1::BatchRequest) -> Result<()> {
    let steps = batch.then.len() + batch.otherwise.len();
    if steps == 0 {
        return Err(Error::invalid("the batch has no steps: give it at least one in `then` or `otherwise`"));
    }
    let count = steps + batch.conditions.len();
    if count > limits::MAX_BATCH_STEPS {
        return Err(Error::invalid(format!(
            "the batch has {count} conditions and steps, over the limit of {}: split it",
            limits::MAX_BATCH_STEPS
        )));
    }
    let mut bytes = 0;
    for condition in &batch.conditions {
        key(&condition.key)?;
        bytes += condition.key.len() + expect_bytes(&condition.key, condition.expect.as_ref())?;
    }
    for step in batch.then.iter().chain(&batch.otherwise) {
        bytes += step_bytes(step)?;
    }
    if bytes > limits::MAX_BATCH_BYTES {
        return Err(Error::invalid(format!(
            "the batch has {bytes} bytes of keys and values, over the limit of {}: split it",
            limits::MAX_BATCH_BYTES
        )));
    }
    Ok(())
}

/// An expectation: there is one, its value is no larger than a value can be. Answers how many bytes it
/// counts for.
pub fn expect_bytes(of: &[u8], expect: Option<&v1::Expect>) -> Result<usize> {
    use v1::expect::Expect;
    match expect.and_then(|expect| expect.expect.as_ref()) {
        Some(Expect::Value(expected)) => value(of, expected).map(|()| expected.len()),
        Some(Expect::CommitTs(ts)) => timestamp("expect.commit_ts", *ts).map(|_| 8),
        Some(Expect::Absent(true) | Expect::Present(true) | Expect::Version(_)) => Ok(8),
        Some(Expect::Absent(false) | Expect::Present(false)) => Err(Error::invalid(format!(
            "the condition on key {} says `absent: false` or `present: false`: say `present: true` or \
             `absent: true` instead",
            convert::printable(of)
        ))),
        None => Err(Error::invalid(format!(
            "the condition on key {} expects nothing: set one of absent, present, version, commit_ts, value",
            convert::printable(of)
        ))),
    }
}

fn step_bytes(step: &v1::Step) -> Result<usize> {
    use v1::step::Step;
    match &step.step {
        Some(Step::Put(put)) => {
            key(&put.key)?;
            value(&put.key, &put.value)?;
            Ok(put.key.len() + put.value.len())
        }
        Some(Step::Delete(of) | Step::Get(of)) => key(of).map(|()| of.len()),
        Some(Step::Add(add)) => key(&add.key).map(|()| add.key.len() + 8),
        None => Err(Error::invalid("a step of the batch is empty: set one of put, delete, add, get")),
    }
}

/// A transaction to be committed: a start timestamp, one write at least, no more than the limits allow, no key twice
/// in a list, every key, value and range proper. What it says of its request id is [`commit_id`]'s.
pub fn commit(commit: &v1::CommitRequest) -> Result<()> {
    start_timestamp(commit.start_ts)?;
    // What it does to sagas writes something too.
    let sagas = commit.saga_starts.len() + usize::from(commit.saga_step.is_some());
    if sagas > limits::MAX_TXN_SAGAS {
        return Err(Error::invalid(format!(
            "the transaction starts {sagas} sagas, over the limit of {}: start some with another one",
            limits::MAX_TXN_SAGAS
        )));
    }
    txn_counts(commit.read_keys.len(), commit.read_ranges.len(), commit.writes.len() + sagas)?;
    let mut bytes = 0;
    let mut seen = HashSet::with_capacity(commit.read_keys.len());
    for read in &commit.read_keys {
        key(read)?;
        once(&mut seen, read, "read")?;
        bytes += read.len();
    }
    let mut seen = HashSet::with_capacity(commit.writes.len());
    for write in &commit.writes {
        let (of, write_bytes) = write_bytes(write)?;
        once(&mut seen, of, "written")?;
        bytes += write_bytes;
    }
    for range in &commit.read_ranges {
        bytes += read_range(range)?;
    }
    bytes += commit.saga_starts.iter().map(|start| start.id.len() + start.input.len()).sum::<usize>();
    bytes += commit.saga_step.as_ref().map_or(0, |step| step.output.len());
    txn_bytes(bytes)
}

/// The start timestamp of a transaction: not 0, at most [`Timestamp::MAX`]. Whether it was handed out is for the
/// log to say.
pub fn start_timestamp(raw: u64) -> Result<Timestamp> {
    match timestamp("start_ts", raw)? {
        Timestamp::ZERO => Err(Error::invalid(
            "start_ts is 0, before every commit: pass the timestamp that the transaction read at, or one that a reply \
             gave",
        )),
        start => Ok(start),
    }
}

/// How many keys and ranges a transaction reads and writes: one write at least, and no more than
/// [`limits::MAX_TXN_KEYS`] and [`limits::MAX_TXN_RANGES`].
pub fn txn_counts(reads: usize, ranges: usize, writes: usize) -> Result<()> {
    if writes == 0 {
        return Err(Error::invalid(
            "the transaction has no writes: what it read at its start timestamp is consistent as it is, and needs no \
             commit",
        ));
    }
    if reads + writes > limits::MAX_TXN_KEYS {
        return Err(Error::invalid(format!(
            "the transaction reads {reads} keys and writes {writes}, together over the limit of {}: split it, or read \
             a range instead of many keys",
            limits::MAX_TXN_KEYS
        )));
    }
    if ranges > limits::MAX_TXN_RANGES {
        return Err(Error::invalid(format!(
            "the transaction reads {ranges} ranges, over the limit of {}: read fewer and larger ones, or split it",
            limits::MAX_TXN_RANGES
        )));
    }
    Ok(())
}

/// What a transaction comes to, in bytes of keys and values: at most [`limits::MAX_TXN_BYTES`].
pub fn txn_bytes(bytes: usize) -> Result<()> {
    if bytes > limits::MAX_TXN_BYTES {
        return Err(Error::invalid(format!(
            "the transaction has {bytes} bytes of keys and values, over the limit of {}: split it",
            limits::MAX_TXN_BYTES
        )));
    }
    Ok(())
}

/// The id of a commit: the request id's unique part, and the start timestamp; drawn where the request has none.
/// `Invalid` where the request id claims another timestamp.
pub fn commit_id(id: Option<RequestId>, start_ts: Timestamp) -> Result<RequestId> {
    let unique = match id {
        None => rand::random(),
        Some(id) if id.seen == start_ts || id.seen == Timestamp::ZERO => id.unique,
        Some(id) => {
            return Err(Error::invalid(format!(
                "request_id.seen_ts is {}, but the transaction's start_ts is {start_ts}: the id of a commit bears its \
                 start timestamp, so set it to that or to 0",
                id.seen
            )));
        }
    };
    Ok(RequestId { seen: start_ts, unique })
}

fn once<'a>(seen: &mut HashSet<&'a Bytes>, key: &'a Bytes, what: &str) -> Result<()> {
    if seen.insert(key) {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "the key {} stands twice among the keys {what}: name each once, with its last value",
        convert::printable(key)
    )))
}

/// A range that was read: proper bounds, and not empty. Answers how many bytes it counts for.
fn read_range(read: &v1::KeyRange) -> Result<usize> {
    range(&read.start, read.end.as_deref())?;
    if read.end.as_ref().is_some_and(|end| *end == read.start) {
        return Err(Error::invalid(format!(
            "the range that was read from {} is empty, since it ends where it starts: leave it out, or end it past the \
             last key that was read",
            convert::printable(&read.start)
        )));
    }
    Ok(read.start.len() + read.end.as_ref().map_or(0, Bytes::len))
}

/// One write of a transaction, checked: its key, and how many bytes it counts for.
fn write_bytes(write: &v1::Write) -> Result<(&Bytes, usize)> {
    use v1::write::Write;
    match &write.write {
        Some(Write::Put(put)) => {
            key(&put.key)?;
            value(&put.key, &put.value)?;
            Ok((&put.key, put.key.len() + put.value.len()))
        }
        Some(Write::Delete(of)) => key(of).map(|()| (of, of.len())),
        Some(Write::Add(add)) => key(&add.key).map(|()| (&add.key, add.key.len() + 8)),
        None => Err(Error::invalid("a write of the transaction is empty: set one of put, delete, add")),
    }
}

/// A scan: proper bounds and limits.
pub fn scan(scan: &v1::ScanRequest) -> Result<()> {
    range(&scan.start, scan.end.as_deref())?;
    bound("prefix", &scan.prefix)?;
    limit("limit_rows", scan.limit_rows)?;
    limit("limit_bytes", scan.limit_bytes)?;
    read_at(scan.at_ts, scan.max_staleness_ms).map(|_| ())
}

#[cfg(test)]
#[path = "validate_tests.rs"]
mod tests;
