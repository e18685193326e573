//! A task as its handler sees it, and what handlers answer.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio_util::sync::CancellationToken;

use super::SagaTask;
use crate::saga::Failure;
use crate::types::{Error, ErrorKind, Result};

/// A task that a worker does: one attempt at a step, at its compensation, or at its check. Cheap to clone.
#[derive(Clone)]
pub struct Task {
    task: Arc<SagaTask>,
    cancelled: CancellationToken,
}

impl Task {
    pub(super) fn new(task: SagaTask, cancelled: CancellationToken) -> Self {
        Self { task: Arc::new(task), cancelled }
    }

    /// All that is known of it.
    pub fn info(&self) -> &SagaTask {
        &self.task
    }

    /// The saga's id.
    pub fn saga_id(&self) -> &str {
        &self.task.saga_id
    }

    /// The step.
    pub fn step(&self) -> &str {
        &self.task.step
    }

    /// Which attempt this is, from 1 on.
    pub fn attempt(&self) -> u32 {
        self.task.attempt
    }

    /// The same for all attempts at the task: the idempotency key to give to services.
    pub fn key(&self) -> &str {
        &self.task.key
    }

    /// The saga's input.
    pub fn input(&self) -> &Bytes {
        &self.task.input
    }

    /// The saga's input, from JSON.
    ///
    /// # Errors
    ///
    /// A final failure that did nothing, where it is no such value.
    pub fn input_json<T: DeserializeOwned>(&self) -> Result<T, Failure> {
        from_json("the saga's input", &self.task.input)
    }

    /// What a step before came to. A compensation also sees its own step, where that is known.
    pub fn output(&self, step: &str) -> Option<&Bytes> {
        self.task.outputs.get(step)
    }

    /// What a step before came to, from JSON; `None` where it is not done.
    ///
    /// # Errors
    ///
    /// As for [`input_json`](Self::input_json).
    pub fn output_json<T: DeserializeOwned>(&self, step: &str) -> Result<Option<T>, Failure> {
        self.output(step).map(|output| from_json("the step's output", output)).transpose()
    }

    /// Whether the attempt is wanted no more: the saga goes back, or another attempt may have begun. A handler that takes
    /// long looks at it now and then.
    pub fn is_cancelled(&self) -> bool {
        self.cancelled.is_cancelled()
    }

    /// Returns once the attempt is wanted no more.
    pub async fn cancelled(&self) {
        self.cancelled.cancelled().await;
    }
}

impl fmt::Debug for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Task")
            .field("saga", &self.task.saga_id)
            .field("step", &self.task.step)
            .field("kind", &self.task.kind)
            .field("attempt", &self.task.attempt)
            .finish_non_exhaustive()
    }
}

fn from_json<T: DeserializeOwned>(what: &str, json: &[u8]) -> Result<T, Failure> {
    serde_json::from_slice(json)
        .map_err(|error| Failure::refused(format!("{what} is not as expected: {error}")))
}

/// A value as JSON.
///
/// # Errors
///
/// `Invalid` where it can't be written.
pub(super) fn to_json<T: Serialize + ?Sized>(value: &T) -> Result<Bytes> {
    match serde_json::to_vec(value) {
        Ok(json) => Ok(json.into()),
        Err(error) => Err(Error::invalid(format!("the value can't be written as JSON: {error}"))),
    }
}

impl Failure {
    /// The attempt did not succeed; another one may. It may have taken effect all the same: unless one does succeed, the
    /// step is compensated.
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), ..Self::default() }
    }

    /// The step can't be done, and nothing was: it is not tried again, nor compensated.
    pub fn refused(message: impl Into<String>) -> Self {
        Self { message: message.into(), is_final: true, did_nothing: true, ..Self::default() }
    }

    /// For programs: what a retry policy calls final goes by it.
    #[must_use]
    pub fn kind(self, kind: impl Into<String>) -> Self {
        Self { kind: kind.into(), ..self }
    }

    /// Another attempt would fail alike.
    #[must_use]
    pub fn final_one(self) -> Self {
        Self { is_final: true, ..self }
    }

    /// It is certain that the attempt did nothing.
    #[must_use]
    pub fn did_nothing(self) -> Self {
        Self { did_nothing: true, ..self }
    }
}

impl From<Error> for Failure {
    /// An error of the store is tried again, unless the request was wrong. Whether something was done, it does not say.
    fn from(error: Error) -> Self {
        let is_final = matches!(error.kind, ErrorKind::Invalid | ErrorKind::Corrupt);
        Self { message: error.message, kind: error.kind.name().to_owned(), is_final, did_nothing: false }
    }
}
