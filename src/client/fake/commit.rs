//! The fake's commits: validated against what was read, all at one timestamp, each id once.

use super::*;
use crate::types::{AbortReason, Conflict, ConflictReason, Refusal, TxnOutcome, TxnPart, TxnWrite};

/// A commit as it came.
#[derive(Clone, Debug)]
pub(in crate::client) struct Came {
    pub(in crate::client) id: RequestId,
    pub(in crate::client) part: TxnPart,
}

/// The answer to a commit that meets a lock, without anything kept.
pub(super) fn locked() -> Error {
    let conflict = Conflict {
        reason: ConflictReason::Locked,
        key: Some("held".into()),
        ts: Some(Timestamp(1)),
        is_final: false,
    };
    Error::conflict("locked, as ordered", conflict)
}

impl World {
    pub(super) fn commit(&mut self, id: RequestId, part: &TxnPart) -> Result<Reply> {
        self.ids.push(id);
        self.commits.push(Came { id, part: part.clone() });
        if let Some(outcome) = self.outcomes.get(&id) {
            return convert::commit_reply(outcome.clone()).map(Reply::Commit);
        }
        if id.seen.0 > self.clock {
            return convert::commit_reply(Outcome::Refused(Refusal::FutureId { seen: id.seen }))
                .map(Reply::Commit);
        }
        let ts = self.next_ts();
        let outcome = match self.refusal(id.seen, part) {
            Some(reason) => TxnOutcome::Aborted { reason },
            None => {
                part.writes.iter().for_each(|write| self.take(ts, write));
                self.effects += 1;
                TxnOutcome::Committed { commit_ts: ts }
            }
        };
        self.outcomes.insert(id, Outcome::Txn(outcome.clone()));
        convert::commit_reply(Outcome::Txn(outcome)).map(Reply::Commit)
    }

    /// Why a transaction can't be committed.
    fn refusal(&self, start: Timestamp, part: &TxnPart) -> Option<AbortReason> {
        let newest = |key: &Bytes| self.rows.get(key).and_then(|rows| rows.last()).map(|(ts, _)| *ts);
        let in_ranges =
            part.ranges.iter().flat_map(|range| self.rows.keys().filter(|key| range.contains(key)));
        for key in part.reads.iter().chain(in_ranges) {
            if let Some(commit_ts) = newest(key).filter(|newest| *newest > start) {
                return Some(AbortReason::Changed { key: key.clone(), commit_ts });
            }
        }
        part.writes.iter().find_map(|write| match write {
            TxnWrite::Add { key, .. } => {
                let held = self.read(key, Timestamp::MAX)?;
                let is_counter =
                    std::str::from_utf8(&held.value).is_ok_and(|text| text.parse::<i64>().is_ok());
                (!is_counter)
                    .then(|| AbortReason::Counter(Box::new(Refusal::NotACounter { key: key.clone() })))
            }
            _ => None,
        })
    }

    fn take(&mut self, ts: Timestamp, write: &TxnWrite) {
        match write {
            TxnWrite::Put { key, value } => {
                self.set(ts, key, Some(value.clone()));
            }
            TxnWrite::Delete { key } => {
                self.set(ts, key, None);
            }
            TxnWrite::Add { key, delta } => {
                self.added(ts, key, *delta).expect("a counter");
            }
        }
    }
}
