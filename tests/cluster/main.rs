//! Tests of clusters of real processes: killed, paused, cut off, started again. They run one after another,
//! since each needs the machine for itself.

mod availability;
mod crash;
mod ledger;
mod restart;
mod support;
