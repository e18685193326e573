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
        records.insert(record.id, record.clone());
        let mut batch = Batch::new();
        let book: Vec<&NodeRecord> = records.values().collect();
        batch.put(Family::Group, keys::node_record(BOOK), codec::encode(&book));
        self.engine.write(batch, Durability::Buffered)
    }
}
