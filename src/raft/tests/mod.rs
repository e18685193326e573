//! Tests of what stores: openraft's own suite, and engines that are cut off at every moment.

mod cut_engine;
mod cut_log;
mod cut_snapshot;
mod hosts;
mod log;
mod machine;
mod suite;

use std::sync::Arc;

use bytes::Bytes;
use openraft::impls::EntryPayload;
use openraft::storage::RaftStateMachine;

use super::machine::ReplicaMachine;
use super::{Entry, LeaderId, LogId, Payload};
use crate::codec;
use crate::engine::{Engine, Family, Row};
use crate::mvcc;
use crate::shard::{self, Command};
use crate::types::{
    Direction, Epoch, KeyRange, NodeId, Operation, RequestId, ShardDescriptor, ShardId, Timestamp,
};

fn log_id(term: u64, index: u64) -> LogId {
    LogId::new(LeaderId { term, node_id: NodeId(1) }, index)
}

/// An entry that puts a key; the higher the index, the higher the timestamp.
fn put_entry(term: u64, index: u64, key: &str, value: &str) -> Entry {
    let command = Command {
        id: RequestId { seen: Timestamp::from_ms(index), unique: u128::from(index * 1000 + term) },
        timestamp: Timestamp::from_ms(index + 1),
        operation: Operation::Put {
            key: Bytes::copy_from_slice(key.as_bytes()),
            value: Bytes::copy_from_slice(value.as_bytes()),
        },
    };
    let payload = Payload(codec::encode(&shard::Entry::Commands(vec![command])).into());
    Entry { log_id: log_id(term, index), payload: EntryPayload::Normal(payload) }
}

fn descriptor(group: u64, start: &'static str, end: &'static str) -> ShardDescriptor {
    ShardDescriptor {
        id: ShardId(group),
        range: KeyRange::new(start, Some(end.into())),
        epoch: Epoch(1),
        replicas: vec![NodeId(1), NodeId(2), NodeId(3)],
    }
}

/// The shard's rows, family by family.
fn rows(engine: &dyn Engine, shard: &ShardDescriptor) -> Vec<(Family, Vec<Row>)> {
    let view = engine.view();
    Family::SHARD_DATA
        .into_iter()
        .map(|family| {
            let range = mvcc::shard_rows(family, shard.id, &shard.range);
            let rows =
                view.scan(family, &range, Direction::Forward).collect::<Result<_, _>>().expect("reads");
            (family, rows)
        })
        .collect()
}

async fn apply(machine: &mut ReplicaMachine, entries: Vec<Entry>) {
    let entries = futures::stream::iter(entries.into_iter().map(|entry| Ok((entry, None))));
    machine.apply(entries).await.expect("applies");
}

fn shared(engine: impl Engine) -> Arc<dyn Engine> {
    Arc::new(engine)
}
