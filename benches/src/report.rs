//! The results: gathered over the rounds, as a table and as JSON.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use comfy_table::{Table, presets};
use hdrhistogram::Histogram;
use serde_json::{Value, json};

use crate::hot::HotShard;
use crate::load::{self, Load, Measured, Operation};
use crate::run::Extent;
use crate::system::{Reads, System};
use crate::{KEYS, Result, VALUE_BYTES, pauses};

/// All that a run gave.
pub struct Results {
    etcd_version: String,
    extent: Extent,
    hot: HotShard,
    cells: BTreeMap<Row, Cell>,
    peak_memory_kib: BTreeMap<&'static str, u64>,
}

/// What a line of the results is about. Lines are in this order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Row {
    /// What was done.
    pub operation: Operation,
    /// By how many clients.
    pub clients: usize,
    /// On which system.
    pub system: &'static str,
    /// Who answered reads, where there are any.
    pub reads: Option<Reads>,
}

impl Row {
    /// The row of this load on this system.
    pub fn new(load: &Load, system: &System) -> Self {
        let reads = system.reads().filter(|_| load.operation.has_reads());
        Self { operation: load.operation, clients: load.clients, system: system.name(), reads }
    }
}

/// What one measurement gave, and what was so meanwhile.
pub struct Round {
    /// What the clients saw.
    pub measured: Measured,
    /// The CPU time that the servers used.
    pub cpu: Duration,
    /// Who led the hot shard, before and after; empty where it does not matter.
    pub leaders: Vec<u64>,
    /// The node that was slow.
    pub slow: Option<u64>,
}

/// One row's figures, over all rounds.
pub struct Cell {
    latencies: Histogram<u64>,
    attempts: u64,
    errors: u64,
    took: Duration,
    cpu: Duration,
    /// Operations a second of each round: how much the machine was disturbed.
    per_round: Vec<f64>,
    /// Reads by the node that served them.
    served: BTreeMap<u64, u64>,
    /// Nodes that led the hot shard: more than one where that changed.
    leaders: BTreeSet<u64>,
    /// Nodes that were slow.
    slow: BTreeSet<u64>,
}

/// A node's part in serving a row's reads.
struct Share {
    node: u64,
    share: f64,
    leads: bool,
    is_slow: bool,
}

impl Cell {
    fn empty() -> Result<Self> {
        Ok(Self {
            latencies: load::histogram()?,
            attempts: 0,
            errors: 0,
            took: Duration::ZERO,
            cpu: Duration::ZERO,
            per_round: Vec::new(),
            served: BTreeMap::new(),
            leaders: BTreeSet::new(),
            slow: BTreeSet::new(),
        })
    }

    fn add(&mut self, round: Round) -> Result<()> {
        let Round { measured, cpu, leaders, slow } = round;
        self.per_round.push(measured.latencies.len() as f64 / measured.took.as_secs_f64());
        self.latencies.add(measured.latencies)?;
        self.attempts += measured.attempts;
        self.errors += measured.errors;
        self.took += measured.took;
        self.cpu += cpu;
        for (node, reads) in measured.served {
            *self.served.entry(node).or_default() += reads;
        }
        // Those that served nothing are part of the answer.
        for node in leaders.iter().chain(&slow) {
            self.served.entry(*node).or_default();
        }
        self.leaders.extend(leaders);
        self.slow.extend(slow);
        Ok(())
    }

    /// Which node served how much; empty where the system does not tell.
    fn shares(&self) -> impl Iterator<Item = Share> {
        let all = self.served.values().sum::<u64>().max(1) as f64;
        self.served.iter().map(move |(node, reads)| Share {
            node: *node,
            share: *reads as f64 / all,
            leads: self.leaders.contains(node),
            is_slow: self.slow.contains(node),
        })
    }

    /// Operations a second over all rounds.
    pub fn ops_per_s(&self) -> f64 {
        self.latencies.len() as f64 / self.took.as_secs_f64()
    }

    fn cpu_us_per_op(&self) -> f64 {
        self.cpu.as_secs_f64() * 1e6 / self.latencies.len().max(1) as f64
    }

    fn attempts_per_op(&self) -> f64 {
        self.attempts as f64 / self.latencies.len().max(1) as f64
    }

    fn quantile(&self, share: f64) -> u64 {
        self.latencies.value_at_quantile(share)
    }

    fn spread(&self) -> (f64, f64) {
        let least = self.per_round.iter().copied().fold(f64::INFINITY, f64::min);
        let most = self.per_round.iter().copied().fold(0.0, f64::max);
        (least, most)
    }
}

impl Results {
    /// No results yet.
    pub fn new(etcd_version: &str, extent: Extent, hot: &HotShard) -> Self {
        Self {
            etcd_version: etcd_version.to_owned(),
            extent,
            hot: hot.clone(),
            cells: BTreeMap::new(),
            peak_memory_kib: BTreeMap::new(),
        }
    }

    /// Adds what one round gave.
    pub fn add(&mut self, row: Row, round: Round) -> Result<()> {
        let cell = match self.cells.entry(row) {
            Entry::Occupied(held) => held.into_mut(),
            Entry::Vacant(free) => free.insert(Cell::empty()?),
        };
        cell.add(round)
    }

    /// Notes the most memory that one of a system's servers had.
    pub fn peak_memory(&mut self, system: &'static str, kib: u64) {
        self.peak_memory_kib.insert(system, kib);
    }

    /// The rows in order, and their figures.
    pub fn cells(&self) -> impl Iterator<Item = (&Row, &Cell)> {
        self.cells.iter()
    }

    /// The table for a terminal.
    pub fn table(&self) -> String {
        let mut table = Table::new();
        table.load_preset(presets::ASCII_MARKDOWN).set_header([
            "op",
            "clients",
            "system",
            "reads",
            "ops/s",
            "rounds",
            "p50 us",
            "p95 us",
            "p99 us",
            "CPU us/op",
            "attempts/op",
            "errors",
            "served by node",
        ]);
        for (row, cell) in self.cells() {
            let (least, most) = cell.spread();
            let served: Vec<String> = cell.shares().map(|share| share.to_string()).collect();
            table.add_row([
                row.operation.name().to_owned(),
                row.clients.to_string(),
                row.system.to_owned(),
                row.reads.map(|reads| reads.to_string()).unwrap_or_default(),
                format!("{:.0}", cell.ops_per_s()),
                format!("{least:.0}-{most:.0}"),
                cell.quantile(0.5).to_string(),
                cell.quantile(0.95).to_string(),
                cell.quantile(0.99).to_string(),
                format!("{:.0}", cell.cpu_us_per_op()),
                format!("{:.2}", cell.attempts_per_op()),
                cell.errors.to_string(),
                served.join(", "),
            ]);
        }
        format!("{table}\n{}\n{}", self.notes(), self.etcd_version)
    }

    /// What is to be known of the rows, and what is no row.
    fn notes(&self) -> String {
        let memory: Vec<String> = self
            .peak_memory_kib
            .iter()
            .map(|(system, kib)| format!("{system} {} MiB", kib.div_ceil(1024)))
            .collect();
        format!(
            "one shard: shard {} with {} of {KEYS} keys; L leads it. In turn: each read goes to the next node, however it \
             is.\netcd's bounded gets are its serializable ones: they may be of any age.\nOne slow node: S is paused \
             {pause} ms in every {} ms, and the figures begin some seconds after the pauses.\npeak memory of the largest \
             node: {}",
            self.hot.id,
            self.hot.keys.end - self.hot.keys.start,
            2 * pauses::PAUSE.as_millis(),
            memory.join(", "),
            pause = pauses::PAUSE.as_millis(),
        )
    }

    /// The results as JSON.
    pub fn json(&self) -> Value {
        let cells: Vec<Value> = self.cells().map(|(row, cell)| cell_json(row, cell)).collect();
        json!({
            "etcd_version": self.etcd_version,
            "rounds": self.extent.rounds,
            "slow_node_rounds": self.extent.slow_rounds,
            "round_seconds": self.extent.length.as_secs(),
            "value_bytes": VALUE_BYTES,
            "keys": KEYS,
            "hot_shard": { "id": self.hot.id, "keys": self.hot.keys.end - self.hot.keys.start },
            "cores": std::thread::available_parallelism().map_or(0, std::num::NonZero::get),
            "peak_memory_kib": self.peak_memory_kib,
            "results": cells,
        })
    }
}

fn cell_json(row: &Row, cell: &Cell) -> Value {
    let served_by: Vec<Value> = cell
        .shares()
        .map(|Share { node, share, leads, is_slow }| {
            json!({ "node": node, "share": share, "leads_the_shard": leads, "slow": is_slow })
        })
        .collect();
    json!({
        "operation": row.operation.name(),
        "clients": row.clients,
        "system": row.system,
        "reads": row.reads.map(|reads| reads.to_string()),
        "ops": cell.latencies.len(),
        "ops_per_s": cell.ops_per_s(),
        "ops_per_s_by_round": cell.per_round,
        "p50_us": cell.quantile(0.5),
        "p95_us": cell.quantile(0.95),
        "p99_us": cell.quantile(0.99),
        "server_cpu_us_per_op": cell.cpu_us_per_op(),
        "attempts_per_op": cell.attempts_per_op(),
        "errors": cell.errors,
        "served_by": served_by,
    })
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let leads = if self.leads { " L" } else { "" };
        let slow = if self.is_slow { " S" } else { "" };
        write!(f, "{}{leads}{slow} {:.1}%", self.node, self.share * 100.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_that_served_nothing_is_named_where_it_is_the_slow_one() {
        let mut cell = Cell::empty().expect("bounds are right");
        let latencies = load::histogram().expect("bounds are right");
        let served = [(1, 75), (2, 25)].into();
        let measured = Measured { latencies, attempts: 0, served, errors: 0, took: Duration::from_secs(1) };
        let round = Round { measured, cpu: Duration::ZERO, leaders: vec![2, 2], slow: Some(3) };
        cell.add(round).expect("same bounds");
        let told: Vec<String> = cell.shares().map(|share| share.to_string()).collect();
        assert_eq!(told, ["1 75.0%", "2 L 25.0%", "3 S 0.0%"]);
    }
}
