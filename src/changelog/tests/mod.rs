//! Tests of the changelog: cursors.

mod cursors;
