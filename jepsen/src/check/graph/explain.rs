//! Cycles in words.

use super::Hop;
use crate::check::show;
use crate::history::Call;

/// The entries of a cycle, and the explanation: its transactions, called T1, T2 and so on, and why each must
/// come before the next, which `why` says of two names.
pub(crate) fn explain<'a>(
    cycle: &[Hop],
    call: impl Fn(u32) -> &'a Call<'a>,
    why: impl Fn(&Hop, &str, &str) -> String,
) -> (Vec<u64>, String) {
    let name = |node: u32| {
        let place = cycle.iter().position(|hop| hop.from == node).unwrap_or_default();
        format!("T{}", place + 1)
    };
    let mut lines: Vec<String> = Vec::new();
    let mut ops = Vec::new();
    for hop in cycle {
        let call = call(hop.from);
        lines.push(format!("{} = {}", name(hop.from), show::call(call)));
        ops.extend(call.indexes());
    }
    for hop in cycle {
        let (a, b) = (name(hop.from), name(hop.to));
        lines.push(format!("{a} must come before {b}: {}.", why(hop, &a, &b)));
    }
    lines.push("So T1 must come before itself.".to_owned());
    (ops, lines.join("\n"))
}
