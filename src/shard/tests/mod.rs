//! Tests of the shard's machine: scripts on both engines, and a plain serial model.

mod model;
mod scripts;

use bytes::Bytes;

use super::{Command, Entry, State};
use crate::types::{Epoch, KeyRange, Operation, RequestId, ShardDescriptor, ShardId, Timestamp};

/// A shard of all keys that has applied nothing.
fn new_state() -> State {
    State::new(ShardDescriptor {
        id: ShardId::SYSTEM,
        range: KeyRange::all(),
        epoch: Epoch(1),
        replicas: Vec::new(),
    })
}
