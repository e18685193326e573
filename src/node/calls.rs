//! Small calls between the nodes of a cluster: timestamps, the map, writes to the system keyspace.

use bytes::Bytes;
use prost::Message;
use serde::{Deserialize, Serialize};

use crate::codec;
use crate::rpc::v1::GetMapReply;
use crate::types::{Error, Operation, Outcome, RequestId, Result, Timestamp};

/// Asks the leader of the system shard for timestamps.
pub const CUT_TIMESTAMPS: u32 = 1;
/// Asks for the map as the other node knows it.
pub const GET_MAP: u32 = 2;
/// Asks the leader of the system shard to execute an operation on the system keyspace.
pub const SYSTEM_OPERATION: u32 = 3;

/// The body of [`SYSTEM_OPERATION`].
#[derive(Serialize, Deserialize)]
pub struct SystemOperation {
    /// Recognises a retry.
    pub id: RequestId,
    /// What to do.
    pub operation: Operation,
}

/// The body of [`CUT_TIMESTAMPS`].
pub fn encode_count(count: u64) -> Bytes {
    Bytes::from(codec::encode(&count))
}

/// Reads the body of [`CUT_TIMESTAMPS`].
pub fn decode_count(body: &[u8]) -> Result<u64> {
    codec::decode(body, "a call for timestamps")
}

/// The answer to [`CUT_TIMESTAMPS`].
pub fn encode_timestamp(first: Timestamp) -> Bytes {
    Bytes::from(codec::encode(&first))
}

/// Reads the answer to [`CUT_TIMESTAMPS`].
pub fn decode_timestamp(body: &[u8]) -> Result<Timestamp> {
    codec::decode(body, "an answer of the timestamp oracle")
}

/// Reads the answer to [`GET_MAP`].
pub fn decode_map(body: Bytes) -> Result<GetMapReply> {
    GetMapReply::decode(body)
        .map_err(|error| Error::corrupt(format!("another node's map can't be decoded: {error}")))
}

/// The answer to [`SYSTEM_OPERATION`].
pub fn encode_outcome(outcome: &Outcome) -> Bytes {
    Bytes::from(codec::encode(outcome))
}

/// Reads the answer to [`SYSTEM_OPERATION`].
pub fn decode_outcome(body: &[u8]) -> Result<Outcome> {
    codec::decode(body, "the outcome of a system operation")
}
