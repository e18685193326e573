//! What a key holds.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::Timestamp;

/// A value and where it came from.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Record {
    /// The value's bytes.
    pub value: Bytes,
    /// When this version was committed.
    pub commit_ts: Timestamp,
    /// When the key was created: the commit timestamp of the first version since it was last absent.
    pub create_ts: Timestamp,
    /// Counts the versions since the key was created; the first is 1.
    pub version: u64,
}
