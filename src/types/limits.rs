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
/// How long a replica waits for a change, at most, in milliseconds.
pub const MAX_CHANGES_WAIT_MS: u64 = 10_000;
/// What a page of changes tells of values from before, at most, in bytes for each transaction.
pub const MAX_BEFORE_BYTES: usize = 2 * 1024 * 1024;
/// The most ranges and prefixes, together, that one follower of changes may name.
pub const MAX_FOLLOWED_RANGES: usize = 100;
/// The most characters of a name: of a consumer, a projection, an index, a field of one.
pub const MAX_NAME_BYTES: usize = 64;
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
/// The most keys that one transaction may read and write together, each list counted on its own.
pub const MAX_TXN_KEYS: usize = 10_000;
/// The most ranges that one transaction may read.
pub const MAX_TXN_RANGES: usize = 1_000;
/// The largest transaction, in bytes of keys and values together. Its lifetime is [`MAX_COMMAND_AGE_MS`].
pub const MAX_TXN_BYTES: usize = MAX_BATCH_BYTES;
/// The most keys, and bytes, of one transaction of the cluster's own: what the largest one of users changes in a query
/// index, at most four rows for each of its own, and the checkpoint that is read and written.
pub const MAX_OWN_TXN_KEYS: usize = 4 * MAX_TXN_KEYS + 2;
/// The same, in bytes of keys and values together.
pub const MAX_OWN_TXN_BYTES: usize = 2 * MAX_TXN_BYTES;
/// A commit over several shards that touches more keys than this, or any range, takes two rounds: its
/// STAGING record would list them all, and whoever meets a lock would have to ask for each.
pub const MAX_LISTED_KEYS: usize = 64;
/// The same limit, in bytes of the keys.
pub const MAX_LISTED_BYTES: usize = 16 * 1024;
/// Whoever meets a lock older than this, by oracle time, may end its transaction (rule R5).
pub const LOCK_TTL_MS: u64 = 3_000;
/// How far the safe point of garbage collection stays behind. Not less than a transaction may live (rule R7).
pub const RETENTION_MS: u64 = MAX_COMMAND_AGE_MS;
/// The most that a bounded read may allow for: older versions may not be kept.
pub const MAX_STALENESS_MS: u64 = RETENTION_MS;
/// The most fields that an index is ordered or grouped by.
pub const MAX_INDEX_FIELDS: usize = 8;
/// The most covering fields of an index.
pub const MAX_INDEX_COVERING_FIELDS: usize = 16;
/// The longest JSON path of a field, in bytes.
pub const MAX_INDEX_PATH_BYTES: usize = 256;
/// The longest key of an index row, in bytes, with everything in it: index, fields, and the key of the user's row.
/// One byte below the longest internal key, since a scan goes on behind a row at its key and a zero byte. What would
/// take more can't be indexed, like a field of a wrong type.
pub const MAX_INDEX_KEY_BYTES: usize = MAX_KEY_BYTES;
/// The most that the covering fields of one row may take, in bytes. What would take more can't be indexed.
pub const MAX_INDEX_COVERING_BYTES: usize = 64 * 1024;
/// The longest filter, order or list of fields of a query, in bytes of text.
pub const MAX_QUERY_BYTES: usize = 2 * 1024;
/// The most conditions of a query.
pub const MAX_QUERY_CONDITIONS: usize = 32;
/// The most ranges of an index that one query reads. Lists of values that would make more are checked row by row.
pub const MAX_QUERY_RANGES: usize = 64;
/// The results in a page of a query that says nothing about it. The most is [`MAX_PAGE_ROWS`].
pub const DEFAULT_QUERY_LIMIT: usize = 100;
/// The most sagas that one transaction may start, a step that it is counted too.
pub const MAX_TXN_SAGAS: usize = 100;
/// The most steps of a saga.
pub const MAX_SAGA_STEPS: usize = 256;
/// The largest definition of a saga, in bytes of JSON.
pub const MAX_SAGA_DEFINITION_BYTES: usize = 256 * 1024;
/// The longest wait that a saga's definition may name: ten years, in milliseconds.
pub const MAX_SAGA_WAIT_MS: u64 = 10 * 365 * 24 * 60 * 60 * 1_000;
/// The longest id of a saga, in bytes.
pub const MAX_SAGA_ID_BYTES: usize = 200;
/// The largest input of a saga, output of a step, or payload of a signal, in bytes; and all of its waiting signals together.
pub const MAX_SAGA_PAYLOAD_BYTES: usize = 256 * 1024;
/// The most that a saga's input, outputs and waiting signals may come to, in bytes.
pub const MAX_SAGA_BYTES: usize = 2 * 1024 * 1024;
/// The most signals that wait in a saga.
pub const MAX_SAGA_SIGNALS: usize = 1_000;
/// The most attributes that a saga is found by.
pub const MAX_SAGA_ATTRIBUTES: usize = 16;
/// The longest value of an attribute of a saga, in bytes.
pub const MAX_SAGA_ATTRIBUTE_BYTES: usize = 256;
/// The most tasks that a worker takes at once.
pub const MAX_SAGA_TASKS: usize = 256;
/// The largest priority of a saga.
pub const MAX_SAGA_PRIORITY: u32 = 9;
