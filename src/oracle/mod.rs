//! Floor 3: timestamps in blocks under a ceiling.
