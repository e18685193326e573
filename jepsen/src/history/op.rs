//! What a client did: operations and their values.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::saga::Saga;
use super::{Dump, Following, Query, Told};

/// What an entry of a history says about its operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// The client calls the store now.
    Invoke,
    /// The operation took effect, and the value is its answer.
    Ok,
    /// The operation certainly had no effect and never will.
    Fail,
    /// Nobody knows: it may take effect at any time from its invocation on, or never. A time-out is this.
    Info,
}

impl Kind {
    /// The name in files: `invoke`, `ok`, `fail` or `info`.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Invoke => "invoke",
            Kind::Ok => "ok",
            Kind::Fail => "fail",
            Kind::Info => "info",
        }
    }

    /// The kind of this name, or `None`.
    pub fn of(name: &str) -> Option<Self> {
        [Kind::Invoke, Kind::Ok, Kind::Fail, Kind::Info].into_iter().find(|kind| kind.name() == name)
    }
}

/// The function of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum F {
    /// Reads a register, a set, a counter, all balances of a bank or all rows.
    Read,
    /// Writes a register; in a bank, the opening balances.
    Write,
    /// Writes a register if it holds an expected value.
    Cas,
    /// Adds an element to a set, or a number to a counter.
    Add,
    /// Moves money between two accounts.
    Transfer,
    /// Several micro-operations that take effect together.
    Txn,
    /// Waits for what is committed, and is told of it. The key is the follower's name.
    Follow,
    /// Makes an index. The key is its name, as of the next two.
    Create,
    /// Asks an index.
    Query,
    /// Reads all that an index holds, and computes it from the rows of the same moment.
    Dump,
    /// Starts a saga. The key is its id, as of all that follow but the list.
    Start,
    /// Wants a saga cancelled.
    Cancel,
    /// Sends a saga the signal that some wait for.
    Signal,
    /// Waits for a saga's end.
    Await,
    /// Reads a saga and its history.
    Inspect,
    /// Lists all sagas.
    List,
    /// A worker does a task of a saga.
    Work,
    /// A worker tells what a task came to, or somebody tells that again.
    Tell,
    /// The world is asked for something, by a task of a saga.
    Effect,
    /// Gets a saga going that stands still.
    Steer,
}

impl F {
    /// Every function.
    pub const ALL: [F; 20] = [
        F::Read,
        F::Write,
        F::Cas,
        F::Add,
        F::Transfer,
        F::Txn,
        F::Follow,
        F::Create,
        F::Query,
        F::Dump,
        F::Start,
        F::Cancel,
        F::Signal,
        F::Await,
        F::Inspect,
        F::List,
        F::Work,
        F::Tell,
        F::Effect,
        F::Steer,
    ];

    /// The name in files, for example `cas`.
    pub fn name(self) -> &'static str {
        match self {
            F::Read => "read",
            F::Write => "write",
            F::Cas => "cas",
            F::Add => "add",
            F::Transfer => "transfer",
            F::Txn => "txn",
            F::Follow => "follow",
            F::Create => "create",
            F::Query => "query",
            F::Dump => "dump",
            F::Start => "start",
            F::Cancel => "cancel",
            F::Signal => "signal",
            F::Await => "await",
            F::Inspect => "inspect",
            F::List => "list",
            F::Work => "work",
            F::Tell => "tell",
            F::Effect => "effect",
            F::Steer => "steer",
        }
    }

    /// The function of this name, or `None`.
    pub fn of(name: &str) -> Option<Self> {
        F::ALL.into_iter().find(|f| f.name() == name)
    }
}

impl fmt::Display for F {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.name())
    }
}

/// What a read inside a transaction saw.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub enum Seen {
    /// Nothing yet (in an invocation), or no value under the key (in an answer).
    #[default]
    Nothing,
    /// One value.
    One(i64),
    /// A whole list, oldest element first.
    List(Vec<i64>),
}

/// One step of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MicroOp {
    /// Appends `value` to the list under `key`. Values are unique for each key.
    Append {
        /// The list.
        key: String,
        /// The element.
        value: i64,
    },
    /// Sets the register under `key`. Values are unique for each key.
    Write {
        /// The register.
        key: String,
        /// Its new value.
        value: i64,
    },
    /// Adds `delta` to the number under `key`, which is 0 where there is none.
    Add {
        /// The number.
        key: String,
        /// How much.
        delta: i64,
    },
    /// Removes `key`.
    Delete {
        /// The register or number.
        key: String,
    },
    /// Reads `key`.
    Read {
        /// The list or register.
        key: String,
        /// What it held, in an answer.
        seen: Seen,
    },
}

impl MicroOp {
    /// An append of `value` to the list `key`.
    pub fn append(key: impl Into<String>, value: i64) -> Self {
        MicroOp::Append { key: key.into(), value }
    }

    /// A write of `value` to the register `key`.
    pub fn write(key: impl Into<String>, value: i64) -> Self {
        MicroOp::Write { key: key.into(), value }
    }

    /// An addition of `delta` to the number `key`.
    pub fn add(key: impl Into<String>, delta: i64) -> Self {
        MicroOp::Add { key: key.into(), delta }
    }

    /// A removal of `key`.
    pub fn delete(key: impl Into<String>) -> Self {
        MicroOp::Delete { key: key.into() }
    }

    /// A read of `key` without an answer yet, for invocations.
    pub fn read(key: impl Into<String>) -> Self {
        MicroOp::Read { key: key.into(), seen: Seen::Nothing }
    }

    /// A read that saw a whole list.
    pub fn read_list(key: impl Into<String>, list: Vec<i64>) -> Self {
        MicroOp::Read { key: key.into(), seen: Seen::List(list) }
    }

    /// A read that saw a register, `None` if it held nothing.
    pub fn read_one(key: impl Into<String>, value: Option<i64>) -> Self {
        MicroOp::Read { key: key.into(), seen: value.map_or(Seen::Nothing, Seen::One) }
    }

    /// The key that this step reads or writes.
    pub fn key(&self) -> &str {
        match self {
            MicroOp::Append { key, .. }
            | MicroOp::Write { key, .. }
            | MicroOp::Add { key, .. }
            | MicroOp::Delete { key }
            | MicroOp::Read { key, .. } => key,
        }
    }
}

/// The value of an operation: its arguments in an invocation, its answer in a completion.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub enum Value {
    /// No value: a read that is only invoked, or a register that holds nothing.
    #[default]
    Nil,
    /// A register's value, an element of a set, or what a counter holds or is to be raised by.
    Int(i64),
    /// Compare-and-swap: set the register to `new` if it holds `old` (`None`: if it holds nothing).
    Cas {
        /// What the register must hold.
        old: Option<i64>,
        /// What it holds afterwards.
        new: i64,
    },
    /// The elements of a set, in any order.
    List(Vec<i64>),
    /// The balances of a bank, by account, or all rows, by key.
    Balances(BTreeMap<String, i64>),
    /// A movement of money.
    Transfer {
        /// The account that pays.
        from: String,
        /// The account that gets it.
        to: String,
        /// How much, above zero.
        amount: i64,
    },
    /// A transaction. In an answer, what it changed and read.
    Txn(Vec<MicroOp>),
    /// What a follower asks for when it begins.
    Follow(Following),
    /// What a follower was told, in order.
    Told(Vec<Told>),
    /// What is asked of an index.
    Query(Query),
    /// What a query found, in order: rows by their keys, or groups, each with its number.
    Found(Vec<(String, i64)>),
    /// An index as it is stored.
    Dump(Dump),
    /// What is asked of sagas, told and answered.
    Saga(Saga),
}

impl Value {
    /// A register's value, [`Value::Nil`] for `None`.
    pub fn register(value: Option<i64>) -> Self {
        value.map_or(Value::Nil, Value::Int)
    }
}

/// One entry of a history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Op {
    /// The place in the history, from 0, strictly rising. [`Recorder`] sets it.
    pub index: u64,
    /// The logical thread of the client: it has one operation open at most, and ends with an [`Kind::Info`].
    pub process: u64,
    /// Invocation or completion.
    pub kind: Kind,
    /// The function.
    pub f: F,
    /// The register, set or counter that is meant, when there are several. Transactions name their own keys.
    pub key: Option<String>,
    /// Arguments or answer.
    pub value: Value,
    /// Nanoseconds since the history began. [`Recorder`] sets it.
    pub time_ns: u64,
    /// The commit or snapshot timestamp that the store reported; of a query the answer's watermark.
    pub timestamp: Option<u64>,
    /// The node that the client asks first.
    pub node: Option<String>,
    /// A read that may see the store as it was so long before its invocation, in milliseconds.
    pub staleness_ms: Option<u64>,
    /// What went wrong, for people.
    pub error: Option<String>,
}

impl Op {
    /// An invocation; [`Recorder::record`] sets index and time.
    pub fn invoke(process: u64, f: F, value: Value) -> Self {
        Op {
            index: 0,
            process,
            kind: Kind::Invoke,
            f,
            key: None,
            value,
            time_ns: 0,
            timestamp: None,
            node: None,
            staleness_ms: None,
            error: None,
        }
    }

    /// The same with a key.
    pub fn with_key(self, key: impl Into<String>) -> Self {
        Op { key: Some(key.into()), ..self }
    }

    /// The same with the node that is asked first.
    pub fn with_node(self, node: impl Into<String>) -> Self {
        Op { node: Some(node.into()), ..self }
    }

    /// The same, as a read that may be so old.
    pub fn with_staleness_ms(self, staleness_ms: u64) -> Self {
        Op { staleness_ms: Some(staleness_ms), ..self }
    }

    /// The same with a timestamp of the store.
    pub fn with_timestamp(self, timestamp: u64) -> Self {
        Op { timestamp: Some(timestamp), ..self }
    }

    /// The completion of this invocation that took effect and answered `value`.
    pub fn ok(&self, value: Value) -> Self {
        Op { kind: Kind::Ok, value, ..self.clone() }
    }

    /// The completion that certainly had no effect.
    pub fn fail(&self, error: impl fmt::Display) -> Self {
        Op { kind: Kind::Fail, error: Some(error.to_string()), ..self.clone() }
    }

    /// The completion that may or may not have had an effect, now or later.
    pub fn info(&self, error: impl fmt::Display) -> Self {
        Op { kind: Kind::Info, error: Some(error.to_string()), ..self.clone() }
    }
}
