//! What the rows were at each timestamp, and what indexes must be of them.

use std::collections::{BTreeMap, HashMap};

use super::collect::{Collected, Heard, Writes};
use super::{BY_TEAM, COUNT_BY_TEAM, Findings, UNWRITTEN, team};
use crate::check::show;
use crate::history::Call;

/// A transaction that was committed.
pub(super) struct Commit<'a> {
    /// Who made it; `None` where only the follower knows of it.
    pub call: Option<Call<'a>>,
    pub writes: Writes<'a>,
}

/// All transactions that were committed, by their timestamps: those that were acknowledged, and of those of unknown fate
/// what the follower was told.
pub(super) fn commits<'a>(collected: &Collected<'a>, findings: &mut Findings) -> BTreeMap<u64, Commit<'a>> {
    let mut commits: BTreeMap<u64, Commit<'a>> = BTreeMap::new();
    for (at, call, writes) in collected.acknowledged.iter().filter(|(.., writes)| !writes.is_empty()) {
        let commit = Commit { call: Some(*call), writes: writes.clone() };
        if let Some(other) = commits.insert(*at, commit).and_then(|other| other.call) {
            findings.doubt(format!(
                "Two transactions were acknowledged with one timestamp: {} and {}.",
                show::call(&other),
                show::call(call)
            ));
        }
    }
    let by_value: HashMap<(&str, i64), Call<'a>> = collected
        .open
        .iter()
        .flat_map(|(call, writes)| writes.iter().filter_map(|(key, value)| Some(((*key, (*value)?), *call))))
        .collect();
    for (at, heard) in &collected.heard {
        if commits.contains_key(at) {
            continue;
        }
        let writes: Writes<'a> =
            heard.changes.iter().map(|changed| (changed.key.as_str(), changed.value)).collect();
        let values = writes.iter().filter_map(|(key, value)| Some((*key, (*value)?)));
        let by_values = values.filter_map(|value| by_value.get(&value).copied()).next();
        let call = by_values.or_else(|| removal(collected, &writes));
        if call.is_none() {
            unwritten(*at, heard, findings);
        }
        commits.insert(*at, Commit { call, writes });
    }
    commits
}

/// One of unknown fate that removes just this; all of them do the same.
fn removal<'a>(collected: &Collected<'a>, told: &Writes<'_>) -> Option<Call<'a>> {
    let is_removal = |writes: &Writes<'_>| writes.values().all(Option::is_none);
    let mut open = collected.open.iter();
    let found =
        open.find(|(_, writes)| is_removal(writes) && told.keys().all(|key| writes.contains_key(key)));
    found.filter(|_| is_removal(told)).map(|(call, _)| *call)
}

fn unwritten(at: u64, heard: &Heard<'_>, findings: &mut Findings) {
    findings.anomaly(UNWRITTEN, || {
        let text = format!(
            "[{}] the follower was told {}.\nNobody was acknowledged a transaction with this timestamp, and none of \
             unknown fate does this.",
            heard.call.invoke.index,
            show::changes(at, heard.changes)
        );
        (heard.call.indexes(), text)
    });
}

/// What there was under a name, from a timestamp on.
type Versions<T> = Vec<(u64, T)>;

/// The rows at a timestamp that only rises, and what each row and each team was before.
#[derive(Default)]
pub(super) struct Rows<'a> {
    pub now: BTreeMap<&'a str, i64>,
    rows: HashMap<&'a str, Versions<Option<i64>>>,
    /// Count and sum of each team.
    teams: BTreeMap<i64, Versions<(i64, i64)>>,
}

impl<'a> Rows<'a> {
    pub fn apply(&mut self, at: u64, writes: &Writes<'a>) {
        for (key, value) in writes {
            let before = match value {
                Some(value) => self.now.insert(key, *value),
                None => self.now.remove(key),
            };
            self.rows.entry(key).or_default().push((at, *value));
            for (value, by) in [(before, -1), (*value, 1)] {
                if let Some((value, team)) = value.and_then(|value| Some((value, team(value)?))) {
                    let versions = self.teams.entry(team).or_default();
                    let (count, sum) = versions.last().map_or((0, 0), |(_, last)| *last);
                    versions.push((at, (count + by, sum + by * value)));
                }
            }
        }
    }

    /// What a query finds, in the order of the index.
    pub fn found(&self, index: &str, group: Option<i64>) -> Vec<(String, i64)> {
        let is_asked = |team: i64| group.is_none_or(|group| group == team);
        if index == BY_TEAM {
            let mut found: Vec<(i64, i64, &str)> = self
                .now
                .iter()
                .filter_map(|(key, value)| Some((team(*value)?, *value, *key)))
                .filter(|(team, ..)| is_asked(*team))
                .collect();
            found.sort_unstable();
            return found.into_iter().map(|(_, value, key)| (key.to_owned(), value)).collect();
        }
        let teams = self.teams.iter().filter(|(team, _)| is_asked(**team));
        let last = teams.filter_map(|(team, versions)| Some((team, of_team(index, versions.last()?.1)?)));
        last.map(|(team, number)| (team.to_string(), number)).collect()
    }

    /// The timestamp, not after `until`, at which a name ceased to be what it is said to be.
    pub fn ceased(
        &self,
        index: &str,
        group: Option<i64>,
        name: &str,
        said: Option<i64>,
        until: u64,
    ) -> Option<u64> {
        let versions: Versions<Option<i64>> = match index {
            BY_TEAM => {
                let is_asked =
                    |value: &i64| team(*value).is_some_and(|team| group.is_none_or(|group| group == team));
                let versions = self.rows.get(name)?.iter();
                versions.map(|(at, value)| (*at, value.filter(is_asked))).collect()
            }
            _ => {
                let versions = self.teams.get(&name.parse().ok()?)?.iter();
                versions.map(|(at, version)| (*at, of_team(index, *version))).collect()
            }
        };
        // In the beginning there is nothing. Between parts of one transaction there is no moment.
        let mut before = None;
        let mut ceased = None;
        for (place, (at, version)) in versions.iter().enumerate().filter(|(_, (at, _))| *at <= until) {
            if versions.get(place + 1).is_some_and(|(next, _)| next == at) {
                continue;
            }
            if before == said && *version != said {
                ceased = Some(*at);
            }
            before = *version;
        }
        ceased
    }
}

/// What an index says of a team: nothing where it has no rows.
fn of_team(index: &str, (count, sum): (i64, i64)) -> Option<i64> {
    let number = if index == COUNT_BY_TEAM { count } else { sum };
    (count > 0).then_some(number)
}
