//! Sets: what was added is in every later read, and nothing else ever is.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::verdict::Findings;
use super::{Checker, Options, Verdict, show};
use crate::history::{Call, F, History, Kind, Value};

const LOST: &str = "lost-element";
const STALE: &str = "stale-read";
const UNWRITTEN: &str = "unwritten-element";
const ABORTED: &str = "aborted-element";
const DUPLICATE: &str = "duplicate-element";
const FORK: &str = "long-fork";

/// Checks `add` (one element, each added once) and `read` (all elements), for each key by itself.
///
/// An element is known from the end of its acknowledged add on, or of the first read that saw it. A read is of a
/// moment after its own beginning and after that of every add that it saw.
/// - `lost-element`: the last read lacks an element that was known before the read's moment.
/// - `stale-read`: a read lacks an element that was known before its moment, but a later read has it.
/// - `long-fork`: of two reads each has an element that the other lacks.
/// - `unwritten-element`: a read has an element before anyone began to add it, or that nobody added.
/// - `aborted-element`: a read has an element whose add failed.
/// - `duplicate-element`: a read has an element twice.
#[derive(Clone, Debug)]
pub struct Set {
    options: Options,
}

impl Set {
    /// A checker under these options.
    pub fn new(options: Options) -> Self {
        Set { options }
    }
}

impl Checker for Set {
    fn name(&self) -> &'static str {
        "set"
    }

    fn anomalies(&self) -> &'static [&'static str] {
        &[LOST, STALE, UNWRITTEN, ABORTED, DUPLICATE, FORK]
    }

    fn check(&self, history: &History) -> Verdict {
        let mut findings = Findings::new(history, self.anomalies());
        let mut keys: BTreeMap<&str, Vec<Call<'_>>> = BTreeMap::new();
        for call in history.calls() {
            keys.entry(call.key()).or_default().push(call);
        }
        for calls in keys.values() {
            check_set(calls, &mut findings);
        }
        findings.need_success(history);
        findings.need("a successful read", findings.count(Kind::Ok, F::Read), self.options.least_ok);
        findings.need("a successful add", findings.count(Kind::Ok, F::Add), self.options.least_ok);
        findings.verdict()
    }
}

struct Element<'a> {
    value: i64,
    add: Call<'a>,
    /// Reads that begin after this place must have the element.
    known_at: usize,
}

/// Positions of elements by value: in a table if the values lie close together, as they mostly do.
enum Places {
    Table { least: i64, places: Vec<u32> },
    Map(HashMap<i64, u32>),
}

impl Places {
    fn new(elements: &[Element<'_>]) -> Self {
        let values = || elements.iter().map(|element| element.value);
        let numbered = || values().zip(0_u32..);
        let (least, most) = (values().min().unwrap_or(0), values().max().unwrap_or(0));
        let width = most.abs_diff(least);
        if width > 16 * elements.len() as u64 {
            return Places::Map(numbered().collect());
        }
        let mut places = vec![u32::MAX; width as usize + 1];
        for (value, place) in numbered() {
            places[value.abs_diff(least) as usize] = place;
        }
        Places::Table { least, places }
    }

    fn get(&self, value: i64) -> Option<usize> {
        match self {
            Places::Map(map) => map.get(&value).map(|place| *place as usize),
            Places::Table { least, .. } if value < *least => None,
            Places::Table { least, places } => {
                let place =
                    places.get(value.abs_diff(*least) as usize).filter(|place| **place != u32::MAX)?;
                Some(*place as usize)
            }
        }
    }
}

fn check_set<'a>(calls: &[Call<'a>], findings: &mut Findings) {
    let mut elements: Vec<Element<'a>> = Vec::new();
    for call in calls {
        let (F::Add, Value::Int(value)) = (call.f(), call.argument()) else { continue };
        let known_at = if call.is_ok() { call.end } else { usize::MAX };
        elements.push(Element { value: *value, add: *call, known_at });
    }
    let places = Places::new(&elements);
    for (place, element) in elements.iter().enumerate() {
        let Some(other) = places.get(element.value).filter(|other| *other != place) else { continue };
        findings.doubt(format!(
            "Element {} is added twice, so nothing can be said about it: {} and {}.",
            element.value,
            show::call(&element.add),
            show::call(&elements[other].add)
        ));
    }
    let mut reads: Vec<(Call<'a>, &'a [i64])> = Vec::new();
    for call in calls.iter().filter(|call| call.f() == F::Read) {
        match call.answer() {
            Some(Value::List(seen)) => reads.push((*call, seen)),
            Some(Value::Nil) => reads.push((*call, &[])),
            _ => {}
        }
    }
    // For each element the read that has it last, counted from 1.
    let mut had_by = vec![0; elements.len()];
    for (number, (read, seen)) in (1..).zip(&reads) {
        for value in *seen {
            let place = places.get(*value);
            if let Some(place) = place
                && std::mem::replace(&mut had_by[place], number) == number
            {
                findings.anomaly(DUPLICATE, || {
                    (
                        read.indexes(),
                        format!("{}\nElement {value} is in it more than once.", show::call(read)),
                    )
                });
            }
            check_element(read, *value, place.map(|place| &mut elements[place]), findings);
        }
    }
    check_presence(&elements, &places, &reads, findings);
    check_fork(&elements, &places, &reads, findings);
}

/// Whether an element of a read may be in it.
fn check_element(read: &Call<'_>, value: i64, element: Option<&mut Element<'_>>, findings: &mut Findings) {
    match element {
        Some(element) if element.add.outcome() == Kind::Fail => findings.anomaly(ABORTED, || {
            let text = format!(
                "{}\n{}\nThe add of element {value} failed.",
                show::call(&element.add),
                show::call(read)
            );
            (element.add.indexes().into_iter().chain(read.indexes()).collect(), text)
        }),
        Some(element) if element.add.start < read.end => element.known_at = element.known_at.min(read.end),
        _ => findings.anomaly(UNWRITTEN, || {
            (read.indexes(), format!("{}\nNobody had begun to add element {value}.", show::call(read)))
        }),
    }
}

/// Whether each read has what it must have.
fn check_presence(
    elements: &[Element<'_>],
    places: &Places,
    reads: &[(Call<'_>, &[i64])],
    findings: &mut Findings,
) {
    let Some(last) = reads.iter().map(|(read, _)| read.start).max() else { return };
    let bounds: Vec<Bound> = reads.iter().map(|read| Bound::of(read, elements, places)).collect();
    let latest = bounds.iter().map(|bound| bound.at).max().unwrap_or(last);
    let mut known: Vec<(usize, usize)> =
        elements.iter().map(|element| element.known_at).zip(0..).filter(|(at, _)| *at < latest).collect();
    known.sort_unstable();
    let mut had_by = vec![0; elements.len()];
    let mut missed: BTreeMap<usize, (&Call<'_>, &Bound)> = BTreeMap::new();
    let mut lost: HashSet<usize> = HashSet::new();
    for ((number, (read, seen)), bound) in (1..).zip(reads).zip(&bounds) {
        for place in seen.iter().filter_map(|value| places.get(*value)) {
            had_by[place] = number;
        }
        let expected = &known[..known.partition_point(|(at, _)| *at < bound.at)];
        for (_, place) in expected.iter().filter(|(_, place)| had_by[*place] != number) {
            missed.entry(*place).or_insert((read, bound));
            if read.start == last {
                lost.insert(*place);
            }
        }
    }
    for (place, (read, bound)) in missed {
        let element = &elements[place];
        let (name, what) = if lost.contains(&place) {
            (LOST, "and the last read lacks it too")
        } else {
            (STALE, "though a later read has it again")
        };
        findings.anomaly(name, || explain_missed(element, read, bound, elements, what));
    }
}

/// The moment before which a read can't be: its beginning, or that of an add that it saw.
struct Bound {
    at: usize,
    /// The place of that add's element.
    seen: Option<usize>,
}

impl Bound {
    fn of((read, seen): &(Call<'_>, &[i64]), elements: &[Element<'_>], places: &Places) -> Self {
        let began = Bound { at: read.start, seen: None };
        seen.iter().filter_map(|value| places.get(*value)).fold(began, |bound, place| {
            let at = elements[place].add.start;
            // What can't have been seen yet is another anomaly, and says nothing about the read's moment.
            if at > bound.at && at < read.end { Bound { at, seen: Some(place) } } else { bound }
        })
    }
}

fn explain_missed(
    Element { value, add, .. }: &Element<'_>,
    read: &Call<'_>,
    bound: &Bound,
    elements: &[Element<'_>],
    what: &str,
) -> (Vec<u64>, String) {
    let later = bound.seen.map(|place| &elements[place]);
    let when = match later {
        Some(later) => format!("the add of {} began, which this read saw", later.value),
        None => "this read began".to_owned(),
    };
    let calls: Vec<&Call<'_>> =
        [add].into_iter().chain(later.map(|later| &later.add)).chain([read]).collect();
    let mut lines: Vec<String> = calls.iter().map(|call| show::call(call)).collect();
    lines.push(format!(
        "Element {value} was known to be in the set before {when}, and the read lacks it, {what}."
    ));
    (calls.iter().flat_map(|call| call.indexes()).collect(), lines.join("\n"))
}

/// Whether all reads can be put in one order. Sorted by how much they see, each must see all that the one before
/// it sees: if neighbours do, then all do.
fn check_fork(
    elements: &[Element<'_>],
    places: &Places,
    reads: &[(Call<'_>, &[i64])],
    findings: &mut Findings,
) {
    let distinct = |seen: &[i64]| {
        let mut found: Vec<usize> = seen.iter().filter_map(|value| places.get(*value)).collect();
        found.sort_unstable();
        found.dedup();
        found
    };
    let mut order: Vec<(&Call<'_>, Vec<usize>)> =
        reads.iter().map(|(read, seen)| (read, distinct(seen))).collect();
    order.sort_by_key(|(_, found)| found.len());
    for pair in order.windows(2) {
        let [(less, of_less), (more, of_more)] = pair else { continue };
        let lacks = |of: &[usize], than: &[usize]| {
            than.iter().find(|place| of.binary_search(place).is_err()).map(|place| elements[*place].value)
        };
        let (Some(first), Some(second)) = (lacks(of_more, of_less), lacks(of_less, of_more)) else {
            continue;
        };
        findings.anomaly(FORK, || {
            let text = format!(
                "{}\n{}\nThe first has element {first} and not {second}, the second has {second} and not {first}: no order of the two adds allows both.",
                show::call(less),
                show::call(more)
            );
            (less.indexes().into_iter().chain(more.indexes()).collect(), text)
        });
    }
}
