//! Requests: from the wire into checked calls, and from operations to the wire.

use bytes::Bytes;

use super::changes::{ChangesAsk, changes_ask_from_proto};
use crate::codec::keyspace::{self, strip_user, user_key, user_range};
use crate::rpc::v1;
use crate::rpc::v1::session_request::Request;
use crate::rpc::validate::{self, CallHeader};
use crate::types::{
    Condition, Direction, Error, Expect, KeyRange, Operation, ReadAt, RequestId, Result, Step, Timestamp,
    TxnPart, limits,
};

/// Which reply a write wants.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WriteKind {
    /// `PutReply`.
    Put,
    /// `DeleteReply`.
    Delete,
    /// `CompareAndSwapReply`.
    CompareAndSwap,
    /// `AddReply`.
    Add,
    /// `BatchReply`.
    Batch,
}

/// A checked request. Keys carry their keyspace byte in front.
#[derive(Clone, PartialEq, Debug)]
pub enum Call {
    /// Changes a shard.
    Write {
        /// Which reply it wants.
        kind: WriteKind,
        /// What to do.
        operation: Operation,
    },
    /// Reads a key.
    Get {
        /// The key.
        key: Bytes,
        /// What it shall see.
        at: ReadAt,
    },
    /// Reads several keys at one timestamp.
    GetMany {
        /// The keys.
        keys: Vec<Bytes>,
        /// What it shall see; the latest is as of a timestamp taken after the request came.
        at: ReadAt,
    },
    /// Commits a transaction. Its id is `start_ts` and `id_unique`.
    Commit {
        /// The random part of the id: the request id's, or drawn where it has none.
        id_unique: u128,
        /// The timestamp that everything was read at; not 0, perhaps in the future.
        start_ts: Timestamp,
        /// All that was read and is written: in order, no key twice, ranges apart from each other; one write at
        /// least where it does nothing to sagas.
        part: TxnPart,
        /// What it does to sagas.
        sagas: SagaPart,
    },
    /// Reads a page of a scan.
    ScanPage(Scan),
    /// Reads a page of changes.
    ChangesPage(ChangesAsk),
    /// About named consumers.
    Consumer(v1::consumer_request::What),
    /// About the indexes that there are.
    IndexCatalogue(v1::index_catalogue_request::What),
    /// About one version of an index.
    IndexVersion {
        /// The index's id, and the version.
        version: (u64, u32),
        /// What is asked.
        what: v1::index_version_request::What,
    },
    /// About the definitions of sagas.
    SagaCatalogue(v1::saga_catalogue_request::What),
    /// About sagas.
    Saga {
        /// The key that it goes by, with its keyspace byte.
        place: Bytes,
        /// What is asked.
        what: v1::saga_request::What,
    },
    /// Asks for a timestamp.
    Timestamp,
    /// Does nothing.
    Empty,
}

/// What a transaction does to sagas besides what it writes.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct SagaPart {
    /// Those that it starts.
    pub starts: Vec<v1::SagaStart>,
    /// The step that it is.
    pub step: Option<v1::SagaStepDone>,
}

impl SagaPart {
    /// Whether it does nothing to sagas.
    pub fn is_empty(&self) -> bool {
        self.starts.is_empty() && self.step.is_none()
    }
}

/// A checked scan.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Scan {
    /// The range, with its keyspace byte; it lies in the users' keyspace, and may be empty.
    pub range: KeyRange,
    /// The order of the rows.
    pub direction: Direction,
    /// Whether values are left out.
    pub keys_only: bool,
    /// Stop after so many rows; at least 1.
    pub limit_rows: Option<u64>,
    /// Stop before keys and values come to more than this (one row at least); at least 1.
    pub limit_bytes: Option<u64>,
    /// What it shall see; the latest is as of a timestamp taken after the request came.
    pub at: ReadAt,
}

/// The header of a request, checked; the default one where the request has none.
pub fn header_of(request: &Request) -> Result<CallHeader> {
    let header = match request {
        Request::Put(request) => &request.header,
        Request::Get(request) => &request.header,
        Request::GetMany(request) => &request.header,
        Request::Delete(request) => &request.header,
        Request::CompareAndSwap(request) => &request.header,
        Request::Add(request) => &request.header,
        Request::Batch(request) => &request.header,
        Request::ScanPage(request) => match &request.scan {
            Some(scan) => &scan.header,
            None => &None,
        },
        Request::Commit(request) => &request.header,
        Request::ChangesPage(request) => &request.header,
        Request::Consumer(request) => &request.header,
        Request::IndexCatalogue(request) => &request.header,
        Request::IndexVersion(request) => &request.header,
        Request::SagaCatalogue(request) => &request.header,
        Request::Saga(request) => &request.header,
        Request::Timestamp(request) => &request.header,
        Request::Empty(_) => &None,
    };
    validate::header(header.as_ref())
}

/// A request, checked; its header is [`header_of`]'s.
pub fn call_from_proto(request: Request) -> Result<Call> {
    Ok(match request {
        Request::Put(put) => {
            validate::key(&put.key)?;
            validate::value(&put.key, &put.value)?;
            let operation = Operation::Put { key: user_key(&put.key), value: put.value };
            Call::Write { kind: WriteKind::Put, operation }
        }
        Request::Delete(delete) => {
            validate::key(&delete.key)?;
            let operation = Operation::Delete { key: user_key(&delete.key) };
            Call::Write { kind: WriteKind::Delete, operation }
        }
        Request::CompareAndSwap(swap) => {
            Call::Write { kind: WriteKind::CompareAndSwap, operation: compare_and_swap(swap)? }
        }
        Request::Add(add) => {
            validate::key(&add.key)?;
            let operation = Operation::Add { key: user_key(&add.key), delta: add.delta };
            Call::Write { kind: WriteKind::Add, operation }
        }
        Request::Batch(request) => Call::Write { kind: WriteKind::Batch, operation: batch(request)? },
        Request::Get(get) => {
            validate::key(&get.key)?;
            Call::Get { key: user_key(&get.key), at: validate::read_at(get.at_ts, get.max_staleness_ms)? }
        }
        Request::GetMany(get) => {
            validate::keys(&get.keys)?;
            let keys = get.keys.iter().map(|key| user_key(key)).collect();
            Call::GetMany { keys, at: validate::read_at(get.at_ts, get.max_staleness_ms)? }
        }
        Request::ScanPage(page) => {
            let scan = page.scan.ok_or_else(|| {
                Error::invalid(
                    "the page request has no scan: set `scan` to the part of the range that is left",
                )
            })?;
            Call::ScanPage(scan_from_proto(scan)?)
        }
        Request::Commit(commit) => super::commit::commit_from_proto(commit)?,
        Request::ChangesPage(page) => Call::ChangesPage(changes_ask_from_proto(page)?),
        Request::Consumer(request) => Call::Consumer(request.what.ok_or_else(|| {
            Error::invalid("the request about consumers is empty: set one of open, acknowledge, drop, list")
        })?),
        Request::IndexCatalogue(request) => Call::IndexCatalogue(request.what.ok_or_else(|| {
            Error::invalid("the request about indexes is empty: set one of create, rebuild, swap, cancel, drop, find, list")
        })?),
        Request::IndexVersion(request) => Call::IndexVersion {
            version: (request.id, request.version),
            what: request.what.ok_or_else(|| {
                Error::invalid(
                    "the request about a version of an index is empty: set one of query, reach_ts, progress, resume_without, \
                     dead_letters_after, replay",
                )
            })?,
        },
        Request::SagaCatalogue(request) => Call::SagaCatalogue(request.what.ok_or_else(|| {
            Error::invalid("the request about definitions of sagas is empty: set one of define, find, set_queue, queues")
        })?),
        Request::Saga(request) => {
            if request.place.first() != Some(&keyspace::SAGA) || request.place.len() > limits::MAX_KEY_BYTES {
                return Err(Error::invalid(
                    "the request about sagas has a place that is none of theirs: set it to how the rows of the saga begin",
                ));
            }
            let what = request
                .what
                .ok_or_else(|| Error::invalid("the request about sagas is empty: set one of start, get, ..."))?;
            Call::Saga { place: request.place, what }
        }
        Request::Timestamp(_) => Call::Timestamp,
        Request::Empty(_) => Call::Empty,
    })
}

fn compare_and_swap(swap: v1::CompareAndSwapRequest) -> Result<Operation> {
    validate::key(&swap.key)?;
    if let Some(value) = &swap.value {
        validate::value(&swap.key, value)?;
    }
    let expect = expect_from_proto(&swap.key, swap.expect)?;
    Ok(Operation::CompareAndSwap { key: user_key(&swap.key), expect, value: swap.value })
}

fn batch(batch: v1::BatchRequest) -> Result<Operation> {
    validate::batch(&batch)?;
    let condition = |condition: v1::Condition| {
        let expect = expect_from_proto(&condition.key, condition.expect)?;
        Ok(Condition { key: user_key(&condition.key), expect })
    };
    Ok(Operation::Batch {
        conditions: batch.conditions.into_iter().map(condition).collect::<Result<_>>()?,
        then: batch.then.into_iter().map(step_from_proto).collect::<Result<_>>()?,
        otherwise: batch.otherwise.into_iter().map(step_from_proto).collect::<Result<_>>()?,
    })
}

fn step_from_proto(step: v1::Step) -> Result<Step> {
    use v1::step::Step as Proto;
    match step.step {
        Some(Proto::Put(put)) => Ok(Step::Put { key: user_key(&put.key), value: put.value }),
        Some(Proto::Delete(key)) => Ok(Step::Delete { key: user_key(&key) }),
        Some(Proto::Add(add)) => Ok(Step::Add { key: user_key(&add.key), delta: add.delta }),
        Some(Proto::Get(key)) => Ok(Step::Get { key: user_key(&key) }),
        None => Err(Error::invalid("a step of the batch is empty: set one of put, delete, add, get")),
    }
}

/// What the key `of` must hold, checked.
pub fn expect_from_proto(of: &[u8], expect: Option<v1::Expect>) -> Result<Expect> {
    use v1::expect::Expect as Proto;
    validate::expect_bytes(of, expect.as_ref())?;
    match expect.and_then(|expect| expect.expect) {
        Some(Proto::Absent(_)) => Ok(Expect::Absent),
        Some(Proto::Present(_)) => Ok(Expect::Present),
        Some(Proto::Version(version)) => Ok(Expect::Version(version)),
        Some(Proto::CommitTs(ts)) => Ok(Expect::CommitTs(Timestamp(ts))),
        Some(Proto::Value(value)) => Ok(Expect::Value(value)),
        None => Err(Error::invalid("an expectation is empty")),
    }
}

/// What a key must hold, as a message.
pub fn expect_to_proto(expect: Expect) -> v1::Expect {
    use v1::expect::Expect as Proto;
    let expect = match expect {
        Expect::Absent => Proto::Absent(true),
        Expect::Present => Proto::Present(true),
        Expect::Version(version) => Proto::Version(version),
        Expect::CommitTs(ts) => Proto::CommitTs(ts.0),
        Expect::Value(value) => Proto::Value(value),
    };
    v1::Expect { expect: Some(expect) }
}

/// A scan, checked; prefix and bounds together make its range.
pub fn scan_from_proto(scan: v1::ScanRequest) -> Result<Scan> {
    validate::scan(&scan)?;
    let bounds = KeyRange::new(scan.start, scan.end);
    // Bounds that do not meet the prefix are no error: the scan finds nothing.
    let nothing = KeyRange::new(Bytes::new(), Some(Bytes::new()));
    let range = bounds.intersect(&KeyRange::prefix(scan.prefix)).unwrap_or(nothing);
    Ok(Scan {
        range: user_range(&range),
        direction: if scan.reverse { Direction::Reverse } else { Direction::Forward },
        keys_only: scan.keys_only,
        limit_rows: scan.limit_rows,
        limit_bytes: scan.limit_bytes,
        at: validate::read_at(scan.at_ts, scan.max_staleness_ms)?,
    })
}

/// A request id as a message.
pub fn request_id_to_proto(id: RequestId) -> v1::RequestId {
    v1::RequestId { seen_ts: id.seen.0, unique: Bytes::copy_from_slice(&id.unique.to_be_bytes()) }
}

/// An operation on users' keys as a request, to be passed on. `Corrupt` where a key is of another keyspace.
pub fn operation_to_proto(operation: Operation, header: v1::Header) -> Result<Request> {
    let header = Some(header);
    Ok(match operation {
        Operation::Put { key, value } => Request::Put(v1::PutRequest { header, key: user(&key)?, value }),
        Operation::Delete { key } => Request::Delete(v1::DeleteRequest { header, key: user(&key)? }),
        Operation::CompareAndSwap { key, expect, value } => {
            let (key, expect) = (user(&key)?, Some(expect_to_proto(expect)));
            Request::CompareAndSwap(v1::CompareAndSwapRequest { header, key, expect, value })
        }
        Operation::Add { key, delta } => Request::Add(v1::AddRequest { header, key: user(&key)?, delta }),
        Operation::Batch { conditions, then, otherwise } => {
            let condition = |Condition { key, expect }| {
                Ok(v1::Condition { key: user(&key)?, expect: Some(expect_to_proto(expect)) })
            };
            Request::Batch(v1::BatchRequest {
                header,
                conditions: conditions.into_iter().map(condition).collect::<Result<_>>()?,
                then: then.into_iter().map(step_to_proto).collect::<Result<_>>()?,
                otherwise: otherwise.into_iter().map(step_to_proto).collect::<Result<_>>()?,
            })
        }
        Operation::Txn(_) | Operation::AdvanceSafePoint { .. } => {
            return Err(Error::invalid("this command is sent between nodes only, never by a client"));
        }
    })
}

fn step_to_proto(step: Step) -> Result<v1::Step> {
    use v1::step::Step as Proto;
    let step = match step {
        Step::Put { key, value } => Proto::Put(v1::PutStep { key: user(&key)?, value }),
        Step::Delete { key } => Proto::Delete(user(&key)?),
        Step::Add { key, delta } => Proto::Add(v1::AddStep { key: user(&key)?, delta }),
        Step::Get { key } => Proto::Get(user(&key)?),
    };
    Ok(v1::Step { step: Some(step) })
}

pub(super) fn user(key: &Bytes) -> Result<Bytes> {
    strip_user(key).ok_or_else(|| {
        Error::corrupt(format!(
            "the key {} is not a user's key: it must not leave the node",
            super::printable(key)
        ))
    })
}
