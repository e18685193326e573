//! Floor 0: bytes on disk and in the log. Ordered keys, keyspace prefixes, versioned values.
//!
//! Nothing else encodes what lasts, and nothing here knows protobuf.

pub mod keyspace;
pub mod ordered;
#[cfg(feature = "server")]
mod versioned;

#[cfg(feature = "server")]
pub use versioned::{FORMAT_VERSION, decode, decode_prefix, encode, encode_into};
