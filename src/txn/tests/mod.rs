//! Tests of the machines of commits: scripts, what is sent before the acknowledgement, and arbitrary events.

mod scripts;
mod total;
