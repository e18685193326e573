//! Why a run says less than it was meant to: faults that were asked for and not done.

use std::collections::BTreeMap;

use crate::nemesis::{Happened, Nemesis, came_too_late};
use crate::report::Parameters;

/// The doubts about a run of these faults. `missing` has the kinds that could not be had, and why.
pub(super) fn doubts(
    parameters: &Parameters,
    missing: &[(Nemesis, String)],
    faults: &[Happened],
) -> Vec<String> {
    let mut doubts = Vec::new();
    if faults.iter().all(|fault| fault.error.is_some()) && !parameters.nemeses.is_empty() {
        doubts.push("no fault struck, though some were asked for: give the run more time".to_owned());
    }
    let mut tries: BTreeMap<Nemesis, Vec<Option<&str>>> = BTreeMap::new();
    for fault in faults {
        tries.entry(fault.nemesis).or_default().push(fault.error.as_deref());
    }
    for (kind, errors) in tries {
        // One that was done at least once has struck.
        let failed: Option<Vec<&str>> = errors.iter().copied().collect();
        // Of a group it is one of many, and that others had left nobody to strike is no fault of the machine.
        let excused =
            !parameters.named.contains(&kind) && failed.iter().flatten().all(|why| came_too_late(why));
        if let Some(last) = failed.as_ref().and_then(|failed| failed.last())
            && !excused
        {
            doubts.push(format!("{kind} was tried {} times and never done: {last}", errors.len()));
        }
    }
    let named = missing.iter().filter(|(kind, _)| parameters.named.contains(kind));
    doubts.extend(named.map(|(kind, why)| format!("{kind} was asked for and not done: {why}")));
    doubts
}

/// What a reader should know of faults besides: kinds of a group that could not be had, or had no time.
pub(super) fn notes(
    parameters: &Parameters,
    missing: &[(Nemesis, String)],
    faults: &[Happened],
) -> Vec<String> {
    let of_group = missing.iter().filter(|(kind, _)| !parameters.named.contains(kind));
    let mut notes: Vec<String> = of_group.map(|(kind, why)| format!("{kind} was not done: {why}")).collect();
    let had_no_time = |kind: &&Nemesis| {
        !missing.iter().any(|(missing, _)| missing == *kind)
            && !faults.iter().any(|fault| fault.nemesis == **kind)
    };
    let late: Vec<&str> = parameters.nemeses.iter().filter(had_no_time).map(|kind| kind.name()).collect();
    if !late.is_empty() {
        notes.push(format!("there was no time for these faults: {}", late.join(", ")));
    }
    notes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::sample;

    fn fault(nemesis: Nemesis, error: Option<&str>) -> Happened {
        Happened { nemesis, what: String::new(), begin_ns: 0, end_ns: 1, error: error.map(str::to_owned) }
    }

    fn parameters(nemeses: &[Nemesis], named: &[Nemesis]) -> Parameters {
        Parameters { nemeses: nemeses.to_vec(), named: named.to_vec(), ..sample().parameters }
    }

    #[test]
    fn a_kind_that_was_never_done_is_a_doubt_and_one_that_was_done_once_is_none() {
        let asked = parameters(&[Nemesis::Kill, Nemesis::Pause], &[]);
        let faults = [
            fault(Nemesis::Kill, Some("nobody led")),
            fault(Nemesis::Kill, None),
            fault(Nemesis::Pause, Some("no such process")),
            fault(Nemesis::Pause, Some("no such process")),
        ];
        assert_eq!(doubts(&asked, &[], &faults[..2]), Vec::<String>::new());
        assert_eq!(doubts(&asked, &[], &faults), ["pause was tried 2 times and never done: no such process"]);
        assert_eq!(doubts(&asked, &[], &[]).len(), 1);
        assert_eq!(doubts(&parameters(&[], &[]), &[], &[]), Vec::<String>::new());
        assert_eq!(notes(&asked, &[], &faults[..2]), ["there was no time for these faults: pause"]);
    }

    #[test]
    fn a_kind_that_found_nobody_to_strike_is_a_doubt_where_it_was_named() {
        let faults = [fault(Nemesis::Kill, None), fault(Nemesis::LeaseHole, Some("nobody led at that time"))];
        let kinds = [Nemesis::Kill, Nemesis::LeaseHole];
        assert_eq!(doubts(&parameters(&kinds, &[]), &[], &faults), Vec::<String>::new());
        assert_eq!(doubts(&parameters(&kinds, &[Nemesis::LeaseHole]), &[], &faults).len(), 1);
        assert!(!doubts(&parameters(&kinds, &[]), &[], &faults[1..]).is_empty(), "none struck at all");
    }

    #[test]
    fn a_missing_kind_is_a_doubt_where_it_was_named_and_else_a_note() {
        let kinds = [Nemesis::Kill, Nemesis::Power];
        let missing = [(Nemesis::Power, "no FUSE".to_owned())];
        let faults = [fault(Nemesis::Kill, None)];
        let named = parameters(&kinds, &[Nemesis::Power]);
        assert_eq!(doubts(&named, &missing, &faults), ["power was asked for and not done: no FUSE"]);
        assert_eq!(notes(&named, &missing, &faults), Vec::<String>::new());
        let grouped = parameters(&kinds, &[]);
        assert_eq!(doubts(&grouped, &missing, &faults), Vec::<String>::new());
        assert_eq!(notes(&grouped, &missing, &faults), ["power was not done: no FUSE"]);
    }
}
