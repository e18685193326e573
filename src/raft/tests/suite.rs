//! openraft's own suite for log stores and state machines, on both engines.

use openraft::StorageError;
use openraft::testing::log::{StoreBuilder, Suite};

use crate::engine::{MemoryEngine, RocksEngine, RocksOptions, SharedEngine};
use crate::raft::{LogStore, LogWriter, ReplicaMachine, TypeConfig};
use crate::types::{NodeId, ShardId};

/// The suite makes node ids of numbers.
impl From<u64> for NodeId {
    fn from(id: u64) -> Self {
        NodeId(id)
    }
}

fn open(engine: SharedEngine) -> (LogStore, ReplicaMachine) {
    let writer = LogWriter::start(engine.clone()).expect("starts");
    let group = ShardId(7);
    let machine = ReplicaMachine::open(engine.clone(), writer.clone(), group).expect("opens").allow_gaps();
    // A cache of no bytes: what is on disk is read from there.
    let store = LogStore::open(engine, writer, group, 0).expect("opens");
    (store, machine)
}

struct OnDisk;

impl StoreBuilder<TypeConfig, LogStore, ReplicaMachine, tempfile::TempDir> for OnDisk {
    async fn build(&self) -> Result<(tempfile::TempDir, LogStore, ReplicaMachine), StorageError<TypeConfig>> {
        let dir = tempfile::tempdir().expect("a directory");
        let engine = RocksEngine::open(&dir.path().join("db"), &RocksOptions::default()).expect("opens");
        let (store, machine) = open(std::sync::Arc::new(engine));
        Ok((dir, store, machine))
    }
}

struct InMemory;

impl StoreBuilder<TypeConfig, LogStore, ReplicaMachine> for InMemory {
    async fn build(&self) -> Result<((), LogStore, ReplicaMachine), StorageError<TypeConfig>> {
        let (store, machine) = open(std::sync::Arc::new(MemoryEngine::new()));
        Ok(((), store, machine))
    }
}

#[tokio::test]
async fn openrafts_suite_passes_on_disk() {
    Suite::test_all(OnDisk).await.expect("the suite passes");
}

#[tokio::test]
async fn openrafts_suite_passes_in_memory() {
    Suite::test_all(InMemory).await.expect("the suite passes");
}
