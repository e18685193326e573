//! The results: gathered over the rounds, as a table and as JSON.

use std::collections::BTreeMap;
use std::time::Duration;

use comfy_table::{Table, presets};
use hdrhistogram::Histogram;
use serde_json::{Value, json};

use crate::load::{self, Measured, Operation};
use crate::{KEYS, Result, VALUE_BYTES};

/// All that a run gave.
pub struct Results {
    etcd_version: String,
    rounds: u32,
    length: Duration,
    cells: BTreeMap<(Operation, usize, &'static str), Cell>,
    peak_memory_kib: BTreeMap<&'static str, u64>,
}

/// One system with one load, over all rounds.
pub struct Cell {
    latencies: Histogram<u64>,
    attempts: u64,
    errors: u64,
    took: Duration,
    cpu: Duration,
    /// Operations a second of each round: how much the machine was disturbed.
    per_round: Vec<f64>,
}

impl Cell {
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
    pub fn new(etcd_version: &str, rounds: u32, length: Duration) -> Self {
        let etcd_version = etcd_version.to_owned();
        Self { etcd_version, rounds, length, cells: BTreeMap::new(), peak_memory_kib: BTreeMap::new() }
    }

    /// Adds what one round gave, and the CPU time that the servers used in it.
    pub fn add(
        &mut self,
        system: &'static str,
        operation: Operation,
        clients: usize,
        measured: &Measured,
        cpu: Duration,
    ) -> Result<()> {
        let empty = Cell {
            latencies: load::histogram()?,
            attempts: 0,
            errors: 0,
            took: Duration::ZERO,
            cpu: Duration::ZERO,
            per_round: Vec::new(),
        };
        let cell = self.cells.entry((operation, clients, system)).or_insert(empty);
        cell.latencies.add(&measured.latencies)?;
        cell.attempts += measured.attempts;
        cell.errors += measured.errors;
        cell.took += measured.took;
        cell.cpu += cpu;
        cell.per_round.push(measured.latencies.len() as f64 / measured.took.as_secs_f64());
        Ok(())
    }

    /// Notes the most memory that one of a system's servers had.
    pub fn peak_memory(&mut self, system: &'static str, kib: u64) {
        self.peak_memory_kib.insert(system, kib);
    }

    /// The cells in order: operation, clients, system.
    pub fn cells(&self) -> impl Iterator<Item = (Operation, usize, &'static str, &Cell)> {
        self.cells.iter().map(|((operation, clients, system), cell)| (*operation, *clients, *system, cell))
    }

    /// The table for a terminal.
    pub fn table(&self) -> String {
        let mut table = Table::new();
        table.load_preset(presets::ASCII_MARKDOWN).set_header([
            "op",
            "clients",
            "system",
            "ops/s",
            "rounds",
            "p50 us",
            "p95 us",
            "p99 us",
            "CPU us/op",
            "attempts/op",
            "errors",
        ]);
        for (operation, clients, system, cell) in self.cells() {
            let (least, most) = cell.spread();
            table.add_row([
                operation.name().to_owned(),
                clients.to_string(),
                system.to_owned(),
                format!("{:.0}", cell.ops_per_s()),
                format!("{least:.0}-{most:.0}"),
                cell.quantile(0.5).to_string(),
                cell.quantile(0.95).to_string(),
                cell.quantile(0.99).to_string(),
                format!("{:.0}", cell.cpu_us_per_op()),
                format!("{:.2}", cell.attempts_per_op()),
                cell.errors.to_string(),
            ]);
        }
        let memory: Vec<String> = self
            .peak_memory_kib
            .iter()
            .map(|(system, kib)| format!("{system} {} MiB", kib.div_ceil(1024)))
            .collect();
        format!("{table}\npeak memory of the largest node: {}\n{}", memory.join(", "), self.etcd_version)
    }

    /// The results as JSON.
    pub fn json(&self) -> Value {
        let cells: Vec<Value> = self
            .cells()
            .map(|(operation, clients, system, cell)| {
                json!({
                    "operation": operation.name(),
                    "clients": clients,
                    "system": system,
                    "ops": cell.latencies.len(),
                    "ops_per_s": cell.ops_per_s(),
                    "ops_per_s_by_round": cell.per_round,
                    "p50_us": cell.quantile(0.5),
                    "p95_us": cell.quantile(0.95),
                    "p99_us": cell.quantile(0.99),
                    "server_cpu_us_per_op": cell.cpu_us_per_op(),
                    "attempts_per_op": cell.attempts_per_op(),
                    "errors": cell.errors,
                })
            })
            .collect();
        json!({
            "etcd_version": self.etcd_version,
            "rounds": self.rounds,
            "round_seconds": self.length.as_secs(),
            "value_bytes": VALUE_BYTES,
            "keys": KEYS,
            "cores": std::thread::available_parallelism().map_or(0, std::num::NonZero::get),
            "peak_memory_kib": self.peak_memory_kib,
            "results": cells,
        })
    }
}
