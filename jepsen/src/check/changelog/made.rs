//! What the first follower was told against what clients made and read.

use super::collect::{Collected, Made, Write};
use super::order::{Heard, Stream};
use super::replay::{Rows, apply, check_before, check_read};
use super::{ABORTED, Findings, LOST, TORN, TWICE, UNWRITTEN, WRONG_SUM};
use crate::check::show;
use crate::history::Kind;

/// Goes through what was told in the order of timestamps. Answers how many transactions were found among those that
/// clients made, and how many reads were compared.
pub(super) fn check<'a>(
    stream: &Stream<'a>,
    collected: &Collected<'a>,
    findings: &mut Findings,
) -> (usize, usize) {
    let name = stream.follower.name;
    let mut matching = Matching { stream, collected, told_at: vec![None; collected.made.len()], found: 0 };
    let mut reads = collected.reads.iter().filter(|read| read.at <= stream.reach).peekable();
    let (mut rows, mut compared) = (Rows::new(), 0);
    for heard in stream.transactions.values() {
        while let Some(read) = reads.next_if(|read| read.at < heard.at) {
            check_read(name, read, &rows, findings);
            compared += 1;
        }
        if stream.follower.following.before_images {
            check_before(name, heard, &rows, findings);
        }
        matching.transaction(heard, &rows, findings);
        apply(&mut rows, heard);
    }
    for read in reads {
        check_read(name, read, &rows, findings);
        compared += 1;
    }
    let open = |(made, told): (&Made<'_>, &Option<u64>)| told.is_some() && made.acknowledged_at().is_none();
    let open = collected.made.iter().zip(&matching.told_at).filter(|one| open(*one)).count();
    findings.stat("transactions of unknown fate that were told", open);
    check_lost(stream, collected, findings);
    (matching.found, compared)
}

/// Finds those who made what was told.
struct Matching<'s, 'a> {
    stream: &'s Stream<'a>,
    collected: &'s Collected<'a>,
    /// For each transaction that was made the timestamp at which it was told.
    told_at: Vec<Option<u64>>,
    found: usize,
}

impl<'a> Matching<'_, 'a> {
    fn transaction(&mut self, heard: &Heard<'a>, rows: &Rows<'_>, findings: &mut Findings) {
        let acknowledged = self.collected.by_timestamp.get(&heard.at).copied();
        let Some(place) = acknowledged.or_else(|| self.maker(heard, rows)) else {
            self.report(UNWRITTEN, None, heard, "Nobody began a transaction that does this.", findings);
            return;
        };
        let made = &self.collected.made[place];
        let told_before = self.told_at[place].replace(heard.at);
        if let Some((anomaly, why)) = self.objection(made, heard, told_before) {
            self.report(anomaly, Some(made), heard, &why, findings);
            return;
        }
        self.found += 1;
        if let Some((anomaly, why)) = difference(made, heard, rows) {
            self.report(anomaly, Some(made), heard, &why, findings);
        }
    }

    /// The transaction whose writes are told, by the first value that only one can have written.
    fn maker(&self, heard: &Heard<'a>, rows: &Rows<'_>) -> Option<usize> {
        let by_change = heard.changes.iter().find_map(|changed| {
            let before = rows.get(changed.key.as_str()).copied();
            self.collected.by_change(&changed.key, changed.value?, before)
        });
        if by_change.is_some() || heard.changes.iter().any(|changed| changed.value.is_some()) {
            return by_change;
        }
        let mut keys: Vec<&'a str> = heard.changes.iter().map(|changed| changed.key.as_str()).collect();
        keys.sort_unstable();
        let places = self.collected.removals(&keys);
        let outcome = |place: &&usize| self.collected.made[**place].call.outcome();
        let open = |place: &&usize| outcome(place) == Kind::Info && self.told_at[**place].is_none();
        let failed = |place: &&usize| outcome(place) == Kind::Fail;
        let first = |choice: &dyn Fn(&&usize) -> bool| places.iter().find(choice);
        // One of unknown fate can have made it; else the worst that can be said is that it failed, or came again.
        first(&open).or_else(|| first(&failed)).or_else(|| places.first()).copied()
    }

    /// Why a transaction can't be told so, whatever it writes.
    fn objection(
        &self,
        made: &Made<'_>,
        heard: &Heard<'_>,
        told_before: Option<u64>,
    ) -> Option<(&'static str, String)> {
        if made.call.outcome() == Kind::Fail {
            return Some((ABORTED, "It failed.".to_owned()));
        }
        let own = made.acknowledged_at().filter(|own| self.stream.transactions.contains_key(own));
        if let Some(other) = told_before.or(own.filter(|own| *own != heard.at)) {
            return Some((TWICE, format!("It is told at timestamp {other} too.")));
        }
        if made.acknowledged_at().is_some_and(|own| own != heard.at) {
            return Some((UNWRITTEN, "It was acknowledged with another timestamp.".to_owned()));
        }
        if made.call.start > heard.call.end {
            return Some((UNWRITTEN, "It began only after it was told.".to_owned()));
        }
        None
    }

    fn report(
        &self,
        anomaly: &'static str,
        made: Option<&Made<'_>>,
        heard: &Heard<'_>,
        why: &str,
        findings: &mut Findings,
    ) {
        findings.anomaly(anomaly, || {
            let made_by = made.map(|made| format!("{}\n", show::call(&made.call))).unwrap_or_default();
            let text = format!("{made_by}{}\n{why}", heard.text(self.stream.follower.name));
            let ops = made.map(|made| made.call.indexes()).unwrap_or_default();
            ([ops, heard.call.indexes()].concat(), text)
        });
    }
}

/// How what was told differs from what a transaction writes.
fn difference(made: &Made<'_>, heard: &Heard<'_>, rows: &Rows<'_>) -> Option<(&'static str, String)> {
    let told = |key: &str| heard.changes.iter().find(|changed| changed.key == key);
    if let Some(missing) = made.writes.keys().find(|key| told(key).is_none()) {
        return Some((TORN, format!("What it did to {missing:?} was not told with it.")));
    }
    let mut wrong_sum = None;
    for changed in heard.changes {
        let key = changed.key.as_str();
        match (made.writes.get(key), changed.value) {
            (Some(Write::Put(value)), Some(told)) if *value == told => {}
            (Some(Write::Delete), None) => {}
            (Some(Write::Add(delta)), Some(told)) => {
                let before = rows.get(key).copied().unwrap_or(0);
                if before.checked_add(*delta) != Some(told) {
                    let why = format!("{key:?} held {before}, and {delta} was added: that is not {told}.");
                    wrong_sum = Some((WRONG_SUM, why));
                }
            }
            _ => return Some((TORN, format!("That is not what it did to {key:?}."))),
        }
    }
    // The same key twice would hide another that is missing.
    if heard.changes.len() != made.writes.len() {
        return Some((TORN, "A key was told twice.".to_owned()));
    }
    wrong_sum
}

/// Whether everything that was acknowledged was told, as far as the follower came.
fn check_lost(stream: &Stream<'_>, collected: &Collected<'_>, findings: &mut Findings) {
    let mut beyond = 0;
    for (at, place) in &collected.by_timestamp {
        let made = &collected.made[*place];
        if *at > stream.reach {
            beyond += 1;
        } else if !stream.transactions.contains_key(at) {
            findings.anomaly(LOST, || {
                let text = format!(
                    "{}\nFollower {:?} was told that it has all up to {}, and this one was not told.",
                    show::call(&made.call),
                    stream.follower.name,
                    stream.reach
                );
                let ended = stream.follower.told.last().map(|(call, _)| call.indexes()).unwrap_or_default();
                ([made.call.indexes(), ended].concat(), text)
            });
        }
    }
    if beyond > 0 {
        findings.doubt(format!(
            "Follower {:?} came to timestamp {}, and {beyond} transactions were acknowledged after that.",
            stream.follower.name, stream.reach
        ));
    }
}
