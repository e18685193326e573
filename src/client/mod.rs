//! Floor 5: the public client library.
