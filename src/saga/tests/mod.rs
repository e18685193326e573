//! Tests of the machine of sagas.

mod definitions;
mod machine;
mod model;
mod notation;
mod scripts;
mod table;
mod world;
