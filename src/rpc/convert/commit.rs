//! Commits of transactions: from the wire into a checked part, and from outcomes to replies.

use bytes::Bytes;

use super::Call;
use super::error::{printable_internal, refusal_to_error};
use super::request::{SagaPart, user};
use crate::codec::keyspace::{strip_user, user_key, user_range};
use crate::rpc::{v1, validate};
use crate::types::{
    AbortReason, Conflict, ConflictReason, Error, KeyRange, Lock, Outcome, Refusal, Result, Timestamp,
    TxnOutcome, TxnPart, TxnWrite,
};

/// A commit, checked, in the form that [`TxnPart`] has: in key order, and ranges that touch joined.
pub(super) fn commit_from_proto(commit: v1::CommitRequest) -> Result<Call> {
    validate::commit(&commit)?;
    let start_ts = validate::start_timestamp(commit.start_ts)?;
    let header = validate::header(commit.header.as_ref())?;
    let id = validate::commit_id(header.id, start_ts)?;
    let mut reads: Vec<Bytes> = commit.read_keys.iter().map(|key| user_key(key)).collect();
    reads.sort_unstable();
    let mut writes = commit.writes.into_iter().map(write_from_proto).collect::<Result<Vec<_>>>()?;
    writes.sort_unstable_by(|a, b| a.key().cmp(b.key()));
    let ranges = commit.read_ranges.into_iter().map(|range| KeyRange::new(range.start, range.end));
    let ranges = KeyRange::join(ranges.map(|range| user_range(&range)).collect());
    let sagas = SagaPart { starts: commit.saga_starts, step: commit.saga_step };
    Ok(Call::Commit { id_unique: id.unique, start_ts, part: TxnPart { reads, ranges, writes }, sagas })
}

fn write_from_proto(write: v1::Write) -> Result<TxnWrite> {
    use v1::write::Write;
    match write.write {
        Some(Write::Put(put)) => Ok(TxnWrite::Put { key: user_key(&put.key), value: put.value }),
        Some(Write::Delete(key)) => Ok(TxnWrite::Delete { key: user_key(&key) }),
        Some(Write::Add(add)) => Ok(TxnWrite::Add { key: user_key(&add.key), delta: add.delta }),
        None => Err(Error::invalid("a write of the transaction is empty: set one of put, delete, add")),
    }
}

/// A whole transaction as a request. `Corrupt` where a key is of another keyspace.
pub fn commit_to_proto(
    part: TxnPart,
    start_ts: Timestamp,
    header: Option<v1::Header>,
) -> Result<v1::CommitRequest> {
    let range = |range: KeyRange| {
        // The end of all users' keys is no user's key.
        let end = range.end.as_ref().and_then(strip_user);
        Ok(v1::KeyRange { start: user(&range.start)?, end })
    };
    let write = |write: TxnWrite| {
        use v1::write::Write;
        let write = match write {
            TxnWrite::Put { key, value } => Write::Put(v1::PutStep { key: user(&key)?, value }),
            TxnWrite::Delete { key } => Write::Delete(user(&key)?),
            TxnWrite::Add { key, delta } => Write::Add(v1::AddStep { key: user(&key)?, delta }),
        };
        Ok(v1::Write { write: Some(write) })
    };
    Ok(v1::CommitRequest {
        header,
        start_ts: start_ts.0,
        read_keys: part.reads.iter().map(user).collect::<Result<_>>()?,
        read_ranges: part.ranges.into_iter().map(range).collect::<Result<_>>()?,
        writes: part.writes.into_iter().map(write).collect::<Result<_>>()?,
        ..v1::CommitRequest::default()
    })
}

/// The reply of a commit; an error where the transaction was not committed, or where that can't be known.
pub fn commit_reply(outcome: Outcome) -> Result<v1::CommitReply> {
    match outcome {
        Outcome::Txn(TxnOutcome::Committed { commit_ts }) => Ok(v1::CommitReply { commit_ts: commit_ts.0 }),
        Outcome::Txn(TxnOutcome::Aborted { reason }) => Err(abort_to_error(&reason)),
        Outcome::Txn(TxnOutcome::AbortedLate) => Err(Error::undetermined(
            "the transaction was rolled back, but so late that it can't be ruled out that an earlier attempt had \
             committed it: read before doing it again",
        )),
        Outcome::Refused(Refusal::FutureId { seen }) => Err(Error::invalid(format!(
            "start_ts is {seen}, which was not handed out before the commit came: pass the timestamp that the \
             transaction read at, never a clock's"
        ))),
        Outcome::Refused(refusal) => Err(refusal_to_error(&refusal)),
        // An id that is used for two different requests gets the outcome of the first (rule R8).
        _ => Err(Error::invalid(
            "a commit got the outcome of another kind of request: its request id was used before; draw a new one for \
             each transaction",
        )),
    }
}

/// What a caller is told about a transaction that was aborted: for good, whatever attempt of it this was (rule R8).
pub fn abort_to_error(reason: &AbortReason) -> Error {
    match reason {
        AbortReason::Changed { key, commit_ts } => {
            let message = format!(
                "key {} was changed at {commit_ts}, after the transaction had read it: nothing was done; read again, \
                 with a new transaction",
                printable_internal(key)
            );
            Error::conflict(message, conflict(ConflictReason::Changed, Some(key), Some(*commit_ts), true))
        }
        AbortReason::Locked(lock) => locked(lock, true),
        AbortReason::Counter(refusal) => {
            let key = match &**refusal {
                Refusal::NotACounter { key } | Refusal::CounterOverflow { key, .. } => Some(key),
                _ => None,
            };
            let told = refusal_to_error(refusal);
            Error::conflict(told.message, conflict(ConflictReason::Counter, key, None, true))
        }
        AbortReason::RolledBack => Error::conflict(
            "the transaction took so long that somebody who met its locks rolled it back: nothing was done; read \
             again, with a new transaction",
            conflict(ConflictReason::RolledBack, None, None, true),
        ),
    }
}

/// What a caller is told about a lock in the way. `is_final` where the refusal is kept.
pub(super) fn locked(lock: &Lock, is_final: bool) -> Error {
    let message = format!(
        "key {} is locked since {} by transaction {}: nothing was done; try again",
        printable_internal(&lock.key),
        lock.prepare_ts,
        lock.txn
    );
    Error::conflict(
        message,
        conflict(ConflictReason::Locked, Some(&lock.key), Some(lock.prepare_ts), is_final),
    )
}

fn conflict(reason: ConflictReason, key: Option<&Bytes>, ts: Option<Timestamp>, is_final: bool) -> Conflict {
    Conflict { reason, key: key.and_then(strip_user), ts, is_final }
}
