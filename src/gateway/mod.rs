//! Floor 7: HTTP: health, metrics, status.
