//! An engine that keeps a journal of what reached the disk and of what was acknowledged, from which every
//! state that a crash may leave can be rebuilt.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use parking_lot::{Condvar, Mutex};

use crate::engine::{
    Batch, DropRules, Durability, Engine, EngineStats, Family, KeepRows, MemoryEngine, StagedName, Staging,
    View,
};
use crate::types::{Error, KeyRange, Result};

/// What a sync that is made to fail says.
pub(super) const FAILED_SYNC: &str = "a test made this sync fail";

type StagedRows = Vec<(Family, Bytes, Bytes)>;

/// What happened, in order.
#[derive(Clone)]
pub(super) enum Event {
    Write(Batch, Durability),
    Staged(StagedRows),
    Install(StagedName, Vec<(Family, KeyRange)>),
    Discard(StagedName),
    /// Somebody was told that everything up to so many steps of the script is safe.
    Acknowledged(usize),
}

/// The engine, its journal, a gate that holds synced writes back, and a disk that can fail.
#[derive(Clone, Default)]
pub(super) struct CutEngine {
    inner: Arc<MemoryEngine>,
    journal: Arc<Mutex<Vec<Event>>>,
    gate: Arc<Gate>,
    fails_next_sync: Arc<AtomicBool>,
}

/// Closed while its state is true.
#[derive(Default)]
struct Gate {
    closed: Mutex<bool>,
    opened: Condvar,
}

impl Gate {
    fn wait(&self) {
        let mut closed = self.closed.lock();
        self.opened.wait_while(&mut closed, |closed| *closed);
    }
}

/// Holds synced writes back as long as it lives.
pub(super) struct Held(Arc<Gate>);

impl Drop for Held {
    fn drop(&mut self) {
        *self.0.closed.lock() = false;
        self.0.opened.notify_all();
    }
}

impl CutEngine {
    pub(super) fn acknowledge(&self, steps: usize) {
        self.journal.lock().push(Event::Acknowledged(steps));
    }

    /// Synced writes wait until the guard is dropped.
    pub(super) fn hold_syncs(&self) -> Held {
        *self.gate.closed.lock() = true;
        Held(self.gate.clone())
    }

    /// The next synced write is readable afterwards, as one of RocksDB is, but its sync fails.
    pub(super) fn fail_next_sync(&self) {
        self.fails_next_sync.store(true, Ordering::SeqCst);
    }

    pub(super) fn journal(&self) -> Vec<Event> {
        self.journal.lock().clone()
    }
}

/// How many steps had been acknowledged when a crash left only the first `kept` events: an acknowledgement
/// is in danger as long as no later sync stands between, so all up to the next sync count.
pub(super) fn acknowledged(journal: &[Event], kept: usize) -> usize {
    let mut steps = 0;
    for (position, event) in journal.iter().enumerate() {
        match event {
            Event::Acknowledged(upto) => steps = steps.max(*upto),
            Event::Write(_, Durability::Synced) if position >= kept => break,
            _ => {}
        }
    }
    steps
}

/// The engine after a crash that left the first `kept` events.
pub(super) fn rebuild(journal: &[Event], kept: usize) -> MemoryEngine {
    let engine = MemoryEngine::new();
    for event in &journal[..kept] {
        match event {
            Event::Write(batch, durability) => engine.write(batch.clone(), *durability).expect("writes"),
            Event::Staged(rows) => {
                let mut staging = engine.stage().expect("stages");
                for (family, key, value) in rows {
                    staging.put(*family, key, value).expect("stages");
                }
                staging.finish().expect("finishes");
            }
            Event::Install(staged, replaced) => engine.install(staged, replaced).expect("installs"),
            Event::Discard(staged) => engine.discard_staged(staged).expect("discards"),
            Event::Acknowledged(_) => {}
        }
    }
    engine
}

impl Engine for CutEngine {
    fn view(&self) -> Box<dyn View + '_> {
        self.inner.view()
    }

    fn write(&self, batch: Batch, durability: Durability) -> Result<()> {
        if durability == Durability::Synced {
            self.gate.wait();
        }
        let mut journal = self.journal.lock();
        self.inner.write(batch.clone(), durability)?;
        if durability == Durability::Synced && self.fails_next_sync.swap(false, Ordering::SeqCst) {
            journal.push(Event::Write(batch, Durability::Buffered));
            return Err(Error::unavailable(FAILED_SYNC));
        }
        journal.push(Event::Write(batch, durability));
        Ok(())
    }

    fn get(&self, family: Family, key: &[u8]) -> Result<Option<Bytes>> {
        self.inner.get(family, key)
    }

    fn stage(&self) -> Result<Box<dyn Staging>> {
        Ok(Box::new(CutStaging { engine: self.clone(), inner: self.inner.stage()?, rows: Vec::new() }))
    }

    fn install(&self, staged: &str, replaced: &[(Family, KeyRange)]) -> Result<()> {
        let mut journal = self.journal.lock();
        self.inner.install(staged, replaced)?;
        journal.push(Event::Install(staged.to_string(), replaced.to_vec()));
        Ok(())
    }

    fn discard_staged(&self, staged: &str) -> Result<()> {
        let mut journal = self.journal.lock();
        self.inner.discard_staged(staged)?;
        journal.push(Event::Discard(staged.to_string()));
        Ok(())
    }

    fn discard_staged_except(&self, keep: &[StagedName]) -> Result<()> {
        self.inner.discard_staged_except(keep)
    }

    fn set_drop_rules(&self, rules: Arc<dyn DropRules>) {
        self.inner.set_drop_rules(rules);
    }

    fn keep_rows(&self) -> KeepRows {
        self.inner.keep_rows()
    }

    fn drop_files(&self, family: Family, range: &KeyRange) -> Result<()> {
        self.inner.drop_files(family, range)
    }

    fn compact_all(&self) -> Result<()> {
        self.inner.compact_all()
    }

    fn stats(&self) -> EngineStats {
        self.inner.stats()
    }

    fn flush(&self) -> Result<()> {
        self.inner.flush()
    }
}

struct CutStaging {
    engine: CutEngine,
    inner: Box<dyn Staging>,
    rows: StagedRows,
}

impl Staging for CutStaging {
    fn put(&mut self, family: Family, key: &[u8], value: &[u8]) -> Result<()> {
        self.inner.put(family, key, value)?;
        self.rows.push((family, Bytes::copy_from_slice(key), Bytes::copy_from_slice(value)));
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<StagedName> {
        let name = self.inner.finish()?;
        self.engine.journal.lock().push(Event::Staged(self.rows));
        Ok(name)
    }
}
