//! What an operation looks like as a form, the same in both file formats.

use super::form::Form;
use super::queries::{dump_form, dump_of, found_form, found_of, query_form, query_of};
use super::saga::{saga_form, saga_of};
use super::told::{following_form, following_of, told_form, told_of};
use super::{F, Kind, MicroOp, Op, Seen, Value, edn};

/// The map of one operation.
pub fn to_form(op: &Op) -> Form {
    let mut entries = vec![
        (Form::keyword("process"), Form::Int(op.process.into())),
        (Form::keyword("type"), Form::keyword(op.kind.name())),
        (Form::keyword("f"), Form::keyword(op.f.name())),
    ];
    if let Some(key) = &op.key {
        entries.push((Form::keyword("key"), Form::Str(key.clone())));
    }
    entries.push((Form::keyword("value"), value_form(&op.value)));
    entries.push((Form::keyword("time"), Form::Int(op.time_ns.into())));
    entries.push((Form::keyword("index"), Form::Int(op.index.into())));
    if let Some(timestamp) = op.timestamp {
        entries.push((Form::keyword("timestamp"), Form::Int(timestamp.into())));
    }
    if let Some(node) = &op.node {
        entries.push((Form::keyword("node"), Form::Str(node.clone())));
    }
    if let Some(staleness_ms) = op.staleness_ms {
        entries.push((Form::keyword("staleness-ms"), Form::Int(staleness_ms.into())));
    }
    if let Some(error) = &op.error {
        entries.push((Form::keyword("error"), Form::Str(error.clone())));
    }
    Form::Map(entries)
}

/// The form of a value alone.
pub fn value_form(value: &Value) -> Form {
    match value {
        Value::Nil => Form::Nil,
        Value::Int(number) => int(*number),
        Value::Cas { old, new } => Form::List(vec![old.map_or(Form::Nil, int), int(*new)]),
        Value::List(elements) => list(elements),
        Value::Balances(balances) => {
            Form::Map(balances.iter().map(|(account, amount)| (key_form(account), int(*amount))).collect())
        }
        Value::Transfer { from, to, amount } => Form::Map(vec![
            (Form::keyword("from"), key_form(from)),
            (Form::keyword("to"), key_form(to)),
            (Form::keyword("amount"), int(*amount)),
        ]),
        Value::Txn(steps) => Form::List(steps.iter().map(step_form).collect()),
        Value::Follow(following) => following_form(following),
        Value::Told(told) => Form::List(told.iter().map(told_form).collect()),
        Value::Query(query) => query_form(query),
        Value::Found(found) => found_form(found),
        Value::Dump(dump) => dump_form(dump),
        Value::Saga(saga) => saga_form(saga),
    }
}

fn step_form(step: &MicroOp) -> Form {
    Form::List(match step {
        MicroOp::Append { key, value } => vec![Form::keyword("append"), key_form(key), int(*value)],
        MicroOp::Write { key, value } => vec![Form::keyword("w"), key_form(key), int(*value)],
        MicroOp::Add { key, delta } => vec![Form::keyword("add"), key_form(key), int(*delta)],
        MicroOp::Delete { key } => vec![Form::keyword("delete"), key_form(key), Form::Nil],
        MicroOp::Read { key, seen } => vec![Form::keyword("r"), key_form(key), seen_form(seen)],
    })
}

fn seen_form(seen: &Seen) -> Form {
    match seen {
        Seen::Nothing => Form::Nil,
        Seen::One(value) => int(*value),
        Seen::List(elements) => list(elements),
    }
}

fn list(elements: &[i64]) -> Form {
    Form::List(elements.iter().copied().map(int).collect())
}

fn int(number: i64) -> Form {
    Form::Int(number.into())
}

/// A key inside a value: a number if it is one, a keyword if it can be one, else a string.
/// The same key always has the same form, and every form reads back as the same key.
fn key_form(key: &str) -> Form {
    match key.parse::<i64>() {
        Ok(number) if number.to_string() == key => int(number),
        _ if is_keyword(key) => Form::keyword(key),
        _ => Form::Str(key.to_owned()),
    }
}

fn is_keyword(key: &str) -> bool {
    key.starts_with(|first: char| first.is_ascii_alphabetic())
        && key.chars().all(|letter| letter.is_ascii_alphanumeric() || "-_.*+!?".contains(letter))
}

/// The operation that a map describes, `None` if a nemesis did it. `index` is used if the map has none.
pub fn from_form(form: &Form, index: u64) -> Result<Option<Op>, String> {
    if !matches!(form, Form::Map(_)) {
        return Err("an operation must be a map with process, type, f, value and time".to_owned());
    }
    let process = match form.get("process") {
        Some(Form::Keyword(name) | Form::Str(name)) if name == "nemesis" => return Ok(None),
        other => natural("process", other)?,
    };
    let kind_name = named("type", form.get("type"))?;
    let kind = Kind::of(&kind_name)
        .ok_or_else(|| format!("type {kind_name:?} is none of invoke, ok, fail, info"))?;
    let f_name = named("f", form.get("f"))?;
    let f = F::of(&f_name).ok_or_else(|| {
        format!("f {f_name:?} is not known; known are {}", F::ALL.map(|f| f.name()).join(", "))
    })?;
    let value = form.get("value").unwrap_or(&Form::Nil);
    Ok(Some(Op {
        index: form.get("index").map_or(Ok(index), |found| natural("index", Some(found)))?,
        process,
        kind,
        f,
        key: optional_name("key", form.get("key"))?,
        value: value_of(f, value).ok_or_else(|| bad_value(f, value))?,
        time_ns: form.get("time").map_or(Ok(0), |found| natural("time", Some(found)))?,
        timestamp: form.get("timestamp").map(|found| natural("timestamp", Some(found))).transpose()?,
        node: optional_name("node", form.get("node"))?,
        staleness_ms: form
            .get("staleness-ms")
            .map(|found| natural("staleness-ms", Some(found)))
            .transpose()?,
        error: form.get("error").map(text_of),
    }))
}

fn natural(field: &str, form: Option<&Form>) -> Result<u64, String> {
    match form {
        Some(Form::Int(number)) => {
            u64::try_from(*number).map_err(|_| format!("{field} {number} must be between 0 and {}", u64::MAX))
        }
        Some(other) => Err(format!("{field} must be a whole number, but is {}", text_of(other))),
        None => Err(format!("{field} is missing")),
    }
}

fn named(field: &str, form: Option<&Form>) -> Result<String, String> {
    match form {
        Some(Form::Keyword(name) | Form::Str(name)) => Ok(name.clone()),
        Some(other) => Err(format!("{field} must be a name, but is {}", text_of(other))),
        None => Err(format!("{field} is missing")),
    }
}

fn optional_name(field: &str, form: Option<&Form>) -> Result<Option<String>, String> {
    match form {
        None | Some(Form::Nil) => Ok(None),
        Some(form) => match form.name() {
            Some(name) => Ok(Some(name)),
            None => Err(format!("{field} must be a name or a number, but is {}", text_of(form))),
        },
    }
}

fn text_of(form: &Form) -> String {
    if let Form::Str(text) = form {
        return text.clone();
    }
    let mut text = String::new();
    edn::print(form, &mut text);
    text
}

fn bad_value(f: F, value: &Form) -> String {
    let wanted = match f {
        F::Read => {
            "nil, a number, a list of numbers, or a map from accounts to balances or from keys to values"
        }
        F::Write => "a number, or a map from accounts to opening balances",
        F::Cas => "a list of the old value (nil for none) and the new one",
        F::Add => "a number",
        F::Transfer => "a map with from, to and amount",
        F::Txn => {
            "a list of [append key number], [w key number], [add key number], [delete key nil] and [r key what-was-read]"
        }
        F::Follow => {
            "a map with since, before-images and ranges, or a list of [row key number], [changes timestamp list] and [progress timestamp]"
        }
        F::Create => "nil",
        F::Query => "a map with group and at-least, or a list of [name number]",
        F::Dump => "nil, or a map with rows, stored and computed",
        F::Cancel => "nil, or 1 or 0",
        F::Signal => "nil",
        F::Start | F::Await | F::Inspect | F::List | F::Work | F::Tell | F::Effect | F::Steer => {
            "nil, or a map with one of start, started, task, came, effect, tell, told, steer, status, read and list"
        }
    };
    format!("the value of {f} must be {wanted}, but is {}", text_of(value))
}

fn value_of(f: F, form: &Form) -> Option<Value> {
    Some(match (f, form) {
        (_, Form::Nil) => Value::Nil,
        (F::Read | F::Write | F::Add, Form::Int(_)) => Value::Int(int_of(form)?),
        (F::Read, Form::List(elements)) => Value::List(ints_of(elements)?),
        (F::Read | F::Write, Form::Map(entries)) => {
            let balance = |(account, amount): &(Form, Form)| Some((account.name()?, int_of(amount)?));
            Value::Balances(entries.iter().map(balance).collect::<Option<_>>()?)
        }
        (F::Cas, Form::List(pair)) => match pair.as_slice() {
            [Form::Nil, new] => Value::Cas { old: None, new: int_of(new)? },
            [old, new] => Value::Cas { old: Some(int_of(old)?), new: int_of(new)? },
            _ => return None,
        },
        (F::Transfer, Form::Map(_)) => Value::Transfer {
            from: form.get("from")?.name()?,
            to: form.get("to")?.name()?,
            amount: int_of(form.get("amount")?)?,
        },
        (F::Follow, Form::Map(_)) => Value::Follow(following_of(form)?),
        (F::Follow, Form::List(told)) => Value::Told(told.iter().map(told_of).collect::<Option<_>>()?),
        (F::Query, Form::Map(_)) => Value::Query(query_of(form)?),
        (F::Query, Form::List(found)) => Value::Found(found_of(found)?),
        (F::Dump, Form::Map(_)) => Value::Dump(dump_of(form)?),
        (F::Cancel | F::Inspect, Form::Int(_)) => Value::Int(int_of(form)?),
        (
            F::Start | F::Await | F::Inspect | F::List | F::Work | F::Tell | F::Effect | F::Steer,
            Form::Map(_),
        ) => Value::Saga(saga_of(form)?),
        (F::Txn, Form::List(steps)) => Value::Txn(steps.iter().map(step_of).collect::<Option<_>>()?),
        _ => return None,
    })
}

fn step_of(form: &Form) -> Option<MicroOp> {
    let Form::List(parts) = form else { return None };
    let [Form::Keyword(f) | Form::Str(f), key, value] = parts.as_slice() else { return None };
    let key = key.name()?;
    Some(match f.as_str() {
        "append" => MicroOp::Append { key, value: int_of(value)? },
        "w" => MicroOp::Write { key, value: int_of(value)? },
        "add" => MicroOp::Add { key, delta: int_of(value)? },
        "delete" if *value == Form::Nil => MicroOp::Delete { key },
        "r" => MicroOp::Read { key, seen: seen_of(value)? },
        _ => return None,
    })
}

fn seen_of(form: &Form) -> Option<Seen> {
    Some(match form {
        Form::Nil => Seen::Nothing,
        Form::Int(_) => Seen::One(int_of(form)?),
        Form::List(elements) => Seen::List(ints_of(elements)?),
        _ => return None,
    })
}

fn ints_of(forms: &[Form]) -> Option<Vec<i64>> {
    forms.iter().map(int_of).collect()
}

fn int_of(form: &Form) -> Option<i64> {
    let Form::Int(number) = form else { return None };
    i64::try_from(*number).ok()
}
