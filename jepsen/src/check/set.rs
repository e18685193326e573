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

/// Checks `add` (one element, each added once) and `read` (all elements), for each key by itself.
///
/// An element is known from the end of its acknowledged add on, or of the first read that saw it.
/// - `lost-element`: the last read that began after the element was known lacks it.
/// - `stale-read`: a read that began after the element was known lacks it, but a later one has it.
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
        &[LOST, STALE, UNWRITTEN, ABORTED, DUPLICATE]
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
    let mut known: Vec<(usize, usize)> =
        elements.iter().map(|element| element.known_at).zip(0..).filter(|(at, _)| *at < last).collect();
    known.sort_unstable();
    let mut had_by = vec![0; elements.len()];
    let mut missed: BTreeMap<usize, &Call<'_>> = BTreeMap::new();
    let mut lost: HashSet<usize> = HashSet::new();
    for (number, (read, seen)) in (1..).zip(reads) {
        for place in seen.iter().filter_map(|value| places.get(*value)) {
            had_by[place] = number;
        }
        let expected = &known[..known.partition_point(|(at, _)| *at < read.start)];
        for (_, place) in expected.iter().filter(|(_, place)| had_by[*place] != number) {
            missed.entry(*place).or_insert(read);
            if read.start == last {
                lost.insert(*place);
            }
        }
    }
    for (place, read) in missed {
        let Element { value, add, .. } = &elements[place];
        let (name, what) = if lost.contains(&place) {
            (LOST, "and the last read lacks it too")
        } else {
            (STALE, "though a later read has it again")
        };
        findings.anomaly(name, || {
            let text = format!(
                "{}\n{}\nElement {value} was known to be in the set before this read began, and the read lacks it, {what}.",
                show::call(add),
                show::call(read)
            );
            (add.indexes().into_iter().chain(read.indexes()).collect(), text)
        });
    }
}
