//! Floor 7: the `kvorum` command.
