//! The engine in memory: for tests, and as the plain model of what an engine promises.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};

use super::drops::Drops;
use super::{
    Batch, BatchEntry, DropRules, Durability, Engine, EngineStats, Family, KeepRows, Row, Rows, StagedName,
    Staging, View,
};
use crate::types::{Direction, Error, KeyRange, Result};

type Table = BTreeMap<Bytes, Bytes>;

/// Copied on write, family by family, so that views stand still.
#[derive(Clone, Default)]
struct Tables([Arc<Table>; Family::ALL.len()]);

impl Tables {
    fn table(&self, family: Family) -> &Table {
        &self.0[family as usize]
    }

    fn table_mut(&mut self, family: Family) -> &mut Table {
        Arc::make_mut(&mut self.0[family as usize])
    }

    fn apply(&mut self, entry: BatchEntry) {
        match entry {
            BatchEntry::Put(family, key, value) => {
                self.table_mut(family).insert(key, value);
            }
            BatchEntry::Delete(family, key) => {
                self.table_mut(family).remove(&key);
            }
            BatchEntry::DeleteRange(family, range) => remove_range(self.table_mut(family), &range),
        }
    }
}

fn remove_range(table: &mut Table, range: &KeyRange) {
    if range.is_empty() {
        return;
    }
    let mut removed = table.split_off(&range.start);
    if let Some(end) = &range.end {
        table.append(&mut removed.split_off(end));
    }
}

/// Finished stagings by name, and the number of the next one.
#[derive(Default)]
struct Staged {
    finished: BTreeMap<StagedName, Vec<(Family, Bytes, Bytes)>>,
    next: u64,
}

/// An engine of ordered maps. Nothing survives its end.
#[derive(Default)]
pub struct MemoryEngine {
    tables: RwLock<Tables>,
    staged: Arc<Mutex<Staged>>,
    drops: Drops,
    syncs: std::sync::atomic::AtomicU64,
}

impl MemoryEngine {
    /// An empty engine.
    pub fn new() -> Self {
        Self::default()
    }
}

impl Engine for MemoryEngine {
    fn view(&self) -> Box<dyn View + '_> {
        Box::new(MemoryView(self.tables.read().clone()))
    }

    fn write(&self, batch: Batch, durability: Durability) -> Result<()> {
        let mut tables = self.tables.write();
        for entry in batch {
            tables.apply(entry);
        }
        if durability == Durability::Synced {
            self.syncs.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        }
        Ok(())
    }

    fn get(&self, family: Family, key: &[u8]) -> Result<Option<Bytes>> {
        Ok(self.tables.read().table(family).get(key).cloned())
    }

    fn stage(&self) -> Result<Box<dyn Staging>> {
        Ok(Box::new(MemoryStaging {
            rows: Vec::new(),
            last_keys: BTreeMap::new(),
            staged: self.staged.clone(),
        }))
    }

    fn install(&self, staged: &str, replaced: &[(Family, KeyRange)]) -> Result<()> {
        let rows = self.staged.lock().finished.get(staged).cloned().ok_or_else(|| {
            Error::corrupt(format!("there are no staged rows named {staged:?}: they were discarded"))
        })?;
        let mut tables = self.tables.write();
        for (family, range) in replaced {
            remove_range(tables.table_mut(*family), range);
        }
        for (family, key, value) in rows {
            tables.table_mut(family).insert(key, value);
        }
        Ok(())
    }

    fn discard_staged(&self, staged: &str) -> Result<()> {
        self.staged.lock().finished.remove(staged);
        Ok(())
    }

    fn discard_staged_except(&self, keep: &[StagedName]) -> Result<()> {
        self.staged.lock().finished.retain(|name, _| keep.contains(name));
        Ok(())
    }

    fn set_drop_rules(&self, rules: Arc<dyn DropRules>) {
        self.drops.set(rules);
    }

    fn keep_rows(&self) -> KeepRows {
        self.drops.keep()
    }

    /// As if every row lay in a file of its own.
    fn drop_files(&self, family: Family, range: &KeyRange) -> Result<()> {
        if self.drops.allowed() {
            self.tables.write().table_mut(family).retain(|key, _| !range.contains(key));
        }
        Ok(())
    }

    fn compact_all(&self) -> Result<()> {
        let mut tables = self.tables.write();
        for family in Family::ALL {
            if let Some(may_drop) = self.drops.begin(family) {
                tables.table_mut(family).retain(|key, value| !may_drop(key, value));
            }
        }
        Ok(())
    }

    fn stats(&self) -> EngineStats {
        let tables = self.tables.read().clone();
        let size_bytes = tables
            .0
            .iter()
            .flat_map(|table| table.iter())
            .map(|(key, value)| key.len() + value.len())
            .sum::<usize>();
        EngineStats {
            size_bytes: size_bytes as u64,
            syncs: self.syncs.load(std::sync::atomic::Ordering::Relaxed),
        }
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }
}

struct MemoryView(Tables);

impl View for MemoryView {
    fn get(&self, family: Family, key: &[u8]) -> Result<Option<Bytes>> {
        Ok(self.0.table(family).get(key).cloned())
    }

    fn scan(&self, family: Family, range: &KeyRange, direction: Direction) -> Rows<'_> {
        if range.is_empty() {
            return Box::new(std::iter::empty());
        }
        let end = match &range.end {
            Some(end) => Bound::Excluded(end.clone()),
            None => Bound::Unbounded,
        };
        let rows = self
            .0
            .table(family)
            .range((Bound::Included(range.start.clone()), end))
            .map(|(key, value)| -> Result<Row> { Ok((key.clone(), value.clone())) });
        match direction {
            Direction::Forward => Box::new(rows),
            Direction::Reverse => Box::new(rows.rev()),
        }
    }
}

struct MemoryStaging {
    rows: Vec<(Family, Bytes, Bytes)>,
    last_keys: BTreeMap<Family, Bytes>,
    staged: Arc<Mutex<Staged>>,
}

impl Staging for MemoryStaging {
    fn put(&mut self, family: Family, key: &[u8], value: &[u8]) -> Result<()> {
        let key = Bytes::copy_from_slice(key);
        if let Some(last) = self.last_keys.insert(family, key.clone())
            && last >= key
        {
            return Err(super::out_of_order(family, &key));
        }
        self.rows.push((family, key, Bytes::copy_from_slice(value)));
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<StagedName> {
        let mut staged = self.staged.lock();
        staged.next += 1;
        let name = format!("{:020}", staged.next);
        staged.finished.insert(name.clone(), self.rows);
        Ok(name)
    }
}
