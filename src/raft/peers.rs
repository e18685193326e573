//! The peer book: which node is where, and which store bears its id.

use std::collections::BTreeMap;

use parking_lot::RwLock;

use super::keys;
use crate::codec;
use crate::engine::{Batch, Durability, Family, SharedEngine};
use crate::types::{Error, NodeId, NodeRecord, Result};

/// The node's own record that holds the book. Numbers from 128 on are this module's.
const BOOK: u8 = 128;

/// Other nodes, as they last said of themselves. Stored, so that a restarted node finds the others.
///
/// A node id belongs to one store for ever: votes and entries that the store has acknowledged are in it.
/// A peer that comes with another store than the recorded one is a wiped node, and is refused.
pub struct PeerBook {
    engine: SharedEngine,
    own: NodeId,
    records: RwLock<BTreeMap<NodeId, NodeRecord>>,
}

impl PeerBook {
    /// Reads the book, and adds the `known` peers that are not in it.
    ///
    /// # Errors
    ///
    /// `Corrupt` where a record can't be read; what the engine says.
    pub fn open(engine: SharedEngine, own: NodeId, known: &[NodeRecord]) -> Result<Self> {
        let records: Vec<NodeRecord> = match engine.get(Family::Group, &keys::node_record(BOOK))? {
            Some(bytes) => codec::decode(&bytes, "the peer book")?,
            None => Vec::new(),
        };
        let records = records.into_iter().map(|record| (record.id, record)).collect();
        let book = Self { engine, own, records: RwLock::new(records) };
        for record in known {
            if record.id != own && book.get(record.id).is_none() {
                book.learn(record)?;
            }
        }
        Ok(book)
    }

    /// What is known of a node.
    pub fn get(&self, node: NodeId) -> Option<NodeRecord> {
        self.records.read().get(&node).cloned()
    }

    /// All other nodes, by id.
    pub fn all(&self) -> Vec<NodeRecord> {
        self.records.read().values().cloned().collect()
    }

    /// Takes in what a node says of itself, or what the registry says of it: a new peer, or a known one
    /// with a new address, zone or version. What is known already is not written again.
    ///
    /// # Errors
    ///
    /// `Denied` where the node's id is recorded with another store (a wiped node), or is this node's own.
    pub fn learn(&self, record: &NodeRecord) -> Result<()> {
        if record.id == self.own {
            return Err(Error::denied(format!(
                "node id {} is this node's own: another store ({}) must not use it",
                record.id, record.store
            )));
        }
        let mut records = self.records.write();
        match records.get(&record.id) {
            Some(known) if known.store != record.store => {
                return Err(Error::denied(format!(
                    "node {} is recorded with store {}, but now comes with store {}: it was wiped, and the \
                     votes and entries it acknowledged are gone. Start it with its old data directory, or \
                     let it join as a new node",
                    record.id, known.store, record.store
                )));
            }
            Some(known) if known == record => return Ok(()),
            _ => {}
        }
        // A store that is forgotten in a crash would let its wiped successor in, and an address is what
        // a restarted node finds the others by. Both are rare.
        let moved = records.get(&record.id).is_none_or(|known| {
            (&known.grpc_addr, &known.http_addr) != (&record.grpc_addr, &record.http_addr)
        });
        let durability = if moved { Durability::Synced } else { Durability::Buffered };
        let mut book = records.clone();
        book.insert(record.id, record.clone());
        let mut batch = Batch::new();
        batch.put(Family::Group, keys::node_record(BOOK), codec::encode(&book.values().collect::<Vec<_>>()));
        self.engine.write(batch, durability)?;
        // Only now: what could not be written is not known.
        *records = book;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::engine::{Engine, MemoryEngine};
    use crate::types::{ErrorKind, StoreId};

    #[test]
    fn a_store_and_an_address_are_synced_before_they_count() {
        let engine = Arc::new(MemoryEngine::new());
        let book = PeerBook::open(engine.clone(), NodeId(1), &[]).expect("opens");
        let first = NodeRecord {
            id: NodeId(2),
            store: StoreId(7),
            grpc_addr: "a:1".into(),
            http_addr: String::new(),
            zone: String::new(),
            version: "1".into(),
        };
        let syncs = |record: &NodeRecord| {
            let before = engine.stats().syncs;
            book.learn(record).expect("learns");
            engine.stats().syncs - before
        };
        assert_eq!(syncs(&first), 1, "a new store");
        assert_eq!(syncs(&first), 0, "known already");
        assert_eq!(syncs(&NodeRecord { grpc_addr: "b:1".into(), ..first.clone() }), 1, "a new address");
        let newer = NodeRecord { grpc_addr: "b:1".into(), version: "2".into(), ..first.clone() };
        assert_eq!(syncs(&newer), 0, "only another version");
        let wiped = NodeRecord { store: StoreId(8), ..newer.clone() };
        assert_eq!(book.learn(&wiped).expect_err("wiped").kind, ErrorKind::Denied);
        let again = PeerBook::open(engine.clone(), NodeId(1), &[]).expect("opens");
        assert_eq!(again.all(), [newer]);
    }
}
