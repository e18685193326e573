//! What came of a request, and how the store's answers become that.

use kvorum::client::{Record, Timestamp};
use kvorum::{Client, Error, ErrorKind};

use super::Request;
use crate::history::{Kind, Op, Value};

/// What came of a request.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// It took effect; the answer, and the timestamp that the store gave it.
    Ok(Value, Option<u64>),
    /// It certainly had no effect and never will.
    Fail(String),
    /// Nobody knows.
    Info(String),
    /// What the store holds fails a check, or no client ever wrote it. The history has it like a failure, or where
    /// `is_open` like an unknown outcome; the run has it as a finding.
    Corrupt {
        /// What was seen.
        why: String,
        /// Whether the request may have had an effect all the same.
        is_open: bool,
    },
}

/// Longer messages are cut in histories.
const MESSAGE_CHARS: usize = 300;

impl Outcome {
    /// The outcome of a request that the store answered with an error. Only an error that says that the outcome of a
    /// write can't be known leaves it open: of all others the store promises that nothing was done, and a history
    /// where something was done after all is a finding.
    pub fn of_error(request: &Request, error: &Error) -> Self {
        let message: String = error.message.chars().take(MESSAGE_CHARS).collect();
        let told = format!("{}: {message}", error.kind);
        let writes = !request.only_reads();
        match error.kind {
            // Data that fails a check says nothing about what was done.
            ErrorKind::Corrupt => Self::Corrupt { why: told, is_open: writes },
            ErrorKind::Undetermined if writes => Self::Info(told),
            ErrorKind::Undetermined
            | ErrorKind::Conflict
            | ErrorKind::Moved
            | ErrorKind::Unavailable
            | ErrorKind::Invalid
            | ErrorKind::TooOld
            | ErrorKind::Denied => Self::Fail(told),
        }
    }

    /// The outcome of a request that the harness gave up.
    pub fn given_up(request: &Request, why: &str) -> Self {
        match request.only_reads() {
            true => Self::Fail(why.to_owned()),
            false => Self::Info(why.to_owned()),
        }
    }

    /// Answer or error, as an outcome.
    pub fn of(request: &Request, result: Result<(Value, Option<u64>), Error>) -> Self {
        match result {
            Ok((value, timestamp)) => Self::Ok(value, timestamp),
            Err(error) => Self::of_error(request, &error),
        }
    }

    /// The entry of the history that completes an invocation.
    pub fn complete(self, invoke: &Op) -> Op {
        match self {
            Self::Ok(value, timestamp) => Op { timestamp, ..invoke.ok(value) },
            Self::Fail(why) | Self::Corrupt { why, is_open: false } => invoke.fail(why),
            Self::Info(why) | Self::Corrupt { why, is_open: true } => invoke.info(why),
        }
    }

    /// What kind of entry that is.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Ok(..) => Kind::Ok,
            Self::Fail(_) | Self::Corrupt { is_open: false, .. } => Kind::Fail,
            Self::Info(_) | Self::Corrupt { is_open: true, .. } => Kind::Info,
        }
    }
}

/// A number that was stored as text.
///
/// # Errors
/// `Corrupt` where it is none: nothing but numbers is ever written.
pub fn number(bytes: &[u8]) -> Result<i64, Error> {
    let parsed = std::str::from_utf8(bytes).ok().and_then(|text| text.parse().ok());
    parsed.ok_or_else(|| {
        Error::corrupt(format!("a key holds {:?}, which no client wrote", String::from_utf8_lossy(bytes)))
    })
}

/// Reads keys one after the other in a read-only transaction: all as of its one instant.
///
/// # Errors
/// The store's.
pub async fn one_by_one(client: &Client, keys: &[String]) -> Result<(Vec<Option<Record>>, Timestamp), Error> {
    let read = client.read_only(|txn| async move {
        let mut records = Vec::new();
        for key in keys {
            records.push(txn.get(key).await?);
        }
        Ok(records)
    });
    let read = read.await?;
    Ok((read.value, read.commit_ts))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::F;

    #[test]
    fn only_writes_of_unknown_outcome_stay_open() {
        let write = Request::of("k", F::Write, Value::Int(1));
        let read = Request::of("k", F::Read, Value::Nil);
        let kind = |request, error| Outcome::of_error(request, &error).kind();
        assert_eq!(kind(&write, Error::undetermined("lost")), Kind::Info);
        assert_eq!(kind(&write, Error::corrupt("bits")), Kind::Info);
        assert_eq!(kind(&write, Error::unavailable("nobody")), Kind::Fail);
        assert_eq!(kind(&read, Error::undetermined("lost")), Kind::Fail);
        assert_eq!(Outcome::given_up(&write, "late").kind(), Kind::Info);
        assert_eq!(Outcome::given_up(&read, "late").kind(), Kind::Fail);
    }

    #[test]
    fn corruption_is_told_apart_and_stands_in_the_history_as_before() {
        for (request, kind) in [
            (Request::of("k", F::Write, Value::Int(1)), Kind::Info),
            (Request::of("k", F::Read, Value::Nil), Kind::Fail),
        ] {
            let outcome = Outcome::of(&request, Err(Error::corrupt("bits")));
            assert!(matches!(outcome, Outcome::Corrupt { .. }), "{outcome:?}");
            let invoke = Op::invoke(0, request.f, request.value.clone());
            let done = outcome.complete(&invoke);
            assert_eq!(done.kind, kind);
            assert!(done.error.is_some_and(|why| why.contains("bits")));
        }
    }

    #[test]
    fn what_is_no_number_is_corrupt() {
        assert_eq!(number(b"-12"), Ok(-12));
        assert_eq!(number(b"1 2").unwrap_err().kind, ErrorKind::Corrupt);
    }
}
