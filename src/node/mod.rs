//! Floor 6: a node: everything wired together.
