//! A whole history, with each invocation paired with its completion.

use std::collections::HashMap;

use super::{F, Kind, Op, Value};

/// Why a sequence of operations is no history.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// Indexes must rise.
    #[error("index {index} comes after index {before}: indexes must rise from line to line")]
    IndexNotRising {
        /// The index of the earlier entry.
        before: u64,
        /// The index that is not larger.
        index: u64,
    },
    /// A process has one operation open at a time.
    #[error("index {index}: process {process} invokes while its operation at index {open} is still open")]
    StillOpen {
        /// The second invocation.
        index: u64,
        /// The process.
        process: u64,
        /// The invocation without a completion.
        open: u64,
    },
    /// A completion needs an invocation.
    #[error("index {index}: process {process} completes an operation, but it has none open")]
    NothingOpen {
        /// The completion.
        index: u64,
        /// The process.
        process: u64,
    },
    /// Completion and invocation must be of the same function and key.
    #[error(
        "index {index}: process {process} completes another function or key than it invoked at index {open}"
    )]
    OtherFunction {
        /// The completion.
        index: u64,
        /// The process.
        process: u64,
        /// The invocation.
        open: u64,
    },
    /// A process ends with an unknown outcome.
    #[error(
        "index {index}: process {process} goes on after its operation ended as :info at index {ended}; it must go on under a fresh number"
    )]
    ProcessEnded {
        /// The later entry.
        index: u64,
        /// The process.
        process: u64,
        /// Where it ended.
        ended: u64,
    },
}

/// An invocation and its completion, as positions in [`History::ops`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pair {
    /// The invocation.
    pub invoke: usize,
    /// The completion, if there is one.
    pub complete: Option<usize>,
}

/// Operations in real-time order, paired.
#[derive(Clone, Debug, Default)]
pub struct History {
    ops: Vec<Op>,
    pairs: Vec<Pair>,
}

/// One operation from invocation to completion.
#[derive(Clone, Copy, Debug)]
pub struct Call<'a> {
    /// The invocation.
    pub invoke: &'a Op,
    /// The completion, if there is one.
    pub complete: Option<&'a Op>,
    /// The place of the invocation: `a` was over before `b` began if `a.end < b.start`.
    pub start: usize,
    /// The place of a completion as ok or fail; `usize::MAX` if the outcome is unknown.
    pub end: usize,
}

impl<'a> Call<'a> {
    /// How it ended: [`Kind::Ok`], [`Kind::Fail`] or [`Kind::Info`]; an operation without a completion is
    /// [`Kind::Info`].
    pub fn outcome(&self) -> Kind {
        self.complete.map_or(Kind::Info, |op| op.kind)
    }

    /// The function.
    pub fn f(&self) -> F {
        self.invoke.f
    }

    /// The key, empty if there is none.
    pub fn key(&self) -> &'a str {
        self.invoke.key.as_deref().unwrap_or_default()
    }

    /// The arguments.
    pub fn argument(&self) -> &'a Value {
        &self.invoke.value
    }

    /// The answer, if it is known.
    pub fn answer(&self) -> Option<&'a Value> {
        self.complete.filter(|op| op.kind == Kind::Ok).map(|op| &op.value)
    }

    /// The timestamp that the completion carries.
    pub fn timestamp(&self) -> Option<u64> {
        self.complete.and_then(|op| op.timestamp)
    }

    /// Whether it took effect for certain.
    pub fn is_ok(&self) -> bool {
        self.outcome() == Kind::Ok
    }

    /// The indexes of its entries, for reports.
    pub fn indexes(&self) -> Vec<u64> {
        std::iter::once(self.invoke.index).chain(self.complete.map(|op| op.index)).collect()
    }
}

impl History {
    /// Pairs operations that are in real-time order.
    pub fn new(ops: Vec<Op>) -> Result<Self, Malformed> {
        let mut builder = Builder::default();
        for op in ops {
            builder.push(op)?;
        }
        Ok(builder.finish())
    }

    /// The same history for checkers that know of no staleness: a read that may be so old is invoked so much earlier,
    /// since it may see what was there at any time from then on. It has a process of its own: its process went on with
    /// other things meanwhile. Indexes stay, so that reports name the entries as they were written.
    pub fn relaxed(&self) -> History {
        if self.ops.iter().all(|op| op.staleness_ms.is_none()) {
            return self.clone();
        }
        let mut next_process = self.ops.iter().map(|op| op.process).max().unwrap_or(0);
        let mut entries: Vec<(u64, usize, Op)> =
            self.ops.iter().enumerate().map(|(place, op)| (op.time_ns, place, op.clone())).collect();
        for pair in &self.pairs {
            let Some(staleness_ms) = self.ops[pair.invoke].staleness_ms else { continue };
            next_process += 1;
            let (time_ns, _, invoke) = &mut entries[pair.invoke];
            *time_ns = time_ns.saturating_sub(staleness_ms.saturating_mul(1_000_000));
            invoke.process = next_process;
            if let Some(complete) = pair.complete {
                entries[complete].2.process = next_process;
            }
        }
        // Of entries at one time the order stays, but an invocation that was moved goes before them.
        let is_moved = |op: &Op| op.staleness_ms.is_some() && op.kind == Kind::Invoke;
        entries.sort_by_key(|(time_ns, place, op)| (*time_ns, !is_moved(op), *place));
        let mut places = vec![0; entries.len()];
        for (new, (_, old, _)) in entries.iter().enumerate() {
            places[*old] = new;
        }
        let moved = |pair: &Pair| Pair {
            invoke: places[pair.invoke],
            complete: pair.complete.map(|complete| places[complete]),
        };
        let mut pairs: Vec<Pair> = self.pairs.iter().map(moved).collect();
        pairs.sort_by_key(|pair| pair.invoke);
        History { ops: entries.into_iter().map(|(_, _, op)| op).collect(), pairs }
    }

    /// Every entry, in order.
    pub fn ops(&self) -> &[Op] {
        &self.ops
    }

    /// Every pair, in the order of invocations.
    pub fn pairs(&self) -> &[Pair] {
        &self.pairs
    }

    /// Every operation, in the order of invocations.
    pub fn calls(&self) -> impl ExactSizeIterator<Item = Call<'_>> {
        self.pairs.iter().map(|pair| self.call(*pair))
    }

    fn call(&self, pair: Pair) -> Call<'_> {
        let complete = pair.complete.map(|place| &self.ops[place]);
        let known = pair.complete.filter(|place| self.ops[*place].kind != Kind::Info);
        Call {
            invoke: &self.ops[pair.invoke],
            complete,
            start: pair.invoke,
            end: known.unwrap_or(usize::MAX),
        }
    }

    /// The entry with this index.
    pub fn at(&self, index: u64) -> Option<&Op> {
        let found = self.ops.binary_search_by_key(&index, |op| op.index).ok().map(|place| &self.ops[place]);
        // In a relaxed history the indexes do not rise.
        found.or_else(|| self.ops.iter().find(|op| op.index == index))
    }

    /// Whether there are no entries.
    pub fn is_empty(&self) -> bool {
        self.ops.is_empty()
    }
}

/// Builds a history entry by entry, refusing the first that cannot be.
#[derive(Debug, Default)]
pub struct Builder {
    history: History,
    processes: HashMap<u64, Process>,
}

#[derive(Debug)]
enum Process {
    Idle,
    Open { pair: usize },
    Ended { index: u64 },
}

impl Builder {
    /// Adds the next entry.
    pub fn push(&mut self, op: Op) -> Result<(), Malformed> {
        let Op { index, process, .. } = op;
        let history = &mut self.history;
        if let Some(before) = history.ops.last().map(|last| last.index).filter(|before| *before >= index) {
            return Err(Malformed::IndexNotRising { before, index });
        }
        let state = self.processes.entry(process).or_insert(Process::Idle);
        match (&*state, op.kind) {
            (Process::Ended { index: ended }, _) => {
                return Err(Malformed::ProcessEnded { index, process, ended: *ended });
            }
            (Process::Open { pair }, Kind::Invoke) => {
                let open = history.ops[history.pairs[*pair].invoke].index;
                return Err(Malformed::StillOpen { index, process, open });
            }
            (Process::Idle, Kind::Invoke) => {
                *state = Process::Open { pair: history.pairs.len() };
                history.pairs.push(Pair { invoke: history.ops.len(), complete: None });
            }
            (Process::Idle, _) => return Err(Malformed::NothingOpen { index, process }),
            (Process::Open { pair }, kind) => {
                let pair = &mut history.pairs[*pair];
                let invoke = &history.ops[pair.invoke];
                if (invoke.f, &invoke.key) != (op.f, &op.key) {
                    return Err(Malformed::OtherFunction { index, process, open: invoke.index });
                }
                pair.complete = Some(history.ops.len());
                *state = if kind == Kind::Info { Process::Ended { index } } else { Process::Idle };
            }
        }
        history.ops.push(op);
        Ok(())
    }

    /// The index that the next entry has if its file names none.
    pub fn next_index(&self) -> u64 {
        self.history.ops.last().map_or(0, |op| op.index + 1)
    }

    /// The history so far. Operations that are still open have no completion.
    pub fn finish(self) -> History {
        self.history
    }
}
