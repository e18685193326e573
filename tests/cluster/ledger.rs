//! What writers did to their keys, and what may be read from them: every check of the crash test.
//!
//! A write of unknown fate has no end, so it may take effect at any later time. A key with one is left alone
//! afterwards: it may hold the write or what was acknowledged before it, nothing else.

use std::collections::{BTreeSet, HashSet};

use bytes::Bytes;
use kvorum::{Error, ErrorKind};
use parking_lot::Mutex;

/// How a write ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fate {
    /// It was acknowledged.
    Acknowledged,
    /// It certainly was not made, and never will be.
    Refused,
    /// It may have been made, or be made later.
    Undetermined,
}

impl Fate {
    /// What the error of a write says about it. Fails the test for an error that no crash explains.
    pub fn of(error: &Error) -> Self {
        match error.kind {
            ErrorKind::Unavailable | ErrorKind::Conflict => Self::Refused,
            ErrorKind::Undetermined => Self::Undetermined,
            kind => panic!("a write failed as {kind}: {error}"),
        }
    }
}

/// One key, or two of one shard that are always written together, with one writer. The values are numbers
/// that rise with every attempt.
pub struct Register {
    /// The keys.
    pub keys: Vec<String>,
    history: Mutex<History>,
}

#[derive(Default, Debug)]
struct History {
    attempted: u64,
    acknowledged: u64,
    refused: HashSet<u64>,
    undetermined: Option<u64>,
    /// The largest value that any read has returned.
    seen: u64,
}

impl Register {
    /// Keys that hold nothing, which counts as 0.
    pub fn new(keys: Vec<String>) -> Self {
        Self { keys, history: Mutex::default() }
    }

    /// The value of the next attempt.
    pub fn next(&self) -> u64 {
        let mut history = self.history.lock();
        history.attempted += 1;
        history.attempted
    }

    /// Takes in how the attempt to write `value` ended. False: the key is to be left alone from here on.
    pub fn ended(&self, value: u64, fate: Fate) -> bool {
        let mut history = self.history.lock();
        match fate {
            Fate::Acknowledged => history.acknowledged = value,
            Fate::Refused => {
                assert_ne!(history.seen, value, "{:?}: read, then refused: {history:?}", self.keys);
                history.refused.insert(value);
            }
            Fate::Undetermined => history.undetermined = Some(value),
        }
        fate != Fate::Undetermined
    }

    /// The least that a read that begins now may return.
    pub fn least(&self) -> u64 {
        let history = self.history.lock();
        history.acknowledged.max(history.seen)
    }

    /// Checks what a read returned that began when [`least`](Self::least) was as given: a value for each key.
    pub fn check(&self, least: u64, values: &[Option<Bytes>]) {
        let value = self.one(values);
        let mut history = self.history.lock();
        assert!(
            value >= least,
            "{:?}: read {value} after {least} was acknowledged or read: {history:?}",
            self.keys
        );
        self.check_made(&history, value);
        history.seen = history.seen.max(value);
    }

    /// Checks what the keys hold once nobody writes any more.
    pub fn check_end(&self, values: &[Option<Bytes>]) {
        let value = self.one(values);
        let history = self.history.lock();
        self.check_made(&history, value);
        let allowed = [Some(history.acknowledged), history.undetermined];
        assert!(
            allowed.contains(&Some(value)) && value >= history.seen,
            "{:?}: {value} at the end: {history:?}",
            self.keys
        );
    }

    fn check_made(&self, history: &History, value: u64) {
        assert!(
            value <= history.attempted && !history.refused.contains(&value),
            "{:?}: holds {value}, which was never written or was refused: {history:?}",
            self.keys
        );
    }

    /// The value, which all keys must hold.
    fn one(&self, values: &[Option<Bytes>]) -> u64 {
        let numbers: BTreeSet<u64> = values.iter().map(|value| number(value.as_ref())).collect();
        assert_eq!(values.len(), self.keys.len(), "a value for each of {:?}", self.keys);
        assert_eq!(numbers.len(), 1, "{:?} were written together but hold {numbers:?}", self.keys);
        numbers.into_iter().next().unwrap_or(0)
    }
}

/// A counter that all writers add 1 to.
pub struct Counter {
    /// The key.
    pub key: String,
    tally: Mutex<Tally>,
}

#[derive(Default, Debug)]
struct Tally {
    begun: i64,
    acknowledged: i64,
    refused: i64,
    undetermined: i64,
    seen: i64,
    /// What the acknowledged additions returned: each another value.
    returned: HashSet<i64>,
}

impl Counter {
    /// A counter that holds nothing, which counts as 0.
    pub fn new(key: String) -> Self {
        Self { key, tally: Mutex::default() }
    }

    /// An addition begins.
    pub fn begin(&self) {
        self.tally.lock().begun += 1;
    }

    /// An addition was acknowledged, and returned the counter's new value.
    pub fn added(&self, value: i64) {
        let mut tally = self.tally.lock();
        tally.acknowledged += 1;
        assert!(tally.returned.insert(value), "{}: two additions made it {value}", self.key);
        assert!(value <= tally.begun - tally.refused, "{}: {value} at {}", self.key, tally.bounds());
    }

    /// An addition failed.
    pub fn failed(&self, fate: Fate) {
        let mut tally = self.tally.lock();
        match fate {
            Fate::Refused => tally.refused += 1,
            _ => tally.undetermined += 1,
        }
    }

    /// The least that a read that begins now may return.
    pub fn least(&self) -> i64 {
        let tally = self.tally.lock();
        tally.acknowledged.max(tally.seen)
    }

    /// Checks what a read returned that began when [`least`](Self::least) was as given.
    pub fn check(&self, least: i64, value: Option<&Bytes>) {
        let value = i64::try_from(number(value)).expect("a small number");
        let mut tally = self.tally.lock();
        let most = tally.begun - tally.refused;
        assert!(
            (least..=most).contains(&value),
            "{}: read {value}, not {least} to {most}: {}",
            self.key,
            tally.bounds()
        );
        tally.seen = tally.seen.max(value);
    }

    /// Checks what the counter holds once nobody adds any more.
    pub fn check_end(&self, value: Option<&Bytes>) {
        let value = i64::try_from(number(value)).expect("a small number");
        let tally = self.tally.lock();
        let allowed = tally.acknowledged.max(tally.seen)..=tally.acknowledged + tally.undetermined;
        assert!(allowed.contains(&value), "{}: {value} at the end: {}", self.key, tally.bounds());
    }
}

impl Tally {
    fn bounds(&self) -> String {
        let Self { begun, acknowledged, refused, undetermined, seen, .. } = self;
        format!(
            "{begun} begun, {acknowledged} acknowledged, {refused} refused, {undetermined} undetermined, {seen} seen"
        )
    }
}

/// A key that its one writer moves on by compare-and-swap from version to version. Because each version is
/// left once only, the chain goes on also after an attempt of unknown fate.
pub struct Chain {
    /// The key.
    pub key: String,
    /// The version that is known to be there, and the number it holds.
    pub version: u64,
    value: u64,
    attempts: u64,
    /// Attempts of unknown fate from this version on.
    open: HashSet<u64>,
}

impl Chain {
    /// A key that holds nothing: version 0, number 0.
    pub fn new(key: String) -> Self {
        Self { key, version: 0, value: 0, attempts: 0, open: HashSet::new() }
    }

    /// The number of the next attempt.
    pub fn next(&mut self) -> u64 {
        self.attempts += 1;
        self.attempts
    }

    /// The attempt with this number was acknowledged, and made this version.
    pub fn swapped(&mut self, value: u64, version: u64) {
        assert_eq!(version, self.version + 1, "{}: the version after {}", self.key, self.version);
        self.move_to(value);
    }

    /// The attempt with this number failed.
    pub fn failed(&mut self, value: u64, fate: Fate) {
        if fate == Fate::Undetermined {
            self.open.insert(value);
        }
    }

    /// Takes in what the key holds: what is known, or one of the attempts of unknown fate.
    pub fn holds(&mut self, found: Option<(u64, &Bytes)>) {
        let (version, value) = found.map_or((0, 0), |(version, value)| (version, number(Some(value))));
        if (version, value) == (self.version, self.value) {
            return;
        }
        assert!(
            version == self.version + 1 && self.open.contains(&value),
            "{}: holds {value} as version {version}; known is {} as version {}, of unknown fate {:?}",
            self.key,
            self.value,
            self.version,
            self.open
        );
        self.move_to(value);
    }

    fn move_to(&mut self, value: u64) {
        self.version += 1;
        self.value = value;
        self.open.clear();
    }
}

fn number(value: Option<&Bytes>) -> u64 {
    value.map_or(0, |value| {
        let text = std::str::from_utf8(value).expect("text");
        text.parse().unwrap_or_else(|_| panic!("{text:?} is no number"))
    })
}

/// The checks notice what they are there for.
#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;

    fn value(number: u64) -> Option<Bytes> {
        (number > 0).then(|| Bytes::from(number.to_string()))
    }

    fn fails(check: impl FnOnce()) -> bool {
        catch_unwind(AssertUnwindSafe(check)).is_err()
    }

    #[test]
    fn a_register_notices_what_is_lost_made_up_refused_or_half_there() {
        let pair = Register::new(vec!["a".to_owned(), "b".to_owned()]);
        let both = |number| [value(number), value(number)];
        assert!(pair.ended(pair.next(), Fate::Acknowledged));
        assert!(pair.ended(pair.next(), Fate::Refused));
        assert!(pair.ended(pair.next(), Fate::Acknowledged));
        pair.check(pair.least(), &both(3));
        assert!(fails(|| pair.check(3, &both(1))), "an acknowledged write is lost");
        assert!(fails(|| pair.check(0, &both(2))), "a refused write is there");
        assert!(fails(|| pair.check(3, &both(4))), "a write that nobody made");
        assert!(fails(|| pair.check(0, &[value(3), value(1)])), "half of a batch");
        assert!(fails(|| pair.check_end(&both(0))), "nothing is left");
        assert!(!pair.ended(pair.next(), Fate::Undetermined), "it is left alone");
        pair.check_end(&both(3));
        pair.check_end(&both(4));
        pair.check(pair.least(), &both(4));
        assert!(fails(|| pair.check(pair.least(), &both(3))), "a read goes back");
        assert!(fails(|| pair.check_end(&both(3))), "the end goes back");
    }

    #[test]
    fn a_counter_notices_what_is_lost_or_counted_twice() {
        let counter = Counter::new("c".to_owned());
        for returned in [1, 2] {
            counter.begin();
            counter.added(returned);
        }
        counter.check_end(value(2).as_ref());
        assert!(fails(|| counter.check_end(value(1).as_ref())), "one is lost");
        assert!(fails(|| counter.check_end(value(3).as_ref())), "one counts twice");
        counter.begin();
        counter.failed(Fate::Undetermined);
        counter.check(counter.least(), value(3).as_ref());
        assert!(fails(|| counter.check(counter.least(), value(2).as_ref())), "a read goes back");
        counter.begin();
        assert!(fails(|| counter.added(2)), "two additions with one result");
    }

    #[test]
    fn a_chain_notices_what_it_did_not_do() {
        let mut chain = Chain::new("k".to_owned());
        let first = chain.next();
        chain.swapped(first, 1);
        let (lost, other) = (chain.next(), chain.next());
        chain.failed(lost, Fate::Undetermined);
        chain.failed(other, Fate::Refused);
        chain.holds(Some((1, &Bytes::from("1"))));
        assert!(fails(|| chain.holds(Some((2, &Bytes::from("3"))))), "a refused swap");
        assert!(fails(|| chain.holds(Some((3, &Bytes::from("2"))))), "a swap made twice");
        assert!(fails(|| chain.holds(None)), "nothing is left");
        chain.holds(Some((2, &Bytes::from("2"))));
        assert!(fails(|| chain.holds(Some((1, &Bytes::from("1"))))), "it goes back");
        assert!(fails(|| chain.swapped(4, 4)), "a version is left out");
    }
}
