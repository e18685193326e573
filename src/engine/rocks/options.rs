//! How RocksDB is set up: what each family is read and written like, within a bound on memory.

use rocksdb::{BlockBasedOptions, Cache, DBCompressionType, DBRecoveryMode, Options};

use super::compaction::Factory;
use crate::engine::Family;
use crate::engine::drops::Drops;

const MIB: usize = 1024 * 1024;

/// What a node may choose about its database.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RocksOptions {
    /// Bytes of blocks of files that are kept in memory, for all families together.
    pub block_cache_bytes: usize,
    /// Bytes of writes that are kept in memory before they go to files, for all families together.
    pub write_buffer_bytes: usize,
    /// Threads that flush and compact in the background.
    pub background_jobs: u16,
    /// The most files held open at once.
    pub max_open_files: u32,
}

impl Default for RocksOptions {
    fn default() -> Self {
        Self {
            block_cache_bytes: 128 * MIB,
            write_buffer_bytes: 128 * MIB,
            background_jobs: 2,
            max_open_files: 1024,
        }
    }
}

impl RocksOptions {
    /// The options of the whole database.
    pub(super) fn database(&self) -> Options {
        let mut options = Options::default();
        options.create_if_missing(true);
        options.create_missing_column_families(true);
        // A torn tail of the log is where the crash was; everything before it is a prefix of the batches.
        options.set_wal_recovery_mode(DBRecoveryMode::PointInTime);
        options.set_paranoid_checks(true);
        options.set_db_write_buffer_size(self.write_buffer_bytes);
        // A family that is rarely written must not hold old logs back for long: they are read at start.
        options.set_max_total_wal_size(2 * self.write_buffer_bytes as u64);
        options.set_max_background_jobs(i32::from(self.background_jobs));
        options.set_max_open_files(i32::try_from(self.max_open_files).unwrap_or(i32::MAX));
        options.set_bytes_per_sync(MIB as u64);
        options.set_keep_log_file_num(4);
        options.set_max_log_file_size(16 * MIB);
        options
    }

    /// The options of the families, which share one cache. Compaction asks `drops` what to drop.
    pub(super) fn families(&self, drops: &Drops) -> Vec<(Family, Options)> {
        let cache = Cache::new_lru_cache(self.block_cache_bytes);
        let options = |family| {
            let mut options = self.family(family, &cache);
            if Family::SHARD_DATA.contains(&family) {
                options.set_compaction_filter_factory(Factory::new(family, drops.clone()));
            }
            (family, options)
        };
        Family::ALL.into_iter().map(options).collect()
    }

    fn family(&self, family: Family, cache: &Cache) -> Options {
        let mut blocks = BlockBasedOptions::default();
        blocks.set_block_cache(cache);
        blocks.set_block_size(16 * 1024);
        blocks.set_format_version(5);
        // Indexes and filters count against the cache, so that memory is bounded however large the data.
        blocks.set_cache_index_and_filter_blocks(true);
        blocks.set_pin_l0_filter_and_index_blocks_in_cache(true);
        if matches!(family, Family::Current | Family::Lock | Family::Txn) {
            blocks.set_bloom_filter(10.0, false);
        }
        let mut options = Options::default();
        options.set_block_based_table_factory(&blocks);
        options.set_level_compaction_dynamic_level_bytes(true);
        options.set_write_buffer_size(self.write_buffer_bytes / 4);
        options.set_max_write_buffer_number(3);
        match family {
            Family::Log => {
                // Written once, read from the tail cache, removed from the front: most of it never leaves
                // the first levels, where compressing it would only cost.
                options.set_compression_type(DBCompressionType::None);
                options.set_bottommost_compression_type(DBCompressionType::Lz4);
                options.set_target_file_size_base(16 * MIB as u64);
                options.set_max_bytes_for_level_base(64 * MIB as u64);
            }
            Family::Group => {
                // Few keys, overwritten by every apply.
                options.set_compression_type(DBCompressionType::None);
                options.set_write_buffer_size(8 * MIB);
            }
            Family::Lock => {
                // Rows live for milliseconds. A small buffer, soon flushed, keeps the remains few that a scan
                // walks over.
                options.set_compression_type(DBCompressionType::None);
                options.set_write_buffer_size(4 * MIB);
                options.set_level_zero_file_num_compaction_trigger(2);
            }
            _ => {
                options.set_compression_type(DBCompressionType::Lz4);
                options.set_bottommost_compression_type(DBCompressionType::Zstd);
            }
        }
        options
    }
}

/// The options of files of staged rows.
pub(super) fn staged_files() -> Options {
    let mut options = Options::default();
    options.set_compression_type(DBCompressionType::Lz4);
    options
}
