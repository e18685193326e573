//! Floor 2: versions of keys.
