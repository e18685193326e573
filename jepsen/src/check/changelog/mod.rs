//! Followers of changes: each is told every transaction once, whole and in commit order, and what they were told comes to
//! what is stored.
//!
//! `collect` gathers what clients made and what followers were told; `order` looks at each follower alone; `made` compares
//! the first of them with what clients made, `replay` with what was read, and `others` the others with it.

mod collect;
mod made;
mod order;
mod others;
mod replay;

use super::verdict::Findings;
use super::{Checker, Options, Verdict};
use crate::history::{History, Kind};

use collect::Collected;

const TWICE: &str = "told-twice";
const TORN: &str = "torn-transaction";
const NOT_RISING: &str = "not-rising";
const LOST: &str = "lost-transaction";
const UNWRITTEN: &str = "unwritten-transaction";
const ABORTED: &str = "aborted-transaction";
const SHARED: &str = "shared-timestamp";
const WRONG_SUM: &str = "wrong-sum";
const WRONG_BEFORE: &str = "wrong-before-image";
const WRONG_REPLAY: &str = "wrong-replay";
const WRONG_ROWS: &str = "wrong-rows";
const DIFFER: &str = "followers-differ";

/// Checks `txn` (writes of values that are unique for each key, additions of numbers that are unique for each key, and
/// removals; an acknowledged one carries its commit timestamp and answers what it changed), `read` (all rows as of a
/// timestamp) and `follow` (what the follower that the key names was told). What a follower asks for stands in its first
/// invocation. The first follower (by its process)
/// of all keys from the start on is compared with what clients made, and the others with it.
///
/// - `told-twice`: a follower was told a transaction twice, at one timestamp or at two.
/// - `torn-transaction`: a transaction was told in parts, or with other writes than it made.
/// - `not-rising`: a transaction was told that is not after all that was told before, or progress went back.
/// - `lost-transaction`: an acknowledged transaction was not told, though all up to its timestamp was.
/// - `unwritten-transaction`: a transaction was told that nobody made: none was acknowledged with its timestamp, and none of
///   unknown fate that had begun writes what it does.
/// - `aborted-transaction`: a transaction was told that failed.
/// - `shared-timestamp`: two transactions were acknowledged with one timestamp.
/// - `wrong-sum`: a number that was added to is not the one before and what was added.
/// - `wrong-before-image`: what a key is said to have held before is not what the changes before left, or it was asked for
///   and is missing.
/// - `wrong-replay`: the changes up to a timestamp do not come to what was read at it.
/// - `wrong-rows`: the rows that a follower began with are not what the changes up to their timestamp come to.
/// - `followers-differ`: a follower was not told the same as the first, as far as it follows those keys.
#[derive(Clone, Debug)]
pub struct Changelog {
    options: Options,
}

impl Changelog {
    /// A checker under these options.
    pub fn new(options: Options) -> Self {
        Self { options }
    }
}

impl Checker for Changelog {
    fn name(&self) -> &'static str {
        "changelog"
    }

    fn anomalies(&self) -> &'static [&'static str] {
        &[
            TWICE,
            TORN,
            NOT_RISING,
            LOST,
            UNWRITTEN,
            ABORTED,
            SHARED,
            WRONG_SUM,
            WRONG_BEFORE,
            WRONG_REPLAY,
            WRONG_ROWS,
            DIFFER,
        ]
    }

    fn check(&self, history: &History) -> Verdict {
        let mut findings = Findings::new(history, self.anomalies());
        findings.need_success(history);
        let collected = Collected::of(history, &mut findings);
        let streams: Vec<_> =
            collected.followers.iter().map(|follower| order::check(follower, &mut findings)).collect();
        let mut judged = (0, 0);
        match streams.iter().find(|stream| stream.follower.is_whole()) {
            Some(whole) => {
                judged = made::check(whole, &collected, &mut findings);
                for other in streams.iter().filter(|other| other.follower.name != whole.follower.name) {
                    others::check(whole, other, &mut findings);
                }
            }
            None => findings.doubt("Nobody followed all keys from the start on."),
        }
        let (told, compared) = judged;
        findings.stat("transactions told", told);
        findings.stat("reads compared", compared);
        findings.stat("transactions of unknown fate", collected.count(Kind::Info));
        let least = self.options.least_ok;
        findings.need("a transaction that was told", told as u64, least);
        findings.need("a read that was compared", compared as u64, least.min(5));
        findings.verdict()
    }
}
