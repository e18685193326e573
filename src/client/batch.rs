//! Building a batch: conditions, then, else, over keys of one shard.

use bytes::Bytes;

use crate::rpc::{convert, v1};
use crate::types::{BatchResult, Error, Expect, Record, Result, Timestamp};

/// Conditions and steps that take effect together or not at all, at one commit timestamp. Where all
/// conditions are met the `then` steps are taken, else the `otherwise` steps. Steps see what the steps
/// before them wrote. All keys must lie in one shard.
///
/// ```
/// use kvorum::client::{Batch, Expect};
///
/// let batch = Batch::new()
///     .when("stock/7", Expect::Present)
///     .then_add("stock/7", -1)
///     .then_put("order/7/1", "paid")
///     .otherwise_get("stock/7");
/// ```
#[derive(Clone, PartialEq, Debug, Default)]
#[must_use]
pub struct Batch {
    pub(super) request: v1::BatchRequest,
}

impl Batch {
    /// A batch without conditions or steps. It needs one step at least.
    pub fn new() -> Self {
        Self::default()
    }

    /// A condition; without any, the `then` steps are taken.
    pub fn when(mut self, key: impl AsRef<[u8]>, expect: Expect) -> Self {
        let expect = Some(convert::expect_to_proto(expect));
        self.request.conditions.push(v1::Condition { key: bytes(key), expect });
        self
    }

    /// Where the conditions are met: write a value.
    pub fn then_put(mut self, key: impl AsRef<[u8]>, value: impl Into<Bytes>) -> Self {
        self.request.then.push(put(key, value));
        self
    }

    /// Where the conditions are met: remove a key.
    pub fn then_delete(mut self, key: impl AsRef<[u8]>) -> Self {
        self.request.then.push(step(v1::step::Step::Delete(bytes(key))));
        self
    }

    /// Where the conditions are met: add to a counter.
    pub fn then_add(mut self, key: impl AsRef<[u8]>, delta: i64) -> Self {
        self.request.then.push(add(key, delta));
        self
    }

    /// Where the conditions are met: read a key.
    pub fn then_get(mut self, key: impl AsRef<[u8]>) -> Self {
        self.request.then.push(step(v1::step::Step::Get(bytes(key))));
        self
    }

    /// Where a condition is not met: write a value.
    pub fn otherwise_put(mut self, key: impl AsRef<[u8]>, value: impl Into<Bytes>) -> Self {
        self.request.otherwise.push(put(key, value));
        self
    }

    /// Where a condition is not met: remove a key.
    pub fn otherwise_delete(mut self, key: impl AsRef<[u8]>) -> Self {
        self.request.otherwise.push(step(v1::step::Step::Delete(bytes(key))));
        self
    }

    /// Where a condition is not met: add to a counter.
    pub fn otherwise_add(mut self, key: impl AsRef<[u8]>, delta: i64) -> Self {
        self.request.otherwise.push(add(key, delta));
        self
    }

    /// Where a condition is not met: read a key.
    pub fn otherwise_get(mut self, key: impl AsRef<[u8]>) -> Self {
        self.request.otherwise.push(step(v1::step::Step::Get(bytes(key))));
        self
    }

    /// Every key that the batch names.
    pub(super) fn keys(&self) -> impl Iterator<Item = &Bytes> {
        let conditions = self.request.conditions.iter().map(|condition| &condition.key);
        conditions.chain(self.request.then.iter().chain(&self.request.otherwise).filter_map(step_key))
    }
}

fn bytes(key: impl AsRef<[u8]>) -> Bytes {
    Bytes::copy_from_slice(key.as_ref())
}

fn step(step: v1::step::Step) -> v1::Step {
    v1::Step { step: Some(step) }
}

fn put(key: impl AsRef<[u8]>, value: impl Into<Bytes>) -> v1::Step {
    step(v1::step::Step::Put(v1::PutStep { key: bytes(key), value: value.into() }))
}

fn add(key: impl AsRef<[u8]>, delta: i64) -> v1::Step {
    step(v1::step::Step::Add(v1::AddStep { key: bytes(key), delta }))
}

fn step_key(step: &v1::Step) -> Option<&Bytes> {
    use v1::step::Step;
    step.step.as_ref().map(|step| match step {
        Step::Put(put) => &put.key,
        Step::Delete(key) | Step::Get(key) => key,
        Step::Add(add) => &add.key,
    })
}

/// What came of a batch.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BatchOutcome {
    /// Whether all conditions were met.
    pub succeeded: bool,
    /// When it was committed.
    pub commit_ts: Timestamp,
    /// A result for each step of the branch taken, in order.
    pub results: Vec<BatchResult>,
}

impl BatchOutcome {
    /// What the `n`-th step of the branch taken (from 0), a get, read. `Invalid` where that step is no get.
    pub fn record(&self, n: usize) -> Result<Option<&Record>> {
        match self.results.get(n) {
            Some(BatchResult::Got { record }) => Ok(record.as_ref()),
            other => Err(Error::invalid(format!(
                "step {n} of the branch taken is no get (its result is {other:?}; there are {} results)",
                self.results.len()
            ))),
        }
    }
}
