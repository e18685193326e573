//! The rows of indexes, with the definitions that were read from them.

use std::collections::HashMap;
use std::ops::Deref;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::index::Definition;
use crate::node::rows::Rows;

/// Definitions that are kept in memory.
const MAX_DEFINITIONS: usize = 1_000;

/// The rows of indexes. Cheap to clone.
#[derive(Clone)]
pub struct Store {
    rows: Rows,
    /// Definitions that were read before. A version of an index never has another one.
    definitions: Arc<Mutex<HashMap<(u64, u32), Definition>>>,
}

impl Deref for Store {
    type Target = Rows;

    fn deref(&self) -> &Rows {
        &self.rows
    }
}

impl Store {
    /// Those that this node has replicas of.
    pub fn new(rows: Rows) -> Self {
        Self { rows, definitions: Arc::default() }
    }

    /// The definition of a version, where it was read before.
    pub(super) fn known_definition(&self, id: (u64, u32)) -> Option<Definition> {
        self.definitions.lock().get(&id).cloned()
    }

    /// Keeps a definition that was read.
    pub(super) fn keep_definition(&self, definition: &Definition) {
        let mut definitions = self.definitions.lock();
        if definitions.len() >= MAX_DEFINITIONS {
            definitions.clear();
        }
        definitions.insert((definition.id(), definition.version()), definition.clone());
    }
}
