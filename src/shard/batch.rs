//! Conditional batches: all of `then` or all of `otherwise`, or nothing.

use std::collections::{BTreeMap, btree_map::Entry};

use bytes::Bytes;

use super::apply::Context;
use super::lock::{self, Access};
use super::{counter, outcome, single};
use crate::engine::{Overlay, View};
use crate::mvcc::{self, Row, Version};
use crate::types::{BatchResult, Condition, Outcome, Record, Refusal, Result, Step, Timestamp, limits};

/// What a batch consists of.
#[derive(Clone, Copy)]
pub(super) struct Body<'c> {
    pub conditions: &'c [Condition],
    pub then: &'c [Step],
    pub otherwise: &'c [Step],
}

impl Body<'_> {
    /// The smallest key named, where the marker is kept: the same whichever branch is taken.
    fn routing_key(&self) -> Option<&Bytes> {
        let conditions = self.conditions.iter().map(|condition| &condition.key);
        conditions.chain(self.then.iter().chain(self.otherwise).map(Step::key)).min()
    }

    /// Whether any step writes, in either branch: an attempt may take the one and its retry the other.
    fn writes(&self) -> bool {
        self.then.iter().chain(self.otherwise).any(|step| !matches!(step, Step::Get { .. }))
    }
}

/// Runs a batch. Each key is written once, as the last step leaves it: a commit makes at most one version of
/// a key. A refusal in any step voids all of it: nothing is written but the marker.
pub(super) fn run(overlay: &mut Overlay<'_>, context: Context<'_>, body: Body<'_>) -> Result<Outcome> {
    let Some(routing_key) = body.routing_key().filter(|_| body.writes()) else {
        // It changes nothing, so that a retry may look again: reads must not fill the disk with markers.
        return Ok(match draft(overlay, context, body)? {
            Ok((_, outcome)) => outcome,
            Err(refusal) => Outcome::Refused(refusal),
        });
    };
    if let Some(first) = outcome::marked(&*overlay, routing_key, context)? {
        return Ok(first);
    }
    let (keys, done) = match draft(overlay, context, body)? {
        Ok(drafted) => drafted,
        // It comes again after the release (rule R9).
        Err(locked @ Refusal::Locked(_)) => return Ok(Outcome::Refused(locked)),
        Err(refusal) => return Ok(outcome::mark(overlay, routing_key, context, Outcome::Refused(refusal))),
    };
    for (key, drafted) in keys {
        if let Some(version) = drafted.version(context) {
            mvcc::write(overlay, &key, drafted.stored, &version)?;
        }
    }
    Ok(outcome::mark(overlay, routing_key, context, done))
}

/// Takes the steps without writing anything: how they leave the keys, and the outcome; or why one is
/// refused. Locks come first: those of the conditions, then those of the branch they choose.
fn draft(view: &dyn View, context: Context<'_>, body: Body<'_>) -> Result<Result<(Keys, Outcome), Refusal>> {
    let mut draft = Draft { view, context, keys: BTreeMap::new(), read_bytes: 0 };
    let mut succeeded = true;
    for condition in body.conditions {
        if let Some(lock) = lock::excluding(view, context, Access::Read(&condition.key))? {
            return Ok(Err(Refusal::Locked(lock)));
        }
    }
    for condition in body.conditions {
        succeeded = succeeded && single::holds(&condition.expect, draft.read(&condition.key)?.as_ref());
    }
    let steps = if succeeded { body.then } else { body.otherwise };
    for step in steps {
        let access = match step {
            Step::Get { key } => Access::Read(key),
            _ => Access::Write(step.key()),
        };
        if let Some(lock) = lock::excluding(view, context, access)? {
            return Ok(Err(Refusal::Locked(lock)));
        }
    }
    let mut results = Vec::with_capacity(steps.len());
    for step in steps {
        match draft.take(step)? {
            Ok(result) => results.push(result),
            Err(refusal) => return Ok(Err(refusal)),
        }
    }
    Ok(Ok((draft.keys, Outcome::Batch { commit_ts: context.timestamp, succeeded, results })))
}

/// The keys that a batch has looked at.
type Keys = BTreeMap<Bytes, Drafted>;

/// A key that the batch has looked at: as it is stored, and as the steps so far leave it.
struct Drafted {
    stored: Option<Row>,
    record: Option<Record>,
    written: bool,
}

impl Drafted {
    /// The version to write; `None` where nothing is: a key that was only read, or is absent as before.
    fn version(&self, context: Context<'_>) -> Option<Version> {
        let held = self.stored.as_ref().is_some_and(|row| row.version.value.is_some());
        match &self.record {
            _ if !self.written => None,
            Some(record) => Some(Version {
                commit_ts: record.commit_ts,
                id: context.id,
                create_ts: record.create_ts,
                number: record.version,
                lease: None,
                value: Some(record.value.clone()),
            }),
            None if held => Some(Version::tombstone(context.timestamp, context.id)),
            None => None,
        }
    }
}

/// The steps' work before any of it is written.
struct Draft<'v> {
    view: &'v dyn View,
    context: Context<'v>,
    keys: Keys,
    read_bytes: usize,
}

impl Draft<'_> {
    /// The key as the steps so far leave it; read from the store at its first mention.
    fn entry(&mut self, key: &Bytes) -> Result<&mut Drafted> {
        Ok(match self.keys.entry(key.clone()) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(unknown) => {
                let stored = mvcc::current(self.view, key, self.context.safe_point)?;
                let record = stored.as_ref().and_then(|row| row.version.record());
                unknown.insert(Drafted { stored, record, written: false })
            }
        })
    }

    fn read(&mut self, key: &Bytes) -> Result<Option<Record>> {
        Ok(self.entry(key)?.record.clone())
    }

    /// Takes a step, or says why it is refused.
    fn take(&mut self, step: &Step) -> Result<Result<BatchResult, Refusal>> {
        Ok(match step {
            Step::Put { key, value } => {
                let (version, create_ts) = self.put(key, value)?;
                Ok(BatchResult::Put { version, create_ts })
            }
            Step::Delete { key } => {
                let drafted = self.entry(key)?;
                drafted.written = true;
                Ok(BatchResult::Deleted { existed: drafted.record.take().is_some() })
            }
            Step::Add { key, delta } => {
                let held = self.read(key)?;
                match counter::sum(key, held.as_ref().map(|record| record.value.as_ref()), *delta) {
                    Ok(value) => {
                        self.put(key, &counter::text(value))?;
                        Ok(BatchResult::Added { value })
                    }
                    Err(refusal) => Err(refusal),
                }
            }
            Step::Get { key } => {
                let record = self.read(key)?;
                self.read_bytes += record.as_ref().map_or(0, |record| key.len() + record.value.len());
                if self.read_bytes > limits::MAX_BATCH_RESULT_BYTES {
                    let limit_bytes = limits::MAX_BATCH_RESULT_BYTES as u64;
                    return Ok(Err(Refusal::ResultTooLarge { limit_bytes }));
                }
                Ok(BatchResult::Got { record })
            }
        })
    }

    /// Drafts a value; its version number and create timestamp. A second value for the same key is the same
    /// version.
    fn put(&mut self, key: &Bytes, value: &Bytes) -> Result<(u64, Timestamp)> {
        let commit_ts = self.context.timestamp;
        let drafted = self.entry(key)?;
        let (version, create_ts) = match &drafted.record {
            Some(record) if record.commit_ts == commit_ts => (record.version, record.create_ts),
            Some(record) => (record.version + 1, record.create_ts),
            None => (1, commit_ts),
        };
        drafted.record = Some(Record { value: value.clone(), commit_ts, create_ts, version });
        drafted.written = true;
        Ok((version, create_ts))
    }
}
