//! Tests of the oracle: scripts, and random histories of leaders that crash.

mod model;
mod scripts;
