//! What clients wrote, asked and read, and what the follower was told.

use std::collections::BTreeMap;

use super::Findings;
use crate::history::{Call, Changed, Dump, F, History, Kind, MicroOp, Query, Told, Value};

/// What a transaction leaves in each row that it is about.
pub(super) type Writes<'a> = BTreeMap<&'a str, Option<i64>>;

/// A query that was answered.
pub(super) struct Asked<'a> {
    pub call: Call<'a>,
    pub query: &'a Query,
    pub watermark: u64,
    pub found: &'a [(String, i64)],
}

/// Rows at a timestamp: of a read, or of a dump.
pub(super) struct Snapshot<'a> {
    pub call: Call<'a>,
    pub at: u64,
    pub rows: &'a BTreeMap<String, i64>,
}

/// A transaction as the follower was told it.
pub(super) struct Heard<'a> {
    pub call: Call<'a>,
    pub changes: &'a [Changed],
}

/// Everything.
#[derive(Default)]
pub(super) struct Collected<'a> {
    /// Acknowledged transactions with their commit timestamps.
    pub acknowledged: Vec<(u64, Call<'a>, Writes<'a>)>,
    /// Those of unknown fate.
    pub open: Vec<(Call<'a>, Writes<'a>)>,
    /// In the order of watermarks.
    pub queries: Vec<Asked<'a>>,
    /// In the order of timestamps.
    pub snapshots: Vec<Snapshot<'a>>,
    pub dumps: Vec<(Call<'a>, &'a Dump)>,
    /// By commit timestamp.
    pub heard: BTreeMap<u64, Heard<'a>>,
    /// Up to where the follower was told everything.
    pub reach: u64,
}

impl<'a> Collected<'a> {
    pub fn of(history: &'a History, findings: &mut Findings) -> Self {
        let mut collected = Self::default();
        for call in history.calls() {
            match (call.f(), call.argument(), call.answer()) {
                (F::Txn, Value::Txn(steps), _) => collected.transaction(call, steps, findings),
                (F::Follow, _, Some(Value::Told(told))) => collected.told(call, told),
                (_, _, Some(answer)) => collected.answered(call, answer, findings),
                _ => {}
            }
        }
        collected.queries.sort_by_key(|asked| asked.watermark);
        collected.snapshots.sort_by_key(|snapshot| snapshot.at);
        collected
    }

    fn transaction(&mut self, call: Call<'a>, steps: &'a [MicroOp], findings: &mut Findings) {
        match (call.outcome(), call.answer(), call.timestamp()) {
            (Kind::Ok, Some(Value::Txn(done)), Some(at)) => self.acknowledged.push((at, call, writes(done))),
            (Kind::Ok, ..) => findings.doubt(format!(
                "The transaction at index {} was acknowledged without its timestamp or what it did.",
                call.invoke.index
            )),
            (Kind::Info, ..) => self.open.push((call, writes(steps))),
            _ => {}
        }
    }

    fn told(&mut self, call: Call<'a>, told: &'a [Told]) {
        for told in told {
            let at = match told {
                Told::Changes { at, changes } => {
                    self.heard.insert(*at, Heard { call, changes });
                    *at
                }
                Told::Progress { at } => *at,
                Told::Row { .. } => continue,
            };
            self.reach = self.reach.max(at);
        }
    }

    fn answered(&mut self, call: Call<'a>, answer: &'a Value, findings: &mut Findings) {
        let Some(at) = call.timestamp() else {
            if matches!(call.f(), F::Query | F::Dump | F::Read) {
                findings.doubt(format!("The answer at index {} has no timestamp.", call.invoke.index));
            }
            return;
        };
        match (call.f(), call.argument(), answer) {
            (F::Query, Value::Query(query), Value::Found(found)) => {
                self.queries.push(Asked { call, query, watermark: at, found });
            }
            (F::Dump, _, Value::Dump(dump)) => {
                self.dumps.push((call, dump));
                self.snapshots.push(Snapshot { call, at, rows: &dump.rows });
            }
            (F::Read, _, Value::Balances(rows)) => self.snapshots.push(Snapshot { call, at, rows }),
            _ => {}
        }
    }
}

fn writes(steps: &[MicroOp]) -> Writes<'_> {
    let write = |step: &MicroOp| match step {
        MicroOp::Write { value, .. } => Some(Some(*value)),
        MicroOp::Delete { .. } => Some(None),
        MicroOp::Append { .. } | MicroOp::Add { .. } | MicroOp::Read { .. } => None,
    };
    steps.iter().filter_map(|step| Some((step.key(), write(step)?))).collect()
}
