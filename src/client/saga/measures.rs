//! Against what sagas lack of isolation: others see what a saga has done before it has ended. These are the countermeasures
//! of the literature (Garcia-Molina and Salem 1987; Frank and Zahle 1998), made of the store's transactions.
//!
//! - [`semantic_lock`] marks a record as one that a saga has under way, [`semantic_unlock`] ends that; others see the mark
//!   with [`locked_by`] and decide what to do.
//! - [`Seen`] notes the version of a value that a step has read, so that a later one can refuse to go on where it is another
//!   one ([`Seen::assert_unchanged`], "reread value").
//! - [`SagaWorker::adder`] makes steps that only add to counters, and their inverse: such steps commute, so that they
//!   can be undone whatever others did meanwhile.
//!
//! The pivot's check is part of definitions (`check_with`).

use bytes::{BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};

use super::task::{Task, to_json};
use super::worker::SagaWorker;
use crate::client::{Record, Timestamp, Txn};
use crate::saga::Failure;
use crate::types::Result;

/// What is appended to a record's key to make that of its mark. Zero first: it sorts right behind the record.
const MARK: &[u8] = b"\0saga-lock";

fn mark_of(key: &[u8]) -> Bytes {
    let mut mark = BytesMut::with_capacity(key.len() + MARK.len());
    mark.put_slice(key);
    mark.put_slice(MARK);
    mark.freeze()
}

/// Which saga has a record under way, if any; it is read in the transaction, so that the commit fails where that changes.
///
/// # Errors
///
/// Those of a read.
pub async fn locked_by(txn: &Txn, key: impl AsRef<[u8]>) -> Result<Option<String>> {
    let mark = txn.get(mark_of(key.as_ref())).await?;
    Ok(mark.map(|mark| String::from_utf8_lossy(&mark.value).into_owned()))
}

/// Marks a record as one that a saga has under way; the mark is the saga's until [`semantic_unlock`]. Had already, it is
/// no error.
///
/// # Errors
///
/// A failure of kind `locked` that did nothing, where another saga has it: tried again by the step's retry policy, unless
/// that names the kind final. Those of a read.
pub async fn semantic_lock(txn: &Txn, key: impl AsRef<[u8]>, saga_id: &str) -> Result<(), Failure> {
    let key = key.as_ref();
    match locked_by(txn, key).await? {
        Some(other) if other != saga_id => {
            Err(Failure::new(format!("saga {other} has {:?} under way", String::from_utf8_lossy(key)))
                .kind("locked")
                .did_nothing())
        }
        Some(_) => Ok(()),
        None => Ok(txn.put(mark_of(key), saga_id.to_owned())?),
    }
}

/// Ends a saga's mark on a record. Where the mark is another saga's, or there is none, nothing is done.
///
/// # Errors
///
/// Those of a read.
pub async fn semantic_unlock(txn: &Txn, key: impl AsRef<[u8]>, saga_id: &str) -> Result<()> {
    let key = key.as_ref();
    match locked_by(txn, key).await? {
        Some(holder) if holder == saga_id => txn.delete(mark_of(key)),
        _ => Ok(()),
    }
}

/// Which version of a value a step has seen: to be handed on in its output, and looked at by a later step.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Seen {
    /// The key, in hexadecimal: it may be any bytes.
    key_hex: String,
    /// When the value was committed; 0 where there was none.
    commit_ts: u64,
}

impl Seen {
    /// Reads a value, and notes which version it is.
    ///
    /// # Errors
    ///
    /// Those of a read.
    pub async fn read(txn: &Txn, key: impl AsRef<[u8]>) -> Result<(Option<Record>, Self)> {
        let key = key.as_ref();
        let record = txn.get(key).await?;
        let commit_ts = record.as_ref().map_or(0, |record| record.commit_ts.0);
        Ok((record, Self { key_hex: hex::encode(key), commit_ts }))
    }

    /// When the value was committed that was seen; zero where there was none.
    pub fn commit_ts(&self) -> Timestamp {
        Timestamp(self.commit_ts)
    }

    /// Reads the value once more, and refuses to go on where it is another one than was seen: so a step does not act on what
    /// is not so any more. The transaction's commit fails where it changes after that.
    ///
    /// # Errors
    ///
    /// A final failure of kind `changed` that did nothing, where it is another one; those of a read.
    pub async fn assert_unchanged(&self, txn: &Txn) -> Result<Option<Record>, Failure> {
        let key = hex::decode(&self.key_hex)
            .map_err(|error| Failure::refused(format!("what was seen has no key: {error}")))?;
        let (record, now) = Self::read(txn, &key).await?;
        if now == *self {
            return Ok(record);
        }
        Err(Failure::refused(format!(
            "the value of {:?} was changed at {}, after the saga had read it as of {}",
            String::from_utf8_lossy(&key),
            now.commit_ts,
            self.commit_ts
        ))
        .kind("changed"))
    }
}

impl SagaWorker {
    /// Steps that only add to counters: what `deltas` says is added, in a transaction; and taken away again, where the task
    /// is a compensation. Name this handler for both (`Step::txn("seats").compensate_with_txn("seats")`). Since additions
    /// commute, undoing gives back just what the step took, whatever others added meanwhile.
    ///
    /// What was added is the step's output, in JSON, and what is taken away again is read from there: `deltas` is not asked
    /// twice.
    pub fn adder<F>(self, handler: impl Into<String>, deltas: F) -> Self
    where
        F: Fn(&Task) -> Result<Vec<(Bytes, i64)>, Failure> + Send + Sync + 'static,
    {
        self.txn(handler, move |task, txn| {
            let added = match task.info().kind.as_str() {
                "compensation" => added_before(&task),
                _ => deltas(&task).map(|deltas| (deltas, 1)),
            };
            async move {
                let (deltas, sign) = added?;
                let mut noted = Vec::with_capacity(deltas.len());
                for (key, delta) in deltas {
                    let delta = sign_of(delta, sign)?;
                    txn.add(&key, delta)?;
                    noted.push((hex::encode(&key), delta));
                }
                Ok(to_json(&noted)?)
            }
        })
    }
}

fn sign_of(delta: i64, sign: i64) -> Result<i64, Failure> {
    delta.checked_mul(sign).ok_or_else(|| Failure::refused(format!("{delta} has no inverse in 64 bits")))
}

/// What the step has added, and that it is to be taken away.
fn added_before(task: &Task) -> Result<(Vec<(Bytes, i64)>, i64), Failure> {
    // A transaction is never unsure: where there is no output, nothing was added.
    let noted: Vec<(String, i64)> = task.output_json(task.step())?.unwrap_or_default();
    let deltas = noted.into_iter().map(|(key, delta)| {
        let key = hex::decode(&key)
            .map_err(|error| Failure::refused(format!("the step's output has no key: {error}")))?;
        Ok((Bytes::from(key), delta))
    });
    Ok((deltas.collect::<Result<_, Failure>>()?, -1))
}
