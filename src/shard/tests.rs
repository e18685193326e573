//! Tests of the machine: scripts and models.
