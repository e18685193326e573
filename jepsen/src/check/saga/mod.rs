//! Sagas: each that was started ends completed, or wholly undone, in order; nothing that must be once is twice; and what was
//! acknowledged stays.
//!
//! `collect` gathers what is known of each saga, `starts` judges starts, cancels and lists, `order` what came before what,
//! `effects` what stands in the end, and `attempts` what workers were given and told. `plans` says what the sagas are.

mod attempts;
mod collect;
mod effects;
mod order;
mod plans;
mod starts;

use super::verdict::Findings;
use super::{Checker, Options, Verdict};
use crate::history::History;

use collect::{Collected, is_closed};

pub use plans::{CHILD, PLANS, Plan, Step, UNDONE, Work, count_key, plan, row_key};

const LOST: &str = "lost-start";
const ABORTED: &str = "aborted-start";
const TORN: &str = "torn-start";
const TWICE_STARTED: &str = "started-twice";
const LIST: &str = "wrong-list";
const CANCEL: &str = "lost-cancel";
const NOT_ENDED: &str = "not-ended";
const STANDS: &str = "stands-still";
const MISSING: &str = "missing-effect";
const DOUBLED: &str = "doubled-effect";
const NOT_UNDONE: &str = "not-undone";
const MISSING_UNDOING: &str = "missing-compensation";
const ORDER: &str = "out-of-order";
const PAST_PIVOT: &str = "undone-past-pivot";
const CHILD_WRONG: &str = "wrong-child";
const UNRECORDED: &str = "unrecorded-attempt";
const TWICE_HANDED: &str = "handed-out-twice";
const STALE_END: &str = "stale-end";
const WRONG_END: &str = "wrong-end";
const CHANGED: &str = "history-changed";

/// Checks `start` (alone, or together with a row), `cancel`, `signal`, `await`, `inspect` (a saga and its history; one that is
/// invoked with a number is the last word), `list`, `work` (a task that a worker was given), `effect` (what a task asked of the
/// world, in the world's order), `tell` (the end of a task, as it is told, perhaps not for the first time), `steer` (an operator
/// gets a saga going) and `read` (all rows; the last one counts).
///
/// The world is a service that is idempotent by step, and once a step is undone, or found not to be done, refuses what was
/// handed out before. So what it did that stands at the end is what the sagas have done.
///
/// - `lost-start`: a start was acknowledged, and there is no saga.
/// - `aborted-start`: there is a saga that nobody started: each such start failed for certain.
/// - `torn-start`: of a start and its row only one is there.
/// - `started-twice`: several starts are each told to have started a saga, or one that is another one.
/// - `wrong-list`: a list lacks what was started before, has what is not there, or another end.
/// - `lost-cancel`: a cancel was acknowledged, and the saga is completed, without a word of that it came too late.
/// - `not-ended`, `stands-still`: all was healed, and workers were willing and somebody looked after what stood still, and the
///   saga has not ended all the same.
/// - `missing-effect`: a saga is completed, and a step is not done, or its effect does not stand.
/// - `doubled-effect`: a transaction took effect, or was undone, more than once, or was undone and never done.
/// - `not-undone`: a saga went back, and an effect of it stands.
/// - `missing-compensation`: a saga went back, and by its history a step that was done, or may have been, is not undone.
/// - `out-of-order`: a step begins before those before it are done, something is undone before what came after it is, or while
///   an action of the saga runs, or something begins after the end.
/// - `undone-past-pivot`: the pivot is done, and something is undone.
/// - `wrong-child`: a saga that is a step of another one ended otherwise than that was told, or there are two.
/// - `unrecorded-attempt`: a worker was given an attempt that the saga's history does not have.
/// - `handed-out-twice`: two workers were given the same attempt.
/// - `stale-end`: the end of an attempt was taken after the task had been handed out again, or after the saga's end.
/// - `wrong-end`: an attempt ended twice, a task was done twice, or what it came to is another thing later.
/// - `history-changed`: a history that was read is not what a later one begins with, or an end is another one later.
#[derive(Clone, Debug)]
pub struct Sagas {
    options: Options,
}

impl Sagas {
    /// A checker under these options.
    pub fn new(options: Options) -> Self {
        Self { options }
    }
}

impl Checker for Sagas {
    fn name(&self) -> &'static str {
        "saga"
    }

    fn anomalies(&self) -> &'static [&'static str] {
        &[
            LOST,
            ABORTED,
            TORN,
            TWICE_STARTED,
            LIST,
            CANCEL,
            NOT_ENDED,
            STANDS,
            MISSING,
            DOUBLED,
            NOT_UNDONE,
            MISSING_UNDOING,
            ORDER,
            PAST_PIVOT,
            CHILD_WRONG,
            UNRECORDED,
            TWICE_HANDED,
            STALE_END,
            WRONG_END,
            CHANGED,
        ]
    }

    fn check(&self, history: &History) -> Verdict {
        let mut findings = Findings::new(history, self.anomalies());
        findings.need_success(history);
        let collected = Collected::of(history);
        starts::check(&collected, &mut findings);
        let mut ends = 0;
        for (ended, one) in collected.ended() {
            let told = order::check(&ended, &mut findings);
            attempts::check_reads(&ended, one, &mut findings);
            attempts::check_works(&ended, one, &mut findings);
            attempts::check_tells(&ended, one, &mut findings);
            order::check_world(&ended, one, &mut findings);
            let status = ended.read.status.as_str();
            findings.add(&format!("sagas {status}"), 1);
            if !is_closed(status) {
                let name = if status == "paused" { STANDS } else { NOT_ENDED };
                findings.anomaly(name, || {
                    let told = format!("Saga {} ({}) is {status} at the end.", ended.id, ended.plan.name);
                    (ended.call.indexes(), told)
                });
                continue;
            }
            ends += 1;
            effects::check_told(&ended, &told, &mut findings);
            effects::check_world(&ended, one, &mut findings);
            if let Some((call, rows)) = &collected.rows {
                effects::check_store(&ended, (call, rows), &mut findings);
            }
        }
        effects::check_children(&collected, &mut findings);
        let unread = collected.sagas.values().filter(|one| one.last.is_none()).count();
        if unread > 0 {
            findings.doubt(format!("{unread} sagas were not read at the end."));
        }
        if collected.rows.is_none() {
            findings.doubt("The rows were not read at the end.");
        }
        let works = collected.sagas.values().map(|one| one.works.len()).sum();
        let effects = collected.sagas.values().map(|one| one.effects.len()).sum();
        findings.stat("attempts", works);
        findings.stat("effects", effects);
        findings.need("an end of a saga", ends, self.options.least_ok.min(10));
        findings.verdict()
    }
}
