//! Every limit on what comes from outside, in one place.

/// The longest key, in bytes.
pub const MAX_KEY_BYTES: usize = 4 * 1024;
/// The largest value, in bytes.
pub const MAX_VALUE_BYTES: usize = 1024 * 1024;
/// The largest batch, in bytes of keys and values together.
pub const MAX_BATCH_BYTES: usize = 16 * 1024 * 1024;
/// The most conditions and steps in one batch.
pub const MAX_BATCH_STEPS: usize = 10_000;
/// The most that the gets of one batch may read, in bytes of keys and values: the outcome is kept for
/// retries, and must fit in a reply.
pub const MAX_BATCH_RESULT_BYTES: usize = MAX_BATCH_BYTES;
/// The most keys in one `get_many`.
pub const MAX_GET_KEYS: usize = 10_000;
/// The most that one `get_many` may read, in bytes of keys and values: the reply is one message.
pub const MAX_GET_BYTES: usize = MAX_BATCH_BYTES;
/// The most rows in one page of a scan; a longer scan takes several pages.
pub const MAX_PAGE_ROWS: usize = 10_000;
/// A page of a scan ends after the row that takes it past so many bytes of keys and values.
pub const MAX_PAGE_BYTES: usize = 1024 * 1024;
/// The largest message on a public connection: a full batch and room for its framing.
pub const MAX_MESSAGE_BYTES: usize = MAX_BATCH_BYTES + 4 * 1024 * 1024;
/// How long an id is recognised as a retry: a command whose id is older than this, measured against
/// the timestamp of its log entry, is refused as `TooOld` (rule R7).
pub const MAX_COMMAND_AGE_MS: u64 = 10 * 60 * 1000;
/// The longest deadline of a request; a longer one is cut to this.
pub const MAX_DEADLINE_MS: u64 = 5 * 60 * 1000;
/// The deadline of a request that names none.
pub const DEFAULT_DEADLINE_MS: u64 = 10 * 1000;
/// The most shards of a cluster.
pub const MAX_SHARDS: usize = 4096;
