//! A saga's definition as people and programs write it: a document, in JSON or made by calls.
//!
//! It is only what was written. Whether that makes sense is found out when it becomes a
//! [`Definition`](super::Definition).

use serde::{Deserialize, Deserializer, Serialize};

/// Begins the definition of a saga.
pub struct Saga;

impl Saga {
    /// The definition of one version of a saga. Versions live side by side: a saga that runs keeps its own.
    ///
    /// ```
    /// use kvorum::saga::{Saga, Step};
    ///
    /// let trip = Saga::define("trip", 1)
    ///     .step(Step::activity("flight").compensate_with("cancel-flight"))
    ///     .parallel([
    ///         Step::activity("hotel").compensate_with("cancel-hotel"),
    ///         Step::activity("car").compensate_with("cancel-car"),
    ///     ])
    ///     .step(Step::activity("payment").pivot().check_with("was-paid"))
    ///     .step(Step::txn("ledger"))
    ///     .check()?;
    /// assert_eq!(trip.steps().len(), 5);
    /// # Ok::<_, kvorum::Error>(())
    /// ```
    pub fn define(name: impl Into<String>, version: u32) -> Document {
        Document { name: name.into(), version, ..Document::default() }
    }
}

/// The definition of a saga, as it was written.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Document {
    /// The saga's name.
    pub name: String,
    /// Which version of it this is; from 1 on.
    pub version: u32,
    /// Where workers find the tasks of steps that name no queue. Without it, the saga's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue: Option<String>,
    /// How long it may take until its pivot is done (or, without one, until its end); then it is compensated. Without it
    /// as long as it likes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    /// How long it is kept after its end. Without it, seven days.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retention_ms: Option<u64>,
    /// In which order steps are compensated.
    #[serde(default, skip_serializing_if = "is_default")]
    pub compensation_order: CompensationOrder,
    /// The steps, in their order.
    pub steps: Vec<Entry>,
}

/// In which order steps are compensated.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CompensationOrder {
    /// The last one first, each after the one before is done.
    #[default]
    Reverse,
    /// All at once.
    Parallel,
}

/// A step, or several that run side by side.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(untagged)]
pub enum Entry {
    /// Several that run side by side. The saga goes on once all of them are done.
    Parallel(Parallel),
    /// One step.
    Step(Box<Step>),
}

impl<'de> Deserialize<'de> for Entry {
    /// What it is, the member `parallel` says: so an error tells of what is wrong in that, and not of everything that it
    /// might have been.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = serde_json::Value::deserialize(deserializer)?;
        let entry = match value.get("parallel") {
            Some(_) => serde_json::from_value(value).map(Self::Parallel),
            None => serde_json::from_value(value).map(Self::Step),
        };
        entry.map_err(serde::de::Error::custom)
    }
}

/// Steps that run side by side.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Parallel {
    /// They.
    pub parallel: Vec<Step>,
}

/// A step, as it was written: it is one of `activity`, `txn`, `sleep_ms`, `signal` and `child`.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Step {
    /// Its name, no other step's in the saga.
    pub name: String,
    /// A worker does it, by the handler of this name: at least once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub activity: Option<String>,
    /// A worker does it in a transaction of the store, by the handler of this name: exactly once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub txn: Option<String>,
    /// Nothing but time passes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sleep_ms: Option<u64>,
    /// It waits for the signal of this name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<String>,
    /// It is a saga of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub child: Option<Child>,
    /// Undoes it. Of an activity, a transaction or a child saga, before the pivot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compensation: Option<Compensation>,
    /// Once it is done the saga can't be undone any more: what follows must get done.
    #[serde(default, skip_serializing_if = "is_default")]
    pub pivot: bool,
    /// Of a pivot: the activity that finds out whether it took effect, where its attempts did not tell. Its output is
    /// `true` or `false`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub check: Option<Call>,
    /// Where workers find it. Without it, the saga's queue.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue: Option<String>,
    /// When it is tried again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry: Option<Retry>,
    /// How long it may take.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeouts: Option<Timeouts>,
    /// How long a step that waits for a signal does so. It fails then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
}

/// A saga that is a step of another one.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Child {
    /// Its name.
    pub saga: String,
    /// Its version. Without it, the newest when it starts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u32>,
}

/// What a worker is called for besides a step itself.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Call {
    /// A handler that may be called more than once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub activity: Option<String>,
    /// A handler that runs in a transaction of the store.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub txn: Option<String>,
    /// Where workers find it. Without it, the saga's queue.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue: Option<String>,
    /// When it is tried again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry: Option<Retry>,
    /// How long it may take.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeouts: Option<Timeouts>,
}

/// What undoes a step.
pub type Compensation = Call;

/// When something is tried again. What is not said is as in [`Retry::default`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Retry {
    /// The pause after the first attempt.
    pub initial_ms: u64,
    /// What each pause is of the one before, in per cent.
    pub factor_percent: u32,
    /// The longest pause.
    pub max_ms: u64,
    /// After so many attempts it has failed. 0 is never.
    pub max_attempts: u32,
    /// Kinds of failures, as workers name them, after which it is not tried again.
    pub final_kinds: Vec<String>,
}

impl Default for Retry {
    fn default() -> Self {
        Self {
            initial_ms: 1_000,
            factor_percent: 200,
            max_ms: 100_000,
            max_attempts: 0,
            final_kinds: Vec::new(),
        }
    }
}

/// How long something may take. What is not said is as in [`Timeouts::default`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Timeouts {
    /// One attempt, from when a worker gets it. That is its lease: after it another attempt may begin.
    pub start_to_close_ms: u64,
    /// All attempts together, with the pauses between them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub schedule_to_close_ms: Option<u64>,
    /// From one sign of life of the worker to the next.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub heartbeat_ms: Option<u64>,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self { start_to_close_ms: 60_000, schedule_to_close_ms: None, heartbeat_ms: None }
    }
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

impl Document {
    /// Where workers find the tasks of steps that name no queue.
    #[must_use]
    pub fn queue(self, queue: impl Into<String>) -> Self {
        Self { queue: Some(queue.into()), ..self }
    }

    /// How long it may take until its pivot is done, in milliseconds.
    #[must_use]
    pub fn timeout_ms(self, timeout_ms: u64) -> Self {
        Self { timeout_ms: Some(timeout_ms), ..self }
    }

    /// How long it is kept after its end, in milliseconds.
    #[must_use]
    pub fn retention_ms(self, retention_ms: u64) -> Self {
        Self { retention_ms: Some(retention_ms), ..self }
    }

    /// In which order steps are compensated.
    #[must_use]
    pub fn compensation_order(self, compensation_order: CompensationOrder) -> Self {
        Self { compensation_order, ..self }
    }

    /// One more step, after those before.
    #[must_use]
    pub fn step(mut self, step: Step) -> Self {
        self.steps.push(Entry::Step(Box::new(step)));
        self
    }

    /// Steps that run side by side, after those before.
    #[must_use]
    pub fn parallel(mut self, steps: impl IntoIterator<Item = Step>) -> Self {
        self.steps.push(Entry::Parallel(Parallel { parallel: steps.into_iter().collect() }));
        self
    }
}

impl Step {
    fn named(name: impl Into<String>) -> Self {
        Self { name: name.into(), ..Self::default() }
    }

    /// A worker does it, by the handler that bears the step's name: at least once.
    pub fn activity(name: impl Into<String>) -> Self {
        let name = name.into();
        Self { activity: Some(name.clone()), ..Self::named(name) }
    }

    /// A worker does it in a transaction of the store, by the handler that bears the step's name: exactly once.
    pub fn txn(name: impl Into<String>) -> Self {
        let name = name.into();
        Self { txn: Some(name.clone()), ..Self::named(name) }
    }

    /// Nothing but time passes.
    pub fn sleep_ms(name: impl Into<String>, sleep_ms: u64) -> Self {
        Self { sleep_ms: Some(sleep_ms), ..Self::named(name) }
    }

    /// It waits for a signal.
    pub fn signal(name: impl Into<String>, signal: impl Into<String>) -> Self {
        Self { signal: Some(signal.into()), ..Self::named(name) }
    }

    /// It is a saga of its own, of the newest version when it starts.
    pub fn child(name: impl Into<String>, saga: impl Into<String>) -> Self {
        Self { child: Some(Child { saga: saga.into(), version: None }), ..Self::named(name) }
    }

    /// Another handler than the one of the step's name.
    #[must_use]
    pub fn handler(mut self, handler: impl Into<String>) -> Self {
        match self.txn.is_some() {
            true => self.txn = Some(handler.into()),
            false => self.activity = Some(handler.into()),
        }
        self
    }

    /// Undone by an activity.
    #[must_use]
    pub fn compensate_with(self, handler: impl Into<String>) -> Self {
        self.compensation(Call { activity: Some(handler.into()), ..Call::default() })
    }

    /// Undone by a transaction of the store.
    #[must_use]
    pub fn compensate_with_txn(self, handler: impl Into<String>) -> Self {
        self.compensation(Call { txn: Some(handler.into()), ..Call::default() })
    }

    /// Undone so.
    #[must_use]
    pub fn compensation(self, compensation: Compensation) -> Self {
        Self { compensation: Some(compensation), ..self }
    }

    /// Once it is done the saga can't be undone any more.
    #[must_use]
    pub fn pivot(self) -> Self {
        Self { pivot: true, ..self }
    }

    /// Of a pivot: the activity that finds out whether it took effect.
    #[must_use]
    pub fn check_with(self, handler: impl Into<String>) -> Self {
        Self { check: Some(Call { activity: Some(handler.into()), ..Call::default() }), ..self }
    }

    /// Where workers find it.
    #[must_use]
    pub fn queue(self, queue: impl Into<String>) -> Self {
        Self { queue: Some(queue.into()), ..self }
    }

    /// When it is tried again.
    #[must_use]
    pub fn retry(self, retry: Retry) -> Self {
        Self { retry: Some(retry), ..self }
    }

    /// How long it may take.
    #[must_use]
    pub fn timeouts(self, timeouts: Timeouts) -> Self {
        Self { timeouts: Some(timeouts), ..self }
    }

    /// How long it waits for its signal, in milliseconds.
    #[must_use]
    pub fn timeout_ms(self, timeout_ms: u64) -> Self {
        Self { timeout_ms: Some(timeout_ms), ..self }
    }
}
