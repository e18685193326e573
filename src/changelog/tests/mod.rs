//! Tests of the changelog's machines over a small simulated store: scripts, a model with consumers that die, cursors.

mod cursors;
mod model;
mod scripts;
mod store;
