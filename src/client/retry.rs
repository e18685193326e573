//! What follows on a failed attempt: the failure in, the decision out. No clock; the jitter is an argument.

use std::time::Duration;

use crate::types::{Error, ErrorKind};

const FIRST_BACKOFF_MS: u64 = 8;
const LONGEST_BACKOFF_MS: u64 = 250;
/// So many hints in a row are followed at once; after that two nodes may be pointing at each other.
const HOPS_AT_ONCE: u32 = 3;
/// So many times a write gets a new id because its id was too old.
const RENEWALS: u32 = 3;

/// How an attempt failed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Failure {
    /// It never reached a node.
    NotSent(String),
    /// It may have reached a node, which did not answer.
    Unknown(String),
    /// A node answered with an error. `led` says whether it named a leader to go to.
    Answered {
        /// The error.
        error: Error,
        /// Whether it named a leader to go to.
        led: bool,
    },
}

/// What to do next.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Decision {
    /// Try again at once.
    Now,
    /// Try again after this time.
    After(Duration),
    /// Take a fresh timestamp and a new id, then try again: nothing was done under the old one.
    Renew,
    /// Give up.
    Fail(Error),
}

/// The attempts of one logical call so far.
#[derive(Debug)]
pub(super) struct Attempts {
    write: bool,
    /// A refusal of a transaction's commit is not tried again: what was read has to be read anew.
    commit: bool,
    /// The same request again finds what an earlier one did: its answer is true of all attempts.
    repeatable: bool,
    failures: u32,
    hops: u32,
    renewals: u32,
    /// Why an attempt of unknown fate had no answer: from then on the write may have taken effect.
    unknown: Option<String>,
    last: Option<Error>,
}

impl Attempts {
    /// No attempt yet, of a read or a write.
    pub(super) fn new(write: bool) -> Self {
        let (failures, hops, renewals) = (0, 0, 0);
        Self { write, commit: false, repeatable: false, failures, hops, renewals, unknown: None, last: None }
    }

    /// Before the first attempt at a write whose id was given from outside. The id is never renewed: it may have
    /// been sent before this call, and the write would take effect twice (rule R8).
    pub(super) fn with_foreign_id() -> Self {
        Self { renewals: RENEWALS, ..Self::new(true) }
    }

    /// Before the first attempt at a write that needs no id: done twice it is done once, and the second time tells what the
    /// first has come to.
    pub(super) fn repeatable() -> Self {
        Self { repeatable: true, ..Self::with_foreign_id() }
    }

    /// Before the first attempt at the commit of a transaction. Its id bears its start timestamp, so it is never
    /// renewed.
    pub(super) fn of_commit() -> Self {
        Self { commit: true, ..Self::with_foreign_id() }
    }

    /// What follows on a failure. `jitter` is from 0 to 1.
    pub(super) fn failed(&mut self, failure: Failure, jitter: f64) -> Decision {
        let (error, led) = match failure {
            Failure::NotSent(why) => (Error::unavailable(why), false),
            Failure::Unknown(why) => {
                self.unknown.get_or_insert_with(|| why.clone());
                (Error::unavailable(why), false)
            }
            Failure::Answered { error, led } => (error, led),
        };
        let decision = self.decide(&error, led, jitter);
        self.last = Some(error);
        decision
    }

    fn decide(&mut self, error: &Error, led: bool, jitter: f64) -> Decision {
        // The outcome of all attempts at this commit, also of those that had no answer (rule R8).
        let is_final = error.conflict.as_ref().is_some_and(|conflict| conflict.is_final);
        match error.kind {
            _ if self.commit && is_final => Decision::Fail(error.clone()),
            // After an attempt of unknown fate it says nothing about that one: the same commit is tried again.
            ErrorKind::Conflict if self.commit && !self.is_unknown() => Decision::Fail(error.clone()),
            ErrorKind::Moved if led && self.hops < HOPS_AT_ONCE => {
                self.hops += 1;
                Decision::Now
            }
            ErrorKind::Moved | ErrorKind::Unavailable | ErrorKind::Conflict => self.back_off(jitter),
            ErrorKind::Undetermined => {
                self.unknown.get_or_insert_with(|| error.message.clone());
                self.back_off(jitter)
            }
            // An id that is too old by the time of a retry leaves open what the first attempt did (rule R7).
            ErrorKind::TooOld if self.write && !self.is_unknown() && self.renewals < RENEWALS => {
                self.renewals += 1;
                Decision::Renew
            }
            // A refusal by the log would be the first attempt's outcome (rule R8), but one by a node that never
            // looked into the log says nothing about it, and the two look alike.
            ErrorKind::Invalid | ErrorKind::TooOld | ErrorKind::Denied | ErrorKind::Corrupt => {
                Decision::Fail(self.stopped(error.clone()))
            }
        }
    }

    fn back_off(&mut self, jitter: f64) -> Decision {
        self.hops = 0;
        let doubled = FIRST_BACKOFF_MS << self.failures.min(16);
        self.failures += 1;
        let longest = Duration::from_millis(doubled.min(LONGEST_BACKOFF_MS));
        Decision::After(longest.mul_f64(0.5 + 0.5 * jitter.clamp(0.0, 1.0)))
    }

    fn is_unknown(&self) -> bool {
        self.write && self.unknown.is_some()
    }

    /// The error of a call that can't go on for this reason: the reason itself, unless an earlier attempt may
    /// have taken effect.
    pub(super) fn stopped(&self, error: Error) -> Error {
        match &self.unknown {
            Some(why) if self.write && !self.repeatable => Error::undetermined(format!(
                "the write may or may not have taken effect: an attempt had no answer ({why}), and a retry was \
                 answered: {}. Read before doing it again",
                error.message
            )),
            _ => error,
        }
    }

    /// The error of a call whose deadline has come.
    pub(super) fn at_deadline(&self) -> Error {
        let last = self.last.as_ref().map_or("no attempt was answered", |error| error.message.as_str());
        match (&self.unknown, &self.last) {
            (Some(why), _) if self.write => Error::undetermined(format!(
                "the write may or may not have taken effect: an attempt had no answer ({why}), and the deadline \
                 came before a retry could tell (last: {last}). Read before doing it again"
            )),
            (_, Some(error)) if error.kind == ErrorKind::Conflict => Error {
                message: format!(
                    "other operations were in the way until the deadline came; nothing was done (last: {last})"
                ),
                ..error.clone()
            },
            _ => Error::unavailable(format!(
                "the deadline came before any node could serve the request; nothing was done (last: {last}). Try \
                 again later"
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Conflict, ConflictReason, Moved};

    fn answered(kind: ErrorKind) -> Failure {
        Failure::Answered { error: Error::new(kind, "so it is"), led: false }
    }

    fn lost() -> Failure {
        Failure::Unknown("the stream broke".into())
    }

    #[test]
    fn hints_are_followed_at_once_but_not_for_ever() {
        let mut attempts = Attempts::new(true);
        let moved = || Failure::Answered { error: Error::moved("elsewhere", Moved::default()), led: true };
        for _ in 0..HOPS_AT_ONCE {
            assert_eq!(attempts.failed(moved(), 0.0), Decision::Now);
        }
        assert!(matches!(attempts.failed(moved(), 0.0), Decision::After(_)));
        assert_eq!(attempts.failed(moved(), 0.0), Decision::Now);
        assert_eq!(attempts.at_deadline().kind, ErrorKind::Unavailable);
    }

    #[test]
    fn the_backoff_doubles_up_to_its_cap_with_jitter() {
        let mut attempts = Attempts::new(false);
        let waits: Vec<_> = (0..8)
            .map(|_| match attempts.failed(Failure::NotSent("down".into()), 1.0) {
                Decision::After(wait) => wait.as_millis(),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(waits, [8, 16, 32, 64, 128, 250, 250, 250]);
        assert_eq!(
            attempts.failed(Failure::NotSent("down".into()), 0.0),
            Decision::After(Duration::from_millis(125))
        );
    }

    #[test]
    fn a_write_is_undetermined_only_after_an_attempt_of_unknown_fate() {
        let mut attempts = Attempts::new(true);
        assert_eq!(attempts.at_deadline().kind, ErrorKind::Unavailable);
        attempts.failed(Failure::NotSent("refused".into()), 0.5);
        attempts.failed(answered(ErrorKind::Unavailable), 0.5);
        assert_eq!(attempts.at_deadline().kind, ErrorKind::Unavailable);
        assert!(matches!(attempts.failed(lost(), 0.5), Decision::After(_)));
        attempts.failed(answered(ErrorKind::Unavailable), 0.5);
        assert_eq!(attempts.at_deadline().kind, ErrorKind::Undetermined);
    }

    #[test]
    fn the_answer_to_what_may_be_repeated_is_that_of_all_attempts() {
        let mut attempts = Attempts::repeatable();
        attempts.failed(lost(), 0.5);
        assert_eq!(attempts.at_deadline().kind, ErrorKind::Undetermined);
        for kind in [ErrorKind::Invalid, ErrorKind::Denied] {
            let mut attempts = Attempts::repeatable();
            attempts.failed(lost(), 0.5);
            let decision = attempts.failed(answered(kind), 0.5);
            assert!(matches!(decision, Decision::Fail(error) if error.kind == kind));
        }
    }

    #[test]
    fn an_undetermined_answer_is_an_unknown_fate_too() {
        let mut attempts = Attempts::new(true);
        assert!(matches!(attempts.failed(answered(ErrorKind::Undetermined), 0.5), Decision::After(_)));
        assert_eq!(attempts.at_deadline().kind, ErrorKind::Undetermined);
    }

    #[test]
    fn a_read_of_unknown_fate_did_nothing() {
        let mut attempts = Attempts::new(false);
        assert!(matches!(attempts.failed(lost(), 0.5), Decision::After(_)));
        assert_eq!(attempts.at_deadline().kind, ErrorKind::Unavailable);
        let decision = attempts.failed(answered(ErrorKind::TooOld), 0.5);
        assert!(matches!(decision, Decision::Fail(error) if error.kind == ErrorKind::TooOld));
    }

    #[test]
    fn an_id_from_outside_is_never_renewed() {
        let decision = Attempts::with_foreign_id().failed(answered(ErrorKind::TooOld), 0.5);
        assert!(matches!(decision, Decision::Fail(error) if error.kind == ErrorKind::TooOld));
    }

    #[test]
    fn too_old_renews_the_id_at_first_and_is_undetermined_later() {
        let mut first = Attempts::new(true);
        for _ in 0..RENEWALS {
            assert_eq!(first.failed(answered(ErrorKind::TooOld), 0.5), Decision::Renew);
        }
        assert!(
            matches!(first.failed(answered(ErrorKind::TooOld), 0.5), Decision::Fail(e) if e.kind == ErrorKind::TooOld)
        );
        let mut later = Attempts::new(true);
        later.failed(lost(), 0.5);
        let decision = later.failed(answered(ErrorKind::TooOld), 0.5);
        assert!(matches!(decision, Decision::Fail(error) if error.kind == ErrorKind::Undetermined));
    }

    #[test]
    fn a_refused_commit_is_not_retried_unless_an_earlier_attempt_may_still_take_effect() {
        let refused = |is_final| {
            let conflict = Conflict { reason: ConflictReason::Locked, key: None, ts: None, is_final };
            Failure::Answered { error: Error::conflict("locked", conflict), led: false }
        };
        for is_final in [false, true] {
            let decision = Attempts::of_commit().failed(refused(is_final), 0.5);
            assert!(matches!(decision, Decision::Fail(error) if error.kind == ErrorKind::Conflict));
        }
        let mut attempts = Attempts::of_commit();
        attempts.failed(lost(), 0.5);
        assert!(matches!(attempts.failed(refused(false), 0.5), Decision::After(_)));
        assert_eq!(attempts.at_deadline().kind, ErrorKind::Undetermined);
        let decision = attempts.failed(refused(true), 0.5);
        assert!(matches!(decision, Decision::Fail(error) if error.kind == ErrorKind::Conflict));
        // A single-key command goes on until its deadline.
        assert!(matches!(Attempts::new(true).failed(refused(false), 0.5), Decision::After(_)));
    }

    #[test]
    fn what_is_wrong_is_not_retried() {
        for kind in [ErrorKind::Invalid, ErrorKind::Denied, ErrorKind::Corrupt] {
            let decision = Attempts::new(true).failed(answered(kind), 0.5);
            assert!(matches!(decision, Decision::Fail(error) if error.kind == kind));
        }
        // After an attempt of unknown fate it says nothing about that one.
        for kind in [ErrorKind::Invalid, ErrorKind::Denied, ErrorKind::Corrupt] {
            let mut attempts = Attempts::new(true);
            attempts.failed(lost(), 0.5);
            let decision = attempts.failed(answered(kind), 0.5);
            assert!(matches!(decision, Decision::Fail(error) if error.kind == ErrorKind::Undetermined));
        }
    }
}
