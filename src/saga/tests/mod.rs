//! Tests of the machine of sagas.

mod definitions;
mod machine;
mod model;
mod notation;
#[cfg(feature = "server")]
mod schedules;
mod scripts;
mod table;
mod world;
