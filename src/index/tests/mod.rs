//! Tests of indexes: scripts, encodings, histories and queries against models that do it the simple way, and
//! arbitrary input.

mod arbitrary;
mod catalogue;
mod encodings;
mod histories;
mod limits;
mod projection;
mod queries;
mod scripts;
mod store;
