//! One follower alone: timestamps rise, and nothing comes twice.

use std::collections::BTreeMap;

use super::collect::Follower;
use super::{Findings, NOT_RISING, TORN, TWICE, WRONG_ROWS};
use crate::check::show;
use crate::history::{Call, Changed, Told};

/// A transaction as it was told first.
#[derive(Clone, Copy)]
pub(super) struct Heard<'a> {
    pub call: Call<'a>,
    pub at: u64,
    pub changes: &'a [Changed],
}

impl Heard<'_> {
    /// The transaction, for people.
    pub fn text(&self, name: &str) -> String {
        format!(
            "[{}] Follower {name:?} was told {}",
            self.call.invoke.index,
            show::changes(self.at, self.changes)
        )
    }
}

/// What a follower was told, put in order.
pub(super) struct Stream<'a> {
    pub follower: &'a Follower<'a>,
    pub transactions: BTreeMap<u64, Heard<'a>>,
    /// The rows that it began with.
    pub rows: BTreeMap<&'a str, i64>,
    /// What the rows are of, or zero; `None` where a scan did not come to its end.
    pub base: Option<u64>,
    /// The entries that told of the rows and their timestamp.
    pub rows_told_by: Vec<u64>,
    /// Everything up to here was told.
    pub reach: u64,
}

/// Puts in order what a follower was told.
pub(super) fn check<'a>(follower: &'a Follower<'a>, findings: &mut Findings) -> Stream<'a> {
    let base = (!follower.following.scans).then_some(0);
    let (transactions, rows) = (BTreeMap::new(), BTreeMap::new());
    let mut stream = Stream { follower, transactions, rows, base, rows_told_by: Vec::new(), reach: 0 };
    for (call, told) in &follower.told {
        match told {
            Told::Row { key, value } => stream.row(call, key, *value, findings),
            Told::Changes { at, changes } => {
                stream.transaction(Heard { call: *call, at: *at, changes }, findings);
            }
            Told::Progress { at } => stream.progress(call, *at, findings),
        }
    }
    stream
}

impl<'a> Stream<'a> {
    fn row(&mut self, call: &Call<'a>, key: &'a str, value: i64, findings: &mut Findings) {
        self.rows_told_by.extend(call.indexes());
        let why = if self.base.is_some() {
            "comes where no scan is"
        } else if self.rows.insert(key, value).is_some() {
            "comes twice"
        } else {
            return;
        };
        let name = self.follower.name;
        findings.anomaly(WRONG_ROWS, || {
            (call.indexes(), format!("Follower {name:?}: the row {key:?} = {value} {why}."))
        });
    }

    fn transaction(&mut self, heard: Heard<'a>, findings: &mut Findings) {
        let name = self.follower.name;
        if self.base.is_none() {
            findings.anomaly(WRONG_ROWS, || {
                let text = format!("{}\nThe timestamp of its rows was not told before.", heard.text(name));
                (heard.call.indexes(), text)
            });
        }
        if let Some(first) = self.transactions.get(&heard.at) {
            let (anomaly, why) = match first.changes == heard.changes {
                true => (TWICE, "It was told twice."),
                false => (TORN, "It was told in parts."),
            };
            findings.anomaly(anomaly, || {
                let text = format!("{}\n{}\n{why}", first.text(name), heard.text(name));
                ([first.call.indexes(), heard.call.indexes()].concat(), text)
            });
            return;
        }
        if heard.at <= self.reach {
            let reach = self.reach;
            findings.anomaly(NOT_RISING, || {
                let text = format!("{}\nAll up to {reach} had been told before.", heard.text(name));
                (heard.call.indexes(), text)
            });
        }
        self.reach = self.reach.max(heard.at);
        self.transactions.insert(heard.at, heard);
    }

    fn progress(&mut self, call: &Call<'a>, at: u64, findings: &mut Findings) {
        if self.base.is_none() {
            self.base = Some(at);
            self.rows_told_by.extend(call.indexes());
        }
        if at < self.reach {
            let (name, reach) = (self.follower.name, self.reach);
            findings.anomaly(NOT_RISING, || {
                let text = format!(
                    "Follower {name:?} was told that it has all up to {at}, and before, up to {reach}."
                );
                (call.indexes(), text)
            });
        }
        self.reach = self.reach.max(at);
    }
}
