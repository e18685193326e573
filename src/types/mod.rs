//! Floor 0: the words everything else is written in. Imports no other module of the crate.

mod change;
mod command;
mod descriptor;
mod error;
mod id;
mod key;
pub mod limits;
mod read;
mod record;
mod timestamp;
mod txn;

pub use change::{Before, Change, Changes};
pub use command::{BatchResult, Condition, Expect, Operation, Outcome, Refusal, RequestId, Step};
pub use descriptor::{Epoch, NodeRecord, ShardDescriptor};
pub use error::{Conflict, ConflictReason, Error, ErrorKind, LeaderHint, Moved, Result};
pub use id::{ClusterId, NodeId, ShardId, StoreId};
pub use key::{Direction, KeyRange, is_name, key_after, prefix_end};
pub use read::{ReadAt, ReadLevel, ReplicaRole, Served};
pub use record::Record;
pub use timestamp::Timestamp;
pub use txn::{AbortReason, Decision, Lock, TxnCommand, TxnId, TxnOutcome, TxnPart, TxnStatus, TxnWrite};
