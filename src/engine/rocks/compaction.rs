//! What compaction drops: RocksDB asks for a filter at the start of each, and the filter asks the rule.
//!
//! RocksDB calls filters for every version of a row that it rewrites, also for such as a snapshot would show.

use std::ffi::CStr;
use std::sync::Arc;

use parking_lot::RwLock;
use rocksdb::CompactionDecision;
use rocksdb::compaction_filter::CompactionFilter;
use rocksdb::compaction_filter_factory::{CompactionFilterContext, CompactionFilterFactory};

use crate::engine::{DropRule, DropRules, Family};

/// The rules, once they are set. Families exist before they are.
pub(super) type SharedRules = Arc<RwLock<Option<Arc<dyn DropRules>>>>;

const NAME: &CStr = c"kvorum.drop";

/// Makes a filter for each compaction of a family.
pub(super) struct Factory {
    family: Family,
    rules: SharedRules,
}

impl Factory {
    pub(super) fn new(family: Family, rules: SharedRules) -> Self {
        Self { family, rules }
    }
}

impl CompactionFilterFactory for Factory {
    type Filter = Filter;

    fn create(&mut self, _context: CompactionFilterContext) -> Filter {
        let rules = self.rules.read().clone();
        Filter(rules.and_then(|rules| rules.begin(self.family)))
    }

    fn name(&self) -> &CStr {
        NAME
    }
}

/// One compaction's filter.
pub(super) struct Filter(Option<DropRule>);

impl CompactionFilter for Filter {
    fn filter(&mut self, _level: u32, key: &[u8], value: &[u8]) -> CompactionDecision {
        match &self.0 {
            Some(may_drop) if may_drop(key, value) => CompactionDecision::Remove,
            _ => CompactionDecision::Keep,
        }
    }

    fn name(&self) -> &CStr {
        NAME
    }
}
