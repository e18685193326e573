//! Errors: refusals of the machine, messages, gRPC statuses.

use bytes::Bytes;
use prost::Message;
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::{Code, Status};

use super::commit::locked;
use super::{descriptor_from_proto, descriptor_to_proto};
use crate::codec::keyspace;
use crate::rpc::v1;
use crate::types::{
    Conflict, ConflictReason, Error, ErrorKind, LeaderHint, Moved, NodeId, Refusal, Timestamp,
};

/// The trailing metadata entry that names the kind of an error.
pub const ERROR_METADATA: &str = "kvorum-error";
/// The trailing metadata entry with the whole error, as an encoded `kvorum.v1.Error`.
pub const ERROR_BIN_METADATA: &str = "kvorum-error-bin";

/// Metadata larger than this could be refused by a peer's limit on headers: the hint is left out then.
const MAX_METADATA_BYTES: usize = 4 * 1024;
/// Longer keys are cut when they are shown.
const MAX_SHOWN_BYTES: usize = 64;

/// A user's key for a message: quoted, escaped where it is not printable, cut where it is long.
pub fn printable(key: &[u8]) -> String {
    let shown = &key[..key.len().min(MAX_SHOWN_BYTES)];
    let mut text = String::from("\"");
    for chunk in shown.utf8_chunks() {
        text.extend(chunk.valid().chars().flat_map(char::escape_debug));
        for byte in chunk.invalid() {
            text.push_str(&format!("\\x{byte:02x}"));
        }
    }
    text.push('"');
    if shown.len() < key.len() {
        text.push_str(&format!("... ({} bytes)", key.len()));
    }
    text
}

/// An internal key for a message: a user's key without its keyspace byte, as [`printable`] shows it.
pub fn printable_internal(key: &Bytes) -> String {
    match keyspace::strip_user(key) {
        Some(user) => printable(&user),
        None => printable(key),
    }
}

/// What a caller is told about a command that the machine refused.
pub fn refusal_to_error(refusal: &Refusal) -> Error {
    match refusal {
        Refusal::OutOfRange => Error::moved(
            "the shard does not hold one of the keys: it was split, or the request went by an old map; refresh \
             the map. A batch must keep to the keys of one shard",
            Moved::default(),
        ),
        Refusal::NotACounter { key } => Error::invalid(format!(
            "key {} does not hold a counter: a counter is a decimal number from {} to {} as text; put one, or add \
             to another key",
            printable_internal(key),
            i64::MIN,
            i64::MAX
        )),
        Refusal::CounterOverflow { key, value, delta } => Error::invalid(format!(
            "counter {} is {value}, and adding {delta} leaves the range of {} to {}: nothing was added",
            printable_internal(key),
            i64::MIN,
            i64::MAX
        )),
        Refusal::TooOld { age_ms } => Error::new(
            ErrorKind::TooOld,
            format!(
                "the request id was made {age_ms} ms ago, past the {} ms for which a retry is recognised: whether \
                 an earlier attempt took effect can't be known; read before doing it again",
                crate::types::limits::MAX_COMMAND_AGE_MS
            ),
        ),
        Refusal::FutureId { seen } => Error::invalid(format!(
            "the request id claims to have seen timestamp {seen}, which was not handed out before the request came: put \
             the newest timestamp of any reply there, never a clock's"
        )),
        Refusal::ResultTooLarge { limit_bytes } => Error::invalid(format!(
            "what the batch reads is more than {limit_bytes} bytes: nothing was written; read less in one batch, or \
             read apart from it"
        )),
        Refusal::Locked(lock) => locked(lock, false),
        Refusal::StaleTimestamp { closed } => Error::unavailable(format!(
            "the command's timestamp did not rise above {closed}, applied by a newer leader: nothing was done; \
             try again"
        )),
    }
}

/// The kind of a name; `None` where this version does not know it.
pub fn kind_from_name(name: &str) -> Option<ErrorKind> {
    use ErrorKind::{Conflict, Corrupt, Denied, Invalid, Moved, TooOld, Unavailable, Undetermined};
    [Conflict, Moved, Unavailable, Undetermined, Invalid, TooOld, Denied, Corrupt]
        .into_iter()
        .find(|kind| kind.name() == name)
}

fn moved_to_proto(moved: &Moved) -> v1::Moved {
    v1::Moved {
        shard: moved.shard.as_ref().map(descriptor_to_proto),
        leader_node: moved.leader.as_ref().map_or(0, |leader| leader.node.0),
        leader_grpc_addr: moved.leader.as_ref().map_or_else(String::new, |leader| leader.grpc_addr.clone()),
    }
}

/// A hint is only a hint: a part of it that makes no sense is left out.
fn moved_from_proto(moved: v1::Moved) -> Moved {
    let leader = (moved.leader_node != 0 && !moved.leader_grpc_addr.is_empty())
        .then_some(LeaderHint { node: NodeId(moved.leader_node), grpc_addr: moved.leader_grpc_addr });
    Moved { shard: moved.shard.and_then(|shard| descriptor_from_proto(shard).ok()), leader }
}

/// An error as a message.
pub fn error_to_proto(error: &Error) -> v1::Error {
    v1::Error {
        kind: error.kind.name().to_owned(),
        message: error.message.clone(),
        moved: error.moved.as_deref().map(moved_to_proto).map(Box::new),
        conflict: error.conflict.as_deref().map(conflict_to_proto).map(Box::new),
        overloaded: error.overloaded,
        oldest_ts: error.oldest.unwrap_or_default().0,
    }
}

fn conflict_to_proto(conflict: &Conflict) -> v1::Conflict {
    use v1::conflict::Reason;
    let reason = match conflict.reason {
        ConflictReason::Changed => Reason::Changed,
        ConflictReason::Locked => Reason::Locked,
        ConflictReason::RolledBack => Reason::RolledBack,
        ConflictReason::Counter => Reason::Counter,
        ConflictReason::Other => Reason::Unspecified,
    };
    v1::Conflict {
        reason: reason.into(),
        key: conflict.key.clone().unwrap_or_default(),
        ts: conflict.ts.unwrap_or_default().0,
        is_final: conflict.is_final,
    }
}

fn conflict_from_proto(conflict: v1::Conflict) -> Conflict {
    use v1::conflict::Reason;
    let reason = match conflict.reason() {
        Reason::Changed => ConflictReason::Changed,
        Reason::Locked => ConflictReason::Locked,
        Reason::RolledBack => ConflictReason::RolledBack,
        Reason::Counter => ConflictReason::Counter,
        Reason::Unspecified => ConflictReason::Other,
    };
    Conflict {
        reason,
        key: (!conflict.key.is_empty()).then_some(conflict.key),
        ts: (conflict.ts != 0).then_some(Timestamp(conflict.ts)),
        is_final: conflict.is_final,
    }
}

/// An error from a message. A kind that this version does not know promises nothing: it becomes
/// `Undetermined`.
pub fn error_from_proto(error: v1::Error) -> Error {
    let Some(kind) = kind_from_name(&error.kind) else {
        return Error::undetermined(format!(
            "{} (error of the kind {:?}, which this version does not know)",
            error.message, error.kind
        ));
    };
    Error {
        kind,
        message: error.message,
        moved: error.moved.map(|moved| Box::new(moved_from_proto(*moved))),
        conflict: error.conflict.map(|conflict| Box::new(conflict_from_proto(*conflict))),
        overloaded: error.overloaded,
        oldest: (error.oldest_ts != 0).then_some(Timestamp(error.oldest_ts)),
    }
}

const fn code(kind: ErrorKind) -> Code {
    match kind {
        ErrorKind::Conflict => Code::Aborted,
        ErrorKind::Moved => Code::FailedPrecondition,
        ErrorKind::Unavailable => Code::Unavailable,
        ErrorKind::Undetermined => Code::Unknown,
        ErrorKind::Invalid => Code::InvalidArgument,
        ErrorKind::TooOld => Code::OutOfRange,
        ErrorKind::Denied => Code::PermissionDenied,
        ErrorKind::Corrupt => Code::DataLoss,
    }
}

/// An error as a gRPC status: the code by kind, the kind's name and the whole error in the metadata.
pub fn error_to_status(error: &Error) -> Status {
    let mut metadata = MetadataMap::new();
    metadata.insert(ERROR_METADATA, MetadataValue::from_static(error.kind.name()));
    // The message travels in the status itself; the metadata only adds what a status can't carry.
    let mut whole = error_to_proto(error);
    whole.message = String::new();
    if whole.encoded_len() > MAX_METADATA_BYTES {
        // Whether a refusal is final must be told, whatever key it was.
        whole.moved = None;
        if let Some(conflict) = &mut whole.conflict {
            conflict.key = Bytes::new();
        }
    }
    let encoded = whole.encode_to_vec();
    if encoded.len() <= MAX_METADATA_BYTES {
        metadata.insert_bin(ERROR_BIN_METADATA, MetadataValue::from_bytes(&encoded));
    }
    Status::with_metadata(code(error.kind), error.message.clone(), metadata)
}

/// An error from a gRPC status: from its metadata where kvorum made it, else by its code. A code that
/// promises nothing becomes `Undetermined`.
pub fn error_from_status(status: &Status) -> Error {
    let whole = status
        .metadata()
        .get_bin(ERROR_BIN_METADATA)
        .and_then(|value| value.to_bytes().ok())
        .and_then(|bytes| v1::Error::decode(bytes).ok());
    if let Some(mut whole) = whole {
        whole.message = status.message().to_owned();
        return error_from_proto(whole);
    }
    let named =
        status.metadata().get(ERROR_METADATA).and_then(|name| name.to_str().ok()).and_then(kind_from_name);
    let kind = named.unwrap_or(match status.code() {
        Code::Aborted => ErrorKind::Conflict,
        Code::Unavailable | Code::ResourceExhausted => ErrorKind::Unavailable,
        Code::InvalidArgument | Code::Unimplemented | Code::NotFound => ErrorKind::Invalid,
        Code::PermissionDenied | Code::Unauthenticated => ErrorKind::Denied,
        Code::DataLoss => ErrorKind::Corrupt,
        _ => ErrorKind::Undetermined,
    });
    let message = match status.message() {
        "" => format!("the peer answered with gRPC status {:?} and no message", status.code()),
        message => message.to_owned(),
    };
    Error::new(kind, message)
}
