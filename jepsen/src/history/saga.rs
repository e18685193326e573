//! What operations about sagas say, and what that looks like in files: as serde writes it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use super::form::Form;

/// What an operation about a saga asks for, tells or answers. The operation's key is the saga's id.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Saga {
    /// A saga is started.
    Start(Start),
    /// It was started; or, where `already`, had been.
    Started {
        /// Whether it had been.
        already: bool,
    },
    /// A worker has this task.
    Task(Task),
    /// What the attempt at a task came to, as its worker says.
    Came(Came),
    /// Somebody asked the world for something, and the world did it or refused.
    Effect(Effect),
    /// The end of a task is told.
    Tell(Tell),
    /// What was answered to that.
    Told {
        /// It had been told before; of a failure, it may have been.
        already: bool,
        /// What is recorded, where it had been.
        recorded: String,
    },
    /// Somebody who has looked gets a saga that stands still going again.
    Steer {
        /// `retry`, `done` or `not-done`.
        action: String,
        /// The step.
        step: String,
    },
    /// Where a saga is, in one word.
    Status(String),
    /// A saga, with its history.
    Read(Box<Read>),
    /// All sagas, with their statuses.
    List(BTreeMap<String, String>),
}

/// A start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Start {
    /// The definition's name.
    pub saga: String,
    /// Its input.
    pub input: i64,
    /// A row that is written in the same transaction: `row/ID/NUMBER`. Without it, the start stands alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub row: Option<i64>,
}

/// One attempt at a task.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Task {
    /// The step.
    pub step: String,
    /// `action`, `compensation` or `check`.
    pub kind: String,
    /// Which attempt, from 1 on.
    pub attempt: u32,
    /// What it was handed out under: it rises with each hand-out of the saga.
    pub fence: u64,
}

/// What an attempt came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Came {
    /// It was done.
    Done,
    /// It failed, and certainly did nothing.
    Nothing,
    /// It failed, and may have done something.
    Unknown,
}

/// Something that the world was asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Effect {
    /// The step.
    pub step: String,
    /// `action`: to do it; `compensation`: to undo it, and refuse older attempts from then on; `check`: whether it is done,
    /// and if not, to refuse older attempts.
    pub kind: String,
    /// The attempt's fence.
    pub fence: u64,
    /// The world did not do it, since it was told not to before.
    #[serde(default, skip_serializing_if = "is_false")]
    pub refused: bool,
}

/// The end of a task as it is told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tell {
    /// The attempt.
    pub task: Task,
    /// What it came to; without it, it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output: Option<String>,
}

/// A saga as it was read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Read {
    /// The definition's name.
    pub saga: String,
    /// Where it is, in one word.
    pub status: String,
    /// Its input.
    pub input: i64,
    /// The saga that it is a step of; empty where it is none's.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub parent: String,
    /// What its steps came to, those that are done.
    pub outputs: BTreeMap<String, String>,
    /// All that happened in it.
    pub lines: Vec<Line>,
}

/// A line of a saga's history: step, what happened, kind of task, attempt, and more for people.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line(pub String, pub String, pub String, pub u32, pub String);

impl Line {
    /// The step; empty for what is about the whole saga.
    pub fn step(&self) -> &str {
        &self.0
    }

    /// What happened.
    pub fn what(&self) -> &str {
        &self.1
    }

    /// The kind of task; empty where it is about none.
    pub fn kind(&self) -> &str {
        &self.2
    }

    /// Which attempt.
    pub fn attempt(&self) -> u32 {
        self.3
    }

    /// More, for people.
    pub fn detail(&self) -> &str {
        &self.4
    }
}

fn is_false(flag: &bool) -> bool {
    !flag
}

/// The form of what is said about a saga.
pub(super) fn saga_form(saga: &Saga) -> Form {
    // Nothing in it can't be written.
    serde_json::to_value(saga).map_or(Form::Nil, |json| of_json(&json))
}

/// What is said about a saga, from such a form.
pub(super) fn saga_of(form: &Form) -> Option<Saga> {
    serde_json::from_value(to_json(form)?).ok()
}

fn of_json(json: &Json) -> Form {
    match json {
        Json::Null => Form::Nil,
        Json::Bool(flag) => Form::Bool(*flag),
        Json::Number(number) => {
            let whole = number.as_i64().map(i128::from).or(number.as_u64().map(i128::from));
            whole.map_or(Form::Nil, Form::Int)
        }
        Json::String(text) => Form::Str(text.clone()),
        Json::Array(parts) => Form::List(parts.iter().map(of_json).collect()),
        Json::Object(entries) => {
            Form::Map(entries.iter().map(|(key, value)| (Form::Str(key.clone()), of_json(value))).collect())
        }
    }
}

fn to_json(form: &Form) -> Option<Json> {
    Some(match form {
        Form::Nil => Json::Null,
        Form::Bool(flag) => Json::Bool(*flag),
        Form::Int(number) => match (i64::try_from(*number), u64::try_from(*number)) {
            (Ok(number), _) => Json::from(number),
            (_, Ok(number)) => Json::from(number),
            _ => return None,
        },
        Form::Str(text) | Form::Keyword(text) => Json::String(text.clone()),
        Form::List(forms) => Json::Array(forms.iter().map(to_json).collect::<Option<_>>()?),
        Form::Map(entries) => {
            let entry = |(key, value): &(Form, Form)| Some((key.name()?, to_json(value)?));
            Json::Object(entries.iter().map(entry).collect::<Option<_>>()?)
        }
    })
}
