//! Floor 0: bytes on disk and in the log. Ordered keys, keyspace prefixes, versioned values.
//!
//! Nothing else encodes what lasts, and nothing here knows protobuf.

pub mod keyspace;
pub mod ordered;
#[cfg(feature = "index")]
mod versioned;

#[cfg(feature = "index")]
pub use versioned::{FORMAT_VERSION, decode, decode_prefix, encode, encode_into};
