//! Why a register is not linearizable, in words.

use super::model::{Action, Register, Step, ValueId};
use super::search::Stuck;
use super::show;
use crate::history::Call;

/// Operations that stand open beside the blocked one and are shown.
const OPEN_SHOWN: usize = 8;

/// The entries that show it, and the explanation.
pub(super) fn stuck(key: &str, calls: &[Call<'_>], register: &Register, stuck: &Stuck) -> (Vec<u64>, String) {
    let call = |place: &usize| &calls[register.steps[*place].call];
    let certain = register.steps.iter().filter(|step| step.is_certain()).count();
    let mut lines = vec![format!(
        "Key {key:?}: of {certain} operations that took effect, {} can be put in an order, and no more. It ends with:",
        stuck.certain
    )];
    lines.extend(stuck.last.iter().map(|place| format!("  {}", show::call(call(place)))));
    let Some(blocked) = stuck.blocked else { return (Vec::new(), lines.join("\n")) };
    lines.push(format!(
        "Then the register holds {}. This operation cannot take effect before it completes:",
        value(register, stuck.state)
    ));
    lines.push(format!("  {}", show::call(call(&blocked))));
    let others: Vec<&usize> = stuck.open.iter().filter(|place| **place != blocked).take(OPEN_SHOWN).collect();
    if !others.is_empty() {
        lines.push(
            "Nor does it help to let some of these take effect first, which are under way then:".to_owned(),
        );
        lines.extend(others.iter().map(|place| format!("  {}", show::call(call(place)))));
    }
    let mut ops: Vec<u64> =
        stuck.last.iter().chain(others).chain([&blocked]).flat_map(|place| call(place).indexes()).collect();
    if let Some((first, second)) = overwritten(register, &register.steps[blocked]) {
        lines.push(format!(
            "The value was overwritten before the operation began:\n  {}\n  {}",
            show::call(&calls[first.call]),
            show::call(&calls[second.call])
        ));
        ops.extend(calls[first.call].indexes().into_iter().chain(calls[second.call].indexes()));
    }
    (ops, lines.join("\n"))
}

fn value(register: &Register, id: ValueId) -> String {
    register.values[id as usize].map_or("nothing".to_owned(), |value| value.to_string())
}

/// If a step needs a value that was written once, and overwritten in real time before the step began: the write
/// and the one that came after it.
fn overwritten<'a>(register: &'a Register, step: &Step) -> Option<(&'a Step, &'a Step)> {
    let (Action::Read(needed) | Action::Cas(needed, _)) = step.action else { return None };
    let sets = |step: &Step| match step.action {
        Action::Read(_) => None,
        Action::Write(new) | Action::Cas(_, new) => Some(new),
    };
    let mut writes = register.steps.iter().filter(|other| sets(other) == Some(needed));
    let write = writes.next().filter(|write| write.is_certain())?;
    if writes.next().is_some() {
        return None;
    }
    let later = |other: &&Step| sets(other).is_some() && other.start > write.end && other.end < step.start;
    register.steps.iter().find(later).map(|later| (write, later))
}
