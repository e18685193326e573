//! One register's operations, made ready for the search.

use std::collections::HashMap;

use crate::history::{Call, F, Kind, Value};

/// A value of the register, numbered; [`NIL`] is none.
pub(super) type ValueId = u32;

/// The register holds nothing.
pub(super) const NIL: ValueId = 0;

/// What an operation does at its moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// Sees this value.
    Read(ValueId),
    /// Sets this value.
    Write(ValueId),
    /// Sets the second value if the first is there.
    Cas(ValueId, ValueId),
}

/// An operation that took effect, or may have.
#[derive(Clone, Copy, Debug)]
pub(super) struct Step {
    /// Its position in the calls that the register was made of.
    pub call: usize,
    /// What it does.
    pub action: Action,
    /// Place of its invocation.
    pub start: usize,
    /// Place of its completion; `usize::MAX` if it may also never take effect.
    pub end: usize,
}

impl Step {
    /// Whether it took effect for certain.
    pub fn is_certain(&self) -> bool {
        self.end != usize::MAX
    }
}

/// The operations of one register.
#[derive(Debug)]
pub(super) struct Register {
    /// In the order of invocations.
    pub steps: Vec<Step>,
    /// By [`ValueId`]; `None` is no value.
    pub values: Vec<Option<i64>>,
    /// By [`ValueId`]: certain operations that need the value to be there.
    pub observers: Vec<u32>,
    /// By [`ValueId`]: operations that set it.
    pub producers: Vec<u32>,
    /// By [`ValueId`]: whether an operation that may never take effect needs the value to be there.
    pub maybe_observed: Vec<bool>,
}

impl Register {
    /// Leaves out what cannot matter: failed operations, reads without an answer, and writes whose outcome is
    /// unknown and whose value nobody ever saw (an order with such a write is also one without it).
    pub fn new(calls: &[Call<'_>]) -> Self {
        let mut ids = HashMap::from([(None, NIL)]);
        let mut values = vec![None];
        let mut id = |value: Option<i64>| {
            *ids.entry(value).or_insert_with(|| {
                values.push(value);
                (values.len() - 1) as ValueId
            })
        };
        let mut steps = Vec::with_capacity(calls.len());
        for (place, call) in calls.iter().enumerate() {
            let action = match (call.f(), call.argument(), call.answer()) {
                _ if call.outcome() == Kind::Fail => continue,
                (F::Read, _, Some(Value::Int(value))) => Action::Read(id(Some(*value))),
                (F::Read, _, Some(Value::Nil)) => Action::Read(NIL),
                (F::Write, Value::Int(value), _) => Action::Write(id(Some(*value))),
                (F::Cas, Value::Cas { old, new }, _) => Action::Cas(id(*old), id(Some(*new))),
                _ => continue,
            };
            steps.push(Step { call: place, action, start: call.start, end: call.end });
        }
        let mut observed = vec![false; values.len()];
        for step in &steps {
            if let Action::Read(value) | Action::Cas(value, _) = step.action {
                observed[value as usize] = true;
            }
        }
        steps.retain(|step| {
            step.is_certain() || matches!(step.action, Action::Write(value) | Action::Cas(_, value) if observed[value as usize])
        });
        let mut observers = vec![0; values.len()];
        let mut producers = vec![0; values.len()];
        let mut maybe_observed = vec![false; values.len()];
        for step in &steps {
            match step.action {
                Action::Read(value) => observers[value as usize] += 1,
                Action::Write(value) => producers[value as usize] += 1,
                Action::Cas(old, new) => {
                    observers[old as usize] += u32::from(step.is_certain());
                    maybe_observed[old as usize] |= !step.is_certain();
                    producers[new as usize] += 1;
                }
            }
        }
        Register { steps, values, observers, producers, maybe_observed }
    }
}
