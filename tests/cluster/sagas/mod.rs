//! Sagas of real processes: workers in this one, nodes in others that are killed.

mod basics;
