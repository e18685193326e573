//! A network that fails on purpose: for tests of what happens when nodes can't hear each other.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::RwLock;

use crate::types::NodeId;

/// Which nodes this one can't hear and can't be heard by. Empty unless a test says otherwise.
#[derive(Default)]
pub struct Faults {
    any: AtomicBool,
    cut: RwLock<HashSet<NodeId>>,
}

impl Faults {
    /// From now on, every frame to and from the node is lost, silently, and no connection is made.
    pub fn cut(&self, node: NodeId) {
        let mut cut = self.cut.write();
        cut.insert(node);
        self.any.store(true, Ordering::Release);
    }

    /// Frames pass again.
    pub fn heal(&self) {
        let mut cut = self.cut.write();
        cut.clear();
        self.any.store(false, Ordering::Release);
    }

    /// Whether frames to and from the node are lost.
    pub(in crate::raft) fn is_cut(&self, node: NodeId) -> bool {
        self.any.load(Ordering::Acquire) && self.cut.read().contains(&node)
    }
}
