//! Proto to `types/` and back.
//!
//! Users' keys get their keyspace byte here on the way in and lose it on the way out; what comes in is
//! validated first, so that everything behind these functions may rely on the limits.

mod changes;
mod cluster;
mod commit;
mod error;
#[cfg(feature = "index")]
mod index;
mod reply;
mod request;
#[cfg(feature = "client")]
mod saga;

pub use changes::{
    ChangesAsk, changes_ask_from_proto, changes_from_proto, changes_to_proto, followed, range_from_proto,
    range_to_proto, user_changes, user_part,
};
pub use cluster::{descriptor_from_proto, descriptor_to_proto, node_to_proto};
pub use commit::{abort_to_error, commit_reply, commit_to_proto};
pub use error::{
    ERROR_BIN_METADATA, ERROR_METADATA, error_from_proto, error_from_status, error_to_proto, error_to_status,
    kind_from_name, printable, printable_internal, refusal_to_error,
};
#[cfg(feature = "index")]
pub use index::{index_spec_from_proto, index_spec_to_proto};
pub use reply::{
    add_reply, batch_reply, compare_and_swap_reply, delete_reply, get_many_reply, get_reply,
    outcome_from_reply, put_reply, record_from_proto, record_to_proto, row_from_proto, row_to_proto,
    served_from_proto, served_to_proto, write_reply,
};
pub use request::{
    Call, SagaPart, Scan, WriteKind, call_from_proto, expect_from_proto, expect_to_proto, header_of,
    operation_to_proto, request_id_to_proto, scan_from_proto,
};
#[cfg(feature = "client")]
pub use saga::{failure_from_proto, failure_to_proto};

#[cfg(test)]
mod tests;
