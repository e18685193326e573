//! Tests of clusters of real processes: killed, paused, cut off, started again. They run one after another,
//! since each needs the machine for itself.

mod availability;
mod bad_commits;
mod bad_input;
mod changes;
mod crash;
mod examples;
mod indexes;
mod ledger;
mod raw;
mod reads;
mod restart;
mod sagas;
mod services;
mod slow;
mod support;
mod transactions;
mod zones;
