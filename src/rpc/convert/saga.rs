//! What workers of sagas tell, as messages.

use crate::rpc::v1;
use crate::saga::Failure;

/// More of a failure's message, and of its kind, is not kept: all tasks of the longest saga may have failed, and are one
/// row.
const MESSAGE_BYTES: usize = 1_024;
const KIND_BYTES: usize = 64;

fn cut(mut text: String, bytes: usize) -> String {
    let boundary = (0..=bytes.min(text.len())).rev().find(|at| text.is_char_boundary(*at));
    text.truncate(boundary.unwrap_or(0));
    text
}

/// A failure from a message, cut to what is kept.
pub fn failure_from_proto(failure: v1::SagaFailure) -> Failure {
    Failure {
        message: cut(failure.message, MESSAGE_BYTES),
        kind: cut(failure.kind, KIND_BYTES),
        is_final: failure.is_final,
        did_nothing: failure.did_nothing,
    }
}

/// A failure as a message.
pub fn failure_to_proto(failure: Failure) -> v1::SagaFailure {
    let Failure { message, kind, is_final, did_nothing } = failure;
    v1::SagaFailure { message, kind, is_final, did_nothing }
}

#[cfg(test)]
mod tests {
    use super::cut;

    #[test]
    fn what_is_too_long_is_cut_between_characters() {
        for (text, bytes, wanted) in
            [("", 3, ""), ("abc", 3, "abc"), ("abcd", 3, "abc"), ("aéé", 4, "aé"), ("漢", 2, "")]
        {
            assert_eq!(cut(text.to_owned(), bytes), wanted);
        }
    }
}
