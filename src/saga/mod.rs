//! Floor 2: sagas, as a machine: where a saga is, what an event makes of it, and what follows.
//!
//! A saga is a list of steps that a [`Definition`] names, done one after the other by workers. When one fails, those
//! that took effect, or may have, are undone in reverse. [`State`] is all that is known of a saga; [`apply`] says for each
//! [`Event`] what it becomes, or why nothing. No code of users is run again for that, so it need not be deterministic.
//!
//! `task` has the table of what a step can do, `flow` what follows by itself, `control` what people do to a saga.
//! Nothing here waits, stores, or knows when it is: the time is an argument.

mod apply;
mod control;
mod definition;
mod document;
mod event;
mod flow;
#[cfg(feature = "index")]
mod rows;
#[cfg(feature = "server")]
mod schedule;
mod state;
mod task;

#[cfg(test)]
mod tests;

pub use apply::{Start, apply, start};
pub use definition::{Call, Definition, Step as DefinedStep, Work, check_name};
pub use document::{
    Call as CallDocument, Child, Compensation, CompensationOrder, Document, Entry, Parallel, Retry, Saga,
    Step, Timeouts,
};
pub use event::{Change, Event, Failure, Record, RecordKind, Refusal, Signal, TaskRef, Token};
#[cfg(feature = "index")]
pub use rows::*;
#[cfg(feature = "server")]
pub use schedule::{Overlap, Plan, Run, Schedule};
pub use state::{Letter, Message, Outcome, Parent, Pause, Phase, State, Status, StepState, Then, call_of};
pub use task::{Task, TaskEvent, TaskKind, TaskStatus, next_status, pause_ms};
