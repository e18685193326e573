//! Query indexes: what a query says is what the rows at the answer's watermark come to, that is no older than was asked
//! for, and what is stored is what is computed.
//!
//! `collect` gathers what clients did, `truth` says what the rows were at each timestamp, and `judge` compares.

mod collect;
mod judge;
mod truth;

use super::verdict::Findings;
use super::{Checker, Options, Verdict};
use crate::history::History;

use collect::Collected;

/// The index of rows by team and number: a query of it finds rows and their values, in this order.
pub const BY_TEAM: &str = "by_team";
/// The index that counts the rows of each team.
pub const COUNT_BY_TEAM: &str = "count_by_team";
/// The index that adds up the values of each team's rows.
pub const SUM_BY_TEAM: &str = "sum_by_team";
/// Teams, with the first, which is none.
pub const TEAMS: i64 = 6;

/// The team of a row of this value; `None` where it is of none, and in no index.
pub fn team(value: i64) -> Option<i64> {
    Some(value.rem_euclid(TEAMS)).filter(|team| *team != 0)
}

const MISSED: &str = "missed-own-write";
const WRONG: &str = "wrong-answer";
const STALE: &str = "stale-watermark";
const DIFFERS: &str = "index-differs";
const WRONG_ROWS: &str = "wrong-rows";
const UNWRITTEN: &str = "unwritten-transaction";

/// Checks `txn` (writes of rows, of values that are unique, and removals; an acknowledged one carries its commit timestamp
/// and answers what it changed), `query` (of one of the three indexes, which the key names; the answer carries its
/// watermark), `dump` (an index as it is stored, and computed), `read` (all rows as of a timestamp), and `follow` (what one
/// follower of all keys from the start on was told).
///
/// What the rows were at a timestamp follows from the transactions that were acknowledged up to it, each at its commit
/// timestamp. Whether, and when, one of unknown fate was committed, the follower knows.
///
/// - `missed-own-write`: a query that was to be of a timestamp at least, the one of its client's own last commit, answers as
///   it was before a transaction at or before that timestamp, though its watermark says that it was there.
/// - `wrong-answer`: a query answers something else than the rows at its watermark come to.
/// - `stale-watermark`: the watermark of an answer is below the timestamp that it was to be of at least.
/// - `index-differs`: what an index holds is not, byte by byte, what is computed from the rows at its watermark.
/// - `wrong-rows`: rows that were read are not what the transactions up to their timestamp come to.
/// - `unwritten-transaction`: the follower was told a transaction that nobody made: none was acknowledged with its timestamp,
///   and none of unknown fate writes what it does.
#[derive(Clone, Debug)]
pub struct Index {
    options: Options,
}

impl Index {
    /// A checker under these options.
    pub fn new(options: Options) -> Self {
        Self { options }
    }
}

impl Checker for Index {
    fn name(&self) -> &'static str {
        "index"
    }

    fn anomalies(&self) -> &'static [&'static str] {
        &[MISSED, WRONG, STALE, DIFFERS, WRONG_ROWS, UNWRITTEN]
    }

    fn check(&self, history: &History) -> Verdict {
        let mut findings = Findings::new(history, self.anomalies());
        findings.need_success(history);
        let collected = Collected::of(history, &mut findings);
        let commits = truth::commits(&collected, &mut findings);
        let judged = judge::check(&collected, &commits, &mut findings);
        findings.stat("transactions", commits.len());
        findings.stat("transactions of unknown fate", collected.open.len());
        findings.stat("queries compared", judged.queries);
        findings.stat("queries for own writes compared", judged.own);
        findings.stat("reads compared", judged.reads);
        findings.stat("indexes compared with a scan", judged.dumps);
        let least = self.options.least_ok;
        findings.need("a query that was compared", judged.queries as u64, least);
        findings.need("a query for an own write that was compared", judged.own as u64, least.min(10));
        findings.need("an index that was compared with a scan", judged.dumps as u64, least.min(3));
        findings.verdict()
    }
}
