//! Transactions: a closure that reads at one instant and writes, committed as a whole or not at all, and run again
//! where others were in the way.

mod backoff;
mod buffer;
mod scan;
mod txn;
mod typed;

use std::future::Future;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};

pub use scan::TxnScan;
pub use txn::Txn;
pub use typed::TypedTxn;

use super::{Client, Deadline};
use crate::types::{Error, ErrorKind, Result, Timestamp};
use backoff::Backoff;

/// With less time left than this, another attempt is not begun.
const SHORTEST_ATTEMPT: Duration = Duration::from_millis(5);

/// How soon a transaction tries again after a conflict, compared with others. It decides nothing by itself: who
/// waits less gets through more often.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Priority {
    /// Waits four times as long.
    Low,
    /// As most do.
    #[default]
    Normal,
    /// Waits a quarter of the time.
    High,
}

/// A transaction that was committed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Committed<T> {
    /// What the closure returned.
    pub value: T,
    /// Where the transaction stands in the order of all: at this timestamp everything it wrote was written. One
    /// without writes stands where it read, and at 0 where it did nothing at all.
    pub commit_ts: Timestamp,
    /// How often the closure was run; more than once where others were in the way.
    pub attempts: u32,
}

/// What the attempts at one transaction have met so far.
struct Met {
    until: Instant,
    attempts: u32,
    /// When the last attempt began.
    began: Instant,
    backoff: Backoff,
    last: Option<Error>,
}

/// Options of a transaction, made by [`Client::transaction`], and its start.
#[derive(Clone, Debug)]
#[must_use]
pub struct Transaction {
    client: Client,
    label: Option<String>,
    priority: Priority,
    max_attempts: u32,
    read_only: bool,
}

impl Client {
    /// Runs a transaction: strictly serializable, over any keys and shards. The closure reads and writes through the
    /// [`Txn`] it is given. When it has returned `Ok`, what it wrote is committed at one timestamp, provided that
    /// nothing it read has changed meanwhile; where it has, the closure is run again, until the client's deadline. So
    /// it must not do anything outside the store that can't be done twice. When it returns an error, nothing is sent.
    ///
    /// A transaction that only reads never conflicts.
    ///
    /// ```no_run
    /// # async fn example(client: kvorum::Client) -> kvorum::Result<()> {
    /// let moved = client
    ///     .transact(|txn| async move {
    ///         let held = txn.get("stock/here").await?;
    ///         txn.delete("stock/here")?;
    ///         if let Some(record) = &held {
    ///             txn.put("stock/there", record.value.clone())?;
    ///         }
    ///         Ok(held.is_some())
    ///     })
    ///     .await?;
    /// println!("moved: {}, at {}, attempt {}", moved.value, moved.commit_ts, moved.attempts);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// The closure's own. Of the commit: `Conflict` where others were in the way until the deadline;
    /// `Undetermined` where it was sent and its outcome could not be learnt by the deadline, though it was asked for
    /// again under the same id; `Unavailable` where no node could serve it and nothing was done; `Invalid` over the
    /// limits of a transaction, or for adding to what is no counter.
    pub async fn transact<T, F, Fut>(&self, body: F) -> Result<Committed<T>>
    where
        F: FnMut(Txn) -> Fut,
        Fut: Future<Output = Result<T>>,
    {
        self.transaction().run(body).await
    }

    /// Runs a closure that only reads: all of it at one instant, without a commit and without conflicts, however
    /// much others write. Its writes are refused.
    ///
    /// # Errors
    /// The closure's own.
    pub async fn read_only<T, F, Fut>(&self, body: F) -> Result<Committed<T>>
    where
        F: FnMut(Txn) -> Fut,
        Fut: Future<Output = Result<T>>,
    {
        self.transaction().read_only().run(body).await
    }

    /// A transaction with options.
    pub fn transaction(&self) -> Transaction {
        Transaction {
            client: self.clone(),
            label: None,
            priority: Priority::default(),
            max_attempts: u32::MAX,
            read_only: false,
        }
    }
}

impl Transaction {
    /// A name for messages and logs.
    pub fn label(mut self, label: impl Into<String>) -> Self {
        self.label = Some(label.into());
        self
    }

    /// How soon it tries again after a conflict, compared with others.
    pub fn priority(mut self, priority: Priority) -> Self {
        self.priority = priority;
        self
    }

    /// How long all attempts together may take. Without it, the client's deadline; at most five minutes.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.client.deadline = Deadline::After(deadline);
        self
    }

    /// How often the closure is run at most. Without it, the deadline alone ends it.
    pub fn max_attempts(mut self, attempts: u32) -> Self {
        self.max_attempts = attempts;
        self
    }

    /// Without a commit: reads are not watched, writes are refused.
    pub fn read_only(mut self) -> Self {
        self.read_only = true;
        self
    }

    /// Runs it, as [`Client::transact`] says.
    ///
    /// # Errors
    /// Those of [`Client::transact`]; `Conflict` too where all attempts met one.
    pub async fn run<T, F, Fut>(self, body: F) -> Result<Committed<T>>
    where
        F: FnMut(Txn) -> Fut,
        Fut: Future<Output = Result<T>>,
    {
        self.try_run(body).await
    }

    /// As [`run`](Self::run), for a closure with an error type of its own.
    ///
    /// # Errors
    /// Those of [`run`](Self::run), made into the closure's.
    pub async fn try_run<T, E, F, Fut>(self, mut body: F) -> Result<Committed<T>, E>
    where
        E: From<Error>,
        F: FnMut(Txn) -> Fut,
        Fut: Future<Output = Result<T, E>>,
    {
        let until = self.client.deadline.until()?;
        let client = self.client.with_deadline_at(until.into_std());
        let mut met = Met {
            until,
            attempts: 0,
            began: Instant::now(),
            backoff: Backoff::new(self.priority),
            last: None,
        };
        loop {
            met.attempts += 1;
            met.began = Instant::now();
            let txn = Txn::new(client.clone());
            if self.read_only {
                txn.read_only()?;
            }
            let value = match timeout_at(until, body(txn.clone())).await {
                Ok(Ok(value)) => value,
                Ok(Err(error)) => {
                    txn.abandon();
                    return Err(error);
                }
                Err(_) => {
                    txn.abandon();
                    return Err(self.late(met.attempts).into());
                }
            };
            match txn.commit(until).await {
                Ok(commit_ts) => return Ok(Committed { value, commit_ts, attempts: met.attempts }),
                Err(error) => sleep(self.wait_after(error, &mut met)?).await,
            }
        }
    }

    /// How long to wait before the next attempt after one was not committed, or the error that ends them all.
    fn wait_after(&self, error: Error, met: &mut Met) -> Result<Duration> {
        tracing::debug!(label = self.label, attempts = met.attempts, %error, "a transaction was not committed");
        let left = met.until.saturating_duration_since(Instant::now());
        if !self.starts_again(&error) {
            let ran_out = error.kind == ErrorKind::Unavailable && left.is_zero();
            return Err(match met.last.take() {
                Some(last) if ran_out => self.gave_up(last, met.attempts),
                _ => self.named(error),
            });
        }
        if met.attempts >= self.max_attempts || left < SHORTEST_ATTEMPT {
            return Err(self.gave_up(error, met.attempts));
        }
        let wait = met.backoff.after(&error, met.began.elapsed(), rand::random());
        met.last = Some(error);
        // A wait up to the deadline would be for nothing.
        Ok(wait.min(left / 2))
    }

    /// Whether nothing was done, and another attempt may do better.
    fn starts_again(&self, error: &Error) -> bool {
        if error.kind == ErrorKind::TooOld {
            // A start timestamp that came from an earlier reply shall not be used again.
            self.client.shared.seen.distrust();
        }
        matches!(error.kind, ErrorKind::Conflict | ErrorKind::TooOld)
    }

    fn name(&self) -> String {
        self.label
            .as_ref()
            .map_or_else(|| "the transaction".into(), |label| format!("the transaction {label:?}"))
    }

    /// An error that says which transaction it is about, where that has a name.
    fn named(&self, error: Error) -> Error {
        match &self.label {
            Some(_) => Error { message: format!("{}: {}", self.name(), error.message), ..error },
            None => error,
        }
    }

    fn gave_up(&self, last: Error, attempts: u32) -> Error {
        let why =
            if attempts >= self.max_attempts { "which is as often as it may" } else { "until its deadline" };
        let message = format!(
            "{} met others in its way in {attempts} attempts, {why}; nothing was done (last: {}). Try again later, or \
             give it more time",
            self.name(),
            last.message
        );
        Error { message, ..last }
    }

    fn late(&self, attempts: u32) -> Error {
        Error::unavailable(format!(
            "the deadline came while {} was still working, in attempt {attempts}; nothing was sent. Give it more time, \
             or do less in it",
            self.name()
        ))
    }
}

#[cfg(test)]
mod tests;
