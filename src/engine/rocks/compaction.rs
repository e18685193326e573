//! What compaction drops: RocksDB asks for a filter at the start of each, and the filter asks the rule.
//!
//! RocksDB calls filters for every version of a row that it rewrites, also for such as a snapshot would show.

use std::ffi::CStr;

use rocksdb::CompactionDecision;
use rocksdb::compaction_filter::CompactionFilter;
use rocksdb::compaction_filter_factory::{CompactionFilterContext, CompactionFilterFactory};

use crate::engine::Family;
use crate::engine::drops::{DropRule, Drops};

const NAME: &CStr = c"kvorum.drop";

/// Makes a filter for each compaction of a family.
pub(super) struct Factory {
    family: Family,
    drops: Drops,
}

impl Factory {
    pub(super) fn new(family: Family, drops: Drops) -> Self {
        Self { family, drops }
    }
}

impl CompactionFilterFactory for Factory {
    type Filter = Filter;

    fn create(&mut self, _context: CompactionFilterContext) -> Filter {
        Filter(self.drops.begin(self.family))
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
