//! A definition that was checked: what the machine runs sagas by.

use std::ops::Range;

use super::document::{Call as CallDocument, CompensationOrder, Document, Entry, Step as StepDocument};
use super::{Retry, Timeouts};
use crate::types::{Error, Result, limits};

/// How long a saga is kept after its end where nothing is said: seven days.
const DEFAULT_RETENTION_MS: u64 = 7 * 24 * 60 * 60 * 1_000;

/// What a worker is called for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Call {
    /// The handler.
    pub handler: String,
    /// Whether it runs in a transaction of the store.
    pub is_txn: bool,
    /// Where workers find it.
    pub queue: String,
    /// When it is tried again.
    pub retry: Retry,
    /// How long it may take.
    pub timeouts: Timeouts,
}

/// What a step is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Work {
    /// A worker does it.
    Call(Call),
    /// Time passes.
    Sleep {
        /// So much of it.
        sleep_ms: u64,
    },
    /// It waits for a signal.
    Signal {
        /// Of this name.
        signal: String,
        /// For so long.
        timeout_ms: Option<u64>,
    },
    /// It is a saga of its own.
    Child {
        /// Its name.
        saga: String,
        /// Its version; without it, the newest.
        version: Option<u32>,
    },
}

/// A step.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Step {
    /// Its name.
    pub name: String,
    /// What it is.
    pub work: Work,
    /// What undoes it.
    pub compensation: Option<Call>,
    /// Whether the saga can't be undone once it is done.
    pub is_pivot: bool,
    /// Of a pivot: what finds out whether it took effect.
    pub check: Option<Call>,
    /// The stage it belongs to: those that run side by side are of one.
    pub stage: usize,
}

/// One version of a saga, checked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Definition {
    document: Document,
    steps: Vec<Step>,
    stages: Vec<Range<usize>>,
    pivot: Option<usize>,
}

impl Document {
    /// Checks it.
    ///
    /// # Errors
    ///
    /// `Invalid` where it makes no sense.
    pub fn check(self) -> Result<Definition> {
        Definition::new(self)
    }
}

impl Definition {
    /// Checks a document.
    ///
    /// # Errors
    ///
    /// `Invalid` where it makes no sense: says what, and what would.
    pub fn new(document: Document) -> Result<Self> {
        check_name("the saga", &document.name)?;
        if document.version == 0 {
            return Err(Error::invalid(format!("saga {} has version 0: count from 1", document.name)));
        }
        let queue = document.queue.clone().unwrap_or_else(|| document.name.clone());
        check_name("the queue", &queue)?;
        check_ms("timeout_ms", document.timeout_ms, 1)?;
        check_ms("retention_ms", document.retention_ms, 0)?;
        let (mut steps, mut stages) = (Vec::new(), Vec::new());
        for entry in &document.steps {
            let together = match entry {
                Entry::Parallel(parallel) => parallel.parallel.as_slice(),
                Entry::Step(step) => std::slice::from_ref(&**step),
            };
            if together.is_empty() {
                return Err(Error::invalid("`parallel` has no steps: name at least one, or leave it out"));
            }
            let first = steps.len();
            for step in together {
                steps.push(check_step(step, &queue, stages.len())?);
            }
            stages.push(first..steps.len());
        }
        if steps.is_empty() || steps.len() > limits::MAX_SAGA_STEPS {
            return Err(Error::invalid(format!(
                "saga {} has {} steps: a saga has 1 to {}; make parts of it child sagas",
                document.name,
                steps.len(),
                limits::MAX_SAGA_STEPS
            )));
        }
        let pivot = check_together(&steps, &stages)?;
        Ok(Self { document, steps, stages, pivot })
    }

    /// Reads a definition from a document in JSON.
    ///
    /// # Errors
    ///
    /// `Invalid` where it is no such document, or makes no sense.
    pub fn from_json(json: &str) -> Result<Self> {
        if json.len() > limits::MAX_SAGA_DEFINITION_BYTES {
            return Err(Error::invalid(format!(
                "the definition has {} bytes, over the limit of {}: make parts of it child sagas",
                json.len(),
                limits::MAX_SAGA_DEFINITION_BYTES
            )));
        }
        let document = serde_json::from_str::<Document>(json).map_err(|error| {
            Error::invalid(format!(
                "the definition of the saga is not as it must be: {error}; see docs/SAGAS.md for what a step may have"
            ))
        })?;
        Self::new(document)
    }

    /// The definition as JSON, which [`from_json`](Self::from_json) reads.
    pub fn to_json(&self) -> String {
        // A document is made of texts and numbers: that can be written.
        serde_json::to_string(&self.document).unwrap_or_default()
    }

    /// What was written.
    pub fn document(&self) -> &Document {
        &self.document
    }

    /// The saga's name.
    pub fn name(&self) -> &str {
        &self.document.name
    }

    /// Which version this is.
    pub fn version(&self) -> u32 {
        self.document.version
    }

    /// All steps, in their order; those that run side by side, as they were written.
    pub fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// A step; `None` past the last one.
    pub fn step(&self, step: usize) -> Option<&Step> {
        self.steps.get(step)
    }

    /// The step of a name.
    pub fn find(&self, name: &str) -> Option<usize> {
        self.steps.iter().position(|step| step.name == name)
    }

    /// Which steps are of a stage; none past the last one.
    pub fn stage(&self, stage: usize) -> Range<usize> {
        self.stages.get(stage).cloned().unwrap_or(self.steps.len()..self.steps.len())
    }

    /// How many stages there are.
    pub fn stages(&self) -> usize {
        self.stages.len()
    }

    /// The step after which there is no way back.
    pub fn pivot(&self) -> Option<usize> {
        self.pivot
    }

    /// In which order steps are compensated.
    pub fn compensation_order(&self) -> CompensationOrder {
        self.document.compensation_order
    }

    /// How long it may take until its pivot is done.
    pub fn timeout_ms(&self) -> Option<u64> {
        self.document.timeout_ms
    }

    /// How long it is kept after its end.
    pub fn retention_ms(&self) -> u64 {
        self.document.retention_ms.unwrap_or(DEFAULT_RETENTION_MS)
    }
}

/// Checks a name of something in a saga: letters, digits, `-`, `_` and `.`.
///
/// # Errors
///
/// `Invalid` where it is empty, too long, or has other characters.
pub fn check_name(what: &str, name: &str) -> Result<()> {
    let is_fit = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if name.is_empty() || name.len() > limits::MAX_NAME_BYTES || !name.chars().all(is_fit) {
        return Err(Error::invalid(format!(
            "{what} is named {:?}: a name has 1 to {} letters, digits, -, _ and .",
            name.chars().take(limits::MAX_NAME_BYTES + 1).collect::<String>(),
            limits::MAX_NAME_BYTES
        )));
    }
    Ok(())
}

fn check_ms(what: &str, value_ms: Option<u64>, least: u64) -> Result<()> {
    match value_ms {
        Some(value) if !(least..=limits::MAX_SAGA_WAIT_MS).contains(&value) => Err(Error::invalid(format!(
            "{what} is {value}: say {least} to {} milliseconds (ten years)",
            limits::MAX_SAGA_WAIT_MS
        ))),
        _ => Ok(()),
    }
}

fn check_step(step: &StepDocument, queue: &str, stage: usize) -> Result<Step> {
    check_name("a step", &step.name)?;
    let refuse = |why: String| Err(Error::invalid(format!("step {}: {why}", step.name)));
    let kinds = [
        step.activity.is_some(),
        step.txn.is_some(),
        step.sleep_ms.is_some(),
        step.signal.is_some(),
        step.child.is_some(),
    ];
    let said = kinds.iter().filter(|said| **said).count();
    if said != 1 {
        return refuse(format!(
            "it is {said} of `activity`, `txn`, `sleep_ms`, `signal` and `child`: a step is exactly one of them"
        ));
    }
    let is_call = step.activity.is_some() || step.txn.is_some();
    if !is_call && (step.queue.is_some() || step.retry.is_some() || step.timeouts.is_some()) {
        return refuse(
            "`queue`, `retry` and `timeouts` are for what a worker does: leave them out".to_owned(),
        );
    }
    if step.signal.is_none() && step.timeout_ms.is_some() {
        return refuse("`timeout_ms` is for a step that waits for a signal: say `timeouts`".to_owned());
    }
    if (step.sleep_ms.is_some() || step.signal.is_some()) && (step.compensation.is_some() || step.pivot) {
        return refuse("what only waits has nothing to undo, and is no pivot".to_owned());
    }
    if step.pivot && step.compensation.is_some() {
        return refuse(
            "it is the pivot and has a compensation: once the pivot is done there is no way back".to_owned(),
        );
    }
    if step.child.is_some() && step.pivot {
        return refuse("a child saga can't be the pivot: it may come to be compensated itself".to_owned());
    }
    if step.check.is_some() && (!step.pivot || step.txn.is_some()) {
        return refuse(
            "`check` is for a pivot that is an activity: of nothing else it is unknown whether it took effect".to_owned(),
        );
    }
    let work = if let Some(sleep_ms) = step.sleep_ms {
        check_ms(&format!("sleep_ms of step {}", step.name), Some(sleep_ms), 0)?;
        Work::Sleep { sleep_ms }
    } else if let Some(signal) = &step.signal {
        check_name("a signal", signal)?;
        check_ms(&format!("timeout_ms of step {}", step.name), step.timeout_ms, 1)?;
        Work::Signal { signal: signal.clone(), timeout_ms: step.timeout_ms }
    } else if let Some(child) = &step.child {
        check_name("a child saga", &child.saga)?;
        if child.version == Some(0) {
            return refuse("its saga's version is 0: versions count from 1".to_owned());
        }
        Work::Child { saga: child.saga.clone(), version: child.version }
    } else {
        let call = CallDocument {
            activity: step.activity.clone(),
            txn: step.txn.clone(),
            queue: step.queue.clone(),
            retry: step.retry.clone(),
            timeouts: step.timeouts.clone(),
        };
        Work::Call(check_call(&step.name, &call, queue)?)
    };
    let checked = |call: &Option<CallDocument>| {
        call.as_ref().map(|call| check_call(&step.name, call, queue)).transpose()
    };
    let (compensation, check) = (checked(&step.compensation)?, checked(&step.check)?);
    if check.as_ref().is_some_and(|check| check.is_txn) {
        return refuse(
            "its `check` is a transaction: it is an activity, which asks and changes nothing".to_owned(),
        );
    }
    Ok(Step { name: step.name.clone(), work, compensation, is_pivot: step.pivot, check, stage })
}

fn check_call(step: &str, call: &CallDocument, queue: &str) -> Result<Call> {
    let (handler, is_txn) = match (&call.activity, &call.txn) {
        (Some(handler), None) => (handler, false),
        (None, Some(handler)) => (handler, true),
        (Some(_), Some(_)) | (None, None) => {
            return Err(Error::invalid(format!(
                "step {step}: a compensation, or a check, is one of `activity` and `txn`: say which handler"
            )));
        }
    };
    check_name("a handler", handler)?;
    let queue = call.queue.clone().unwrap_or_else(|| queue.to_owned());
    check_name("a queue", &queue)?;
    let retry = call.retry.clone().unwrap_or_default();
    let of_step = |what: &str| format!("{what} of step {step}");
    check_ms(&of_step("initial_ms"), Some(retry.initial_ms), 1)?;
    check_ms(&of_step("max_ms"), Some(retry.max_ms), 1)?;
    if !(100..=100_000).contains(&retry.factor_percent) {
        return Err(Error::invalid(format!(
            "step {step}: factor_percent is {}: say 100 (all pauses alike) to 100000",
            retry.factor_percent
        )));
    }
    let timeouts = call.timeouts.clone().unwrap_or_default();
    check_ms(&of_step("start_to_close_ms"), Some(timeouts.start_to_close_ms), 1)?;
    check_ms(&of_step("schedule_to_close_ms"), timeouts.schedule_to_close_ms, 1)?;
    check_ms(&of_step("heartbeat_ms"), timeouts.heartbeat_ms, 1)?;
    Ok(Call { handler: handler.clone(), is_txn, queue, retry, timeouts })
}

/// What can be wrong with steps together. Answers which is the pivot.
fn check_together(steps: &[Step], stages: &[Range<usize>]) -> Result<Option<usize>> {
    for (number, step) in steps.iter().enumerate() {
        if steps.iter().take(number).any(|before| before.name == step.name) {
            return Err(Error::invalid(format!("two steps are named {}: name them differently", step.name)));
        }
    }
    let mut pivots = steps.iter().enumerate().filter(|(_, step)| step.is_pivot);
    let Some((pivot, step)) = pivots.next() else { return Ok(None) };
    if let Some((_, other)) = pivots.next() {
        return Err(Error::invalid(format!(
            "steps {} and {} are both pivots: a saga has one point after which there is no way back",
            step.name, other.name
        )));
    }
    if stages.get(step.stage).is_some_and(|stage| stage.len() > 1) {
        return Err(Error::invalid(format!(
            "the pivot {} runs beside other steps: let it stand alone, so that all before it is done",
            step.name
        )));
    }
    if let Some(after) = steps.iter().skip(pivot + 1).find(|step| step.compensation.is_some()) {
        return Err(Error::invalid(format!(
            "step {} comes after the pivot {} and has a compensation: it would never run, since from there on the saga \
             only goes forward; move the step before the pivot, or leave the compensation out",
            after.name, step.name
        )));
    }
    Ok(Some(pivot))
}
