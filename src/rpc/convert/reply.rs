//! Replies: from outcomes to the wire and back.

use bytes::Bytes;

use super::WriteKind;
use super::error::{error_from_proto, printable, refusal_to_error};
use crate::codec::keyspace::strip_user;
use crate::rpc::v1;
use crate::rpc::v1::session_reply::Reply;
use crate::types::{
    BatchResult, Error, NodeId, Outcome, ReadLevel, Record, ReplicaRole, Result, Served, Timestamp,
    TxnOutcome,
};

/// A record as a message.
pub fn record_to_proto(record: Record) -> v1::Record {
    v1::Record {
        value: record.value,
        commit_ts: record.commit_ts.0,
        create_ts: record.create_ts.0,
        version: record.version,
    }
}

/// A record from a message.
pub fn record_from_proto(record: v1::Record) -> Record {
    Record {
        value: record.value,
        commit_ts: Timestamp(record.commit_ts),
        create_ts: Timestamp(record.create_ts),
        version: record.version,
    }
}

/// A row of a scan as a message; the key loses its keyspace byte. `Corrupt` where it is not a user's key.
pub fn row_to_proto(key: &Bytes, record: Record) -> Result<v1::Row> {
    let key = strip_user(key).ok_or_else(|| {
        Error::corrupt(format!("the row {} is not a user's: a scan must not show it", printable(key)))
    })?;
    Ok(v1::Row { key, record: Some(record_to_proto(record)) })
}

/// A row from a message: the user's key and the record.
pub fn row_from_proto(row: v1::Row) -> Result<(Bytes, Record)> {
    match row.record {
        Some(record) => Ok((row.key, record_from_proto(record))),
        None => {
            Err(Error::corrupt(format!("the peer sent the row {} without a record", printable(&row.key))))
        }
    }
}

/// The reply of a get.
pub fn get_reply(record: Option<Record>, served: v1::Served) -> v1::GetReply {
    v1::GetReply { record: record.map(record_to_proto), served: Some(served) }
}

/// The reply of a get of several keys, in their order.
pub fn get_many_reply(
    records: Vec<Option<Record>>,
    at: Timestamp,
    served: Vec<v1::Served>,
) -> v1::GetManyReply {
    let records =
        records.into_iter().map(|record| v1::MaybeRecord { record: record.map(record_to_proto) }).collect();
    v1::GetManyReply { records, at_ts: at.0, served }
}

/// Who answered a read, as a message.
pub fn served_to_proto(served: Served) -> v1::Served {
    use v1::served::{Level, Role};
    let role = match served.role {
        ReplicaRole::Leader => Role::Leader,
        ReplicaRole::Follower => Role::Follower,
    };
    let level = match served.level {
        ReadLevel::Linearizable => Level::Linearizable,
        ReadLevel::Snapshot => Level::Snapshot,
        ReadLevel::Bounded => Level::Bounded,
    };
    v1::Served {
        node: served.node.0,
        role: role.into(),
        level: level.into(),
        at_ts: served.at_ts.0,
        staleness_ms: u32::try_from(served.staleness_ms).unwrap_or(u32::MAX),
        asked_leader: served.asked_leader,
        load: served.load,
        slow_nodes: Vec::new(),
    }
}

/// Who answered a read; `None` where the message does not say.
pub fn served_from_proto(served: &v1::Served) -> Option<Served> {
    use v1::served::{Level, Role};
    let role = match served.role() {
        Role::Leader => ReplicaRole::Leader,
        Role::Follower => ReplicaRole::Follower,
        Role::Unspecified => return None,
    };
    let level = match served.level() {
        Level::Linearizable => ReadLevel::Linearizable,
        Level::Snapshot => ReadLevel::Snapshot,
        Level::Bounded => ReadLevel::Bounded,
        Level::Unspecified => return None,
    };
    Some(Served {
        node: NodeId(served.node),
        role,
        level,
        at_ts: Timestamp(served.at_ts),
        staleness_ms: served.staleness_ms.into(),
        asked_leader: served.asked_leader,
        load: served.load,
    })
}

fn unexpected<T>(what: &str, outcome: &Outcome) -> Result<T> {
    match outcome {
        Outcome::Refused(refusal) => Err(refusal_to_error(refusal)),
        // An id that is used for two different requests gets the outcome of the first (rule R8).
        _ => Err(Error::invalid(format!(
            "a {what} got the outcome of another kind of request: its request id was used before; draw a new one \
             for each write"
        ))),
    }
}

/// The reply of a put; an error where it was refused.
pub fn put_reply(outcome: Outcome) -> Result<v1::PutReply> {
    match outcome {
        Outcome::Put { commit_ts, version, create_ts } => {
            Ok(v1::PutReply { commit_ts: commit_ts.0, version, create_ts: create_ts.0 })
        }
        other => unexpected("put", &other),
    }
}

/// The reply of a delete; an error where it was refused.
pub fn delete_reply(outcome: Outcome) -> Result<v1::DeleteReply> {
    match outcome {
        Outcome::Deleted { commit_ts, existed } => Ok(v1::DeleteReply { commit_ts: commit_ts.0, existed }),
        other => unexpected("delete", &other),
    }
}

/// The reply of a compare-and-swap; an error where it was refused.
pub fn compare_and_swap_reply(outcome: Outcome) -> Result<v1::CompareAndSwapReply> {
    let mut reply = v1::CompareAndSwapReply::default();
    match outcome {
        Outcome::Put { commit_ts, version, create_ts } => {
            reply.swapped = true;
            reply.commit_ts = commit_ts.0;
            reply.version = version;
            reply.create_ts = create_ts.0;
        }
        Outcome::Deleted { commit_ts, .. } => {
            reply.swapped = true;
            reply.commit_ts = commit_ts.0;
        }
        Outcome::NotMatched { commit_ts, current } => {
            reply.commit_ts = commit_ts.0;
            reply.current = current.map(record_to_proto);
        }
        other => return unexpected("compare-and-swap", &other),
    }
    Ok(reply)
}

/// The reply of an add; an error where it was refused.
pub fn add_reply(outcome: Outcome) -> Result<v1::AddReply> {
    match outcome {
        Outcome::Added { commit_ts, value } => Ok(v1::AddReply { commit_ts: commit_ts.0, value }),
        other => unexpected("add", &other),
    }
}

/// The reply of a batch; an error where it was refused.
pub fn batch_reply(outcome: Outcome) -> Result<v1::BatchReply> {
    match outcome {
        Outcome::Batch { commit_ts, succeeded, results } => Ok(v1::BatchReply {
            succeeded,
            commit_ts: commit_ts.0,
            results: results.into_iter().map(result_to_proto).collect(),
        }),
        other => unexpected("batch", &other),
    }
}

/// The reply of any write; an error where it was refused.
pub fn write_reply(kind: WriteKind, outcome: Outcome) -> Result<Reply> {
    Ok(match kind {
        WriteKind::Put => Reply::Put(put_reply(outcome)?),
        WriteKind::Delete => Reply::Delete(delete_reply(outcome)?),
        WriteKind::CompareAndSwap => Reply::CompareAndSwap(compare_and_swap_reply(outcome)?),
        WriteKind::Add => Reply::Add(add_reply(outcome)?),
        WriteKind::Batch => Reply::Batch(batch_reply(outcome)?),
    })
}

fn result_to_proto(result: BatchResult) -> v1::StepResult {
    use v1::step_result::Result as Proto;
    let result = match result {
        BatchResult::Put { version, create_ts } => {
            Proto::Put(v1::PutResult { version, create_ts: create_ts.0 })
        }
        BatchResult::Deleted { existed } => Proto::Deleted(existed),
        BatchResult::Added { value } => Proto::Added(value),
        BatchResult::Got { record } => Proto::Got(v1::MaybeRecord { record: record.map(record_to_proto) }),
    };
    v1::StepResult { result: Some(result) }
}

fn result_from_proto(result: v1::StepResult) -> Result<BatchResult> {
    use v1::step_result::Result as Proto;
    Ok(match result.result {
        Some(Proto::Put(put)) => {
            BatchResult::Put { version: put.version, create_ts: Timestamp(put.create_ts) }
        }
        Some(Proto::Deleted(existed)) => BatchResult::Deleted { existed },
        Some(Proto::Added(value)) => BatchResult::Added { value },
        Some(Proto::Got(got)) => BatchResult::Got { record: got.record.map(record_from_proto) },
        None => return Err(Error::corrupt("the peer sent an empty result of a batch's step")),
    })
}

/// The outcome in the reply of a write. The reply's own error where it is one; `Corrupt` where it is not a
/// write's reply. A compare-and-swap that removed the key says that it existed, which its reply leaves open.
pub fn outcome_from_reply(reply: Reply) -> Result<Outcome> {
    Ok(match reply {
        Reply::Error(error) => return Err(error_from_proto(error)),
        Reply::Put(put) => Outcome::Put {
            commit_ts: Timestamp(put.commit_ts),
            version: put.version,
            create_ts: Timestamp(put.create_ts),
        },
        Reply::Delete(delete) => {
            Outcome::Deleted { commit_ts: Timestamp(delete.commit_ts), existed: delete.existed }
        }
        Reply::CompareAndSwap(swap) => compare_and_swap_outcome(swap),
        Reply::Add(add) => Outcome::Added { commit_ts: Timestamp(add.commit_ts), value: add.value },
        Reply::Batch(batch) => Outcome::Batch {
            commit_ts: Timestamp(batch.commit_ts),
            succeeded: batch.succeeded,
            results: batch.results.into_iter().map(result_from_proto).collect::<Result<_>>()?,
        },
        Reply::Commit(commit) => {
            Outcome::Txn(TxnOutcome::Committed { commit_ts: Timestamp(commit.commit_ts) })
        }
        Reply::Get(_)
        | Reply::GetMany(_)
        | Reply::ScanPage(_)
        | Reply::ChangesPage(_)
        | Reply::Consumer(_)
        | Reply::IndexCatalogue(_)
        | Reply::IndexVersion(_)
        | Reply::SagaCatalogue(_)
        | Reply::Saga(_)
        | Reply::Timestamp(_)
        | Reply::Empty(_) => {
            return Err(Error::corrupt("the peer answered a write with the reply of another call"));
        }
    })
}

fn compare_and_swap_outcome(swap: v1::CompareAndSwapReply) -> Outcome {
    let commit_ts = Timestamp(swap.commit_ts);
    match (swap.swapped, swap.version) {
        (false, _) => Outcome::NotMatched { commit_ts, current: swap.current.map(record_from_proto) },
        (true, 0) => Outcome::Deleted { commit_ts, existed: true },
        (true, version) => Outcome::Put { commit_ts, version, create_ts: Timestamp(swap.create_ts) },
    }
}
