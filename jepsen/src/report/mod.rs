//! What a run leaves for people and programs to read: `results.json` and `report.html`.

pub mod html;
mod results;

pub use results::{Counts, CrashTold, FORMAT, Latency, Parameters, Results, latencies};

#[cfg(test)]
pub(crate) use results::tests::sample;
