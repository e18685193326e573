//! What workers of sagas tell, as messages.

use crate::rpc::v1;
use crate::saga::Failure;

/// More of a failure's message, and of its kind, than so many characters is not kept.
const MESSAGE_CHARS: usize = 2_000;
const KIND_CHARS: usize = 100;

/// A failure from a message, cut to what is kept.
pub fn failure_from_proto(failure: v1::SagaFailure) -> Failure {
    Failure {
        message: failure.message.chars().take(MESSAGE_CHARS).collect(),
        kind: failure.kind.chars().take(KIND_CHARS).collect(),
        is_final: failure.is_final,
        did_nothing: failure.did_nothing,
    }
}

/// A failure as a message.
pub fn failure_to_proto(failure: Failure) -> v1::SagaFailure {
    let Failure { message, kind, is_final, did_nothing } = failure;
    v1::SagaFailure { message, kind, is_final, did_nothing }
}
